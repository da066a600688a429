from statistics import median
from typing import get_args

import pytest

from kavier.ecosystem.catalog import Schema, parse_catalog
from kavier.ecosystem.catalog_rows import catalog_rows
from kavier.ecosystem.engine_defaults import resolve_engine
from kavier.ecosystem.gpu import find_gpu, gpu_catalog, gpu_entry, gpu_names
from kavier.ecosystem.platform import build_platform
from kavier.ecosystem.prices import price_catalog, price_entry, price_of
from kavier.ecosystem.regions import find_region, region_catalog
from kavier.ecosystem.vllm_versions import RULES, resolve_version
from kavier.errors import InputError
from kavier.scenario import Engine, parse_scenario

NAMES = [
    "A10",
    "A4000",
    "A6000",
    "A40",
    "L4",
    "L40S",
    "A100-40GB-PCIe",
    "A100-40GB-SXM",
    "A100-80GB-PCIe",
    "A100-80GB-SXM",
    "H100-PCIe",
    "H100-SXM",
    "H200-SXM",
    "B200-SXM",
    "MI300X",
    "RTX-4090",
    "RTX-PRO-6000",
]

# TDP W, bandwidth GB/s, dense bf16 TFLOP/s, loaded idle W, whether that idle is published: the table of GPUs
# in the project's energy survey, but for RTX PRO 6000, of which it has the Workstation Edition (1792 GB/s).
SURVEY = {
    "H100-SXM": (700, 3350, 989, 122, True),
    "A100-80GB-SXM": (400, 2039, 312, 80, True),
    "A100-40GB-SXM": (400, 1555, 312, 75, False),
    "L40S": (350, 864, 362, 102, True),
    "H100-PCIe": (350, 2000, 756, 75, False),
    "H200-SXM": (700, 4800, 989, 130, False),
    "B200-SXM": (1000, 8000, 2250, 190, False),
    "MI300X": (750, 5300, 1307, 160, False),
    "A10": (150, 600, 125, 55, False),
    "L4": (72, 300, 121, 28, False),
    "RTX-4090": (450, 1008, 165, 60, False),
    "RTX-PRO-6000": (600, 1597, 503, 85, False),
}

# What vLLM 0.33's get_batch_defaults gives its API server: by memory, and A100 apart.
BATCH_DEFAULTS = {
    "H100-SXM": (8192, 1024),
    "H100-PCIe": (8192, 1024),
    "H200-SXM": (8192, 1024),
    "RTX-PRO-6000": (8192, 1024),
    "B200-SXM": (16384, 1024),
    "MI300X": (16384, 1024),
    "A100-80GB-SXM": (2048, 256),
    "A100-80GB-PCIe": (2048, 256),
    "A100-40GB-SXM": (2048, 256),
    "L40S": (2048, 256),
    "A10": (2048, 256),
    "RTX-4090": (2048, 256),
}


def test_the_catalog_has_exactly_the_promised_gpus():
    assert sorted(gpu_names()) == sorted(NAMES)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("h100", "H100-SXM"),
        ("H100-80GB", "H100-SXM"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM"),
        ("a100", "A100-80GB-SXM"),
        ("A100-80GB", "A100-80GB-SXM"),
        ("A100_40GB", "A100-40GB-SXM"),
        ("h200", "H200-SXM"),
        ("B200", "B200-SXM"),
        ("4090", "RTX-4090"),
        ("RTX4090", "RTX-4090"),
        ("rtx a4000", "A4000"),
        ("RTX-A6000", "A6000"),
        ("RTX-PRO-6000-Server", "RTX-PRO-6000"),
    ],
)
def test_gpus_are_found_by_alias_whatever_the_case(typed, name):
    assert find_gpu(typed).name == name


def test_an_unknown_gpu_is_an_error_that_offers_near_names():
    with pytest.raises(InputError, match=r"unknown GPU 'H1000'.*H100"):
        find_gpu("H1000")


