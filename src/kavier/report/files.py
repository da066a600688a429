"""The folder a run leaves: resolved scenario, summary, tables."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from kavier.errors import InputError, reason
from kavier.runner import Result
from kavier.scenario_file import dump_scenario

SUMMARY = "summary.json"
SCENARIO = "scenario.resolved.yaml"
FILES = (SCENARIO, SUMMARY, "requests.parquet", "timeline.parquet", "steps.parquet")


def summary_json(result: Result) -> str:
    """summary.json, byte for byte."""
    return json.dumps(result.summary, indent=2, allow_nan=False) + "\n"


def check_folder(out: Path) -> None:
    """Refuse a folder that holds anything but an earlier run, before simulating.

    Raises:
        InputError: `out` is a file, a folder of something else, or cannot be written.
    """
    try:
        _check_place(out)
    except OSError as error:
        raise InputError(f"--out: {reason(error)}", where=str(out)) from None


def _nearest_folder(out: Path) -> Path:
    """`out`, or the nearest of its parents that exists."""
    return next(folder for folder in (out, *out.absolute().parents) if folder.exists())


def _check_place(out: Path) -> None:
    nearest = _nearest_folder(out)
    if not nearest.is_dir():
        raise InputError("--out: not a folder", where=str(nearest))
    if not os.access(nearest, os.W_OK):
        raise InputError("--out: the folder cannot be written", where=str(nearest))
    if nearest == out and any(out.iterdir()) and not _holds_run(out):
        raise InputError("--out: the folder is not empty and holds no earlier run", where=str(out))


def _holds_run(out: Path) -> bool:
    return all((out / name).exists() for name in (SCENARIO, SUMMARY))


def write_run(result: Result, out: Path) -> bool:
    """Write the run into `out`. Files are written aside and moved in, so a failure leaves none half-written.

    Returns:
        Whether the files of an earlier run there were replaced; other files are left alone.

    Raises:
        InputError: The folder cannot be written.
    """
    check_folder(out)
    earlier_run = _holds_run(out)
    try:
        with tempfile.TemporaryDirectory(dir=_nearest_folder(out), prefix=".kavier-") as scratch:
            _write_files(result, Path(scratch), out)
            out.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                fresh = Path(scratch) / name
                if fresh.exists():
                    fresh.replace(out / name)
                else:
                    (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"--out: cannot write: {reason(error)}", where=str(out)) from None
    return earlier_run


def _write_files(result: Result, folder: Path, out: Path) -> None:
    """Write into `folder` what is to be moved to `out`."""
    (folder / SCENARIO).write_text(dump_scenario(result.scenario, out), encoding="utf-8")
    (folder / SUMMARY).write_text(summary_json(result), encoding="utf-8")
    result.requests.write_parquet(folder / "requests.parquet")
    # It may be long: level 1 takes half the time of the default and a sixth more room.
    result.timeline.write_parquet(folder / "timeline.parquet", compression="zstd", compression_level=1)
    if result.steps is not None:
        result.steps.write_parquet(folder / "steps.parquet")
