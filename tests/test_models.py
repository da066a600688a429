import copy
import json
import math
import re
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kavier.ecosystem.config_families import FAMILIES
from kavier.ecosystem.gpu import find_gpu
from kavier.ecosystem.hf_config import spec_from_hf_config
from kavier.ecosystem.model import Attention, Layer, Mlp, ModelSpec
from kavier.ecosystem.models import find_model, model_entry, model_names
from kavier.errors import InputError
from kavier.scenario import Engine
from kavier.timing.datasheet import DatasheetTiming
from kavier.timing.gemm import compute_dtype
from kavier.timing.step import StepWork

GIB = 2**30
TINY = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}


def tiny(**changed):
    return spec_from_hf_config({**TINY, **changed}, "tiny")


@pytest.mark.parametrize("name", model_names())
def test_every_catalog_model_has_its_published_parameter_count(name):
    assert find_model(name).parameters() == model_entry(name).published_parameters


def test_the_catalog_has_the_models_people_serve():
    assert len(model_names()) >= 40
    for name in model_names(variants=True):
        assert find_model(name).layers
        assert find_model(name.rpartition("/")[2].lower()).name == name


@pytest.mark.parametrize("name", model_names(variants=True))
def test_every_catalog_entry_says_which_config_it_means_where_it_was_read_and_when(name):
    entry = model_entry(name)
    config = f"https://huggingface.co/{entry.base or name}/blob/main/config.json"
    assert re.fullmatch(re.escape(config) + r" \(read in .{10,}\)", entry.source)
    assert re.search(r"github\.com/|huggingface\.co/|public repositories", entry.source.removeprefix(config))
    assert date(2024, 1, 1) < date.fromisoformat(entry.date)
    assert entry.published_source.startswith("safetensors total")


def test_a_variant_has_the_parameters_of_its_base():
    for name in model_names(variants=True):
        base = model_entry(name).base
        assert base is None or find_model(name).parameters() == find_model(base).parameters()


@pytest.mark.parametrize(
    ("name", "tokens"),
    [  # max_position_embeddings as read in config.json files, at huggingface.co if no place is named
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8_192),  # JunxiongWang/MambaInLlama_0_50, a copy
        ("meta-llama/Llama-3.1-8B-Instruct", 131_072),  # github.com/Lightning-AI/litgpt litgpt/config.py
        ("codellama/CodeLlama-34b-Instruct-hf", 16_384),  # ricecake/codellama-pygmalion, a copy
        ("mistralai/Mistral-Small-24B-Instruct-2501", 32_768),  # unsloth/Mistral-Small-24B-Instruct-2501-GGUF
        ("mistralai/Mixtral-8x22B-Instruct-v0.1", 65_536),  # jsfs11/MixtralxWizardLM2-8x22B-SLERP-v0.2
        ("Qwen/Qwen2.5-1.5B", 131_072),  # Qwen/Qwen2.5-1.5B/commit/8faed761
        ("Qwen/Qwen2.5-14B", 131_072),  # arcee-ai/SuperNova-Medius, a copy
        ("Qwen/Qwen2.5-14B-Instruct", 32_768),  # jebish7/Qwen2.5-14B-Instruct, a duplicate
        ("Qwen/Qwen2.5-72B-Instruct", 32_768),  # m8than/banana-2-b-72b, a copy
        ("Qwen/QwQ-32B", 40_960),  # github.com/QwenLM/QwQ/issues/26: was 131072 at first
        ("Qwen/Qwen3-8B", 40_960),  # thejaminator/qwen-hook-layer-9/commit/478fb720, a copy
        ("Qwen/Qwen3-0.6B-Base", 32_768),  # CodeAtCMU/Qwen3-0.6B-Base_full_sft_JavaScript_data_12K, a copy
        ("Qwen/Qwen3-4B-Instruct-2507", 262_144),  # jaman21/Qwen3-4B-Instruct, a copy
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 131_072),  # ABrain/HPGPT-DeepSeek-R1-Distill-Qwen-7B-R
        ("google/gemma-2-9b-it", 8_192),  # hfhugs/gemma-2-9b-it
        ("google/gemma-3-1b-it", 32_768),  # vishnurchityala/sql-gemma3, a copy
        ("google/gemma-3-12b-it", 131_072),  # unsloth/gemma-3-12b-it-GGUF
        ("microsoft/phi-4", 16_384),  # gaianet/phi-4-GGUF
        ("deepseek-ai/DeepSeek-R1", 163_840),  # amd/DeepSeek-R1-MXFP4
        ("ibm-granite/granite-3.1-8b-instruct", 131_072),  # its own config.json at 96fedcdf
    ],
)
def test_contexts_are_those_of_the_config_files(name, tokens):
    assert find_model(name).max_model_len == tokens


