"""What an HTTP client sees beyond the engine: time in the API server, on the wire and in the client."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kavier.scenario import ClientName
from kavier.timing.constants import read_constants
from kavier.units import MS_PER_S, US_PER_S

CLIENT_CONSTANTS = read_constants("kavier.metrics", "client.toml")

Array = NDArray[np.float64]


def client_time_s(tokens_per_s: Array, fixed_s: float | None = None) -> Array:
    """Seconds that requests spend outside the engine, before and after it together.

    Constant up to some rate of streamed tokens, then linear: `client.toml` has the figures and their source.

    Args:
        tokens_per_s: Output tokens per second that the request's API server streams at the time.
        fixed_s: The constant of a calibration, in the place of that of the file.
    """
    constant_s = CLIENT_CONSTANTS["fixed_s"] if fixed_s is None else fixed_s
    beyond = np.maximum(tokens_per_s - CLIENT_CONSTANTS["free_tokens_per_s"], 0.0)
    seconds: Array = constant_s + CLIENT_CONSTANTS["s_per_token_per_s"] * beyond
    return seconds


def streamed_tokens_per_s(first_s: Array, last_s: Array, tokens: Array) -> Array:
    """Output tokens per second that one API server streams when each of its requests gets its first token.

    Every request counts with its mean rate, (tokens - 1) / (last - first), from its first token to its last.
    """
    lasting = last_s - first_s
    rates = np.divide(tokens - 1, lasting, out=np.zeros_like(lasting), where=lasting > 0)
    begun = np.argsort(first_s)
    ended = np.argsort(last_s)
    gone = np.concatenate(([0.0], np.cumsum(rates[ended])))
    come = np.concatenate(([0.0], np.cumsum(rates[begun])))
    until = np.searchsorted(first_s[begun], first_s, side="right")
    past = np.searchsorted(last_s[ended], first_s, side="right")
    flowing: Array = np.maximum(come[until] - gone[past], 0.0)
    return flowing


def with_client(requests: pl.DataFrame, fixed_s: float | None = None) -> pl.DataFrame:
    """Add client_s, and add it to ttft_s and e2e_s; every replica has an API server of its own.

    The times on the clock (first_token_s, finish_s) stay the engine's. Null where a request did not finish.

    Args:
        requests: Requests table with latencies (`metrics.latency.with_latencies`).
        fixed_s: As `client_time_s`.
    """
    served = requests.with_row_index("row").filter(pl.col("finish_s").is_not_null())
    client_s = np.full(len(requests), np.nan)
    for _, mine in served.group_by("replica"):
        columns = ("first_token_s", "finish_s", "output_tokens")
        first_s, last_s, tokens = (mine[name].cast(pl.Float64).to_numpy() for name in columns)
        client_s[mine["row"].to_numpy()] = client_time_s(
            streamed_tokens_per_s(first_s, last_s, tokens), fixed_s
        )
    return requests.with_columns(pl.Series("client_s", client_s).fill_nan(None)).with_columns(
        pl.col("ttft_s", "e2e_s") + pl.col("client_s")
    )


def client_note(client: ClientName, fixed_s: float | None = None) -> str:
    """What a reader should know of where latencies were taken; `fixed_s` as `client_time_s`."""
    fixed_ms = (CLIENT_CONSTANTS["fixed_s"] if fixed_s is None else fixed_s) * MS_PER_S
    source = "read off six H100 runs" if fixed_s is None else "the former calibrated, the latter of H100 runs"
    if client == "engine":
        return (
            f"latencies are in-engine: an HTTP client sees about {fixed_ms:.3g} ms more "
            "(client: http adds it)"
        )
    free, slope = CLIENT_CONSTANTS["free_tokens_per_s"], CLIENT_CONSTANTS["s_per_token_per_s"]
    return (
        f"TTFT and E2E are an HTTP client's: {fixed_ms:.3g} ms a request beyond the engine, and "
        f"{slope * US_PER_S:g} us for every output token/s of a replica beyond {free:,.0f}, "
        f"{source}"
    )