@pytest.mark.parametrize("name", SURVEY)
def test_gpus_agree_with_the_energy_survey(name):
    tdp_w, gb_per_s, tflops, loaded_idle_w, published = SURVEY[name]
    gpu = find_gpu(name)
    assert gpu.tdp_w == tdp_w
    assert gpu.bandwidth_bytes_per_s == gb_per_s * 1e9
    assert gpu.flops_per_s["bf16"] == pytest.approx(tflops * 1e12, rel=2e-3)
    assert gpu.loaded_idle_w == loaded_idle_w
    assert (gpu_entry(name).quantities["loaded_idle_power"].quality == "published") is published


@pytest.mark.parametrize(
    ("name", "dense_tflops"),
    [
        ("H100-SXM", 989.4),
        ("H200-SXM", 989.4),
        ("L4", 121),
        ("L40S", 362),
        ("A10", 125),
        ("A4000", 76.7),
        ("A6000", 154.8),
    ],
)
def test_no_sparse_throughput_slipped_in(name, dense_tflops):
    assert find_gpu(name).flops_per_s["bf16"] == pytest.approx(dense_tflops * 1e12, rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_gpu_numbers_hang_together(name):
    gpu = find_gpu(name)
    bf16 = gpu.flops_per_s["bf16"]
    assert gpu.flops_per_s.get("fp8", 2 * bf16) == pytest.approx(2 * bf16, rel=0.02)
    assert gpu.flops_per_s.get("fp4", 4 * bf16) == pytest.approx(4 * bf16, rel=0.02)
    assert ("fp8" in gpu.flops_per_s) == (gpu.architecture != "ampere")
    assert 0 < gpu.idle_w < gpu.loaded_idle_w < 0.5 * gpu.tdp_w
    assert gpu.interconnect_bytes_per_s < gpu.bandwidth_bytes_per_s
    # A slip of units, or of one prefix, would leave this range.
    assert 100 < bf16 / gpu.bandwidth_bytes_per_s < 450


def test_memory_is_what_drivers_report():
    assert find_gpu("H100").memory_bytes == 81559 * 2**20
    assert find_gpu("MI300X").memory_bytes == 206_141_652_992


def test_every_number_of_every_catalog_has_unit_source_and_date():
    for catalog in (gpu_catalog(), region_catalog(), price_catalog()):
        for entry in catalog.entries.values():
            for number in entry.quantities.values():
                assert number.unit
                assert number.source
                assert number.date >= "2020"


def test_what_nobody_published_is_marked_with_its_uncertainty():
    for entry in gpu_catalog().entries.values():
        for number in entry.quantities.values():
            assert number.quality == "published" or number.uncertainty


GOOD = """
[sources.paper]
text = "A paper"
date = "2024-05"
[defaults]
source = "paper"
[Thing]
aliases = ["It"]
power = { value = 3, unit = "W", uncertainty = 1 }
rate.bf16 = { value = 4, unit = "F/s" }
"""
SCHEMA = Schema(
    thing="thing", units={"power": "W", "rate.*": "F/s"}, required=("power",), optional_labels=("note",)
)


def test_a_good_catalog_reads_back():
    entry = parse_catalog(GOOD, SCHEMA, where="good.toml").find(" it ")
    power = entry.quantities["power"]
    assert (entry.name, power.value, power.uncertainty, power.source, power.date) == (
        "Thing",
        3,
        1,
        "A paper",
        "2024-05",
    )
    assert entry.quantities["rate.bf16"].value == 4


@pytest.mark.parametrize(
    ("good", "bad", "problem"),
    [
        (
            'unit = "W"',
            'unit = "kW"',
            r"bad.toml, Thing, power: wrong or missing unit \(got 'kW'\); expected 'W'",
        ),
        ('unit = "W", ', "", "wrong or missing unit"),
        ("value = 3, ", "", "not a number"),
        ("value = 3", 'value = "3"', "not a number"),
        ("value = 3", "value = nan", "not a number"),
        ("value = 3", "value = -3", "not a number"),
        ("uncertainty", "uncertain", "unknown quantity or key"),
        ("rate.bf16", "speed", "unknown quantity"),
        ("power = {", 'note = "x" #', "missing power"),
        ('source = "paper"', 'source = "book"', "no such source"),
        ('date = "2024-05"', 'date = "May"', "no such source, or one without text and date"),
        ('aliases = ["It"]', 'colour = "red"', r"unknown or unreadable key.*colour"),
        ("[Thing]", "[Thing", "not valid TOML"),
    ],
)
def test_a_bad_catalog_is_refused(good, bad, problem):
    assert good in GOOD
    with pytest.raises(InputError, match=problem):
        parse_catalog(GOOD.replace(good, bad), SCHEMA, where="bad.toml")


def test_two_entries_cannot_claim_one_name():
    again = GOOD + '[Other]\naliases = ["it"]\npower = { value = 1, unit = "W" }\n'
    with pytest.raises(InputError, match="names both Thing and Other"):
        parse_catalog(again, SCHEMA, where="bad.toml")


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        ("nl", "NL"),
        ("Netherlands", "NL"),
        ("united states", "US"),
        ("UK", "GB"),
        ("DEU", "DE"),
        ("Texas", "US-TEX-ERCO"),
    ],
)
def test_regions_are_found_by_code_and_by_name(typed, code):
    assert find_region(typed).code == code


