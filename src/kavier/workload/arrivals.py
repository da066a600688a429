"""When requests arrive: unit-mean gaps, stopped by count or time, then laid on the clock."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from kavier.errors import InputError
from kavier.scenario import Arrivals
from kavier.workload.lengths import quantile_mean, quantile_values

Floats = NDArray[np.float64]

MAX_REQUESTS = 100_000_000
"""A generated workload larger than this is taken for a slip of the keyboard."""

_BISECTIONS = 60
"""Halvings of a bracket of at most period_s: far below the resolution of a double."""


def arrival_times(
    arrivals: Arrivals, rng: Generator, *, num_prompts: int | None, duration_s: float | None
) -> Floats:
    """Times of arrival in seconds from 0, sorted.

    With `num_prompts` alone the times are scaled so that the last one falls at num_prompts /
    request_rate, as `vllm bench serve` does (vllm/benchmarks/serve.py, get_request, v0.33): the mean
    rate is then exact. With `duration_s` nothing is scaled and the number of requests is random.
    Like vLLM's, the first request comes one gap after 0.

    Args:
        arrivals: Resolved: process and request_rate given.
        rng: Source of the gaps, nothing else.
        num_prompts: Stop after so many.
        duration_s: Stop at this time; with both, at whichever comes first.

    Raises:
        InputError: No stop, an infinite rate without a count, no arrival in time, or far too many.
    """
    rate = arrivals.request_rate
    assert rate is not None  # resolve() has filled it
    _check_size(rate, num_prompts, duration_s)
    if math.isinf(rate):
        return np.zeros(num_prompts or 0)
    if duration_s is None:
        expected = _scaled_to_count(arrivals, rng, num_prompts or 0)
    else:
        expected = _until(arrivals, rng, _expected_requests(arrivals, rate, duration_s), num_prompts)
    if not expected.size:
        raise InputError(f"no request arrives in {duration_s:g} s at {rate:g} requests/s")
    return _clock(arrivals, rate, expected)


def _check_size(rate: float, num_prompts: int | None, duration_s: float | None) -> None:
    if num_prompts is None and duration_s is None:
        raise InputError("synthetic load never ends", expected="num_prompts or duration_s")
    if math.isinf(rate) and num_prompts is None:
        raise InputError(
            "request_rate inf sends all requests at once: no duration_s ends them",
            expected="num_prompts (--num-prompts)",
        )
    likely = min(num_prompts or math.inf, rate * (duration_s or math.inf))
    if likely > MAX_REQUESTS:
        raise InputError(
            f"synthetic load of {likely:.3g} requests", expected=f"at most {MAX_REQUESTS:,} requests"
        )


def _scaled_to_count(arrivals: Arrivals, rng: Generator, count: int) -> Floats:
    times = np.cumsum(_GAPS[str(arrivals.process)](arrivals, rng, count))
    if times[-1] <= 0:
        raise InputError(
            "every gap between arrivals rounds to 0",
            where="workload.synthetic.arrivals.burstiness",
            value=arrivals.burstiness,
            expected="a larger burstiness",
        )
    scaled: Floats = times * (count / times[-1])
    return scaled


def _until(arrivals: Arrivals, rng: Generator, horizon: float, num_prompts: int | None) -> Floats:
    """Cumulated unit-mean gaps up to `horizon`; drawn in chunks, whose size changes no value."""
    limit = math.inf if num_prompts is None else num_prompts
    chunk = int(min(horizon * 1.1 + 100, limit))
    parts: list[Floats] = []
    end, count = 0.0, 0
    while end < horizon and count < limit:
        gaps = _GAPS[str(arrivals.process)](arrivals, rng, chunk)
        gaps[0] += end
        parts.append(np.cumsum(gaps))
        end, count = float(parts[-1][-1]), count + chunk
    times = np.concatenate(parts)
    return times[times < horizon][:num_prompts]


def _poisson(_arrivals: Arrivals, rng: Generator, count: int) -> Floats:
    return rng.exponential(size=count)


def _gamma(arrivals: Arrivals, rng: Generator, count: int) -> Floats:
    return rng.gamma(arrivals.burstiness, 1.0 / arrivals.burstiness, size=count)


def _constant(_arrivals: Arrivals, _rng: Generator, count: int) -> Floats:
    return np.ones(count)


def _quantiles(arrivals: Arrivals, rng: Generator, count: int) -> Floats:
    points = arrivals.gap_quantiles or ()
    return quantile_values(points, rng.random(count)) / quantile_mean(points)


_GAPS: dict[str, Callable[[Arrivals, Generator, int], Floats]] = {
    "poisson": _poisson,
    "gamma": _gamma,
    "constant": _constant,
    "quantiles": _quantiles,
    "diurnal": _poisson,
}
"""Process -> independent gaps of mean 1."""


def _clock(arrivals: Arrivals, rate: float, expected: Floats) -> Floats:
    """Seconds at which `expected` requests have arrived in the mean: the inverse of the next function."""
    if arrivals.process != "diurnal" or arrivals.swing == 0:
        return expected / rate
    reach_s = arrivals.swing * arrivals.period_s / math.pi
    low, high = np.maximum(expected / rate - reach_s, 0.0), expected / rate + reach_s
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        late = _diurnal_mean(arrivals, rate, middle) >= expected
        low, high = np.where(late, low, middle), np.where(late, middle, high)
    return high


def _expected_requests(arrivals: Arrivals, rate: float, duration_s: float) -> float:
    if arrivals.process != "diurnal":
        return rate * duration_s
    return float(_diurnal_mean(arrivals, rate, np.array([duration_s]))[0])


def _diurnal_mean(arrivals: Arrivals, rate: float, time_s: Floats) -> Floats:
    """Integral of the diurnal rate from 0: time change makes a Poisson process follow it exactly."""
    turn = 2 * math.pi / arrivals.period_s
    wave = np.sin(turn * (time_s - arrivals.peak_s)) + math.sin(turn * arrivals.peak_s)
    return np.asarray(rate * (time_s + arrivals.swing / turn * wave))
