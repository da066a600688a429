"""A Hugging Face config.json read into a list of layers: known families only, nothing guessed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kavier.ecosystem.config_fields import Fields
from kavier.ecosystem.model import Attention, Layer, Mlp, ModelSpec
from kavier.ecosystem.quantization import read_quantization
from kavier.errors import InputError

KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num",
            "num_attention_groups")  # fmt: skip
EXPERTS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")
TOP_K = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts", "moe_topk",
         "moe_top_k")  # fmt: skip
CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length")

Windows = Callable[[Fields, int], list[int | None]]
"""(fields, layers) -> sliding window of each layer, None for full attention."""
Mlps = Callable[[Fields, int], list[Mlp]]
"""(fields, layers) -> MLP of each layer."""


def _full(_: Fields, layers: int) -> list[int | None]:
    return [None] * layers


def _uniform_window(fields: Fields, layers: int) -> list[int | None]:
    return [fields.optional_int("sliding_window")] * layers


def _qwen_windows(fields: Fields, layers: int) -> list[int | None]:
    if not fields.flag("use_sliding_window", default=False):
        return [None] * layers
    window, first = fields.int("sliding_window"), fields.int("max_window_layers")
    return [window if index >= first else None for index in range(layers)]


def _alternating(fields: Fields, layers: int) -> list[int | None]:
    window = fields.int("sliding_window")
    return [None if index % 2 else window for index in range(layers)]


def _gemma3_windows(fields: Fields, layers: int) -> list[int | None]:
    """One full layer in every `sliding_window_pattern`, the last of each."""
    window, pattern = fields.int("sliding_window"), fields.int("sliding_window_pattern", default=6)
    return [window if (index + 1) % pattern else None for index in range(layers)]


def _dense(fields: Fields, layers: int) -> list[Mlp]:
    bias = fields.flag("mlp_bias", default=False)
    return [Mlp(fields.int("intermediate_size"), bias=bias)] * layers


def _plain(fields: Fields, layers: int) -> list[Mlp]:
    """Two matrices and no gate (phi, starcoder2); biased unless `use_bias` says no."""
    bias = fields.flag("use_bias", default=True)
    return [Mlp(fields.int("intermediate_size"), matrices=2, bias=bias)] * layers


def _mixture(fields: Fields, width: str, **extra: Any) -> Mlp:
    return Mlp(fields.int(width), experts=fields.int(*EXPERTS), experts_per_token=fields.int(*TOP_K), **extra)


def _mixtral(fields: Fields, layers: int) -> list[Mlp]:
    return [_mixture(fields, "intermediate_size")] * layers


def _gpt_oss(fields: Fields, layers: int) -> list[Mlp]:
    return [_mixture(fields, "intermediate_size", bias=True, router_bias=True)] * layers


def _qwen3_moe(fields: Fields, layers: int) -> list[Mlp]:
    dense, sparse = Mlp(fields.int("intermediate_size")), _mixture(fields, "moe_intermediate_size")
    step, plain = fields.int("decoder_sparse_step", default=1), fields.ints("mlp_only_layers")
    return [dense if (i + 1) % step or i in plain else sparse for i in range(layers)]


def _deepseek(fields: Fields, layers: int) -> list[Mlp]:
    shared = fields.int("n_shared_experts", default=0) * fields.int("moe_intermediate_size")
    corrected = fields.text("topk_method", default="") == "noaux_tc"  # e_score_correction_bias
    sparse = _mixture(fields, "moe_intermediate_size", shared_intermediate_size=shared, router_bias=corrected)
    dense = Mlp(fields.int("intermediate_size"))
    first, every = fields.int("first_k_dense_replace"), fields.int("moe_layer_freq", default=1)
    return [sparse if i >= first and i % every == 0 else dense for i in range(layers)]


@dataclass(frozen=True, slots=True)
class Family:
    """What a `model_type` fixes and its config.json leaves unsaid.

    bias None: as the field `attention_bias` says, for queries, keys, values and output alike.
    defaults: values of its Hugging Face config class that published config.json files leave out.
    """

    windows: Windows = _full
    mlps: Mlps = _dense
    qkv_bias: bool | None = None
    output_bias: bool | None = None
    qk_norm: bool = False
    qk_norm_full: bool = False
    sinks: bool = False
    mla: bool = False
    tied: bool = False
    norms_per_layer: int = 2
    norm_bias: bool = False
    head_bias: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


_GEMMA3 = Family(
    _gemma3_windows,
    qk_norm=True,
    tied=True,
    norms_per_layer=4,
    defaults={
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
    },  # transformers Gemma3TextConfig 4.50
)
_DEEPSEEK = Family(mlps=_deepseek, mla=True)
FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family(_uniform_window),
    "mixtral": Family(_uniform_window, _mixtral),
    "qwen2": Family(_qwen_windows, qkv_bias=True, output_bias=False),
    "qwen3": Family(_qwen_windows, qk_norm=True),
    "qwen3_moe": Family(_qwen_windows, _qwen3_moe, qk_norm=True),
    "gemma": Family(tied=True),
    "gemma2": Family(_alternating, tied=True, norms_per_layer=4),
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
    "phi": Family(
        mlps=_plain, qkv_bias=True, output_bias=True, norms_per_layer=1, norm_bias=True, head_bias=True
    ),
    "phi3": Family(_uniform_window, qkv_bias=False, output_bias=False),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "gpt_oss": Family(_alternating, _gpt_oss, qkv_bias=True, output_bias=True, sinks=True),
    "granite": Family(),
    "olmo2": Family(qk_norm=True, qk_norm_full=True),
    "starcoder2": Family(_uniform_window, _plain, qkv_bias=True, output_bias=True, tied=True, norm_bias=True),
}

_UNMODELLED: Mapping[str, str] = {
    "linear_num_key_heads": "linear attention",
    "linear_attn_config": "linear attention",
    "full_attention_interval": "linear attention",
    "mamba_num_heads": "state-space layers",
    "ssm_state_size": "state-space layers",
    "hybrid_override_pattern": "mixed layer kinds",
    "layers_block_type": "mixed layer kinds",
    "block_configs": "layers of different shapes",
    "cross_attention_layers": "cross attention",
    "attention_chunk_size": "chunked attention",
    "index_topk": "DeepSeek sparse attention (its index cache and top-k)",
    "compress_ratios": "a compressed KV cache",
    "num_kv_shared_layers": "layers that share KV",
    "attention_k_eq_v": "keys used as values",
    "global_head_dim": "head sizes that differ by layer",
    "swa_num_key_value_heads": "KV heads that differ by layer",
    "hidden_size_per_layer_input": "per-layer embeddings",
}
_NOTED: Mapping[str, str] = {
    "num_nextn_predict_layers": "the multi-token-prediction layer is not served: its weights are not counted",
    "vision_config": "text only: the vision tower is neither loaded nor counted",
}


def spec_from_hf_config(config: Mapping[str, Any], name: str) -> ModelSpec:
    """Read a config.json (its `text_config` when it has one) into a list of layers.

    Raises:
        InputError: Unknown `model_type`, a needed field missing or of the wrong kind, quantisation or
            architecture features that are not modelled; the field is named.
    """
    fields = _text_fields(config, name)
    kind = fields.text("model_type")
    family = FAMILIES.get(kind)
    if family is None:
        raise InputError(
            f"unknown model_type {kind!r}",
            where=name,
            expected=f"one of {', '.join(sorted(FAMILIES))} (of one whose layers are the same, if any)",
            near=(kind, FAMILIES),
        )
    notes = _check_modelled(fields, family)
    complete = Fields({**family.defaults, **fields.values}, name)
    return _build(complete, family, kind, notes)


def _text_fields(config: Mapping[str, Any], name: str) -> Fields:
    """Fields of the language model; what its `text_config` leaves out is looked up one level above."""
    inner = config.get("text_config")
    merged = {**config, **inner} if isinstance(inner, Mapping) else dict(config)
    return Fields({key: value for key, value in merged.items() if value is not None}, name)


def _check_modelled(fields: Fields, family: Family) -> list[str]:
    for key, feature in _UNMODELLED.items():
        if fields.values.get(key):
            raise fields.error(key, f"{feature} is not modelled, so its times and sizes would be wrong")
    if not family.mla and fields.values.get("kv_lora_rank"):
        raise fields.error("kv_lora_rank", "latent attention belongs to deepseek_v2 and deepseek_v3")
    if family.mlps in (_dense, _plain):
        for key in EXPERTS:
            if fields.values.get(key):
                raise fields.error(key, "this model_type has no mixture of experts")
    return [note for key, note in _NOTED.items() if fields.values.get(key)]


def _build(fields: Fields, family: Family, kind: str, notes: list[str]) -> ModelSpec:
    count, context = fields.int("num_hidden_layers"), _context(fields, kind)
    if count == 0:
        raise fields.error("num_hidden_layers", "a model has at least one layer")
    windows = [w if w and w < context else None for w in _windows(fields, family, count)]
    attentions = [_attention(fields, family, window) for window in windows]
    if any(windows):
        notes.append("sliding-window layers keep the KV of the whole context, as in one group of layers")
    if fields.dtype() == "float32":
        notes.append("a float32 checkpoint, served in 16 bits as dtype auto does")
    return ModelSpec(
        name=fields.name,
        architecture=kind,
        hidden_size=fields.int("hidden_size"),
        vocab_size=fields.int("vocab_size"),
        layers=tuple(map(Layer, attentions, family.mlps(fields, count))),
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=family.tied),
        max_model_len=context,
        norms_per_layer=family.norms_per_layer,
        norm_bias=family.norm_bias,
        head_bias=family.head_bias,
        notes=tuple(notes),
        **read_quantization(fields, kind),
    )


def _windows(fields: Fields, family: Family, layers: int) -> list[int | None]:
    kinds = fields.texts("layer_types")
    if not kinds:
        return family.windows(fields, layers)
    if len(kinds) != layers:
        raise fields.error("layer_types", f"it lists {len(kinds)} layers, num_hidden_layers says {layers}")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise fields.error("layer_types", f"{kind!r} layers are not modelled")
    window = fields.int("sliding_window") if "sliding_attention" in kinds else None
    return [window if kind == "sliding_attention" else None for kind in kinds]


def _attention(fields: Fields, family: Family, window: int | None) -> Attention:
    heads = fields.int("num_attention_heads")
    if family.mla:
        return _latent_attention(fields, heads)
    bias = fields.flag("attention_bias", default=False)
    return Attention(
        kind="gqa",
        heads=heads,
        kv_heads=fields.int(*KV_HEADS, default=heads),
        head_dim=fields.int("head_dim", default=fields.int("hidden_size") // heads),
        window=window,
        qkv_bias=bias if family.qkv_bias is None else family.qkv_bias,
        output_bias=bias if family.output_bias is None else family.output_bias,
        qk_norm=family.qk_norm,
        qk_norm_full=family.qk_norm_full,
        sinks=family.sinks,
    )


def _latent_attention(fields: Fields, heads: int) -> Attention:
    nope, rope = fields.int("qk_nope_head_dim"), fields.int("qk_rope_head_dim")
    return Attention(
        kind="mla",
        heads=heads,
        kv_heads=1,
        head_dim=nope + rope,
        q_lora_rank=fields.optional_int("q_lora_rank"),
        kv_lora_rank=fields.int("kv_lora_rank"),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        v_head_dim=fields.int("v_head_dim"),
    )


def _context(fields: Fields, kind: str) -> int:
    """The longest context, as vLLM derives it: the smallest length field, stretched by RoPE scaling."""
    lengths = [fields.int(key) for key in CONTEXT if key in fields.values]
    length = min(lengths) if lengths else fields.int(CONTEXT[0])
    scaling = fields.section("rope_scaling") or fields.section("rope_parameters")
    rope = scaling.get("rope_type", scaling.get("type", "default"))
    if rope in ("default", "llama3", "longrope", "su", "mrope") or kind.startswith("gemma3"):
        return length
    if rope == "yarn":
        length = int(scaling.get("original_max_position_embeddings", length))
    return int(length * float(scaling.get("factor", 1.0)))
