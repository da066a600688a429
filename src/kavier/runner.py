"""From a scenario to a result: the flow of the folders, in one function."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import polars as pl

from kavier.ecosystem.platform import Platform, build_platform
from kavier.errors import InputError
from kavier.metrics.client import with_client
from kavier.metrics.course import Course
from kavier.metrics.latency import window, with_latencies
from kavier.metrics.power import PowerModel, power_model
from kavier.metrics.summary import Facts, summarise_run
from kavier.metrics.sums import with_sums
from kavier.metrics.timeline import Keep, Timeline, joined
from kavier.metrics.trust import trust
from kavier.scenario import Prices, Scenario, parse_scenario
from kavier.scenario_file import read_scenario_tree
from kavier.simulation.compiled import CompiledResult, covers, simulate_compiled
from kavier.simulation.policy.examples import make_examples
from kavier.simulation.policy.files import policies_of
from kavier.simulation.policy.machine import compiled
from kavier.simulation.policy.policy import Policy
from kavier.simulation.policy.python import PythonTiming, in_order, keys_of
from kavier.simulation.policy.views import arrivals
from kavier.simulation.reference import simulate_reference
from kavier.simulation.sampling import Sampling, count_intervals
from kavier.timing.calibration import CLIENT, POWER, read_calibration
from kavier.timing.compiled import Compilable
from kavier.timing.datasheet import DatasheetTiming
from kavier.timing.gemm import compute_dtype
from kavier.timing.parameters import Level, Parameters, parameters_of
from kavier.workload.presets import resolve
from kavier.workload.read import read_trace
from kavier.workload.synthetic import generate
from kavier.workload.table import Workload

_LOG = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Told (requests ended, requests in all) while a simulation runs."""


@dataclass(frozen=True, slots=True, repr=False)
class Result:
    """What a run leaves.

    Attributes:
        scenario: As simulated, every default resolved.
        summary: The page of numbers, as plain data (`summary.json`).
        requests: One row a request, in arrival order.
        timeline: Rows of sample intervals, replica by replica: see `metrics.timeline`. None were kept when
            `simulate` was to give them to someone else.
        course: Levels and energy of the fleet over time, as coarsely as a picture shows them.
        steps: One row a step; None unless `output.steps` is set.
    """

    scenario: Scenario
    summary: dict[str, Any]
    requests: pl.DataFrame
    timeline: pl.DataFrame
    course: Course
    steps: pl.DataFrame | None

    def __repr__(self) -> str:
        done = self.summary["requests"]
        return f"<Result: {done['finished']:,} of {done['arrived']:,} requests of a {self.scenario.model}>"


