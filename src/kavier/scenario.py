"""THE input: one typed tree, one YAML file. Every key has a unit in its name and a stated default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kavier.errors import InputError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of all sections: immutable, and a key nobody knows is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Arrivals(Section):
    """When requests arrive.

    poisson, gamma (vLLM's: gaps ~ Gamma(burstiness, 1/(rate*burstiness)); burstiness 1 = Poisson),
    constant gaps, or diurnal: Poisson whose rate follows a day,
    rate(t) = request_rate * (1 + swing * sin(2 pi (t - peak_s) / period_s + pi/2)).
    """

    process: Literal["poisson", "gamma", "constant", "diurnal"] = "poisson"
    request_rate: Annotated[float, Field(gt=0, description="mean requests per second; inf = all at once")] = (
        1.0
    )
    burstiness: Positive = 1.0
    swing: Annotated[float, Field(ge=0, le=1)] = 0.5
    period_s: Positive = 86400.0
    peak_s: NonNegative = 50400.0


class Lengths(Section):
    """How many tokens a prompt or an answer has.

    fixed: `mean`. uniform: mean * (1 +- range_ratio), as `vllm bench serve --random-range-ratio`.
    lognormal: by `mean` and `p50` (both of the lognormal before clipping). empirical: drawn with
    replacement from the same column of `trace`. `min` and `max` clip (counted).
    """

    kind: Literal["fixed", "uniform", "lognormal", "empirical"] = "fixed"
    mean: Positive | None = None
    p50: Positive | None = None
    range_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    trace: Path | None = None
    min: Count = 1
    max: Count | None = None

    @model_validator(mode="after")
    def _complete(self) -> Lengths:
        needs = {"fixed": ["mean"], "uniform": ["mean"], "lognormal": ["mean", "p50"], "empirical": ["trace"]}
        missing = [name for name in needs[self.kind] if getattr(self, name) is None]
        if missing:
            raise ValueError(f"lengths of kind {self.kind!r} need {' and '.join(missing)}")
        if (
            self.kind == "lognormal"
            and self.mean is not None
            and self.p50 is not None
            and self.mean < self.p50
        ):
            raise ValueError("a lognormal's mean cannot be below its p50")
        return self


class Prefixes(Section):
    """What prompts share: system prompts, and sessions whose next prompt extends the last prompt and answer."""

    system_prompts: Annotated[int, Field(ge=0)] = 0
    system_prompt_tokens: Annotated[int, Field(ge=0)] = 0
    mean_turns: Annotated[float, Field(ge=1)] = 1.0
    mean_think_s: NonNegative = 30.0
    block_tokens: Count = 16


class Synthetic(Section):
    """A generated workload; a preset fills what is not given."""

    preset: str | None = None
    num_prompts: Count | None = None
    duration_s: Positive | None = None
    arrivals: Arrivals | None = None
    prompt_tokens: Lengths | None = None
    output_tokens: Lengths | None = None
    prefixes: Prefixes | None = None


class WorkloadSection(Section):
    """What arrives: a trace, or a synthetic generator."""

    trace: Path | None = None
    format: str = "auto"
    synthetic: Synthetic | None = None
    max_concurrency: Annotated[
        Count | None, Field(description="closed loop: at most this many requests in flight")
    ] = None

    @model_validator(mode="after")
    def _one_source(self) -> WorkloadSection:
        if (self.trace is None) == (self.synthetic is None):
            raise ValueError("give either a trace or synthetic load, not both and not neither")
        return self


class Engine(Section):
    """Engine settings, under vLLM's names and with vLLM's defaults (0.33, API server)."""

    vllm_version: Literal["0.33"] = "0.33"
    dtype: Literal["auto", "bfloat16", "float16"] = "auto"
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    max_model_len: Annotated[
        Count | Literal["auto"] | None, Field(description="None = the model's; auto = what fits in KV memory")
    ] = None
    tensor_parallel_size: Count = 1
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.92
    num_gpu_blocks_override: Annotated[int | None, Field(ge=2)] = None
    block_size: Count = 16
    enable_prefix_caching: bool = True
    max_num_seqs: Annotated[Count | None, Field(description="None = vLLM's default for the GPU's memory")] = (
        None
    )
    max_num_batched_tokens: Annotated[
        Count | None, Field(description="None = vLLM's default for the GPU")
    ] = None
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: Annotated[int, Field(ge=0)] = 0
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    scheduler_reserve_full_isl: bool = True
    watermark: Annotated[float, Field(ge=0, lt=1)] = 0.0
    kv_cache: Annotated[
        bool, Field(description="off: no KV caching at all, every step recomputes the whole context")
    ] = True


class Fleet(Section):
    """Replicas of the engine and the router before them."""

    gpu: str
    replicas: Count = 1
    router: Literal["round-robin", "least-outstanding"] = "round-robin"


class Site(Section):
    """Where the fleet stands: grid and facility."""

    region: str = "WORLD"
    carbon_gco2_per_kwh: Annotated[NonNegative | None, Field(description="None = the region's average")] = (
        None
    )
    carbon_series: Annotated[
        Path | None, Field(description="hourly intensities of the region, CSV or Parquet")
    ] = None
    start: Annotated[str | None, Field(description="UTC time of arrival_s = 0, for carbon_series")] = None
    pue: Annotated[float, Field(ge=1, description="power usage effectiveness, facility / IT energy")] = 1.2


class Prices(Section):
    """What is paid. GPU-hours are rented: electricity is inside their price and never added."""

    usd_per_gpu_hour: Annotated[
        NonNegative | None, Field(description="None = the catalog's on-demand price")
    ] = None
    usd_per_kwh: Annotated[NonNegative | None, Field(description="None = the region's")] = None


class Slo(Section):
    """Service-level objectives: a request is good when it meets all that are given."""

    ttft_s: Positive | None = None
    tpot_s: Positive | None = None
    e2e_s: Positive | None = None


class Output(Section):
    """What is recorded."""

    sample_interval_s: Positive = 1.0
    steps: Annotated[bool, Field(description="also write steps.parquet, one row a step")] = False


class Scenario(Section):
    """A workload, an ecosystem, and how to report: all that a run needs."""

    seed: Annotated[int, Field(ge=0)] = 0
    model: Annotated[str, Field(description="Hugging Face name of the catalog, or path of a config.json")]
    workload: WorkloadSection
    fleet: Fleet
    engine: Engine = Engine()
    site: Site = Site()
    prices: Prices = Prices()
    slo: Slo = Slo()
    output: Output = Output()


def parse_scenario(tree: Mapping[str, Any], *, where: str = "scenario") -> Scenario:
    """Build a `Scenario` from plain data.

    Raises:
        InputError: The first thing that is wrong, with its path, value and the nearest valid key.
    """
    try:
        return Scenario.model_validate(tree)
    except ValidationError as error:
        raise _explain(error, where) from None


def read_scenario_tree(path: Path) -> dict[str, Any]:
    """The plain data of a YAML scenario; relative paths in it are taken from the file's folder.

    Raises:
        InputError: Missing or unreadable file, YAML that does not parse (line named), not a mapping.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the scenario: {reason(error)}", where=str(path)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(
            f"not valid YAML: {getattr(error, 'problem', None) or 'cannot parse'}", where=f"{path}{line}"
        ) from None
    if not isinstance(tree, dict):
        raise InputError(
            "the scenario is not a mapping", where=str(path), expected="keys such as model, workload, fleet"
        )
    return _anchor_paths(tree, path.parent)


