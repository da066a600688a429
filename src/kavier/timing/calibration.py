"""A calibration: a few numbers fitted to a measured run, on top of what a datasheet or kernels say."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from kavier.ecosystem.vllm_versions import is_async
from kavier.errors import InputError, reason
from kavier.scenario import Engine
from kavier.timing.constants import entries

BaseLevel = Literal["datasheet", "kernels"]

CLIENT, POWER = "calibration.client_s", "calibration.power_factor"

MATRICES = r"(gemm|moe)\..*"

DIVIDED: Mapping[str, str] = {
    "calibration.compute_factor": rf"({MATRICES}|attention\.prefill)\.compute_efficiency",
    "calibration.prefill_attention_factor": r"attention\.prefill\.compute_efficiency",
    "calibration.memory_factor": rf"{MATRICES}\.memory_efficiency",
    "calibration.kv_read_factor": r"attention\.decode\.memory_efficiency",
}
"""Factor on times -> the efficiencies it divides, as a pattern of their names. 1 = as the level says."""

REPLACED = ("host.step_s", "host.row_s")
"""Numbers of the step-time model that a calibration may give itself."""

NAMES = (CLIENT, *DIVIDED, POWER, *REPLACED)

LIMITS: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys((*DIVIDED, POWER), (0.1, 10.0)),
    **dict.fromkeys((CLIENT, *REPLACED), (0.0, 10.0)),
}
"""What a number may be: what is beyond is another unit or a mistake. Factors, and seconds."""

SECTION = "measured"
"""Table of a file that says what was measured."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Numbers of a measured run.

    Attributes:
        level: What they correct.
        values: By name, of `NAMES`; what is not there is as the level says.
        measured: gpu, model and engine of the run, as text.
        source: What the numbers were fitted on.
    """

    level: BaseLevel
    values: Mapping[str, float]
    measured: Mapping[str, str] = field(default_factory=dict)
    source: str = ""

    def corrected(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """The numbers of a step-time model, corrected."""
        found = dict(numbers)
        for name, pattern in DIVIDED.items():
            if (factor := self.values.get(name)) is not None:
                for key in filter(re.compile(pattern).fullmatch, numbers):
                    found[key] /= factor
        return found | {name: self.values[name] for name in REPLACED if name in self.values}

    def elsewhere(self, gpu: str, model: str, engine: Engine) -> Iterator[str]:
        """What is served here, and what was measured, where they differ."""
        for what, here in {"gpu": gpu, "model": model, "engine": engine_text(engine)}.items():
            if (there := self.measured.get(what)) not in (None, here):
                yield f"{here}, not {there}"


def engine_text(engine: Engine) -> str:
    """What of an engine's settings a calibration belongs to."""
    loop = "asynchronous" if is_async(engine) else "synchronous"
    return f"vLLM {engine.vllm_version} {loop}, tensor parallel {engine.tensor_parallel_size}"


def read_calibration(path: Path) -> Calibration:
    """Read what `kavier calibrate` wrote.

    Raises:
        InputError: Not readable, no such file, a number that no calibration has, or one beyond its `LIMITS`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the calibration: {reason(error)}", where=str(path)) from None
    return _parsed(text, str(path))


@cache
def shipped_calibration(gpu: str) -> Calibration | None:
    """The one that comes with Kavier for a GPU of the catalog."""
    if gpu not in calibrated_gpus():
        return None
    text = files("kavier.timing").joinpath("calibrated", f"{gpu}.toml").read_text(encoding="utf-8")
    return _parsed(text, f"{gpu}.toml")


@cache
def calibrated_gpus() -> tuple[str, ...]:
    """Catalog names of the GPUs whose calibration comes with Kavier."""
    names = [file.name for file in (files("kavier.timing") / "calibrated").iterdir()]
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def _parsed(text: str, where: str) -> Calibration:
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"no TOML: {error}", where=where, expected="a file of kavier calibrate") from None
    measured = tree.pop(SECTION, None)
    if not isinstance(measured, dict) or measured.get("level") not in ("datasheet", "kernels"):
        raise InputError(
            f"no calibration: {SECTION}.level does not say what it corrects",
            where=where,
            expected="datasheet or kernels, in a file of kavier calibrate",
        )
    try:
        found = entries(tree)
    except (ValueError, AttributeError) as error:
        raise InputError(f"no calibration: {error}", where=where) from None
    values = {name: _number(name, entry, where) for name, entry in found.items()}
    said = {key: _text(key, value, where) for key, value in measured.items() if key != "level"}
    return Calibration(
        measured["level"], values, said, "; ".join(dict.fromkeys(e["source"] for e in found.values()))
    )


def _number(name: str, entry: Mapping[str, Any], where: str) -> float:
    if name not in NAMES:
        raise InputError(f"unknown number {name!r}", where=where, near=(name, NAMES))
    value = entry["value"]
    least, most = LIMITS[name]
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not least <= value <= most:
        expected = f"a number from {least:g} to {most:g}"
        raise InputError(f"{name} is not usable", where=where, value=value, expected=expected)
    return float(value)


def _text(key: str, value: object, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{SECTION}.{key} is no text", where=where, value=value, expected="text in quotes")
    return value
