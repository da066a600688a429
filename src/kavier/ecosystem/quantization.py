"""`quantization_config` of a config.json: what the weights are stored in, and the scales that come along."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypedDict

from kavier.ecosystem.config_fields import Fields
from kavier.errors import InputError


class Quantization(TypedDict, total=False):
    """The fields of `ModelSpec` that quantisation sets."""

    weight_dtype: str
    quantized_experts_only: bool
    quant_group_size: int
    quant_zero_points: bool


Section = Mapping[str, Any]
Reader = Callable[[Fields, Section], Quantization]

_ALWAYS_PLAIN = ("lm_head", "embed_tokens", "norm", "layernorm", "gate", "router", "e_score_correction_bias")
"""Last parts of the names of modules that stay in 16 bits in our counts too."""


def read_quantization(fields: Fields, model_type: str) -> Quantization:
    """The `ModelSpec` fields that `quantization_config` sets; none when there is no such section.

    Raises:
        InputError: A method, width or exception list that is not modelled.
    """
    section = fields.section("quantization_config")
    if not section:
        return {}
    method = str(section.get("quant_method", "")).replace("_", "-")
    if method == "mxfp4":
        return _mxfp4(fields, model_type)
    reader = _READERS.get(method)
    if reader is None:
        raise InputError(
            f"quantization_config.quant_method {method!r} is not modelled",
            where=fields.name,
            expected="one of " + ", ".join([*_READERS, "mxfp4"]),
            near=(method, _READERS),
        )
    return reader(fields, section)


def _mxfp4(fields: Fields, model_type: str) -> Quantization:
    if model_type != "gpt_oss":
        raise _refuse(fields, "mxfp4 is modelled for gpt_oss only, whose experts alone are quantised")
    return {"weight_dtype": "mxfp4", "quantized_experts_only": True, "quant_group_size": 32}


def _fp8(fields: Fields, section: Section) -> Quantization:
    _check_exceptions(fields, section.get("modules_to_not_convert") or section.get("ignored_layers") or [])
    block = section.get("weight_block_size")
    return {"weight_dtype": "fp8", "quant_group_size": _block_side(fields, block) if block else 0}


def _block_side(fields: Fields, block: object) -> int:
    if isinstance(block, list) and len(block) == 2 and block[0] == block[1] and isinstance(block[0], int):
        return block[0]
    raise _refuse(fields, f"weight blocks of {block!r} are not modelled, only square ones")


def _awq(fields: Fields, section: Section) -> Quantization:
    _check_exceptions(fields, section.get("modules_to_not_convert") or [])
    group = section.get("group_size", section.get("q_group_size"))
    zero_points = section.get("zero_point", True)
    return _int4(fields, section.get("bits", section.get("w_bit")), group, zero_points=bool(zero_points))


def _gptq(fields: Fields, section: Section) -> Quantization:
    if section.get("dynamic"):
        raise _refuse(fields, "per-module widths (dynamic) are not modelled")
    return _int4(fields, section.get("bits"), section.get("group_size"), zero_points=not section.get("sym"))


def _compressed_tensors(fields: Fields, section: Section) -> Quantization:
    groups = section.get("config_groups") or {}
    if len(groups) != 1:
        raise _refuse(fields, f"{len(groups)} config_groups are not modelled, only one")
    _check_exceptions(fields, section.get("ignore") or [])
    (group,) = groups.values()
    weights: Section = group.get("weights") or {}
    if (weights.get("type"), weights.get("num_bits")) == ("float", 8):
        block = weights.get("block_structure")
        return {"weight_dtype": "fp8", "quant_group_size": _block_side(fields, block) if block else 0}
    if weights.get("type") != "int":
        raise _refuse(
            fields, f"weights of {weights.get('num_bits')}-bit {weights.get('type')} are not modelled"
        )
    symmetric = weights.get("symmetric", True)
    return _int4(fields, weights.get("num_bits"), weights.get("group_size"), zero_points=not symmetric)


def _int4(fields: Fields, bits: object, group: object, *, zero_points: bool) -> Quantization:
    if bits != 4:
        raise _refuse(fields, f"{bits}-bit integer weights are not modelled, only 4-bit")
    if not isinstance(group, int):
        raise _refuse(fields, "group_size is missing")
    return {
        "weight_dtype": "int4",
        "quant_group_size": max(group, 0),  # -1: one group a row
        "quant_zero_points": zero_points,
    }


def _check_exceptions(fields: Fields, modules: Iterable[str]) -> None:
    """Modules left in 16 bits must be those that we count so; another would be a silent wrong size."""
    for module in modules:
        last = module.removesuffix(".weight").split(".")[-1].rstrip("$")
        if not last.endswith(_ALWAYS_PLAIN):
            raise _refuse(fields, f"leaving {module!r} unquantised is not modelled")


def _refuse(fields: Fields, problem: str) -> InputError:
    return InputError(f"quantization_config: {problem}", where=fields.name)


_READERS: Mapping[str, Reader] = {
    "fp8": _fp8,
    "awq": _awq,
    "gptq": _gptq,
    "compressed-tensors": _compressed_tensors,
}
