"""Why Numba cannot compile a function, in one plain sentence."""

from __future__ import annotations

import re
from pathlib import Path

_PLAIN = (
    (
        r"Cannot capture the non-constant value associated with variable '(\w+)'",
        r"a function within it (such as key=lambda ...) reads \1: write a loop instead",
    ),
    (r"use of yield in a closure", "a generator expression (... for ... in ...): write a loop instead"),
    (r"opcode \(STORE_GLOBAL\)", "it changes a global variable; policies remember nothing"),
    (
        r"Untyped global name '(\w+)'.*<class 'function'>",
        r"it calls \1, a plain function: put @numba.njit before that one, and give it numbers",
    ),
    (
        r"Untyped global name '(\w+)'.*<class '(?:\w+\.)*(\w+)'>",
        r"it reads \1, a \2 outside of it: only numbers, tuples and NumPy arrays can be",
    ),
    (
        r"reflected list.*assigned to variable '(\w+)' in globals",
        r"it reads \1, a list outside of it: make it a tuple",
    ),
    (r"Unknown attribute '(\w+)' of type Module\(<module '(\w+)'", r"Numba does not know \2.\1"),
    (
        r"Function\(<built-in function getitem>\)",
        "an index may be no number, such as None at first: begin with a number",
    ),
    (
        r"Function\(<(?:built-in )?function (\w+)[ >]",
        r"Numba does not know \1 of such values: write a loop over numbers instead",
    ),
    (
        r"Unknown attribute '(\w+)' of type \w+ array",
        r"Numba does not know .\1() of replicas: write a loop over numbers instead",
    ),
    (r"Cannot unify .*", "a variable is of different types, such as None at first: begin with a number"),
    (r"decorated object is not a function", "it is an object or a method, not a plain function"),
)
"""What Numba says -> what that means."""


def plain_reason(error: Exception, function: object) -> str:
    """The line of the function and the reason; an error not known here keeps its own first line."""
    text = str(error)
    for pattern, meaning in _PLAIN:
        if found := re.search(pattern, text):
            return _line(text, function) + found.expand(meaning)
    lines = [line.strip() for line in text.splitlines()]
    telling = [line for line in lines if line and not line.startswith(("Failed in", "-", "During:"))]
    return _line(text, function) + (telling or [type(error).__name__])[0][:150]


def _line(text: str, function: object) -> str:
    """Of the function's own file, if the message tells one; it may name the file from another folder."""
    file = Path(getattr(getattr(function, "__code__", None), "co_filename", "")).name
    lines = re.findall(rf'{re.escape(file)}", line (\d+)|{re.escape(file)} \((\d+)\)', text) if file else []
    return f"line {next(filter(None, lines[-1]))}: " if lines else ""
