"""One engine on its clock: schedule -> step time -> complete. Mirrors the loops of vllm/v1/engine/core.py.

Scheduling takes no time; the GPU runs one step after the other. `Replica` waits for a step before it
schedules the next. `AsyncReplica` schedules step k + 1 when step k starts.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import NamedTuple

from kavier.simulation.record import Recorder
from kavier.simulation.request import Request
from kavier.simulation.scheduler import Step, StepScheduler
from kavier.timing.step import StepCost, StepTimeModel

SLEEP_S = 1e-3
"""vLLM's engine sleeps 1 ms when it has requests but a step was empty (`_process_engine_step`)."""

ASLEEP = StepCost(time_s=SLEEP_S, flops=0.0, bytes=0.0)
NOTHING = StepCost(time_s=0.0, flops=0.0, bytes=0.0)


class Replica:
    """A scheduler, a step-time model, and the step that is running.

    Attributes:
        next_s: When something happens next here by itself; infinity while it waits for requests.
    """

    def __init__(
        self, index: int, scheduler: StepScheduler, timing: StepTimeModel, recorder: Recorder
    ) -> None:
        self.index = index
        self.scheduler = scheduler
        self.next_s = inf
        self._timing = timing
        self._recorder = recorder
        self._step: Step | None = None

    @property
    def num_outstanding(self) -> int:
        """Requests waiting or running."""
        return self.scheduler.num_waiting + self.scheduler.num_running

    @property
    def block_size(self) -> int:
        """Tokens of a KV block."""
        return self.scheduler.block_size

    @property
    def num_blocks(self) -> int:
        """KV blocks in all."""
        return self.scheduler.num_blocks

    def matched_blocks(self, request: Request) -> int:
        """How many leading blocks of a waiting request the prefix cache holds."""
        return self.scheduler.matched_blocks(request)

    def finish(self, now_s: float) -> list[Request]:
        """The step that ends at `now_s`, if any: its tokens are known; returns who finished."""
        step, self._step, self.next_s = self._step, None, inf
        return [] if step is None else self._complete(step, now_s)

    def begin(self, now_s: float) -> list[Request]:
        """Start what can start at `now_s`; returns requests that had to be rejected."""
        if self._step is not None or not self.num_outstanding:
            return []
        step = self._schedule(now_s)
        if step.scheduled or self.num_outstanding:
            assert step.scheduled or step.preempted or step.rejected, "nothing can be scheduled"
            cost = self._timing.cost(step.work) if step.scheduled else ASLEEP
            self._recorder.begin(self.index, now_s, now_s, cost, step, self.scheduler)
            self._step, self.next_s = step, now_s + cost.time_s
        return step.rejected

    def _schedule(self, now_s: float) -> Step:
        step = self.scheduler.schedule()
        for request, *_ in step.scheduled:
            if request.first_scheduled_s is None:
                request.first_scheduled_s = now_s
        return step

    def _complete(self, step: Step, now_s: float) -> list[Request]:
        self._recorder.tokens(step, now_s)
        return self.scheduler.complete(step, now_s)


class InFlight(NamedTuple):
    """A step in the batch queue."""

    step: Step
    end_s: float


class AsyncReplica(Replica):
    """`EngineCore.step_with_batch_queue` with a queue of two.

    An iteration schedules a step, if there are requests, and then waits for the older of two steps. It comes
    to an empty step when all running requests have their last token in flight. After such an iteration the
    engine sleeps, while it has requests: with `finished_keep_awake` also when these have finished and are
    only to be reported, which the next `schedule` does.

    `as_recorded` sleeps where the emulated loop of the recorded logs does: not then, but once such a report
    was all that was left.
    """

    def __init__(
        self,
        index: int,
        scheduler: StepScheduler,
        timing: StepTimeModel,
        recorder: Recorder,
        *,
        finished_keep_awake: bool,
        as_recorded: bool = False,
    ) -> None:
        super().__init__(index, scheduler, timing, recorder)
        self._finished_keep_awake = finished_keep_awake
        self._as_recorded = as_recorded
        self._queue: deque[InFlight] = deque()  # older first
        self._gpu_free_s = 0.0
        self._asleep_until_s = -inf
        self._unreported = False  # requests have finished since the last schedule
        self._num_seen = 0  # outstanding after the last schedule; arrivals since then lie in the input queue

    def finish(self, now_s: float) -> list[Request]:  # noqa: D102 - Replica says it
        if not self._is_executing:
            return []  # the end of a sleep
        finished = self._complete(self._queue.popleft().step, now_s)
        self._unreported |= bool(finished)
        if not self._queue[0].step.scheduled and not self._as_recorded:
            has_requests = self._num_seen > len(finished) or (self._unreported and self._finished_keep_awake)
            self._asleep_until_s = now_s + SLEEP_S if has_requests else now_s
        return finished

    def begin(self, now_s: float) -> list[Request]:  # noqa: D102
        rejected: list[Request] = []
        while now_s >= self._asleep_until_s and not (len(self._queue) == 2 and self._is_executing):
            if len(self._queue) == 2:
                self._queue.popleft()  # an empty step ends at once
            elif self.num_outstanding or self._unreported:
                rejected += self._iterate(now_s)
            else:
                self._fall_idle(now_s)
                break
        if now_s < self._asleep_until_s:
            self.next_s = self._asleep_until_s
        else:
            self.next_s = self._queue[0].end_s if self._queue else inf
        return rejected

    @property
    def _is_executing(self) -> bool:
        return bool(self._queue) and bool(self._queue[0].step.scheduled)

    def _iterate(self, now_s: float) -> list[Request]:
        """Schedule a step and queue it."""
        step = self._schedule(now_s)
        if step.scheduled or self.num_outstanding or self._unreported:
            cost = self._timing.cost(step.work) if step.scheduled else NOTHING
            start_s = max(now_s, self._gpu_free_s)
            self._recorder.begin(self.index, now_s, start_s, cost, step, self.scheduler)
            self._gpu_free_s = start_s + cost.time_s
            self._queue.append(InFlight(step, self._gpu_free_s))
        elif not self._is_executing:
            self._queue.clear()  # all was rejected: the empty step before has nothing more to report
        self._unreported, self._num_seen = False, self.num_outstanding
        return step.rejected

    def _fall_idle(self, now_s: float) -> None:
        if self._queue:  # an empty step that reported the last finished requests
            self._queue.clear()
            if self._as_recorded:
                self._asleep_until_s = now_s + SLEEP_S
