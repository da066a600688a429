"""A model as a list of layers: enough to count parameters, KV bytes, FLOPs and bytes read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Literal

KvCacheDtype = Literal["auto", "fp8"]
Role = Literal["embedding", "head", "attention", "mlp", "expert", "router", "norm", "bias"]
Shard = Literal["tp", "kv", "none"]

_PLAIN_BYTES = 2  # embeddings, norms and every other unquantised tensor: bfloat16 or float16
QUANTIZABLE: frozenset[Role] = frozenset({"attention", "mlp", "expert"})


@dataclass(frozen=True, slots=True)
class Weight:
    """`copies` matrices of rows (outputs) x columns (inputs); a vector has one column.

    Attributes:
        role: What it is for; attention, mlp and expert matrices are the ones a quantised model quantises.
        shard: How tensor parallelism splits it: over all GPUs ("tp"), by KV heads, copied when there are
            more GPUs than those ("kv"), or a whole copy on each ("none").
        active: Copies one token uses; less than `copies` for routed experts only.
    """

    role: Role
    rows: int
    columns: int = 1
    copies: int = 1
    active: int | None = None
    shard: Shard = "tp"

    def parameters(self, *, active: bool = False) -> int:
        """All parameters, or those that one token uses."""
        copies = self.active if active and self.active is not None else self.copies
        return copies * self.rows * self.columns


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention block.

    kind "gqa" covers MHA, GQA and MQA (K and V of `kv_heads` x `head_dim` are cached);
    kind "mla" is DeepSeek's latent attention (kv_lora_rank + qk_rope_head_dim values are cached).
    window: sliding window in tokens, None for full attention.
    qk_norm: queries and keys are normalised per head, or with `qk_norm_full` over all heads at once.
    """

    kind: Literal["gqa", "mla"]
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    sinks: bool = False
    q_lora_rank: int | None = None
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    qk_norm_full: bool = False

    def weights(self, hidden_size: int) -> Iterator[Weight]:
        """Every tensor of the block."""
        yield from self._mla(hidden_size) if self.kind == "mla" else self._gqa(hidden_size)

    def _gqa(self, hidden: int) -> Iterator[Weight]:
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield Weight("attention", q, hidden)
        yield Weight("attention", kv, hidden, copies=2, shard="kv")
        yield Weight("attention", hidden, q)
        if self.qkv_bias:
            yield Weight("bias", q)
            yield Weight("bias", kv, copies=2, shard="kv")
        if self.output_bias:
            yield Weight("bias", hidden, shard="none")
        if self.qk_norm:
            yield Weight("norm", q + kv if self.qk_norm_full else 2 * self.head_dim, shard="none")
        if self.sinks:
            yield Weight("bias", self.heads)

    def _mla(self, hidden: int) -> Iterator[Weight]:
        q = self.heads * (self.qk_nope_head_dim + self.qk_rope_head_dim)
        if self.q_lora_rank:
            yield Weight("attention", self.q_lora_rank, hidden, shard="none")
            yield Weight("norm", self.q_lora_rank, shard="none")
        yield Weight("attention", q, self.q_lora_rank or hidden)
        yield Weight("attention", self.kv_lora_rank + self.qk_rope_head_dim, hidden, shard="none")
        yield Weight("norm", self.kv_lora_rank, shard="none")
        yield Weight("attention", self.heads * (self.qk_nope_head_dim + self.v_head_dim), self.kv_lora_rank)
        yield Weight("attention", hidden, self.heads * self.v_head_dim)

    def kv_values_per_token(self, tensor_parallel_size: int = 1) -> int:
        """Cached values a token and GPU: latents are copied to every GPU, KV heads once there are too few."""
        if self.kind == "mla":
            return self.kv_lora_rank + self.qk_rope_head_dim
        return 2 * ceil(self.kv_heads / tensor_parallel_size) * self.head_dim


