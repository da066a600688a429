"""`kv_cache: off`: the honest opposite of KV caching. Every step recomputes the whole context.

Nothing is kept between steps, so there are no blocks, no prefix cache, no chunks and no preemption: each
running request computes all its tokens in every step and samples one. Requests take part in admission
order while their contexts fit in max_num_batched_tokens; the first always does, so that a long one can run.
"""

from __future__ import annotations

from kavier.simulation.request import Request
from kavier.simulation.scheduler import BatchScheduler, Scheduled, Step


class RecomputeScheduler(BatchScheduler):
    """A scheduler without KV memory."""

    num_used_blocks = 0
    num_evictions = 0
    num_blocks = block_size = 1

    def matched_blocks(self, request: Request) -> int:  # noqa: ARG002, D102
        return 0

    def schedule(self) -> Step:  # noqa: D102 - StepScheduler says it
        step = Step()
        budget = self.config.max_num_batched_tokens
        for request in self.running:
            if step.scheduled and request.num_tokens > budget:
                return step
            budget -= self._recompute(request, step)
        while self.waiting and len(self.running) < self.config.max_num_seqs:
            if step.scheduled and self.waiting.head().num_tokens > budget:
                break
            request = self.waiting.pop()
            request.num_cached_tokens = 0
            self.running.append(request)
            budget -= self._recompute(request, step)
        return step

    def _recompute(self, request: Request, step: Step) -> int:
        tokens = request.num_computed_tokens = request.num_tokens
        step.scheduled.append(Scheduled(request, tokens, 0, samples=True))
        request.num_in_flight_tokens += tokens
        request.num_output_placeholders += 1
        step.work.prefills += 1
        step.work.prefill_tokens += tokens
        step.work.prefill_pairs += tokens * (tokens + 1) // 2
        step.work.prefill_context_tokens += tokens
        step.work.sampled += 1
        return tokens
