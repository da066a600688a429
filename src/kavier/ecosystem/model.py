"""A model as a list of layers: enough to count parameters, KV bytes, FLOPs and bytes read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

KvCacheDtype = Literal["auto", "fp8"]


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention block.

    kind "gqa" covers MHA, GQA and MQA (K and V of `kv_heads` x `head_dim` are cached);
    kind "mla" is DeepSeek's latent attention (kv_lora_rank + qk_rope_head_dim values are cached).
    window: sliding window in tokens, None for full attention.
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


@dataclass(frozen=True, slots=True)
class Mlp:
    """One MLP block: dense (experts == 0) or a mixture of `experts`, `experts_per_token` active.

    `matrices` is 3 for gated (SwiGLU) and 2 for plain MLPs. shared_intermediate_size: total width of
    always-active shared experts.
    """

    intermediate_size: int
    matrices: Literal[2, 3] = 3
    experts: int = 0
    experts_per_token: int = 0
    shared_intermediate_size: int = 0
    bias: bool = False


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
        layers: One entry a layer, in order.
        weight_dtype: What most weights are stored in: "bf16", "fp8", "mxfp4", "int4".
        unquantized_dtype: What embeddings, norms (and where `quantized_experts_only`, attention) are stored in.
        max_model_len: Longest context the model was made for.
    """

    name: str
    architecture: str
    hidden_size: int
    vocab_size: int
    layers: tuple[Layer, ...]
    tie_word_embeddings: bool
    max_model_len: int
    weight_dtype: str = "bf16"
    quantized_experts_only: bool = False
