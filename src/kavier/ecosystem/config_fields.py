"""Typed access to the fields of one config.json: a missing or ill-typed field is an error that names it."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from kavier.errors import InputError

DTYPES = ("bfloat16", "float16", "float32")
LARGEST = 10**12
"""No size of a model comes near it."""


@dataclass(frozen=True, slots=True)
class Fields:
    """The non-null fields of a config.json or of an object in it, and the name of its model for messages.

    Every accessor remembers the field it was asked for, so that those nobody read can be reported.
    """

    values: Mapping[str, Any]
    name: str
    prefix: str = ""
    read: set[str] = field(default_factory=set, compare=False)
    sections: dict[str, Fields] = field(default_factory=dict, compare=False)

    def int(
        self,
        *keys: str,
        default: builtins.int | None = None,
        least: builtins.int = 1,
        most: builtins.int = LARGEST,
    ) -> builtins.int:
        """A whole number from `least` to `most`, under any of the names `keys`; two names must agree."""
        found = {key: self._whole(key, least, most) for key in keys if key in self.values}
        if len(set(found.values())) > 1:
            raise self.error(next(iter(found)), f"{' and '.join(found)} say different things")
        if found:
            return next(iter(found.values()))
        if default is not None:
            return default
        raise InputError(
            f"config.json has no {self.prefix}{keys[0]}",
            where=self.name,
            expected="one of " + ", ".join(keys) if len(keys) > 1 else None,
            near=(keys[0], self.values),
        )

    def _whole(self, key: str, least: builtins.int, most: builtins.int) -> builtins.int:
        value = self._get(key)
        if not _is_whole(value) or value < least:
            raise self.error(key, f"a whole number of at least {least} is needed")
        if value > most:
            raise self.error(key, f"a whole number of at most {most} is needed")
        return builtins.int(value)

    def _get(self, key: str, default: object = None) -> Any:
        self.read.add(key)
        return self.values.get(key, default)

    def number(self, key: str, *, default: float) -> float:
        """A finite number above 0."""
        value = self._get(key, default)
        number = isinstance(value, builtins.int | float) and not isinstance(value, bool)
        if not number or not 0 < value <= LARGEST or not isfinite(value):
            raise self.error(key, f"a number above 0 and up to {LARGEST} is needed")
        return float(value)

    def optional_int(self, key: str) -> builtins.int | None:
        """A whole number of at least 1, or None when the field is absent or null."""
        return self._whole(key, 1, LARGEST) if key in self.values else None

    def flag(self, key: str, *, default: bool) -> bool:
        """A true or false field."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "true or false is needed")
        return value

    def text(self, key: str, *, default: str | None = None) -> str:
        """A string field."""
        value = self._get(key, default)
        if value is None:
            raise InputError(
                f"config.json has no {self.prefix}{key}", where=self.name, near=(key, self.values)
            )
        if not isinstance(value, str):
            raise self.error(key, "a string is needed")
        return value

    def ints(self, key: str) -> tuple[builtins.int, ...]:
        """A list of whole numbers of at least 0; empty when absent."""
        return tuple(self._items(key, lambda item: _is_whole(item) and item >= 0, "whole numbers"))

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty when absent."""
        return tuple(self._items(key, lambda item: isinstance(item, str), "strings"))

    def _items(self, key: str, fits: Callable[[Any], bool], what: str) -> list[Any]:
        value = self._get(key, [])
        if not isinstance(value, list) or not all(map(fits, value)):
            raise self.error(key, f"a list of {what} is needed")
        return value

    def section(self, key: str) -> Fields:
        """The fields of a nested object; none when absent."""
        if key in self.sections:
            return self.sections[key]
        value = self._get(key, {})
        if not isinstance(value, Mapping):
            raise self.error(key, "an object is needed")
        given = {name: item for name, item in value.items() if item is not None}
        self.sections[key] = Fields(given, self.name, f"{self.prefix}{key}.")
        return self.sections[key]

    def is_on(self, key: str) -> bool:
        """Whether the field is given and neither false, 0 nor empty."""
        return bool(self.values.get(key))

    def unread(self) -> list[str]:
        """The given fields that no accessor was asked for."""
        return [key for key in self.values if key not in self.read]

    def dtype(self) -> str:
        """What the unquantised weights are stored in."""
        self.read.update(("dtype", "torch_dtype"))
        key = "dtype" if "dtype" in self.values else "torch_dtype"
        dtype = self.text(key, default="bfloat16").removeprefix("torch.")
        if dtype not in DTYPES:
            raise self.error(key, f"one of {', '.join(DTYPES)} is needed")
        return dtype

    def error(self, key: str, problem: str) -> InputError:
        """An error about the value of one field."""
        return InputError(f"{self.prefix}{key}: {problem}", where=self.name, value=self.values.get(key))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
