"""Batch limits that vLLM chooses by the GPU, and the contradictions that it refuses.

Mirrors vLLM 0.33, `EngineArgs.get_batch_defaults` and `_set_default_max_num_seqs_and_batched_tokens_args`
(engine/arg_utils.py) for the API server, and `SchedulerConfig.verify_max_model_len` (config/scheduler.py).
"""

from __future__ import annotations

from kavier.ecosystem.gpu import GpuSpec
from kavier.ecosystem.vllm_versions import resolve_version, rules_of
from kavier.errors import InputError
from kavier.scenario import Engine
from kavier.units import bytes_to_gib


def resolve_engine(engine: Engine, gpu: GpuSpec, max_model_len: int) -> tuple[Engine, tuple[str, ...]]:
    """Fill in what depends on the release and on the GPU, as vLLM's API server does.

    Args:
        engine: Settings as given; None means vLLM's default.
        gpu: Its memory and name decide.
        max_model_len: The engine's, or the model's where the engine says None or "auto".

    Returns:
        The engine resolved, and one note for each batch limit that was defaulted or that vLLM warns of.

    Raises:
        InputError: The numbers contradict each other and vLLM would not start; or see `resolve_version`.
    """
    engine = resolve_version(engine)
    default_tokens, default_seqs = batch_defaults(gpu, large=rules_of(engine).large_gpu_defaults)
    tokens = engine.max_num_batched_tokens
    seqs = engine.max_num_seqs
    if tokens is None:
        if not engine.enable_chunked_prefill:
            default_tokens = max(default_tokens, max_model_len)
        tokens = min(default_tokens, (seqs or default_seqs) * max_model_len)
    if seqs is None:
        seqs = min(default_seqs, tokens)
    resolved = engine.model_copy(update={"max_num_batched_tokens": tokens, "max_num_seqs": seqs})
    refuse_contradictions(resolved, max_model_len)
    return resolved, tuple(_notes(engine, gpu, tokens, seqs, max_model_len))


def batch_defaults(gpu: GpuSpec, *, large: bool) -> tuple[int, int]:
    """The (max_num_batched_tokens, max_num_seqs) that vLLM's API server takes on a GPU.

    160 GiB and more, in releases that tell these apart: B200, B300, MI300X. 70 GiB and more: H100, H200; not
    the A100, which a large token budget makes slower (vLLM pull request 17885).
    """
    memory_gib = bytes_to_gib(gpu.memory_bytes)
    if large and memory_gib >= 160:
        return 16384, 1024
    if memory_gib >= 70 and "a100" not in gpu.name.casefold():
        return 8192, 1024
    return 2048, 256


def refuse_contradictions(engine: Engine, max_model_len: int) -> None:
    """Complain of limits that vLLM would not start with.

    Raises:
        InputError: There are such.
    """
    tokens, seqs = engine.max_num_batched_tokens, engine.max_num_seqs
    assert tokens is not None, "limits must be resolved"
    assert seqs is not None, "limits must be resolved"
    if tokens < max_model_len and not engine.enable_chunked_prefill:
        raise InputError(
            f"max_num_batched_tokens is smaller than max_model_len ({max_model_len})",
            where="engine",
            value=tokens,
            expected=f"at least {max_model_len} without enable_chunked_prefill",
        )
    if tokens < seqs:
        raise InputError(
            f"max_num_batched_tokens is smaller than max_num_seqs ({seqs})",
            where="engine",
            value=tokens,
            expected=f"at least {seqs}",
        )
    if engine.long_prefill_token_threshold > max_model_len:
        raise InputError(
            f"long_prefill_token_threshold is larger than max_model_len ({max_model_len})",
            where="engine",
            value=engine.long_prefill_token_threshold,
        )


def _notes(engine: Engine, gpu: GpuSpec, tokens: int, seqs: int, max_model_len: int) -> list[str]:
    by = f"vLLM {engine.vllm_version}'s default on {gpu.name}"
    usual_tokens, usual_seqs = batch_defaults(gpu, large=rules_of(engine).large_gpu_defaults)
    notes = []
    if engine.max_num_batched_tokens is None:
        why = by
        if tokens > usual_tokens:
            why = f"{by} is {usual_tokens}; without chunked prefill at least max_model_len"
        elif tokens < usual_tokens:
            why = f"{by} is {usual_tokens}; at most max_num_seqs x max_model_len"
        notes.append(f"max_num_batched_tokens = {tokens} ({why})")
    if engine.max_num_seqs is None:
        why = by if seqs == usual_seqs else f"{by} is {usual_seqs}; at most max_num_batched_tokens"
        notes.append(f"max_num_seqs = {seqs} ({why})")
    if tokens > seqs * max_model_len:
        notes.append(
            f"max_num_batched_tokens ({tokens}) exceeds max_num_seqs x max_model_len; vLLM warns of it"
        )
    return notes
