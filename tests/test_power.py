"""GPU power: the published table of constants, the reference points, and the laws of the formula."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kavier.ecosystem.gpu import GpuSpec
from kavier.metrics.power import SaturatingPower


def gpu(name, tdp_w, bandwidth_gb, bf16_tflops, floor_w, **more) -> GpuSpec:
    flops = {"bf16": bf16_tflops * 1e12, **more}
    return GpuSpec(
        name, "nvidia", "hopper", 2**36, bandwidth_gb * 1e9, flops, tdp_w, floor_w / 2, floor_w,
        "nvlink", 450e9, 132,
    )  # fmt: skip


H100 = gpu("H100-SXM", 700, 3350, 989, 122, fp8=1979e12)

# TDP, GB/s, dense bf16 TFLOP/s, loaded idle W -> alpha, beta: geometric mean of both ways to carry over.
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
    model = SaturatingPower(gpu(name, tdp, gb, tflops, floor))
    assert model.alpha == pytest.approx(alpha, abs=0.011)
    assert model.beta == pytest.approx(beta, abs=0.11)


@pytest.mark.parametrize(
    ("mbu", "mfu", "watts"), [(0.63, 0.026, 491), (0.49, 0.125, 595), (0.37, 0.217, 646)]
)
def test_reference_points_of_llama_8b_on_h100(mbu, mfu, watts):
    """Measured on H100 SXM (ML.ENERGY, chat, batch 8, 64, 256): 486, 610 and 691 W."""
    assert SaturatingPower(H100).power_w(mfu * 989e12, mbu * 3350e9) == pytest.approx(watts, abs=2)


def test_no_work_draws_the_power_of_a_loaded_idle_gpu():
    assert SaturatingPower(H100).power_w(0.0, 0.0) == 122.0


@given(st.floats(0, 2e15), st.floats(0, 4e12), st.floats(0, 1e15), st.floats(0, 1e12))
def test_power_lies_between_floor_and_tdp_and_rises_with_work(flops, traffic, more_flops, more_traffic):
    model = SaturatingPower(H100)
    power = model.power_w(flops, traffic)
    assert 122.0 <= power <= 700.0
    assert model.power_w(flops + more_flops, traffic) >= power
    assert model.power_w(flops, traffic + more_traffic) >= power


@given(st.floats(1, 1e15), st.floats(1, 3e12), st.floats(1.01, 10))
def test_the_same_work_in_a_longer_step_draws_less_power_but_more_energy(flops, traffic, longer):
    model = SaturatingPower(H100)
    fast, slow = model.power_w(flops, traffic), model.power_w(flops / longer, traffic / longer)
    assert slow <= fast
    assert slow * longer > fast


def test_power_is_computed_for_all_steps_at_once():
    model = SaturatingPower(H100)
    flops, traffic = np.array([0.0, 1e14, 9e14]), np.array([0.0, 2e12, 1e12])
    each = [float(model.power_w(f, b)) for f, b in zip(flops, traffic, strict=True)]
    np.testing.assert_allclose(model.power_w(flops, traffic), each, rtol=1e-14)


def test_fp8_flops_count_against_the_fp8_peak_where_there_is_one():
    fp8, bf16 = SaturatingPower(H100, "fp8"), SaturatingPower(H100)
    assert fp8.power_w(1979e12, 0.0) == pytest.approx(float(bf16.power_w(989e12, 0.0)))
    plain = gpu("A100-80GB-SXM", 400, 2039, 312, 80)
    assert SaturatingPower(plain, "fp8").power_w(1e14, 0.0) == SaturatingPower(plain).power_w(1e14, 0.0)


def test_the_expected_error_is_named_and_larger_where_nothing_was_measured():
    assert "12%" in SaturatingPower(H100).expected_error()
    assert "30%" in SaturatingPower(gpu("A40", 300, 696, 150, 60)).expected_error()
