import json
from pathlib import Path

import pytest

from kavier.ecosystem.gpu import GpuSpec
from kavier.ecosystem.memory import kv_memory
from kavier.ecosystem.models import find_model
from kavier.errors import InputError
from kavier.scenario import Engine

GIB = 2**30
SHARED = Path(__file__).parents[2] / "shared" / "data"


def gpu(memory_gib, name="H100-SXM"):
    return GpuSpec(
        name=name,
        vendor="nvidia",
        architecture="hopper",
        memory_bytes=round(memory_gib * GIB),
        bandwidth_bytes_per_s=3.35e12,
        flops_per_s={"bf16": 989e12},
        tdp_w=700,
        idle_w=70,
        loaded_idle_w=120,
        interconnect="nvlink",
        interconnect_bytes_per_s=450e9,
        sms=132,
        l2_bytes=50_000_000,
    )


H100 = gpu(79.19)


def memory(model="llama-3.1-8b", card=H100, tokens=8192, seqs=1024, **engine):
    return kv_memory(find_model(model), card, Engine(**engine), tokens, seqs)


def test_the_terms_add_up_to_the_utilised_memory_but_for_a_part_of_a_block():
    it = memory(gpu_memory_utilization=0.9)
    assert it.total_bytes == H100.memory_bytes
    used = it.weight_bytes + it.activation_reserve_bytes + it.non_torch_reserve_bytes + it.kv_bytes
    assert 0 <= it.utilized_bytes - used < it.kv_block_bytes
    assert it.utilized_bytes == pytest.approx(0.9 * it.total_bytes, abs=1)
    assert it.kv_bytes == it.kv_blocks * it.kv_block_bytes
    assert it.kv_block_bytes == 16 * 131072


def test_vllm_0_31_on_an_a100_reported_460496_tokens_for_llama_8b():
    """vllm/vllm-openai:v0.31.0, all defaults: 79.25 GiB, 0.92, 'GPU KV cache size: 460,496 tokens'."""
    it = memory(card=gpu(79.25, "A100-80GB-SXM"), tokens=2048, seqs=256)
    assert it.kv_blocks == pytest.approx(460_496 / 16, rel=0.015)


def test_an_rtx_4090_holds_the_blocks_that_vllm_allocated():
    runs = measured_runs("llmservingsim/runs.json")
    run = next(run for run in runs if run["hardware"] == "RTX4090")
    card = gpu(run["hardware_info"]["device_total_memory_bytes"] / GIB, "RTX-4090")
    it = memory(card=card, tokens=2048, seqs=256, gpu_memory_utilization=0.9, max_model_len=32768)
    assert it.kv_blocks == pytest.approx(run["kv_cache"]["num_gpu_blocks"], rel=0.03)


def test_h100_runs_hold_the_blocks_that_vllm_allocated():
    runs = measured_runs("vllm_h100_runs/runs.json")
    names = {run["model"].rpartition("/")[2]: run["config"] for run in runs}
    assert names
    for name, config in names.items():
        it = memory(
            name,
            tokens=config["max_num_batched_tokens"],
            seqs=config["max_num_seqs"],
            gpu_memory_utilization=0.9,
            tensor_parallel_size=config["tensor_parallelism"],
        )
        assert it.kv_blocks == pytest.approx(config["kv_blocks_total_gpu"], rel=0.03), name


def measured_runs(path):
    if not (SHARED / path).exists():
        pytest.skip("the measured runs of ../shared are not here")
    return json.loads((SHARED / path).read_text())


def test_a_model_that_does_not_fit_says_by_how_much_and_what_would():
    with pytest.raises(InputError, match=r"need 6\d\.\d\d GiB more.*expected engine.tensor_parallel_size 4"):
        memory("llama-3.1-70b", tensor_parallel_size=1)
    assert memory("llama-3.1-70b", tensor_parallel_size=4, max_model_len="auto").kv_blocks > 1


