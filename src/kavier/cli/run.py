"""`kavier run`: flags onto the scenario tree, simulate, print."""

from __future__ import annotations

from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kavier.errors import InputError

if TYPE_CHECKING:
    from kavier.runner import Result
    from kavier.scenario import Scenario

_OnOff = bool | None


def run(
    scenario: Annotated[Path | None, typer.Argument(help="Scenario file (YAML); flags override it.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Trace to replay, in any known format.")] = None,
    format: Annotated[str | None, typer.Option(help="Trace format; default: found by its header.")] = None,
    trace_block_size: Annotated[
        int | None, typer.Option(help="Tokens a hash of a mooncake trace stands for.  [512]")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Hugging Face name, or path of a config.json.")] = None,
    gpu: Annotated[str | None, typer.Option(help="GPU, see `kavier catalog gpus`.")] = None,
    replicas: Annotated[int | None, typer.Option(help="Engine replicas.  [1]")] = None,
    router: Annotated[
        str | None, typer.Option(help="Name (docs/scenario.md) or FILE.py:FUNCTION.  [round-robin]")
    ] = None,
    timing: Annotated[
        str | None,
        typer.Option(help="kernels, calibrated, datasheet or FILE.py:FUNCTION, what prices a step.  [auto]"),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Numbers of a measured run: the output of `kavier calibrate`.")
    ] = None,
    kernels: Annotated[
        Path | None, typer.Option(help="Folder that fit-kernels --out wrote; before the shipped kernels.")
    ] = None,
    client: Annotated[
        str | None, typer.Option(help="Where latencies are taken: engine, or http: its client.  [engine]")
    ] = None,
    region: Annotated[
        str | None, typer.Option(help="Grid region, see `kavier catalog regions`.  [WORLD]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to keep the run in; default: nothing is kept.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.  [0]")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print summary.json alone.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Set any key of the scenario; may be repeated."),
    ] = None,
    # vLLM's engine flags
    vllm_version: Annotated[
        str | None, typer.Option(help="Whose rules: 0.11, 0.14, 0.20, 0.25 or 0.33.  [0.33]")
    ] = None,
    max_model_len: Annotated[str | None, typer.Option(help="Tokens, or auto.  [the model's]")] = None,
    tensor_parallel_size: Annotated[
        int | None, typer.Option("--tensor-parallel-size", "-tp", help="GPUs a replica.  [1]")
    ] = None,
    data_parallel_size: Annotated[
        int | None,
        typer.Option("--data-parallel-size", "-dp", help="Engines that share their experts.  [1]"),
    ] = None,
    enable_expert_parallel: Annotated[
        bool | None,
        typer.Option(
            "--enable-expert-parallel/--no-enable-expert-parallel",
            "-ep",
            help="Whole experts on each GPU.  [off]",
        ),
    ] = None,
    gpu_memory_utilization: Annotated[
        float | None, typer.Option(help="Share of GPU memory for vLLM.  [by version: 0.92 since 0.20]")
    ] = None,
    num_gpu_blocks_override: Annotated[
        int | None, typer.Option(help="KV blocks a replica, instead of what fits.")
    ] = None,
    block_size: Annotated[int | None, typer.Option(help="Tokens a KV block.  [16]")] = None,
    kv_cache_dtype: Annotated[
        str | None, typer.Option(help="auto or fp8 (or fp8_e4m3, fp8_e5m2).  [auto]")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, bfloat16 or float16 (or half).  [auto]")] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(help="Most running requests.  [by GPU, as vLLM]")
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option(help="Token budget of a step.  [by GPU, as vLLM]")
    ] = None,
    long_prefill_token_threshold: Annotated[
        int | None, typer.Option(help="Largest prefill chunk.  [0 = off]")
    ] = None,
    scheduling_policy: Annotated[
        str | None, typer.Option(help="fcfs, priority or FILE.py:FUNCTION.  [fcfs]")
    ] = None,
    scheduler_reserve_full_isl: Annotated[
        _OnOff,
        typer.Option(
            "--scheduler-reserve-full-isl/--no-scheduler-reserve-full-isl",
            help="Admit only what fits as a whole.  [by version]",
        ),
    ] = None,
    watermark: Annotated[
        float | None, typer.Option(help="Share of KV blocks that admission leaves free.  [0]")
    ] = None,
    enable_prefix_caching: Annotated[
        _OnOff, typer.Option("--enable-prefix-caching/--no-enable-prefix-caching", help="[on]")
    ] = None,
    enable_chunked_prefill: Annotated[
        _OnOff, typer.Option("--enable-chunked-prefill/--no-enable-chunked-prefill", help="[on]")
    ] = None,
    async_scheduling: Annotated[
        _OnOff, typer.Option("--async-scheduling/--no-async-scheduling", help="[by version: on since 0.14]")
    ] = None,
    kv_cache: Annotated[
        _OnOff, typer.Option("--kv-cache/--no-kv-cache", help="Off: every step recomputes the context.  [on]")
    ] = None,
    # vllm bench serve's flags
    preset: Annotated[
        str | None, typer.Option(help="Published workload, see `kavier workload synth --help`.")
    ] = None,
    num_prompts: Annotated[
        int | None, typer.Option(help="Requests to send.  [1000, or the preset's]")
    ] = None,
    request_rate: Annotated[
        float | None, typer.Option(help="Requests per second.  [inf, or the preset's]")
    ] = None,
    burstiness: Annotated[
        float | None, typer.Option(help="Gamma shape of the gaps; 1 = Poisson.  [1]")
    ] = None,
    random_input_len: Annotated[
        int | None, typer.Option(help="Prompt tokens.  [1024, or the preset's]")
    ] = None,
    random_output_len: Annotated[
        int | None, typer.Option(help="Output tokens.  [128, or the preset's]")
    ] = None,
    random_range_ratio: Annotated[
        float | None, typer.Option(help="Lengths vary by +- this share.  [0]")
    ] = None,
    max_concurrency: Annotated[int | None, typer.Option(help="Closed loop: most requests in flight.")] = None,
    goodput: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:MS...", help="SLOs in ms, such as ttft:200 tpot:50 e2el:5000."),
    ] = None,
) -> None:
    """Simulate a workload on a fleet and print what would happen.

    Example: kavier run --trace azure.csv --model meta-llama/Llama-3.1-8B --gpu H100 --replicas 2
    """
    flags = {name: value for name, value in locals().items() if value is not None}
    from kavier.cli.progress import show_log
    from kavier.report.files import summary_json
    from kavier.scenario import parse_scenario

    tree = scenario_tree(scenario, flags)
    parsed = parse_scenario(tree, where=origin(scenario, flags))
    show_log()
    result = _simulate(parsed, out)
    if json:
        typer.echo(summary_json(result), nl=False)
    else:
        from kavier.report.console import print_page  # with rich, which takes 25 ms

        print_page(result, out)


