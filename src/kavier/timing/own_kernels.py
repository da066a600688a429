"""A folder of kernels that the user fitted: GPU/VERSION.toml, as `kavier fit-kernels --out` writes them."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kavier.errors import InputError, reason
from kavier.timing.constants import entries

_VERSION = re.compile(r"0\.\d+")

MOST_SHARE, MOST_S, MOST = 1.5, 1.0, 1e4
"""The largest efficiency or share of a bandwidth, time in seconds, and other number of a kernel: datasheets
are passed by little, never many times."""


def version_number(version: str) -> int:
    """0.14 is 14."""
    return int(version.split(".")[1])


def read_folder(folder: Path, gpu: str, known: Mapping[str, float]) -> dict[str, dict[str, dict[str, Any]]]:
    """All numbers of a GPU, with all that is said of each, by version of vLLM, oldest first.

    Args:
        folder: Holds a folder for each GPU.
        gpu: Catalog name.
        known: Numbers of every group that prices a step, by dotted name.

    Raises:
        InputError: No file of this GPU, a file that cannot be read, or a group that lacks a number, has one
            that nothing asks for, or one that is not positive or beyond what can be.
    """
    if not folder.is_dir():
        raise InputError("kernels: no such folder", where=str(folder))
    found = sorted((folder / gpu).glob("*.toml"), key=_order)
    if not found:
        held = sorted(each.name for each in folder.iterdir() if any(each.glob("*.toml")))
        raise InputError(
            f"kernels: no file {gpu}/VERSION.toml",
            where=str(folder),
            expected="a folder that kavier fit-kernels --out wrote for this GPU",
            near=(gpu, held),
        )
    return {file.stem: _read(file, known) for file in found}


def _order(file: Path) -> int:
    if not _VERSION.fullmatch(file.stem):
        raise InputError("kernels: no version of vLLM", where=str(file), expected="a name such as 0.24.toml")
    return version_number(file.stem)


def _read(file: Path, known: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    try:
        found = entries(tomllib.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"kernels: cannot read it: {reason(error)}", where=str(file)) from None
    except ValueError as error:  # no TOML, no text, or an entry without its source
        raise InputError(f"kernels: {error}", where=str(file)) from None
    for name, entry in found.items():
        _check_number(name, entry["value"], known, file)
    for group in {name.rpartition(".")[0] for name in found}:
        lacking = [name for name in known if name.rpartition(".")[0] == group and name not in found]
        if lacking:
            raise InputError(f"kernels: {group} lacks {lacking[0].rpartition('.')[2]}", where=str(file))
    return found


def _check_number(name: str, value: Any, known: Mapping[str, float], file: Path) -> None:
    if name not in known:
        raise InputError(f"kernels: unknown number {name}", where=str(file), near=(name, known))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    most = _most(name.rpartition(".")[2])
    if not number or not math.isfinite(value) or not 0 < value <= most:
        raise InputError(
            "kernels: not a number of the model", where=f"{file}, {name}", value=value,
            expected=f"a positive number up to {most:g}",
        )  # fmt: skip


def _most(name: str) -> float:
    """The largest that a number of this last name may be."""
    if name.endswith("_efficiency") or name.startswith("share_"):
        return MOST_SHARE
    return MOST_S if name.endswith("_s") else MOST
