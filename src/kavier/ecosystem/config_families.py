"""The known families of models: what a `model_type` fixes, and where its windows and experts are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kavier.ecosystem.config_fields import Fields
from kavier.ecosystem.model import Mlp

EXPERTS = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")
TOP_K = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts", "moe_topk",
         "moe_top_k")  # fmt: skip

Windows = Callable[[Fields, int], list[int | None]]
"""(fields, layers) -> sliding window of each layer, None for full attention."""
Mlps = Callable[[Fields, int], list[Mlp]]
"""(fields, layers) -> MLP of each layer."""


def _full(_: Fields, layers: int) -> list[int | None]:
    return [None] * layers


def _uniform_window(fields: Fields, layers: int) -> list[int | None]:
    if not fields.flag("use_sliding_window", default=True):
        return [None] * layers
    return [fields.optional_int("sliding_window")] * layers


def _qwen_windows(fields: Fields, layers: int) -> list[int | None]:
    if not fields.flag("use_sliding_window", default=False):
        return [None] * layers
    window, first = fields.int("sliding_window"), fields.int("max_window_layers", least=0)
    return [window if index >= first else None for index in range(layers)]


def _alternating(fields: Fields, layers: int) -> list[int | None]:
    window = fields.int("sliding_window")
    return [None if index % 2 else window for index in range(layers)]


def _gemma3_windows(fields: Fields, layers: int) -> list[int | None]:
    """One full layer in every `sliding_window_pattern`, the last of each."""
    window = fields.int("sliding_window")
    pattern = fields.int("sliding_window_pattern", "_sliding_window_pattern", default=6)
    return [window if (index + 1) % pattern else None for index in range(layers)]


def _dense(fields: Fields, layers: int) -> list[Mlp]:
    bias = fields.flag("mlp_bias", default=False)
    return [Mlp(fields.int("intermediate_size"), bias=bias)] * layers


def _plain(fields: Fields, layers: int) -> list[Mlp]:
    """Two matrices and no gate (phi, starcoder2); biased unless `use_bias` says no."""
    bias = fields.flag("use_bias", default=True)
    return [Mlp(fields.int("intermediate_size"), matrices=2, bias=bias)] * layers


def _mixture(fields: Fields, width: str, **extra: Any) -> Mlp:
    experts, active = fields.int(*EXPERTS), fields.int(*TOP_K)
    if active > experts:
        key = next(key for key in TOP_K if key in fields.values)
        raise fields.error(key, f"a token cannot be sent to {active} of {experts} experts")
    return Mlp(fields.int(width), experts=experts, experts_per_token=active, **extra)


def _mixtral(fields: Fields, layers: int) -> list[Mlp]:
    return [_mixture(fields, "intermediate_size")] * layers


def _gpt_oss(fields: Fields, layers: int) -> list[Mlp]:
    return [_mixture(fields, "intermediate_size", bias=True, router_bias=True)] * layers


def _qwen3_moe(fields: Fields, layers: int) -> list[Mlp]:
    dense, sparse = Mlp(fields.int("intermediate_size")), _mixture(fields, "moe_intermediate_size")
    step, plain = fields.int("decoder_sparse_step", default=1), fields.ints("mlp_only_layers")
    return [dense if (i + 1) % step or i in plain else sparse for i in range(layers)]


def _deepseek(fields: Fields, layers: int) -> list[Mlp]:
    shared = fields.int("n_shared_experts", default=0, least=0) * fields.int("moe_intermediate_size")
    corrected = fields.text("topk_method", default="") == "noaux_tc"  # e_score_correction_bias
    sparse = _mixture(fields, "moe_intermediate_size", shared_intermediate_size=shared, router_bias=corrected)
    dense = Mlp(fields.int("intermediate_size"))
    first, every = fields.int("first_k_dense_replace", least=0), fields.int("moe_layer_freq", default=1)
    return [sparse if i >= first and i % every == 0 else dense for i in range(layers)]


@dataclass(frozen=True, slots=True)
class Family:
    """What a `model_type` fixes and its config.json leaves unsaid.

    use_bias: the field of that name takes all biases away.
    sparse: a mixture of experts.
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
    use_bias: bool = False
    sparse: bool = False
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
WINDOW_FIELDS: Mapping[Windows, tuple[str, ...]] = {
    _uniform_window: ("sliding_window", "use_sliding_window"),
    _qwen_windows: ("sliding_window", "use_sliding_window", "max_window_layers"),
    _alternating: ("sliding_window",),
    _gemma3_windows: ("sliding_window", "sliding_window_pattern", "_sliding_window_pattern"),
}
"""Fields that say where windows are; `layer_types` or a switch may leave them without a say."""
_DEEPSEEK = Family(mlps=_deepseek, mla=True, sparse=True)
FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family(_uniform_window),
    "mixtral": Family(_uniform_window, _mixtral, sparse=True),
    "qwen2": Family(_qwen_windows, qkv_bias=True, output_bias=False),
    "qwen3": Family(_qwen_windows, qk_norm=True),
    "qwen3_moe": Family(_qwen_windows, _qwen3_moe, qk_norm=True, sparse=True),
    "gemma": Family(tied=True),
    "gemma2": Family(_alternating, tied=True, norms_per_layer=4),
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
    "phi": Family(
        mlps=_plain,
        use_bias=True,
        qkv_bias=True,
        output_bias=True,
        norms_per_layer=1,
        norm_bias=True,
        head_bias=True,
    ),
    "phi3": Family(_uniform_window, qkv_bias=False, output_bias=False),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "gpt_oss": Family(_alternating, _gpt_oss, qkv_bias=True, output_bias=True, sinks=True, sparse=True),
    "granite": Family(),
    "olmo2": Family(qk_norm=True, qk_norm_full=True),
    "starcoder2": Family(
        _uniform_window, _plain, use_bias=True, qkv_bias=True, output_bias=True, tied=True, norm_bias=True
    ),
}