@pytest.mark.parametrize(
    ("name", "stored"),
    [  # safetensors total of the FP8 repository less that of the bf16 one: one scale a block of 128 x 128
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct-FP8", 30_533_947_392 - 30_532_122_624),
        ("Qwen/Qwen3-235B-A22B-FP8", 235_107_904_512 - 235_093_634_560),  # totals of Instruct-2507
        ("Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8", 480_184_064_000 - 480_154_875_392),
    ],
)
def test_fp8_scales_are_as_many_as_the_checkpoints_hold(name, stored):
    model = find_model(name)
    quantized = [weight for weight in model.weights() if model.is_quantized(weight)]
    scale_bytes = sum(model.bytes_of(weight) - weight.parameters() for weight in quantized)
    assert scale_bytes == 4 * stored  # float32 each


def test_the_plain_modules_that_qwen_lists_in_its_fp8_configs_are_those_we_count_plain():
    parts = ("input_layernorm", "post_attention_layernorm", "mlp.gate")
    plain = ["lm_head", *(f"model.layers.{i}.{part}" for i in range(2) for part in parts)]
    section = {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": plain}
    assert tiny(quantization_config=section).weight_dtype == "fp8"


@pytest.mark.parametrize(
    ("name", "expected_bytes"),
    [
        ("meta-llama/Llama-2-7b-hf", 524_288),
        ("meta-llama/Llama-3.1-8B", 131_072),
        ("meta-llama/Llama-3.1-70B", 327_680),
        ("meta-llama/Llama-3.1-405B", 516_096),
        ("Qwen/Qwen2.5-7B", 57_344),
        ("Qwen/Qwen3-8B", 147_456),
        ("Qwen/Qwen3-30B-A3B", 98_304),
        ("Qwen/Qwen3-0.6B", 114_688),  # vLLM: 4.38 GiB for 40,960 tokens
        ("mistralai/Mixtral-8x7B-v0.1", 131_072),
        ("deepseek-ai/DeepSeek-V3", 70_272),
        ("deepseek-ai/DeepSeek-V2-Lite", 31_104),
        ("openai/gpt-oss-120b", 73_728),
        ("google/gemma-2-27b", 376_832),
    ],
)
def test_kv_bytes_per_token_are_the_published_ones(name, expected_bytes):
    assert find_model(name).kv_bytes_per_token() == expected_bytes


def test_kv_heads_are_split_until_there_is_one_a_gpu_and_latents_are_copied():
    llama, deepseek = find_model("llama-3.1-8b"), find_model("deepseek-v3")
    assert [llama.kv_bytes_per_token("auto", tp) for tp in (1, 2, 8, 16)] == [131072, 65536, 16384, 16384]
    assert deepseek.kv_bytes_per_token("auto", 8) == deepseek.kv_bytes_per_token()
    assert llama.kv_bytes_per_token("fp8") == 65536


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("Qwen/Qwen3-30B-A3B", 3.3),
        ("Qwen/Qwen3-235B-A22B", 22.2),
        ("mistralai/Mixtral-8x7B-v0.1", 12.9),
        ("mistralai/Mixtral-8x22B-v0.1", 39.1),
        ("deepseek-ai/DeepSeek-V3", 37.5),
        ("deepseek-ai/DeepSeek-V2", 21.4),
    ],
)
def test_active_parameters_are_those_of_the_model_cards(name, billions):
    assert find_model(name).active_parameters() == pytest.approx(billions * 1e9, rel=0.02)


def test_gpt_oss_active_parameters_are_the_cards_less_the_embedding_it_leaves_out():
    model = find_model("openai/gpt-oss-120b")
    embedding = model.vocab_size * model.hidden_size
    assert model.active_parameters() - embedding == pytest.approx(5.13e9, rel=0.002)


