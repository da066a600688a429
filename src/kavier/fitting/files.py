"""Fitted groups as catalog files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from kavier.errors import InputError, reason
from kavier.fitting.groups import Group
from kavier.timing.own_kernels import version_number

DIGITS = 4
"""Significant digits kept of a fitted number: far more than its error leaves."""


def gpu_files(folder: Path, own: Mapping[str, Iterable[Group]], date: str) -> dict[Path, str]:
    """The text of FOLDER/GPU/VERSION.toml for each GPU and version of `own`."""
    texts = {}
    for gpu, groups in own.items():
        by_version: dict[str, list[Group]] = {}
        for group in groups:
            by_version.setdefault(group.version, []).append(group)
        for version in sorted(by_version, key=version_number):
            texts[folder / gpu / f"{version}.toml"] = toml_of(by_version[version], gpu, date)
    return texts


def toml_of(groups: Iterable[Group], title: str, date: str) -> str:
    """The text of one file: each group with its source, error and date (of ISO 8601)."""
    lines = [f"# {title}", "# Written by `kavier fit-kernels`; do not edit.", ""]
    for group in groups:
        lines += [
            f"[{group.name}]",
            f"source = {_quoted(group.source)}",
            f"error = {_quoted(group.error)}",
            f"date = {_quoted(date)}",
        ]
        lines += [
            f"{name} = {{ value = {rounded(v)}, unit = {_quoted(group.units[name])} }}"
            for name, v in group.values.items()
        ]
        lines.append("")
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """As TOML and JSON quote it."""
    return json.dumps(text)


def rounded(value: float) -> str:
    """The number with four significant digits, as Python and TOML read it."""
    return repr(float(f"{value:.{DIGITS}g}"))


def write_all(texts: Mapping[Path, str]) -> None:
    """Write files, all or none: each is written beside its place first.

    Raises:
        InputError: The system does not let us.
    """
    aside = {path: path.with_name(f".{path.name}.new") for path in texts}
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            aside[path].write_text(text, encoding="utf-8")
        for path, written in aside.items():
            written.replace(path)
    except OSError as error:
        for written in aside.values():
            with suppress(OSError):
                written.unlink(missing_ok=True)
        raise InputError(f"cannot write it: {reason(error)}", where=str(error.filename or "")) from None
