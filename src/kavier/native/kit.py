"""What compiled code is written with: decorators, and records at addresses. Imports Numba.

Arrays are passed as addresses and sizes in records, so that a function takes a pointer or two and nothing is
reference-counted. `at` looks at one record of an array. With NUMBA_BOUNDSCHECK=1 it checks the index.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import from_dtype, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

Record: TypeAlias = Any
"""A NumPy record; Numba knows its fields."""

Integer: TypeAlias = Any
"""An integer, Python's or NumPy's; compiled, all are 64 bits."""

Function = TypeVar("Function", bound=Callable[..., Any])

INT8 = np.dtype([("value", "u1")])
INT32 = np.dtype([("value", "i4")])
INT64 = np.dtype([("value", "i8")])
FLOAT64 = np.dtype([("value", "f8")])


class Decorator(Protocol):
    """Of a function."""

    def __call__(self, function: Function, /) -> Function:
        """The same, compiled."""
        ...


_CHECKED = os.environ.get("NUMBA_BOUNDSCHECK", "0") != "0"
_PLAIN = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def decorators(records: Mapping[str, np.dtype[Any]]) -> tuple[Decorator, Decorator]:
    """(compiled, inlined): compile a function into its callers, or also paste it into them.

    Types are those of the annotations: Integer, float, or a name of `records`. So each function is compiled
    once, whatever it is called with. Where one is Any, it is compiled for each type that it is called with.
    """
    known = {"Integer": types.int64, "float": types.float64}
    known |= {name: from_dtype(dtype) for name, dtype in records.items()}

    def decorator(**options: Any) -> Decorator:
        def decorate(function: Function) -> Function:
            names = [name for key, name in function.__annotations__.items() if key != "return"]
            signature = None if "Any" in names else tuple(known[name] for name in names)
            decorate_it = cast("Callable[..., Any]", njit)(signature, **options, **_PLAIN)
            return cast("Function", decorate_it(function))

        return decorate

    return decorator(), decorator(forceinline=True)


def _intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Numba's decorator. What it decorates is called without the context."""
    return cast("Callable[..., Any]", intrinsic(function))


@_intrinsic
def at(_context: Any, _base: Any, _size: Any, _index: Any, dtype: Any) -> Any:
    """Record of this index of an array of so many records that begins at an address."""
    record = dtype.dtype

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        address, length, number, _ = arguments
        if _CHECKED:
            cgutils.do_boundscheck(context, builder, number, length)
        offset = builder.mul(number, ir.Constant(number.type, record.size))
        return builder.inttoptr(builder.add(address, offset), context.get_value_type(record))

    return record(types.int64, types.int64, types.int64, dtype), generate


@_intrinsic
def address_of(_context: Any, record: Any) -> Any:
    """Where a record is."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ptrtoint(arguments[0], context.get_value_type(types.int64))

    return types.int64(record), generate


@_intrinsic
def copy(_context: Any, target: Any, source: Any) -> Any:
    """Overwrite a record with another of its kind."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        to, source = arguments
        cgutils.raw_memcpy(builder, to, source, ir.Constant(ir.IntType(64), target.size), 1)

    return types.none(target, source), generate


@_intrinsic
def bits_of(_context: Any, _number: Any) -> Any:
    """The 64 bits of a double, as an integer."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.int64))

    return types.int64(types.float64), generate


@_intrinsic
def double_of(_context: Any, _bits: Any) -> Any:
    """The double of 64 bits."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float64))

    return types.float64(types.int64), generate


@_intrinsic
def trailing_zeros(_context: Any, _word: Any) -> Any:
    """Zero bits below the lowest one; 64 for zero."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), generate


@_intrinsic
def prefetch(_context: Any, _address: Any) -> Any:
    """Tell the processor that memory at an address will be written soon."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        number, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        place = builder.inttoptr(arguments[0], pointer)
        builder.call(function, [place, *(ir.Constant(number, n) for n in (1, 3, 1))])  # write, keep, data

    return types.none(types.int64), generate


def _chooser(comparison: str) -> Any:
    """An intrinsic that takes one of two integers. Numba's own min and max take long to compile."""

    @_intrinsic
    def choose(_context: Any, _first: Any, _second: Any) -> Any:
        def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.select(builder.icmp_signed(comparison, *arguments), *arguments)

        return types.int64(types.int64, types.int64), generate

    return choose


smaller = _chooser("<")
larger = _chooser(">")


def _caller(result: Any) -> Any:
    """An intrinsic that calls the C function at an address with two integers."""

    @_intrinsic
    def call(_context: Any, _function: Any, _first: Any, _second: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            integer = context.get_value_type(types.int64)
            kind = ir.FunctionType(context.get_value_type(result), [integer, integer])
            function = builder.inttoptr(arguments[0], kind.as_pointer())
            return builder.call(function, arguments[1:])

        return result(types.int64, types.int64, types.int64), generate

    return call


call_integer = _caller(types.int64)
call_double = _caller(types.float64)
