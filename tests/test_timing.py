"""Step times of level "datasheet": laws, work of each kind of model, and published figures."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kavier.ecosystem.gpu import GpuSpec, find_gpu, gpu_names
from kavier.ecosystem.model import Attention, Layer, Mlp, ModelSpec
from kavier.ecosystem.models import find_model
from kavier.errors import InputError
from kavier.scenario import Engine
from kavier.timing.attention import attention_layers
from kavier.timing.collectives import Collective, all_gather, all_reduce
from kavier.timing.constants import read_constants
from kavier.timing.datasheet import DatasheetTiming, graph_sizes, largest_graph, pad, sampler_of
from kavier.timing.gemm import Gemm, gemm_roof, smooth_max
from kavier.timing.linear import Rank, layer_ops
from kavier.timing.moe import distinct_experts, popularity
from kavier.timing.parameters import (
    kernel_entries,
    kernel_versions,
    measured_gpus,
    memory_class,
    parameters_of,
    shared_entries,
)
from kavier.timing.step import StepCost, StepTimeModel, StepWork


def gpu(name, architecture, bandwidth, bf16, interconnect="nvlink", link=450e9, tdp=700.0, **more) -> GpuSpec:
    return GpuSpec(
        name, "nvidia", architecture, 80 * 2**30, bandwidth, {"bf16": bf16, **more}, tdp, 70.0, 122.0,
        interconnect, link, 132, 50_000_000,
    )  # fmt: skip


H100 = gpu("H100-SXM", "hopper", 3.35e12, 989e12, fp8=1979e12)
A100 = gpu("A100-80GB-SXM", "ampere", 2.039e12, 312e12, link=300e9)
A10 = gpu("A10", "ampere", 600e9, 125e12, "pcie", 32e9, tdp=150.0)
RTX_PRO_6000 = gpu("RTX-PRO-6000", "blackwell", 1.597e12, 504e12, "pcie", 64e9, fp8=1007e12)
GPUS = [H100, A100, A10, RTX_PRO_6000]


def decoder(layers, hidden, vocab, **more) -> ModelSpec:
    return ModelSpec("test", "test", hidden, vocab, tuple(layers), False, 131072, **more)


def dense(count, hidden, heads, kv_heads, width, vocab, **more) -> ModelSpec:
    return decoder([Layer(Attention("gqa", heads, kv_heads, 128), Mlp(width))] * count, hidden, vocab, **more)


LLAMA_8B = dense(32, 4096, 32, 8, 14336, 128256)
LLAMA_2_7B = dense(32, 4096, 32, 32, 11008, 32000)
MIXTRAL = decoder(
    [Layer(Attention("gqa", 32, 8, 128), Mlp(14336, experts=8, experts_per_token=2))] * 32, 4096, 32000
)
MLA = Attention(
    "mla", 128, 128, 192, q_lora_rank=1536, kv_lora_rank=512,
    qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
)  # fmt: skip
DEEPSEEK = decoder(
    [Layer(MLA, Mlp(18432))] * 3
    + [Layer(MLA, Mlp(2048, experts=256, experts_per_token=8, shared_intermediate_size=2048))] * 58,
    7168, 129280, weight_dtype="fp8", quant_group_size=128,
)  # fmt: skip
_OSS_MLP = Mlp(2880, experts=128, experts_per_token=4)
GPT_OSS = decoder(
    [Layer(Attention("gqa", 64, 8, 64, window=w), _OSS_MLP) for w in (128, None)] * 18,
    2880, 201088, weight_dtype="mxfp4", quantized_roles=frozenset({"expert"}), quant_group_size=32,
)  # fmt: skip
MODELS = {"llama": LLAMA_8B, "mixtral": MIXTRAL, "deepseek": DEEPSEEK, "gpt-oss": GPT_OSS}


def engine(**settings) -> Engine:
    return Engine(**{"max_num_seqs": 256, "max_num_batched_tokens": 8192} | settings)


def timing(model=LLAMA_8B, on=H100, level="datasheet", **settings) -> DatasheetTiming:
    chosen = engine(**settings)
    return DatasheetTiming(model, on, chosen, parameters_of(on, level, chosen.vllm_version))


def shared(on: GpuSpec):
    return parameters_of(on, "datasheet")


def decodes(count: int, context: int) -> StepWork:
    return StepWork(decodes=count, decode_context_tokens=count * context, sampled=count)


def prefill(tokens: int, cached: int = 0) -> StepWork:
    pairs = tokens * cached + tokens * (tokens + 1) // 2
    return StepWork(1, tokens, pairs, tokens + cached, sampled=1)


def batch(chunks, contexts) -> StepWork:
    """Work of prefill chunks (tokens, cached), all of them final, and decodes with these contexts."""
    return StepWork(
        prefills=len(chunks),
        prefill_tokens=sum(q for q, _ in chunks),
        prefill_pairs=sum(q * c + q * (q + 1) // 2 for q, c in chunks),
        prefill_context_tokens=sum(q + c for q, c in chunks),
        decodes=len(contexts),
        decode_context_tokens=sum(contexts),
        sampled=len(contexts) + len(chunks),
    )


chunk_lists = st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 30_000)), max_size=5)
context_lists = st.lists(st.integers(1, 30_000), max_size=40)
degrees = st.sampled_from([1, 2, 8])
timings = st.builds(
    timing, st.sampled_from(list(MODELS.values())), st.sampled_from(GPUS), tensor_parallel_size=degrees
)
FIELD_RANGES = ((1, 64), (1, 4096), (1, 10**7), (4096, 10**5), (0, 256), (0, 10**6), (0, 256))


def at_least(longer: StepCost, shorter: StepCost) -> bool:
    return all(a >= b * (1 - 1e-12) for a, b in zip(longer, shorter, strict=True))


# Laws


@given(timings, chunk_lists, context_lists, st.integers(1, 500))
def test_more_work_of_any_kind_never_costs_less(model, chunks, contexts, more):
    if not chunks and not contexts:
        chunks = [(1, 0)]
    before = model.cost(batch(chunks, contexts))
    assert at_least(model.cost(batch([*chunks, (more, 7 * more)], contexts)), before)
    assert at_least(model.cost(batch(chunks, [*contexts, more])), before)
    if chunks:
        q, c = chunks[0]
        assert at_least(model.cost(batch([(q + more, c), *chunks[1:]], contexts)), before)
        assert at_least(model.cost(batch([(q, c + more), *chunks[1:]], contexts)), before)
    if contexts:
        assert at_least(model.cost(batch(chunks, [contexts[0] + more, *contexts[1:]])), before)


@given(
    st.sampled_from(["llama", "mixtral", "gpt-oss"]),
    st.sampled_from(GPUS),
    st.builds(StepWork, *[st.integers(low, high) for low, high in FIELD_RANGES]),
    st.sampled_from(StepWork.__slots__),
    st.integers(1, 1000),
)
def test_cost_rises_in_every_field_of_the_work(name, on, work, field, more):
    # Not MLA: there a prefill token that is not computed is a cached one, whose keys must be expanded.
    model = timing(MODELS[name], on)
    assert at_least(model.cost(replace(work, **{field: getattr(work, field) + more})), model.cost(work))


@given(timings, chunk_lists, context_lists)
def test_no_step_is_faster_than_the_datasheet_allows(model, chunks, contexts):
    work = batch(chunks or [(1, 0)], contexts)
    cost, on = model.cost(work), model._gpu
    peak = max(on.flops_per_s.values())
    assert cost.time_s >= cost.flops / peak * (1 - 1e-12)
    assert cost.time_s >= cost.bytes / on.bandwidth_bytes_per_s * (1 - 1e-12)


@given(st.integers(1, 8192), st.integers(1, 64), st.integers(1, 64))
def test_half_a_gemm_never_takes_longer_than_the_whole(tokens, n, k):
    roof = gemm_roof(H100, parameters_of(H100), "bf16")
    whole = Gemm(n * 256, k * 256, 2 * n * k * 256**2, roof).time_s(tokens)
    assert Gemm(n * 128, k * 256, n * k * 256**2, roof).time_s(tokens) <= whole
    assert Gemm(n * 256, k * 128, n * k * 256**2, roof).time_s(tokens) <= whole


@given(st.floats(0, 1e3), st.floats(0, 1e3))
def test_the_smooth_maximum_is_between_the_larger_and_the_sum(a, b):
    assert max(a, b) <= smooth_max(a, b, 2.1) <= (a + b) * (1 + 1e-12)


def test_equal_work_costs_equal_in_every_instance_and_order():
    works = [prefill(300), decodes(7, 900), batch([(100, 50)], [9, 90]), decodes(7, 900)]
    forward = [timing(GPT_OSS).cost(work) for work in works]
    backward = timing(GPT_OSS)
    assert [backward.cost(work) for work in reversed(works)] == forward[::-1]


def test_a_step_without_tokens_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        timing().cost(StepWork())


def test_an_unresolved_engine_is_refused():
    with pytest.raises(ValueError, match="not resolved"):
        DatasheetTiming(LLAMA_8B, H100, Engine())


def test_it_is_a_step_time_model():
    model: StepTimeModel = timing()
    assert model.level == "datasheet"


# FLOPs and bytes


def test_prefill_flops_are_two_per_parameter_and_token_plus_attention():
    tokens, head = 1000, 128256 * 4096
    linear = LLAMA_8B.active_parameters() - 2 * head  # the embedding is looked up, the head runs once
    attention = 4 * 32 * 128 * 32 * tokens * (tokens + 1) / 2
    assert timing().cost(prefill(tokens)).flops == pytest.approx(
        2 * linear * tokens + 2 * head + attention, rel=1e-4
    )


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss", "deepseek"])
def test_an_expert_model_computes_its_active_parameters_only(name):
    model = MODELS[name]
    linear = model.active_parameters() - 2 * model.vocab_size * model.hidden_size
    work = StepWork(prefill_tokens=1000, prefill_context_tokens=1000)  # no pair: linear layers alone
    assert timing(model).cost(work).flops == pytest.approx(2 * linear * 1000, rel=2e-3)


def test_a_decode_reads_the_weights_and_the_kv_cache():
    count, context = 16, 2000
    weights = LLAMA_8B.weight_bytes() - 2 * 128256 * 4096  # embedding
    kv = LLAMA_8B.kv_bytes_per_token() * count * context
    assert timing().cost(decodes(count, context)).bytes == pytest.approx(weights + kv, rel=0.01)


def test_mla_reads_one_latent_per_token_whatever_the_parallelism():
    for degree in (1, 8):
        model = timing(DEEPSEEK, tensor_parallel_size=degree)
        more = model.cost(decodes(4, 2000)).bytes - model.cost(decodes(4, 1000)).bytes
        assert more == pytest.approx(4 * 1000 * 61 * (512 + 64) * 2)


def test_a_window_bounds_what_its_layers_read():
    model = timing(GPT_OSS)
    more = model.cost(decodes(4, 2000)).bytes - model.cost(decodes(4, 1000)).bytes
    assert more == pytest.approx(4 * 1000 * 18 * 2 * 8 * 64 * 2)  # the 18 full layers alone
    near = model.cost(decodes(4, 100)).bytes - model.cost(decodes(4, 50)).bytes
    assert near == pytest.approx(4 * 50 * 36 * 2 * 8 * 64 * 2)


def windowed_kv_tokens(work: StepWork, window: int) -> float:
    layers = attention_layers(
        H100, parameters_of(H100), Attention("gqa", 64, 8, 64, window=window), engine(), 1
    )
    return layers.cost(work)[2] / layers.work.kv_bytes


def test_many_chunks_beyond_a_window_each_read_a_window():
    assert windowed_kv_tokens(batch([(16, 3984)] * 16, []), 128) == 16 * (16 + 127)  # 2,288


@given(chunk_lists, context_lists, st.integers(1, 5000))
def test_a_window_on_sums_never_reads_less_than_request_by_request(chunks, contexts, window):
    exact = sum(min(c + q, q + window - 1) for q, c in chunks) + sum(min(c, window) for c in contexts)
    assert windowed_kv_tokens(batch(chunks, contexts), window) >= exact
    for beyond in (0, window):  # all requests inside, or all beyond the window
        alike = batch([(1, beyond)] * len(chunks), [1 + beyond] * len(contexts))
        count = (window if beyond else 1) * (len(chunks) + len(contexts))
        assert windowed_kv_tokens(alike, window) == count


def test_an_fp8_kv_cache_halves_kv_reads():
    def kv_bytes(dtype):
        model = timing(kv_cache_dtype=dtype)
        return model.cost(decodes(8, 4000)).bytes - model.cost(decodes(8, 1)).bytes

    assert kv_bytes("fp8") == pytest.approx(kv_bytes("auto") / 2)


def test_distinct_experts_run_from_those_of_one_token_to_all():
    assert distinct_experts(128, 4, 1) == pytest.approx(4)
    assert distinct_experts(8, 2, 2) == pytest.approx(8 * (1 - 0.75**2))
    assert distinct_experts(128, 4, 10_000) == pytest.approx(128)


def test_tensor_parallelism_divides_flops_and_bytes_and_adds_all_reduces():
    one, two = (timing(LLAMA_8B, tensor_parallel_size=n).cost(decodes(8, 1000)) for n in (1, 2))
    assert two.flops == pytest.approx(one.flops / 2, rel=0.01)
    assert two.bytes == pytest.approx(one.bytes / 2, rel=0.02)
    assert one.time_s / 2 < two.time_s < one.time_s


def test_kv_heads_are_replicated_when_gpus_outnumber_them():
    def kv_bytes(degree):
        model = timing(tensor_parallel_size=degree)
        return model.cost(decodes(8, 4000)).bytes - model.cost(decodes(8, 1000)).bytes

    assert [kv_bytes(16), kv_bytes(8)] == pytest.approx([kv_bytes(1) / 8] * 2)


def test_all_reduces_over_pcie_cost_more_than_over_nvlink():
    pcie = replace(H100, interconnect="pcie", interconnect_bytes_per_s=64e9)
    nvlink_s, pcie_s = (
        timing(LLAMA_8B, on, tensor_parallel_size=4).cost(prefill(2048)).time_s for on in (H100, pcie)
    )
    assert pcie_s > 1.2 * nvlink_s


def test_sampled_rows_pay_for_gathering_their_logits():
    for degree in (2, 4, 8):
        received_bytes = 128256 * 2 * (degree - 1) // degree
        gather = all_gather(H100, shared(H100), degree, 128256 // degree)
        reduce = all_reduce(H100, shared(H100), degree, received_bytes // 2)
        assert [gather.time_s(rows) for rows in (0, 1, 64)] == [reduce.time_s(rows) for rows in (0, 1, 64)]
        # Once in a step that samples: over a link that all but stands still, nothing else counts.
        slow = replace(H100, interconnect_bytes_per_s=1.0)
        model = timing(LLAMA_8B, slow, tensor_parallel_size=degree)
        more = model.cost(decodes(64, 100)).time_s - model.cost(replace(decodes(64, 100), sampled=0)).time_s
        alone = all_gather(slow, shared(slow), degree, 128256 // degree).time_s(64)
        assert more == pytest.approx(alone, rel=1e-3)


def test_larger_messages_never_take_less_on_any_measured_link():
    sizes = np.unique(np.geomspace(1, 2**29, 2000).astype(np.int64))
    for name in measured_gpus():
        on = find_gpu(name)
        for degree in (2, 4, 8):
            times = np.asarray(all_reduce(on, parameters_of(on), degree, 1).time_s(sizes))
            assert np.all(np.diff(times) >= -1e-12 * times[1:]), (name, degree)


def test_quantised_weights_are_read_in_their_dtype():
    int4 = replace(LLAMA_8B, weight_dtype="int4", quant_group_size=128)
    fp8 = replace(LLAMA_8B, weight_dtype="fp8")
    seconds = [timing(model).cost(decodes(1, 100)).time_s for model in (int4, fp8, LLAMA_8B)]
    assert seconds == sorted(seconds)
    assert timing(int4).cost(decodes(1, 100)).bytes < 0.4 * timing().cost(decodes(1, 100)).bytes


def test_fp8_computes_faster_only_where_the_gpu_has_it():
    fp8 = replace(LLAMA_8B, weight_dtype="fp8")
    for on, faster in ((H100, True), (A100, False)):
        gain = timing(LLAMA_8B, on).cost(prefill(8000)).time_s / timing(fp8, on).cost(prefill(8000)).time_s
        assert (gain > 1.1) == faster


def test_graphs_pad_small_steps_and_leave_large_ones():
    sizes = graph_sizes(max_num_seqs=256, max_num_batched_tokens=8192)
    assert pad(np.array([1, 3, 5, 9, 255, 257, 500, 512, 513]), sizes).tolist() == [
        1, 4, 8, 16, 256, 272, 512, 512, 513,
    ]  # fmt: skip
    assert graph_sizes(8, 8192) == [1, 2, 4, 8, 16]
    assert graph_sizes(9, 8192) == [1, 2, 4, 8, 9, 16]  # decodes of all requests fit exactly
    assert graph_sizes(16, 20) == [1, 2, 4, 8, 16, 20]  # and so does the largest batch
    assert 600 not in graph_sizes(600, 8192)
    assert (
        timing().cost(replace(decodes(9, 100), sampled=0)).flops
        < 9.1 / 8 * timing().cost(replace(decodes(8, 100), sampled=0)).flops
    )
    assert all(a < b for a, b in pairwise(sizes))


def test_datacenter_blackwell_captures_larger_graphs():
    b200 = gpu("B200-SXM", "blackwell", 8e12, 2250e12, link=900e9)
    assert [largest_graph(on) for on in (H100, RTX_PRO_6000, b200)] == [512, 512, 1024]
    assert graph_sizes(1024, 8192, largest_graph(b200))[-1] == 1024
    on_b200, on_h100 = (
        [timing(LLAMA_8B, on, max_num_seqs=1024)._body[n][0] for n in (595, 608)] for on in (b200, H100)
    )
    assert on_b200[0] == on_b200[1]  # both padded to 608
    assert on_h100[0] < on_h100[1]


def test_a_prefill_slows_decodes_under_flash_attention_2_only():
    def slowdown(on):
        model = timing(LLAMA_8B, on)
        mixed = batch([(512, 0)], [4000] * 64)
        apart = model.cost(prefill(512)).time_s + model.cost(decodes(64, 4000)).time_s
        return model.cost(mixed).time_s / apart

    assert slowdown(A10) > slowdown(H100)
    assert slowdown(H100) < 1


def test_without_a_kv_cache_long_recomputed_steps_are_priced_too():
    model = timing(max_num_batched_tokens=2048)
    long = model.cost(prefill(100_000))
    assert long.time_s > 10 * model.cost(prefill(10_000)).time_s
    assert len(model._body.table) == 2049  # priced on the fly, the table stays small


# Published figures, typed in; no constant was fitted to them


def test_llama_2_7b_on_h100_decodes_within_4_percent_of_a_measured_regression():
    """vLLM 0.15.1, three runs of inference-sim: ITL = 5.93 ms + 0.183 ms per 1,000 context tokens."""
    for count, context in ((8, 1000), (32, 500), (64, 600)):
        measured = 5.93e-3 + 0.183e-6 * count * context
        assert timing(LLAMA_2_7B).cost(decodes(count, context)).time_s == pytest.approx(measured, rel=0.04)


def test_llama_3_8b_on_a10_decodes_within_5_percent_of_the_measured_tpot():
    """vLLM 0.9.0 on one A10 (SURF, atlarge-research/Tracer): 35.4 ms a token for answers of 128 to 1,024."""
    assert timing(LLAMA_8B, A10).cost(decodes(1, 300)).time_s == pytest.approx(35.4e-3, rel=0.05)


@pytest.mark.parametrize(("tokens", "measured_s"), [(862, 0.213), (1756, 0.436), (3457, 0.819)])
def test_prefill_on_a10_is_too_fast_by_a_third_and_says_so(tokens, measured_s):
    """Same source. Its power limit keeps the A10 at half of its peak: a known limit of this level."""
    model = timing(LLAMA_8B, A10)
    assert 1.4 < measured_s / model.cost(prefill(tokens)).time_s < 1.6
    assert any("A10, 150 W: 1.4 to 1.6 times" in note for note in model.assumptions())


def test_decodes_with_a_window_lose_the_packed_path_under_flash_attention_2():
    """Kernel table of vLLM 0.24 on RTX PRO 6000 (aiconfigurator), 32 heads in 8 groups: 55.9 us, whatever
    the context behind a window of 128, for 64 decodes; 201.4 us for 256."""
    on = find_gpu("RTX-PRO-6000")
    windowed = attention_layers(on, parameters_of(on), Attention("gqa", 32, 8, 128, window=128), engine(), 1)
    for count, measured_s in ((64, 55.9e-6), (256, 201.4e-6)):
        assert windowed.cost(decodes(count, 4096))[0] == pytest.approx(measured_s, rel=0.1)
    h100 = [
        attention_layers(
            H100, parameters_of(H100), Attention("gqa", 32, 8, 128, window=window), engine(), 1
        ).cost(decodes(64, 128))[0]
        for window in (None, 4096)
    ]
    assert h100[0] == h100[1]


# Assumptions and constants


def test_assumptions_name_what_applies_to_the_model_and_the_gpu():
    def notes(*args, **settings):
        return " | ".join(timing(*args, **settings).assumptions())

    assert "balanced" in notes(MIXTRAL)
    assert "balanced" not in notes(LLAMA_8B)
    assert "MLA" in notes(DEEPSEEK)
    assert "has no fp8" in notes(DEEPSEEK, A100)
    assert "has no fp8" not in notes(DEEPSEEK, H100)
    assert "mxfp4 weights" in notes(GPT_OSS)
    assert "sliding windows" in notes(GPT_OSS)
    assert "FlashAttention-2" in notes(LLAMA_8B, RTX_PRO_6000)
    assert "FlashAttention-2" not in notes(LLAMA_8B, H100)
    assert "peer access" in notes(LLAMA_8B, RTX_PRO_6000, tensor_parallel_size=2)
    assert "16" in notes(LLAMA_8B, H100, tensor_parallel_size=16)
    assert "all-gather of logits" in notes(LLAMA_8B, H100, tensor_parallel_size=2)
    assert "goes on beside the GPU" in notes(LLAMA_8B)
    assert "is added to each step" in notes(LLAMA_8B, vllm_version="0.11")
    assert "sorts each row" in notes(LLAMA_8B, vllm_version="0.14", sampling="top-k-top-p")
    assert "without sorting" in notes(LLAMA_8B, sampling="top-k-top-p")
    assert "spread over 8 GPUs" in notes(MIXTRAL, tensor_parallel_size=8, enable_expert_parallel=True)


def test_each_level_says_what_it_rests_on():
    on = find_gpu("H100")
    assert "shared by GPUs" in timing(LLAMA_8B, on).assumptions()[0]
    assert "measured kernels of H100-SXM" in timing(LLAMA_8B, on, level="kernels").assumptions()[0]
    assert [timing(LLAMA_8B, on, level=level).level for level in ("datasheet", "kernels", None)] == [
        "datasheet", "kernels", "kernels",
    ]  # fmt: skip
    with pytest.raises(InputError, match="no measured kernels of A40; expected one of A100-80GB-SXM"):
        parameters_of(find_gpu("A40"), "kernels")
    assert parameters_of(find_gpu("A40")).level == "datasheet"


def test_what_was_not_measured_on_a_gpu_is_named():
    on = find_gpu("A100")
    notes = " | ".join(timing(replace(MIXTRAL, weight_dtype="int4"), on, level="kernels").assumptions())
    assert "not measured on A100-80GB-SXM, so priced with shared constants: moe.int4" in notes


def test_kernels_of_the_nearest_release_are_taken():
    on = find_gpu("H100")
    versions = {
        v: parameters_of(on, "kernels", v)["gemm.bf16.memory_efficiency"] for v in ("0.11", "0.14", "0.33")
    }
    assert versions["0.11"] == versions["0.14"] != versions["0.33"]


def test_memory_classes_are_told_apart():
    assert [memory_class(on) for on in GPUS] == ["fast", "slow", "slow", "fast"]


def test_every_constant_has_a_source_and_efficiencies_stay_below_one():
    files = [
        shared_entries(),
        *(kernel_entries(on, v) for on in measured_gpus() for v in kernel_versions(on)),
    ]
    for numbers in files:
        values = {name: float(entry["value"]) for name, entry in numbers.items()}
        assert all(math.isfinite(value) and value >= 0 for value in values.values())
        assert all(value <= 1 for name, value in values.items() if name.endswith("efficiency"))
        assert all(entry[key] for entry in numbers.values() for key in ("unit", "source", "date"))
    with pytest.raises(FileNotFoundError):
        read_constants("kavier.timing", "absent.toml")


# Experts over several GPUs


def test_experts_read_and_computed_are_the_same_however_they_are_spread():
    split = timing(MIXTRAL, tensor_parallel_size=8).cost(prefill(4000))
    spread = timing(MIXTRAL, tensor_parallel_size=8, enable_expert_parallel=True).cost(prefill(4000))
    assert spread.flops == pytest.approx(split.flops, rel=1e-9)
    assert spread.bytes == pytest.approx(split.bytes, rel=1e-9)


def test_engines_that_share_experts_send_each_other_their_tokens():
    alone = timing(MIXTRAL, tensor_parallel_size=2)
    together = timing(MIXTRAL, tensor_parallel_size=2, data_parallel_size=4, enable_expert_parallel=True)
    small, large = decodes(1, 100), prefill(8000)
    # One token a peer: four tokens call for more experts together, of which each GPU holds an eighth.
    assert together.cost(large).flops == pytest.approx(alone.cost(large).flops, rel=0.01)
    assert together.cost(small).bytes < alone.cost(small).bytes
    assert together.cost(large).time_s > alone.cost(large).time_s  # the exchange over the link


def test_skewed_routing_reads_fewer_experts_and_waits_for_the_busiest_gpu():
    few = distinct_experts(128, 4, 32, skew=1.0)
    assert 4 < few < distinct_experts(128, 4, 32)
    assert np.shape(distinct_experts(128, 4, np.array([1, 10, 100]), skew=0.5)) == (3,)
    shares = popularity(128, 1.0)
    assert shares.sum() == pytest.approx(1.0)
    assert np.all(np.diff(shares) < 0)
    wide = {"tensor_parallel_size": 8, "enable_expert_parallel": True}
    even, skewed = (
        timing(MIXTRAL, expert_skew=skew, **wide).cost(prefill(8000)).time_s for skew in (0.0, 1.0)
    )
    assert skewed > 1.2 * even


@pytest.mark.parametrize(
    ("version", "sampling", "top_k_top_p", "expected"),
    [
        ("0.14", "auto", True, "sort"),
        ("0.33", "auto", True, "select"),
        ("0.33", "auto", False, "plain"),
        ("0.14", "plain", True, "plain"),
        ("0.11", "top-k-top-p", False, "sort"),
    ],
)
def test_the_sampler_follows_generation_config_release_and_setting(version, sampling, top_k_top_p, expected):
    model = replace(LLAMA_8B, top_k_top_p=top_k_top_p)
    assert sampler_of(model, engine(vllm_version=version, sampling=sampling)) == expected


def test_sorting_costs_as_published():
    """vLLM pull request 40376: 2.3 to 2.4 ms for 128 rows of 131,072 logits on H100."""
    on, model = find_gpu("H100"), replace(LLAMA_8B, vocab_size=131072)
    plain, sort = (
        timing(model, on, vllm_version="0.14", sampling=s)._head[128][0] for s in ("plain", "top-k-top-p")
    )
    assert sort - plain == pytest.approx(2.35e-3, rel=0.05)


def test_a_small_model_waits_for_its_host():
    tiny = dense(2, 256, 2, 2, 512, 32000)
    p = parameters_of(H100, "datasheet")
    hidden = timing(tiny).cost(decodes(100, 100)).time_s
    assert hidden == pytest.approx(p["host.step_s"] + 100 * p["host.row_s"])
    added = timing(tiny, vllm_version="0.11").cost(decodes(100, 100)).time_s
    assert added > hidden


@pytest.mark.parametrize("name", gpu_names())
def test_every_kind_of_model_is_priced_on_every_gpu(name):
    on = find_gpu(name)
    kinds = [
        *MODELS.values(),
        *(replace(MIXTRAL, weight_dtype=dtype) for dtype in ("fp8", "mxfp4", "int4")),
        replace(MIXTRAL, weight_dtype="fp8", quant_group_size=128),
    ]
    for model in kinds:
        for level in ("datasheet", None):
            assert timing(model, on, level=level, tensor_parallel_size=2).cost(decodes(8, 500)).time_s > 0


@pytest.mark.parametrize(
    "attention",
    [
        replace(Attention("gqa", 64, 8, 64), sinks=True),
        Attention(
            "mla", 16, 16, 0, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
        ),
    ],
)
def test_kernels_other_than_flash_attention_2_lose_nothing_to_a_prefill_beside(attention):
    on = find_gpu("RTX-4090")
    layers = attention_layers(on, parameters_of(on), attention, engine(), 1)
    assert layers.mixed_decode_s == layers.decode_s
    assert layers.empty_block_s == 0.0
    plain = attention_layers(on, parameters_of(on), Attention("gqa", 64, 8, 64), engine(), 1)
    assert plain.mixed_decode_s > plain.decode_s
    assert plain.empty_block_s > 0.0


def test_engines_that_share_experts_exchange_less_the_more_gpus_share_each_ones_tokens():
    """16 GPUs, as 16 engines of one or 4 of four: each GPU sends its part of its engine's tokens."""
    model = find_model("deepseek-ai/DeepSeek-V3")
    on = find_gpu("H200")

    def exchange(tensor: int, data: int) -> float:
        chosen = engine(tensor_parallel_size=tensor, data_parallel_size=data, enable_expert_parallel=True)
        rank = Rank.of(model, on, parameters_of(on), chosen)
        ops = [op for op in layer_ops(rank, model.layers[-1]) if isinstance(op, Collective)]
        return max(op.bytes_per_token for op in ops)

    assert exchange(1, 16) == 15 * 7168 * 2
    assert exchange(4, 4) == 15 * 7168 // 4 * 2
