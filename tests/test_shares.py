"""Whose energy it is: shares of steps, by other roads than the engines'."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

import kavier
from kavier.ecosystem.gpu import find_gpu
from kavier.ecosystem.models import find_model
from kavier.metrics.power import POWER_MODELS
from kavier.scenario import Engine
from kavier.simulation.clients import Clients
from kavier.simulation.compiled import simulate_compiled
from kavier.simulation.kernel.records import POWER, SETTLE
from kavier.simulation.record import TableRecorder
from kavier.simulation.reference import Simulation, make_replica, make_requests, simulate_reference
from kavier.simulation.router import make_router
from kavier.simulation.sampling import Sampling
from kavier.simulation.scheduler import Step
from kavier.timing.compiled import AffineTiming
from kavier.timing.datasheet import DatasheetTiming
from kavier.timing.parameters import parameters_of
from kavier.timing.step import StepWork
from tests.test_kernel import ROUGH, Case, cases

GPU = find_gpu("H100-SXM")
LLAMA = find_model("meta-llama/Llama-3.1-8B")
ENGINE = Engine(
    max_model_len=16_384, max_num_seqs=64, max_num_batched_tokens=8192, async_scheduling=False,
    enable_prefix_caching=False,
)  # fmt: skip


def power(gpus: int = 1) -> np.ndarray:
    found: np.ndarray = POWER_MODELS["saturating"](GPU, GPU.flops_per_s["bf16"]).record(gpus)
    return found


def energies(table: pl.DataFrame, engine: Engine = ENGINE, timing: Any = None, blocks: int = 5000) -> Any:
    """(energies of requests by the compiled engine, its steps), once the reference engine has agreed."""
    timing = timing or DatasheetTiming(LLAMA, GPU, engine)
    sampling = Sampling(0.0, 1.0, power(), steps=True)
    found = simulate_compiled(table, engine, timing, num_gpu_blocks=blocks, sampling=sampling)
    expected = simulate_reference(table, engine, timing, num_gpu_blocks=blocks, power=power())
    mine = found.requests["energy_j"].to_numpy()
    np.testing.assert_allclose(mine, expected.requests["energy_j"].to_numpy(), rtol=1e-9)
    assert found.steps is not None
    np.testing.assert_allclose(mine.sum(), found.steps["energy_j"].to_numpy().sum(), rtol=1e-12)
    return mine, found.steps


def table(*rows: tuple[float, int, int]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["arrival_s", "prompt_tokens", "output_tokens"], orient="row")


# --- Laws -------------------------------------------------------------------------------------------------


def test_a_request_alone_gets_all():
    found, steps = energies(table((0.0, 3000, 40), (100.0, 10, 3)))
    alone = steps.filter(pl.col("start_s") < 100.0)
    assert found[0] == pytest.approx(alone["energy_j"].sum(), rel=1e-12)


def test_equal_requests_get_equal_shares():
    found, _ = energies(table(*[(0.0, 700, 30)] * 5))
    assert found.tolist() == [found[0]] * 5


def test_shares_do_not_depend_on_the_order_in_the_batch():
    kinds = [(0.0, 700, 30), (0.0, 20, 90), (0.0, 1500, 4)]
    found, _ = energies(table(*kinds))
    turned, _ = energies(table(*kinds[::-1]))
    np.testing.assert_allclose(turned[::-1], found, rtol=1e-12)


def test_more_context_and_more_tokens_cost_more():
    found, _ = energies(table((0.0, 100, 50), (0.0, 2000, 50), (0.0, 2000, 90)))
    assert found[0] < found[1] < found[2]


# --- By hand ----------------------------------------------------------------------------------------------


def by_hand_s(parts: list[tuple[int, int, bool]]) -> list[float]:
    """Weights of (tokens, computed before, samples) in a step of Llama-3.1-8B on one H100, from its shape."""
    p = parameters_of(GPU)
    hidden, layers, inner, vocabulary, heads, kv_heads, width = 4096, 32, 14_336, 128_256, 32, 8, 128
    matrices = layers * hidden * (hidden + 2 * kv_heads * width + hidden + 3 * inner)
    head = hidden * vocabulary
    bytes_per_s = 3.35e12 * p["gemm.bf16.memory_efficiency"]
    flops_per_s = 989.4e12 * p["gemm.bf16.compute_efficiency"]
    attention_flops_per_s = 989.4e12 * p["attention.prefill.compute_efficiency"]
    values = 4 * hidden + 2 * (heads + kv_heads) * width / p["small.rope_divisor"] + 3 * inner
    activations = layers * 2 * values
    logits = (p["sampler.plain.bytes_per_logit"] + p["sampler.select.bytes_per_logit"]) * vocabulary
    weights = 2 * (matrices + head * any(samples for *_, samples in parts))
    shared_s = (p["host.step_s"] + weights / bytes_per_s) / len(parts)
    found = []
    for tokens, computed, samples in parts:
        pairs = sum(computed + i + 1 for i in range(tokens))
        moved = (
            (computed + tokens) * layers * 2 * kv_heads * width * 2 + tokens * activations + samples * logits
        )
        flops = 2 * matrices * tokens + 2 * head * samples
        attention = pairs * layers * 4 * heads * width
        own_s = moved / bytes_per_s + flops / flops_per_s + attention / attention_flops_per_s
        found.append(shared_s + own_s)
    return found


def test_prefills_and_decodes_by_hand():
    """The second request's prompt comes in two chunks, the first beside a decode."""
    engine = ENGINE.model_copy(update={"max_num_batched_tokens": 512})
    found, steps = energies(table((0.0, 300, 4), (1e-6, 800, 2)), engine)
    batches = [
        {0: (300, 0, True)},
        {0: (1, 300, True), 1: (511, 0, False)},
        {0: (1, 301, True), 1: (289, 511, True)},
        {0: (1, 302, True), 1: (1, 800, True)},
    ]
    assert steps["prefill_tokens"].to_list() == [300, 511, 289, 0]
    expected = np.zeros(2)
    for batch, energy_j in zip(batches, steps["energy_j"], strict=True):
        weights_s = by_hand_s(list(batch.values()))
        for request, weight_s in zip(batch, weights_s, strict=True):
            expected[request] += energy_j * weight_s / sum(weights_s)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_cached_prefix_costs_its_reading_only():
    engine = ENGINE.model_copy(update={"enable_prefix_caching": True})
    hashes = pl.Series("block_hashes", [[1, 2, 3, 4], [1, 2, 3, 5]], dtype=pl.List(pl.UInt64))
    load = table((0.0, 64, 1), (1.0, 64, 1)).with_columns(hashes, pl.Series("block_tokens", [16, 16]))
    found, steps = energies(load, engine)
    assert steps["prefill_tokens"].to_list() == [64, 16]
    assert found.tolist() == pytest.approx(steps["energy_j"].to_list(), rel=1e-12)
    both = load.with_columns(arrival_s=pl.Series([0.0, 0.0]))
    shared, steps = energies(both, engine)
    weights_s = by_hand_s([(64, 0, True), (16, 48, True)])
    np.testing.assert_allclose(
        shared, np.array(weights_s) / sum(weights_s) * steps["energy_j"].sum(), rtol=1e-9
    )


