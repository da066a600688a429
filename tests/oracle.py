"""The recorded runs of the real vLLM scheduler, where they are at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kavier.validation.recording import TokenKeys

__all__ = ["FOLDERS", "ORACLE", "RUNS", "TokenKeys", "files_of", "flags_of"]

ORACLE = Path(__file__).parents[2] / "shared" / "oracle"

_SMALL = {"max_num_batched_tokens": 1024, "max_num_seqs": 64}
_UNCACHED = {"enable_prefix_caching": False}

RUNS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "light_nocache": ("light", 10000, {"max_num_batched_tokens": 2048, "max_num_seqs": 128, **_UNCACHED}),
    "pressure": ("pressure", 500, _SMALL),
    "pressure_nocache": ("pressure", 500, {**_SMALL, **_UNCACHED}),
    "sessions_evict": ("sessions", 420, {"max_num_batched_tokens": 1024, "max_num_seqs": 32}),
    "chunked": ("chunked", 3000, _SMALL),
    "chunked_lpt": ("chunked", 3000, {**_SMALL, "long_prefill_token_threshold": 256}),
    "priority": ("priority", 500, {**_SMALL, "scheduling_policy": "priority"}),
    "mooncake": ("mooncake", 3000, {"max_num_batched_tokens": 4096, "max_num_seqs": 128}),
    "samestep": ("samestep", 64, {"max_num_batched_tokens": 256, "max_num_seqs": 128}),
}
"""Run -> (workload, num_gpu_blocks, engine settings), from the table in ../shared/oracle/README.md."""

FOLDERS: dict[str, tuple[str, bool]] = {
    "vllm-0.33.0": ("0.33", False),
    "vllm-0.33.0-async": ("0.33", True),
    "vllm-0.11.0": ("0.11", False),
}
"""Folder -> (vLLM's release, asynchronous)."""


def files_of(folder: str, run: str) -> tuple[Path, Path, Path]:
    """Workload, step log and requests."""
    there = ORACLE / folder
    return (
        ORACLE / "workloads" / f"{RUNS[run][0]}.jsonl.gz",
        there / f"{run}.steps.jsonl.gz",
        there / f"{run}.requests.jsonl.gz",
    )


def flags_of(run: str) -> list[str]:
    """The run's settings as flags of vLLM."""
    _, num_gpu_blocks, settings = RUNS[run]
    flags = ["--num-gpu-blocks", str(num_gpu_blocks)]
    for name, value in settings.items():
        flag = name.replace("_", "-")
        flags += [f"--no-{flag}"] if value is False else [f"--{flag}", str(value)]
    return flags
