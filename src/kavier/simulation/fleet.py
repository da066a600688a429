"""Replicas behind a router that looks at them: the record of a fleet, and its arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kavier.errors import InputError
from kavier.native.library import address
from kavier.simulation.arena import Arena
from kavier.simulation.kernel import records as k
from kavier.simulation.packing import Packed
from kavier.simulation.policy.policy import Policy
from kavier.simulation.policy.views import FixedView, RequestView, arrivals
from kavier.simulation.router import ROUTERS, Plan

Array = NDArray[Any]

NEVER = 2**62
"""Load of leaves without a replica, and limit on concurrency where there is none."""

KERNEL_ROUTERS = {
    "least-outstanding": k.LEAST_OUTSTANDING,
    "power-of-two-choices": k.POWER_OF_TWO,
    "least-kv-used": k.LEAST_KV_USED,
    "longest-prefix-match": k.LONGEST_PREFIX,
    "cache-aware": k.CACHE_AWARE,
    "llm-d": k.LLM_D,
}
SEE_CONTENTS = ("longest-prefix-match", "cache-aware", "llm-d")
"""Routers that ask which replica holds what."""

assert set(KERNEL_ROUTERS) == set(ROUTERS)


class Fleet:
    """A fleet for one run.

    Args:
        packed: Settings and requests.
        arena: Of all replicas.
        chosen: Filled with the replica of each request; with a plan it is already.
        router: Name in `router.ROUTERS`, a policy with machine code, or a plan.
        draws: Two replicas an arrival, of `router.draw_pairs`.
        max_concurrency: Closed loop: most requests in flight; None = no limit.
    """

    def __init__(
        self,
        packed: Packed,
        arena: Arena,
        chosen: Array,
        router: str | Policy | Plan,
        draws: Array,
        max_concurrency: int | None,
    ) -> None:
        self.arena, self._packed, self._router = arena, packed, router
        replicas = len(arena.records)
        leaves = 1 << (replicas - 1).bit_length()
        self._views = np.zeros(replicas, k.VIEW)
        self._views["num_blocks"] = packed.c["num_usable"]
        self._kept = {
            "settings": packed.settings, "replicas": arena.records, "agenda": np.full(2 * leaves, np.inf),
            "loads": _winners(replicas, leaves), "views": self._views, "chosen": chosen,
            "draws": np.ascontiguousarray(draws),
        }  # fmt: skip
        self._record = np.zeros(1, k.FLEET)
        self._record["num_replicas"], self._record["num_leaves"] = replicas, leaves
        self._record["max_concurrency"] = NEVER if max_concurrency is None else max_concurrency
        self._record["awaited_s"] = self._record["freed_s"] = -np.inf
        self._choose(router)
        for name, array in self._kept.items():
            self._record[name] = address(array)
        self.address = address(self._record)
        contents = int(packed.c["num_contents"])
        if packed.c["caching"] and contents and _sees_contents(router):
            packed.point("holders", np.zeros(contents, k.HOLDER))
            packed.c["set_words"] = -(-replicas // 64)
            self._sets = np.zeros(0, np.int64)
            self.more_sets()

    def _choose(self, router: str | Policy | Plan) -> None:
        if not isinstance(router, Policy):
            self._record["router"] = k.PLANNED if isinstance(router, Plan) else KERNEL_ROUTERS[router]
            return
        self._record["router"], self._record["function"] = k.PYTHON, router.address
        self._kept["arrived"] = arrivals(self._packed.workload, int(self._packed.c["block_size"]))

    def more_sets(self) -> None:
        """Twice as many sets of holders."""
        settings = self._packed.c
        words, number = int(settings["set_words"]), 2 * int(settings["num_sets"]) + 4 * k.SPARE_SETS
        sets = np.zeros(words * number, np.int64)
        sets[: len(self._sets)] = self._sets
        self._sets = self._packed.point("sets", sets)
        settings["num_sets"] = number

    def refuse_choice(self) -> None:
        """Complain about what the policy's machine code answered to the next arrival.

        Raises:
            InputError: In any case.
        """
        assert isinstance(self._router, Policy)
        row = int(self._packed.arrivals[int(self._record["position"][0])])
        request = RequestView(*self._kept["arrived"][row].tolist())
        answer = self._router.index(request, [FixedView(*view) for view in self._views.tolist()])
        bad = int(self._record["bad_choice"][0])
        raise InputError(f"compiled, the router answers {bad} where it is {answer}", where=self._router.name)


def _sees_contents(router: str | Policy | Plan) -> bool:
    return isinstance(router, Policy) or router in SEE_CONTENTS


def _winners(replicas: int, leaves: int) -> Array:
    """A winner tree of idle replicas."""
    loads = np.full(2 * leaves, NEVER, np.int64)
    loads[leaves : leaves + replicas] = 0
    for i in range(leaves - 1, 0, -1):
        loads[i] = min(loads[2 * i], loads[2 * i + 1])
    return loads
