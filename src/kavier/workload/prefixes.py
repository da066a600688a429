"""What prompts share: system prompts, sessions of turns, and the block identities that follow.

Rows are laid out session by session, turn by turn, until `synthetic` sorts them by arrival.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.random import Generator
from numpy.typing import NDArray

from kavier.scenario import Prefixes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Number = TypeVar("Number", np.int64, np.float64)


@dataclass(frozen=True, slots=True)
class Sessions:
    """Sessions as rows, one row a turn.

    Attributes:
        session: Session of each row, 0-based, ascending.
        turn: Turn of each row within its session, 0-based.
        system: System prompt of each row's session, 0-based.
        think_s: Seconds between the parent's end and this request; 0 in first turns.
    """

    session: Ints
    turn: Ints
    system: Ints
    think_s: Floats


def shares(prefixes: Prefixes | None) -> bool:
    """Whether any prompt shares a prefix with another."""
    return prefixes is not None and (prefixes.system_prompt_tokens > 0 or prefixes.mean_turns > 1)


def draw_turns(prefixes: Prefixes, rng: Generator, sessions: int) -> Ints:
    """Number of turns of each session: geometric, at least 1, with mean `mean_turns`."""
    return rng.geometric(1.0 / prefixes.mean_turns, size=sessions)


def cut_turns(turns: Ints, rows: int | None) -> Ints:
    """The first sessions that make `rows` rows together, the last one cut; all of them if `rows` is None."""
    if rows is None or turns.sum() <= rows:
        return turns
    ends = np.minimum(np.cumsum(turns), rows)
    kept = int(np.searchsorted(ends, rows)) + 1
    return np.diff(ends[:kept], prepend=0)


def lay_out(prefixes: Prefixes, rng: Generator, turns: Ints) -> Sessions:
    """Lay sessions of the given numbers of turns out as rows; system prompts are chosen uniformly."""
    session = np.repeat(np.arange(turns.size), turns)
    turn = np.arange(session.size) - np.repeat(np.cumsum(turns) - turns, turns)
    system = rng.integers(max(prefixes.system_prompts, 1), size=turns.size)
    think_s = rng.exponential(prefixes.mean_think_s, size=session.size)
    return Sessions(session, turn, system[session], np.where(turn > 0, think_s, 0.0))


def keep_rows(rows: Sessions, keep: NDArray[np.bool_]) -> Sessions:
    """The rows where `keep` holds; it may cut sessions only at their ends."""
    return Sessions(rows.session[keep], rows.turn[keep], rows.system[keep], rows.think_s[keep])


def prompt_lengths(prefixes: Prefixes, rows: Sessions, new_tokens: Ints, output_tokens: Ints) -> Ints:
    """Tokens of each prompt: system prompt, all earlier turns with their answers, and the new tokens."""
    answered = np.where(rows.turn > 0, np.roll(output_tokens, 1), 0)
    return prefixes.system_prompt_tokens + sum_in_session(rows, new_tokens + answered)


def sum_in_session(rows: Sessions, values: NDArray[Number]) -> NDArray[Number]:
    """Running sum of `values` over the turns of each session."""
    frame = pl.DataFrame({"session": rows.session, "value": values})
    return frame.select(pl.col("value").cum_sum().over("session")).to_series().to_numpy()


def block_hashes(prefixes: Prefixes, rows: Sessions, prompt_tokens: Ints) -> pl.Series:
    """Identities of the `block_tokens`-token blocks of each prompt, as a list column of UInt64.

    A session is one growing text, so its block j is the same block in every turn that has it whole.
    Blocks wholly inside a system prompt belong to that; a last, partial block is its row's own, since
    no other prompt ends there with the same text. Equal leading identities thus mean equal leading
    tokens, and the other way round for whole blocks.
    """
    size = prefixes.block_tokens
    blocks, whole = -(-prompt_tokens // size), prompt_tokens // size
    in_system = prefixes.system_prompt_tokens // size
    own = np.zeros(int(rows.session.max()) + 1, dtype=np.int64)
    np.maximum.at(own, rows.session, whole - in_system)
    first_session = max(prefixes.system_prompts, 1) * in_system
    first_partial = first_session + int(own.sum())
    start = first_session + np.cumsum(own) - own - in_system

    row = np.repeat(np.arange(blocks.size), blocks)
    block = np.arange(row.size) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    identity = np.where(block < in_system, rows.system[row] * in_system, start[rows.session[row]]) + block
    identity = np.where(block < whole[row], identity, first_partial + row).astype(np.uint64)
    flat = pl.DataFrame({"row": row, "block": identity})
    return flat.group_by("row", maintain_order=True).agg("block")["block"].alias("block_hashes")
