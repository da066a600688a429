"""Measured power of serving runs: the table and the side files of the ML.ENERGY leaderboard."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from kavier.errors import InputError, reason

_T = TypeVar("_T")

HISTOGRAMS = "output_length_histograms.json"
CONFIGS = "vllm_configs.json"

INPUT_TOKENS = {"lm-arena-chat": 220, "gpqa": 300, "sourcegraph-fim": 2000}
"""Assumed prompt tokens of a task; they are not published, and those of images and videos are unknown.

Chat follows from the time that prefill takes of five dense models, code completion likewise but loosely
(2,000 to 3,000); GPQA is a guess.
"""

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
class Histogram:
    """Lengths of answers: `counts` between successive `edges`, in tokens."""

    edges: list[float]
    counts: list[float]

    @property
    def length_ratio(self) -> float:
        """E[L^2] / E[L]^2, lengths uniform within a bin."""
        low, high, count = np.array(self.edges[:-1]), np.array(self.edges[1:]), np.array(self.counts)
        first = np.sum(count * (low + high) / 2)
        second = np.sum(count * (low * low + low * high + high * high) / 3)
        return float(second * count.sum() / first**2)


@dataclass(frozen=True, slots=True)
class Arguments:
    """How the engine of a sweep was started.

    Attributes:
        gpus: The numbers of GPUs it was run on.
        max_num_batched_tokens: Likewise.
        max_model_len: Likewise.
        rounds: (GPUs, max_num_seqs) -> how often the requests of the task were sent.
    """

    gpus: tuple[int, ...]
    max_num_batched_tokens: int
    max_model_len: int
    rounds: Mapping[tuple[int, int], int]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a file holds.

    Attributes:
        points: Runs of tasks whose prompts are known.
        left_out: Other task -> number of its runs.
        histograms: (model, task) -> lengths of answers.
        arguments: (model, task, GPU) -> sweeps.
    """

    points: list[PowerPoint]
    left_out: Mapping[str, int]
    histograms: Mapping[tuple[str, str], Histogram]
    arguments: Mapping[tuple[str, str, str], list[Arguments]]


def read_measured(path: Path) -> Measured:
    """Read the table of runs, and beside it `HISTOGRAMS` and `CONFIGS`.

    Raises:
        InputError: A file that cannot be read or is not as published, a missing column, or a number that is
            none or not above 0.
    """
    rows = list(_rows(path))
    histograms = _side_file(path.with_name(HISTOGRAMS), _histograms)
    arguments = _side_file(path.with_name(CONFIGS), _arguments)
    left_out = Counter(row["task"] for _, row in rows if row["task"] not in INPUT_TOKENS)
    points = [_point(where, row, histograms) for where, row in rows if row["task"] in INPUT_TOKENS]
    if not points:
        raise InputError(
            "no run of a task whose prompts are known",
            where=str(path),
            expected=f"task {', '.join(INPUT_TOKENS)}",
        )
    return Measured(points, left_out, histograms, arguments)


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


def _side_file(path: Path, read: Callable[[Any], _T]) -> _T:
    """What `read` makes of a JSON file."""
    try:
        return read(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read it: {reason(error)}", where=str(path), expected="this file beside the table"
        ) from None
    except (KeyError, TypeError, AttributeError, IndexError):
        raise InputError("not as ML.ENERGY publishes it", where=str(path)) from None


def _histograms(entries: Any) -> dict[tuple[str, str], Histogram]:
    return {(entry["model"], entry["task"]): Histogram(entry["bins"], entry["counts"]) for entry in entries}


def _arguments(tree: Any) -> dict[tuple[str, str, str], list[Arguments]]:
    """Sweeps with vLLM's arguments; those without a token budget are of other GPUs, and left out."""
    found: dict[tuple[str, str, str], list[Arguments]] = {}
    for config in tree["configs"]:
        given = config["vllm_args"]
        if "max-num-batched-tokens" not in given:
            continue
        gpus = tuple(map(int, config["num_gpus"].split()))
        sweeps = (config["sweep"] or {"sweep": ()})["sweep"]
        rounds = {
            (count, seats): sweep.get("num_request_repeats", [1])[0]
            for sweep in sweeps
            for count in sweep.get("num_gpus", gpus)
            for seats in sweep["max_num_seqs"]
        }
        found.setdefault((config["model"], config["task"], config["gpu"]), []).append(
            Arguments(
                gpus,
                given["max-num-batched-tokens"],
                given["max-model-len"],
                rounds,
            )
        )
    return found


def _point(where: str, row: Mapping[str, str], histograms: Mapping[tuple[str, str], Histogram]) -> PowerPoint:
    number = {name: _positive(where, name, row[name]) for name in NUMBERS}
    lengths = histograms.get((row["model"], row["task"]))
    return PowerPoint(
        model=row["model"],
        task=row["task"],
        gpu=row["gpu"],
        dtype=row["weight_precision"],
        gpus=round(number["num_gpus"]),
        max_num_seqs=round(number["max_num_seqs"]),
        batch=number["avg_batch_size"],
        output_tokens=number["avg_output_len"],
        length_ratio=lengths.length_ratio if lengths else 1.0,
        power_w=number["avg_power_watts"] / number["num_gpus"],
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
