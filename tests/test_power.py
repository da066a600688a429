"""GPU power: the published table of constants, the reference points, and the laws of the formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kavier import simulate
from kavier.ecosystem.gpu import GpuSpec, find_gpu
from kavier.ecosystem.models import find_model
from kavier.errors import InputError
from kavier.metrics.energy import with_energy
from kavier.metrics.power import (
    FITTED,
    POWER_MODELS,
    additive,
    constant,
    peak_flops_per_s,
    power_model,
    saturating,
)
from kavier.metrics.power_factor import MeasuredEnergy, power_factor


def gpu(name, tdp_w, bandwidth_gb, bf16_tflops, floor_w, **more) -> GpuSpec:
    flops = {"bf16": bf16_tflops * 1e12, **more}
    return GpuSpec(
        name, "nvidia", "hopper", 2**36, bandwidth_gb * 1e9, flops, tdp_w, floor_w / 2, floor_w,
        "nvlink", 450e9, 132, 50_000_000,
    )  # fmt: skip


H100 = gpu("H100-SXM", 700, 3350, 989, 122, fp8=1979e12)
MODEL = saturating(H100, 989e12)
MODELS = [make(H100, 989e12) for make in POWER_MODELS.values()]

# TDP, GB/s, dense bf16 TFLOP/s, loaded idle W -> alpha, beta, where those of H100 are 1.26 and 8.8: geometric
# mean of both ways to carry them over.
CARRIED = [
    ("H100-SXM", 700, 3350, 989, 122, 1.26, 8.8),
    ("A100-80GB-SXM", 400, 2039, 312, 80, 1.32, 6.6),
    ("A100-40GB-SXM", 400, 1555, 312, 75, 1.14, 6.6),
    ("L40S", 350, 864, 362, 102, 0.98, 8.1),
    ("H100-PCIe", 350, 2000, 756, 75, 1.41, 11.1),
    ("H200-SXM", 700, 4800, 989, 130, 1.52, 8.8),
    ("B200-SXM", 1000, 8000, 2250, 190, 1.64, 11.2),
    ("MI300X", 750, 5300, 1307, 160, 1.57, 10.0),
    ("A10", 150, 600, 125, 55, 1.31, 7.7),
    ("L4", 72, 300, 121, 28, 1.37, 11.1),
    ("RTX-4090", 450, 1008, 165, 60, 0.84, 4.4),
    ("RTX-PRO-6000", 600, 1792, 503, 85, 0.98, 6.6),
]


@pytest.mark.parametrize(("name", "tdp", "gb", "tflops", "floor", "alpha", "beta"), CARRIED)
def test_constants_carry_over_to_other_gpus_as_published(name, tdp, gb, tflops, floor, alpha, beta):
    model = saturating(gpu(name, tdp, gb, tflops, floor), tflops * 1e12)
    found = model.per_byte * gb * 1e9 / FITTED["saturating.alpha"]
    assert found == pytest.approx(alpha / 1.26, abs=0.01)
    found = model.per_flop * tflops * 1e12 / FITTED["saturating.beta"]
    assert found == pytest.approx(beta / 8.8, abs=0.012)


@pytest.mark.parametrize(
    ("mbu", "mfu", "watts"), [(0.63, 0.026, 491), (0.49, 0.125, 595), (0.37, 0.217, 646)]
)
def test_reference_points_of_llama_8b_on_h100(mbu, mfu, watts):
    """Measured on H100 SXM (ML.ENERGY, chat, batch 8, 64, 256): 486, 610 and 691 W."""
    assert MODEL.power_w(mfu * 989e12, mbu * 3350e9) == pytest.approx(watts, rel=0.02)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_no_work_draws_the_power_of_a_loaded_idle_gpu(model):
    assert model.power_w(0.0, 0.0) == 122.0


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
@given(st.floats(0, 2e15), st.floats(0, 4e12), st.floats(0, 1e15), st.floats(0, 1e12))
def test_power_lies_between_floor_and_tdp_and_rises_with_work(model, flops, traffic, more_flops, more):
    power = model.power_w(flops, traffic)
    assert 122.0 <= power <= 700.0 * (1 + 1e-14)
    assert model.power_w(flops + more_flops, traffic) >= power
    assert model.power_w(flops, traffic + more) >= power


@pytest.mark.parametrize("model", MODELS[:2], ids=lambda model: model.name)
@given(st.floats(1, 1e15), st.floats(1, 3e12), st.floats(1.01, 10))
def test_the_same_work_in_a_longer_step_draws_less_power_but_more_energy(model, flops, traffic, longer):
    fast, slow = model.power_w(flops, traffic), model.power_w(flops / longer, traffic / longer)
    assert slow <= fast
    assert slow * longer > fast


def steps_of(*rows: tuple[float, float, float]) -> pl.DataFrame:
    return pl.DataFrame(rows, ["flops", "bytes", "duration_s"], orient="row")


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_a_step_cut_in_two_equal_halves_keeps_its_energy(model):
    whole, half = (2e13, 6e10, 0.05), (1e13, 3e10, 0.025)
    assert with_energy(steps_of(half, half), model, 1)["energy_j"].sum() == pytest.approx(
        with_energy(steps_of(whole), model, 1)["energy_j"].sum(), rel=1e-12
    )


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_twice_the_gpus_at_half_the_work_each_take_twice_the_power_at_half_the_rates(model):
    """FLOPs and bytes of a step are those of one GPU; its energy is that of all."""
    joules = with_energy(steps_of((1e13, 3e10, 0.05)), model, 2)["energy_j"].item()
    assert joules == pytest.approx(2 * 0.05 * float(model.power_w(2e14, 6e11)), rel=1e-12)
    assert joules >= with_energy(steps_of((2e13, 6e10, 0.05)), model, 1)["energy_j"].item()


def test_power_is_computed_for_all_steps_at_once():
    flops, traffic = np.array([0.0, 1e14, 9e14]), np.array([0.0, 2e12, 1e12])
    each = [float(MODEL.power_w(f, b)) for f, b in zip(flops, traffic, strict=True)]
    np.testing.assert_allclose(MODEL.power_w(flops, traffic), each, rtol=1e-14)


def test_the_additive_model_adds_energies_to_its_floor_and_ends_at_the_tdp():
    model = additive(H100, 989e12)
    floor_w = FITTED["additive.floor"] * 700
    joules = 1e11 * FITTED["additive.byte_energy"] + 1e14 * FITTED["additive.flop_energy"]
    assert model.power_w(1e14, 1e11) == pytest.approx(floor_w + joules / 1e12)
    assert model.power_w(9e14, 3e12) == pytest.approx(700.0)


def test_the_constant_model_draws_the_same_whatever_is_done():
    model = constant(H100, 989e12)
    watts = FITTED["constant.share"] * 700
    assert model.power_w([1.0, 9e14], [0.0, 3e12]).tolist() == pytest.approx([watts, watts])


# --- Precisions


def test_flops_count_against_the_peak_of_the_precision_that_they_are_computed_in():
    h100, a100 = find_gpu("H100"), find_gpu("A100-80GB-SXM")
    fp8, bf16 = find_model("Qwen/Qwen3-32B-FP8"), find_model("Qwen/Qwen3-32B")
    assert peak_flops_per_s(h100, bf16) == h100.flops_per_s["bf16"]
    assert peak_flops_per_s(a100, fp8) == a100.flops_per_s["bf16"]
    head = bf16.vocab_size * bf16.hidden_size
    few = sum(weight.parameters() for weight in fp8.weights() if fp8.is_quantized(weight))
    share = few / (few + head)
    expected = 1 / (share / h100.flops_per_s["fp8"] + (1 - share) / h100.flops_per_s["bf16"])
    assert peak_flops_per_s(h100, fp8) == pytest.approx(expected, rel=1e-4)


def test_a_tied_embedding_computes_as_the_head():
    h100, untied = find_gpu("H100"), find_model("Qwen/Qwen3-8B-FP8")
    tied = replace(untied, tie_word_embeddings=True)
    assert peak_flops_per_s(h100, tied) == pytest.approx(peak_flops_per_s(h100, untied))


# --- What a result says


def test_the_expected_error_is_the_largest_that_applies():
    dense, experts = find_model("meta-llama/Llama-3.1-8B"), find_model("openai/gpt-oss-20b")
    h100, l4 = find_gpu("H100"), find_gpu("L4")
    assert (
        "'saturating', one standard deviation 13% on H100-SXM"
        in power_model("saturating", h100, dense).expected_error()
    )
    assert "25% on L4 (of the GPU)" in power_model("saturating", l4, dense).expected_error()
    assert "27% on L4 (that of the model on H100-SXM" in power_model("constant", l4, dense).expected_error()
    assert "30% on H100-SXM (experts in mxfp4)" in power_model("saturating", h100, experts).expected_error()
    assert "30%" in saturating(gpu("A40", 300, 696, 150, 60), 150e12).expected_error()


@pytest.mark.parametrize("name", POWER_MODELS)
def test_a_scenario_chooses_the_power_model_and_its_energies_are_those_of_its_steps(name):
    result = simulate(
        {
            "model": "meta-llama/Llama-3.1-8B",
            "fleet": {"gpu": "H100"},
            "power": name,
            "workload": {"synthetic": {"num_prompts": 40, "arrivals": {"request_rate": 20.0},
                                       "prompt_tokens": {"mean": 300}, "output_tokens": {"mean": 100}}},
            "output": {"steps": True},
        }
    )  # fmt: skip
    power = power_model(name, find_gpu("H100"), find_model("meta-llama/Llama-3.1-8B"))
    steps = result.steps
    assert steps is not None
    again = with_energy(steps.drop("energy_j"), power, 1)
    assert steps["energy_j"].to_list() == again["energy_j"].to_list()
    idle_s = result.summary["makespan_s"] - steps["duration_s"].sum()
    joules = steps["energy_j"].sum() + idle_s * find_gpu("H100").loaded_idle_w
    assert result.summary["energy"]["gpu_kwh"] * 3.6e6 == pytest.approx(joules, rel=1e-9)
    assert power.expected_error() in result.summary["trust"]["notes"]


# --- One factor for a deployment


def run_of(model, factor, flops_per_s=2e14, bytes_per_s=1.5e12) -> MeasuredEnergy:
    watts = float(model.scaled(factor).power_w(flops_per_s, bytes_per_s))
    return MeasuredEnergy(flops_per_s, bytes_per_s, 1.0, watts)


@given(st.floats(0.3, 2.0))
def test_a_factor_is_found_again(factor):
    runs = [run_of(MODEL, factor), run_of(MODEL, factor, 5e13)]
    assert power_factor(MODEL, runs) == pytest.approx(factor, rel=1e-4)


def test_a_factor_follows_from_the_energy_of_a_whole_run_idle_time_included():
    flops, moved, duration_s = np.array([2e12, 0.0, 9e12]), np.array([3e10, 0.0, 2e10]), [0.02, 0.5, 0.03]
    true = MODEL.scaled(0.8)
    joules = MeasuredEnergy(flops, moved, duration_s, 1.0).modelled_j(true)
    found = power_factor(MODEL, [MeasuredEnergy(flops, moved, duration_s, joules)])
    assert found == pytest.approx(0.8, rel=1e-4)


@pytest.mark.parametrize("watts", [100.0, 710.0])
def test_energies_that_no_factor_gives_are_refused(watts):
    with pytest.raises(InputError, match="no factor of power model 'saturating' gives"):
        power_factor(MODEL, [MeasuredEnergy(2e14, 1.5e12, 1.0, watts)])


def test_the_constant_model_has_nothing_to_scale():
    with pytest.raises(InputError, match="no factor of power model 'constant' gives"):
        power_factor(constant(H100, 989e12), [MeasuredEnergy(2e14, 1.5e12, 1.0, 400.0)])


@pytest.mark.parametrize("runs", [[], [MeasuredEnergy(1.0, 1.0, 1.0, 0.0)]])
def test_a_factor_needs_a_measured_energy(runs):
    with pytest.raises(InputError, match="at least one measured energy above 0 J"):
        power_factor(MODEL, runs)
