"""The one error a user sees: what is wrong, where, what was expected, and the nearest valid name."""

from __future__ import annotations

import difflib
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
            text += f"; did you mean {' or '.join(names)}?"
        super().__init__(text)


def nearest(typed: str, names: Iterable[str], count: int = 3) -> list[str]:
    """The `count` valid names most like `typed`, whatever the case; none if nothing is close."""
    by_key = {name.casefold(): name for name in names}
    key = typed.casefold()
    inside = [name for folded, name in by_key.items() if len(key) >= 3 and key in folded]
    close = [by_key[k] for k in difflib.get_close_matches(key, by_key, n=count, cutoff=0.5)]
    return list(dict.fromkeys(close + inside))[:count]


def reason(error: Exception) -> str:
    """What the operating system said, without its errno decoration."""
    return getattr(error, "strerror", None) or str(error)
