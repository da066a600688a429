"""What depends on a step's tokens or sampled rows alone: matrices, small kernels, the head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kavier.ecosystem.gpu import GpuSpec
from kavier.ecosystem.model import Attention, Layer, Mlp, ModelSpec, Role, Weight
from kavier.timing.collectives import all_gather
from kavier.timing.constants import CONSTANTS
from kavier.timing.gemm import ACTIVATION_BYTES, Gemm, Numbers, TokenOp, gemm_roof
from kavier.timing.moe import GroupedGemm


@dataclass(frozen=True, slots=True)
class Small:
    """Kernels that move activations: a fixed time, then bytes at full bandwidth (they mostly hit the L2)."""

    fixed_s: float
    bytes_per_token: float
    bytes_per_s: float

    @property
    def flops_per_token(self) -> float:
        """None that count."""
        return 0.0

    def time_s(self, tokens: Numbers) -> Numbers:
        """Launches, then bytes."""
        return self.fixed_s + tokens * self.bytes_per_token / self.bytes_per_s

    def memory_bytes(self, tokens: Numbers) -> Numbers:
        """Activations read and written."""
        return tokens * self.bytes_per_token


@dataclass(frozen=True, slots=True)
class Rank:
    """One GPU of a tensor-parallel group of `degree`, and the model it holds a part of."""

    model: ModelSpec
    gpu: GpuSpec
    degree: int

    def split(self, size: int) -> int:
        """This GPU's part of a width, rounded up."""
        return -(-size // self.degree)

    def gemm(self, role: Role, n: int, k: int) -> Gemm:
        """A weight of n outputs and k inputs (this GPU's part) in the dtype its role is stored in."""
        weight = Weight(role, n, k)
        dtype = self.model.weight_dtype if self.model.is_quantized(weight) else "bf16"
        return Gemm(n, k, self.model.bytes_of(weight), gemm_roof(self.gpu, dtype))


def layer_ops(rank: Rank, layer: Layer) -> list[TokenOp]:
    """Everything of one layer but attention over the KV cache and all-reduces."""
    return [*_attention_gemms(rank, layer.attention), *_mlp_ops(rank, layer.mlp), _small_ops(rank, layer)]


def head_ops(rank: Rank) -> list[TokenOp]:
    """Logits and sampling (greedy or plain random), per sampled row.

    Under tensor parallelism each GPU computes a part of the vocabulary; vLLM 0.33 gathers the logits on
    every GPU (LogitsProcessor: all-gather, its default), and each samples all rows.
    """
    vocab, part = rank.model.vocab_size, rank.split(rank.model.vocab_size)
    sampler = Small(
        fixed_s=CONSTANTS["sampler.launch_s"],
        bytes_per_token=vocab * CONSTANTS["sampler.bytes_per_logit"],
        bytes_per_s=rank.gpu.bandwidth_bytes_per_s * CONSTANTS["sampler.memory_efficiency"],
    )
    logits = rank.gemm("head", part, rank.model.hidden_size)
    if rank.degree == 1:
        return [logits, sampler]
    return [logits, all_gather(rank.gpu, rank.degree, part), sampler]


def _attention_gemms(rank: Rank, attention: Attention) -> list[Gemm]:
    if attention.kind == "mla":
        return _mla_gemms(rank, attention)
    hidden, width = rank.model.hidden_size, rank.split(attention.heads) * attention.head_dim
    kv_width = rank.split(attention.kv_heads) * attention.head_dim
    return [
        rank.gemm("attention", width + 2 * kv_width, hidden),
        rank.gemm("attention", hidden, width),
    ]


def _mla_gemms(rank: Rank, attention: Attention) -> list[Gemm]:
    """Down-projections are on every GPU, up-projections are split by heads.

    Expanding the latent (prefill) and the absorbed form (decode) have the same weights and FLOPs per token.
    """
    hidden, heads = rank.model.hidden_size, rank.split(attention.heads)
    latent, query_rank = attention.kv_lora_rank, attention.q_lora_rank
    nope, rope, value = attention.qk_nope_head_dim, attention.qk_rope_head_dim, attention.v_head_dim
    return [
        rank.gemm("attention", (query_rank or 0) + latent + rope, hidden),
        rank.gemm("attention", heads * (nope + rope), query_rank or hidden),
        rank.gemm("attention", heads * (nope + value), latent),
        rank.gemm("attention", hidden, heads * value),
    ]


def _mlp_ops(rank: Rank, mlp: Mlp) -> Iterator[TokenOp]:
    if not mlp.experts:
        yield from _mlp_gemms(rank, mlp, "mlp", mlp.intermediate_size)
        return
    yield rank.gemm("router", mlp.experts, rank.model.hidden_size)
    for expert in _mlp_gemms(rank, mlp, "expert", mlp.intermediate_size):
        yield GroupedGemm(expert, mlp.experts, mlp.experts_per_token)
    if mlp.shared_intermediate_size:
        yield from _mlp_gemms(rank, mlp, "mlp", mlp.shared_intermediate_size)


def _mlp_gemms(rank: Rank, mlp: Mlp, role: Role, width: int) -> list[Gemm]:
    """Gate and up in one, then down."""
    hidden, part = rank.model.hidden_size, rank.split(width)
    return [rank.gemm(role, (mlp.matrices - 1) * part, hidden), rank.gemm(role, hidden, part)]


def _small_ops(rank: Rank, layer: Layer) -> Small:
    """Two norms, rope, activation and KV write; for experts routing and the weighted sum as well."""
    attention, mlp = layer.attention, layer.mlp
    heads = rank.split(attention.heads) + rank.split(attention.kv_heads)
    head_dim = attention.head_dim or attention.qk_nope_head_dim + attention.qk_rope_head_dim
    width = (
        mlp.intermediate_size * (mlp.experts_per_token if mlp.experts else 1) + mlp.shared_intermediate_size
    )
    kernels = CONSTANTS["small.kernels"] + (CONSTANTS["small.moe_kernels"] if mlp.experts else 0.0)
    rope = 2 * heads * head_dim / CONSTANTS["small.rope_divisor"]
    values = 4 * rank.model.hidden_size + rope + mlp.matrices * rank.split(width)
    return Small(
        fixed_s=kernels * CONSTANTS["small.launch_s"],
        bytes_per_token=values * ACTIVATION_BYTES,
        bytes_per_s=rank.gpu.bandwidth_bytes_per_s,
    )
