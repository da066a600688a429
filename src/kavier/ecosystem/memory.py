"""What fits: GPU memory divided as vLLM 0.33 divides it at start-up.

requested = ceil(total * gpu_memory_utilization); the KV cache gets what the weights, memory outside of
PyTorch and the peak of a dummy step leave of it (vllm/v1/worker/gpu_worker.py,
`determine_available_memory`). CUDA graphs are not charged: `profile_cudagraph_memory` of the V2 model runner,
the default since 0.29, returns 0, so they live in the share that gpu_memory_utilization leaves free.
Weights and KV are exact. The two reserves are what vLLM measures on the GPU, estimated here from few logs;
only one of them (Llama-3.1-8B, A100, 0.31) is of a dense model under this accounting, and it helped to set
them. Older versions reserved otherwise: that their block counts come out close is no proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from kavier.ecosystem.gpu import GpuSpec
from kavier.ecosystem.model import Layer, ModelSpec
from kavier.ecosystem.vllm_versions import memory_utilization
from kavier.errors import InputError
from kavier.scenario import Engine
from kavier.units import bytes_to_gib, gib_to_bytes

_VALUE_BYTES = 2  # activations are bfloat16 or float16

SAMPLER_BYTES_PER_LOGIT = 6
"""Logits in 16 bits and their copy in 32 (vllm/v1/worker/gpu/sample/sampler.py; the dummy step uses neither
top-k nor top-p). A log of vLLM pull request 48601, 1024 rows of 248,320: 1.54 GiB, of which this is 1.42."""

HIDDEN_COPIES = 4
"""Hidden states alive at once in a layer: its input, the residual, the normalised input and the output."""

WORKSPACE_BYTES = gib_to_bytes(0.6)
"""Library and compiled-kernel workspaces at the peak, +- 0.6 GiB: half-way between the two logs of the V2
runner at hand, which show 0.0 (H100 x 4, pull request 48601, a hybrid model) and 1.2 (A100, 0.31) beyond the
terms above."""

NON_TORCH_BYTES = gib_to_bytes(0.3)
"""Memory outside of PyTorch on a single GPU. vLLM logs: 0.30 GiB (A100, 0.31), 0.07 (H100, 0.10.2)."""

NON_TORCH_PARALLEL_BYTES = gib_to_bytes(0.6)
"""The same on each of several GPUs, with NCCL and all-reduce buffers: 0.6 GiB (H100 x 4, pull request 48601);
other logs say 0.1 to 0.95."""

TENSOR_PARALLEL_SIZES = (1, 2, 4, 8)
_SMALLEST_BLOCKS = 2  # the null block and one to use


@dataclass(frozen=True, slots=True)
class KvMemory:
    """The memory of ONE GPU, in bytes, and the KV cache that it leaves.

    Attributes:
        total_bytes: As the driver reports it.
        utilized_bytes: The share vLLM may use, total * gpu_memory_utilization.
        weight_bytes: Weights, with quantisation scales.
        activation_reserve_bytes: Peak of one step of max_num_batched_tokens tokens (estimate).
        non_torch_reserve_bytes: CUDA and NCCL buffers outside of PyTorch (estimate).
        kv_bytes: Size of the KV cache.
        kv_block_bytes: One block of block_size tokens, all layers.
        kv_blocks: Blocks, vLLM's num_gpu_blocks: one of them is the null block and never used.
        max_model_len: Longest request served, in tokens.
        notes: What was assumed or changed, for the reader of a result.
    """

    total_bytes: int
    utilized_bytes: int
    weight_bytes: int
    activation_reserve_bytes: int
    non_torch_reserve_bytes: int
    kv_bytes: int
    kv_block_bytes: int
    kv_blocks: int
    max_model_len: int
    notes: tuple[str, ...] = ()

    @property
    def free_bytes(self) -> int:
        """What weights and reserves leave for KV."""
        reserves = self.activation_reserve_bytes + self.non_torch_reserve_bytes
        return self.utilized_bytes - self.weight_bytes - reserves


def kv_memory(
    model: ModelSpec, gpu: GpuSpec, engine: Engine, max_num_batched_tokens: int, max_num_seqs: int
) -> KvMemory:
    """Divide the memory of one GPU, and settle the longest request.

    Raises:
        InputError: The model does not fit (by how much, and on how many GPUs it would), one request of
            max_model_len does not fit in the KV cache (how long one may be), max_model_len is above the
            model's, or tensor_parallel_size does not divide the model's heads.
    """
    _check_heads(model, engine.tensor_parallel_size)
    parts = _divide(model, gpu, engine, (max_num_batched_tokens, max_num_seqs))
    block_bytes = engine.block_size * model.kv_bytes_per_token(
        engine.kv_cache_dtype, engine.tensor_parallel_size
    )
    short = _SMALLEST_BLOCKS * block_bytes - parts.free
    if short > 0:
        raise _does_not_fit(model, gpu, engine, (max_num_batched_tokens, max_num_seqs), short)
    blocks = engine.num_gpu_blocks_override or parts.free // block_bytes
    length, notes = _model_len(model, engine, blocks, block_bytes)
    if engine.num_gpu_blocks_override is None:
        notes = (*notes, _reserve_note(parts))
    return KvMemory(
        total_bytes=gpu.memory_bytes,
        utilized_bytes=parts.utilized,
        weight_bytes=parts.weights,
        activation_reserve_bytes=parts.activations,
        non_torch_reserve_bytes=parts.non_torch,
        kv_bytes=blocks * block_bytes,
        kv_block_bytes=block_bytes,
        kv_blocks=blocks,
        max_model_len=length,
        notes=notes,
    )


@dataclass(frozen=True, slots=True)
class _Parts:
    utilized: int
    weights: int
    activations: int
    non_torch: int

    @property
    def free(self) -> int:
        """Bytes left for KV; negative when the model does not fit."""
        return self.utilized - self.weights - self.activations - self.non_torch


def _reserve_note(parts: _Parts) -> str:
    reserve, doubt = bytes_to_gib(parts.activations + parts.non_torch), bytes_to_gib(WORKSPACE_BYTES)
    return (
        f"KV blocks rest on an estimated reserve of {reserve:.2f} GiB a GPU, +- {doubt:.1f}; "
        "engine.num_gpu_blocks_override takes the count of a real server's log"
    )


def _divide(model: ModelSpec, gpu: GpuSpec, engine: Engine, step: tuple[int, int]) -> _Parts:
    gpus = engine.tensor_parallel_size
    return _Parts(
        utilized=ceil(gpu.memory_bytes * memory_utilization(engine)),
        weights=model.weight_bytes(gpus, engine.data_parallel_size),
        activations=activation_bytes(model, *step, tensor_parallel_size=gpus),
        non_torch=NON_TORCH_BYTES if gpus == 1 else NON_TORCH_PARALLEL_BYTES,
    )


def activation_bytes(
    model: ModelSpec, max_num_batched_tokens: int, max_num_seqs: int, *, tensor_parallel_size: int = 1
) -> int:
    """Peak memory of vLLM's dummy step on one GPU: the larger of its widest layer and of its sampling.

    The layer holds `HIDDEN_COPIES` hidden states and its widest intermediate results for all tokens; the
    sampler `SAMPLER_BYTES_PER_LOGIT` for min(sequences, tokens) rows of the whole vocabulary. Either way
    `WORKSPACE_BYTES` come on top.
    """
    widest = max(_layer_width(layer, model.hidden_size, tensor_parallel_size) for layer in set(model.layers))
    forward = (widest + HIDDEN_COPIES * model.hidden_size) * _VALUE_BYTES * max_num_batched_tokens
    rows = min(max_num_seqs, max_num_batched_tokens)
    hidden = model.hidden_size * _VALUE_BYTES * max_num_batched_tokens
    sampling = hidden + rows * model.vocab_size * SAMPLER_BYTES_PER_LOGIT
    return max(forward, sampling) + WORKSPACE_BYTES


def _layer_width(layer: Layer, hidden_size: int, gpus: int) -> int:
    """Values a token and GPU needs inside the attention or MLP of a layer, whichever is wider."""
    attention, mlp = layer.attention, layer.mlp
    values = attention.head_dim * (2 * attention.heads + 2 * attention.kv_heads)
    if attention.kind == "mla":  # queries, keys, values and output, all expanded to full heads
        values = 2 * attention.heads * (attention.head_dim + attention.v_head_dim)
    width = mlp.intermediate_size // gpus
    ups = mlp.matrices - 1
    if not mlp.experts:
        return max(values // gpus, (ups + 1) * width)
    # vLLM's fused experts: one workspace shared by the up projection and the output, one for the activation
    routed = mlp.experts_per_token * (max(ups * width, hidden_size) + width)
    return max(values // gpus, routed)


def _check_heads(model: ModelSpec, gpus: int) -> None:
    if not _splits(model, gpus):
        attention = model.layers[0].attention
        raise InputError(
            f"attention heads ({attention.heads}, {attention.kv_heads} of keys and values) must be divisible "
            f"by tensor parallel size ({gpus})",
            where=model.name,
            expected="engine.tensor_parallel_size of "
            + ", ".join(str(size) for size in range(1, attention.heads + 1) if _splits(model, size)),
        )


def _splits(model: ModelSpec, gpus: int) -> bool:
    """The rule of vLLM: each GPU gets as many heads as the next; KV heads are split or copied evenly."""
    return all(
        layer.attention.heads % gpus == 0
        and (layer.attention.kv_heads % gpus == 0 or gpus % layer.attention.kv_heads == 0)
        for layer in set(model.layers)
    )


def _does_not_fit(
    model: ModelSpec, gpu: GpuSpec, engine: Engine, step: tuple[int, int], short_bytes: int
) -> InputError:
    sizes = [size for size in TENSOR_PARALLEL_SIZES if size > engine.tensor_parallel_size]
    enough = [size for size in sizes if _fits(model, gpu, engine, size, step)]
    return InputError(
        f"{model.name} does not fit on {engine.tensor_parallel_size} x {gpu.name}: weights and reserves need "
        f"{bytes_to_gib(short_bytes):.2f} GiB more a GPU than gpu_memory_utilization "
        f"{memory_utilization(engine)} of {bytes_to_gib(gpu.memory_bytes):.2f} GiB leaves",
        expected=f"engine.tensor_parallel_size {enough[0]}{_more_memory(engine)}"
        if enough
        else "a GPU with more memory, a smaller or quantised model, or a shorter engine.max_model_len: "
        "8 of these do not hold it either",
    )


def _more_memory(engine: Engine) -> str:
    """What to try before more GPUs, if less was given than vLLM takes by itself."""
    usual = memory_utilization(engine.model_copy(update={"gpu_memory_utilization": None}))
    return f", or engine.gpu_memory_utilization {usual}" if memory_utilization(engine) < usual else ""


def _fits(model: ModelSpec, gpu: GpuSpec, engine: Engine, gpus: int, step: tuple[int, int]) -> bool:
    """Whether the model and one request of the length asked for fit on this many GPUs."""
    if not _splits(model, gpus):
        return False
    resized = engine.model_copy(update={"tensor_parallel_size": gpus})
    block_bytes = engine.block_size * model.kv_bytes_per_token(engine.kv_cache_dtype, gpus)
    length = 1 if engine.max_model_len == "auto" else engine.max_model_len or model.max_model_len
    return _divide(model, gpu, resized, step).free >= (1 + ceil(length / engine.block_size)) * block_bytes


def _model_len(
    model: ModelSpec, engine: Engine, blocks: int, block_bytes: int
) -> tuple[int, tuple[str, ...]]:
    """The longest request, and what the reader should know of it."""
    fitting = (blocks - 1) * engine.block_size  # all but the null block
    if engine.max_model_len == "auto":
        length = min(model.max_model_len, fitting)
        cut = (f"max_model_len auto: {length} of the model's {model.max_model_len} tokens fit in KV memory",)
        return length, cut if length < model.max_model_len else ()
    length = engine.max_model_len or model.max_model_len
    if length > model.max_model_len:
        raise InputError(
            f"engine.max_model_len: {length} is greater than the {model.max_model_len} tokens "
            f"of {model.name}",
            expected=f"at most {model.max_model_len}",
        )
    if engine.num_gpu_blocks_override is None and length > fitting:
        needed = ceil(length / engine.block_size) * block_bytes
        raise InputError(
            f"one request of max_model_len {length} tokens needs {bytes_to_gib(needed):.2f} GiB of KV cache, "
            f"and {bytes_to_gib((blocks - 1) * block_bytes):.2f} GiB are available",
            where=model.name,
            expected=f"engine.max_model_len of at most {fitting} (or auto), more "
            "engine.gpu_memory_utilization or a larger engine.tensor_parallel_size",
        )
    return length, ()
