"""What a run may ask a policy: it is asked this before the run, in Python and compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kavier.simulation.kernel.records import VIEW, WORK
from kavier.simulation.policy.policy import Policy
from kavier.simulation.policy.views import FixedView, RequestView
from kavier.timing.step import StepWork

Array = NDArray[Any]

EXAMPLES = 64

CERTAIN = {"router": 1, "scheduling_policy": EXAMPLES, "timing": 0}
"""So many of the first examples the run will ask for sure: that of an idle fleet, and all of requests."""

IDLE_EVERY = 8
"""Idle fleets among the examples: a policy that draws among equals shows there."""


@dataclass(frozen=True, slots=True)
class Examples:
    """What the run may ask a policy.

    Attributes:
        seen: ARRIVAL of some requests.
        views: VIEW of as many fleets, [example, replica].
        works: WORK of as many steps.
    """

    seen: Array
    views: Array
    works: Array

    def first(self, count: int) -> Examples:
        """So many of them."""
        return Examples(self.seen[:count], self.views[:count], self.works[:count])

    def backwards(self) -> Examples:
        """The last one first: what counts calls answers differently then, whatever it counts up to."""
        return Examples(self.seen[::-1], self.views[::-1], self.works[::-1])


def make_examples(
    seen: Array, replicas: int, num_blocks: int, max_num_seqs: int, max_tokens: int
) -> Examples:
    """Requests of the workload, before fleets and steps drawn at random."""
    rng = np.random.default_rng(0)
    rows = np.linspace(0, len(seen) - 1, EXAMPLES).astype(np.int64)
    views = np.zeros((EXAMPLES, replicas), VIEW)
    views["num_blocks"] = num_blocks
    for name, most in (("num_waiting", 200), ("num_running", max_num_seqs), ("used_blocks", num_blocks)):
        views[name] = rng.integers(0, most, (EXAMPLES, replicas), endpoint=True)
        views[name][::IDLE_EVERY] = 0
    views["num_outstanding"] = views["num_waiting"] + views["num_running"]
    blocks = seen["prompt_blocks"][rows, None]
    views["matched_blocks"] = rng.integers(0, blocks, (EXAMPLES, replicas), endpoint=True)
    views["matched_blocks"][::IDLE_EVERY] = 0
    return Examples(seen[rows], views, _works(rng, max_num_seqs, max_tokens))


def _works(rng: np.random.Generator, max_num_seqs: int, max_tokens: int) -> Array:
    """Steps of one to all seats; those of even number have a prefill."""
    works = np.zeros(EXAMPLES, WORK)
    works["decodes"] = rng.integers(1, max_num_seqs, EXAMPLES, endpoint=True)
    works["decode_context_tokens"] = works["decodes"] * rng.integers(1, 4096, EXAMPLES)
    chunk, before = rng.integers(1, max_tokens, EXAMPLES, endpoint=True), rng.integers(0, 4096, EXAMPLES)
    chunk[1::2] = before[1::2] = 0
    works["prefills"], works["prefill_tokens"] = chunk > 0, chunk
    works["prefill_pairs"] = chunk * before + chunk * (chunk + 1) // 2
    works["prefill_context_tokens"] = chunk + before
    works["sampled"] = works["decodes"]
    return works


def answers(policy: Policy, examples: Examples) -> NDArray[np.float64]:
    """What the function answers to the examples, in Python.

    Raises:
        InputError: It raised, or answered what it may not.
    """
    if policy.what == "timing":
        return np.array([policy.seconds(StepWork(*work)) for work in examples.works.tolist()])
    requests = [RequestView(*row) for row in examples.seen.tolist()]
    if policy.what == "scheduling_policy":
        return np.array([policy.key(request) for request in requests])
    fleets = [[FixedView(*view) for view in fleet] for fleet in examples.views.tolist()]
    return np.array([policy.index(*pair) for pair in zip(requests, fleets, strict=True)], np.float64)
