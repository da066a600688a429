"""Units: every conversion by hand, and the unit errors of the published prototype as regression tests."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kavier import units
from kavier.metrics.carbon import carbon
from kavier.metrics.cost import cost
from kavier.metrics.energy import energy
from kavier.units import (
    bytes_to_gib,
    gb_to_bytes,
    gib_to_bytes,
    j_to_kwh,
    mib_to_bytes,
    per_million,
    s_to_hours,
    tflops_to_flops,
)

SRC = Path(units.__file__).parent


def finished(output_tokens) -> pl.DataFrame:
    return pl.DataFrame({"output_tokens": output_tokens})


# --- Conversions --------------------------------------------------------------------------------------


def test_one_kilowatt_for_an_hour_is_a_kilowatt_hour():
    watts, seconds = 1000.0, 60.0 * 60.0
    assert j_to_kwh(watts * seconds) == 1.0


@given(st.floats(0, 1e15))
def test_joules_become_kilowatt_hours_by_way_of_watt_hours(energy_j):
    watt_hours = energy_j / 60 / 60
    assert j_to_kwh(energy_j) == pytest.approx(watt_hours / 1000, rel=1e-15)


def test_a_day_has_24_hours():
    assert s_to_hours(86400.0) == 24.0


def test_decimal_and_binary_sizes_are_told_apart():
    assert gb_to_bytes(80) == 80_000_000_000
    assert gib_to_bytes(80) == 80 * 1024 * 1024 * 1024
    assert mib_to_bytes(81559) == 81559 * 1024 * 1024
    assert bytes_to_gib(3 * 1024**3) == 3.0


def test_a_teraflop_per_second_is_a_million_million():
    assert tflops_to_flops(989.0) == 989 * 1_000_000 * 1_000_000


@given(st.floats(0, 1e9), st.integers(1, 10**12))
def test_amounts_per_million_tokens_scale_back(amount, tokens):
    assert per_million(amount, tokens) * tokens / 1_000_000 == pytest.approx(amount, rel=1e-12)


# --- Where units are converted ------------------------------------------------------------------------


def test_no_module_but_units_writes_the_numbers_of_a_conversion():
    """Powers of 1000 and 3600 next to * or /, the way unit errors are written."""
    factor = re.compile(r"[*/]\s*(1e[+-]?(3|6|9|12)|1000(\.0)?|3600(\.0)?|3\.6e6)\b")
    found = {
        f"{path.relative_to(SRC)}: {line.strip()}"
        for path in sorted(SRC.rglob("*.py"))
        if path.name != "units.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if factor.search(line.split("#")[0])
    }
    assert found == set()


# --- Unit errors of the prototype (kavier_system.md, section 3, items 3 and 5) ------------------------


def test_prototype_error_seconds_were_truncated_and_stored_as_ms():
    """4.6 s became int(4.6) = 4, read as ms. Here a latency keeps its fraction, and its unit."""
    from kavier.report.amounts import latency

    assert latency(4.6) == "4.60 s"
    assert latency(0.0046) == "4.60 ms"


def energy_of(gpu_j, tokens, pue):
    return energy(
        gpu_j, idle_j=gpu_j / 4, pue=pue, makespan_s=100.0, output_tokens=tokens, total_tokens=tokens
    )


def test_prototype_error_joules_were_divided_by_1000_for_watt_hours():
    """3.6e6 J are 1,000 Wh, not 3,600."""
    result = energy_of(3.6e6, 1, pue=1.0)
    assert result["gpu_kwh"] == pytest.approx(1.0, rel=1e-15)
    assert result["facility_kwh"] == pytest.approx(1.0, rel=1e-15)


def test_prototype_error_kilowatt_hours_were_labelled_watt_hours():
    """Every key says its unit, and all agree in size: 2 kWh over 2,000 tokens and 100 s."""
    result = energy_of(7.2e6, 2_000, pue=1.5)
    assert result["gpu_wh_per_million_tokens"] == 2_000 / 2_000 * 1_000_000
    assert result["facility_wh_per_million_tokens"] == 3_000 / 2_000 * 1_000_000
    assert result["mean_gpu_w"] == 7.2e6 / 100
    names = " ".join(result)
    assert names == (
        "gpu_kwh idle_kwh facility_kwh j_per_output_token "
        "gpu_wh_per_million_tokens facility_wh_per_million_tokens mean_gpu_w "
        "mean_facility_w"
    )
    assert result["gpu_kwh"] == 2.0
    assert result["idle_kwh"] == 0.5
    assert result["facility_kwh"] == 3.0
    assert result["j_per_output_token"] == result["gpu_kwh"] * 3_600_000 / 2_000 == 3_600.0


@given(st.floats(1e-3, 1e6))
def test_prototype_error_energy_was_multiplied_by_latency(stretch):
    """The same joules drawn over any time are the same energy and the same carbon: no kWh x s."""
    drawn, short = (
        energy(1.8e6, idle_j=2e5, pue=1.2, makespan_s=time_s, output_tokens=10, total_tokens=10)
        for time_s in (stretch, 1.0)
    )
    rates = {"mean_gpu_w": None, "mean_facility_w": None}
    assert drawn | rates == short | rates
    assert drawn["facility_kwh"] is not None
    grams = carbon(drawn["facility_kwh"], gco2_per_kwh=400.0, tokens=10)["operational_gco2e"]
    assert grams == pytest.approx(0.5 * 1.2 * 400, rel=1e-12)


# --- Dimensions ---------------------------------------------------------------------------------------


@given(
    st.floats(0, 1e10),
    st.floats(1, 3),
    st.floats(0, 2000),
    st.integers(1, 10**10),
)
def test_carbon_is_kwh_times_grams_per_kwh_done_by_hand(gpu_j, pue, intensity, tokens):
    facility_wh = gpu_j / 3600 * pue
    grams = facility_wh / 1000 * intensity
    facility_kwh = energy(gpu_j, idle_j=0.0, pue=pue, makespan_s=1.0, output_tokens=1, total_tokens=1)[
        "facility_kwh"
    ]
    assert facility_kwh is not None
    result = carbon(facility_kwh, gco2_per_kwh=intensity, tokens=tokens)
    assert result["operational_gco2e"] == pytest.approx(grams, rel=1e-9)
    assert result["gco2e_per_million_tokens"] == pytest.approx(grams / (tokens / 1e6), rel=1e-9)


def test_a_cost_done_by_hand():
    """8 GPUs for 90 min at 2.5 USD/h = 30 USD, over 20 M tokens, 4 M of them output, and 60,000 requests."""
    result = cost(
        gpus=8, makespan_s=5400.0, usd_per_gpu_hour=2.5, facility_kwh=7.0, usd_per_kwh=0.1,
        total_tokens=20_000_000, output_tokens=4_000_000, finished=60_000,
    )  # fmt: skip
    assert result["gpu_hours"] == 12.0
    assert result["usd"] == 30.0
    assert result["usd_per_million_tokens"] == pytest.approx(1.5)
    assert result["usd_per_million_output_tokens"] == pytest.approx(7.5)
    assert result["usd_per_request"] == pytest.approx(0.0005)
    assert result["electricity_usd"] == pytest.approx(0.7)


def test_without_a_price_there_is_no_cost_rather_than_none():
    result = cost(
        gpus=1, makespan_s=3600.0, usd_per_gpu_hour=None, facility_kwh=1.0, usd_per_kwh=None,
        total_tokens=5, output_tokens=1, finished=1,
    )  # fmt: skip
    assert result["gpu_hours"] == 1.0
    assert {value for name, value in result.items() if name.startswith(("usd", "electricity"))} == {None}


def test_a_rent_of_zero_is_a_price():
    result = cost(
        gpus=1, makespan_s=3600.0, usd_per_gpu_hour=0.0, facility_kwh=1.0, usd_per_kwh=0.0,
        total_tokens=5, output_tokens=1, finished=1,
    )  # fmt: skip
    assert (result["usd"], result["usd_per_million_tokens"], result["electricity_usd"]) == (0.0, 0.0, 0.0)


def test_nothing_is_said_per_token_where_no_token_was_served():
    rent = cost(
        gpus=1, makespan_s=3600.0, usd_per_gpu_hour=2.0, facility_kwh=1.0, usd_per_kwh=0.1,
        total_tokens=0, output_tokens=0, finished=0,
    )  # fmt: skip
    assert rent["usd_per_request"] is None
    assert rent["usd_per_million_tokens"] is None
    assert rent["usd_per_million_output_tokens"] is None
    grams = carbon(1.2, gco2_per_kwh=400.0, tokens=0)
    assert grams["gco2e_per_million_tokens"] is None


def test_no_energy_has_no_mean_intensity():
    assert carbon(0.0, gco2_per_kwh=400.0, tokens=0)["mean_gco2_per_kwh"] is None
