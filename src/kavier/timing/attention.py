"""Attention over the KV cache: prefill chunks, decodes, and both in one batch."""

from __future__ import annotations

from dataclasses import dataclass

from kavier.ecosystem.gpu import GpuSpec
from kavier.ecosystem.model import Attention
from kavier.scenario import Engine
from kavier.timing.gemm import ACTIVATION_BYTES, gemm_roof
from kavier.timing.parameters import Parameters
from kavier.timing.step import StepWork

BLOCK_ROWS = 128
"""Rows of queries that a thread block of FlashAttention-2 serves: grid = rows * ceil(max_q / 128) * heads."""


@dataclass(frozen=True, slots=True)
class AttentionWork:
    """What one layer of attention computes and reads on ONE GPU.

    Attributes:
        kv_bytes: KV-cache bytes of one token.
        decode_flops: FLOPs of a decode per context token.
        pair_flops: FLOPs of a prefill per (query, key) pair.
        expand_flops: FLOPs of a prefill per cached context token (MLA expands latents to keys and values).
        query_bytes: Bytes of a prefill token's queries and of the attention's output.
        heads: Query heads.
        kv_heads: KV heads, each with a thread block of its own for every decode; one for MLA's latents.
    """

    kv_bytes: int
    decode_flops: float
    pair_flops: float
    expand_flops: float
    query_bytes: int
    heads: int
    kv_heads: int


