"""Generate a workload: arrivals, lengths and shared prefixes, each from its own random stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.random import Generator
from numpy.typing import NDArray

from kavier.scenario import Arrivals, Lengths, Prefixes, Synthetic, parse_scenario
from kavier.scenario_file import anchor_paths, read_scenario_tree, set_path
from kavier.workload.arrivals import arrival_times
from kavier.workload.lengths import Drawn, draw_lengths
from kavier.workload.prefixes import (
    Sessions,
    block_hashes,
    cut_turns,
    draw_turns,
    keep_rows,
    lay_out,
    prompt_lengths,
    shares,
    sum_in_session,
)
from kavier.workload.presets import resolve
from kavier.workload.table import Workload, make_workload

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Counts = dict[str, int]


@dataclass(frozen=True, slots=True)
class Streams:
    """One generator per subsystem, so that changing one leaves the draws of the others alone."""

    arrivals: Generator
    prompts: Generator
    outputs: Generator
    turns: Generator
    prefixes: Generator


def generate(spec: Synthetic, seed: int) -> Workload:
    """Generate the workload that `spec` describes; the same spec and seed give the same bytes.

    Sessions are closed loop: `think_s` after its parent's end decides when a later turn arrives, and
    its arrival_s is only nominal, as if answers took no time. `duration_s` drops turns that are
    nominally later; `num_prompts` cuts the last session to make the number exact.

    Args:
        spec: What to generate; presets are resolved here.
        seed: Any non-negative integer.

    Returns:
        Requests sorted by arrival. `counts` has prompt_tokens_clipped, output_tokens_clipped and
        turn_tokens_clipped where lengths were clipped to [min, max], and turns_after_end_dropped.

    Raises:
        InputError: Unknown preset, nothing that ends the load, missing lengths, unreadable trace.
    """
    full = resolve(spec)
    prefixes, arrivals = full.prefixes, full.arrivals
    assert arrivals is not None  # resolve() has filled it
    streams = _streams(full, seed)
    if prefixes is None or not shares(prefixes):
        frame, counts = _independent(full, arrivals, streams)
    else:
        frame, counts = _shared(full, arrivals, prefixes, streams)
    source = f"preset {full.preset}" if full.preset else "synthetic"
    return make_workload(frame, source=source, format="synthetic", counts=counts)


def read_spec(path: Path | None, overrides: Mapping[str, Any]) -> Synthetic:
    """A specification from a YAML file with the keys of `workload.synthetic`, then overridden.

    Args:
        path: The file; None = nothing but the overrides.
        overrides: preset, num_prompts, duration_s, request_rate; None = not given. A count or a
            duration replaces whichever of the two the file has.

    Raises:
        InputError: As for a scenario; keys are named as they would be in one.
    """
    tree = read_scenario_tree(path) if path else {}
    given = {name: value for name, value in overrides.items() if value is not None}
    if given.keys() & {"num_prompts", "duration_s"}:
        tree = {key: value for key, value in tree.items() if key not in ("num_prompts", "duration_s")}
    for name, value in given.items():
        set_path(tree, "arrivals.request_rate" if name == "request_rate" else name, value)
    scenario: dict[str, Any] = {"model": "any", "fleet": {"gpu": "any"}, "workload": {"synthetic": tree}}
    anchored = anchor_paths(scenario, path.parent) if path else scenario
    synthetic = parse_scenario(anchored, where=str(path or "synthetic load")).workload.synthetic
    assert synthetic is not None  # the tree above has it
    return synthetic


def _streams(spec: Synthetic, seed: int) -> Streams:
    arrivals, prompts, outputs, turns, prefixes = np.random.SeedSequence(seed).spawn(5)
    if _one_trace(spec.prompt_tokens, spec.output_tokens):
        outputs = prompts  # the same rows for both columns keep their correlation
    return Streams(*map(np.random.default_rng, (arrivals, prompts, outputs, turns, prefixes)))


def _one_trace(prompt: Lengths | None, output: Lengths | None) -> bool:
    return bool(prompt and output and prompt.trace and prompt.trace == output.trace)


def _independent(spec: Synthetic, arrivals: Arrivals, streams: Streams) -> tuple[pl.DataFrame, Counts]:
    times = arrival_times(
        arrivals, streams.arrivals, num_prompts=spec.num_prompts, duration_s=spec.duration_s
    )
    prompts, outputs = _draw_both(spec, streams, times.size)
    frame = pl.DataFrame(
        {"arrival_s": times, "prompt_tokens": prompts.tokens, "output_tokens": outputs.tokens}
    )
    return frame, _clipped(prompt_tokens=prompts.clipped, output_tokens=outputs.clipped)


def _draw_both(spec: Synthetic, streams: Streams, count: int) -> tuple[Drawn, Drawn]:
    assert spec.prompt_tokens is not None  # resolve() has filled both
    assert spec.output_tokens is not None
    return (
        draw_lengths(spec.prompt_tokens, "prompt_tokens", count, streams.prompts),
        draw_lengths(spec.output_tokens, "output_tokens", count, streams.outputs),
    )


def _clipped(**clipped: Bools) -> Counts:
    counts = {f"{name}_clipped": int(np.count_nonzero(mask)) for name, mask in clipped.items()}
    return {name: count for name, count in counts.items() if count}


def _shared(
    spec: Synthetic, arrivals: Arrivals, prefixes: Prefixes, streams: Streams
) -> tuple[pl.DataFrame, Counts]:
    rows, times, late = _start_turns(spec, arrivals, prefixes, streams)
    outputs, new_tokens, counts = _draw_turns(spec, prefixes, streams, rows)
    prompts = prompt_lengths(prefixes, rows, new_tokens, outputs)
    columns = {
        "arrival_s": times,
        "prompt_tokens": prompts,
        "output_tokens": outputs,
        "block_hashes": block_hashes(prefixes, rows, prompts),
        "block_tokens": np.full(times.size, prefixes.block_tokens),
    }
    order = np.argsort(times, kind="stable")
    if prefixes.mean_turns > 1:
        columns |= _session_columns(rows, order)
    return pl.DataFrame(columns)[order], counts | ({"turns_after_end_dropped": late} if late else {})


def _start_turns(
    spec: Synthetic, arrivals: Arrivals, prefixes: Prefixes, streams: Streams
) -> tuple[Sessions, Floats, int]:
    """The rows that arrive in time, when (answers taking no time), and how many would have come later."""
    rows, starts = _start_sessions(spec, arrivals, prefixes, streams)
    times = starts[rows.session] + sum_in_session(rows, rows.think_s)
    if spec.duration_s is None:
        return rows, times, 0
    in_time = times < spec.duration_s  # cuts sessions at their ends: times rise from turn to turn
    return keep_rows(rows, in_time), times[in_time], int(np.count_nonzero(~in_time))


def _start_sessions(
    spec: Synthetic, arrivals: Arrivals, prefixes: Prefixes, streams: Streams
) -> tuple[Sessions, Floats]:
    """The rows of all sessions and the time at which each session starts."""
    rate = (arrivals.request_rate or 0.0) / prefixes.mean_turns
    sessions = arrivals.model_copy(update={"request_rate": rate})
    if spec.duration_s is None:
        turns = cut_turns(draw_turns(prefixes, streams.prefixes, spec.num_prompts or 0), spec.num_prompts)
        starts = arrival_times(sessions, streams.arrivals, num_prompts=turns.size, duration_s=None)
    else:
        starts = arrival_times(
            sessions, streams.arrivals, num_prompts=spec.num_prompts, duration_s=spec.duration_s
        )
        turns = cut_turns(draw_turns(prefixes, streams.prefixes, starts.size), spec.num_prompts)
    return lay_out(prefixes, streams.prefixes, turns), starts


def _draw_turns(
    spec: Synthetic, prefixes: Prefixes, streams: Streams, rows: Sessions
) -> tuple[Ints, Ints, Counts]:
    """Output tokens and new prompt tokens of each row; every length is drawn for all rows, used or not."""
    prompts, outputs = _draw_both(spec, streams, rows.turn.size)
    if prefixes.turn_tokens is None:
        counts = _clipped(prompt_tokens=prompts.clipped, output_tokens=outputs.clipped)
        return outputs.tokens, prompts.tokens, counts
    first = rows.turn == 0
    later = draw_lengths(prefixes.turn_tokens, "prompt_tokens", first.size, streams.turns)
    counts = _clipped(
        prompt_tokens=prompts.clipped & first,
        turn_tokens=later.clipped & ~first,
        output_tokens=outputs.clipped,
    )
    return outputs.tokens, np.where(first, prompts.tokens, later.tokens), counts


def _session_columns(rows: Sessions, order: Ints) -> dict[str, pl.Series]:
    """Session, parent (as its row once sorted by `order`) and think time of each row, before sorting."""
    place = np.empty_like(order)
    place[order] = np.arange(order.size)
    first = pl.Series(rows.turn == 0)
    columns = pl.DataFrame({"session": rows.session, "parent": np.roll(place, 1), "think_s": rows.think_s})
    return columns.select(
        session_id=pl.col("session").cast(pl.String),
        parent=pl.when(~first).then("parent"),
        think_s=pl.when(~first).then("think_s"),
    ).to_dict()