def _simulate(scenario: Scenario, out: Path | None) -> Result:
    """Simulate, and keep the run if there is a folder for it."""
    from kavier.cli.progress import progress_bar
    from kavier.report.files import RunFolder
    from kavier.runner import simulate

    if out is None:
        with progress_bar("simulating") as progress:
            return simulate(scenario, progress, keep_timeline=lambda _: None)
    with RunFolder(out) as folder:
        with progress_bar("simulating") as progress:
            result = simulate(scenario, progress, keep_timeline=folder.add_rows)
        if folder.finish(result):
            typer.echo(f"kavier: the earlier run in {out} was replaced", err=True)
    return result


def origin(scenario: Path | None, flags: dict[str, Any]) -> str:
    """Where a wrong value may come from."""
    if scenario is None:
        return "command line"
    only_file = flags.keys() <= {"scenario", "out", "json"}
    return str(scenario) if only_file else f"{scenario} with the flags"


PATHS = {
    "trace": "workload.trace",
    "format": "workload.format",
    "trace_block_size": "workload.block_tokens",
    "max_concurrency": "workload.max_concurrency",
    "model": "model",
    "gpu": "fleet.gpu",
    "replicas": "fleet.replicas",
    "router": "fleet.router",
    "timing": "timing",
    "calibration": "calibration",
    "kernels": "kernels",
    "client": "client",
    "region": "site.region",
    "seed": "seed",
} | {
    name: f"engine.{name}"
    for name in (
        "vllm_version", "max_model_len", "tensor_parallel_size", "data_parallel_size",
        "enable_expert_parallel", "gpu_memory_utilization",
        "num_gpu_blocks_override", "block_size", "kv_cache_dtype", "dtype", "max_num_seqs",
        "max_num_batched_tokens", "long_prefill_token_threshold", "scheduling_policy",
        "scheduler_reserve_full_isl", "watermark", "enable_prefix_caching", "enable_chunked_prefill",
        "async_scheduling", "kv_cache",
    )
}  # fmt: skip
"""Flag -> key of the scenario."""