def test_an_unknown_region_is_an_error_that_offers_near_names():
    with pytest.raises(InputError, match=r"unknown region 'Nederland'.*Netherlands"):
        find_region("Nederland")


def test_regions_count_life_cycle_averages_only():
    regions = [find_region(code) for code in region_catalog().entries]
    assert len(regions) >= 30
    assert all(region.carbon_kind.startswith("average, life-cycle, location-based") for region in regions)
    assert all(10 < region.carbon.value < 900 for region in regions)


def test_a_region_without_a_published_price_has_none():
    assert find_region("NO").electricity_price is None
    world = find_region("WORLD").electricity_price
    assert world is not None
    assert (world.value, world.unit) == (0.161, "USD/kWh")


def test_the_price_of_a_gpu_is_the_median_of_the_listed_ones():
    entry = price_entry("H100")
    price = price_of("H100")
    assert entry is not None
    assert price is not None
    assert price.value == median(offer.value for offer in entry.quantities.values()) == 2.95
    assert "2.29 to 3.99" in price.source
    assert price.uncertainty == pytest.approx(3.99 - 2.95)


def test_prices_are_of_gpus_in_the_catalog():
    assert set(price_catalog().entries) <= set(gpu_names())


def test_a_gpu_without_a_listed_price_has_none(monkeypatch):
    catalog = price_catalog()
    monkeypatch.setattr(
        "kavier.ecosystem.prices.price_catalog", lambda: type(catalog)(catalog.schema, {}, {})
    )
    assert price_of("H100") is None


@pytest.mark.parametrize("kind", ["gpus", "regions", "prices"])
def test_catalogs_come_as_rows_of_equal_shape(kind):
    rows = catalog_rows(kind)
    assert len({tuple(row) for row in rows}) == 1
    assert len(rows) >= 10


def test_an_unknown_catalog_is_an_error():
    with pytest.raises(InputError, match=r"unknown catalog 'gpu'.*did you mean gpus"):
        catalog_rows("gpu")


@pytest.mark.parametrize("name", BATCH_DEFAULTS)
def test_batch_limits_default_as_vllm_does_on_that_gpu(name):
    engine, notes = resolve_engine(Engine(), find_gpu(name), max_model_len=4096)
    assert (engine.max_num_batched_tokens, engine.max_num_seqs) == BATCH_DEFAULTS[name]
    assert len(notes) == 2
    assert name in notes[0]


def test_given_batch_limits_stay_and_need_no_note():
    given = resolve_version(Engine(max_num_batched_tokens=512, max_num_seqs=64))
    assert resolve_engine(given, find_gpu("H100"), max_model_len=4096) == (given, ())


@pytest.mark.parametrize("name", BATCH_DEFAULTS)
@pytest.mark.parametrize("version", ["0.11", "0.14", "0.20", "0.25"])
def test_large_gpus_have_batch_limits_of_their_own_only_in_the_newest_release(version, name):
    engine, _ = resolve_engine(Engine(vllm_version=version), find_gpu(name), max_model_len=4096)
    tokens, seqs = BATCH_DEFAULTS[name]
    assert (engine.max_num_batched_tokens, engine.max_num_seqs) == (min(tokens, 8192), seqs)