# --- Step by step, with the batches that the scheduler tells ------------------------------------------------


class Batches(TableRecorder):
    """Adds up shares exactly, with `AffineTiming`'s coefficients."""

    def __init__(self, timing: AffineTiming, gpus: int) -> None:
        super().__init__()
        self._timing, self._gpus = timing, gpus
        self.energies_j: dict[int, Fraction] = {}

    def begin(self, replica, scheduled_s, start_s, cost, step: Step, scheduler) -> None:
        super().begin(replica, scheduled_s, start_s, cost, step, scheduler)
        if not step.scheduled:
            return
        timing, weights_s = self._timing, list[Fraction]()
        rates = cost.flops / cost.time_s, cost.bytes / cost.time_s
        model = POWER_MODELS["saturating"](GPU, GPU.flops_per_s["bf16"])
        energy_j = model.power_w(*rates).item() * cost.time_s * self._gpus
        for request, tokens, computed, _ in step.scheduled:
            decodes = tokens == 1 and computed >= request.num_prompt_tokens
            own_s = Fraction(timing.decode_s) if decodes else Fraction(timing.prefill_s) * tokens
            weights_s.append(
                Fraction(timing.base_s) / len(step.scheduled)
                + own_s
                + Fraction(timing.context_s) * (computed + tokens)
            )
        for (request, *_), weight_s in zip(step.scheduled, weights_s, strict=True):
            share_j = Fraction(energy_j) * weight_s / sum(weights_s)
            self.energies_j[request.row] = self.energies_j.get(request.row, Fraction(0)) + share_j


