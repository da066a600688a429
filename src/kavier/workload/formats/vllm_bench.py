"""A measured run of `vllm bench serve --save-detailed` as a trace: its lengths and start times.

vLLM 0.33, vllm/benchmarks/serve.py: parallel arrays, one entry a request; a failed request has a text in
`errors`; `start_times` are readings of a clock of arbitrary origin, taken when the request was sent.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from kavier.errors import InputError
from kavier.workload.columns import SECONDS, TOKENS, check_column, json_series
from kavier.workload.formats.containers import as_object
from kavier.workload.formats.source import Format, TraceFile
from kavier.workload.table import Workload, make_workload, row_name

_HEADER = ("input_lens", "output_lens", "start_times")
_RULES = {"input_lens": TOKENS, "output_lens": TOKENS, "start_times": SECONDS}


def _read(file: TraceFile) -> Workload:
    where = str(file.path)
    result = as_object(file.document(), where)
    arrays = _arrays(result, where)
    errors = arrays.pop("errors", [])
    kept = [row for row in range(len(arrays["input_lens"])) if not (errors and errors[row])]

    def place(row: int) -> str:
        return row_name(kept[row])

    def at(row: int, column: str) -> str:
        return f"{where}, {place(row)}, column {column!r}"

    series = (json_series(name, [arrays[name][row] for row in kept], at) for name in _HEADER)
    frame = pl.DataFrame([check_column(column, _RULES[column.name], at) for column in series]).select(
        arrival_s=pl.col("start_times") - pl.col("start_times").min(),
        prompt_tokens="input_lens",
        output_tokens="output_lens",
    )
    counts = {"dropped_failed_requests": len(arrays["input_lens"]) - len(kept)}
    return make_workload(frame, source=where, format="vllm_bench", counts=counts, place=place)


def _arrays(result: dict[str, Any], where: str) -> dict[str, list[Any]]:
    """The arrays of the requests, all of one length."""
    names = [*_HEADER, *(["errors"] if "errors" in result else [])]
    for name in names:
        if not isinstance(result[name], list):
            raise InputError(f"{name!r} is no array", where=where, expected="one entry a request")
        if len(result[name]) != len(result["input_lens"]):
            lengths = f"{len(result[name])} against {len(result['input_lens'])}"
            raise InputError(f"{name!r} and 'input_lens' differ in length ({lengths})", where=where)
    return {name: result[name] for name in names}


FORMAT = Format("vllm_bench", "JSON of `vllm bench serve --save-result --save-detailed`", (_HEADER,), _read)
