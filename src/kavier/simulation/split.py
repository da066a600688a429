"""The arrivals of one replica in parts that are played at once, on several processors, and then joined.

Without prefix caching an idle replica remembers nothing but its clock. So a replica with empty memory that
begins at an arrival which finds the real one idle plays the rest of the real one's run, to the last bit.
Where that will be, a trial over the arrivals before tells: most likely where the trial is idle. Once a part
has been played up to the next one it is certain. If it is not idle there, it plays on, and the next one's run
is forgotten: results never depend on the parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kavier.simulation.arena import Arena
from kavier.simulation.kernel import records as k

if TYPE_CHECKING:
    from kavier.simulation.play import Gaps, Run

Array = NDArray[Any]

WINDOW = 4096
"""Arrivals before a part that are played on trial."""

CANDIDATES = 16
"""Arrivals after the longest pauses in the second half of the window: there the trial may be idle."""

_FORGETS = (
    "mode", "decide_s", "num_decoding", "decoding_tokens", "num_running", "num_waiting", "num_prefilling",
    "num_sampling", "num_draining", "num_free", "num_plain", "debt", "unreported",
)  # fmt: skip
"""What an idle replica has in common with a new one. The rest is counted, or means nothing while it idles."""


class Part:
    """A replica with empty memory that begins at an arrival.

    Args:
        run: Of which it plays a part.
        first: Place of the arrival among those of all replicas.
        end: Behind the last arrival of the replica.
        gaps: Counts gaps.
    """

    def __init__(self, run: Run, first: int, end: int, gaps: Gaps) -> None:
        self._run, self._arena, self.gaps = run, Arena(run.packed.c, 1), gaps
        self.record = self._arena.records[0]
        self._new = self.record.copy()
        self.record["next_arrival"], self.record["end_arrival"] = first, end
        gaps.watch(self._arena.records)
        self._pieces: list[Array] = []
        self.output = run.output(self.record, lambda cells, _: self._pieces.append(cells.copy()))

    def play(self, until: int) -> None:
        """Up to the moment before this arrival, or to the end if there is none."""
        self._run.play_until(self._arena, self.output, until)
        self.gaps.note(self._arena.records)

    def cells(self) -> list[Array]:
        """Its timeline, at the end of its run."""
        rest = self.output.rest()
        return [*self._pieces, rest]

    def ends_before(self, arrival_s: float) -> bool:
        """Whether nothing that it has played matters from now on, nor lies in the same sample interval."""
        timeline = self.record["timeline"]
        same = all(self.record[name] == self._new[name] for name in _FORGETS)
        over = 0.0 <= self.record["end_s"] <= arrival_s
        return bool(same and over and arrival_s - timeline["start_s"] >= timeline["interval_end_s"])


def can_split(settings: Any) -> bool:
    """Whether idle replicas remember nothing, and steps may be priced in any order."""
    return not settings["caching"] and settings["timing"] != k.FUNCTION


def find_cuts(run: Run, first: int, end: int, parts: int, gaps: Gaps) -> list[int]:
    """Arrivals that split those of a replica in about equal parts, and probably find it idle."""
    length = (end - first) // parts
    if length <= WINDOW:
        return []
    cuts = [_find_idle(run, first + length * part, end, gaps) for part in range(1, parts)]
    return [cut for cut in cuts if cut is not None]


def _find_idle(run: Run, last: int, end: int, gaps: Gaps) -> int | None:
    first, middle = last - WINDOW, last - (WINDOW + 1) // 2
    trial = Part(run, first, end, gaps)
    pauses = np.diff(run.arrivals_s(middle, last + 1))
    found = None
    for candidate in sorted(middle + 1 + np.argsort(-pauses, kind="stable")[:CANDIDATES]):
        trial.play(int(candidate))
        if trial.ends_before(run.arrivals_s(candidate, candidate + 1)[0]):
            found = int(candidate)
            break
    run.forget(first, last)
    return found


def join(run: Run, parts: list[Part], cuts: list[int]) -> list[Part]:
    """The parts that make up the whole run. Part i was played from cuts[i] to cuts[i + 1]."""
    joined = parts[:1]
    for part, start, stop in zip(parts[1:], cuts[1:-1], cuts[2:], strict=True):
        if joined[-1].ends_before(run.arrivals_s(start, start + 1)[0]):
            joined.append(part)
        else:
            run.forget(start, stop)
            joined[-1].play(stop)
    return joined


def join_cells(earlier: list[Array], later: list[Array]) -> list[Array]:
    """The timelines of two parts as one: the later begins with a cell for all before its first step."""
    earlier, later = ([piece for piece in pieces if len(piece)] for pieces in (earlier, later))
    if not earlier or not later:  # one of them had no steps
        return [*earlier, *later]
    later = [later[0][1:], *later[1:]]
    begins = next(piece["interval"][0] for piece in later if len(piece))
    idle = begins > earlier[-1]["interval"][-1]  # else the earlier's last cell, for what follows it, is empty
    return [*earlier[:-1], earlier[-1] if idle else earlier[-1][:-1], *later]
