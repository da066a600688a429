"""`kavier conformance`: flags onto a recorded scheduler's settings, replay, compare."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kavier.errors import InputError

if TYPE_CHECKING:
    from kavier.scenario import Engine
    from kavier.timing.compiled import AffineTiming
    from kavier.validation.recording import Recording

_OnOff = bool | None
_MOST_BLOCKS = 10**7


def conformance(
    workload: Annotated[Path, typer.Option(help="Requests that the scheduler was given (JSON lines).")],
    oracle_steps: Annotated[Path, typer.Option(help="Its step log (JSON lines).")],
    oracle_requests: Annotated[Path, typer.Option(help="What became of each request (JSON lines).")],
    engine: Annotated[
        str, typer.Option(help="Which of Kavier's engines: reference or kernel.")
    ] = "reference",
    engine_loop: Annotated[
        str,
        typer.Option(help="Asynchronous only: sleep as the recorded loop (oracle) or as vLLM's own (vllm)."),
    ] = "oracle",
    step_time: Annotated[
        str,
        typer.Option(metavar="A,B,C,D", help="Seconds a step: A + B prefill tokens + C decodes + D context."),
    ] = "0.005,2e-5,1e-4,1e-8",
    num_gpu_blocks: Annotated[int, typer.Option(help="KV blocks, the null block included.")] = 10000,
    hash_block_size: Annotated[
        int, typer.Option(help="Tokens of one of hash_ids where a row does not say.")
    ] = 512,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    # vLLM's engine flags
    vllm_version: Annotated[str, typer.Option(help="Release to mirror, such as 0.33 or 0.33.0.")] = "0.33",
    async_scheduling: Annotated[
        _OnOff,
        typer.Option("--async-scheduling/--no-async-scheduling", help="[as the step log shows]"),
    ] = None,
    max_model_len: Annotated[int, typer.Option(help="Most tokens of prompt and answer.")] = 131072,
    max_num_seqs: Annotated[int, typer.Option(help="Most running requests.")] = 128,
    max_num_batched_tokens: Annotated[int, typer.Option(help="Token budget of a step.")] = 2048,
    block_size: Annotated[int, typer.Option(help="Tokens a KV block.")] = 16,
    enable_prefix_caching: Annotated[
        bool, typer.Option("--enable-prefix-caching/--no-enable-prefix-caching")
    ] = True,
    enable_chunked_prefill: Annotated[
        bool, typer.Option("--enable-chunked-prefill/--no-enable-chunked-prefill")
    ] = True,
    long_prefill_token_threshold: Annotated[
        int, typer.Option(help="Largest prefill chunk; 0 = no limit.")
    ] = 0,
    scheduling_policy: Annotated[str, typer.Option(help="fcfs or priority.")] = "fcfs",
    scheduler_reserve_full_isl: Annotated[
        _OnOff,
        typer.Option(
            "--scheduler-reserve-full-isl/--no-scheduler-reserve-full-isl",
            help="[the release's default: on since 0.20]",
        ),
    ] = None,
    watermark: Annotated[float, typer.Option(help="Share of KV blocks kept free at admission.")] = 0.0,
) -> None:
    """Replay a recorded run of vLLM's scheduler and say which steps and requests are identical.

    The files may be gzipped. A flag left out has the default below, which is seldom what a recording was
    made with: give the sizes. Exit code: 0 all is identical, 1 something differs, 2 bad input.

    \b
    Example, in a checkout:
    cd examples/recording
    kavier conformance --workload workload.jsonl --oracle-steps steps.jsonl \\
      --oracle-requests requests.jsonl --num-gpu-blocks 9 --block-size 4 \\
      --max-num-batched-tokens 16 --max-num-seqs 4
    """  # noqa: D301 - \b keeps the lines as they are
    flags = dict(locals())
    from kavier.cli.progress import show_log
    from kavier.report.conformance import print_conformance
    from kavier.validation.conformance import ENGINE_SETTINGS, Setup, conform
    from kavier.validation.recording import read_recording

    name = _choice("engine", engine, ("reference", "kernel"))
    as_recorded = _choice("engine_loop", engine_loop, ("oracle", "vllm")) == "oracle"
    timing = _timing(step_time)
    _check_range("num_gpu_blocks", num_gpu_blocks, 2, _MOST_BLOCKS)
    _check_range("hash_block_size", hash_block_size, 1, _MOST_BLOCKS)
    names = ("vllm_version", "async_scheduling", *ENGINE_SETTINGS)
    settings = _settings({name: flags[name] for name in names})
    recording = read_recording(workload, oracle_steps, oracle_requests, hash_block_size)
    setup = Setup(_resolved(settings, max_model_len, recording), timing, num_gpu_blocks, as_recorded)
    show_log()
    comparison = conform(recording, setup, name)
    print_conformance(comparison.as_dict(name, setup), json=json)
    if not comparison.is_identical:
        raise typer.Exit(1)


def _settings(flags: dict[str, Any]) -> Engine:
    """Engine settings, each within its range."""
    from pydantic import ValidationError

    from kavier.ecosystem.vllm_versions import RULES
    from kavier.scenario import Engine, release
    from kavier.scenario_errors import explain

    _choice("vllm_version", release(flags["vllm_version"]), RULES)
    _choice("scheduling_policy", flags["scheduling_policy"], ("fcfs", "priority"))
    try:
        return Engine(**flags)
    except ValidationError as error:
        raise explain(error, "command line", Engine) from None


def _resolved(engine: Engine, longest: int, recording: Recording) -> Engine:
    """With all that depends on the release; what vLLM would not start with is an error."""
    from kavier.ecosystem.engine_defaults import refuse_contradictions
    from kavier.ecosystem.vllm_versions import resolve_version

    if engine.async_scheduling is None:
        engine = engine.model_copy(update={"async_scheduling": recording.overlaps})
    engine = resolve_version(engine)
    refuse_contradictions(engine, longest)
    return engine


def _timing(text: str) -> AffineTiming:
    from kavier.timing.compiled import AffineTiming
    from kavier.timing.step import LEAST_STEP_S, MOST_STEP_S

    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    sound = len(numbers) == 4 and all(0 <= number <= MOST_STEP_S for number in numbers)
    if not sound or numbers[0] < LEAST_STEP_S:
        expected = (
            f"four numbers of seconds A,B,C,D, A at least {LEAST_STEP_S:g}, such as 0.005,2e-5,1e-4,1e-8"
        )
        raise InputError("bad value", where="--step-time", value=text, expected=expected)
    return AffineTiming(*numbers)


def _choice(flag: str, given: str, names: Iterable[str]) -> Any:
    """The value, if it is one of these."""
    if given not in names:
        expected, where = ", ".join(names), f"--{flag.replace('_', '-')}"
        raise InputError("unknown value", where=where, value=given, expected=expected, near=(given, names))
    return given


def _check_range(flag: str, number: int, least: int, most: int) -> None:
    if not least <= number <= most:
        where = f"--{flag.replace('_', '-')}"
        raise InputError("bad value", where=where, value=number, expected=f"a number from {least} to {most}")
