"""What was compared with measured runs, and how near a scenario is to it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from math import hypot, log, log2
from pathlib import PurePath
from typing import Any

from kavier.ecosystem.gpu import find_gpu
from kavier.ecosystem.platform import Platform
from kavier.ecosystem.vllm_versions import is_async
from kavier.timing.constants import read_constants

DISTANCE = read_constants("kavier.metrics", "distance.toml")
"""What each difference adds to the expected error, and the errors below which none is believed."""

P90_IN_SD = 1.645
"""90 % of the absolute values of a normal distribution lie within so many standard deviations."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What step times hang on.

    Attributes:
        gpu: Catalog name.
        model: Its name, or that of its config file.
        kind: "dense", "moe" or "mla" (with or without experts).
        weight_dtype: Of most of its weights.
        active_parameters: That one token uses.
        tensor_parallel_size: GPUs that share them.
        data_parallel_size: Engines that share one set of experts.
        expert_parallel: Whole experts on each GPU; never on one alone, where it changes nothing.
        vllm_version: The release that is mirrored.
        asynchronous: Its scheduling.
    """

    gpu: str
    model: str
    kind: str
    weight_dtype: str
    active_parameters: int
    tensor_parallel_size: int
    data_parallel_size: int
    expert_parallel: bool
    vllm_version: str
    asynchronous: bool

    @classmethod
    def of(cls, platform: Platform) -> Configuration:
        """That of a platform."""
        model, engine = platform.model, platform.engine
        experts = any(layer.mlp.experts for layer in model.layers)
        gpus = engine.tensor_parallel_size * engine.data_parallel_size
        latent = any(layer.attention.kind == "mla" for layer in model.layers)
        return cls(
            gpu=platform.gpu.name,
            model=PurePath(model.name).name if model.name.endswith(".json") else model.name,
            kind="mla" if latent else "moe" if experts else "dense",
            weight_dtype=model.weight_dtype,
            active_parameters=model.active_parameters(),
            tensor_parallel_size=engine.tensor_parallel_size,
            data_parallel_size=engine.data_parallel_size,
            expert_parallel=engine.enable_expert_parallel and gpus > 1,
            vllm_version=engine.vllm_version,
            asynchronous=is_async(engine),
        )


@dataclass(frozen=True, slots=True)
class Validated:
    """Measured runs of one configuration, and how far off they were.

    Attributes:
        case: The file of cases they came from.
        level: Of the step times.
        overloaded: Whether the measured fleet had more work than it could do.
        configuration: What was measured.
        runs: How many.
        load: Least and largest load factor of the runs, as simulated.
        errors: Metric -> {median, p90, bias}: of the absolute errors of the runs' means, and the mean error.
        source: Who measured.
        date: When it was compared.
        measured_with: vLLM's release that was measured, where another is mirrored; empty = the same.
    """

    case: str
    level: str
    overloaded: bool
    configuration: Configuration
    runs: int
    load: tuple[float, float]
    errors: Mapping[str, Mapping[str, float]]
    source: str
    date: str
    measured_with: str = ""

    @property
    def name(self) -> str:
        """In words."""
        one, measured = self.configuration, self.measured_with
        parallel = f"TP{one.tensor_parallel_size}{', expert parallel' if one.expert_parallel else ''}"
        return (
            f"{one.model} on {one.gpu}, {parallel}, vLLM {one.vllm_version}"
            f"{f' (measured with {measured})' if measured else ''}"
            f"{', overloaded' if self.overloaded else ''}"
        )


@dataclass(frozen=True, slots=True)
class Near:
    """A validated configuration as seen from a scenario.

    Attributes:
        validated: The configuration.
        differs: What is different, in words; empty if nothing is.
        distance: What that adds to the error of step times, relative, one standard deviation.
    """

    validated: Validated
    differs: tuple[str, ...]
    distance: float

    def step_errors(self) -> dict[str, float]:
        """Expected error of the time of "decode" and "prefill", relative, one standard deviation.

        That of the validated runs (of TPOT, or else E2E; of TTFT) and the distance. A metric that was not
        measured there counts as twice the floor.
        """
        errors, far = self.validated.errors, DISTANCE["prefill.factor"]
        floors = DISTANCE["floor.decode"], DISTANCE["floor.prefill"]
        decode = _sd(errors.get("tpot_s") or errors.get("e2e_s"), floors[0])
        prefill = _sd(errors.get("ttft_s"), floors[1])
        return {"decode": hypot(decode, self.distance), "prefill": hypot(prefill, far * self.distance)}

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        one = self.validated
        return {
            "case": one.name,
            "level": one.level,
            "differs": list(self.differs),
            "distance": self.distance,
            "runs": one.runs,
            "load": list(one.load),
            "errors": {metric: dict(error) for metric, error in one.errors.items()},
            "source": one.source,
            "date": one.date,
        }


def _sd(error: Mapping[str, float] | None, floor: float) -> float:
    """Of a bias the median tells more than P90, of scatter it is the other way round."""
    return max(error["p90"] / P90_IN_SD, error["median"], floor) if error else 2.0 * floor


def nearest(
    own: Configuration, levels: Sequence[str], load: float | None, record: Sequence[Validated]
) -> Near | None:
    """The validated configuration that differs least; of several, that with the most runs.

    Args:
        own: The scenario's.
        levels: Of its step times, and of those that the user's own numbers took the place of.
        load: Its load factor, if it has one.
        record: All there are.
    """
    near = [_seen(own, levels, load or 0.0, one) for one in record]
    return min(near, key=lambda one: (one.distance, -one.validated.runs), default=None)


def _seen(own: Configuration, levels: Sequence[str], load: float, validated: Validated) -> Near:
    found = list(_differences(own, validated.configuration))
    if load > (most := validated.load[1]):
        found.append((DISTANCE["differs.higher_load"], f"load up to {most:.2f} instead of {load:.2f}"))
    if validated.level not in levels:
        lower = any(level in BETTER.get(validated.level, ()) for level in levels)
        words = f"step times of level {validated.level} instead of {levels[0]}"
        found.append((DISTANCE["differs.lower_level" if lower else "differs.higher_level"], words))
    return Near(validated, tuple(words for _, words in found), hypot(*(size for size, _ in found)))


def _differences(own: Configuration, other: Configuration) -> Iterator[tuple[float, str]]:
    """(what it adds to the error, words) of each difference."""
    cost = DISTANCE
    if own.gpu != other.gpu:
        alike = find_gpu(own.gpu).architecture == find_gpu(other.gpu).architecture
        far = cost["differs.gpu"] if alike else hypot(cost["differs.gpu"], cost["differs.architecture"])
        yield far, f"GPU {other.gpu} instead of {own.gpu}"
    if own.active_parameters != other.active_parameters:  # one architecture may have several names
        each, theirs = (one.active_parameters / one.tensor_parallel_size for one in (own, other))
        size = cost["differs.size"] * log(each / theirs)
        yield hypot(cost["differs.model"], size), f"model {other.model} instead of {own.model}"
    if own.kind != other.kind:
        yield cost["differs.kind"], f"{KINDS[other.kind]} instead of {KINDS[own.kind]}"
    if own.weight_dtype != other.weight_dtype:
        yield cost["differs.weight_dtype"], f"{other.weight_dtype} weights instead of {own.weight_dtype}"
    if (tp := own.tensor_parallel_size) != (theirs := other.tensor_parallel_size):
        yield cost["differs.tensor_parallel"] * abs(log2(tp / theirs)), f"TP {theirs} instead of {tp}"
    if (dp := own.data_parallel_size) != (theirs := other.data_parallel_size):
        yield (
            cost["differs.data_parallel"] * abs(log2(dp / theirs)),
            f"data parallel {theirs} instead of {dp}",
        )
    if own.expert_parallel != other.expert_parallel:
        yield (
            cost["differs.expert_parallel"],
            f"{'with' if other.expert_parallel else 'without'} expert parallelism",
        )
    if own.asynchronous != other.asynchronous:
        yield cost["differs.scheduling"], f"{_loop(other)} scheduling instead of {_loop(own)}"
    if own.vllm_version != other.vllm_version:
        yield cost["differs.release"], f"vLLM {other.vllm_version} instead of {own.vllm_version}"


BETTER = {"datasheet": ("kernels", "calibrated"), "kernels": ("calibrated",)}
"""Level -> those that know more: what was validated below them says much of them, but not the other way."""

KINDS = {"dense": "a dense model", "moe": "experts", "mla": "latent attention"}
"""Kind of model -> in words."""


def _loop(one: Configuration) -> str:
    return "asynchronous" if one.asynchronous else "synchronous"


@cache
def record() -> tuple[Validated, ...]:
    """What `kavier validate --record` wrote, as shipped."""
    return parse_record(files("kavier.metrics").joinpath("validated.toml").read_text(encoding="utf-8"))


def parse_record(text: str) -> tuple[Validated, ...]:
    """The entries of a record."""
    names = Configuration.__dataclass_fields__
    return tuple(
        Validated(
            configuration=Configuration(**{name: entry.pop(name) for name in names}),
            load=tuple(entry.pop("load")),
            **entry,
        )
        for entry in tomllib.loads(text)["validated"]
    )


HEAD = """\
# What was compared with measured runs: written by `kavier validate --record` (make validate), never by hand.
# errors: median and P90 of the absolute errors of the runs' means (or medians), bias their mean error."""


def record_toml(entries: Sequence[Validated]) -> str:
    """The text that `parse_record` reads."""
    return "\n\n".join([HEAD, *(_entry_toml(entry) for entry in entries)]) + "\n"


def _entry_toml(entry: Validated) -> str:
    plain = asdict(entry)
    plain |= plain.pop("configuration")
    errors = plain.pop("errors")
    lines = ["[[validated]]", *(f"{name} = {_value(value)}" for name, value in plain.items())]
    lines += [f"errors.{name} = {_value(error)}" for name, error in errors.items()]
    return "\n".join(lines)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_value(each)}" for name, each in value.items()) + " }"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