_OBJECTIVES = {"ttft": "slo.ttft_s", "tpot": "slo.tpot_s", "e2el": "slo.e2e_s"}
"""Objective of --goodput -> key of the scenario."""

_LOAD_PATHS = {
    "preset": "preset",
    "num_prompts": "num_prompts",
    "request_rate": "arrivals.request_rate",
    "burstiness": "arrivals.burstiness",
}
"""Flag -> key of workload.synthetic; the flags of lengths set several."""

_LENGTHS = {"random_input_len": "prompt_tokens", "random_output_len": "output_tokens"}
"""Flag -> section of workload.synthetic."""

_LOAD_FLAGS = (*_LOAD_PATHS, *_LENGTHS, "random_range_ratio")


def scenario_tree(scenario: Path | None, flags: dict[str, Any]) -> dict[str, Any]:
    """The scenario's plain data: the file, then the flags, then --set."""
    from kavier.scenario_file import read_scenario_tree, set_path

    _refuse_contradictions(flags)
    if scenario is not None:
        _refuse_what_is_no_scenario(str(scenario))
    tree = read_scenario_tree(scenario) if scenario else {}
    if "max_model_len" in flags:
        flags["max_model_len"] = _tokens(flags["max_model_len"])
    if "trace" in flags and isinstance(workload := tree.get("workload"), dict):
        for key in ("synthetic", "trace", "format"):  # --trace replaces what the file would serve
            workload.pop(key, None)
    _set_load(tree, {name: flags[name] for name in _LOAD_FLAGS if name in flags})
    for name, path in PATHS.items():
        if name in flags:
            value = flags[name]
            set_path(tree, path, str(value) if isinstance(value, Path) else value)
    if flags.get("data_parallel_size", 0) > 1 and "replicas" not in flags:
        set_path(tree, "fleet.replicas", flags["data_parallel_size"])  # as vLLM starts them
    _set_goodput(tree, flags.get("goodput", []))
    for assignment in flags.get("set_", []):
        set_path(tree, *_parse_assignment(assignment))
    _refuse_format_alone(tree, flags)
    if scenario is None:
        _require(tree)
    return tree


def _refuse_contradictions(flags: dict[str, Any]) -> None:
    load = [name for name in _LOAD_FLAGS if name in flags]
    if "trace" in flags and load:
        raise InputError(
            f"contradictory flags: --trace replays a trace, {_flag(load[0])} generates load",
            expected="one of the two; a trace is replayed whole",
        )


_TRACES = (".csv", ".jsonl", ".parquet", ".gz")


def _refuse_what_is_no_scenario(given: str) -> None:
    """What other command lines take without a flag: a trace, or a model."""
    if given.casefold().endswith(_TRACES):
        raise InputError(f"a trace is no scenario (YAML): {given}", expected=f"--trace {given}")
    if not Path(given).exists() and not given.endswith((".yaml", ".yml")):
        raise InputError(
            f"no scenario file {given!r}",
            expected="a YAML file; a model goes with --model, a trace with --trace",
        )


def _refuse_format_alone(tree: dict[str, Any], flags: dict[str, Any]) -> None:
    from kavier.scenario_file import get_path

    for name in ("format", "trace_block_size"):
        if name in flags and not get_path(tree, "workload.trace"):
            raise InputError(
                f"{_flag(name)} says how to read a trace, and there is none", expected="--trace FILE"
            )