@pytest.mark.parametrize(
    ("name", "checkpoint_gib"), [("openai/gpt-oss-120b", 60.8), ("openai/gpt-oss-20b", 12.8)]
)
def test_mxfp4_weights_weigh_what_the_model_card_says(name, checkpoint_gib):
    assert find_model(name).weight_bytes() / GIB == pytest.approx(checkpoint_gib, rel=0.002)


@pytest.mark.parametrize(
    ("name", "loaded_gib"),
    [("llama-3.1-8b", 14.96), ("Qwen/Qwen3-8B", 15.26), ("codellama-34b-hf", 62.85)],
)
def test_sixteen_bit_weights_weigh_what_vllm_loads(name, loaded_gib):
    assert find_model(name).weight_bytes() / GIB == pytest.approx(loaded_gib, abs=0.01)


def test_awq_weights_weigh_what_vllm_loads():
    entry = model_entry("Qwen/Qwen2.5-7B-Instruct")
    awq = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
    model = spec_from_hf_config({**entry.config, "quantization_config": awq}, "awq")
    assert model.weight_bytes() / GIB == pytest.approx(5.2, abs=0.05)  # 5.57 GB of safetensors


def test_fp8_halves_the_linears_and_leaves_the_rest():
    plain, fp8 = find_model("Qwen/Qwen3-8B"), find_model("Qwen/Qwen3-8B-FP8")
    assert fp8.parameters() == plain.parameters()
    linears = sum(w.parameters() for w in plain.weights() if w.role in ("attention", "mlp"))
    scales = fp8.weight_bytes() - (plain.weight_bytes() - linears)
    assert 0 < scales == linears // (128 * 128) * 4


def test_what_a_gpu_holds_shrinks_with_more_gpus_but_never_below_its_share():
    for name in ("llama-3.1-70b", "deepseek-v3", "gpt-oss-120b"):
        model = find_model(name)
        sizes = [model.weight_bytes(tp) for tp in (1, 2, 4, 8)]
        assert sizes == sorted(sizes, reverse=True)
        assert all(tp * size >= sizes[0] for tp, size in zip((1, 2, 4, 8), sizes, strict=True))
        assert sizes[3] < sizes[0] / 7.5


def test_names_are_found_whatever_the_case_and_without_their_organisation():
    spec = find_model("meta-llama/Llama-3.1-8B")
    assert find_model("META-LLAMA/llama-3.1-8b") == spec
    assert find_model("llama-3.1-8b") == spec
    instruct = find_model("llama-3.1-8b-instruct")
    assert instruct.name == "meta-llama/Llama-3.1-8B-Instruct"
    assert instruct.layers == spec.layers


def test_a_variant_has_its_own_context():
    assert find_model("Qwen/Qwen2.5-7B").max_model_len == 131072
    assert find_model("Qwen/Qwen2.5-7B-Instruct").max_model_len == 32768


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(InputError, match=r"unknown model 'meta-llama/Llama-3.1-9B'.*Llama-3\.1-8B"):
        find_model("meta-llama/Llama-3.1-9B")


def test_a_local_config_is_read_by_file_and_by_folder(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY))
    assert find_model(str(path)).layers == find_model(str(tmp_path)).layers == tiny().layers


@pytest.mark.parametrize(
    ("text", "message"), [("{", "line 1: not valid JSON"), ("[]", "not an object"), (None, "No such file")]
)
def test_an_unreadable_config_is_one_clear_error(tmp_path, text, message):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        find_model(str(path))