def simulate(
    scenario: Scenario | Mapping[str, Any] | str | Path,
    progress: Progress | None = None,
    *,
    workload: Workload | None = None,
    router: Callable[..., Any] | None = None,
    scheduling_policy: Callable[..., Any] | None = None,
    timing: Callable[..., Any] | None = None,
    keep_timeline: Keep | None = None,
    adjust: Callable[[Parameters], Parameters] | None = None,
) -> Result:
    """Simulate a scenario: a `Scenario`, its plain data, or the path of its YAML file.

    Args:
        scenario: What to simulate.
        progress: Told how far it is.
        workload: Requests that are read already, in the place of those that the scenario names.
        router: A policy in Python (see `simulation.policy`) in the place of `fleet.router`.
        scheduling_policy: Likewise, of `engine.scheduling_policy`.
        timing: Likewise, of `timing`.
        keep_timeline: Is given the rows of the timeline as soon as they are final, those of a replica in
            order of time, in the place of `Result.timeline`: for timelines that do not fit into memory. (The
            reference engine keeps every step until the end.)
        adjust: Is given the numbers of the step-time model, and answers with those to be used.

    Raises:
        InputError: Whatever is wrong with the scenario, its trace, or what it names.
    """
    scenario = _as_scenario(scenario)
    platform = build_platform(scenario)
    workload = workload or load_workload(scenario)
    given = {"router": router, "scheduling_policy": scheduling_policy, "timing": timing}
    policies = policies_of(scenario, given)
    resolved = _resolve(scenario, platform, policies)
    parameters = _parameters(resolved, platform)
    if adjust:
        parameters = adjust(parameters)
    if resolved.timing == "auto":
        resolved = resolved.model_copy(update={"timing": parameters.level})
    datasheet = DatasheetTiming(platform.model, platform.gpu, platform.engine, parameters)
    calibrated = parameters.calibration.values if parameters.calibration else {}
    power = power_model(scenario.power, platform.gpu, platform.model).scaled(calibrated.get(POWER, 1.0))
    run = _Run(resolved, platform, workload, datasheet, power, policies)
    origin_s = _origin_s(workload)
    kept: list[pl.DataFrame] = []
    timeline = run.timeline(keep_timeline or kept.append, origin_s)
    played, why = run.play(timeline, progress)
    requests = with_latencies(played.requests)
    if scenario.client == "http":
        requests = with_client(requests, calibrated.get(CLIENT))
    window_s = window(requests, played.end_s)
    timeline.close(played.cells, window_s[1])
    facts = _facts(resolved, platform, played, window_s)
    summary = summarise_run(requests, timeline.totals(), played.token_gaps, facts)
    summary["trust"] = trust(
        resolved,
        platform,
        workload,
        requests,
        played.truncated,
        run.timing,
        power,
        summary,
        calibrated.get(CLIENT),
        _below(resolved, platform, parameters),
    )
    summary["engine"] = {"name": "reference" if why else "kernel", "why": why}
    return Result(
        resolved,
        summary,
        requests=_shifted(_with_labels(requests, workload), origin_s),
        timeline=joined(kept),
        course=timeline.course,
        steps=None if played.steps is None else _shifted(played.steps, origin_s),
    )


def load_workload(scenario: Scenario) -> Workload:
    """Read the trace, or generate the synthetic load.

    Raises:
        InputError: As the reader or the generator says.
    """
    section = scenario.workload
    if section.trace is not None:
        return read_trace(section.trace, section.format, section.block_tokens)
    assert section.synthetic is not None
    return generate(section.synthetic, scenario.seed)


def _as_scenario(scenario: Scenario | Mapping[str, Any] | str | Path) -> Scenario:
    if isinstance(scenario, Scenario):
        return scenario
    if isinstance(scenario, Mapping):
        return parse_scenario(scenario)
    if isinstance(scenario, str | Path):
        return parse_scenario(read_scenario_tree(Path(scenario)), where=str(scenario))
    raise InputError(
        "not a scenario", value=scenario, expected="a Scenario, a mapping, or the path of a YAML file"
    )


def _resolve(scenario: Scenario, platform: Platform, policies: Mapping[str, Policy]) -> Scenario:
    """The scenario with every default, alias, preset and policy written out."""
    synthetic = scenario.workload.synthetic
    names = {what: policy.name for what, policy in policies.items()}
    fleet = {"gpu": platform.gpu.name, "router": names.get("router", scenario.fleet.router)}
    policy = names.get("scheduling_policy", scenario.engine.scheduling_policy)
    return scenario.model_copy(
        update={
            "model": platform.model.name,
            "engine": platform.engine.model_copy(update={"scheduling_policy": policy}),
            "timing": names.get("timing", scenario.timing),
            "fleet": scenario.fleet.model_copy(update=fleet),
            "site": scenario.site.model_copy(
                update={"region": platform.region.code, "carbon_gco2_per_kwh": platform.constant_gco2_per_kwh}
            ),
            "prices": Prices(usd_per_gpu_hour=platform.usd_per_gpu_hour, usd_per_kwh=platform.usd_per_kwh),
            "workload": scenario.workload.model_copy(update={"synthetic": synthetic and resolve(synthetic)}),
        }
    )


