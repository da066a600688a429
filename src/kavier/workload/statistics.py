"""What a workload looks like, before anything is simulated: plain numbers, keys with units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kavier.workload.table import Workload


def describe(workload: Workload) -> dict[str, Any]:
    """Statistics of a workload, ready for JSON; what does not exist is None or left out.

    Returns:
        source, format, requests, duration_s (first to last arrival), rate_per_s (1 / mean gap), gap_cv
        (standard deviation of the gaps over their mean), burstiness (1 / gap_cv^2: the gamma shape that
        vLLM calls so; below 1 = burstier than Poisson), prompt_tokens and output_tokens (mean, p50, p90,
        p99, max, total), sessions and prefix where the trace has them, counts. Arrivals of later turns
        in closed loop are nominal.
    """
    table = workload.requests
    described: dict[str, Any] = {"source": workload.source, "format": workload.format, "requests": len(table)}
    described |= _arrivals(table["arrival_s"].to_numpy())
    for column in ("prompt_tokens", "output_tokens"):
        described[column] = _lengths(table[column].to_numpy())
    if sessions := _sessions(table):
        described["sessions"] = sessions
    if "block_hashes" in table.columns:
        described["prefix"] = _prefix(table)
    described["counts"] = dict(workload.counts)
    return described


def _arrivals(times: NDArray[np.float64]) -> dict[str, float | None]:
    gaps = np.diff(times)
    mean = float(gaps.mean()) if gaps.size else 0.0
    cv = float(gaps.std()) / mean if mean and gaps.size > 1 else None
    return {
        "duration_s": float(times[-1] - times[0]),
        "rate_per_s": 1 / mean if mean else None,
        "gap_cv": cv,
        "burstiness": 1 / cv**2 if cv else None,
    }


def _lengths(tokens: NDArray[np.int64]) -> dict[str, float | int]:
    p50, p90, p99 = np.quantile(tokens, (0.5, 0.9, 0.99)).tolist()
    return {
        "mean": float(tokens.mean()),
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "max": int(tokens.max()),
        "total": int(tokens.sum()),
    }


def _sessions(table: pl.DataFrame) -> dict[str, float | int] | None:
    """By session_id where given (rows without one are in no session), else one per request without parent."""
    if "session_id" in table.columns and table["session_id"].count():
        sizes = table["session_id"].drop_nulls().value_counts()["count"]
        return {
            "count": len(sizes),
            "mean_turns": int(sizes.sum()) / len(sizes),
            "max_turns": _int(sizes.max()),
        }
    if "parent" in table.columns and table["parent"].count():
        roots = table["parent"].null_count()
        return {"count": roots, "mean_turns": len(table) / roots}
    return None


def _int(value: object) -> int:
    return int(str(value))


@dataclass(slots=True)
class PrefixTree:
    """All prompts seen so far, as chains of blocks: what a cache that forgets nothing would hold."""

    edges: dict[tuple[int, int], int]

    def add(self, blocks: list[int]) -> int:
        """Add a prompt; returns how many of its leading blocks an earlier prompt began with."""
        node, hits, edges = 0, 0, self.edges
        for block in blocks:
            child = edges.get((node, block))
            if child is None:
                child = edges[node, block] = len(edges) + 1
            else:
                hits += 1
            node = child
        return hits


def _prefix(table: pl.DataFrame) -> dict[str, Any]:
    """Bounds of prefix caching: a block hits when its whole chain began an earlier prompt.

    Ratios are over all blocks that are given and over all prompt tokens, unhashed prompts included.
    """
    tree = PrefixTree({})
    blocks = table["block_hashes"].list.len().fill_null(0).to_numpy()
    hits = np.array([tree.add(prompt) if prompt else 0 for prompt in table["block_hashes"].to_list()])
    size = table["block_tokens"].fill_null(0).to_numpy()
    prompt_tokens = table["prompt_tokens"].to_numpy()
    hit_tokens = np.minimum(hits * size, prompt_tokens)
    total = int(blocks.sum())
    return {
        "blocks": total,
        "block_tokens": _int(size.max()),
        "distinct_blocks": len(tree.edges),
        "infinite_cache_hit_ratio_blocks": float(hits.sum()) / total if total else 0.0,
        "infinite_cache_hit_ratio_tokens": float(hit_tokens.sum() / prompt_tokens.sum()),
    }
