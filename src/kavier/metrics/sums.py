"""What the compiled engine adds up while it plays, from the steps of the reference engine."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from kavier.metrics.energy import with_energy
from kavier.metrics.power import PowerModel
from kavier.native.library import address
from kavier.simulation.compiled import CompiledResult
from kavier.simulation.kernel import operations
from kavier.simulation.kernel.engine import LIBRARY
from kavier.simulation.kernel.records import REPLICA, STEP
from kavier.simulation.output import Give, Output, cells_a_piece
from kavier.simulation.reference import SimulationResult
from kavier.simulation.replica import SLEEP_S
from kavier.simulation.sampling import Sampling

Array = NDArray[Any]


def with_sums(
    played: SimulationResult, power: PowerModel, gpus: int, replicas: int, sampling: Sampling
) -> CompiledResult:
    """What the compiled engine would have left."""
    steps = with_energy(played.steps, power, gpus)
    return CompiledResult(
        requests=played.requests,
        steps=steps if sampling.steps else None,
        token_gaps=played.token_gaps,
        truncated=played.truncated,
        kv_blocks=played.kv_blocks,
        cells=sum_steps(steps, replicas, sampling),
        end_s=_end_s(steps),
        peak_used_blocks=int(steps["used_blocks"].max() or 0),  # type: ignore[arg-type]
        asleep_s=_asleep_s(steps),
    )


def sum_steps(steps: pl.DataFrame, replicas: int, sampling: Sampling) -> list[list[Array]]:
    """The cells of every replica that the sink does not take.

    Args:
        steps: The steps table with `energy_j`, the energy of all GPUs of the replica in the step.
        replicas: How many; those that never ran have no cells.
        sampling: How to add up.
    """
    parts = dict(steps.partition_by("replica", as_dict=True))
    cells: list[list[Array]] = [[] for _ in range(replicas)]
    for index, own in enumerate(cells):
        if (part := parts.get((index,))) is not None:
            give = partial(_give, sampling, index, own)
            own.append(_sum_replica(part, sampling, cells_a_piece(replicas), give))
    return cells


def _give(sampling: Sampling, replica: int, kept: list[Array], cells: Array, end: int) -> None:
    sampling.take(replica, kept, cells, end)()


def _sum_replica(steps: pl.DataFrame, sampling: Sampling, piece: int, give: Give) -> Array:
    record = np.zeros(1, REPLICA)
    record["end_s"] = _end_s(steps) or 0.0
    output = Output(record[0], sampling.start_s, sampling.interval_s, piece, give, logging=False)
    records = np.zeros(len(steps), STEP)
    for name in STEP.names or ():
        records[name] = steps[name].to_numpy()
    place = address(record) + REPLICA.fields["timeline"][1]  # type: ignore[index]
    done = 0
    while done < len(records):
        done += LIBRARY.call(
            operations.ACCUMULATE_STEPS, place, address(records) + done * STEP.itemsize, len(records) - done
        )
        output.make_room()
    return output.rest()


def _asleep_s(steps: pl.DataFrame) -> float:
    """Time of steps without tokens."""
    asleep = (pl.col("prefill_tokens") + pl.col("decodes") == 0) & (pl.col("duration_s") > 0.0)
    return len(steps.filter(asleep)) * SLEEP_S


def _end_s(steps: pl.DataFrame) -> float | None:
    """End of the last step that took time: an empty one that only reports ends no run."""
    lasting = steps.filter(pl.col("duration_s") > 0.0)
    ends = (lasting["start_s"] + lasting["duration_s"]).max()
    return ends if isinstance(ends, float) else None
