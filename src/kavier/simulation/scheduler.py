"""One engine step: who computes how many tokens. Mirrors vllm/v1/core/sched/scheduler.py.

Read `Scheduler.schedule` first. Scope: text, one full-attention KV group; no LoRA, speculative decoding,
KV connector or pipeline parallelism. What differs between releases is in `ecosystem/vllm_versions.py`.

With asynchronous scheduling (vllm/v1/core/sched/async_scheduler.py) a step is scheduled before the tokens of
the step before it are known. A request then has a placeholder for its unknown token, and computes it all the
same; see `Request.num_output_placeholders`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from kavier.ecosystem.vllm_versions import RULES, VersionRules
from kavier.simulation.kv_cache_manager import KVCacheManager
from kavier.simulation.request import Request, Status
from kavier.simulation.waiting_queue import WAITING_QUEUES
from kavier.timing.step import StepWork


class Scheduled(NamedTuple):
    """A request's part in a step: `num_tokens` behind the `num_computed` it has already."""

    request: Request
    num_tokens: int
    num_computed: int
    samples: bool
    """The step ends in a token."""

    @property
    def is_decode(self) -> bool:
        """It computes one token behind its prompt, even if that was computed before and lost."""
        return self.num_tokens == 1 and self.num_computed >= self.request.num_prompt_tokens


@dataclass(slots=True)
class Step:
    """One step's decisions.

    Attributes:
        scheduled: The batch, in order.
        work: Its sums, for the step-time model.
        preempted: Victims, in the order they were preempted.
        rejected: Waiting requests that no KV memory could ever hold.
        queried_tokens: Prompt tokens looked up in the prefix cache by requests admitted for the first time.
        hit_tokens: Those found.
    """

    scheduled: list[Scheduled] = field(default_factory=list)
    work: StepWork = field(default_factory=StepWork)
    preempted: list[Request] = field(default_factory=list)
    rejected: list[Request] = field(default_factory=list)
    queried_tokens: int = 0
    hit_tokens: int = 0


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Engine settings the scheduler reads, under vLLM's names."""

    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int = 2**31
    policy: str = "fcfs"
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    scheduler_reserve_full_isl: bool = True
    async_scheduling: bool = False
    rules: VersionRules = RULES["0.33"]


class StepScheduler(Protocol):
    """What a replica needs of a scheduler."""

    @property
    def num_running(self) -> int:
        """Requests admitted and not finished."""
        ...

    @property
    def num_waiting(self) -> int:
        """Requests not admitted, or preempted."""
        ...

    @property
    def num_used_blocks(self) -> int:
        """KV blocks some request refers to."""
        ...

    @property
    def num_evictions(self) -> int:
        """Cached blocks overwritten so far."""
        ...

    @property
    def block_size(self) -> int:
        """Tokens of a KV block."""
        ...

    @property
    def num_blocks(self) -> int:
        """KV blocks in all."""
        ...

    def matched_blocks(self, request: Request) -> int:
        """Leading blocks of a waiting request that are cached."""
        ...

    def add(self, request: Request) -> None:
        """A request arrived."""
        ...

    def schedule(self) -> Step:
        """Decide the next step. May read anything but `Request.output_length`."""
        ...

    def complete(self, step: Step, now_s: float) -> list[Request]:
        """The step has run: append its tokens; returns the requests that finished, in batch order."""
        ...