def test_a_model_that_eight_gpus_do_not_hold_says_so():
    with pytest.raises(InputError, match="8 of these do not hold it either"):
        memory("deepseek-v3", card=gpu(24))


def test_a_request_that_does_not_fit_in_the_cache_says_how_long_it_may_be():
    card = gpu(22)
    with pytest.raises(InputError, match=r"needs 16\.00 GiB of KV cache.*at most (\d+) ") as error:
        memory(card=card, tokens=2048, seqs=256)
    longest = int(str(error.value).split("at most ")[1].split()[0])
    assert memory(card=card, tokens=2048, seqs=256, max_model_len=longest).max_model_len == longest
    with pytest.raises(InputError, match="KV cache"):
        memory(card=card, tokens=2048, seqs=256, max_model_len=longest + 1)


def test_auto_takes_what_fits_and_notes_the_cut():
    cut = memory(card=gpu(22), tokens=2048, seqs=256, max_model_len="auto")
    assert cut.max_model_len == (cut.kv_blocks - 1) * 16 < 131072
    assert any("max_model_len auto" in note for note in cut.notes)
    whole = memory(max_model_len="auto")
    assert whole.max_model_len == 131072
    assert not any("max_model_len auto" in note for note in whole.notes)


def test_an_estimated_count_says_so_and_a_given_one_does_not():
    assert any("estimated reserve" in note for note in memory().notes)
    assert memory(num_gpu_blocks_override=100).notes == ()


def test_the_model_sets_the_longest_request():
    assert memory().max_model_len == 131072
    assert memory(max_model_len=4096).max_model_len == 4096
    with pytest.raises(InputError, match="131073 is greater than the 131072 tokens"):
        memory(max_model_len=131073)


def test_an_override_replaces_the_count_and_the_check_of_one_request():
    it = memory(num_gpu_blocks_override=100)
    assert (it.kv_blocks, it.kv_bytes, it.max_model_len) == (100, 100 * it.kv_block_bytes, 131072)
    assert memory(num_gpu_blocks_override=100, max_model_len="auto").max_model_len == 99 * 16


def test_gpus_must_share_the_heads_evenly():
    with pytest.raises(InputError, match=r"heads \(32, 8 of .*\) must be divisible .* \(3\).*1, 2, 4, 8"):
        memory(tensor_parallel_size=3)
    with pytest.raises(InputError, match=r"heads \(40, 10 of .*size of 1, 2, 5, 10, 20, 40$"):
        memory("phi-4", tensor_parallel_size=4)


def test_fp8_keys_double_the_tokens():
    plain, fp8 = memory(), memory(kv_cache_dtype="fp8")
    assert fp8.kv_block_bytes * 2 == plain.kv_block_bytes
    assert fp8.kv_blocks == pytest.approx(2 * plain.kv_blocks, abs=1)


def test_more_sequences_or_tokens_never_leave_more_cache():
    blocks = [memory(tokens=t, seqs=s).kv_blocks for t, s in ((2048, 256), (8192, 256), (8192, 4096))]
    assert blocks == sorted(blocks, reverse=True)
    assert blocks[2] < blocks[1] < blocks[0]


def test_mixtures_of_experts_and_latent_attention_are_divided_too():
    deepseek = memory("deepseek-v3", card=gpu(140, "H200-SXM"), tensor_parallel_size=8)
    assert deepseek.weight_bytes == pytest.approx(627 / 8 * GIB, rel=0.03)
    assert deepseek.kv_block_bytes == 16 * 70272


def test_engines_that_share_experts_hold_a_part_of_them_each():
    model = find_model("mistralai/Mixtral-8x7B-v0.1")
    experts = sum(model.bytes_of(weight) for weight in model.weights() if weight.role == "expert")
    assert model.weight_bytes(1) - model.weight_bytes(1, 4) == pytest.approx(experts * 3 / 4)
    assert find_model("meta-llama/Llama-3.1-8B").weight_bytes(1, 4) == find_model(
        "meta-llama/Llama-3.1-8B"
    ).weight_bytes(1)
