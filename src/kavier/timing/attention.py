"""Attention over the KV cache: prefill chunks, decodes, and both in one batch."""

from __future__ import annotations

from dataclasses import dataclass

from kavier.ecosystem.gpu import GpuSpec
from kavier.ecosystem.model import Attention
from kavier.scenario import Engine
from kavier.timing.constants import CONSTANTS
from kavier.timing.gemm import ACTIVATION_BYTES, gemm_roof, is_datacenter_blackwell, memory_class
from kavier.timing.step import StepWork


@dataclass(frozen=True, slots=True)
class AttentionWork:
    """What one layer of attention computes and reads on ONE GPU.

    Attributes:
        kv_bytes: KV-cache bytes of one token.
        decode_flops: FLOPs of a decode per context token.
        pair_flops: FLOPs of a prefill per (query, key) pair.
        expand_flops: FLOPs of a prefill per cached context token (MLA expands latents to keys and values).
        heads: Query heads.
        group: Query heads that share a KV head.
    """

    kv_bytes: int
    decode_flops: float
    pair_flops: float
    expand_flops: float
    heads: int
    group: float


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
        return AttentionWork(
            kv_bytes=kv_bytes,
            decode_flops=2.0 * heads * (2 * latent + rope),
            pair_flops=2.0 * heads * (expanded + rope),
            expand_flops=2.0 * heads * latent * expanded,
            heads=heads,
            group=1.0,
        )
    flops = 4.0 * heads * attention.head_dim
    group = heads / -(-attention.kv_heads // tp)
    return AttentionWork(kv_bytes, flops, flops, expand_flops=0.0, heads=heads, group=group)


@dataclass(frozen=True, slots=True)
class AttentionLayers:
    """`layers` equal attention layers on one GPU; the times are of ONE layer.

    A decode token costs the larger of its KV read and its FLOPs; a prefill the larger of both sums.
    Under FlashAttention-2 decodes lose the packed-group path once a prefill is in the batch (`mixed`)
    and the kernel launches empty blocks for them (`empty_block_s` per decode and prefill token).
    """

    layers: int
    window: int | None
    work: AttentionWork
    decode_launch_s: float
    prefill_launch_s: float
    decode_s: float
    mixed: float
    empty_block_s: float
    pair_s: float
    expand_s: float
    read_s: float

    def cost(self, step: StepWork) -> tuple[float, float, float]:
        """(seconds, FLOPs, KV bytes read) of all `layers`."""
        tokens, decodes = step.prefill_tokens, step.decodes
        read, pairs, context = self._within_window(step)
        time_s = 0.0
        if decodes:
            time_s = self.decode_launch_s + read * self.decode_s * (self.mixed if tokens else 1.0)
        elif tokens:
            time_s = self.prefill_launch_s
        if tokens:
            compute_s = pairs * self.pair_s + (context - tokens) * self.expand_s
            read_s = context * self.read_s
            time_s += (compute_s if compute_s > read_s else read_s) + decodes * tokens * self.empty_block_s
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


def attention_layers(gpu: GpuSpec, attention: Attention, engine: Engine, layers: int) -> AttentionLayers:
    """Price `layers` layers of this attention on this GPU."""
    work = attention_work(attention, engine)
    kernel = "flash3" if has_flash3(gpu) else "flash2"
    flops_per_s = gpu.flops_per_s["bf16"] * CONSTANTS["attention.compute_efficiency"]
    bandwidth = gpu.bandwidth_bytes_per_s
    decode_bytes_per_s = bandwidth * CONSTANTS[f"memory.{memory_class(gpu)}.attention_efficiency"]
    flash2 = has_mixed_penalty(gpu)
    per_member = CONSTANTS["attention.flash2.mixed_per_extra_group_member"] if flash2 else 0.0
    block_s = CONSTANTS["attention.flash2.empty_block_s"] if flash2 else 0.0
    return AttentionLayers(
        layers=layers,
        window=attention.window,
        work=work,
        decode_launch_s=CONSTANTS[f"attention.{kernel}.launch_s"],
        prefill_launch_s=CONSTANTS["attention.prefill_launch_s"],
        decode_s=max(work.kv_bytes / decode_bytes_per_s, work.decode_flops / flops_per_s),
        mixed=1.0 + per_member * (work.group - 1.0),
        empty_block_s=block_s * work.heads / CONSTANTS["attention.block_rows"],
        pair_s=work.pair_flops / flops_per_s,
        expand_s=work.expand_flops / gemm_roof(gpu, "bf16").flops_per_s,
        read_s=work.kv_bytes / (bandwidth * CONSTANTS["attention.prefill_memory_efficiency"]),
    )


def has_flash3(gpu: GpuSpec) -> bool:
    """FlashAttention-3 or its like: Hopper and datacenter Blackwell."""
    return gpu.architecture == "hopper" or is_datacenter_blackwell(gpu)


def has_mixed_penalty(gpu: GpuSpec) -> bool:
    """FlashAttention-2, whose mixed batches cost more; nothing was measured on other vendors."""
    return gpu.vendor == "nvidia" and not has_flash3(gpu)
