"""THE input: one typed tree, one YAML file. Every key has a unit in its name and a stated default."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from kavier.scenario_errors import explain

LARGEST = 10**12
"""No quantity of a scenario is larger; a larger number is a slip of the keyboard, and would overflow."""

Positive = Annotated[float, Field(gt=0, le=LARGEST)]
NonNegative = Annotated[float, Field(ge=0, le=LARGEST)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=LARGEST)]
CountOrZero = Annotated[int, Field(ge=0, le=LARGEST)]


VllmVersion = Literal["0.11", "0.14", "0.20", "0.25", "0.33"]


def release(version: object) -> str:
    """v0.33.0 is 0.33: patch releases are not told apart. YAML reads 0.20 as the number 0.2."""
    if isinstance(version, float) and (names := [v for v in get_args(VllmVersion) if float(v) == version]):
        return str(names[0])
    return re.sub(r"^v?(\d+\.\d+)(\.\d+)?$", r"\1", str(version))


def _two_bytes(dtype: object) -> object:
    """`half` is float16; 32 bits would change memory and step times, and are not modelled."""
    if dtype in ("float", "float32"):
        raise ValueError(f"{dtype} is not modelled; expected auto, bfloat16 or float16 (16 bits)")
    return "float16" if dtype == "half" else dtype


def _one_byte(dtype: object) -> object:
    """Values of the same size under vLLM's names: fp8 is fp8_e4m3 there, auto is 16 bits here."""
    names = {"fp8_e4m3": "fp8", "fp8_e5m2": "fp8", "bfloat16": "auto", "float16": "auto"}
    return names.get(str(dtype), dtype)


PolicyName = Annotated[str, Field(pattern=r"\.py:[A-Za-z_]\w*$")]
"""FILE.py:function: a policy in Python, see `simulation.policy`."""

RouterName = Literal[
    "round-robin",
    "random",
    "session-affine",
    "consistent-hash",
    "least-outstanding",
    "power-of-two-choices",
    "least-kv-used",
    "longest-prefix-match",
    "cache-aware",
    "llm-d",
]


ClientName = Literal["engine", "http"]