def attention_work(attention: Attention, engine: Engine) -> AttentionWork:
    """Work of one layer, query heads split by tensor parallelism.

    KV heads are replicated when there are fewer than GPUs; MLA's latents are on every GPU. MLA decodes in
    latent space (weights absorbed), prefill expands keys and values.
    """
    tp, value_bytes = engine.tensor_parallel_size, 1 if engine.kv_cache_dtype == "fp8" else ACTIVATION_BYTES
    heads = -(-attention.heads // tp)
    kv_bytes = attention.kv_values_per_token(tp) * value_bytes
    if attention.kind == "mla":
        latent, rope = attention.kv_lora_rank, attention.qk_rope_head_dim
        expanded = attention.qk_nope_head_dim + attention.v_head_dim
        latent_query = attention.qk_nope_head_dim + rope
        return AttentionWork(
            kv_bytes=kv_bytes,
            decode_flops=2.0 * heads * (2 * latent + rope),
            pair_flops=2.0 * heads * (expanded + rope),
            expand_flops=2.0 * heads * latent * expanded,
            query_bytes=heads * (latent_query + attention.v_head_dim) * ACTIVATION_BYTES,
            heads=heads,
            kv_heads=1,
        )
    flops = 4.0 * heads * attention.head_dim
    return AttentionWork(
        kv_bytes=kv_bytes,
        decode_flops=flops,
        pair_flops=flops,
        expand_flops=0.0,
        query_bytes=2 * heads * attention.head_dim * ACTIVATION_BYTES,
        heads=heads,
        kv_heads=-(-attention.kv_heads // tp),
    )


@dataclass(frozen=True, slots=True)
class AttentionLayers:
    """`layers` equal attention layers on one GPU; the times are of ONE layer.

    A decode costs a part of its own, then its KV read or its FLOPs; a prefill its pairs, its own rows and
    the keys and values of its context. Under FlashAttention-2 decodes lose the packed-group path once a
    prefill is in the batch (`mixed_decode_s`), and the kernel launches empty blocks for them, as many as the
    longest chunk has (`empty_block_s` per decode and prefill token: as if all prefill were one chunk). With a
    window they have no such path either (`seqlenq_ngroups_swapped` in its flash_api.cpp).
    """

    layers: int
    window: int | None
    work: AttentionWork
    decode_launch_s: float
    prefill_launch_s: float
    sequence_s: float
    decode_s: float
    mixed_decode_s: float
    empty_block_s: float
    pair_s: float
    token_s: float
    expand_s: float
    read_s: float

    def cost(self, step: StepWork) -> tuple[float, float, float]:
        """(seconds, FLOPs, KV bytes read) of all `layers`."""
        tokens, decodes = step.prefill_tokens, step.decodes
        read, pairs, context = self._within_window(step)
        time_s = 0.0
        if decodes:
            rows_s = decodes * self.sequence_s
            time_s = self.decode_launch_s + rows_s + read * self.decode_s
            if tokens:
                mixed_s = self.prefill_launch_s + rows_s + read * self.mixed_decode_s
                time_s = (mixed_s if mixed_s > time_s else time_s) + decodes * tokens * self.empty_block_s
        elif tokens:
            time_s = self.prefill_launch_s
        if tokens:
            time_s += pairs * self.pair_s + tokens * self.token_s
            time_s += (context - tokens) * self.expand_s + context * self.read_s
        work = self.work
        flops = read * work.decode_flops + pairs * work.pair_flops + (context - tokens) * work.expand_flops
        return self.layers * time_s, self.layers * flops, self.layers * (read + context) * work.kv_bytes

    def unit_costs(self, step: StepWork, *, byte_s: float, flop_s: float) -> tuple[float, ...]:
        """The last four of `UnitCosts`: a window's part goes to requests in proportion to their contexts."""
        read, pairs, context = self._within_window(step)
        work, tokens = self.work, step.prefill_tokens
        costs_s = (
            (read * (work.kv_bytes * byte_s + work.decode_flops * flop_s), step.decode_context_tokens),
            (pairs * work.pair_flops * flop_s, step.prefill_pairs),
            (context * work.kv_bytes * byte_s, step.prefill_context_tokens),
            ((context - tokens) * work.expand_flops * flop_s, step.prefill_context_tokens - tokens),
        )
        return tuple(self.layers * cost_s / count if count else 0.0 for cost_s, count in costs_s)

    def _within_window(self, step: StepWork) -> tuple[int, int, int]:
        """KV entries read by decodes; pairs and context tokens of prefills.

        Only sums of the batch are known, and the least of sums is no less than the sum of the least: exact if
        all requests are inside or all beyond the window, above the truth otherwise.
        """
        read, pairs, context = step.decode_context_tokens, step.prefill_pairs, step.prefill_context_tokens
        if self.window is None:
            return read, pairs, context
        tokens, window = step.prefill_tokens, self.window
        beyond = tokens + step.prefills * (window - 1)
        return min(read, step.decodes * window), min(pairs, tokens * window), min(context, beyond)


def has_flash_kernel(attention: Attention) -> bool:
    """Whether FlashAttention-2 serves it, where that is the GPU's kernel.

    It takes no sinks (vLLM issue 22331: TRITON_ATTN does), and MLA has kernels of its own.
    """
    return attention.kind != "mla" and not attention.sinks


def attention_layers(
    gpu: GpuSpec, parameters: Parameters, attention: Attention, engine: Engine, layers: int
) -> AttentionLayers:
    """Price `layers` layers of this attention on this GPU."""
    work = attention_work(attention, engine)
    decode, prefill, mixed = (parameters.of(f"attention.{part}") for part in ("decode", "prefill", "mixed"))
    bandwidth = gpu.bandwidth_bytes_per_s
    flops_per_s = gpu.flops_per_s["bf16"] * prefill["compute_efficiency"]
    pair_s = work.pair_flops / flops_per_s
    decode_bytes_per_s = bandwidth * decode["memory_efficiency"]
    decode_s = max(work.kv_bytes / decode_bytes_per_s, work.decode_flops / flops_per_s)
    # One query row is computed like a block of them; without the kernel's block, as it is alone.
    mixed_rows = mixed["mixed_rows"] if has_flash_kernel(attention) else 0.0
    mixed_decode_s = max(decode_s, mixed_rows * pair_s)
    unpacked = attention.window is not None and mixed_rows > 0
    return AttentionLayers(
        layers=layers,
        window=attention.window,
        work=work,
        decode_launch_s=(prefill if unpacked else decode)["launch_s"],
        prefill_launch_s=prefill["launch_s"],
        sequence_s=work.kv_heads * decode["sequence_head_s"],
        decode_s=mixed_decode_s if unpacked else decode_s,
        mixed_decode_s=mixed_decode_s,
        empty_block_s=mixed["empty_block_s"] * work.heads / BLOCK_ROWS if mixed_rows else 0.0,
        pair_s=pair_s,
        token_s=work.query_bytes / (bandwidth * prefill["query_efficiency"]),
        expand_s=work.expand_flops / gemm_roof(gpu, parameters, "bf16").flops_per_s,
        read_s=work.kv_bytes / (bandwidth * prefill["context_efficiency"]),
    )