@dataclass(frozen=True, slots=True)
class Mlp:
    """One MLP block: dense (experts == 0) or a mixture of `experts`, `experts_per_token` active.

    `matrices` is 3 for gated (SwiGLU) and 2 for plain MLPs. shared_intermediate_size: total width of
    always-active shared experts. router_bias: one more value an expert (a bias, or DeepSeek's e_score
    correction).
    """

    intermediate_size: int
    matrices: Literal[2, 3] = 3
    experts: int = 0
    experts_per_token: int = 0
    shared_intermediate_size: int = 0
    bias: bool = False
    router_bias: bool = False

    def weights(self, hidden_size: int) -> Iterator[Weight]:
        """Every tensor of the block."""
        if not self.experts:
            yield from self._block("mlp", self.intermediate_size, hidden_size, 1, 1)
            return
        yield Weight("router", self.experts, hidden_size, shard="none")
        if self.router_bias:
            yield Weight("bias", self.experts, shard="none")
        yield from self._block(
            "expert", self.intermediate_size, hidden_size, self.experts, self.experts_per_token
        )
        if self.shared_intermediate_size:
            yield from self._block("mlp", self.shared_intermediate_size, hidden_size, 1, 1)

    def _block(self, role: Role, width: int, hidden: int, copies: int, active: int) -> Iterator[Weight]:
        ups = self.matrices - 1
        yield Weight(role, width, hidden, copies=ups * copies, active=ups * active)
        yield Weight(role, hidden, width, copies=copies, active=active)
        if self.bias:
            yield Weight("bias", width, copies=ups * copies, active=ups * active)
            yield Weight("bias", hidden, copies=copies, active=active, shard="none")


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer layer."""

    attention: Attention
    mlp: Mlp


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder-only model.

    Attributes:
        name: Hugging Face name or path of the config.
        architecture: `model_type` of its config.json.
        layers: One entry a layer, in order.
        max_model_len: Longest context the model was made for, in tokens.
        weight_dtype: What most weights are stored in: "bf16", "fp8", "w8a16" (fp8 weights, multiplied
            in 16 bits), "mxfp4", "int4".
        quantized_roles: Roles of the matrices in `weight_dtype`; the rest is bf16 (gpt-oss: all but experts).
        quant_group_size: fp8, w8a16: side of a scaled block, 0 for one scale a tensor or row (not counted);
            int4 and mxfp4: weights that share a scale, 0 for a whole row.
        quant_zero_points: int4 groups also store a 4-bit zero point.
        norms_per_layer: Layer norms besides those of queries and keys.
        norm_bias: Norms have a bias too (LayerNorm).
        head_bias: The output head has a bias.
        top_k_top_p: Its generation_config asks for top-k or top-p, which vLLM does unless told not to.
        notes: What the config says that is not modelled, in words for the reader of a result.
    """

    name: str
    architecture: str
    hidden_size: int
    vocab_size: int
    layers: tuple[Layer, ...]
    tie_word_embeddings: bool
    max_model_len: int
    weight_dtype: str = "bf16"
    quantized_roles: frozenset[Role] = QUANTIZABLE
    quant_group_size: int = 0
    quant_zero_points: bool = False
    norms_per_layer: int = 2
    norm_bias: bool = False
    head_bias: bool = False
    top_k_top_p: bool = False
    notes: tuple[str, ...] = ()

    def weights(self) -> Iterator[Weight]:
        """Every tensor of the served model; a matrix that serves twice (tied embeddings) once."""
        yield Weight("embedding", self.vocab_size, self.hidden_size)
        if not self.tie_word_embeddings:
            yield Weight("head", self.vocab_size, self.hidden_size)
        if self.head_bias:
            yield Weight("bias", self.vocab_size)
        norms = 1 + self.norms_per_layer * len(self.layers)
        yield Weight("norm", self.hidden_size, copies=norms * (2 if self.norm_bias else 1), shard="none")
        for layer in self.layers:
            yield from layer.attention.weights(self.hidden_size)
            yield from layer.mlp.weights(self.hidden_size)

    def parameters(self) -> int:
        """Parameters of the served model, exactly; quantisation scales are not parameters."""
        return sum(weight.parameters() for weight in self.weights())

    def active_parameters(self) -> int:
        """Parameters one token uses: all but the routed experts it is not sent to (embeddings included)."""
        return sum(weight.parameters(active=True) for weight in self.weights())

    def kv_bytes_per_token(self, kv_cache_dtype: KvCacheDtype = "auto", tensor_parallel_size: int = 1) -> int:
        """Bytes one token holds in the KV cache of ONE GPU, over all layers.

        "auto" is the model's 16-bit type. Sliding-window layers count like full ones: one token, one entry.
        """
        value_bytes = 1 if kv_cache_dtype == "fp8" else _PLAIN_BYTES
        counts = Counter(layer.attention for layer in self.layers)
        return value_bytes * sum(
            count * attention.kv_values_per_token(tensor_parallel_size) for attention, count in counts.items()
        )

    def weight_bytes(self, tensor_parallel_size: int = 1, data_parallel_size: int = 1) -> int:
        """Bytes of the weights on ONE GPU, quantisation scales and zero points included.

        Engines that share their experts (`data_parallel_size` of them) hold a part of the routed ones each.
        """
        return sum(
            ceil(
                self.bytes_of(weight)
                / self._split(weight, tensor_parallel_size)
                / (data_parallel_size if weight.role == "expert" else 1)
            )
            for weight in self.weights()
        )

    @property
    def num_experts(self) -> int:
        """Routed experts of the layer that has most; 0 for a dense model."""
        return max(layer.mlp.experts for layer in self.layers)

    def is_quantized(self, weight: Weight) -> bool:
        """Whether a tensor is stored in `weight_dtype` rather than in 16 bits."""
        return self.weight_dtype != "bf16" and weight.role in self.quantized_roles

    def bytes_of(self, weight: Weight) -> int:
        """Stored bytes of a tensor with its scales, before tensor parallelism splits it."""
        if not self.is_quantized(weight):
            return _PLAIN_BYTES * weight.parameters()
        group = self.quant_group_size
        if self.weight_dtype in ("fp8", "w8a16"):
            blocks = ceil(weight.rows / group) * ceil(weight.columns / group) if group else 0
            return weight.parameters() + 4 * blocks * weight.copies  # one float32 a block
        groups = weight.copies * weight.rows * ceil(weight.columns / (group or weight.columns))
        if self.weight_dtype == "mxfp4":
            return ceil(weight.parameters() / 2) + groups  # one 8-bit exponent a group: 4.25 bits a weight
        zero_points = ceil(groups / 2) if self.quant_zero_points else 0
        return ceil(weight.parameters() / 2) + _PLAIN_BYTES * groups + zero_points

    def _split(self, weight: Weight, tensor_parallel_size: int) -> int:
        if weight.shard == "kv":
            kv_heads = min(layer.attention.kv_heads for layer in self.layers)
            return min(tensor_parallel_size, kv_heads)
        return tensor_parallel_size if weight.shard == "tp" else 1