def test_a_tiny_llama_is_counted_by_hand():
    attention = 64 * 64 * 2 + 2 * 32 * 64
    mlp = 3 * 64 * 128
    assert tiny().parameters() == 2 * 100 * 64 + 64 + 2 * (attention + mlp + 2 * 64)
    assert tiny(tie_word_embeddings=True).parameters() == tiny().parameters() - 100 * 64
    assert tiny(attention_bias=True).parameters() == tiny().parameters() + 2 * (64 + 2 * 32 + 64)
    assert tiny(mlp_bias=True).parameters() == tiny().parameters() + 2 * (2 * 128 + 64)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "lama"}, "unknown model_type 'lama'.*did you mean llama"),
        ({"model_type": "mamba2"}, "unknown model_type 'mamba2'; expected one of"),
        ({"model_type": None}, "no model_type"),
        ({"hidden_size": None}, "no hidden_size"),
        ({"hidden_size": "64"}, r"hidden_size: a whole number of at least 1 is needed \(got '64'\)"),
        ({"num_hidden_layers": True}, "num_hidden_layers: a whole number"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: true or false"),
        ({"num_local_experts": 8}, "num_local_experts: this model_type has no mixture"),
        ({"kv_lora_rank": 512}, "kv_lora_rank: latent attention"),
        ({"index_topk": 2048}, "index_topk: DeepSeek sparse attention"),
        ({"linear_num_key_heads": 16}, "linear_num_key_heads: linear attention is not modelled"),
        ({"layer_types": ["full_attention"]}, "layer_types: it lists 1 layers, num_hidden_layers says 2"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "'linear_attention' layers are not"),
        ({"torch_dtype": "float8_e4m3fn"}, "torch_dtype: one of bfloat16"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "'bitsandbytes' is not modelled"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4 is modelled for gpt_oss only"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 8, "group_size": 128}}, "8-bit integer"),
        (
            {"quantization_config": {"quant_method": "fp8", "modules_to_not_convert": ["model.layers.0"]}},
            "leaving 'model.layers.0' unquantised",
        ),
    ],
)
def test_what_is_not_understood_is_refused_by_the_name_of_its_field(changed, message):
    with pytest.raises(InputError, match=message):
        tiny(**changed)


def test_sliding_windows_are_placed_on_their_layers():
    def windows(name):
        return [layer.attention.window for layer in find_model(name).layers[:7]]

    assert windows("gpt-oss-20b")[:4] == [128, None, 128, None]
    assert windows("gemma-3-4b-it") == [1024] * 5 + [None, 1024]
    assert windows("mistral-7b-v0.1")[:2] == [4096, 4096]
    assert windows("mistral-7b-v0.3")[:2] == [None, None]
    assert windows("qwen2.5-7b")[:2] == [None, None]
    listed = tiny(layer_types=["full_attention", "sliding_attention"], sliding_window=64)
    assert [layer.attention.window for layer in listed.layers] == [None, 64]


def test_qwen_windows_need_their_switch():
    qwen = {"model_type": "qwen2", "sliding_window": 128, "max_window_layers": 1}
    assert all(layer.attention.window is None for layer in tiny(**qwen, use_sliding_window=False).layers)
    switched = tiny(**qwen, use_sliding_window=True)
    assert [layer.attention.window for layer in switched.layers] == [None, 128]


def test_experts_are_placed_on_their_layers():
    deepseek = [layer.mlp.experts for layer in find_model("deepseek-v3").layers]
    assert deepseek == [0] * 3 + [256] * 58
    moe = {"model_type": "qwen3_moe", "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    assert [x.mlp.experts for x in tiny(**moe, mlp_only_layers=[0]).layers] == [0, 8]
    assert [x.mlp.experts for x in tiny(**moe, decoder_sparse_step=2).layers] == [0, 8]


def test_a_multimodal_config_is_read_through_its_text_config_and_says_so():
    text = {**TINY, "model_type": "gemma3_text", "sliding_window": 32}
    model = spec_from_hf_config({"model_type": "gemma3", "vision_config": {}, "text_config": text}, "mm")
    assert model.parameters() == spec_from_hf_config(text, "text").parameters()
    seen = spec_from_hf_config({"vision_config": {"layers": 2}, "text_config": text}, "mm")
    assert any("vision tower" in note for note in seen.notes)


def test_what_is_left_out_is_noted():
    assert any("multi-token-prediction" in note for note in find_model("deepseek-r1").notes)
    assert any("sliding-window" in note for note in find_model("gpt-oss-20b").notes)
    assert find_model("llama-3.1-8b").notes == ()


def test_rope_scaling_stretches_the_context_as_vllm_does():
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    assert tiny(rope_scaling=yarn).max_model_len == 1024
    assert tiny(rope_scaling={"rope_type": "linear", "factor": 2.0}).max_model_len == 1024
    llama3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 256}
    assert tiny(rope_scaling=llama3).max_model_len == 512
    assert find_model("deepseek-v3").max_model_len == 163840
    assert find_model("gpt-oss-120b").max_model_len == 131072


INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
FP8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False}
FP8_INPUTS = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}


