"""One engine on its clock: schedule -> step time -> complete."""

from __future__ import annotations

from kavier.simulation.record import Recorder
from kavier.simulation.request import Request
from kavier.simulation.scheduler import Step, StepScheduler
from kavier.timing.step import StepCost, StepTimeModel

EMPTY_STEP = StepCost(time_s=1e-3, flops=0.0, bytes=0.0)
"""vLLM's engine sleeps 1 ms when it has requests but could schedule none (v1/engine/core.py, 0.33)."""


class Replica:
    """A scheduler, a step-time model, and the step that is running."""

    def __init__(
        self, index: int, scheduler: StepScheduler, timing: StepTimeModel, recorder: Recorder
    ) -> None:
        self.index = index
        self.scheduler = scheduler
        self._timing = timing
        self._recorder = recorder
        self._step: Step | None = None

    @property
    def num_outstanding(self) -> int:
        """Requests waiting or running."""
        return self.scheduler.num_waiting + self.scheduler.num_running

    @property
    def is_idle(self) -> bool:
        """No step is running."""
        return self._step is None

    def begin(self, now_s: float) -> tuple[float | None, list[Request]]:
        """Schedule a step and start it; returns when it ends, and requests it had to reject.

        None when nothing is left to do but what was rejected.
        """
        step = self.scheduler.schedule()
        if not step.scheduled and not self.num_outstanding:
            return None, step.rejected
        assert step.scheduled or step.preempted or step.rejected, "nothing can be scheduled"
        cost = self._timing.cost(step.work) if step.scheduled else EMPTY_STEP
        for request, _, _ in step.scheduled:
            if request.first_scheduled_s is None:
                request.first_scheduled_s = now_s
        self._step = step
        self._recorder.begin(self.index, now_s, cost, step, self.scheduler)
        return now_s + cost.time_s, step.rejected

    def finish(self, now_s: float) -> list[Request]:
        """The running step ends: its tokens are known; returns the requests that finished."""
        step = self._step
        assert step is not None, "finishing a step that was not begun"
        self._step = None
        self._recorder.tokens(step, now_s)
        return self.scheduler.complete(step, now_s)
