"""What depends on a step's tokens or sampled rows alone: matrices, small kernels, the head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kavier.ecosystem.gpu import GpuSpec
from kavier.ecosystem.model import Attention, Layer, Mlp, ModelSpec, Role, Weight
from kavier.scenario import Engine
from kavier.timing.collectives import all_gather
from kavier.timing.gemm import ACTIVATION_BYTES, Gemm, Numbers, TokenOp, gemm_kind, gemm_roof
from kavier.timing.moe import Experts, expert_form, expert_kind
from kavier.timing.parameters import Parameters


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
    """One GPU of an engine, and the model it holds a part of.

    Attributes:
        degree: GPUs of the tensor-parallel group.
        spread: GPUs that hold whole experts, all together every one; 1 = experts are split like all else.
        peers: Engines that share these experts (data-parallel attention).
        skew: Power law of how often experts are chosen; 0 = all alike.
    """

    model: ModelSpec
    gpu: GpuSpec
    parameters: Parameters
    degree: int
    spread: int = 1
    peers: int = 1
    skew: float = 0.0

    @classmethod
    def of(cls, model: ModelSpec, gpu: GpuSpec, parameters: Parameters, engine: Engine) -> Rank:
        """The GPU of an engine with these settings."""
        degree, peers = engine.tensor_parallel_size, engine.data_parallel_size
        spread = degree * peers if engine.enable_expert_parallel else 1
        return cls(model, gpu, parameters, degree, spread, peers, engine.expert_skew)

    def split(self, size: int) -> int:
        """This GPU's part of a width, rounded up."""
        return -(-size // self.degree)

    def gemm(self, role: Role, n: int, k: int) -> Gemm:
        """A weight of n outputs and k inputs (this GPU's part) in the dtype its role is stored in."""
        weight = Weight(role, n, k)
        kind = gemm_kind(self.gpu, *self._stored(weight))
        return Gemm(n, k, self.model.bytes_of(weight), gemm_roof(self.gpu, self.parameters, kind))

    def experts(self, mlp: Mlp) -> Experts:
        """The routed experts of a layer."""
        model, parts = self.model, self.degree * self.peers
        width = mlp.intermediate_size if self.spread > 1 else -(-mlp.intermediate_size // parts)
        weight = Weight("expert", width, model.hidden_size, copies=mlp.matrices)
        kind = expert_kind(self.gpu, *self._stored(weight))
        return Experts(
            form=expert_form(self.gpu, self.parameters, kind),
            hidden=model.hidden_size,
            width=width,
            matrices=mlp.matrices,
            expert_bytes=model.bytes_of(weight),
            experts=mlp.experts,
            per_token=mlp.experts_per_token,
            spread=self.spread,
            peers=self.peers,
            skew=self.skew,
        )

    def _stored(self, weight: Weight) -> tuple[str, int]:
        """(dtype, side of its scaled blocks) of a weight."""
        return (self.model.weight_dtype if self.model.is_quantized(weight) else "bf16",
                self.model.quant_group_size)  # fmt: skip


def layer_ops(rank: Rank, layer: Layer) -> list[TokenOp]:
    """Everything of one layer but attention over the KV cache and all-reduces."""
    return [*_attention_gemms(rank, layer.attention), *_mlp_ops(rank, layer.mlp), _small_ops(rank, layer)]


def head_ops(rank: Rank, sampler: str) -> list[TokenOp]:
    """Logits and sampling, per sampled row.

    Under tensor parallelism each GPU computes a part of the vocabulary; vLLM 0.33 gathers the logits on
    every GPU (LogitsProcessor: all-gather, its default), and each samples all rows.

    Args:
        rank: One GPU of the engine.
        sampler: "plain" (greedy or random), "sort" (top-k and top-p by sorting) or "select" (without).
    """
    part = rank.split(rank.model.vocab_size)
    logits = rank.gemm("head", part, rank.model.hidden_size)
    ops: list[TokenOp] = [logits, _sampling(rank, "plain")]
    if sampler != "plain":
        ops.append(_sampling(rank, sampler))
    if rank.degree > 1:
        ops.append(all_gather(rank.gpu, rank.parameters, rank.degree, part))
    return ops


def _sampling(rank: Rank, sampler: str) -> Small:
    p = rank.parameters.of(f"sampler.{sampler}")
    return Small(
        fixed_s=p["launch_s"],
        bytes_per_token=rank.model.vocab_size * p["bytes_per_logit"],
        bytes_per_s=rank.gpu.bandwidth_bytes_per_s,
    )


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
        yield from _mlp_gemms(rank, mlp, mlp.intermediate_size)
        return
    yield rank.gemm("router", mlp.experts, rank.model.hidden_size)
    yield rank.experts(mlp)
    if rank.peers > 1:
        # Every engine sends its tokens to all experts, and gets their sums back. Its GPUs send a part each:
        # vLLM's `use_sequence_parallel_moe`; without expert parallelism the same bytes cross.
        part = -(-rank.model.hidden_size // rank.degree)
        exchange = all_gather(rank.gpu, rank.parameters, rank.degree * rank.peers, part)
        yield from (exchange, exchange)
    if mlp.shared_intermediate_size:
        yield from _mlp_gemms(rank, mlp, mlp.shared_intermediate_size)


def _mlp_gemms(rank: Rank, mlp: Mlp, width: int) -> list[Gemm]:
    """Gate and up in one, then down."""
    hidden, part = rank.model.hidden_size, rank.split(width)
    return [rank.gemm("mlp", (mlp.matrices - 1) * part, hidden), rank.gemm("mlp", hidden, part)]


def _small_ops(rank: Rank, layer: Layer) -> Small:
    """Two norms, rope, activation and KV write; the activation of experts is part of their kernels."""
    attention, mlp, p = layer.attention, layer.mlp, rank.parameters.of("small")
    heads = rank.split(attention.heads) + rank.split(attention.kv_heads)
    head_dim = attention.head_dim or attention.qk_nope_head_dim + attention.qk_rope_head_dim
    width = mlp.shared_intermediate_size if mlp.experts else mlp.intermediate_size
    rope = 2 * heads * head_dim / p["rope_divisor"]
    values = 4 * rank.model.hidden_size + rope + mlp.matrices * rank.split(width)
    return Small(
        fixed_s=p["kernels"] * p["launch_s"],
        bytes_per_token=values * ACTIVATION_BYTES,
        bytes_per_s=rank.gpu.bandwidth_bytes_per_s,
    )