class Section(BaseModel):
    """Base of all sections: immutable, and a key nobody knows is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)


def _check_quantiles(pairs: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    probabilities = [p for p, _ in pairs]
    values = [v for _, v in pairs]
    if len(pairs) < 2 or probabilities[0] != 0 or probabilities[-1] != 1:
        raise ValueError("quantiles run from probability 0 to probability 1")
    if any(b <= a for a, b in pairwise(probabilities)) or any(b < a for a, b in pairwise(values)):
        raise ValueError("quantiles need rising probabilities and values that never fall")
    return pairs


Quantiles = Annotated[tuple[tuple[Share, NonNegative], ...], AfterValidator(_check_quantiles)]
"""An inverse CDF as a few (probability, value) points, joined by straight lines."""


class Arrivals(Section):
    """When requests arrive.

    poisson, gamma (vLLM's: gaps ~ Gamma(burstiness, 1/(rate*burstiness)); burstiness 1 = Poisson),
    constant gaps, quantiles (independent gaps whose inverse CDF is the straight lines through
    `gap_quantiles`, scaled to the rate), or diurnal: Poisson whose rate follows a day,
    rate(t) = request_rate * (1 + swing * sin(2 pi (t - peak_s) / period_s + pi/2)).
    A process or a rate that is not given is the preset's; without a preset, Poisson at 1 request/s.
    """

    process: Literal["poisson", "gamma", "constant", "quantiles", "diurnal"] | None = None
    request_rate: Annotated[
        float | None, Field(gt=0, description="mean requests per second; inf = all at once")
    ] = None
    burstiness: Positive = 1.0
    gap_quantiles: Annotated[
        Quantiles | None, Field(description="[probability, gap] pairs from 0 to 1; gaps in any unit")
    ] = None
    swing: Share = 0.5
    period_s: Positive = 86400.0
    peak_s: NonNegative = 50400.0

    @model_validator(mode="after")
    def _complete(self) -> Arrivals:
        _check_uses(self, self.process, _ARRIVAL_USES, "process")
        if self.process == "quantiles" and (self.gap_quantiles is None or self.gap_quantiles[-1][1] == 0):
            raise ValueError("process 'quantiles' needs gap_quantiles that are not all zero")
        if self.request_rate == inf and self.process not in (None, "poisson"):
            raise ValueError(f"process {self.process!r} needs a finite request_rate")
        return self


class Lengths(Section):
    """How many tokens a prompt or an answer has.

    fixed: `mean`. uniform: mean * (1 +- range_ratio), as `vllm bench serve --random-range-ratio`.
    lognormal: by `mean` and `p50` (both of the lognormal before clipping). quantiles: inverse CDF by
    straight lines through `quantiles`. empirical: drawn with replacement from the same column of
    `trace`. `min` and `max` clip (counted).
    """

    kind: Literal["fixed", "uniform", "lognormal", "quantiles", "empirical"] = "fixed"
    mean: Positive | None = None
    p50: Positive | None = None
    range_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    quantiles: Annotated[
        Quantiles | None, Field(description="[probability, tokens] pairs, probabilities from 0 to 1")
    ] = None
    trace: Path | None = None
    min: Count = 1
    max: Count | None = None

    @model_validator(mode="after")
    def _complete(self) -> Lengths:
        needed = [name for name, kinds in _LENGTH_NEEDS.items() if self.kind in kinds]
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise ValueError(f"lengths of kind {self.kind!r} need {' and '.join(missing)}")
        _check_uses(self, self.kind, _LENGTH_USES, "kind")
        if self.kind == "lognormal" and (self.mean or 0) < (self.p50 or 0):
            raise ValueError("a lognormal's mean cannot be below its p50")
        if self.max is not None and self.max < self.min:
            raise ValueError("max cannot be below min")
        return self


_ARRIVAL_USES = {
    "burstiness": ("gamma",),
    "gap_quantiles": ("quantiles",),
    "swing": ("diurnal",),
    "period_s": ("diurnal",),
    "peak_s": ("diurnal",),
}
_LENGTH_NEEDS = {
    "mean": ("fixed", "uniform", "lognormal"),
    "p50": ("lognormal",),
    "quantiles": ("quantiles",),
    "trace": ("empirical",),
}
_LENGTH_USES = {**_LENGTH_NEEDS, "range_ratio": ("uniform",)}


def _check_uses(section: Section, chosen: str | None, uses: Mapping[str, tuple[str, ...]], key: str) -> None:
    """A setting that the chosen kind would silently ignore is an error."""
    for name, kinds in uses.items():
        default = type(section).model_fields[name].default
        if chosen not in kinds and getattr(section, name) != default:
            raise ValueError(f"{name} needs {key} {' or '.join(kinds)}, not {chosen or 'unset'}")


class Prefixes(Section):
    """What prompts share: system prompts, and sessions whose next prompt extends the last prompt and answer.

    Each session begins with one of `system_prompts`, chosen uniformly; its tokens come on top of
    `prompt_tokens`. Turns are geometric. Each later turn adds `turn_tokens` (None = drawn as
    `prompt_tokens`) after an exponential think time. With sessions, `request_rate` still counts
    requests: sessions start at request_rate / mean_turns, and the rate is reached after a few think
    times. `duration_s` drops the turns that would come later (counted).
    """

    system_prompts: CountOrZero = 0
    system_prompt_tokens: CountOrZero = 0
    mean_turns: Annotated[float, Field(ge=1, le=LARGEST)] = 1.0
    mean_think_s: NonNegative = 30.0
    turn_tokens: Lengths | None = None
    block_tokens: Count = 16

    @model_validator(mode="after")
    def _complete(self) -> Prefixes:
        if (self.system_prompts == 0) != (self.system_prompt_tokens == 0):
            raise ValueError("give both system_prompts and system_prompt_tokens, or neither")
        return self


class Synthetic(Section):
    """A generated workload; a preset fills what is not given.

    It stops at `num_prompts` requests, or with the arrivals of `duration_s`, or at whichever comes
    first; a preset's own stop holds only when neither is given.
    """

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
    block_tokens: Annotated[
        Count | None, Field(description="tokens of a hashed block of a mooncake trace; None = Mooncake's 512")
    ] = None
    synthetic: Synthetic | None = None
    max_concurrency: Annotated[
        Count | None, Field(description="closed loop: at most this many requests in flight")
    ] = None

    @model_validator(mode="after")
    def _one_source(self) -> WorkloadSection:
        if (self.trace is None) == (self.synthetic is None):
            raise ValueError("give either a trace or synthetic load, not both and not neither")
        if self.trace is None and self.format != "auto":
            raise ValueError("format without a trace")
        if self.trace is None and self.block_tokens is not None:
            raise ValueError("block_tokens without a trace")
        return self


class Engine(Section):
    """Engine settings, under vLLM's names and with vLLM's defaults (of `vllm_version`, API server)."""

    vllm_version: Annotated[VllmVersion, BeforeValidator(release)] = "0.33"
    dtype: Annotated[Literal["auto", "bfloat16", "float16"], BeforeValidator(_two_bytes)] = "auto"
    kv_cache_dtype: Annotated[Literal["auto", "fp8"], BeforeValidator(_one_byte)] = "auto"
    max_model_len: Annotated[
        Count | Literal["auto"] | None, Field(description="None = the model's; auto = what fits in KV memory")
    ] = None
    tensor_parallel_size: Count = 1
    data_parallel_size: Annotated[
        Count, Field(description="replicas that share one set of experts (data-parallel attention)")
    ] = 1
    enable_expert_parallel: Annotated[
        bool, Field(description="whole experts on each GPU, instead of a part of every expert")
    ] = False
    expert_skew: Annotated[
        float, Field(ge=0, le=10, description="power law of how often experts are chosen; 0 = all alike")
    ] = 0.0
    sampling: Annotated[
        Literal["auto", "plain", "top-k-top-p"],
        Field(description="plain = greedy or random; auto = as the model's generation_config asks"),
    ] = "auto"
    gpu_memory_utilization: Annotated[
        float | None, Field(gt=0, le=1, description="None = the version's default, 0.92 in 0.33")
    ] = None
    num_gpu_blocks_override: Annotated[Count | None, Field(ge=2)] = None
    block_size: Count = 16
    enable_prefix_caching: bool = True
    max_num_seqs: Annotated[Count | None, Field(description="None = vLLM's default for the GPU's memory")] = (
        None
    )
    max_num_batched_tokens: Annotated[
        Count | None, Field(description="None = vLLM's default for the GPU")
    ] = None
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: CountOrZero = 0
    scheduling_policy: Literal["fcfs", "priority"] | PolicyName = "fcfs"
    scheduler_reserve_full_isl: Annotated[
        bool | None, Field(description="None = the version's default, on since 0.20")
    ] = None
    async_scheduling: Annotated[
        bool | None, Field(description="None = the version's default, on since 0.14")
    ] = None
    watermark: Annotated[float, Field(ge=0, lt=1)] = 0.0
    kv_cache: Annotated[
        bool, Field(description="off: no KV caching at all, every step recomputes the whole context")
    ] = True


class Fleet(Section):
    """Replicas of the engine and the router before them."""

    gpu: str
    replicas: Annotated[int, Field(ge=1, le=100_000)] = 1
    router: RouterName | PolicyName = "round-robin"


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
    pue: Annotated[
        float, Field(ge=1, le=LARGEST, description="power usage effectiveness, facility / IT energy")
    ] = 1.2


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

    sample_interval_s: Annotated[float, Field(ge=1e-9, le=LARGEST)] = 1.0
    steps: Annotated[bool, Field(description="also write steps.parquet, one row a step")] = False


class Scenario(Section):
    """A workload, an ecosystem, and how to report: all that a run needs."""

    seed: Annotated[int, Field(ge=0)] = 0
    model: Annotated[str, Field(description="Hugging Face name of the catalog, or path of a config.json")]
    workload: WorkloadSection
    fleet: Fleet
    engine: Engine = Engine()
    timing: Annotated[
        Literal["auto", "kernels", "calibrated", "datasheet"] | PolicyName,
        Field(description="what prices a step; auto = the best there is for the GPU"),
    ] = "auto"
    calibration: Annotated[
        Path | None, Field(description="numbers of a measured run, as `kavier calibrate` writes them")
    ] = None
    kernels: Annotated[
        Path | None,
        Field(description="folder that `kavier fit-kernels --out` wrote, before the shipped kernels"),
    ] = None
    power: Annotated[
        Literal["saturating", "additive", "constant"],
        Field(description="GPU power in a step: see docs/metrics.md"),
    ] = "saturating"
    client: Annotated[
        ClientName,
        Field(description="where latencies are taken: in the engine, or by an HTTP client, some 7 ms later"),
    ] = "engine"
    site: Site = Site()
    prices: Prices = Prices()
    slo: Slo = Slo()
    output: Output = Output()

    @model_validator(mode="after")
    def _one_level(self) -> Scenario:
        if self.calibration is not None and self.timing not in ("auto", "calibrated"):
            raise ValueError(f"timing {self.timing!r} takes no calibration; expected auto or calibrated")
        return self


def parse_scenario(tree: Mapping[str, Any], *, where: str = "scenario") -> Scenario:
    """Build a `Scenario` from plain data.

    Raises:
        InputError: The first thing that is wrong, with its path, value and the nearest valid key.
    """
    try:
        return Scenario.model_validate(tree)
    except ValidationError as error:
        raise explain(error, where, Scenario) from None
