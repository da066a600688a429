"""Typed access to the fields of one config.json: a missing or ill-typed field is an error that names it."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kavier.errors import InputError

DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True)
class Fields:
    """The non-null fields of a config.json, and the name of its model for messages."""

    values: Mapping[str, Any]
    name: str

    def int(self, *keys: str, default: builtins.int | None = None) -> builtins.int:
        """The first of `keys` that is given, as a whole number of at least 0."""
        for key in keys:
            if key in self.values:
                return self._whole(key)
        if default is not None:
            return default
        raise InputError(
            f"config.json has no {keys[0]}",
            where=self.name,
            expected="one of " + ", ".join(keys) if len(keys) > 1 else None,
            near=(keys[0], self.values),
        )

    def _whole(self, key: str) -> builtins.int:
        value = self.values[key]
        if not isinstance(value, builtins.int) or isinstance(value, bool) or value < 0:
            raise self.error(key, "a whole number is needed")
        return value

    def optional_int(self, key: str) -> builtins.int | None:
        """A whole number, or None when the field is absent or null."""
        return self._whole(key) if key in self.values else None

    def flag(self, key: str, *, default: bool) -> bool:
        """A true or false field."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "true or false is needed")
        return value

    def text(self, key: str, *, default: str | None = None) -> str:
        """A string field."""
        value = self.values.get(key, default)
        if value is None:
            raise InputError(f"config.json has no {key}", where=self.name, near=(key, self.values))
        if not isinstance(value, str):
            raise self.error(key, "a string is needed")
        return value

    def ints(self, key: str) -> tuple[builtins.int, ...]:
        """A list of whole numbers; empty when absent."""
        return tuple(self._items(key, builtins.int))

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty when absent."""
        return tuple(self._items(key, str))

    def _items(self, key: str, kind: type) -> list[Any]:
        value = self.values.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            raise self.error(key, f"a list of {kind.__name__} is needed")
        return value

    def section(self, key: str) -> Mapping[str, Any]:
        """A nested object; empty when absent."""
        value = self.values.get(key, {})
        if not isinstance(value, Mapping):
            raise self.error(key, "an object is needed")
        return value

    def dtype(self) -> str:
        """What the unquantised weights are stored in."""
        key = "dtype" if "dtype" in self.values else "torch_dtype"
        dtype = self.text(key, default="bfloat16").removeprefix("torch.")
        if dtype not in DTYPES:
            raise self.error(key, f"one of {', '.join(DTYPES)} is needed")
        return dtype

    def error(self, key: str, problem: str) -> InputError:
        """An error about the value of one field."""
        return InputError(f"{key}: {problem}", where=self.name, value=self.values.get(key))
