"""Measured power of serving runs: the table and the side files of the ML.ENERGY leaderboard."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from kavier.errors import InputError, reason

HISTOGRAMS = "output_length_histograms.json"
CONFIGS = "vllm_configs.json"

INPUT_TOKENS = {"lm-arena-chat": 220, "gpqa": 300, "sourcegraph-fim": 2000}
"""Assumed prompt tokens of a task; they are not published. Chat follows from the time that prefill takes of five
dense models, code completion likewise but loosely (2,000 to 3,000), GPQA is a guess. Images and videos: unknown."""

NUMBERS = (
    "num_gpus",
    "max_num_seqs",
    "avg_batch_size",
    "avg_output_len",
    "avg_power_watts",
    "output_throughput_tokens_per_sec",
)
TEXTS = ("model", "task", "gpu", "weight_precision")


@dataclass(frozen=True, slots=True)
class PowerPoint:
    """One measured run in its steady state.

    Attributes:
        model: As in the file.
        task: A key of `INPUT_TOKENS`.
        gpu: As in the file.
        dtype: Of the weights, as in the file.
        gpus: Of the replica.
        max_num_seqs: Setting of the engine.
        batch: Mean number of running requests.
        output_tokens: Mean length of an answer.
        length_ratio: E[L^2] / E[L]^2 of answers' lengths L, from the histogram; 1 if there is none.
        power_w: Of ONE GPU.
        tokens_per_s: Output tokens of the replica.
        where: File and line.
    """

    model: str
    task: str
    gpu: str
    dtype: str
    gpus: int
    max_num_seqs: int
    batch: float
    output_tokens: float
    length_ratio: float
    power_w: float
    tokens_per_s: float
    where: str

    @property
    def input_tokens(self) -> int:
        """Assumed mean length of a prompt."""
        return INPUT_TOKENS[self.task]

    @property
    def context_tokens(self) -> float:
        """Mean context of a running request: long answers run longer, so it is input + E[L^2] / (2 E[L])."""
        return self.input_tokens + self.length_ratio * self.output_tokens / 2

    @property
    def j_per_token(self) -> float:
        """Energy of all GPUs an output token."""
        return self.power_w * self.gpus / self.tokens_per_s


@dataclass(frozen=True, slots=True)
class Measured:
    """What a file holds.

    Attributes:
        points: Runs of tasks whose prompts are known.
        left_out: Other task -> number of its runs.
        histograms: (model, task) -> bin edges in tokens, and counts.
        configs: vLLM's arguments, a mapping each run of a sweep.
    """

    points: list[PowerPoint]
    left_out: Mapping[str, int]
    histograms: Mapping[tuple[str, str], tuple[list[float], list[float]]]
    configs: list[Mapping[str, Any]]


def read_measured(path: Path) -> Measured:
    """Read the table of runs, and beside it `HISTOGRAMS` and `CONFIGS`.

    Raises:
        InputError: A file that cannot be read, a missing column, or a number that is none or not above 0.
    """
    histograms = {
        (entry["model"], entry["task"]): (entry["bins"], entry["counts"])
        for entry in _json(path.with_name(HISTOGRAMS))
    }
    points, left_out = [], dict[str, int]()
    for where, row in _rows(path):
        if row["task"] not in INPUT_TOKENS:
            left_out[row["task"]] = left_out.get(row["task"], 0) + 1
        else:
            points.append(_point(where, row, histograms))
    if not points:
        raise InputError(
            "no run of a task whose prompts are known",
            where=str(path),
            expected=f"task {', '.join(INPUT_TOKENS)}",
        )
    return Measured(points, left_out, histograms, _json(path.with_name(CONFIGS))["configs"])


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(file and line, row by column name)."""
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            table = csv.DictReader(lines)
            if missing := {*NUMBERS, *TEXTS} - set(table.fieldnames or ()):
                raise InputError(
                    f"no column {', '.join(sorted(missing))}",
                    where=str(path),
                    expected="a table of runs as ML.ENERGY publishes it",
                    near=(min(missing), table.fieldnames or ()),
                )
            for row in table:
                yield f"{path}, line {table.line_num}", row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the table: {reason(error)}", where=str(path)) from None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read it: {reason(error)}", where=str(path), expected="this file beside the table"
        ) from None


def _point(
    where: str, row: Mapping[str, str], histograms: Mapping[tuple[str, str], tuple[list[float], list[float]]]
) -> PowerPoint:
    number = {name: _positive(where, name, row[name]) for name in NUMBERS}
    known = histograms.get((row["model"], row["task"]))
    return PowerPoint(
        model=row["model"],
        task=row["task"],
        gpu=row["gpu"],
        dtype=row["weight_precision"],
        gpus=round(number["num_gpus"]),
        max_num_seqs=round(number["max_num_seqs"]),
        batch=number["avg_batch_size"],
        output_tokens=number["avg_output_len"],
        length_ratio=_length_ratio(*known) if known else 1.0,
        power_w=number["avg_power_watts"] / round(number["num_gpus"]),
        tokens_per_s=number["output_throughput_tokens_per_sec"],
        where=where,
    )


def _positive(where: str, name: str, text: str | None) -> float:
    try:
        number = float(text or "")
    except ValueError:
        number = 0.0
    if not (isfinite(number) and number > 0):
        raise InputError(f"{name}: bad number", where=where, value=text, expected="a number above 0")
    return number


def _length_ratio(edges: list[float], counts: list[float]) -> float:
    """E[L^2] / E[L]^2, lengths uniform within a bin."""
    total = first = second = 0.0
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        total += count
        first += count * (low + high) / 2
        second += count * (low * low + low * high + high * high) / 3
    return second * total / first**2
