"""Memory of compiled replicas: one block of zeros for all arrays of all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kavier.native.library import address
from kavier.simulation.kernel import records as k

Array = NDArray[Any]

LINE = 64


class Arena:
    """Arrays of fixed size of a number of replicas, side by side.

    Args:
        settings: The engine's, one `SETTINGS` record.
        replicas: How many replicas.
    """

    def __init__(self, settings: Any, replicas: int) -> None:
        self._sizes = _sizes(settings)
        self._stride = sum(-(-size // LINE) * LINE for size in self._sizes.values())
        self._memory = np.zeros(self._stride * replicas + LINE, np.uint8)
        self._usable = int(settings["num_usable"])
        self._caching = bool(settings["caching"])
        self._shared = {
            "scratch": np.zeros(int(settings["max_num_seqs"]), np.int64),
            "coast": np.zeros(1, k.COAST),
        }
        self.records = np.zeros(replicas, k.REPLICA)
        for index in range(replicas):
            self._prepare(index)

    def reset(self) -> None:
        """Forget what was played, for the next replicas."""
        self._memory[:] = 0
        self.records[:] = 0
        for index in range(len(self.records)):
            self._prepare(index)

    def _prepare(self, index: int) -> None:
        """An idle replica with empty memory."""
        record = self.records[index]
        record["index"] = index
        record["decide_s"] = np.inf
        record["num_free"] = record["num_plain"] = self._usable
        record["least_gap"] = k.GAP_BINS
        for name in ("first_waiting", "last_waiting", "first_running", "last_running"):
            record[name] = -1
        place = -(-address(self._memory) // LINE) * LINE + index * self._stride
        for name, size in self._sizes.items():
            record[name] = place
            place += -(-size // LINE) * LINE
        for name, array in self._shared.items():
            record[name] = address(array)
        if self._caching:
            record["map_bits"] = (self._sizes["map"] // k.ENTRY_BYTES).bit_length() - 1
            record["queue_mask"] = self._sizes["queue"] // k.ENTRY_BYTES - 1


def _sizes(settings: Any) -> dict[str, int]:
    """Bytes of each array of a replica."""
    seats, block_size = int(settings["max_num_seqs"]), int(settings["block_size"])
    sizes = {
        "wanting": 4 * block_size,
        "due": 4 * block_size,
        "wheel": 4 * k.WHEEL,
        "wheel_bits": k.WHEEL // 8,
    }
    sizes |= {"slots": k.SLOT.itemsize * seats}
    sizes |= dict.fromkeys(("prefilling", "sampling", "draining"), 8 * seats)
    if settings["caching"]:
        usable = int(settings["num_usable"])
        places = 1 << max(6, (2 * usable - 1).bit_length())
        sizes |= {"nodes": k.NODE.itemsize * usable}
        sizes |= {"map": k.ENTRY_BYTES * places, "queue": k.ENTRY_BYTES * places}
    return sizes
