from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kavier.ecosystem.carbon_series import CarbonSeries, read_carbon_series
from kavier.ecosystem.regions import find_region, region_catalog
from kavier.errors import InputError

SHARED = Path(__file__).parent.parent / ".." / "shared" / "data" / "carbon"
PLAIN = (
    "timestamp,carbon_intensity\n2024-01-01 00:00:00,100\n2024-01-01 01:00:00,300\n2024-01-01 02:00:00,200\n"
)
HOUR = 3600.0


@pytest.fixture
def write(tmp_path):
    def _write(text, name="grid.csv"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return _write


def test_a_value_holds_until_the_next_and_the_last_as_long_as_the_one_before(write):
    series = read_carbon_series(write(PLAIN))
    assert series.at([0, HOUR - 1, HOUR, 2 * HOUR, 3 * HOUR]).tolist() == [100, 100, 300, 200, 200]
    assert series.start == "2024-01-01T00:00:00Z"


def test_means_weigh_by_time(write):
    series = read_carbon_series(write(PLAIN))
    assert series.mean_over(0, 3 * HOUR) == pytest.approx(200)
    assert series.mean_over(HOUR / 2, 1.25 * HOUR) == pytest.approx((0.5 * 100 + 0.25 * 300) / 0.75)
    assert series.mean_over([0, HOUR], [HOUR, HOUR]).tolist() == [100, 300]


def test_run_time_counts_from_the_start_given(write):
    series = read_carbon_series(write(PLAIN), start="2024-01-01T01:30:00+01:00")
    assert series.start == "2024-01-01T00:30:00Z"
    assert series.at([-HOUR / 2, 0, HOUR / 2]).tolist() == [100, 100, 300]


def test_parquet_as_opendc_writes_it_reads_the_same(write, tmp_path):
    times = [datetime(2024, 1, 1, hour, tzinfo=UTC) for hour in range(3)]
    table = pl.DataFrame({"timestamp": times, "carbon_intensity": [100.0, 300.0, 200.0]})
    table.write_parquet(tmp_path / "grid.parquet")
    left = read_carbon_series(tmp_path / "grid.parquet")
    right = read_carbon_series(write(PLAIN))
    assert left.edges_s.tolist() == right.edges_s.tolist()
    assert left.gco2_per_kwh.tolist() == right.gco2_per_kwh.tolist()


def test_times_may_be_written_in_iso_8601(write):
    iso = PLAIN.replace(" ", "T").replace(":00,", ":00Z,")
    assert read_carbon_series(write(iso)).start == "2024-01-01T00:00:00Z"


def test_a_run_outside_the_series_is_an_error_that_tells_what_it_covers(write):
    series = read_carbon_series(write(PLAIN), start="2024-01-01T02:00:00Z")
    with pytest.raises(
        InputError, match=r"covers 2024-01-01T00:00:00Z to 2024-01-01T03:00:00Z.*got '2024-01-01T04:00:00Z'"
    ):
        series.mean_over(0, 2 * HOUR)
    with pytest.raises(InputError, match="covers"):
        series.at([-3 * HOUR])


ZONES = "datetime_utc,zone,ci_direct_g_per_kwh,ci_lca_g_per_kwh\n" + "".join(
    f"2023-01-01 0{hour}:00:00,{zone},{direct},{direct + 40}\n"
    for zone, direct in (("ES", 80), ("NO", 9))
    for hour in range(3)
)


def test_the_life_cycle_column_is_read_not_the_direct_one(write):
    assert read_carbon_series(write(ZONES), "ES").at(0) == 120


def test_a_zone_is_found_whatever_its_case_and_by_its_country(write):
    assert read_carbon_series(write(ZONES), "no").zone == "NO"
    assert read_carbon_series(write(ZONES), "Norway").zone == "NO"


@pytest.mark.parametrize(
    ("zone", "problem"),
    [
        ("NOR-1", r"no zone 'NOR-1'; expected one of ES, NO; did you mean NO"),
        (None, "holds several zones; expected one of ES, NO"),
    ],
)
def test_an_unknown_or_missing_zone_is_an_error_that_offers_those_there_are(write, zone, problem):
    with pytest.raises(InputError, match=problem):
        read_carbon_series(write(ZONES), zone)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (PLAIN.replace("300", "-1"), r"row 2: carbon intensity is negative \(got -1.0\)"),
        (PLAIN.replace("300", ""), "row 2: carbon intensity is missing"),
        (PLAIN.replace("300", "much"), "row 2: carbon intensity is missing or not a number"),
        (PLAIN.replace("300", "nan"), "row 2: carbon intensity is missing or not a number"),
        (PLAIN.replace("300", "inf"), "row 2: carbon intensity is missing or not a number"),
        (PLAIN.replace("02:00:00", "01:00:00"), "row 3: time is not later"),
        (PLAIN.replace("02:00:00", "00:30:00"), "row 3: time is not later"),
        (PLAIN.replace("2024-01-01 02:00:00", "noon"), "row 3: not a time"),
        (
            PLAIN.replace("carbon_intensity", "intensity"),
            "no time and carbon intensity columns.*expected timestamp and carbon_intensity",
        ),
        ("\n".join(PLAIN.splitlines()[:2]), "at least two rows"),
        ("timestamp,carbon_intensity\n", "at least two rows"),
        ("", "cannot read the carbon series"),
    ],
)
def test_a_bad_series_is_refused_with_its_row(write, text, problem):
    with pytest.raises(InputError, match=problem):
        read_carbon_series(write(text))


