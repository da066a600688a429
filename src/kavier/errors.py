"""The one error a user sees: what is wrong, where, what was expected, and the nearest valid name."""

from __future__ import annotations

import difflib
import re
from bisect import bisect_left
from collections.abc import Iterable


class InputError(Exception):
    """Bad input. The command line prints `str(error)` on stderr and exits with code 2.

    Args:
        problem: What is wrong, in one clause ("unknown GPU 'H1000'").
        where: File, line, row or field the problem was found in.
        expected: What would have been accepted.
        value: The offending value, when `problem` does not already show it.
        near: (what was typed, the valid names); the closest names are offered.
    """

    def __init__(
        self,
        problem: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        value: object = None,
        near: tuple[str, Iterable[str]] | None = None,
    ) -> None:
        text = f"{where}: {problem}" if where else problem
        if value is not None:
            shown = repr(value)
            text += f" (got {shown if len(shown) <= 100 else shown[:97] + '...'})"
        if expected:
            text += f"; expected {expected}"
        if near and (names := nearest(*near)):
            text += f"; did you mean {one_of(names)}?"
        super().__init__(text)


def nearest(typed: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The `count` valid names most like `typed`, whatever the case; none if nothing is close.

    Of releases (0.12) those are the ones before and behind it.
    """
    names = list(names)
    if all(map(_RELEASE.match, (typed, *names))):
        return _bordering(typed, names)
    by_key = {name.casefold(): name for name in names}
    key = typed.casefold()
    inside = [name for folded, name in by_key.items() if len(key) >= 3 and key in folded]
    close = [by_key[k] for k in difflib.get_close_matches(key, by_key, n=count, cutoff=0.5)]
    return list(dict.fromkeys(close + inside))[:count]


_RELEASE = re.compile(r"\d+\.\d+$")


def _bordering(typed: str, releases: list[str]) -> list[str]:
    """The last release before, and the first behind."""
    ordered = sorted(releases, key=_numbers)
    place = bisect_left(ordered, _numbers(typed), key=_numbers)
    return ordered[max(place - 1, 0) : place + 1]


def _numbers(release: str) -> list[int]:
    return [int(part) for part in release.split(".")]


def one_of(names: Iterable[str]) -> str:
    """As prose: 0.14, 0.20 or 0.33."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def reason(error: Exception) -> str:
    """What the operating system said, without its errno decoration."""
    return getattr(error, "strerror", None) or str(error)