def reason(error: Exception) -> str:
    """What the operating system said, without its errno decoration."""
    return getattr(error, "strerror", None) or str(error)


_PATHS = (("workload", "trace"), ("site", "carbon_series"), ("workload", "synthetic", "prompt_tokens", "trace"),
          ("workload", "synthetic", "output_tokens", "trace"))  # fmt: skip


def _anchor_paths(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    for *parents, leaf in _PATHS:
        node: Any = tree
        for key in parents:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict) and isinstance(node.get(leaf), str):
            node[leaf] = str(folder / node[leaf])
    return tree


def set_path(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted path (`fleet.replicas`) in plain data, creating sections on the way."""
    *parents, leaf = path.split(".")
    for key in parents:
        child = tree.get(key)
        if not isinstance(child, dict):
            child = tree[key] = {}
        tree = child
    tree[leaf] = value


def dump_scenario(scenario: Scenario) -> str:
    """The scenario as YAML, every default written out."""
    return yaml.safe_dump(scenario.model_dump(mode="json"), sort_keys=False)


def _explain(error: ValidationError, where: str) -> InputError:
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        names = list(_fields_at(Scenario, first["loc"][:-1]))
        return InputError(f"unknown key {path!r}", where=where, near=(str(first["loc"][-1]), names))
    if first["type"] == "missing":
        return InputError(f"missing key {path!r}", where=where)
    message = str(first["msg"]).removeprefix("Value error, ")
    value = None if isinstance(first["input"], dict | BaseModel) else first["input"]
    return InputError(f"{path or 'scenario'}: {message}", where=where, value=value)


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> Iterator[str]:
    """Names of the keys of the section that `path` leads to."""
    for key in path:
        annotation = model.model_fields[str(key)].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    yield from model.model_fields
