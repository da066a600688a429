"""Engine settings, step times and requests as the records that compiled code reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kavier.ecosystem.vllm_versions import is_async, reserves_full_isl, rules_of
from kavier.native.library import address
from kavier.scenario import Engine
from kavier.simulation.kernel import operations
from kavier.simulation.kernel import records as k
from kavier.simulation.kernel.engine import LIBRARY
from kavier.simulation.policy.python import PythonTiming
from kavier.simulation.request import STATUSES
from kavier.timing.compiled import AffineTiming, Compilable, StepTables

Array = NDArray[Any]


class Packed:
    """The settings of a run, with everything that they point at kept alive.

    Args:
        engine: Settings with every limit resolved to a number.
        num_gpu_blocks: KV blocks a replica, null block included.
    """

    def __init__(self, engine: Engine, num_gpu_blocks: int) -> None:
        self.settings = _pack_engine(engine, num_gpu_blocks)
        self.c = self.settings[0]
        self._kept: list[Array] = []

    def check_timing(self) -> None:
        """Complain when a step-time model in Python has answered no time.

        Raises:
            InputError: It has.
        """
        if self.c["num_refused"]:
            assert isinstance(self._timing, PythonTiming)
            self._timing.refuse(self.c["refused"].tolist())

    def point(self, name: str, array: Array) -> Array:
        """Give the settings an array under this name."""
        self._kept.append(array)
        self.c[name] = address(array)
        return array

    def set_timing(self, timing: Compilable) -> None:
        """Price steps by these tables or coefficients."""
        self._timing, data = timing, timing.compiled()
        self.c["shares"] = tuple(data.shares)
        if isinstance(data, AffineTiming):
            self.c["timing"] = k.AFFINE
            self.c["affine"] = (
                data.base_s, data.prefill_s, data.decode_s, data.context_s,
                data.pair_flops, data.context_bytes,
            )  # fmt: skip
            return
        self._set_tables(data)
        self.c["timing"] = k.FUNCTION if data.function else k.DATASHEET
        self.c["function"] = data.function

    def _set_tables(self, data: StepTables) -> None:
        self.c["body_flops"], self.c["head_flops"] = data.body_flops, data.head_flops
        for name in ("body", "head", "host", "attention"):
            self.c[f"num_{name}"] = len(self.point(name, getattr(data, name)))

    def set_power(self, record: Array | None) -> None:
        """Coefficients of the power model, one POWER record; None leaves energies at zero."""
        if record is not None:
            self.c["power"] = record[0]

    def set_requests(self, workload: pl.DataFrame, max_model_len: int) -> tuple[Array, int]:
        """Request records of a table; an answer that would pass max_model_len is cut there, and counted."""
        self.workload = workload
        tokens = workload["prompt_tokens"], workload["output_tokens"]
        assert all((column > 0).all() for column in tokens), "readers drop requests without tokens"
        memory = np.zeros(k.REQUEST.itemsize * (len(workload) + 1), np.uint8)
        first = -address(memory) % k.REQUEST.itemsize
        requests = memory[first : first + k.REQUEST.itemsize * len(workload)].view(k.REQUEST)
        self._kept.append(memory)
        self.point("requests", requests)
        self.energies_j = self.point("energies", np.zeros(len(requests)))
        self.c["num_requests"] = len(requests)
        columns, kept = _columns(
            {name: workload[name].to_numpy() for name in ("arrival_s", "prompt_tokens", "output_tokens")}
        )
        cut = LIBRARY.call(operations.PACK_REQUESTS, address(self.settings), address(columns), max_model_len)
        del kept
        return requests, cut

    def set_arrivals(self, rows: Array) -> None:
        """Rows of requests, in the order in which they arrive."""
        self.arrivals = self.point("arrivals", rows.astype(np.int64))
        self.c["num_arrivals"] = len(rows)

    def set_ranks(self, requests: Array, keys: Array) -> None:
        """By priority: the order of (key, arrival, row), a number each."""
        order = np.lexsort((np.arange(len(requests)), requests["arrival_s"], keys))
        requests["rank"][order] = np.arange(len(requests))
        self.point("children", np.full(len(requests), -1, np.int32))

    def set_keys(self, keys: Array, starts: Array) -> None:
        """Keys of the blocks that the trace tells: keys[starts[i]:starts[i + 1]] are those of request i.

        Args:
            keys: Numbers from 0 on, at best those of successive new blocks in succession.
            starts: One more than requests.
        """
        blocks = self.untold_blocks(starts)
        untold = np.zeros(len(starts), np.int64)
        np.cumsum(blocks, out=untold[1:])
        self.point("first_told", starts.astype(np.int64, copy=False))
        self.point("first_untold", untold)
        self.c["num_told"] = len(self.point("told", keys.astype(np.int32, copy=False)))
        self.c["num_untold"] = untold[-1]
        self.c["num_contents"] = int(keys.max()) + 1 if len(keys) else 0
        self.point("held", np.zeros(len(keys) + int(untold[-1]) + 1, np.int32))

    def untold_blocks(self, starts: Array) -> Array:
        """Blocks of each request whose content the trace does not tell."""
        requests = self._kept_requests()
        tokens = requests["prompt_tokens"].astype(np.int64) + requests["output_length"]
        untold: Array = np.maximum(-(-tokens // int(self.c["block_size"])) - np.diff(starts), 0)
        return untold

    def _kept_requests(self) -> Array:
        found: Array = next(array for array in self._kept if array.dtype == k.REQUEST)
        return found


def _pack_engine(engine: Engine, num_gpu_blocks: int) -> Array:
    settings = np.zeros(1, k.SETTINGS)
    c, rules = settings[0], rules_of(engine)
    c["max_num_batched_tokens"] = engine.max_num_batched_tokens
    c["max_num_seqs"] = engine.max_num_seqs
    c["block_size"] = engine.block_size
    c["num_usable"] = num_gpu_blocks - 1
    c["watermark_blocks"] = int(engine.watermark * num_gpu_blocks)
    c["long_prefill_token_threshold"] = engine.long_prefill_token_threshold
    c["lone_request_unlimited"] = rules.lone_request_unlimited
    c["chunked_prefill"] = engine.enable_chunked_prefill
    c["reserve_full_isl"] = reserves_full_isl(engine)
    c["caching"] = engine.enable_prefix_caching
    c["unhashed_first"] = rules.unhashed_first
    c["by_priority"] = engine.scheduling_policy != "fcfs"
    c["asynchronous"] = is_async(engine)
    c["finished_keep_awake"] = rules.finished_keep_awake
    return settings


def _columns(arrays: dict[str, Array]) -> tuple[Array, list[Array]]:
    """One COLUMNS record, and what has to be kept while it is used."""
    record, kept = np.zeros(1, k.COLUMNS), []
    for name, array in arrays.items():
        whole = np.ascontiguousarray(array)
        record[name] = address(whole)
        kept.append(whole)
    return record, kept


def requests_table(packed: Packed, workload: pl.DataFrame, replica: Array) -> pl.DataFrame:
    """As `record.requests_table`, from what the run left in the request records."""
    count = len(workload)
    times = {name: np.empty(count) for name in ("first_scheduled_s", "first_token_s", "finish_s")}
    counts = {name: np.empty(count, np.int64) for name in ("output_tokens", "cached_tokens", "preemptions")}
    status = np.empty(count, np.uint8)
    columns, _ = _columns({**times, **counts, "status": status})
    others = LIBRARY.call(operations.UNPACK_REQUESTS, address(packed.settings), address(columns))
    table = pl.DataFrame(
        {
            "request": pl.int_range(count, eager=True),
            "arrival_s": workload["arrival_s"],
            "replica": replica,
            **times,
            "prompt_tokens": workload["prompt_tokens"],
            **counts,
            "energy_j": packed.energies_j,
            "status": pl.Series(STATUSES.categories, dtype=STATUSES).gather(status),
        }
    )
    if not others:
        return table
    return table.with_columns(
        pl.when(pl.col("replica") >= 0).then(pl.col("replica")),
        pl.when(pl.col("cached_tokens") >= 0).then(pl.col("cached_tokens")),
        *(pl.col(name).fill_nan(None) for name in times),
    )
