"""Bad input on the real command line: one clear line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

import pytest
from typer.main import get_command

from kavier.cli.main import app
from kavier.cli.vllm_flags import WHY
from tests.command_line import LLAMA, THREE, kavier, run_process


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder that holds a good trace `t.csv`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text(THREE)
    return tmp_path


def refused(*arguments: str | Path) -> str:
    """The error of `kavier run ... --out out`, once it is certain that nothing was written."""
    error = kavier("run", *arguments, *([] if "--out" in arguments else ["--out", "out"])).error
    assert not Path("out").exists()
    return error


def refused_trace(text: str | bytes, name: str = "bad.csv", *more: str) -> str:
    Path(name).write_bytes(text.encode() if isinstance(text, str) else text)
    error = refused("--trace", name, *LLAMA, *more)
    assert error.startswith(name)
    return error


# ---------------------------------------------------------------- traces


def test_a_missing_trace_is_named(here: Path) -> None:
    assert refused("--trace", "no.csv", *LLAMA) == "no.csv: cannot read the trace: No such file or directory"


def test_a_folder_is_no_trace(here: Path) -> None:
    (here / "folder").mkdir()
    assert refused("--trace", "folder", *LLAMA) == "folder: cannot read the trace: Is a directory"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_trace_is_named(here: Path) -> None:
    (here / "t.csv").chmod(0)
    assert refused("--trace", "t.csv", *LLAMA) == "t.csv: cannot read the trace: Permission denied"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "the trace is empty"),
        (b"\n \n", "the trace is empty"),
        (bytes(range(256)) * 8, "a binary file"),
        (b"\xff\xfe\x00\x01garbage", "a binary file"),
        (b"\x1f\x8b\x08garbage", "not valid gzip"),
        (b"PAR1garbagePAR1", "not valid Parquet"),
        (b"arrival_s,input_tokens,output_tokens\n0,1,\xff\n", "line 2: not UTF-8"),
        (b'{"timestamp": 1', "line 1: not valid JSON"),
        (gzip.compress(b"", mtime=0), "the trace is empty"),
    ],
)
def test_what_is_no_trace_at_all_is_said(here: Path, data: bytes, said: str) -> None:
    assert said in refused_trace(data)


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_columns_that_no_comma_separates_are_said(here: Path, mark: str) -> None:
    error = refused_trace(THREE.replace(",", mark))
    assert error == f"bad.csv, line 1: columns that no comma separates (got {mark!r}); expected ','"


def test_an_unknown_format_offers_the_nearest(here: Path) -> None:
    error = refused("--trace", "t.csv", *LLAMA, "--format", "azur")
    assert "unknown trace format 'azur'" in error
    assert "did you mean azure" in error


def test_a_format_that_nobody_knows_lists_what_is_known(here: Path) -> None:
    error = refused_trace("colour,shape\nred,square\n")
    assert "no trace format has these columns (columns found: 'colour', 'shape')" in error
    assert "azure: CSV with TIMESTAMP, ContextTokens, GeneratedTokens" in error


def test_a_missing_column_is_named_with_the_nearest_found(here: Path) -> None:
    error = refused_trace("arrival_s,input_tokens,output_token\n0,1,1\n")
    assert "missing column 'output_tokens'" in error
    assert error.endswith("did you mean output_token?")


def test_a_column_twice_is_an_error(here: Path) -> None:
    assert "two columns are called 'input_tokens'" in refused_trace(
        "arrival_s,input_tokens,input_tokens,output_tokens\n0,1,1,1\n"
    )


@pytest.mark.parametrize(
    ("row", "column", "problem", "value"),
    [
        ("1,-5,10", "input_tokens", "negative value", "-5"),
        ("-1,5,10", "arrival_s", "negative value", "-1"),
        ("nan,5,10", "arrival_s", "not a finite number", "nan"),
        ("inf,5,10", "arrival_s", "not a finite number", "inf"),
        ("1,nan,10", "input_tokens", "not a whole number", "nan"),
        ("1,5,", "output_tokens", "no value", None),
        ("1,ten,10", "input_tokens", "not a whole number", "ten"),
        ("1,5.5,10", "input_tokens", "not a whole number", "5.5"),
        ("soon,5,10", "arrival_s", "not a number", "soon"),
        ("1,99999999999999999999,10", "input_tokens", "not a whole number", "99999999999999999999"),
    ],
)
def test_a_bad_value_is_named_by_row_line_and_column(
    here: Path, row: str, column: str, problem: str, value: str | None
) -> None:
    error = refused_trace(f"arrival_s,input_tokens,output_tokens\n0,1,1\n{row}\n2,1,1\n")
    assert error.startswith(f"bad.csv, row 2 (line 3), column {column!r}: {problem}")
    assert value is None or f"(got {value!r})" in error


def test_a_null_in_json_lines_is_named_by_row_and_line(here: Path) -> None:
    good = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}
    lines = [good, good, {**good, "output_length": None}]
    error = refused_trace("\n".join(map(json.dumps, lines)), "bad.jsonl")
    assert error.startswith("bad.jsonl, row 3 (line 3), column 'output_length': no value")


def test_a_trace_without_requests_is_an_error(here: Path) -> None:
    assert "no request; expected at least one" in refused_trace("arrival_s,input_tokens,output_tokens\n")


def test_a_trace_of_empty_answers_only_is_an_error(here: Path) -> None:
    error = refused_trace("arrival_s,input_tokens,output_tokens\n0,5,0\n1,6,0\n")
    assert "no request left; expected at least one" in error
    assert error.endswith("(dropped_zero_output_tokens 2)")


# ---------------------------------------------------------------- counted, not refused


def served(*arguments: str | Path) -> dict[str, dict[str, object]]:
    """Summary of a run that ends well."""
    ended = kavier("run", *arguments, "--json")
    assert (ended.status, ended.err) == (0, "")
    summary = json.loads(ended.out)
    assert isinstance(summary, dict)
    return summary


def notes(summary: dict[str, dict[str, object]]) -> str:
    return "\n".join(map(str, summary["trust"]["notes"]))  # type: ignore[call-overload]


def test_arrivals_out_of_order_are_sorted_and_counted(here: Path) -> None:
    Path("t.csv").write_text("arrival_s,input_tokens,output_tokens\n2,1,1\n0,1,1\n1,1,1\n")
    summary = served("--trace", "t.csv", *LLAMA)
    assert summary["requests"]["finished"] == 3
    assert re.search(r"out of order.*\b[123]\b|\b[123]\b.*out of order", notes(summary))


def test_empty_answers_are_dropped_and_counted(here: Path) -> None:
    Path("t.csv").write_text("arrival_s,input_tokens,output_tokens\n0,1,0\n0,1,1\n1,1,1\n")
    summary = served("--trace", "t.csv", *LLAMA)
    assert summary["requests"]["arrived"] == 2
    assert re.search(r"\b1\b", notes(summary))


def test_a_prompt_longer_than_the_context_is_rejected_and_counted(here: Path) -> None:
    Path("t.csv").write_text("arrival_s,input_tokens,output_tokens\n0,5000,1\n0,10,1\n")
    summary = served("--trace", "t.csv", *LLAMA, "--max-model-len", "4096")
    counts = summary["requests"]
    assert (counts["arrived"], counts["finished"], counts["rejected"]) == (2, 1, 1)


def test_a_prompt_larger_than_the_kv_memory_is_rejected_and_counted(here: Path) -> None:
    Path("t.csv").write_text("arrival_s,input_tokens,output_tokens\n0,5000,1\n0,10,1\n")
    summary = served("--trace", "t.csv", *LLAMA, "--num-gpu-blocks-override", "20")
    counts = summary["requests"]
    assert (counts["arrived"], counts["finished"], counts["rejected"]) == (2, 1, 1)


def test_a_run_that_rejects_everything_still_reports(here: Path) -> None:
    Path("t.csv").write_text("arrival_s,input_tokens,output_tokens\n0,5000,1\n")
    assert served("--trace", "t.csv", *LLAMA, "--max-model-len", "4096")["requests"]["rejected"] == 1
    assert kavier("run", "--trace", "t.csv", *LLAMA, "--max-model-len", "4096").status == 0


def test_a_run_whose_every_request_needs_more_than_the_kv_memory_still_reports(here: Path) -> None:
    flags = ("--num-gpu-blocks-override", "2")
    assert served("--trace", "t.csv", *LLAMA, *flags)["requests"]["rejected"] == 3
    assert kavier("run", "--trace", "t.csv", *LLAMA, *flags).status == 0


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("flags", "problem", "near"),
    [
        (("--gpu", "H1000"), "unknown GPU 'H1000'", "H100"),
        (("--gpu", "RTX4091"), "unknown GPU 'RTX4091'", "RTX-4090"),
        (("--model", "meta-llama/Llama-3.1-8C"), "unknown model 'meta-llama/Llama-3.1-8C'", "Llama-3.1-8B"),
        (("--region", "NLDD"), "unknown region 'NLDD'", "NLD"),
        (("--router", "roundrobin"), "fleet.router: bad value (got 'roundrobin')", "round-robin"),
        (("--kv-cache-dtype", "fp88"), "engine.kv_cache_dtype: bad value (got 'fp88')", "fp8"),
        (("--dtype", "bfloat8"), "expected 'auto', 'bfloat16' or 'float16'", "bfloat16"),
        (("--scheduling-policy", "prio"), "engine.scheduling_policy: bad value (got 'prio')", "priority"),
    ],
)
def test_an_unknown_name_offers_the_nearest(
    here: Path, flags: tuple[str, ...], problem: str, near: str
) -> None:
    error = refused("--trace", "t.csv", *LLAMA, *flags)
    assert problem in error
    assert near in error.partition("did you mean ")[2]


def test_an_unknown_preset_offers_the_nearest(here: Path) -> None:
    error = refused("--preset", "azure-conversion", *LLAMA)
    assert "unknown preset 'azure-conversion'" in error
    assert "azure-conversation" in error.partition("did you mean ")[2]


@pytest.mark.parametrize(
    ("arguments", "problem", "near"),
    [
        (("catalog", "gpu"), "unknown catalog 'gpu'", "gpus"),
        (("catalog", "gpus", "H1000"), "unknown GPU 'H1000'", "H100"),
        (("catalog", "models", "Llama-3.1-8C"), "unknown model", "Llama-3.1-8B"),
        (
            ("catalog", "prices", "H1000"),
            "unknown GPU 'H1000'; expected a name of `kavier catalog gpus`",
            "H100",
        ),
        (("explain", "ttft_z"), "unknown metric 'ttft_z'", "ttft_s"),
        (("rnu",), "No such command 'rnu'", "'run'"),
        (("workload", "inof"), "No such command 'inof'", "'info'"),
        (("run", "--tarce", "t.csv"), "No such option: --tarce", "--trace"),
        (("run", "--max-num-seq", "4"), "No such option: --max-num-seq", "--max-num-seqs"),
    ],
)
def test_other_commands_offer_the_nearest_too(arguments: tuple[str, ...], problem: str, near: str) -> None:
    error = kavier(*arguments).error
    assert problem in error
    assert near in error.casefold().replace("h100", "H100").partition("did you mean ")[2] or (
        near.casefold() in error.casefold().partition("did you mean ")[2]
    )


def test_where_no_name_is_near_some_that_begin_alike_are_offered() -> None:
    assert kavier("catalog", "prices", "H999").error.endswith("such as H100-PCIe, H100-SXM or H200-SXM")
    assert kavier("catalog", "regions", "QQ").error == (
        "unknown region 'QQ'; expected a name of `kavier catalog regions`"
    )


# ---------------------------------------------------------------- flags of vLLM


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            "--pipeline-parallel-size=2",
            "Kavier does not model: split a model over GPUs with --tensor-parallel",
        ),
        ("--pipeline_parallel_size=2", "--pipeline-parallel-size is a flag of vLLM that"),
        ("-pp", "-pp is a flag of vLLM that Kavier does not model: split a model"),
        ("-O3", "-O3 is a flag of vLLM that Kavier does not model: steps run as CUDA graphs"),
        ("--data-parallel-backend", "give several engines with --data-parallel-size"),
        ("--quantization", "name a quantised model with --model"),
        ("--port", "--port is a flag of vLLM that has no effect on a simulation: leave it out"),
        ("--api-key", "has no effect on a simulation"),
        ("--tokenizer", "has no effect on a simulation"),
        ("--trust-remote-code", "has no effect on a simulation"),
        ("--swap-space", "has no effect in vLLM's V1 engine"),
        ("--speculative-config.method=eagle", "--speculative-config is a flag of vLLM that Kavier does not"),
        ("--no-enable-lora", "--no-enable-lora is a flag of vLLM that Kavier does not model"),
        ("--cpu-offload-gb", "weights have to fit in GPU memory"),
        ("--enforce-eager", "steps run as CUDA graphs"),
        ("--kv-transfer-config", "KV stays in the memory of the GPU that computed it"),
        ("--dataset-path", "a file goes with --trace"),
        ("--save-result", "a run is kept in a folder with --out"),
    ],
)
@pytest.mark.parametrize("command", [("run", *LLAMA), ("conformance",), ("workload", "synth", "out")])
def test_a_flag_of_vllm_that_is_not_here_says_why(
    here: Path, command: tuple[str, ...], typed: str, said: str
) -> None:
    error = kavier(*command, typed).error
    assert said in error
    assert "did you mean" not in error


def test_the_table_of_vllm_s_flags_has_no_flag_of_ours_and_offers_only_such() -> None:
    ours = {name for one in get_command(app).commands["run"].params for name in one.opts}  # type: ignore[attr-defined]
    assert not ours & WHY.keys()
    for reason in WHY.values():
        assert set(re.findall(r"--[a-z-]+", reason)) <= ours


# ---------------------------------------------------------------- what does not fit


def test_a_model_that_does_not_fit_says_by_how_much_and_what_would(here: Path) -> None:
    error = refused("--trace", "t.csv", "--model", "meta-llama/Llama-3.1-70B", "--gpu", "H100")
    assert "meta-llama/Llama-3.1-70B does not fit on 1 x H100-SXM" in error
    assert re.search(r"need \d+\.\d+ GiB more", error)
    assert "expected engine.tensor_parallel_size" in error


def test_a_model_that_no_number_of_such_gpus_holds_says_so(here: Path) -> None:
    error = refused("--trace", "t.csv", "--model", "deepseek-ai/DeepSeek-V3", "--gpu", "A10")
    assert "does not fit on 1 x A10" in error
    assert "expected a GPU with more memory" in error


def test_a_context_too_long_for_the_kv_memory_says_what_fits(here: Path) -> None:
    error = refused("--trace", "t.csv", "--model", "meta-llama/Llama-3.1-8B", "--gpu", "A10")
    assert re.search(r"max_model_len 131072 tokens needs \d+\.\d+ GiB.*\d+\.\d+ GiB are available", error)
    fitting = re.search(r"at most (\d+)", error)
    assert fitting
    ended = kavier(
        "run",
        "--trace",
        "t.csv",
        "--model",
        "meta-llama/Llama-3.1-8B",
        "--gpu",
        "A10",
        "--max-model-len",
        fitting[1],
    )
    assert ended.status == 0


def test_a_context_longer_than_the_models_is_an_error(here: Path) -> None:
    error = refused("--trace", "t.csv", *LLAMA, "--max-model-len", "131073")
    assert "131073 is greater than the 131072 tokens of meta-llama/Llama-3.1-8B" in error


def test_tensor_parallelism_must_divide_the_heads(here: Path) -> None:
    error = refused("--trace", "t.csv", *LLAMA, "--tensor-parallel-size", "3")
    assert "must be divisible by tensor parallel size (3)" in error
    assert "1, 2, 4, 8" in error


# ---------------------------------------------------------------- flags


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ("--request-rate", "2"),
            "contradictory flags: --trace replays a trace, --request-rate generates load",
        ),
        (("--preset", "azure-code"), "contradictory flags: --trace replays a trace, --preset"),
        (
            ("--num-prompts", "5"),
            "--trace replays a trace, --num-prompts generates load; expected one of the two; a trace is",
        ),
        (
            ("--max-num-batched-tokens", "10", "--max-num-seqs", "20"),
            "smaller than max_num_seqs (20) (got 10)",
        ),
        (
            ("--no-enable-chunked-prefill", "--max-num-batched-tokens", "2048"),
            "smaller than max_model_len (131072) (got 2048); expected at least 131072",
        ),
        (
            ("--async-scheduling", "--vllm-version", "0.11"),
            "of vLLM 0.11 is not mirrored (got True); expected engine.vllm_version 0.14, 0.20, 0.25 or 0.33",
        ),
        (("--async-scheduling", "--no-kv-cache"), "async_scheduling with kv_cache off"),
        (("--vllm-version", "0.33.x"), "engine.vllm_version: bad value (got '0.33.x')"),
        (("--vllm-version", "0.12"), "engine.vllm_version: bad value (got '0.12'); expected '0.11', '0.14'"),
        (("--vllm-version", "0.12"), "did you mean 0.11 or 0.14?"),
        (("--vllm-version", "v0.30.1"), "did you mean 0.25 or 0.33?"),
        (("--vllm-version", "0.9"), "did you mean 0.11?"),
        (("--vllm-version", "1.0"), "did you mean 0.33?"),
        (("--dtype", "float"), "engine.dtype: float is not modelled; expected auto, bfloat16 or float16"),
        (
            ("--scheduling-policy", "priority", "--vllm-version", "0.11"),
            "engine.scheduling_policy: scheduling_policy of vLLM 0.11 is not mirrored (got 'priority')",
        ),
        (("--no-enable-chunked-prefill", "--vllm-version", "0.11"), "enable_chunked_prefill of vLLM 0.11"),
        (
            ("--watermark", "0.1", "--vllm-version", "0.20"),
            "vLLM 0.20 has no option watermark (got 0.1); expected engine.vllm_version 0.25 or 0.33",
        ),
        (("--watermark", "1"), "engine.watermark: bad value (got 1"),
        (
            ("--scheduler-reserve-full-isl", "--vllm-version", "0.14"),
            "vLLM 0.14 has no option scheduler_reserve_full_isl (got True)",
        ),
        (
            ("--gpu-memory-utilization", "1.5"),
            "engine.gpu_memory_utilization: bad value (got 1.5); expected less",
        ),
        (("--gpu-memory-utilization", "nan"), "engine.gpu_memory_utilization: bad value (got nan)"),
        (
            ("--max-model-len", "long"),
            "max_model_len: bad value (got 'long'); expected a valid integer or 'auto'",
        ),
        (
            ("--max-model-len", "0"),
            "engine.max_model_len: bad value (got 0); expected greater than or equal",
        ),
        (("--num-gpu-blocks-override", "1"), "engine.num_gpu_blocks_override: bad value (got 1)"),
        (("--block-size", "0"), "engine.block_size: bad value (got 0)"),
        (("--max-concurrency", "0"), "workload.max_concurrency: bad value (got 0)"),
        (
            ("--replicas", "0"),
            "command line: fleet.replicas: bad value (got 0); expected greater than or equal to 1",
        ),
        (("--replicas", "-1"), "fleet.replicas: bad value (got -1); expected greater than or equal to 1"),
        (
            ("--replicas", "1000000000"),
            "fleet.replicas: bad value (got 1000000000); expected less than or equal",
        ),
        (("--replicas", "abc"), "Invalid value for '--replicas': Input should be a valid integer"),
        (("--replicas", "1.5"), "Invalid value for '--replicas': Input should be a valid integer"),
        (("--seed", "-1"), "seed: bad value (got -1); expected greater than or equal to 0"),
        (("--seed", "x"), "Invalid value for '--seed'"),
        (("--goodput", "foo:1"), "--goodput: unknown objective 'foo'; expected ttft, tpot or e2el"),
        (("--goodput", "tttf:1"), "did you mean ttft"),
        (("--goodput", "ttft:abc"), "--goodput ttft (got 'abc'); expected a number of ms above 0"),
        (("--goodput", "ttft"), "--goodput ttft; expected NAME:MS, such as ttft:500"),
        (("--goodput", "tpot=50"), "--goodput tpot=50; expected NAME:MS, such as tpot:50"),
        (("--goodput", "ttft:500", "tpot=50"), "--goodput tpot=50; expected NAME:MS, such as tpot:50"),
        (("--goodput", "ttft:"), "--goodput ttft (got ''); expected a number of ms above 0"),
        (("--goodput", "ttft:-1"), "--goodput ttft (got '-1'); expected a number of ms above 0"),
        (("--goodput", "tpot:nan"), "--goodput tpot (got 'nan'); expected a number of ms above 0"),
        (("--set", "fleet.replicas"), "--set fleet.replicas; expected PATH=VALUE"),
        (("--set", "=3"), "--set =3; expected PATH=VALUE"),
        (("--set", "fleet.replicaz=3"), "unknown key 'fleet.replicaz'; did you mean replicas?"),
        (("--set", "fleet.ruoter=random"), "unknown key 'fleet.ruoter'; did you mean router?"),
        (("--set", "replicas=3"), "unknown key 'replicas'; expected fleet.replicas"),
        (("--set", "colour.shade=3"), "unknown key 'colour'"),
        (
            ("--set", "fleet.replicas=many"),
            "fleet.replicas: bad value (got 'many'); expected a valid integer",
        ),
        (
            ("--set", "fleet.replicas=true"),
            "fleet.replicas: bad value (got 'true'); expected a valid integer",
        ),
        (("--set", "fleet.replicas.more=3"), "fleet.replicas: bad value (got {'more': 3}); expected a valid"),
        (("--set", "fleet=3"), "no GPU"),
        (("--set", "workload=3"), "nothing to serve"),
        (("--set", "engine="), "engine: no value; expected a mapping of keys"),
        (("--set", "engine=[1, 2"), "--set engine, line 1: not valid YAML"),
        (("--set", "site.pue=.inf"), "site.pue: bad value (got inf)"),
        (("--set", "site.pue=0.9"), "site.pue: bad value (got 0.9)"),
        (("--set", "slo.ttft_s=-1"), "slo.ttft_s: bad value (got -1)"),
        (("--set", "site.start=2024-13-45"), "site.start without site.carbon_series"),
        (("--no-such-flag",), "No such option: --no-such-flag"),
        (("--replicas",), "requires an argument"),
    ],
)
def test_a_flag_that_makes_no_sense_is_refused(here: Path, flags: tuple[str, ...], said: str) -> None:
    assert said in refused("--out", "out", "--trace", "t.csv", *LLAMA, *flags)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--request-rate", "nan"), "workload.synthetic.arrivals.request_rate: bad value (got nan)"),
        (("--request-rate", "0"), "workload.synthetic.arrivals.request_rate: bad value (got 0.0)"),
        (("--request-rate", "-2"), "workload.synthetic.arrivals.request_rate: bad value (got -2.0)"),
        (("--burstiness", "0", "--request-rate", "1"), "arrivals.burstiness: bad value (got 0.0)"),
        (("--burstiness", "0.5"), "process 'gamma' needs a finite request_rate"),
        (("--burstiness", "nan"), "arrivals.burstiness: bad value (got nan); expected a number"),
        (
            ("--preset", "azure-code", "--request-rate", "inf"),
            "request_rate inf sends all requests at once: no duration_s ends them; expected num_prompts",
        ),
        (
            ("--preset", "azure-code", "--random-range-ratio", "0.5"),
            "lengths that are given: it needs --random-input-len and --random-output-len",
        ),
        (
            ("--preset", "azure-code", "--random-range-ratio", "0.5", "--random-input-len", "9"),
            "lengths that are given: it needs --random-output-len",
        ),
        (("--num-prompts", "0"), "workload.synthetic.num_prompts: bad value (got 0)"),
        (("--num-prompts", "1000000000"), "synthetic load of 1e+09 requests; expected at most 100,000,000"),
        (("--num-prompts", "9" * 30), "workload.synthetic.num_prompts: bad value (got 999"),
        (("--random-input-len", "0"), "workload.synthetic.prompt_tokens.mean: bad value (got 0)"),
        (("--random-output-len", "-3"), "workload.synthetic.output_tokens.mean: bad value (got -3)"),
        (("--random-range-ratio", "1"), "range_ratio: bad value (got 1.0); expected less than 1"),
        (
            ("--num-prompts", "2", "--format", "azure"),
            "--format says how to read a trace, and there is none; expected --trace FILE",
        ),
        (("--num-prompts", "2", "--trace-block-size", "16"), "--trace-block-size says how to read a trace"),
    ],
)
def test_load_that_makes_no_sense_is_refused(here: Path, flags: tuple[str, ...], said: str) -> None:
    assert said in refused(*LLAMA, *flags)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing to serve; expected a scenario, --trace FILE, --preset NAME, or --num-prompts"),
        (LLAMA, "nothing to serve"),
        (("--format", "azure", *LLAMA), "--format says how to read a trace, and there is none"),
        (("t.csv", *LLAMA), "a trace is no scenario (YAML): t.csv; expected --trace t.csv"),
        (("my.jsonl.gz", *LLAMA), "expected --trace my.jsonl.gz"),
        (
            (LLAMA[1], "--gpu", "H100"),
            "expected a YAML file; a model goes with --model, a trace with --trace",
        ),
        (("--trace", "t.csv", "--gpu", "H100"), "no model; expected --model NAME"),
        (("--trace", "t.csv", "--model", "meta-llama/Llama-3.1-8B"), "no GPU; expected --gpu NAME"),
        (("--trace", "t.csv", "--model", "", "--gpu", "H100"), "no model"),
        (("one.yaml", "two.yaml"), "unexpected extra argument"),
    ],
)
def test_a_run_with_something_missing_says_what(here: Path, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(*arguments)


def test_a_line_break_in_what_was_typed_stays_one_line(here: Path) -> None:
    assert "no such.csv" in refused("--trace", "no\nsuch.csv", *LLAMA)


def test_a_very_long_value_is_cut(here: Path) -> None:
    short, long = (refused("--trace", "t.csv", *LLAMA, "--router", "x" * count) for count in (3, 10_000))
    assert len(long) < len(short) + 100
    assert "x" * 100 not in long


# ---------------------------------------------------------------- scenario files


GOOD = "model: meta-llama/Llama-3.1-8B\nworkload: {trace: t.csv}\nfleet: {gpu: H100}\n"


def refused_scenario(text: str | bytes) -> str:
    Path("s.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    error = refused("s.yaml")
    assert error.startswith("s.yaml")
    return error


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "s.yaml: the scenario is not a mapping"),
        ("- model\n- fleet\n", "s.yaml: the scenario is not a mapping; expected keys such as model"),
        ("just words", "s.yaml: the scenario is not a mapping"),
        (GOOD + "engine: {block_size: 16\n", "s.yaml, line 5: not valid YAML"),
        (GOOD + "seed: 1\nseed: 2\n", "s.yaml, line 5: not valid YAML: the key 'seed' is given twice"),
        (GOOD + "\tseed: 1\n", "s.yaml, line 4: not valid YAML"),
        (GOOD + "seed: !!python/object:os.system x\n", "s.yaml, line 4: not valid YAML"),
        (GOOD + "---\nseed: 1\n", "s.yaml, line 4: not valid YAML"),
        (GOOD + "? [1, 2]\n: x\n", "s.yaml, line 4: not valid YAML: found unhashable key"),
        (GOOD + "seed: " + "9" * 5000, "s.yaml: not valid YAML"),
        (GOOD + "engine: " + "[" * 1500, "s.yaml: not valid YAML"),
        (GOOD.encode() + b"\xff", "s.yaml: cannot read the scenario"),
        (GOOD + "1: 2\n", "s.yaml: a key that is not text"),
        (GOOD + "fleat: {}\n", "s.yaml: unknown key 'fleat'; did you mean fleet"),
        (GOOD + "replicas: 3\n", "s.yaml: unknown key 'replicas'; expected fleet.replicas"),
        (GOOD + "engine: {max_num_seq: 3}\n", "unknown key 'engine.max_num_seq'; did you mean max_num_seqs"),
        (GOOD.replace("trace:", "trase:"), "unknown key 'workload.trase'; did you mean trace?"),
        (GOOD + "engine:\n", "s.yaml: engine: no value; expected a mapping of keys"),
        (GOOD + "engine: &e {engine: *e}\n", "s.yaml: unknown key 'engine.engine'"),
        (GOOD + "seed: 1.5\n", "s.yaml: seed: bad value (got 1.5); expected a valid integer"),
        (GOOD + "seed: yes\n", "s.yaml: seed: bad value (got 'yes'); expected a valid integer"),
        (
            GOOD + "engine: {kv_cache: maybe}\n",
            "engine.kv_cache: bad value (got 'maybe'); expected a valid boolean",
        ),
        (
            GOOD + "engine: {vllm_version: 0.5}\n",
            "engine.vllm_version: bad value (got '0.5'); expected '0.11', '0.14', '0.20', '0.25' or '0.33'",
        ),
        (GOOD + "slo: {ttft_s: .nan}\n", "slo.ttft_s: bad value (got nan)"),
        (GOOD.replace("{trace: t.csv}", "{}"), "workload: give either a trace or synthetic load"),
        (GOOD.replace("{trace: t.csv}", "t.csv"), "workload: bad value (got 't.csv'); expected a mapping"),
        (GOOD.replace("gpu: H100", ""), "s.yaml: missing key 'fleet.gpu'"),
        (GOOD.replace("model:", "modle:"), "s.yaml: unknown key 'modle'; did you mean model"),
        (
            GOOD.replace("{trace: t.csv}", "{trace: t.csv, synthetic: {preset: azure-code}}"),
            "s.yaml: workload: give either a trace or synthetic load",
        ),
        (
            GOOD.replace("trace: t.csv", "synthetic: {num_prompts: 2, prompt_tokens: {kind: uniform}}"),
            "workload.synthetic.prompt_tokens: lengths of kind 'uniform' need mean",
        ),
    ],
)
def test_a_bad_scenario_is_refused(here: Path, text: str | bytes, said: str) -> None:
    Path("s.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    assert said in refused("s.yaml")


def test_a_missing_scenario_is_named(here: Path) -> None:
    assert refused("no.yaml") == "no.yaml: cannot read the scenario: No such file or directory"


def test_a_folder_is_no_scenario(here: Path) -> None:
    assert refused(".") == ".: cannot read the scenario: Is a directory"


def test_an_error_of_file_and_flags_together_names_both(here: Path) -> None:
    Path("s.yaml").write_text(GOOD)
    assert refused("s.yaml", "--replicas", "0").startswith("s.yaml with the flags: fleet.replicas: bad value")


def test_a_flag_cannot_pass_through_what_is_no_section(here: Path) -> None:
    Path("s.yaml").write_text(GOOD + "engine: 3\n")
    error = refused("s.yaml", "--block-size", "32")
    assert error == "cannot set engine.block_size: engine is not a section of keys (got 3)"


def test_a_trace_named_in_a_scenario_is_looked_for_beside_it(here: Path) -> None:
    Path("deep").mkdir()
    Path("deep/s.yaml").write_text(GOOD)
    assert refused("deep/s.yaml").startswith("deep/t.csv: cannot read the trace")


# ---------------------------------------------------------------- config.json


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}


def refused_config(text: str) -> str:
    Path("config.json").write_text(text)
    return refused("--trace", "t.csv", "--model", "config.json", "--gpu", "H100")


def test_a_local_config_is_simulated(here: Path) -> None:
    Path("config.json").write_text(json.dumps(CONFIG))
    ended = kavier("run", "--trace", "t.csv", "--model", "config.json", "--gpu", "H100", "--json")
    assert ended.status == 0


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_config_without_a_field_names_it(here: Path, field: str) -> None:
    error = refused_config(json.dumps({key: value for key, value in CONFIG.items() if key != field}))
    assert "config.json" in error
    assert field in error


def test_a_config_of_an_unknown_architecture_is_refused(here: Path) -> None:
    error = refused_config(json.dumps({**CONFIG, "model_type": "lama", "architectures": ["Lama"]}))
    assert "model_type" in error
    assert "lama" in error


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        '{"model_type": 3}',
        pytest.param("[" * 100_000, id="deep"),
        pytest.param('{"hidden_size": ' + "9" * 5000 + "}", id="digits"),
    ],
)
def test_a_config_that_is_no_config_is_refused(here: Path, text: str) -> None:
    assert "config.json" in refused_config(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden_size": "big"},
        {"hidden_size": -1},
        {"num_hidden_layers": 0},
        {"vocab_size": None},
        {"num_attention_heads": 2.5},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 0},
        {"head_dim": 0},
        {"hidden_size": 0},
        {"intermediate_size": 0},
        {"num_hidden_layers": 10**12},
        {"vocab_size": float("nan")},
        {"rope_scaling": {"type": "linear", "factor": "x"}},
        {"text_config": "x"},
        {"rope_scaling": 3},
        {"max_position_embeddings": "long"},
    ],
    ids=str,
)
def test_a_config_with_a_wrong_value_names_the_field(here: Path, wrong: dict[str, object]) -> None:
    assert next(iter(wrong)) in refused_config(json.dumps({**CONFIG, **wrong}))


# ---------------------------------------------------------------- where the run is kept


def test_a_file_is_no_place_to_keep_a_run(here: Path) -> None:
    assert refused("--trace", "t.csv", *LLAMA, "--out", "t.csv") == "t.csv: --out: not a folder"
    assert Path("t.csv").read_text() == THREE


def test_a_folder_of_something_else_is_left_alone(here: Path) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("words")
    error = refused("--trace", "t.csv", *LLAMA, "--out", "mine")
    assert error == "mine: --out: the folder is not empty and holds no earlier run"
    assert [path.name for path in Path("mine").iterdir()] == ["thesis.tex"]


def test_a_place_below_a_file_cannot_be_written(here: Path) -> None:
    error = refused("--trace", "t.csv", *LLAMA, "--out", "t.csv/run")
    assert error.endswith("t.csv: --out: not a folder")


def test_a_trace_name_too_long_for_the_disk_is_refused(here: Path) -> None:
    assert "too long" in refused("--trace", "x" * 300, *LLAMA)


def test_a_folder_name_too_long_for_the_disk_is_refused(here: Path) -> None:
    assert "File name too long" in refused("--trace", "t.csv", *LLAMA, "--out", "x" * 300)


def test_a_model_name_too_long_for_the_disk_is_unknown(here: Path) -> None:
    assert "unknown model" in refused("--trace", "t.csv", "--model", "x" * 300, "--gpu", "H100")


def test_a_timeline_too_long_for_memory_is_refused(here: Path) -> None:
    assert "sample_interval_s" in refused("--num-prompts", "2", "--request-rate", "1e-300", *LLAMA)


# ---------------------------------------------------------------- kavier workload


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("info", "no.csv"), "no.csv: cannot read the trace: No such file"),
        (("info", "t.csv", "--format", "azur"), "unknown trace format 'azur'"),
        (("convert", "no.csv", "o.jsonl"), "no.csv: cannot read the trace"),
        (
            ("convert", "t.csv", "o.txt"),
            "o.txt: cannot tell the format of the trace to write; expected .parquet",
        ),
        (("convert", "t.csv", "no/o.jsonl"), "no/o.jsonl: cannot write the trace: No such file"),
        (("synth", "o.jsonl"), "synthetic load has no"),
        (("synth", "o.jsonl", "--preset", "azure-cod"), "unknown preset 'azure-cod'"),
        (
            ("synth", "o.jsonl", "--preset", "azure-code", "--num-prompts", "0"),
            "num_prompts: bad value (got 0)",
        ),
        (("synth", "o.jsonl", "--preset", "azure-code", "--request-rate", "nan"), "request_rate: bad value"),
        (("synth", "o.jsonl", "--preset", "azure-code", "--seed", "-1"), "Invalid value for '--seed'"),
        (("synth", "o.txt", "--preset", "azure-code", "--num-prompts", "2"), "expected .parquet or .jsonl"),
        (("synth", "o.jsonl", "--spec", "no.yaml"), "no.yaml: cannot read"),
        (("synth", "o.jsonl", "--spec", "spec.yaml"), "unknown key 'workload.synthetic.num_prompt'"),
    ],
)
def test_bad_workload_commands_are_refused(here: Path, arguments: tuple[str, ...], said: str) -> None:
    Path("spec.yaml").write_text("num_prompt: 3\n")
    before = set(here.iterdir())
    assert said in kavier("workload", *arguments).error
    assert set(here.iterdir()) == before


# ---------------------------------------------------------------- as a process of its own


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--trace", "no.csv", *LLAMA, "--out", "out"),
        ("run", "--trace", "t.csv", *LLAMA, "--replicas", "abc", "--out", "out"),
        ("run", "--trace", "t.csv", *LLAMA, "--gpu", "H1000", "--out", "out"),
        ("rnu",),
    ],
)
def test_the_process_ends_with_one_line_and_code_2(here: Path, arguments: tuple[str, ...]) -> None:
    assert run_process(arguments, here).error
    assert not Path("out").exists()