def test_a_file_that_is_not_there_or_not_parquet_is_refused(write, tmp_path):
    with pytest.raises(InputError, match=r"cannot read the carbon series: .*[Nn]o such file"):
        read_carbon_series(tmp_path / "nothing.csv")
    with pytest.raises(InputError, match="cannot read the carbon series"):
        read_carbon_series(tmp_path / "nothing.parquet")
    with pytest.raises(InputError, match="cannot read the carbon series"):
        read_carbon_series(write(PLAIN, "grid.parquet"))


def test_a_start_that_is_no_time_is_refused(write):
    with pytest.raises(InputError, match=r"site.start: not a time \(got 'monday'\)"):
        read_carbon_series(write(PLAIN), start="monday")


@given(
    st.lists(st.floats(0, 1000), min_size=2, max_size=20),
    st.lists(st.floats(0, 1), min_size=2, max_size=8),
)
def test_carbon_of_a_whole_is_the_sum_over_its_parts(values, cuts):
    edges = np.arange(len(values) + 1, dtype=np.float64) * HOUR - HOUR
    series = CarbonSeries("X", "2024-01-01T00:00:00Z", edges, np.array(values), "here")
    times = np.sort(edges[0] + np.array(cuts) * (edges[-1] - edges[0]))
    parts = series.mean_over(times[:-1], times[1:]) * np.diff(times)
    whole = series.mean_over(times[0], times[-1]) * (times[-1] - times[0])
    assert parts.sum() == pytest.approx(float(whole), rel=1e-9, abs=1e-4)


def _shared(name):
    if not (SHARED / name).exists():
        pytest.skip(f"{name} is not there: measured grid data is not part of the project")
    return SHARED / name


def test_catalog_and_hourly_data_of_electricity_maps_agree():
    path = _shared("electricity_maps_hourly_2023_2024.parquet")
    zones = set(pl.read_parquet(path, columns=["zone"])["zone"].cast(pl.String).unique())
    checked = [code for code in region_catalog().entries if code in zones]
    for code in checked:
        series = read_carbon_series(path, code, start="2024-01-01T00:00:00Z")
        assert series.mean_over(0, 366 * 24 * HOUR) == pytest.approx(
            find_region(code).carbon.value, abs=0.06
        ), code
    assert len(checked) > 30


def test_life_cycle_means_of_2023_are_those_known():
    path = _shared("electricity_maps_2023_direct_lca.csv")
    means = {
        zone: float(read_carbon_series(path, zone).mean_over(0, 365 * 24 * HOUR))
        for zone in ("ES", "NO", "BR", "US-CAL-CISO")
    }
    assert {zone: round(mean) for zone, mean in means.items()} == {
        "ES": 160,
        "NO": 34,
        "BR": 83,
        "US-CAL-CISO": 261,
    }