def _tokens(text: str) -> str | int:
    """As --max-model-len of vLLM: 32k = 32,000, 32K = 32,768, -1 = auto; the scenario judges the rest."""
    if text == "-1":
        return "auto"
    scale = {"k": 10**3, "m": 10**6, "K": 2**10, "M": 2**20}.get(text[-1:], 1)
    number = text[:-1] if scale > 1 else text
    try:
        return round(float(number) * scale)
    except (ValueError, OverflowError):
        return text


def _require(tree: dict[str, Any]) -> None:
    """Name the flag, not only the key, of what is missing."""
    from kavier.scenario_file import get_path

    if not (get_path(tree, "workload.trace") or get_path(tree, "workload.synthetic")):
        raise InputError(
            "nothing to serve",
            expected="a scenario, --trace FILE, --preset NAME, or --num-prompts/--request-rate",
        )
    if not get_path(tree, "model"):
        raise InputError("no model", expected="--model NAME, see `kavier catalog models`")
    if not get_path(tree, "fleet.gpu"):
        raise InputError("no GPU", expected="--gpu NAME, see `kavier catalog gpus`")


def _set_load(tree: dict[str, Any], load: dict[str, Any]) -> None:
    """Synthetic load from vllm bench serve's flags, with its defaults where no preset or file gives any."""
    from kavier.scenario_file import get_path, set_path

    if not load:
        return
    prefix = "workload.synthetic."
    if get_path(tree, "workload.synthetic") is None:
        set_path(tree, "workload.synthetic", {} if "preset" in load else _bench_defaults())
    for flag, key in _LOAD_PATHS.items():
        if flag in load:
            set_path(tree, prefix + key, load[flag])
    if "burstiness" in load:
        set_path(tree, prefix + "arrivals.process", "gamma")
    for flag, column in _LENGTHS.items():
        if flag in load:
            set_path(tree, prefix + column, {"kind": "fixed", "mean": load[flag]})
    if "random_range_ratio" in load:
        _widen(get_path(tree, "workload.synthetic"), load["random_range_ratio"])


def _widen(synthetic: dict[str, Any], ratio: float) -> None:
    """A range lies around a length that is given; those of a preset have a distribution of their own."""
    from kavier.scenario_file import get_path

    kinds = {flag: get_path(synthetic, f"{column}.kind") for flag, column in _LENGTHS.items()}
    missing = [_flag(flag) for flag, kind in kinds.items() if kind not in ("fixed", "uniform")]
    if missing:
        raise InputError(
            f"--random-range-ratio varies lengths that are given: it needs {' and '.join(missing)}"
        )
    for column in _LENGTHS.values():
        synthetic[column] |= {"kind": "uniform", "range_ratio": ratio}


def _bench_defaults() -> dict[str, Any]:
    """`vllm bench serve --dataset-name random` without flags."""
    return {
        "num_prompts": 1000,
        "arrivals": {"process": "poisson", "request_rate": inf},
        "prompt_tokens": {"kind": "fixed", "mean": 1024},
        "output_tokens": {"kind": "fixed", "mean": 128},
    }


def _set_goodput(tree: dict[str, Any], objectives: list[str]) -> None:
    from kavier.scenario_file import set_path
    from kavier.units import MS_PER_S

    keys = _OBJECTIVES
    for objective in objectives:
        name, colon, text = objective.partition(":")
        if not colon:
            raise InputError(f"--goodput {objective}", expected=f"NAME:MS, such as {_objective(objective)}")
        if name not in keys:
            raise InputError(
                f"--goodput: unknown objective {name!r}", expected="ttft, tpot or e2el", near=(name, keys)
            )
        try:
            limit_ms = float(text)
        except ValueError:
            limit_ms = nan
        if not 0 < limit_ms < inf:
            raise InputError(f"--goodput {name}", value=text, expected="a number of ms above 0")
        set_path(tree, keys[name], limit_ms / MS_PER_S)


def _objective(typed: str) -> str:
    """What was probably meant."""
    name, _, text = typed.partition("=")
    return f"{name if name in _OBJECTIVES else 'ttft'}:{text or 500}"


def _parse_assignment(assignment: str) -> tuple[str, Any]:
    from kavier.yaml_text import parse_yaml

    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise InputError(f"--set {assignment}", expected="PATH=VALUE, such as fleet.replicas=4")
    return path, parse_yaml(text, f"--set {path}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
