"""What compiled replicas fill while they play, and how it is taken out of their way piece by piece.

A long timeline does not fit into memory: what is final of it leaves the engine in pieces. Pieces are cut at
the same cells however the run was played, so that sums over them are the same to the last bit.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kavier.native.library import address
from kavier.simulation.kernel import records as k

Array = NDArray[Any]

Give = Callable[[Array, int], None]
"""Takes a piece of a replica's cells, which are overwritten then, and the interval that follows it."""

Sink = Callable[[int, Array, int], Callable[[], None]]
"""Reads a piece: replica, cells, interval that follows. What it returns, when called, takes the piece over.

Several threads read at once; pieces are taken over one after the other, in an order that does not depend on
threads, and those of a replica in order of time.
"""

FIRST_CELLS, PIECE, LEAST_PIECE, ALL_PIECES = 64, 7 << 12, 7 << 7, 1 << 22
"""Cells: room at first, which doubles; of a piece, at most and at least; of one piece of every replica.

Sevens, so that little is left to move to the front when a piece is taken out of a power of two.
"""

FIRST_STEPS, MOST_STEPS = 64, 1 << 14

AHEAD = 8
"""Pieces that a replica may have ready while those before it are still being played."""


def cells_a_piece(replicas: int) -> int:
    """What so many replicas have room for."""
    size = PIECE
    while size > LEAST_PIECE and size * replicas > ALL_PIECES:
        size //= 2
    return size


class Output:
    """What a replica fills while it plays: its timeline, and on request its steps.

    Args:
        record: The replica's `REPLICA` record.
        start_s: Where the first sample interval begins.
        interval_s: Length of an interval.
        piece: Cells a piece.
        give: Takes pieces.
        logging: Keep steps.
    """

    def __init__(
        self, record: Any, start_s: float, interval_s: float, piece: int, give: Give, *, logging: bool
    ) -> None:
        self._record, self._piece, self._give, self._logging = record, piece, give, logging
        timeline = record["timeline"]
        timeline["start_s"], timeline["interval_s"] = start_s, interval_s
        self._cells = np.zeros(FIRST_CELLS, k.CELL)
        self._steps = np.zeros(FIRST_STEPS if logging else 1, k.STEP)
        self._kept_steps: list[Array] = []
        self._attach()

    def make_room(self) -> None:
        """Give away what is final, or double the arrays."""
        timeline = self._record["timeline"]
        if timeline["num_cells"] + k.CELLS_A_STEP > len(self._cells):
            self._give_pieces()
        if timeline["num_cells"] + k.CELLS_A_STEP > len(self._cells):
            self._cells = np.concatenate([self._cells, np.zeros(len(self._cells), k.CELL)])
        if self._logging and self._record["num_log"] >= len(self._steps):
            if len(self._steps) < MOST_STEPS:
                self._steps = np.concatenate([self._steps, np.zeros(len(self._steps), k.STEP)])
            else:
                self._kept_steps.append(self._steps.copy())
                self._record["num_log"] = 0
        self._attach()

    def _give_pieces(self) -> None:
        timeline, size = self._record["timeline"], self._piece
        while is_final(self._cells[: timeline["num_cells"]], size, timeline, self._record["end_s"]):
            self._give(self._cells[:size], int(self._cells["interval"][size]))
            left = int(timeline["num_cells"]) - size
            flat = self._cells.view(np.int64).reshape(len(self._cells), -1)  # records are moved one by one
            flat[:left] = flat[size : size + left]
            timeline["num_cells"] = left

    def rest(self) -> Array:
        """Cells of no whole piece, at the end of the run; the last one begins behind the last step."""
        self._give_pieces()
        timeline = self._record["timeline"]
        behind = np.zeros(1, k.CELL)
        behind["interval"] = timeline["interval"] + 1
        used = int(timeline["num_cells"])
        return np.concatenate([self._cells[:used], behind[: used > 0]])

    def steps(self) -> list[Array]:
        """Pieces of the step log."""
        return [*self._kept_steps, self._steps[: self._record["num_log"]]] if self._logging else []

    def _attach(self) -> None:
        timeline = self._record["timeline"]
        timeline["cells"], timeline["room"] = address(self._cells), len(self._cells)
        # Without a log its room only has to be above its length.
        self._record["log"], self._record["log_room"] = address(self._steps), len(self._steps)


def is_final(cells: Array, size: int, timeline: Any, end_s: float) -> bool:
    """Whether so many cells make a piece: what follows them begins before the replica's last step ends.

    So nothing is added to them any more, and they lie within the run.
    """
    return len(cells) > size and bool(
        timeline["interval_s"] * cells["interval"][size] < end_s - timeline["start_s"]
    )


def give_anew(pieces: Sequence[Array], size: int, timeline: Any, end_s: float, give: Give) -> Array:
    """Cut the cells of a whole run anew; what is left at its end."""
    left = np.zeros(0, k.CELL)
    for piece in pieces:
        left = np.concatenate([left, piece])
        while is_final(left, size, timeline, end_s):
            give(left[:size], int(left["interval"][size]))
            left = left[size:]
    return left


class Turns:
    """Lets replicas that play at once hand over their pieces in their order.

    Args:
        idle: Replicas that hand over nothing.
    """

    def __init__(self, idle: Sequence[int]) -> None:
        self._changed = threading.Condition()
        self._done, self._turn = set(idle), 0
        self._held: dict[int, list[Callable[[], None]]] = defaultdict(list)
        self._stopped = False
        with self._changed:
            self._move_on()

    def hand_over(self, replica: int, take: Callable[[], None]) -> None:
        """Call `take` when it is the replica's turn; wait when it has too much ready."""
        with self._changed:
            self._changed.wait_for(
                lambda: replica == self._turn or len(self._held[replica]) < AHEAD or self._stopped
            )
            if replica == self._turn:
                take()
            else:
                self._held[replica].append(take)

    def end(self, replica: int) -> None:
        """The replica has handed over everything."""
        with self._changed:
            self._done.add(replica)
            self._move_on()

    def stop(self) -> None:
        """Nobody waits any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _move_on(self) -> None:
        while self._turn in self._done:
            self._turn += 1
            for take in self._held.pop(self._turn, ()):
                take()
        self._changed.notify_all()
