"""How many tokens: one draw function per kind of `Lengths`, rounded and clipped at one place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.random import Generator
from numpy.typing import NDArray

from kavier.errors import InputError
from kavier.scenario import Lengths
from kavier.workload.read import read_trace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Points = Sequence[tuple[float, float]]

_MOST_TOKENS = 2.0**40
"""Keeps a wild lognormal inside an integer when no max is given."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """Token counts (int64, at least 1), and which of them [min, max] changed."""

    tokens: Ints
    clipped: NDArray[np.bool_]


def draw_lengths(lengths: Lengths, column: str, count: int, rng: Generator) -> Drawn:
    """Draw token counts.

    Args:
        lengths: What to draw from.
        column: "prompt_tokens" or "output_tokens": the column of an empirical trace.
        count: How many.
        rng: Its first draw chooses the rows of an empirical trace, so two columns of one trace stay
            paired when they are drawn with equal generators.

    Raises:
        InputError: The empirical trace cannot be read.
    """
    values = np.rint(_DRAW[lengths.kind](lengths, column, count, rng))
    clipped = np.clip(values, lengths.min, lengths.max or _MOST_TOKENS)
    return Drawn(clipped.astype(np.int64), values != clipped)


def quantile_values(points: Points, probabilities: Floats) -> Floats:
    """Inverse CDF: straight lines through (probability, value) points."""
    known, values = np.array(points, dtype=np.float64).T
    return np.asarray(np.interp(probabilities, known, values))


def quantile_mean(points: Points) -> float:
    """Exact mean of the distribution of `quantile_values`: the area under its straight lines."""
    return sum((q - p) * (a + b) / 2 for (p, a), (q, b) in pairwise(points))


def _fixed(lengths: Lengths, _column: str, count: int, _rng: Generator) -> Floats:
    return np.full(count, _given(lengths.mean))


def _uniform(lengths: Lengths, _column: str, count: int, rng: Generator) -> Floats:
    """Integers in [floor(mean (1-r)), ceil(mean (1+r))], at least 1.

    As vLLM's RandomDataset.get_sampling_params (vllm/benchmarks/datasets, v0.33), special tokens aside.
    """
    mean, ratio = _given(lengths.mean), lengths.range_ratio
    low, high = math.floor(mean * (1 - ratio)), math.ceil(mean * (1 + ratio))
    return rng.integers(max(low, 1), max(high, 1) + 1, size=count).astype(np.float64)


def _lognormal(lengths: Lengths, _column: str, count: int, rng: Generator) -> Floats:
    """Median exp(mu) = p50 and mean exp(mu + sigma^2 / 2), hence sigma = sqrt(2 ln(mean / p50))."""
    mean, p50 = _given(lengths.mean), _given(lengths.p50)
    return rng.lognormal(math.log(p50), math.sqrt(2 * math.log(mean / p50)), size=count)


def _quantiles(lengths: Lengths, _column: str, count: int, rng: Generator) -> Floats:
    return quantile_values(lengths.quantiles or (), rng.random(count))


def _empirical(lengths: Lengths, column: str, count: int, rng: Generator) -> Floats:
    if lengths.trace is None:
        raise InputError("empirical lengths need a trace")
    known = read_trace(lengths.trace).requests[column].cast(pl.Float64).to_numpy()
    return np.asarray(known[rng.integers(known.size, size=count)])


def _given(value: float | None) -> float:
    """`Lengths` has checked that the fields of its kind are there."""
    assert value is not None
    return value


_DRAW: dict[str, Callable[[Lengths, str, int, Generator], Floats]] = {
    "fixed": _fixed,
    "uniform": _uniform,
    "lognormal": _lognormal,
    "quantiles": _quantiles,
    "empirical": _empirical,
}