def compressed(weights, inputs=None, targets=("Linear",), **changed):
    group = {"weights": weights, "input_activations": inputs, "targets": list(targets)}
    section = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }
    return tiny(quantization_config={**section, **changed})


def test_compressed_tensors_are_read():
    model = compressed(INT4)
    assert (model.weight_dtype, model.quant_group_size, model.quant_zero_points) == ("int4", 32, False)
    assert compressed({**INT4, "strategy": "channel", "group_size": None}).quant_group_size == 0
    assert compressed(FP8, FP8_INPUTS).weight_dtype == "fp8"
    blocks = {**FP8, "strategy": "block", "block_structure": [128, 128]}
    assert compressed(blocks, FP8_INPUTS).quant_group_size == 128
    assert model.notes == ()


def test_fp8_weights_with_16_bit_inputs_are_read_as_fp8_and_multiplied_in_16_bits():
    weight_only, fp8 = compressed(FP8), compressed(FP8, FP8_INPUTS)
    h100 = find_gpu("H100")
    assert weight_only.weight_bytes() == fp8.weight_bytes() < tiny().weight_bytes()
    assert compute_dtype(h100, fp8.weight_dtype) == "fp8"
    assert compute_dtype(h100, weight_only.weight_dtype) == "bf16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": FP8, "targets": ["Linear", "Embedding"]}, r"group_0\.targets: only"),
        ({"weights": FP8, "targets": []}, r"group_0\.targets: only"),
        ({"weights": INT4, "inputs": FP8_INPUTS}, "input_activations: integer weights with quantised inputs"),
        (
            {"weights": FP8, "inputs": {**FP8_INPUTS, "type": "int"}},
            "fp8 weights are modelled with fp8 inputs",
        ),
        (
            {"weights": {**FP8, "strategy": "group", "group_size": 128}},
            "strategy: fp8 weights are modelled with",
        ),
        ({"weights": {**INT4, "group_size": 0}}, "group_size: a number of weights"),
        ({"weights": {**INT4, "group_size": "x"}}, "group_size: a whole number"),
        ({"weights": INT4, "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse weights are not"),
        ({"weights": INT4, "ignore": [3]}, "ignore: a list of strings"),
    ],
)
def test_compressed_tensors_that_are_not_modelled_are_refused_by_the_name_of_the_field(arguments, message):
    with pytest.raises(InputError, match=message):
        compressed(**arguments)


def test_a_dense_sparsity_section_says_nothing_and_a_kv_cache_scheme_is_noted():
    assert compressed(INT4, sparsity_config={"format": "dense", "global_sparsity": 0.1}).notes == ()
    (note,) = compressed(INT4, kv_cache_scheme={"num_bits": 8, "type": "float"}).notes
    assert "kv_cache_scheme" in note
    assert "kv_cache_dtype" in note
    (note,) = compressed({**INT4, "shape": 3}, transform_config={"r1": 1}).notes
    assert note == (
        "config fields not modelled: quantization_config.config_groups.group_0.weights.shape, "
        "quantization_config.transform_config"
    )


# ---------------------------------------------------------------- fields nobody reads

LLAMA_FILE = {  # the field names of meta-llama/Llama-3.1-8B's config.json
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": [128001], "hidden_act": "silu", "initializer_range": 0.02,
    "mlp_bias": False, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 5e5,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.43.0",
    "use_cache": True,
}  # fmt: skip
QWEN_FILE = {  # Qwen/Qwen3-8B's
    **LLAMA_FILE, "model_type": "qwen3", "max_window_layers": 36, "sliding_window": None,
    "use_sliding_window": False, "layer_types": ["full_attention"] * 2, "head_dim": 16,
}  # fmt: skip
DEEPSEEK_FILE = {  # deepseek-ai/DeepSeek-V3's, and head_dim and qk_head_dim as transformers writes them
    "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False,
    "auto_map": {"AutoConfig": "c.C"}, "aux_loss_alpha": 0.001, "ep_size": 1, "first_k_dense_replace": 1,
    "kv_lora_rank": 16, "moe_intermediate_size": 32, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 8,
    "n_shared_experts": 1, "norm_topk_prob": True, "num_experts_per_tok": 2, "q_lora_rank": 16,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
    "seq_aux": True, "topk_group": 4, "topk_method": "noaux_tc", "v_head_dim": 16, "head_dim": 8,
    "qk_head_dim": 24,
    "quantization_config": {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
    },
}  # fmt: skip
GEMMA2_FILE = {  # google/gemma-2-9b's
    "model_type": "gemma2", "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    "cache_implementation": "hybrid", "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256,
    "sliding_window": 64, "head_dim": 16, "attention_bias": False,
}  # fmt: skip
GPT_OSS_FILE = {  # openai/gpt-oss-20b's
    "model_type": "gpt_oss", "attention_bias": True, "experts_per_token": 4, "num_experts_per_tok": 4,
    "initial_context_length": 4096, "num_local_experts": 32, "output_router_logits": False,
    "router_aux_loss_coef": 0.9, "swiglu_limit": 7.0, "sliding_window": 128,
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_scaling": {
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
        "rope_type": "yarn", "truncate": False,
    },
    "quantization_config": {
        "modules_to_not_convert": ["model.layers.*.self_attn", "model.embed_tokens"], "quant_method": "mxfp4",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "file",
    [LLAMA_FILE, QWEN_FILE, DEEPSEEK_FILE, GEMMA2_FILE, GPT_OSS_FILE],
    ids=lambda f: f.get("model_type"),
)
def test_the_fields_of_real_config_files_are_known(file):
    assert not any("not modelled" in note for note in tiny(**file).notes)


