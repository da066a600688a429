"""A Hugging Face config.json read into a list of layers: known families only, nothing guessed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kavier.ecosystem.config_families import EXPERTS, FAMILIES, WINDOW_FIELDS, Family
from kavier.ecosystem.config_fields import Fields
from kavier.ecosystem.config_known import left_out, refuse_unmodelled, unread
from kavier.ecosystem.model import Attention, Layer, ModelSpec
from kavier.ecosystem.quantization import read_quantization
from kavier.errors import InputError

KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num",
            "num_attention_groups")  # fmt: skip
CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length")
MOST_LAYERS = 10_000
STRETCHED = ("linear", "dynamic", "yarn", "deepseek_yarn")
"""RoPE scalings whose factor lengthens the context; the length fields of the others say it stretched."""
UNSTRETCHED = ("default", "llama3", "longrope", "su", "mrope")


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
    _check_modelled(fields, family)
    return _build(Fields({**family.defaults, **fields.values}, name), family, kind)


def _text_fields(config: Mapping[str, Any], name: str) -> Fields:
    """Fields of the language model; what its `text_config` leaves out is looked up one level above."""
    inner = config.get("text_config")
    if inner is not None and not isinstance(inner, Mapping):
        raise InputError("text_config: an object is needed", where=name, value=inner)
    merged = {**config, **(inner or {})}
    return Fields({key: value for key, value in merged.items() if value is not None}, name)


def _check_modelled(fields: Fields, family: Family) -> None:
    refuse_unmodelled(fields)
    if not family.mla and fields.is_on("kv_lora_rank"):
        raise fields.error("kv_lora_rank", "latent attention belongs to deepseek_v2 and deepseek_v3")
    if not family.sparse:
        for key in EXPERTS:
            if fields.is_on(key):
                raise fields.error(key, "this model_type has no mixture of experts")


def _build(fields: Fields, family: Family, kind: str) -> ModelSpec:
    layers, context = _layers(fields, family, kind)
    quantization, notes, ignored = read_quantization(fields, kind)
    spec = ModelSpec(
        name=fields.name,
        architecture=kind,
        hidden_size=fields.int("hidden_size"),
        vocab_size=fields.int("vocab_size"),
        layers=layers,
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=family.tied),
        max_model_len=context,
        norms_per_layer=family.norms_per_layer,
        norm_bias=family.norm_bias,
        head_bias=family.head_bias,
        **quantization,
    )
    notes = [*left_out(fields), *_layer_notes(fields, spec), *notes]
    ignored = [*_unread(fields, family), *ignored]
    if ignored:
        notes = [*notes, f"config fields not modelled: {', '.join(sorted(ignored))}"]
    return replace(spec, notes=tuple(notes))


def _layers(fields: Fields, family: Family, kind: str) -> tuple[tuple[Layer, ...], int]:
    """(layers, longest context)."""
    count, context = fields.int("num_hidden_layers", most=MOST_LAYERS), _context(fields, kind)
    windows = [w if w and w < context else None for w in _windows(fields, family, count)]
    attentions = [_attention(fields, family, window) for window in windows]
    return tuple(map(Layer, attentions, family.mlps(fields, count))), context


def _layer_notes(fields: Fields, spec: ModelSpec) -> list[str]:
    notes = []
    if any(layer.attention.window for layer in spec.layers):
        notes.append("sliding-window layers keep the KV of the whole context, as in one group of layers")
    if fields.dtype() == "float32":
        notes.append("a float32 checkpoint, served in 16 bits as dtype auto does")
    return notes


def _unread(fields: Fields, family: Family) -> list[str]:
    """What nobody read, but for what means nothing more in this family."""
    idle = {"num_key_value_heads", "head_dim", "qk_head_dim"} if family.mla else set()
    if family.qkv_bias is not None and fields.values.get("attention_bias") is family.qkv_bias:
        idle.add("attention_bias")
    return unread(fields, frozenset(idle.union(WINDOW_FIELDS.get(family.windows, ()))))


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
    kv_heads = fields.int(*KV_HEADS, default=heads)
    if heads % kv_heads:
        key = next(key for key in KV_HEADS if key in fields.values)
        raise fields.error(key, f"{heads} query heads cannot share {kv_heads} KV heads evenly")
    qkv_bias, output_bias = _biases(fields, family)
    return Attention(
        kind="gqa",
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_head_dim(fields, heads),
        window=window,
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        qk_norm=family.qk_norm,
        qk_norm_full=family.qk_norm_full,
        sinks=family.sinks,
    )


def _biases(fields: Fields, family: Family) -> tuple[bool, bool]:
    """(of queries, keys and values; of the output)."""
    if family.qkv_bias is None or family.output_bias is None:
        bias = fields.flag("attention_bias", default=False)
        return bias, bias
    if family.use_bias and not fields.flag("use_bias", default=True):
        return False, False
    return family.qkv_bias, family.output_bias


def _head_dim(fields: Fields, heads: int) -> int:
    hidden = fields.int("hidden_size")
    if "head_dim" not in fields.values and hidden % heads:
        raise fields.error("hidden_size", f"without head_dim, {heads} heads must divide it")
    return fields.int("head_dim", default=hidden // heads)


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
    scaling = fields.section("rope_scaling")
    if not scaling.values:
        scaling = fields.section("rope_parameters")
    if kind.startswith("gemma3"):
        return length
    rope = scaling.text("rope_type" if "rope_type" in scaling.values else "type", default="default")
    if rope in UNSTRETCHED:
        return length
    if rope not in STRETCHED:
        known = f"{', '.join((*UNSTRETCHED, *STRETCHED))}"
        raise fields.error("rope_scaling", f"RoPE type {rope!r} is not modelled, only {known}")
    if rope.endswith("yarn"):
        length = scaling.int("original_max_position_embeddings", default=length)
    return max(1, int(length * scaling.number("factor", default=1.0)))
