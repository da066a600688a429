"""Memory of compiled replicas: one block of zeros for all arrays of all of them, and what they fill."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kavier.native.library import address
from kavier.simulation.kernel import records as k

Array = NDArray[Any]

LINE = 64
FIRST_CELLS, MOST_CELLS = 64, 1 << 16
FIRST_STEPS, MOST_STEPS = 64, 1 << 14
"""Cells are more than CELLS_A_STEP: with less room no step would ever fit."""


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


class Output:
    """What a replica fills while it plays: its timeline, and on request its steps.

    Args:
        record: The replica's `REPLICA` record.
        start_s: Where the first sample interval begins.
        interval_s: Length of an interval.
        logging: Keep steps.
    """

    def __init__(self, record: Any, start_s: float, interval_s: float, *, logging: bool) -> None:
        self._record, self._logging = record, logging
        timeline = record["timeline"]
        timeline["start_s"], timeline["interval_s"] = start_s, interval_s
        self._cells, self._steps = (
            np.zeros(FIRST_CELLS, k.CELL),
            np.zeros(FIRST_STEPS if logging else 1, k.STEP),
        )
        self._kept: dict[str, list[Array]] = {"cells": [], "steps": []}
        self._attach()

    def make_room(self) -> None:
        """Double the arrays, or empty them when they are large."""
        timeline = self._record["timeline"]
        used = int(timeline["num_cells"])
        if used + k.CELLS_A_STEP > len(self._cells):
            if len(self._cells) < MOST_CELLS:
                self._cells = np.concatenate([self._cells, np.zeros(len(self._cells), k.CELL)])
            else:  # all but the last one, to which the next step may add
                self._kept["cells"].append(self._cells[: used - 1].copy())
                self._cells[0] = self._cells[used - 1]
                timeline["num_cells"] = 1
        used = int(self._record["num_log"])
        if self._logging and used >= len(self._steps):
            if len(self._steps) < MOST_STEPS:
                self._steps = np.concatenate([self._steps, np.zeros(len(self._steps), k.STEP)])
            else:
                self._kept["steps"].append(self._steps.copy())
                self._record["num_log"] = 0
        self._attach()

    def cells(self) -> list[Array]:
        """Pieces of the timeline, in order of time; the last cell begins behind the last step."""
        timeline = self._record["timeline"]
        behind = np.zeros(1, k.CELL)
        behind["interval"] = timeline["interval"] + 1
        used = int(timeline["num_cells"])
        return [*self._kept["cells"], np.concatenate([self._cells[:used], behind[: used > 0]])]

    def steps(self) -> list[Array]:
        """Pieces of the step log."""
        return [*self._kept["steps"], self._steps[: self._record["num_log"]]] if self._logging else []

    def _attach(self) -> None:
        timeline = self._record["timeline"]
        timeline["cells"], timeline["room"] = address(self._cells), len(self._cells)
        # Without a log its room only has to be above its length.
        self._record["log"], self._record["log_room"] = address(self._steps), len(self._steps)