@pytest.mark.parametrize(
    ("version", "asynchronous", "reserve", "share"),
    [
        ("0.11", False, False, 0.9),
        ("0.14", True, False, 0.9),
        ("0.20", True, True, 0.92),
        ("0.25", True, True, 0.92),
        ("0.33", True, True, 0.92),
    ],
)
def test_what_is_not_given_is_the_releases_default_and_what_is_given_stays(
    version, asynchronous, reserve, share
):
    engine = resolve_version(Engine(vllm_version=version))
    found = (engine.async_scheduling, engine.scheduler_reserve_full_isl, engine.gpu_memory_utilization)
    assert found == (asynchronous, reserve, share)
    given = engine.model_copy(
        update={"async_scheduling": False, "scheduler_reserve_full_isl": False, "gpu_memory_utilization": 0.5}
    )
    assert resolve_version(given) == given


def test_the_newest_release_is_the_default():
    assert Engine().vllm_version == max(RULES, key=float)
    assert list(RULES) == list(get_args(Engine.model_fields["vllm_version"].annotation))


def test_without_a_kv_cache_scheduling_is_synchronous():
    assert resolve_version(Engine(kv_cache=False)).async_scheduling is False


@pytest.mark.parametrize(
    ("settings", "max_model_len", "tokens", "seqs"),
    [
        # At most what the sequences can hold.
        ({"max_num_seqs": 1}, 4096, 4096, 1),
        # No more sequences than tokens, when both or the sequences are defaulted.
        ({"max_num_batched_tokens": 100}, 4096, 100, 100),
        # Without chunked prefill a whole prompt must fit.
        ({"enable_chunked_prefill": False}, 131072, 131072, 1024),
        ({"enable_chunked_prefill": False}, 4096, 8192, 1024),
    ],
)
def test_defaults_bend_to_the_other_settings_as_in_vllm(settings, max_model_len, tokens, seqs):
    engine, _ = resolve_engine(Engine(**settings), find_gpu("H100"), max_model_len)
    assert (engine.max_num_batched_tokens, engine.max_num_seqs) == (tokens, seqs)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"max_num_batched_tokens": 16, "max_num_seqs": 32},
            r"max_num_batched_tokens is smaller than max_num_seqs \(32\)",
        ),
        (
            {"max_num_batched_tokens": 512, "enable_chunked_prefill": False},
            r"smaller than max_model_len \(4096\)",
        ),
        (
            {"long_prefill_token_threshold": 5000},
            r"long_prefill_token_threshold is larger than max_model_len",
        ),
    ],
)
def test_contradictions_are_refused_as_in_vllm(settings, problem):
    with pytest.raises(InputError, match=problem):
        resolve_engine(Engine(**settings), find_gpu("H100"), max_model_len=4096)


def test_what_vllm_warns_of_is_noted():
    _, notes = resolve_engine(
        Engine(max_num_batched_tokens=9000, max_num_seqs=2), find_gpu("H100"), max_model_len=4096
    )
    assert "vLLM warns" in notes[0]


def test_no_provider_s_name_reads_as_two():
    for entry in price_catalog().entries.values():
        assert not [name for name in entry.quantities if "," in name]


@pytest.mark.parametrize(
    ("site", "prices", "said"),
    [
        ("WORLD", {}, "electricity 0.161 USD/kWh (never added to the rent): "),
        (
            "NO",
            {},
            "no electricity price listed for NO: cost.electricity_usd is null; give prices.usd_per_kwh",
        ),
        ("NO", {"usd_per_kwh": 0.1}, "electricity 0.1 USD/kWh (never added to the rent), as given"),
    ],
)
def test_a_note_says_what_electricity_is_reckoned_at(site, prices, said):
    synthetic = {"preset": "azure-code", "num_prompts": 1}
    scenario = parse_scenario(
        {"model": "meta-llama/Llama-3.1-8B", "fleet": {"gpu": "H100"}, "site": {"region": site},
         "prices": prices, "workload": {"synthetic": synthetic}}
    )  # fmt: skip
    assert build_platform(scenario).notes[-1].startswith(said)
