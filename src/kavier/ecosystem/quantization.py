"""`quantization_config` of a config.json: what the weights are stored in, and the scales that come along."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypedDict

from kavier.ecosystem.config_fields import Fields
from kavier.ecosystem.model import Role
from kavier.errors import InputError


class Quantization(TypedDict, total=False):
    """The fields of `ModelSpec` that quantisation sets."""

    weight_dtype: str
    quantized_roles: frozenset[Role]
    quant_group_size: int
    quant_zero_points: bool


Reader = Callable[[Fields], Quantization]

_ALWAYS_PLAIN = ("lm_head", "embed_tokens", "norm", "layernorm", "gate", "router", "e_score_correction_bias")
"""Last parts of the names of modules that stay in 16 bits in our counts too."""

_BOOKKEEPING = """
quant_method fmt scale_fmt activation_scheme version backend pack_dtype format quantization_status
global_compression_ratio checkpoint_format is_marlin_format model_name_or_path model_file_base_name quantizer
meta desc_act static_groups true_sequential damp_percent damp_auto_increment mse dataset tokenizer
actorder dynamic observer observer_kwargs scale_dtype zp_dtype symmetric
"""
HARMLESS = frozenset(_BOOKKEEPING.split())
"""Fields that say how the weights were quantised or packed, not how large they are."""
_SEEN_WHOLE = ("kv_cache_scheme", "sparsity_config", "input_activations", "output_activations")


def read_quantization(fields: Fields, model_type: str) -> tuple[Quantization, list[str], list[str]]:
    """What `quantization_config` sets of a `ModelSpec` (if it is there), notes, and fields not modelled.

    Raises:
        InputError: A method, width, exception list or ill-typed field that is not modelled.
    """
    section = fields.section("quantization_config")
    if not section.values:
        return {}, [], []
    method = section.text("quant_method").replace("_", "-")
    if method == "mxfp4" and model_type != "gpt_oss":
        raise section.error("quant_method", "mxfp4 is modelled for gpt_oss only, whose experts are quantised")
    reader = _READERS.get(method)
    if reader is None:
        raise InputError(
            f"quantization_config.quant_method {method!r} is not modelled",
            where=fields.name,
            expected=f"one of {', '.join(_READERS)}",
            near=(method, _READERS),
        )
    return reader(section), _kv_note(section), _unread(section)


def _unread(section: Fields) -> list[str]:
    """Full names of what nobody read, here and in the objects inside."""
    own = [section.prefix + key for key in section.unread() if key not in HARMLESS]
    inside = (child for key, child in section.sections.items() if key not in _SEEN_WHOLE)
    return [*own, *(name for child in inside for name in _unread(child))]


def _kv_note(section: Fields) -> list[str]:
    if not section.section("kv_cache_scheme").values:
        return []
    return [
        "quantization_config.kv_cache_scheme is not applied: engine.kv_cache_dtype alone sizes the KV cache"
    ]


def _mxfp4(section: Fields) -> Quantization:
    section.texts("modules_to_not_convert")  # all but the experts, as counted here
    return {"weight_dtype": "mxfp4", "quantized_roles": frozenset({"expert"}), "quant_group_size": 32}


def _fp8(section: Fields) -> Quantization:
    for key in ("modules_to_not_convert", "ignored_layers"):
        _check_exceptions(section, key)
    return {"weight_dtype": "fp8", "quant_group_size": _block_side(section, "weight_block_size")}


def _block_side(section: Fields, key: str) -> int:
    """Side of a square block that shares a scale; 0 without blocks."""
    block = section.ints(key)
    if not block:
        return 0
    if len(block) != 2 or block[0] != block[1] or block[0] == 0:
        raise section.error(key, "only square weight blocks are modelled")
    return block[0]


def _awq(section: Fields) -> Quantization:
    _check_exceptions(section, "modules_to_not_convert")
    zero_points = section.flag("zero_point", default=True)
    bits = section.int("bits", "w_bit")
    return _int4(section, bits, _group_size(section, "group_size", "q_group_size"), zero_points=zero_points)


def _gptq(section: Fields) -> Quantization:
    for key, feature in (("dynamic", "per-module widths"), ("lm_head", "a quantised head")):
        if section.is_on(key):
            raise section.error(key, f"{feature} is not modelled")
        section.read.add(key)
    zero_points = not section.flag("sym", default=False)
    return _int4(section, section.int("bits"), _group_size(section, "group_size"), zero_points=zero_points)


def _compressed_tensors(section: Fields) -> Quantization:
    sparsity = section.section("sparsity_config")
    if sparsity.values and sparsity.text("format", default="") != "dense":
        raise section.error("sparsity_config", "sparse weights are not modelled")
    _check_exceptions(section, "ignore")
    groups = section.section("config_groups")
    if len(groups.values) != 1:
        raise section.error("config_groups", f"{len(groups.values)} groups are not modelled, only one")
    return _group(groups.section(next(iter(groups.values))))


def _group(group: Fields) -> Quantization:
    """The one group of weights that are quantised alike."""
    if group.texts("targets") != ("Linear",):
        raise group.error("targets", 'only ["Linear"] is modelled')
    if group.section("output_activations").values:
        raise group.error("output_activations", "quantised outputs are not modelled")
    weights, inputs = group.section("weights"), group.section("input_activations")
    kind, bits = weights.text("type"), weights.int("num_bits")
    if (kind, bits) == ("float", 8):
        return _float8(weights, inputs)
    if kind != "int":
        raise weights.error("type", f"weights of {bits}-bit {kind} are not modelled")
    if inputs.values:
        raise group.error("input_activations", "integer weights with quantised inputs are not modelled")
    zero_points = not weights.flag("symmetric", default=True)
    return _int4(weights, bits, _shared_scale(weights), zero_points=zero_points)


def _float8(weights: Fields, inputs: Fields) -> Quantization:
    """Without quantised inputs the weights are turned into 16 bits before they are multiplied: W8A16."""
    if inputs.values and (inputs.text("type"), inputs.int("num_bits")) != ("float", 8):
        raise inputs.error("type", "fp8 weights are modelled with fp8 inputs or 16-bit ones")
    strategy = weights.text("strategy")
    if strategy not in ("tensor", "channel", "block"):
        raise weights.error("strategy", "fp8 weights are modelled with a scale per tensor, channel or block")
    side = _block_side(weights, "block_structure")
    if (strategy == "block") != bool(side):
        raise weights.error("block_structure", "it belongs to strategy block, which needs it")
    return {"weight_dtype": "fp8" if inputs.values else "w8a16", "quant_group_size": side}


def _shared_scale(weights: Fields) -> int:
    """Weights that share a scale; 0 for a whole row."""
    if weights.text("strategy") == "channel":
        return 0
    if weights.text("strategy") != "group":
        raise weights.error("strategy", "integer weights are modelled with a scale per group or channel")
    return _group_size(weights, "group_size")


def _group_size(section: Fields, *keys: str) -> int:
    size = section.int(*keys, least=-1)
    if size == 0:
        raise section.error(keys[0], "a number of weights, or -1 for a whole row, is needed")
    return max(size, 0)


def _int4(section: Fields, bits: int, group: int, *, zero_points: bool) -> Quantization:
    if bits != 4:
        raise InputError(
            f"{section.prefix}bits: {bits}-bit integer weights are not modelled, only 4-bit",
            where=section.name,
        )
    return {"weight_dtype": "int4", "quant_group_size": group, "quant_zero_points": zero_points}


def _check_exceptions(section: Fields, key: str) -> None:
    """Modules left in 16 bits must be those that we count so; another would be a silent wrong size."""
    for module in section.texts(key):
        last = module.removesuffix(".weight").split(".")[-1].rstrip("$")
        if not last.endswith(_ALWAYS_PLAIN):
            raise InputError(
                f"{section.prefix}{key}: leaving {module!r} unquantised is not modelled", where=section.name
            )


_READERS: Mapping[str, Reader] = {
    "fp8": _fp8,
    "awq": _awq,
    "gptq": _gptq,
    "compressed-tensors": _compressed_tensors,
    "mxfp4": _mxfp4,
}
