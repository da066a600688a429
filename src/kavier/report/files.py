"""The folder a run leaves: resolved scenario, summary, tables."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from kavier.errors import InputError
from kavier.runner import Result
from kavier.scenario import dump_scenario, reason

SUMMARY = "summary.json"
SCENARIO = "scenario.resolved.yaml"
FILES = (SCENARIO, SUMMARY, "requests.parquet", "timeline.parquet", "steps.parquet")


def summary_json(result: Result) -> str:
    """summary.json, byte for byte."""
    return json.dumps(result.summary, indent=2, allow_nan=False) + "\n"


def check_folder(out: Path) -> None:
    """Refuse a folder that holds anything but an earlier run, before simulating.

    Raises:
        InputError: `out` is a file, or a folder of something else.
    """
    if out.is_dir() and any(out.iterdir()) and not (out / SUMMARY).exists():
        raise InputError("--out: the folder is not empty and holds no earlier run", where=str(out))
    if out.exists() and not out.is_dir():
        raise InputError("--out: not a folder", where=str(out))


def write_run(result: Result, out: Path) -> None:
    """Write the run into `out`. Files are written aside and moved in, so a failure leaves none half-written.

    The files of an earlier run there are replaced; other files are left alone.

    Raises:
        InputError: The folder cannot be written.
    """
    check_folder(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".new-") as scratch:
            _write_files(result, Path(scratch))
            for name in FILES:
                fresh = Path(scratch) / name
                if fresh.exists():
                    fresh.replace(out / name)
                else:
                    (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"--out: cannot write: {reason(error)}", where=str(out)) from None


def _write_files(result: Result, folder: Path) -> None:
    (folder / SCENARIO).write_text(dump_scenario(result.scenario), encoding="utf-8")
    (folder / SUMMARY).write_text(summary_json(result), encoding="utf-8")
    result.requests.write_parquet(folder / "requests.parquet")
    result.timeline.write_parquet(folder / "timeline.parquet")
    if result.scenario.output.steps:
        result.steps.write_parquet(folder / "steps.parquet")
