"""What pydantic found wrong with a scenario, as one `InputError`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import isnan
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from kavier.errors import InputError


def explain(error: ValidationError, where: str, root: type[BaseModel]) -> InputError:
    """The first thing that is wrong; a key nobody knows comes before all else, for it may be why.

    Args:
        error: What validating a tree of `root` raised.
        where: File or command line that the tree came from.
        root: The outermost section.
    """
    problems = sorted(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
    first = problems[0]
    path = _key(first) or "the scenario"
    match first["type"]:
        case "extra_forbidden":
            return _unknown_key(first["loc"], where, root)
        case "invalid_key":
            return InputError("a key that is not text", where=where, value=first["input"])
        case "missing":
            return InputError(f"missing key {path!r}", where=where)
        case "value_error":
            return InputError(f"{path}: {first['msg'].removeprefix('Value error, ')}", where=where)
    expected = " or ".join(_expected(one) for one in problems if _key(one) == _key(first))
    value, choices = first["input"], re.findall(r"'([^']+)'", expected)
    if isinstance(value, float) and isnan(value):
        expected = "a number"  # pydantic names one of the bounds, whichever
    problem = f"{path}: no value" if value is None else f"{path}: bad value"
    return InputError(problem, where=where, value=value, expected=expected, near=(str(value), choices))


def _key(problem: ErrorDetails) -> str:
    """Dotted path; what pydantic adds to it for the members of a union is no identifier."""
    return ".".join(str(part) for part in problem["loc"] if str(part).isalnum() or str(part).isidentifier())


def _expected(problem: ErrorDetails) -> str:
    if problem["type"] == "model_type":
        return "a mapping of keys"
    if problem["type"] == "path_type":
        return "a path"
    if problem["type"] == "string_pattern_mismatch":
        return "FILE.py:FUNCTION"
    if problem["type"] == "literal_error":
        return str(problem["ctx"]["expected"])
    return problem["msg"].removeprefix("Input should be ").partition(", ")[0]


def _unknown_key(loc: tuple[int | str, ...], where: str, root: type[BaseModel]) -> InputError:
    """Offer the section that has a key of this name, or the nearest key of the same section."""
    *parents, name = map(str, loc)
    section = root
    for key in parents:
        field = section.model_fields.get(key)  # none where the tree is only a part of a scenario
        section = (field and _section(field.annotation)) or section
    problem = f"unknown key {'.'.join(map(str, loc))!r}"
    elsewhere = [path for path in _paths(root) if path.rpartition(".")[2] == name]
    if elsewhere:
        return InputError(problem, where=where, expected=min(elsewhere, key=lambda path: path.count(".")))
    return InputError(problem, where=where, near=(name, section.model_fields))


def _paths(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        if inner := _section(field.annotation):
            yield from _paths(inner, f"{prefix}{name}.")


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, optional or not."""
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