def exact_energies(case: Case) -> tuple[list[float], int]:
    options = case.options
    batches = Batches(case.timing, 2)
    fleet = [
        make_replica(
            i,
            case.engine,
            options["num_gpu_blocks"],
            case.timing,
            batches,
            as_recorded=options["as_recorded"],
        )
        for i in range(options["replicas"])
    ]
    longest = case.engine.max_model_len
    assert isinstance(longest, int)
    requests, _ = make_requests(case.table, longest)
    keys = case.keys() if case.engine.enable_prefix_caching else None
    router = make_router(options["router"], case.table, options["replicas"], options["seed"])
    Simulation(fleet, router, Clients(requests, case.table, None), keys, longest, None).run()
    found = [float(batches.energies_j.get(request.row, Fraction(0))) for request in requests]
    return found, sum(request.num_preemptions for request in requests)


def test_both_engines_give_what_an_exact_sum_over_the_batches_gives():
    """Preemptions, priorities, asynchronous steps, prefix hits and routers included."""
    preempted = []

    @given(cases(routers=("round-robin", "least-outstanding")))
    def check(case: Case) -> None:
        expected, preemptions = exact_energies(case)
        preempted.append(preemptions)
        for result in (case.reference(), case.compiled()):
            assert result.requests["energy_j"].to_list() == pytest.approx(expected, rel=1e-9, abs=0.0)
            never_ran = result.requests.filter(pl.col("first_scheduled_s").is_null())
            assert (never_ran["energy_j"] == 0.0).all()

    check()
    assert sum(count > 0 for count in preempted) > 5


def test_what_a_preemption_threw_away_is_paid_by_its_request():
    """Blocks for one and a half: the second is preempted, and computes twice what it paid once already."""
    load = table((0.0, 40, 30), (0.0, 40, 30))
    engine = ENGINE.model_copy(update={"block_size": 4})
    ample, _ = energies(load, engine, ROUGH)
    short, steps = energies(load, engine, ROUGH, blocks=1 + 26)
    assert steps["preempted"].sum() == 1
    assert short[1] > short[0] > ample[0] == ample[1]


# --- Long runs --------------------------------------------------------------------------------------------


def test_sums_stay_exact_over_many_steps():
    """A long answer beside short ones: the sums begin anew eight times, under somebody's feet."""
    steps_wanted, rng = 8 * SETTLE, np.random.default_rng(5)
    arrivals_s = np.sort(rng.uniform(0, 150, 400))
    load = pl.DataFrame(
        {
            "arrival_s": np.concatenate([[0.0], arrivals_s]),
            "prompt_tokens": np.concatenate([[100], rng.integers(1, 4000, 400)]),
            "output_tokens": np.concatenate([[steps_wanted + 500], rng.integers(1, 300, 400)]),
        }
    )
    engine = ENGINE.model_copy(update={"max_model_len": 1 << 18})
    _, steps = energies(load, engine, blocks=20_000)
    assert len(steps) > steps_wanted


# --- Models -----------------------------------------------------------------------------------------------


MODELS = ["meta-llama/Llama-3.1-8B", "Qwen/Qwen3-30B-A3B", "deepseek-ai/DeepSeek-V3", "openai/gpt-oss-20b"]
TIMINGS = {name: DatasheetTiming(find_model(name), GPU, ENGINE) for name in MODELS}