@pytest.mark.parametrize("name", model_names(variants=True))
def test_no_catalog_model_has_a_field_that_is_not_modelled(name):
    assert not any("not modelled" in note for note in find_model(name).notes)


def test_fields_that_nobody_reads_make_one_note_in_order():
    (note,) = tiny(zeta=0, sliding_window=64, alpha={"a": 1}, nothing=None).notes
    assert note == "config fields not modelled: alpha, sliding_window, zeta"


def test_a_switch_that_is_on_is_noted_and_one_that_is_off_is_not():
    qwen = {"model_type": "qwen2"}
    assert tiny(**qwen, attention_bias=False).notes == ()
    assert tiny(**qwen, mlp_bias=True).notes == ()  # read by every dense MLP
    assert tiny(use_sliding_window=False).notes == ()
    assert "use_sliding_window" in tiny(use_sliding_window=True).notes[0]


@pytest.mark.parametrize("key", ["quantization", "qk_layernorm", "add_cross_attention", "mamba_d_state"])
def test_what_changes_the_architecture_is_refused_when_on(key):
    assert tiny(**{key: False}).notes == ()
    with pytest.raises(InputError, match=f"{key}: .* not modelled"):
        tiny(**{key: {"bits": 4}})


def test_starcoder_without_biases_has_none():
    starcoder = {"model_type": "starcoder2", "tie_word_embeddings": True}
    biases = [w for w in tiny(**starcoder, use_bias=False).weights() if w.role == "bias"]
    assert biases == []
    assert [w for w in tiny(**starcoder).weights() if w.role == "bias"]


# ---------------------------------------------------------------- hostile values

FUZZED = [
    "llama-3.1-8b", "qwen2.5-7b", "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-8B-FP8", "deepseek-v3", "gpt-oss-20b",
    "gemma-3-4b-it", "mixtral-8x7b-v0.1", "starcoder2-7b", "phi-2", "phi-4", "olmo-2-1124-7b",
]  # fmt: skip
HOSTILE = [0, -1, 1, 3, 1.5, "x", "", None, [], {}, [-1], [True], {"a": 1}, True, False, 1e300, math.nan,
           math.inf, 10**9, 10**30]  # fmt: skip
MORE = {
    "sliding_window": 8, "sliding_window_pattern": 2, "use_sliding_window": True, "max_window_layers": 1,
    "layer_types": [], "text_config": {}, "vision_config": {}, "attention_bias": False, "mlp_bias": False,
    "use_bias": True, "head_dim": 64, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    "decoder_sparse_step": 1, "n_positions": 4096, "quant": 1,
    "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128},
    "quantization_config": {
        "quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "dynamic": {}, "lm_head": False,
    },
}  # fmt: skip
COMPRESSED = {
    "quant_method": "compressed-tensors", "ignore": [], "sparsity_config": {}, "kv_cache_scheme": {},
    "config_groups": {"g": {"weights": INT4, "input_activations": None, "targets": ["Linear"]}},
}  # fmt: skip
STEP = StepWork(prefills=1, prefill_tokens=8, prefill_pairs=36, prefill_context_tokens=8, decodes=2,
                decode_context_tokens=9, sampled=3)  # fmt: skip


