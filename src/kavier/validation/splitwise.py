"""Measured power of A100s (Splitwise): a check of the power models on a GPU they were not fitted on."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kavier.ecosystem.gpu import find_gpu
from kavier.ecosystem.model import Attention, Layer, Mlp, ModelSpec
from kavier.ecosystem.models import find_model
from kavier.errors import InputError, reason
from kavier.metrics.power import PowerModel, power_model
from kavier.metrics.power_factor import MeasuredEnergy
from kavier.scenario import Engine
from kavier.timing.datasheet import DatasheetTiming
from kavier.timing.step import StepWork
from kavier.units import MS_PER_S

GPU = "a100-80gb"
"""The only GPU of the table whose power was measured."""

LONGEST_PROMPT = 2048
"""Runs with longer prompts are left out: their mean power falls to 0.17 of the TDP while their peak and their
step times do not, an artefact of averaging."""

NUMBERS = (
    "tp",
    "prompt_size",
    "batch_size",
    "token_size",
    "prefill_ms",
    "decode_step_ms",
    "average_power",
)


def _bloom() -> ModelSpec:
    """From config.json of bigscience/bloom: 70 layers, 112 heads of 128, MLP of four times the width."""
    layer = Layer(Attention("gqa", heads=112, kv_heads=112, head_dim=128), Mlp(57344, matrices=2))
    return ModelSpec(
        "bloom-176b", "bloom", 14336, 250880, (layer,) * 70, tie_word_embeddings=True, max_model_len=2**14
    )


@dataclass(frozen=True, slots=True)
class StaticRun:
    """One static batch: all prompts at once, then a step for each further token.

    Attributes:
        group: Model and GPUs.
        energy: Work of the steps of ONE GPU, and what they took.
        models: Name -> power model of this deployment.
    """

    group: str
    energy: MeasuredEnergy
    models: Mapping[str, PowerModel]

    def modelled_w(self, name: str) -> float:
        """Mean power by a model."""
        return self.energy.modelled_j(self.models[name]) / float(np.sum(self.energy.duration_s))

    @property
    def measured_w(self) -> float:
        """Mean power."""
        return self.energy.energy_j / float(np.sum(self.energy.duration_s))


def read_static_runs(path: Path, names: tuple[str, ...]) -> list[StaticRun]:
    """The runs of the table with a measured power, and the power models to try on them.

    Raises:
        InputError: The file cannot be read, lacks a column, holds no such run, or a number is none.
    """
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            table = csv.DictReader(lines)
            if missing := {*NUMBERS, "gpu", "model"} - set(table.fieldnames or ()):
                raise InputError(f"no column {', '.join(sorted(missing))}", where=str(path))
            rows = [(f"{path}, line {table.line_num}", row) for row in table if row["gpu"] == GPU]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the table: {reason(error)}", where=str(path)) from None
    runs = [_run(row["model"], _numbers(where, row), names) for where, row in rows]
    if not (kept := [run for run in runs if run]):
        raise InputError(f"no run on {GPU} whose power was measured", where=str(path))
    return kept


def _numbers(where: str, row: Mapping[str, str]) -> dict[str, float]:
    try:
        return {name: float(row[name]) for name in NUMBERS}
    except (TypeError, ValueError):
        raise InputError(f"a number is needed in each of {', '.join(NUMBERS)}", where=where) from None


def _run(model: str, number: Mapping[str, float], names: tuple[str, ...]) -> StaticRun | None:
    if number["average_power"] <= 0 or number["prompt_size"] > LONGEST_PROMPT:
        return None
    spec = _bloom() if model == "bloom-176b" else find_model("meta-llama/Llama-2-70b-hf")
    gpu, gpus = find_gpu(GPU), round(number["tp"])
    engine = Engine(tensor_parallel_size=gpus, max_num_seqs=256, max_num_batched_tokens=2048)
    timing = DatasheetTiming(spec, gpu, engine)
    steps = [timing.cost(work) for work in _steps(number)]
    duration_s = np.full(len(steps), number["decode_step_ms"] / MS_PER_S)
    duration_s[0] = number["prefill_ms"] / MS_PER_S
    return StaticRun(
        f"{model} on {gpus} GPUs",
        MeasuredEnergy(
            _column([step.flops for step in steps]),
            _column([step.bytes for step in steps]),
            duration_s,
            number["average_power"] * gpu.tdp_w * float(duration_s.sum()),
        ),
        {name: power_model(name, gpu, spec) for name in names},
    )


def _column(values: list[float]) -> NDArray[np.float64]:
    return np.array(values)


def _steps(number: Mapping[str, float]) -> list[StepWork]:
    batch, prompt = round(number["batch_size"]), round(number["prompt_size"])
    tokens = batch * prompt
    first = StepWork(batch, tokens, tokens * (prompt + 1) // 2, tokens, sampled=batch)
    return [
        first,
        *(
            StepWork(decodes=batch, decode_context_tokens=batch * (prompt + i), sampled=batch)
            for i in range(1, round(number["token_size"]))
        ),
    ]