@given(
    st.sampled_from(MODELS),
    st.lists(st.tuples(st.integers(1, 900), st.integers(0, 5000)), max_size=4),
    st.lists(st.integers(1, 8000), max_size=4),
    st.data(),
)
def test_unit_costs_make_up_the_bytes_and_flops_of_the_step(name, prefills, contexts, data):
    """Also where a window cuts them."""
    if not prefills and not contexts:
        contexts = [1]
    timing = TIMINGS[name]
    work = StepWork(
        prefills=len(prefills),
        prefill_tokens=sum(q for q, _ in prefills),
        prefill_pairs=sum(q * c + q * (q + 1) // 2 for q, c in prefills),
        prefill_context_tokens=sum(q + c for q, c in prefills),
        decodes=len(contexts),
        decode_context_tokens=sum(contexts),
        sampled=len(contexts) + data.draw(st.integers(0, len(prefills))),
    )
    units, cost, shares, tables = (
        timing.unit_costs(work),
        timing.cost(work),
        timing.compiled().shares,
        timing.compiled(),
    )
    assert min(units) >= 0.0
    weight_s = (
        units.shared_s
        - shares.step_s
        + work.prefill_tokens * units.prefill_s
        + work.decodes * units.decode_s
        + work.sampled * units.row_s
        + work.decode_context_tokens * units.decode_context_s
        + work.prefill_pairs * units.pair_s
        + work.prefill_context_tokens * units.prefill_context_s
        + (work.prefill_context_tokens - work.prefill_tokens) * units.cached_s
    )
    tokens = work.prefill_tokens + work.decodes
    body_flops, head_flops = tokens * tables.body_flops, work.sampled * tables.head_flops
    by_sums_s = shares.byte_s * cost.bytes + shares.flop_s * (cost.flops - body_flops - head_flops)
    by_sums_s += tokens * (shares.decode_s - shares.token_bytes_s) + work.sampled * (
        shares.row_s - shares.row_bytes_s
    )
    assert weight_s == pytest.approx(by_sums_s, rel=1e-9)


# --- Against the Shapley value ----------------------------------------------------------------------------

STEPS = {
    "64 decodes": [(1, c) for c in np.random.default_rng(0).integers(100, 8000, 64)],
    "31 decodes, a prefill": [*((1, c) for c in np.random.default_rng(1).integers(100, 4000, 31)), (2048, 0)],
    "63 decodes, a chunk": [*((1, c) for c in np.random.default_rng(2).integers(100, 4000, 63)), (512, 1024)],
    "8 decodes": [(1, c) for c in np.random.default_rng(3).integers(100, 8000, 8)],
    "2 decodes, 2 prefills": [(1, 500), (1, 5000), (2000, 0), (100, 0)],
}
"""Those of an earlier study: (tokens, computed before)."""


def energy_of(parts: list[tuple[int, int]]) -> float:
    work = StepWork()
    for tokens, computed in parts:
        if tokens == 1:
            work.decodes += 1
            work.decode_context_tokens += computed + 1
        else:
            work.prefills += 1
            work.prefill_tokens += tokens
            work.prefill_pairs += tokens * computed + tokens * (tokens + 1) // 2
            work.prefill_context_tokens += computed + tokens
        work.sampled += 1
    cost, p = (
        TIMINGS["meta-llama/Llama-3.1-8B"].cost(work),
        dict(zip(POWER.names or (), power()[0].tolist(), strict=True)),
    )
    activity = (p["per_flop_per_s"] * cost.flops + p["per_byte_per_s"] * cost.bytes) / cost.time_s
    return float((p["floor_w"] + p["span_w"] * -np.expm1(-activity)) * cost.time_s)


@pytest.mark.parametrize("name", STEPS)
def test_shares_are_close_to_the_shapley_value(name):
    """At most 6 % of the energy is another's: each request's mean added energy over 300 orders of joining."""
    parts, rng = STEPS[name], np.random.default_rng(7)
    shapley = np.zeros(len(parts))
    for _ in range(300):
        order, last_j = rng.permutation(len(parts)), 0.0
        for i in range(len(order)):
            now_j = energy_of([parts[k] for k in order[: i + 1]])
            shapley[order[i]] += (now_j - last_j) / 300
            last_j = now_j
    weights_s = np.array(by_hand_s([(tokens, computed, True) for tokens, computed in parts]))
    shares = weights_s / weights_s.sum() * energy_of(parts)
    assert np.abs(shares - shapley).sum() / 2 < 0.06 * shares.sum()


# --- Whole runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fleet": {"gpu": "H100-SXM", "replicas": 3, "router": "least-outstanding"}},
        {"engine": {"tensor_parallel_size": 2, "num_gpu_blocks_override": 400, "max_model_len": 4096}},
        {"engine": {"kv_cache": False, "max_model_len": 4096}},
        {"workload": {"max_concurrency": 3}},
        {"engine": {"async_scheduling": False, "num_gpu_blocks_override": 300, "max_model_len": 8192}},
    ],
)
def test_energy_is_conserved(changes):
    """Of requests and of idle GPUs make that of the GPUs."""
    scenario: dict[str, Any] = {
        "model": "meta-llama/Llama-3.1-8B",
        "workload": {"synthetic": {"preset": "azure-conversation", "num_prompts": 60}},
        "fleet": {"gpu": "H100-SXM"},
    }
    for section, values in changes.items():
        scenario[section] = {**scenario.get(section, {}), **values}
    result = kavier.simulate(scenario)
    energy = result.summary["energy"]
    in_requests_kwh = result.requests["energy_j"].to_numpy().sum() / 3.6e6
    assert in_requests_kwh + energy["idle_kwh"] == pytest.approx(energy["gpu_kwh"], rel=1e-9)
    assert energy["idle_kwh"] >= 0.0
    assert result.summary["energy_j"]["mean"] == pytest.approx(
        result.requests.filter(pl.col("status") == "finished")["energy_j"].mean(), rel=1e-12
    )