def places(value, path=()):
    """Every path to a value inside nested objects."""
    for key, inner in value.items():
        yield (*path, key)
        if isinstance(inner, dict):
            yield from places(inner, (*path, key))


def changed_at(config, path, value):
    config = copy.deepcopy(config)
    inner = config
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return config


def check_sound(config):
    """Either refused as bad input, or a model whose sizes and times are finite and above 0."""
    try:
        model = spec_from_hf_config(config, "fuzzed")
        engine = Engine(max_num_seqs=8, max_num_batched_tokens=64)
        cost = DatasheetTiming(model, find_gpu("H100"), engine).cost(STEP)
    except InputError:
        return False
    numbers = [
        model.parameters(),
        model.weight_bytes(),
        model.kv_bytes_per_token(),
        model.max_model_len,
        *cost,
    ]
    assert all(isinstance(number, int | float) and 0 < number < math.inf for number in numbers)
    return True


@pytest.mark.parametrize("name", FUZZED)
def test_hostile_values_of_any_field_are_refused_or_make_a_sound_model(name):
    given = model_entry(name).config
    config = {**given, "num_hidden_layers": 4}
    variants = [config, {**MORE, **config}, {**config, "quantization_config": COMPRESSED}]
    for variant in variants:
        assert check_sound(variant)
        for path in places(variant):
            for value in HOSTILE:
                check_sound(changed_at(variant, path, value))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads: a whole number of at least 1"),
        ({"num_key_value_heads": 0}, "num_key_value_heads: a whole number of at least 1"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 4 query heads cannot share 3"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "hidden_size: without head_dim, 5 heads"),
        ({"head_dim": 0}, "head_dim: a whole number of at least 1"),
        ({"hidden_size": 0}, "hidden_size: a whole number of at least 1"),
        ({"vocab_size": 0}, "vocab_size: a whole number of at least 1"),
        ({"intermediate_size": 0}, "intermediate_size: a whole number of at least 1"),
        ({"intermediate_size": math.nan}, "intermediate_size: a whole number of at least 1"),
        ({"vocab_size": 10**30}, "vocab_size: a whole number of at most"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: a whole number of at most 10000"),
        ({"rope_scaling": {"type": "linear", "factor": "x"}}, r"rope_scaling\.factor: a number above 0"),
        ({"rope_scaling": {"type": "linear", "factor": math.nan}}, r"rope_scaling\.factor: a number above 0"),
        ({"rope_scaling": {"type": "warp", "factor": 2.0}}, "RoPE type 'warp' is not modelled"),
        ({"text_config": "x"}, "text_config: an object is needed"),
        ({"num_kv_heads": 4}, "num_key_value_heads and num_kv_heads say different things"),
        (
            {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 9},
            "num_experts_per_tok: a token cannot be sent to 9 of 8 experts",
        ),
    ],
)
def test_sizes_that_no_model_has_are_refused_by_the_name_of_their_field(changed, message):
    with pytest.raises(InputError, match=message):
        tiny(**changed)


@given(
    heads=st.sampled_from([1, 2, 4, 8]),
    kv_heads=st.sampled_from([1, 2, 4, 8]),
    layers=st.integers(1, 4),
    experts=st.sampled_from([0, 4, 8]),
    tied=st.booleans(),
)
def test_laws_of_counting(heads, kv_heads, layers, experts, tied):
    attention = Attention("gqa", heads=heads, kv_heads=min(kv_heads, heads), head_dim=16)
    mlp = Mlp(64, experts=experts, experts_per_token=min(experts, 2))
    model = ModelSpec("m", "llama", 32, 50, (Layer(attention, mlp),) * layers, tied, 128)
    assert model.weight_bytes() == 2 * model.parameters()
    assert model.active_parameters() <= model.parameters()
    assert (model.active_parameters() == model.parameters()) == (experts == 0)
    assert model.kv_bytes_per_token() == layers * 2 * min(kv_heads, heads) * 16 * 2


def test_every_family_is_in_the_catalog_or_reads_a_text_config():
    known = {model_entry(name).config["model_type"] for name in model_names()}
    assert known | {"gemma3"} == set(FAMILIES)