class BatchScheduler:
    """The queues of a scheduler, and what the end of a step means, however its batch was chosen."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.running: list[Request] = []
        self.waiting = WAITING_QUEUES[config.policy]()

    @property
    def num_running(self) -> int:  # noqa: D102 - StepScheduler says it
        return len(self.running)

    @property
    def num_waiting(self) -> int:  # noqa: D102
        return len(self.waiting)

    def add(self, request: Request) -> None:  # noqa: D102
        self.waiting.add(request)

    def complete(self, step: Step, now_s: float) -> list[Request]:  # noqa: D102
        finished = []
        for request, num_tokens, _, samples in step.scheduled:
            request.num_in_flight_tokens -= num_tokens
            stale = request.num_stale_output_tokens > 0
            if stale:
                request.num_stale_output_tokens -= num_tokens
            if not samples:
                continue
            request.append_token(now_s)
            if not stale:
                request.num_output_placeholders -= 1
                self._token_is_known(request)
            if request.num_output_tokens >= request.output_length:
                request.status = Status.FINISHED
                self._release(request, preempted=stale)
                finished.append(request)
        if finished:
            self.running = [r for r in self.running if r.status is Status.UNFINISHED]
        return finished

    def _token_is_known(self, request: Request) -> None:
        """A token for which there was a placeholder."""

    def _release(self, request: Request, *, preempted: bool) -> None:
        """Give back what a finished request held; preempted in flight, it holds a place in the queue."""


class Scheduler(BatchScheduler):
    """Continuous batching with chunked prefill, preemption by recompute, and prefix caching."""

    def __init__(self, config: SchedulerConfig, kv: KVCacheManager) -> None:
        super().__init__(config)
        self.kv = kv

    @property
    def num_used_blocks(self) -> int:  # noqa: D102
        return self.kv.pool.num_usable - self.kv.pool.num_free

    @property
    def num_evictions(self) -> int:  # noqa: D102
        return self.kv.pool.num_evictions

    @property
    def block_size(self) -> int:  # noqa: D102
        return self.kv.block_size

    @property
    def num_blocks(self) -> int:  # noqa: D102
        return self.kv.pool.num_usable

    def matched_blocks(self, request: Request) -> int:  # noqa: D102
        return len(self.kv.find_cached(request))

    def schedule(self) -> Step:
        """Running requests first, decodes and prefills alike; then admissions, unless one was preempted."""
        step = Step()
        chunk_limit = self._chunk_limit()
        batch, budget = self._schedule_running(step, chunk_limit)
        if not step.preempted:
            self._admit_waiting(step, batch, budget, chunk_limit)
        _advance(step, batch)
        return step

    def _token_is_known(self, request: Request) -> None:
        if self.config.async_scheduling:
            self.kv.cache_blocks(request, request.num_computed_tokens - request.num_in_flight_tokens)

    def _release(self, request: Request, *, preempted: bool) -> None:
        if preempted:
            self.waiting.remove(request)
        else:
            self.kv.free(request)

    def _chunk_limit(self) -> int:
        """Most tokens of one prefill in a step; a lone request is not limited (0 = no limit)."""
        alone = len(self.running) + len(self.waiting) <= 1
        unlimited = alone and self.config.rules.lone_request_unlimited
        return 0 if unlimited else self.config.long_prefill_token_threshold

    def _schedule_running(self, step: Step, chunk_limit: int) -> tuple[dict[Request, int], int]:
        """Give running requests their tokens in list order, preempting while blocks are short.

        Returns the batch (request -> tokens, in batch order) and the token budget that is left.
        """
        batch: dict[Request, int] = {}
        budget = self.config.max_num_batched_tokens
        longest = self.config.max_model_len - 1
        running, extend, rules = self.running, self.kv.extend, self.config.rules
        index = 0
        while index < len(running) and budget > 0:
            request = running[index]
            if request.ends_in_flight:
                index += 1
                continue
            num_new = request.num_tokens + request.num_output_placeholders - request.num_computed_tokens
            if 0 < chunk_limit < num_new:
                num_new = chunk_limit
            num_new = min(num_new, budget, longest - request.num_computed_tokens)
            if num_new <= 0:
                index += 1
                continue
            fits = extend(request, num_new)
            while not fits:
                victim_index = self._victim()
                victim = running.pop(victim_index)
                if rules.victim_moves_cursor or victim in batch:
                    index -= victim_index < index
                budget += batch.pop(victim, 0)
                self._preempt(victim, step)
                if victim is request:
                    break
                fits = extend(request, num_new)
            if fits:
                batch[request] = num_new
                budget -= num_new
                index += 1
            elif self.config.policy == "fcfs" or not rules.self_preemption_goes_on:
                break  # it preempted itself; first come, first served, nobody is behind it
        return batch, budget

    def _victim(self) -> int:
        """Index in `running` of the one to preempt: the last; by priority, the least urgent and latest."""
        if self.config.policy == "fcfs":
            return len(self.running) - 1
        running = self.running

        def urgency(index: int) -> tuple[int, float, int]:
            request = running[index]
            # vLLM's arrival times are never equal. Where ours are, the later row arrived later: with ties
            # two requests could preempt each other for ever.
            return request.priority, request.arrival_s, request.row

        return max(range(len(running)), key=urgency)

    def _preempt(self, victim: Request, step: Step) -> None:
        """Take all its blocks; when it is admitted again it recomputes prompt and outputs in one prefill.

        A token in flight is still delivered: before anybody is admitted again, as nobody is in this step.
        """
        self.kv.free(victim)
        victim.num_computed_tokens = victim.num_output_placeholders = 0
        victim.num_stale_output_tokens = victim.num_in_flight_tokens
        victim.num_preemptions += 1
        self.waiting.put_back(victim)
        step.preempted.append(victim)

    def _admit_waiting(self, step: Step, batch: dict[Request, int], budget: int, chunk_limit: int) -> None:
        """Admit from the head of the queue while seats, budget and blocks last.

        Nobody passes a head that does not fit.
        """
        while budget > 0 and self.waiting and len(self.running) < self.config.max_num_seqs:
            request = self.waiting.head()
            if not self.kv.can_ever_hold(request):
                self._reject(step)
                continue
            hits = self.kv.find_cached(request)
            cached = len(hits) * self.kv.block_size
            num_new = request.num_tokens - cached
            if 0 < chunk_limit < num_new:
                num_new = chunk_limit
            if not self.config.enable_chunked_prefill and num_new > budget:
                break
            num_new = min(num_new, budget)
            if not self.kv.admit(
                request,
                num_new,
                hits,
                whole_must_fit=self.config.scheduler_reserve_full_isl,
                others_run=bool(self.running),
            ):
                break
            self.running.append(self.waiting.pop())
            request.num_computed_tokens = cached
            self._count_lookup(step, request, cached)
            batch[request] = num_new
            budget -= num_new

    def _count_lookup(self, step: Step, request: Request, cached: int) -> None:
        """As vLLM's prefix-cache statistics: on first admission; a resumed request is not counted again."""
        if request.num_cached_tokens is None:
            request.num_cached_tokens = cached
            if self.kv.enable_caching:
                step.queried_tokens += request.num_tokens
                step.hit_tokens += cached

    def _reject(self, step: Step) -> None:
        request = self.waiting.pop()
        request.status = Status.REJECTED_KV
        step.rejected.append(request)


def _advance(step: Step, batch: dict[Request, int]) -> None:
    """Count the tokens as computed, before the model runs, and sum up the step's work.

    The order of the sums is that of the batch, so that every engine adds the same floats.
    """
    work, scheduled = step.work, step.scheduled
    for request, num_new in batch.items():
        computed = request.num_computed_tokens
        after = request.num_computed_tokens = computed + num_new
        samples = after == request.num_tokens + request.num_output_placeholders
        part = Scheduled(request, num_new, computed, samples)
        scheduled.append(part)
        request.num_in_flight_tokens += num_new
        request.num_output_placeholders += samples
        if part.is_decode:
            work.decodes += 1
            work.decode_context_tokens += after
        else:
            work.prefills += 1
            work.prefill_tokens += num_new
            work.prefill_pairs += num_new * computed + num_new * (num_new + 1) // 2
            work.prefill_context_tokens += after
        work.sampled += samples
