"""Carbon intensity over time, read from a file."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from kavier.ecosystem.regions import region_catalog
from kavier.errors import InputError, reason
from kavier.units import MS_PER_S

Floats = NDArray[np.float64]

LAYOUTS = (("timestamp", "carbon_intensity"), ("datetime_utc", "ci_lca_g_per_kwh"))
"""(time column, intensity column) of the files that are understood; a `zone` column is optional.

The first is OpenDC's. The second is the table of the decarbonization-potential study: of its two intensities
the life-cycle one is read, as in the catalog of regions.
"""


@dataclass(frozen=True, slots=True)
class CarbonSeries:
    """Carbon intensity of a zone as steps: a value holds from its time until the next (as in OpenDC).

    Attributes:
        zone: Zone of the file, or the file's name where it has only one.
        start: UTC time of run time 0, ISO 8601.
        edges_s: When steps begin, in run time, and where the last one ends: one more than there are values.
        gco2_per_kwh: Value of each step.
        source: File it was read from.
    """

    zone: str
    start: str
    edges_s: Floats
    gco2_per_kwh: Floats
    source: str

    def at(self, times_s: ArrayLike) -> Floats:
        """Intensity at each run time.

        Raises:
            InputError: The series does not cover one of them.
        """
        times = self._covered(times_s)
        step = np.searchsorted(self.edges_s, times, side="right") - 1
        return self.gco2_per_kwh[np.minimum(step, len(self.gco2_per_kwh) - 1)]

    def mean_over(self, start_s: ArrayLike, end_s: ArrayLike) -> Floats:
        """Mean intensity of each interval [start_s, end_s] of run time; of an empty one, the intensity then.

        Raises:
            InputError: The series does not cover one of them.
        """
        start, end = np.broadcast_arrays(self._covered(start_s), self._covered(end_s))
        length = end - start
        total = self._integral(end) - self._integral(start)
        return np.where(length > 0, total / np.where(length > 0, length, 1.0), self.at(start))

    def _integral(self, times_s: Floats) -> Floats:
        """From the first edge on. A step function's integral is straight between edges, so this is exact."""
        sums = np.concatenate(([0.0], np.cumsum(self.gco2_per_kwh * np.diff(self.edges_s))))
        # Counted from run time 0: near it, where runs are, no digits are lost in a year's sum.
        return np.interp(times_s, self.edges_s, sums - np.interp(0.0, self.edges_s, sums))

    def _covered(self, times_s: ArrayLike) -> Floats:
        times = np.asarray(times_s, dtype=np.float64)
        outside = times[(times < self.edges_s[0]) | (times > self.edges_s[-1])]
        if outside.size:
            origin = _epoch_s(self.start)
            first, last = (_iso(origin + edge) for edge in (self.edges_s[0], self.edges_s[-1]))
            raise InputError(
                f"the carbon series covers {first} to {last}, not the whole run",
                where=self.source,
                value=_iso(origin + float(outside.flat[0])),
                expected="an earlier or later site.start, or a longer series",
            )
        return times


def read_carbon_series(path: Path, zone: str | None = None, *, start: str | None = None) -> CarbonSeries:
    """Read a series of one zone from CSV or Parquet.

    Args:
        path: File with the columns of one of `LAYOUTS`; times without a zone are UTC.
        zone: Zone to take from a file that holds several, by code or by a name of the catalog of regions.
        start: UTC time of run time 0, ISO 8601; by default when the series begins.

    Raises:
        InputError: Unreadable file, missing column, unknown zone, times that do not rise, an intensity that
            is missing, negative or not finite (row named), a start that is no time, fewer than two rows.
    """
    table = _one_zone(_standard(_read(path), path), zone, path)
    _check_rows(table, path)
    begin_s = table["time"].dt.epoch("ms").to_numpy() / MS_PER_S
    origin_s = begin_s[0] if start is None else _epoch_s(start)
    # The last value holds as long as the one before it.
    edges_s = np.append(begin_s, 2 * begin_s[-1] - begin_s[-2]) - origin_s
    return CarbonSeries(
        zone=str(table["zone"][0]),
        start=_iso(origin_s),
        edges_s=edges_s,
        gco2_per_kwh=table["value"].to_numpy(),
        source=str(path),
    )


def _read(path: Path) -> pl.DataFrame:
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path)
        return pl.read_csv(path, infer_schema=False)
    except (OSError, UnicodeDecodeError, pl.exceptions.PolarsError) as error:
        text = reason(error).splitlines()[0] if str(error) else "unreadable"
        raise InputError(f"cannot read the carbon series: {text}", where=str(path)) from None


def _standard(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Columns row (from 1), zone, time (UTC), value; null where a cell is unreadable or no zone is told."""
    layout = next((names for names in LAYOUTS if set(names) <= set(table.columns)), None)
    if layout is None:
        raise InputError(
            "no time and carbon intensity columns",
            where=str(path),
            value=table.columns,
            expected=" or ".join(" and ".join(names) for names in LAYOUTS),
        )
    zone = pl.col("zone").cast(pl.String) if "zone" in table.columns else pl.lit(None, pl.String)
    return table.select(
        row=pl.int_range(1, pl.len() + 1),
        zone=zone,
        time=_as_utc(table[layout[0]]),
        value=pl.col(layout[1]).cast(pl.Float64, strict=False),
    )


def _as_utc(times: pl.Series) -> pl.Series:
    if times.dtype == pl.String:
        plain = times.str.replace(r"(Z|\+00:?00)$", "").str.replace("T", " ", literal=True)
        return plain.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="ms", strict=False)
    if isinstance(times.dtype, pl.Datetime) and times.dtype.time_zone:
        times = times.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return times.cast(pl.Datetime("ms"), strict=False)


def _one_zone(table: pl.DataFrame, zone: str | None, path: Path) -> pl.DataFrame:
    """The rows of the zone that is asked for; all of them where the file tells no zones."""
    zones = table["zone"].drop_nulls().unique().sort().to_list()
    if not zones:
        return table.with_columns(zone=pl.lit(zone or path.stem))
    offered = f"one of {', '.join(zones)}"
    if zone is None and len(zones) > 1:
        raise InputError("the carbon series holds several zones", where=str(path), expected=offered)
    zone = zone or zones[0]
    wanted = {zone.casefold(), _code(zone).casefold()}
    found = next((name for name in zones if name.casefold() in wanted), None)
    if found is None:
        problem = f"the carbon series has no zone {zone!r}"
        raise InputError(problem, where=str(path), expected=offered, near=(zone, zones))
    return table.filter(pl.col("zone") == found)


def _code(zone: str) -> str:
    try:
        return region_catalog().find(zone).name
    except InputError:
        return zone


def _check_rows(table: pl.DataFrame, path: Path) -> None:
    wrong = (
        ("not a time", pl.col("time").is_null()),
        ("time is not later than that of the row before", pl.col("time") <= pl.col("time").shift()),
        (
            "carbon intensity is missing or not a number",
            pl.col("value").is_null() | ~pl.col("value").is_finite(),
        ),
        ("carbon intensity is negative", pl.col("value") < 0),
    )
    for problem, condition in wrong:
        bad = table.filter(condition).head(1)
        if len(bad):
            raise InputError(problem, where=f"{path}, row {bad['row'][0]}", value=bad["value"][0])
    if len(table) < 2:
        raise InputError("a carbon series needs at least two rows", where=str(path), value=len(table))


def _epoch_s(time: str) -> float:
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        raise InputError(
            "not a time", where="site.start", value=time, expected="such as 2024-05-01T00:00:00Z"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _iso(epoch_s: float) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
