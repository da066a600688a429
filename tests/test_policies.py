"""Policies in Python: the same in both engines, and one clear error where they are wrong."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given

import kavier
from kavier.errors import InputError
from kavier.simulation.compiled import simulate_compiled
from kavier.simulation.policy.examples import make_examples
from kavier.simulation.policy.machine import compiled
from kavier.simulation.policy.policy import Policy, make_policy
from kavier.simulation.policy.python import PythonTiming, in_order, keys_of
from kavier.simulation.policy.views import FixedView, RequestView, arrivals
from kavier.simulation.reference import simulate_reference
from kavier.simulation.sampling import Sampling
from kavier.timing.datasheet import DatasheetTiming
from kavier.workload.table import SCHEMA
from tests.command_line import kavier as command_line
from tests.test_kernel import Case, assert_equal_requests, cases, check, many, power

REPLICAS = 3


def sees_all(request, replicas):
    """Depends on everything that a router is shown."""
    best, least = 0, 1e300
    for index, replica in enumerate(replicas):
        score = (
            3 * replica.num_waiting + 2 * replica.num_running + replica.num_outstanding
            + replica.used_blocks / replica.num_blocks - 4 * replica.matched_blocks
            + (request.row + request.session + request.priority + index) % 2
            + request.prompt_tokens / (1 + request.prompt_blocks) * (1 + int(request.arrival_s)) % 3
        )  # fmt: skip
        if score < least:
            best, least = index, score
    return best


def shortest_first(request):
    return request.prompt_tokens + 0.5 * request.priority


def affine(work):
    return 0.003 + 1e-5 * work.prefill_tokens + 1e-4 * work.decodes + 1e-8 * work.decode_context_tokens


def example_questions(replicas=REPLICAS):
    table = pl.DataFrame({"arrival_s": np.arange(9.0), "prompt_tokens": 1 + np.arange(9), "output_tokens": 1})
    return make_examples(arrivals(table, 4), replicas, 48, 9, 40)


@cache
def machine(what, function, replicas=REPLICAS) -> Policy:
    return compiled(make_policy(what, function), example_questions(replicas))


# --- Both engines ---------------------------------------------------------------------------------------


@many
@given(cases() | cases(closed=True))
def test_a_router_is_the_same_in_both_engines(case):
    policy = machine("router", sees_all)
    assert policy.address
    check(Case(case.table, case.sequences, case.engine, case.timing, case.options | {
        "router": policy, "replicas": REPLICAS,
    }))  # fmt: skip


@many
@given(cases() | cases(closed=True))
def test_an_admission_order_is_the_same_in_both_engines(case):
    if case.engine.vllm_version != "0.33":
        return  # the compiled engine has priorities by the newest rules only
    seen = arrivals(case.table, case.engine.block_size)
    keys = keys_of(machine("scheduling_policy", shortest_first), seen)
    assert keys.tolist() == [shortest_first(RequestView(*row)) for row in seen.tolist()]
    engine = case.engine.model_copy(update={"scheduling_policy": "priority"})
    check(Case(in_order(case.table, keys), case.sequences, engine, case.timing, case.options))


def model_table(count=300, rate_per_s=20.0):
    rng = np.random.default_rng(5)
    columns = {
        "arrival_s": np.cumsum(rng.exponential(1 / rate_per_s, count)),
        "prompt_tokens": rng.integers(1, 900, count),
        "output_tokens": rng.integers(1, 90, count),
    }
    return pl.DataFrame({name: pl.Series(values, dtype=SCHEMA[name]) for name, values in columns.items()})


def datasheet():
    from kavier.ecosystem.gpu import find_gpu
    from kavier.ecosystem.models import find_model
    from kavier.scenario import Engine

    engine = Engine(max_model_len=2048, max_num_seqs=16, max_num_batched_tokens=256)
    return engine, DatasheetTiming(find_model("meta-llama/Llama-3.1-8B"), find_gpu("H100-SXM"), engine)


def test_a_step_time_is_the_same_in_both_engines():
    engine, model = datasheet()
    timing = PythonTiming(machine("timing", affine), model)
    table = model_table()
    watts = power().record(1)
    expected = simulate_reference(table, engine, timing, num_gpu_blocks=400, power=watts)
    found = simulate_compiled(table, engine, timing, num_gpu_blocks=400, sampling=Sampling(power=watts))
    assert_equal_requests(found.requests, expected.requests)
    plain = simulate_reference(table, engine, model, num_gpu_blocks=400)
    assert not plain.requests.equals(expected.requests)
    assert expected.steps["flops"].sum() > 0


SCENARIO: dict[str, Any] = {
    "model": "meta-llama/Llama-3.1-8B",
    "fleet": {"gpu": "H100-SXM", "replicas": 2},
    "workload": {
        "synthetic": {
            "num_prompts": 60,
            "arrivals": {"request_rate": 20},
            "prompt_tokens": {"kind": "fixed", "mean": 300},
            "output_tokens": {"kind": "fixed", "mean": 20},
        }
    },
}


def test_a_policy_that_cannot_be_compiled_runs_in_the_reference_engine():
    def alternating(request, replicas):
        return sorted(range(len(replicas)), key=lambda i: replicas[i].num_outstanding)[0]

    found = kavier.simulate(SCENARIO, router=alternating)
    assert found.summary["engine"]["name"] == "reference"
    assert "alternating" in found.summary["engine"]["why"]
    built_in = kavier.simulate(SCENARIO | {"fleet": SCENARIO["fleet"] | {"router": "least-outstanding"}})
    assert built_in.summary["engine"]["name"] == "kernel"
    assert_equal_requests(found.requests, built_in.requests)


def test_a_slow_run_is_announced_before_it_begins(caplog):
    def sorting(request, replicas):
        return sorted(range(len(replicas)), key=lambda i: replicas[i].num_outstanding)[0]

    told: list[int] = []
    kavier.simulate(SCENARIO, lambda done, total: told.append(len(caplog.messages)), router=sorting)
    (message,) = caplog.messages
    assert told[0] == 1, "before the first request has ended"
    for word in ("sorting", "key=lambda", "write a loop instead", "the reference engine plays"):
        assert word in message
    caplog.clear()
    kavier.simulate(SCENARIO, router=sees_all, scheduling_policy=shortest_first, timing=affine)
    assert not caplog.messages


WEIGHTS = {"here": 1}
LIST = [1, 0]


def unjitted(request):
    return 0


def by_lambda(request, replicas):
    return min(range(len(replicas)), key=lambda i: replicas[i].num_outstanding)


def by_min(request, replicas):
    return replicas.index(min(replicas, key=lambda one: one.num_outstanding))


def by_pairs(request, replicas):
    return min(enumerate(replicas), key=lambda pair: pair[1].num_outstanding)[0]


def by_generator(request, replicas):
    return sum(one.num_outstanding for one in replicas) % len(replicas)


def by_none(request, replicas):
    best = None
    for index, one in enumerate(replicas):
        if best is None or one.num_outstanding < replicas[best].num_outstanding:
            best = index
    return best


def by_dict(request, replicas):
    return WEIGHTS["here"] % len(replicas)


def by_list(request, replicas):
    return LIST[request.row % 2]


def by_helper(request, replicas):
    return unjitted(request)


class Routing:
    def choose(self, request, replicas):
        return 0


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (by_lambda, "reads replicas: write a loop instead"),
        (by_min, "does not know .index() of replicas: write a loop"),
        (by_pairs, "does not know min of such values: write a loop"),
        (by_generator, "a generator expression"),
        (by_none, "None at first"),
        (by_dict, "reads WEIGHTS, a dict outside of it"),
        (by_list, "reads LIST, a list outside of it: make it a tuple"),
        (by_helper, "it calls unjitted, a plain function: put @numba.njit"),
        (Routing().choose, "an object or a method, not a plain function"),
    ],
)
def test_what_numba_says_is_put_plainly(function, words):
    why = machine("router", function).why
    assert why
    assert words in why
    if code := getattr(function, "__code__", None):
        line = int(re.findall(r"line (\d+): ", why)[0]) if "line" in why else code.co_firstlineno
        assert 0 <= line - code.co_firstlineno <= 8


COUNT = 0
KNOWN: dict[int, int] = {}
RNG = np.random.default_rng(0)


def draws(request, replicas):
    return random.randrange(len(replicas))


def draws_among_equals(request, replicas):
    least = min([one.num_outstanding for one in replicas])
    return int(RNG.choice([i for i, one in enumerate(replicas) if one.num_outstanding == least]))


def counts(request, replicas):
    global COUNT  # noqa: PLW0603
    COUNT += 1
    return COUNT % len(replicas)


def sticks(request, replicas):
    return KNOWN.setdefault(request.session, len(KNOWN) % len(replicas))


def sticks_by_default(request, replicas, known=[]):  # noqa: B006
    known.append(request.row)
    return 0


def draws_keys(request):
    return random.random()


def draws_times(work):
    return 0.01 + 1e-3 * random.random()


@pytest.mark.parametrize("replicas", [2, 4, 8])
@pytest.mark.parametrize(
    ("key", "function", "words"),
    [
        ("router", draws, ["asked the same again", "request.row", "no memory, clock or random numbers"]),
        ("router", draws_among_equals, ["asked the same again"]),
        ("router", counts, ["asked the same again"]),
        ("router", sticks, ["router remembers: it changes 'KNOWN'"]),
        ("router", sticks_by_default, ["router remembers: it changes 'known'"]),
        ("scheduling_policy", draws_keys, ["scheduling_policy answers", "asked the same again"]),
        ("timing", draws_times, ["timing answers", "for StepWork(prefills="]),
    ],
)
def test_a_policy_that_draws_or_remembers_is_refused(key, function, words, replicas):
    KNOWN.clear()
    scenario = SCENARIO | {"fleet": SCENARIO["fleet"] | {"replicas": replicas}}
    with pytest.raises(InputError) as caught:
        kavier.simulate(scenario, **{key: function})
    for word in words:
        assert word in str(caught.value)


def test_draws_that_follow_from_the_row_are_pure():
    def by_row(request, replicas):
        return (request.row * 2654435761 >> 7) % len(replicas)

    assert kavier.simulate(SCENARIO, router=by_row).summary["engine"]["name"] == "kernel"


def test_what_the_run_is_sure_to_ask_is_refused_without_a_note(caplog):
    for function in (beyond, raising, a_half):
        with pytest.raises(InputError, match=r"request.row 0 \(arrival_s 0"):
            kavier.simulate(SCENARIO, router=function)
    assert not caplog.messages


def test_machine_code_that_answers_otherwise_is_not_used():
    def overflows(request, replicas):  # in 64 bits this is 0
        return 1 if (request.prompt_tokens + 2**32) * 2**32 * 2**32 > 0 else 0

    found = compiled(make_policy("router", overflows), example_questions())
    assert found.address == 0
    assert found.why


def test_the_three_kinds_together():
    found = kavier.simulate(SCENARIO, router=sees_all, scheduling_policy=shortest_first, timing=affine)
    assert found.summary["engine"] == {"name": "kernel", "why": None}
    assert found.summary["trust"]["timing_level"] == "python"
    assert str(found.scenario.fleet.router).endswith("test_policies.py:sees_all")


def test_steps_faster_than_the_gpu_are_noted():
    def instant(work):
        return 1e-5

    notes = kavier.simulate(SCENARIO, timing=instant).summary["trust"]["notes"]
    assert any("shorter than their FLOPs" in note for note in notes)
    notes = kavier.simulate(SCENARIO, timing=lambda work: 0.05).summary["trust"]["notes"]
    assert not any("shorter than their FLOPs" in note for note in notes)


def test_a_router_sees_the_traces_priorities_beside_an_order_too(tmp_path):
    def by_priority(request, replicas):
        return 1 if request.priority == 7 else 0

    def latest_first(request):
        return -request.row

    rows = [{"arrival_s": i / 8, "input_tokens": 50, "output_tokens": 3, "priority": 7} for i in range(4)]
    trace = tmp_path / "t.csv"
    pl.DataFrame(rows).rename({"input_tokens": "prompt_tokens"}).write_csv(trace)
    scenario = SCENARIO | {"workload": {"trace": str(trace)}}
    for engine in ("kernel", "reference"):
        made = (lambda request: sorted([-request.row])[0]) if engine == "reference" else latest_first
        route = (lambda q, rs: [by_priority(q, rs)][-1:][0]) if engine == "reference" else by_priority
        found = kavier.simulate(scenario, router=route, scheduling_policy=made)
        assert found.requests["replica"].to_list() == [1, 1, 1, 1]


def test_steps_have_the_clock_of_the_trace(tmp_path):
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n1700000000.25,100,5\n1700000001.5,200,9\n")
    for loop in (True, False):
        scenario = SCENARIO | {
            "workload": {"trace": str(trace)}, "output": {"steps": True},
            "engine": {"async_scheduling": loop},
        }  # fmt: skip
        steps = kavier.simulate(scenario).steps
        assert steps is not None
        assert steps["scheduled_s"].min() == 1700000000.25
        assert (steps["scheduled_s"] <= steps["start_s"]).all()
        assert loop or steps["scheduled_s"].equals(steps["start_s"])


def test_shortest_first_serves_shorter_prompts_sooner():
    lengths = {"kind": "uniform", "mean": 2000, "range_ratio": 0.9}
    crowd = {
        "num_prompts": 200, "arrivals": {"request_rate": 1000},
        "prompt_tokens": lengths, "output_tokens": {"kind": "fixed", "mean": 10},
    }  # fmt: skip
    scenario = SCENARIO | {"workload": {"synthetic": crowd}, "engine": {"max_num_seqs": 4}}
    plain, ordered = kavier.simulate(scenario), kavier.simulate(scenario, scheduling_policy=shortest_first)
    assert ordered.summary["ttft_s"]["mean"] < plain.summary["ttft_s"]["mean"]
    assert ordered.summary["ttft_s"]["p50"] < plain.summary["ttft_s"]["p50"]


# --- Wrong ones -----------------------------------------------------------------------------------------


def raising(request, replicas):
    return replicas[0].num_wating


def beyond(request, replicas):
    return len(replicas)


def a_half(request, replicas):
    return 0.5


def mixed(request, replicas):
    return 1.9 if request.row == 7 else 0


def huge(request):
    return 10**400


def quits(work):
    raise SystemExit(3)


def late(request, replicas):
    """Wrong only for a request that is not among those it is tried with."""
    return 7 if request.row == 41 else 0


def late_raise(request, replicas):
    return replicas[9 * (request.row == 41)].num_waiting * 0


def no_time(work):
    return -1.0 if work.prefill_tokens else 0.01


def no_number(request):
    return float("nan")


@pytest.mark.parametrize(
    ("key", "function", "words"),
    [
        ("router", raising, ["router raised AttributeError", "'ReplicaView' object", "mean num_waiting"]),
        ("router", beyond, ["bad answer of router", "beyond", "2", "a whole number", "0 to 1"]),
        ("router", lambda request, replicas: None, ["got None", "a whole number", "request.row 0"]),
        ("router", a_half, ["bad answer of router", "0.5"]),
        ("router", late, ["bad answer of router", "7", "request.row 41 ", "prompt_tokens 300"]),
        ("router", mixed, ["bad answer of router", "1.9"]),
        ("scheduling_policy", huge, ["bad answer of scheduling_policy"]),
        ("timing", quits, ["timing raised SystemExit"]),
        ("timing", lambda work: 1e-7, ["bad answer of timing", "1e-06 to 1e+06"]),
        ("timing", lambda work: 1e300, ["bad answer of timing"]),
        ("router", late_raise, ["router raised"]),
        ("router", shortest_first, ["not such a function", "a list of ReplicaView (num_waiting"]),
        ("scheduling_policy", no_number, ["bad answer of scheduling_policy", "nan", "smallest"]),
        (
            "timing",
            no_time,
            ["bad answer of timing", "-1.0", "seconds", "StepWork(prefills=1, prefill_tokens=300"],
        ),
        ("timing", lambda work: "slow", ["bad answer of timing", "slow"]),
    ],
)
def test_a_wrong_policy_gets_one_error(key, function, words):
    with pytest.raises(InputError) as caught:
        kavier.simulate(SCENARIO, **{key: function})
    for word in words:
        assert word in str(caught.value)


POLICY = "def choose(request, replicas):\n    return 0\n\n\nNUMBER = 3\n"


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        (None, "choose", ["no such file"]),
        (POLICY, "chose", ["no function 'chose'", "choose"]),
        (POLICY, "NUMBER", ["no function 'NUMBER'"]),
        ("def choose(:\n", "choose", ["SyntaxError", "line 1"]),
        ("import nowhere_at_all\n", "choose", ["ModuleNotFoundError", "nowhere_at_all"]),
        (POLICY.replace("return 0", "return 1 // 0"), "choose", ["ZeroDivisionError", "choose"]),
    ],
)
def test_a_wrong_file_gets_one_error(tmp_path, text, name, words):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(json.dumps(SCENARIO))
    error = command_line("run", scenario, "--router", f"{path}:{name}").error
    for word in words:
        assert word in error


def test_files_are_looked_for_beside_the_scenario(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(POLICY)
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(json.dumps(SCENARIO | {"fleet": SCENARIO["fleet"] | {"router": "mine.py:choose"}}))
    monkeypatch.chdir("/")
    found = kavier.simulate(scenario)
    assert found.requests["replica"].unique().to_list() == [0]
    assert found.summary["engine"]["name"] == "kernel"


def test_what_a_policy_sees_is_public():
    assert kavier.RequestView is RequestView
    assert RequestView(0, 0.0, 5, 1, 0, 0).prompt_blocks == 1
    assert FixedView(1, 2, 3, 4, 5, 6).matched_blocks == 6
    assert {"RequestView", "ReplicaView", "StepWork"} <= set(dir(kavier))