def _parameters(scenario: Scenario, platform: Platform) -> Parameters:
    """The numbers of the step-time model at the level asked for, or the best there is."""
    level = scenario.timing if scenario.timing in ("datasheet", "kernels", "calibrated") else None
    calibration = read_calibration(scenario.calibration) if scenario.calibration else None
    version = platform.engine.vllm_version
    return parameters_of(platform.gpu, cast("Level | None", level), version, calibration, scenario.kernels)


def _below(scenario: Scenario, platform: Platform, parameters: Parameters) -> list[str]:
    """Levels that the step times would have without the user's own calibration or kernels."""
    calibration = parameters.calibration
    if not (scenario.calibration or scenario.kernels):
        return []
    plain = parameters_of(platform.gpu, vllm_version=platform.engine.vllm_version).level
    return [plain, *([calibration.level] if calibration else ())]


class _Run:
    """Plays in the compiled engine, or else in the reference engine and says why.

    Attributes:
        timing: The step-time model that is used.
    """

    def __init__(
        self,
        scenario: Scenario,
        platform: Platform,
        workload: Workload,
        datasheet: DatasheetTiming,
        power: PowerModel,
        policies: Mapping[str, Policy],
    ) -> None:
        self._scenario, self._platform, self._power = scenario, platform, power
        self._requests = _shifted(workload.requests, -_origin_s(workload))
        self.timing: DatasheetTiming | PythonTiming = datasheet
        self._policies: dict[str, Policy] = {}
        if policies:
            self._take(policies, datasheet)

    def _take(self, policies: Mapping[str, Policy], datasheet: DatasheetTiming) -> None:
        """Compile policies, and put them where they are asked."""
        engine, fleet = self._scenario.engine, self._scenario.fleet
        seats, budget = engine.max_num_seqs, engine.max_num_batched_tokens
        assert seats is not None
        assert budget is not None
        seen = arrivals(self._requests, engine.block_size)
        served = seen[seen["prompt_tokens"] < engine.max_model_len]
        examples = make_examples(
            served if len(served) else seen, fleet.replicas, self._platform.kv.kv_blocks - 1, seats, budget
        )
        self._policies = {what: compiled(policy, examples) for what, policy in policies.items()}
        if policy := self._policies.get("timing"):
            self.timing = PythonTiming(policy, datasheet)
        if policy := self._policies.get("scheduling_policy"):
            self._requests = in_order(self._requests, keys_of(policy, seen))

    def timeline(self, keep: Keep, origin_s: float) -> Timeline:
        """What takes the run's timeline."""
        scenario, platform, requests = self._scenario, self._platform, self._requests
        _check_span(requests, scenario.output.sample_interval_s)
        return Timeline(
            replicas=scenario.fleet.replicas,
            start_s=requests["arrival_s"][0],
            interval_s=scenario.output.sample_interval_s,
            idle_w=platform.gpu.loaded_idle_w * scenario.engine.tensor_parallel_size,
            keep=keep,
            intensity=platform.intensity if platform.carbon_series else None,
            origin_s=origin_s,
        )

    def play(self, timeline: Timeline, progress: Progress | None) -> tuple[CompiledResult, str | None]:
        """What the run left, and why not in the compiled engine."""
        scenario, requests, total = self._scenario, self._requests, len(self._requests)
        output, gpus = scenario.output, scenario.engine.tensor_parallel_size
        blocks = self._platform.kv.kv_blocks
        sampling = Sampling(
            requests["arrival_s"][0],
            output.sample_interval_s,
            self._power.record(gpus),
            steps=output.steps,
            sink=timeline,
        )
        common: dict[str, Any] = {
            "num_gpu_blocks": blocks,
            "replicas": scenario.fleet.replicas,
            "router": self._policies.get("router", scenario.fleet.router),
            "seed": scenario.seed,
            "max_concurrency": scenario.workload.max_concurrency,
            "progress": None if progress is None else lambda ended: progress(ended, total),
        }
        uncompiled = self._uncompiled()
        why = uncompiled or covers(requests, scenario.engine, self.timing, num_gpu_blocks=blocks)
        if uncompiled or (why is not None and total > MANY):
            _LOG.warning("%s: the reference engine plays, at a few hundred requests a second", why)
        if why is None:
            assert isinstance(self.timing, Compilable)
            return simulate_compiled(
                requests, scenario.engine, self.timing, sampling=sampling, **common
            ), None
        played = simulate_reference(requests, scenario.engine, self.timing, power=sampling.power, **common)
        return with_sums(played, self._power, gpus, scenario.fleet.replicas, sampling), why

    def _uncompiled(self) -> str | None:
        """Why a policy has no machine code; an admission order needs none, it is asked before the run."""
        policies = [policy for what, policy in self._policies.items() if what != "scheduling_policy"]
        return next((f"{policy.what} {policy.name}: {policy.why}" for policy in policies if policy.why), None)


