"""vLLM's scheduler, written a second time: slow, plain, and sharing no code with Kavier.

Made from a specification of vLLM's behaviour, not from src/kavier. It keeps no reference counts, no
hash map and no running sums: who refers to a block, which blocks are cached and what a block holds are
found by looking, so that it cannot be wrong in the way an engine that keeps them can. Two rules are
Kavier's own: a request that KV memory can never hold is rejected at the head of the queue, and of equal
priority and arrival the later row is the victim (vLLM's arrival times do not tie).

Asynchronous scheduling is to call `schedule` once more before the first `complete`, and then by turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Content = tuple[int, ...]


@dataclass(frozen=True)
class Settings:
    """Engine settings under short names; `num_blocks` counts the null block."""

    num_blocks: int
    block_size: int
    budget: int
    seats: int
    caching: bool = True
    priority: bool = False
    threshold: int = 0
    watermark: float = 0.0
    reserve_full: bool = True
    chunked: bool = True
    unhashed_first: bool = True
    lone_unlimited: bool = True
    cursor_moves: bool = True
    """Also for a victim that had no part in the step yet."""
    goes_on: bool = True
    """Behind a request that preempted itself, by priority."""


@dataclass(eq=False)
class Job:
    """A request: its prompt's tokens and, to be sampled one by one, its answer's."""

    row: int
    arrival_s: float
    tokens: list[int]
    answer: Sequence[int]
    priority: int = 0
    computed: int = 0
    sampled: int = 0
    blocks: list[int] = field(default_factory=list)
    pending: int = 0
    """Tokens that steps in flight will bring."""
    preempted: int = 0
    """How often."""


class Part(NamedTuple):
    """Of a job in a step."""

    job: Job
    upto: int
    """Tokens that are computed when the step has ended."""
    samples: bool
    preempted: int
    """How often the job had been by then."""


class Decisions(NamedTuple):
    """All that a step decided; requests by row, in order."""

    batch: list[tuple[int, int, int, list[int]]]
    """(row, tokens, computed before, blocks)"""
    preempted: list[int]
    rejected: list[int]
    running: list[int]
    waiting: int
    evicted: int
    free_queue: list[int]


class NaiveScheduler:
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.running: list[Job] = []
        self.waiting: list[Job] = []
        self.free_queue = list(range(1, settings.num_blocks))
        self.cached: list[tuple[int, Content]] = []  # (block, all tokens up to its end), oldest first
        self.evicted = 0
        self.batch: dict[Job, int] = {}
        self.in_flight: list[list[Part]] = []  # steps, older first

    def schedule(self) -> Decisions:
        s = self.settings
        self.batch, self.evicted = {}, 0
        alone = len(self.running) + len(self.waiting) <= 1
        threshold = 0 if alone and s.lone_unlimited else s.threshold
        left, preempted = self._serve_running(s.budget, threshold)
        rejected = [] if preempted else self._admit(left, threshold)
        batch = [(job.row, n, job.computed, list(job.blocks)) for job, n in self.batch.items()]
        self.in_flight.append([self._advance(job, n) for job, n in self.batch.items()])
        running = [job.row for job in self.running]
        return Decisions(
            batch, preempted, rejected, running, len(self.waiting), self.evicted, list(self.free_queue)
        )

    def complete(self) -> list[int]:
        """The oldest step ends: sample; returns the rows that finished."""
        finished = []
        for job, upto, samples, preempted in self.in_flight.pop(0):
            if not samples:
                continue
            job.tokens.append(job.answer[job.sampled])
            job.sampled += 1
            is_running = preempted == job.preempted  # the token of a preempted job comes all the same
            if is_running:
                job.pending -= 1
                self._cache(job, upto)
            if job.sampled == len(job.answer):
                (self.running if is_running else self.waiting).remove(job)
                self._release(job)
                finished.append(job.row)
        return finished

    def _advance(self, job: Job, n: int) -> Part:
        job.computed += n
        samples = job.computed == len(job.tokens) + job.pending
        job.pending += samples
        return Part(job, job.computed, samples, job.preempted)

    def _serve_running(self, left: int, threshold: int) -> tuple[int, list[int]]:
        preempted: list[int] = []
        at = 0
        while at < len(self.running) and left > 0:
            job = self.running[at]
            if job.pending and job.sampled + job.pending == len(job.answer):
                at += 1  # its last token is in flight
                continue
            n = min(_chunk(len(job.tokens) + job.pending - job.computed, threshold), left)
            while job in self.running and not self._allocate(job, job.computed + n, []):
                victim = self.running[-1]
                if self.settings.priority:
                    victim = max(self.running, key=lambda j: (j.priority, j.arrival_s, j.row))
                if self.running.index(victim) < at and (self.settings.cursor_moves or victim in self.batch):
                    at -= 1
                left += self.batch.pop(victim, 0)
                self.running.remove(victim)
                self._release(victim)
                victim.computed = victim.pending = 0
                victim.preempted += 1
                self.waiting.insert(0, victim)
                preempted.append(victim.row)
            if job in self.running:
                self.batch[job] = n
                left -= n
                at += 1
            elif not (self.settings.priority and self.settings.goes_on):
                break
        return left, preempted

    def _admit(self, left: int, threshold: int) -> list[int]:
        s, rejected = self.settings, []
        while left > 0 and self.waiting and len(self.running) < s.seats:
            job = self.waiting[0]
            if s.priority:
                job = min(self.waiting, key=lambda j: (j.priority, j.arrival_s, j.row))
            if self._count(len(job.tokens)) > s.num_blocks - 1:
                self.waiting.remove(job)
                rejected.append(job.row)
                continue
            hits = self._hits(job)
            cached = len(hits) * s.block_size
            n = _chunk(len(job.tokens) - cached, threshold)
            if n > left and not s.chunked:
                break
            n = min(n, left)
            reserve = int(s.watermark * s.num_blocks) if self.running else 0
            must_fit = len(job.tokens) if s.reserve_full else cached + n
            if not self._allocate(job, cached + n, hits, must_fit=must_fit, reserve=reserve):
                break
            self.waiting.remove(job)
            self.running.append(job)
            job.computed = cached
            self.batch[job] = n
            left -= n
        return rejected

    def _hits(self, job: Job) -> list[int]:
        hits: list[int] = []
        size = self.settings.block_size
        for end in range(size, len(job.tokens), size):  # never the last token
            holders = [block for block, content in self.cached if content == tuple(job.tokens[:end])]
            if not holders:
                break
            hits.append(holders[0])
        return hits

    def _allocate(self, job: Job, upto: int, hits: list[int], *, must_fit: int = 0, reserve: int = 0) -> bool:
        """Room for the first `upto` tokens of a job, of which `hits` hold some; False changes nothing."""
        held = len(job.blocks) + len(hits)
        idle_hits = sum(block in self.free_queue for block in hits)
        for tokens in (upto, must_fit):
            if max(0, self._count(tokens) - held) + idle_hits + reserve > len(self.free_queue):
                return False
        for block in hits:
            if block in self.free_queue:
                self.free_queue.remove(block)
        job.blocks += hits
        while len(job.blocks) < self._count(upto):
            job.blocks.append(self._take())
        self._cache(job, upto)
        return True

    def _take(self) -> int:
        block = self.free_queue.pop(0)
        kept = [(b, content) for b, content in self.cached if b != block]
        self.evicted += len(kept) < len(self.cached)
        self.cached = kept
        return block

    def _cache(self, job: Job, upto: int) -> None:
        """The full blocks of the first `upto` tokens, as far as these are known."""
        if not self.settings.caching:
            return
        size = self.settings.block_size
        known = {block for block, _ in self.cached}
        for index, block in enumerate(job.blocks[: min(upto, len(job.tokens)) // size]):
            if block not in known:
                self.cached.append((block, tuple(job.tokens[: (index + 1) * size])))

    def _release(self, job: Job) -> None:
        """`job` has left `running` by now: a block is idle when no running job holds it."""
        hashed = {block for block, _ in self.cached}
        others = {block for other in self.running for block in other.blocks}
        idle = [block for block in reversed(job.blocks) if block not in others]
        first = [block for block in idle if self.settings.unhashed_first and block not in hashed]
        self.free_queue = first + self.free_queue + [block for block in idle if block not in first]
        job.blocks = []

    def _count(self, tokens: int) -> int:
        return -(-tokens // self.settings.block_size)


def _chunk(tokens: int, threshold: int) -> int:
    return threshold if 0 < threshold < tokens else tokens
