"""The folder a run leaves: resolved scenario, summary, tables."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import polars as pl

from kavier.errors import InputError, reason
from kavier.metrics.timeline import SCHEMA
from kavier.report.parquet import ParquetStream
from kavier.runner import Result
from kavier.scenario_file import dump_scenario

SUMMARY = "summary.json"
SCENARIO = "scenario.resolved.yaml"
TIMELINE = "timeline.parquet"
SCRATCH = ".kavier-"
"""How folders begin in which files are written first; one that was killed leaves one."""

FILES = (SCENARIO, SUMMARY, "requests.parquet", TIMELINE, "steps.parquet")


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
    strange = nearest == out and any(not one.name.startswith(SCRATCH) for one in out.iterdir())
    if strange and not _holds_run(out):
        raise InputError("--out: the folder is not empty and holds no earlier run", where=str(out))


def _holds_run(out: Path) -> bool:
    return all((out / name).exists() for name in (SCENARIO, SUMMARY))


class RunFolder:
    """A folder to keep a run in; its timeline is written while it grows.

    Files are written aside and moved in by `finish`, so a failure leaves none half-written. The files of an
    earlier run there are replaced; other files are left alone.

    Raises:
        InputError: The folder is that of something else, or cannot be written: on entry and in any method.
    """

    def __init__(self, out: Path) -> None:
        self._out = out

    def __enter__(self) -> RunFolder:
        check_folder(self._out)
        with self._told():
            self._scratch = tempfile.TemporaryDirectory(dir=_nearest_folder(self._out), prefix=SCRATCH)
            self._folder = Path(self._scratch.name)
            self._timeline = ParquetStream(self._folder / TIMELINE, SCHEMA)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(BaseException):  # `finish` has told it, or it follows from the error that ended it all
            self._timeline.close()
        with suppress(OSError):
            self._scratch.cleanup()

    def add_rows(self, rows: pl.DataFrame) -> None:
        """Keep rows of the timeline."""
        with self._told():
            self._timeline.add(rows)

    def finish(self, result: Result) -> bool:
        """Keep the rest of the run.

        Returns:
            Whether the files of an earlier run there were replaced.
        """
        earlier_run = _holds_run(self._out)
        with self._told():
            self._timeline.close()
            _write_files(result, self._folder, self._out)
            self._out.mkdir(parents=True, exist_ok=True)
            for name in FILES:
                fresh = self._folder / name
                if fresh.exists():
                    fresh.replace(self._out / name)
                else:
                    (self._out / name).unlink(missing_ok=True)
        return earlier_run

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"--out: cannot write: {reason(error)}", where=str(self._out)) from None


def write_run(result: Result, out: Path) -> bool:
    """Keep a run, its `timeline` included, in a folder: see `RunFolder`.

    Returns:
        Whether the files of an earlier run there were replaced.

    Raises:
        InputError: The folder cannot be written.
    """
    with RunFolder(out) as folder:
        folder.add_rows(result.timeline)
        return folder.finish(result)


def _write_files(result: Result, folder: Path, out: Path) -> None:
    """Write into `folder` what is to be moved to `out`."""
    (folder / SCENARIO).write_text(dump_scenario(result.scenario, out), encoding="utf-8")
    (folder / SUMMARY).write_text(summary_json(result), encoding="utf-8")
    result.requests.write_parquet(folder / "requests.parquet")
    if result.steps is not None:
        result.steps.write_parquet(folder / "steps.parquet")