def _facts(
    scenario: Scenario, platform: Platform, played: CompiledResult, window_s: tuple[float, float]
) -> Facts:
    gpus = scenario.engine.tensor_parallel_size
    dtype = compute_dtype(platform.gpu, platform.model.weight_dtype)
    return Facts(
        window_s=window_s,
        peak_used_blocks=played.peak_used_blocks,
        replicas=scenario.fleet.replicas,
        gpus_per_replica=gpus,
        asleep_j=played.asleep_s * platform.gpu.loaded_idle_w * gpus,
        peak_flops_per_s=platform.gpu.flops_per_s[dtype],
        peak_bytes_per_s=platform.gpu.bandwidth_bytes_per_s,
        kv_blocks=played.kv_blocks,
        block_tokens=scenario.engine.block_size,
        pue=scenario.site.pue,
        gco2_per_kwh=platform.constant_gco2_per_kwh,
        usd_per_gpu_hour=platform.usd_per_gpu_hour,
        usd_per_kwh=platform.usd_per_kwh,
        slo=scenario.slo,
    )


MANY = 2000
"""Requests that the reference engine plays in several seconds: whoever waits is told why."""

LONGEST_S = 2.0**32
"""136 years: until then the clock, a double, tells less than a microsecond apart."""


def _check_span(requests: pl.DataFrame, interval_s: float) -> None:
    """Refuse times that intervals or the clock cannot tell apart.

    Raises:
        InputError: Arrivals over so long a time.
    """
    first_s, last_s = requests["arrival_s"][0], requests["arrival_s"][-1]
    count_intervals(last_s - first_s, interval_s)
    if last_s - first_s > LONGEST_S:
        raise InputError(
            "arrivals are too far apart",
            value=f"{last_s - first_s:.3g} s from the first to the last",
            expected=f"at most {LONGEST_S:.3g} s",
        )


def _origin_s(workload: Workload) -> float:
    """Where the trace's clock stands at the first arrival, in whole seconds.

    Engines play from there: an epoch leaves few digits of a double for milliseconds. Whole seconds are
    taken off and put back without rounding any arrival.
    """
    first_s: float = workload.requests["arrival_s"][0]
    return float(math.floor(first_s))


CLOCKS = ("arrival_s", "first_scheduled_s", "first_token_s", "finish_s", "scheduled_s", "start_s")
"""Columns that tell a time of the trace's clock."""


def _shifted(table: pl.DataFrame, by_s: float) -> pl.DataFrame:
    return table.with_columns(pl.col(name) + by_s for name in CLOCKS if name in table.columns)


def _with_labels(requests: pl.DataFrame, workload: Workload) -> pl.DataFrame:
    """Carry over the columns that only tell whose request it is."""
    labels = [
        name for name in ("session_id", "tenant", "model", "slo_class") if name in workload.requests.columns
    ]
    return requests.with_columns(workload.requests.select(labels)) if labels else requests
