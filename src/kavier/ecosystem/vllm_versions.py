"""What vLLM releases do differently: each row was read in the release's source and replayed against it.

Only releases listed here are mirrored. A release between two of them behaves as one or the other: which
change came with which release was not looked up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kavier.errors import InputError, one_of
from kavier.scenario import Engine


@dataclass(frozen=True, slots=True)
class VersionRules:
    """Scheduling rules of one release.

    Attributes:
        async_scheduling: Default of --async-scheduling; none: its asynchronous scheduler is not mirrored.
        reserve_full_isl: Has scheduler_reserve_full_isl, on by default.
        watermark: Has the option watermark.
        unhashed_first: A freed block without content is the next to be handed out; before, it went to the end
            of the free queue like any other.
        lone_request_unlimited: long_prefill_token_threshold does not hold for a request that is alone.
        priority: --scheduling-policy priority is mirrored.
        victim_moves_cursor: Whenever a victim lies before the request being scheduled, the loop steps back;
            before, only if the victim had been scheduled in this step.
        self_preemption_goes_on: By priority, after a request preempted itself the rest of `running` is tried.
        finished_keep_awake: After an empty step the engine sleeps 1 ms also when all that is left are
            finished requests to be reported.
        large_gpu_defaults: Has batch limits of their own for GPUs of 160 GiB and more.
        gpu_memory_utilization: Default of --gpu-memory-utilization.
        sorting_sampler: Top-k and top-p sort the logits; later releases select without sorting.
    """

    async_scheduling: bool | None
    reserve_full_isl: bool
    watermark: bool
    unhashed_first: bool
    lone_request_unlimited: bool
    priority: bool
    victim_moves_cursor: bool
    self_preemption_goes_on: bool
    finished_keep_awake: bool
    large_gpu_defaults: bool
    gpu_memory_utilization: float
    sorting_sampler: bool


RULES = {
    "0.11": VersionRules(
        async_scheduling=None,  # opt-in there, and it runs a step for requests that have ended
        reserve_full_isl=False,
        watermark=False,
        unhashed_first=False,
        lone_request_unlimited=False,
        priority=False,  # a victim stays in the batch it was taken from
        victim_moves_cursor=False,
        self_preemption_goes_on=False,
        finished_keep_awake=False,
        large_gpu_defaults=False,
        gpu_memory_utilization=0.9,
        sorting_sampler=True,
    ),
    "0.14": VersionRules(
        async_scheduling=True,
        reserve_full_isl=False,
        watermark=False,
        unhashed_first=False,
        lone_request_unlimited=False,
        priority=True,
        victim_moves_cursor=False,
        self_preemption_goes_on=False,
        finished_keep_awake=False,
        large_gpu_defaults=False,
        gpu_memory_utilization=0.9,
        sorting_sampler=True,
    ),
    "0.20": VersionRules(
        async_scheduling=True,
        reserve_full_isl=True,
        watermark=False,
        unhashed_first=False,
        lone_request_unlimited=False,
        priority=True,
        victim_moves_cursor=False,
        self_preemption_goes_on=False,
        finished_keep_awake=False,
        large_gpu_defaults=False,
        gpu_memory_utilization=0.92,
        sorting_sampler=False,
    ),
    "0.25": VersionRules(
        async_scheduling=True,
        reserve_full_isl=True,
        watermark=True,
        unhashed_first=True,
        lone_request_unlimited=False,
        priority=True,
        victim_moves_cursor=False,
        self_preemption_goes_on=False,
        finished_keep_awake=True,
        large_gpu_defaults=False,
        gpu_memory_utilization=0.92,
        sorting_sampler=False,
    ),
    "0.33": VersionRules(
        async_scheduling=True,
        reserve_full_isl=True,
        watermark=True,
        unhashed_first=True,
        lone_request_unlimited=True,
        priority=True,
        victim_moves_cursor=True,
        self_preemption_goes_on=True,
        finished_keep_awake=True,
        large_gpu_defaults=True,
        gpu_memory_utilization=0.92,
        sorting_sampler=False,
    ),
}
"""Release -> its rules. Read at 0.11.0, 0.14.1, 0.20.2, 0.25.1 and 0.33.0."""


def rules_of(engine: Engine) -> VersionRules:
    """The rules of the release that the engine mirrors."""
    return RULES[engine.vllm_version]


def resolve_version(engine: Engine) -> Engine:
    """Fill in the defaults that depend on the release.

    Raises:
        InputError: An option that the release does not have, or one that is not mirrored for it.
    """
    rules = rules_of(engine)
    _refuse(engine, rules)
    return engine.model_copy(
        update={
            "async_scheduling": is_async(engine),
            "scheduler_reserve_full_isl": reserves_full_isl(engine),
            "gpu_memory_utilization": memory_utilization(engine),
        }
    )


def is_async(engine: Engine) -> bool:
    """Whether step k + 1 is scheduled while step k runs. Without a KV cache there is no such vLLM."""
    default = bool(rules_of(engine).async_scheduling) and engine.kv_cache
    return default if engine.async_scheduling is None else engine.async_scheduling


def reserves_full_isl(engine: Engine) -> bool:
    """Whether all tokens of a request must fit for it to be admitted."""
    default = rules_of(engine).reserve_full_isl
    return default if engine.scheduler_reserve_full_isl is None else engine.scheduler_reserve_full_isl


def memory_utilization(engine: Engine) -> float:
    """Share of GPU memory for vLLM."""
    return engine.gpu_memory_utilization or rules_of(engine).gpu_memory_utilization


_MIRRORED: dict[str, Callable[[VersionRules], bool]] = {
    "async_scheduling": lambda rules: rules.async_scheduling is not None,
    "scheduling_policy": lambda rules: rules.priority,
    "enable_chunked_prefill": lambda rules: rules is not RULES["0.11"],
}
"""Option -> whether what it does other than by default is mirrored for a release."""

_THERE: dict[str, Callable[[VersionRules], bool]] = {
    "watermark": lambda rules: rules.watermark,
    "scheduler_reserve_full_isl": lambda rules: rules.reserve_full_isl,
}
"""Option -> whether a release has it."""


def _refuse(engine: Engine, rules: VersionRules) -> None:
    version = engine.vllm_version
    asked = {
        "async_scheduling": engine.async_scheduling,
        "scheduling_policy": engine.scheduling_policy != "fcfs",
        "enable_chunked_prefill": not engine.enable_chunked_prefill,
        "watermark": engine.watermark > 0,
        "scheduler_reserve_full_isl": engine.scheduler_reserve_full_isl,
    }
    for name, fits in {**_MIRRORED, **_THERE}.items():
        if asked[name] and not fits(rules):
            raise InputError(
                f"{name} of vLLM {version} is not mirrored"
                if name in _MIRRORED
                else f"vLLM {version} has no option {name}",
                where=f"engine.{name}",
                value=getattr(engine, name),
                expected=f"engine.vllm_version {one_of(key for key, one in RULES.items() if fits(one))}",
            )
    if engine.async_scheduling and not engine.kv_cache:
        raise InputError("async_scheduling with kv_cache off", where="engine.async_scheduling", value=True)
