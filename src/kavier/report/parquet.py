"""A Parquet file that is written while its rows come: it may be larger than memory."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source

POLARS_PREFIX = "parquet: File out of specification: underlying IO error: "

WAITING = 16
"""Pieces that wait for the writer; whoever brings more waits himself."""


class ParquetStream:
    """Takes pieces of a table in the order of its rows, and encodes them in the background.

    Args:
        path: File to write; it is whole once `close` has returned.
        schema: Columns of every piece.
    """

    def __init__(self, path: Path, schema: dict[str, pl.DataType]) -> None:
        self._path, self._schema = path, schema
        self._pieces: queue.Queue[pl.DataFrame | None] = queue.Queue(WAITING)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._write, name="parquet", daemon=True)
        self._thread.start()

    def add(self, rows: pl.DataFrame) -> None:
        """Add rows at the end.

        Raises:
            OSError: The file cannot be written, and polars has told so: mostly it does at the end.
        """
        self._put(rows)
        self._check()

    def close(self) -> None:
        """Write what is left.

        Raises:
            OSError: The file cannot be written.
        """
        self._put(None)
        self._thread.join()
        self._check()

    def _put(self, piece: pl.DataFrame | None) -> None:
        while self._thread.is_alive():  # a writer that has failed takes nothing any more
            try:
                self._pieces.put(piece, timeout=0.1)
            except queue.Full:
                continue
            return

    def _check(self) -> None:
        if isinstance(self._error, pl.exceptions.ComputeError):  # how polars tells of a full disk
            raise OSError(str(self._error).removeprefix(POLARS_PREFIX))
        if self._error is not None:
            raise self._error

    def _write(self) -> None:
        try:
            source = register_io_source(self._take, schema=self._schema)
            # It may be long: level 1 takes half the time of the default and a sixth more room.
            source.sink_parquet(self._path, compression="zstd", compression_level=1)
        except BaseException as error:
            self._error = error

    def _take(self, *_: Any) -> Iterator[pl.DataFrame]:
        """Pieces for polars; a sink asks for all columns and rows."""
        while (piece := self._pieces.get()) is not None:
            yield piece
