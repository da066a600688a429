"""Compiled functions behind one C function, loaded from a file that the first run leaves.

Numba would take half a second to import and to load its own cache, more than a small simulation. So what it
compiles is kept as an object file, which LLVM links into the process in a few milliseconds, and Numba is not
even imported. The name of the file tells everything that it depends on: the text of the sources, the versions
of Numba and LLVM, and the processor. No edit of a source goes unnoticed, in whichever file.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import llvmlite.binding as llvm
import numpy as np
from numpy.typing import NDArray

_LOG = logging.getLogger(__name__)

Function = Callable[..., int]


class Library:
    """Functions that Numba compiles together.

    Args:
        module: Imported when there is something to compile; has `dispatch(operation, *arguments)`, a Python
            function of 64-bit integers (numbers and addresses) that returns one. It may not raise.
        arguments: How many, the operation included.
        sources: Python files and folders that the compiled code depends on.
        label: What is compiled, and how long that takes, for people.
    """

    def __init__(self, module: str, arguments: int, sources: tuple[Path, ...], label: str) -> None:
        self._module = module
        self._arguments = arguments
        self._sources = sources
        self._label = label
        self._function: Function | None = None
        self._lock = threading.Lock()

    def call(self, *arguments: int) -> int:
        """Run `dispatch`; other Python threads run meanwhile."""
        if self._function is None:
            self.load()
        assert self._function is not None
        padding = self._arguments - len(arguments)
        return self._function(*arguments, *(0,) * padding)

    def load(self) -> None:
        """Make the functions callable, compiling them if this machine has not yet."""
        with self._lock:
            if self._function is None:
                checked = os.environ.get("NUMBA_BOUNDSCHECK", "0") != "0"
                self._function = self._checked() if checked else self._linked()

    def _checked(self) -> Function:
        """In this process only, with index errors as Python exceptions."""
        from numba import njit

        _LOG.info("compiling %s with checks", self._label)
        return cast("Function", njit(error_model="numpy")(self._dispatch()))

    def _linked(self) -> Function:
        name = f"{self._module.rpartition('.')[0]}-{self._key()}.o"
        for folder in cache_folders():
            if (data := _read(folder / name)) is not None:
                return _link(data, self._arguments)
        _LOG.info("compiling %s, once on this machine", self._label)
        data = _compile(self._dispatch, self._arguments)
        if not any(_keep(folder / name, data) for folder in cache_folders()):
            _LOG.warning("nowhere to keep what was compiled: set KAVIER_CACHE_DIR to a folder to write in")
        return _link(data, self._arguments)

    def _dispatch(self) -> Callable[..., int]:
        return cast("Callable[..., int]", importlib.import_module(self._module).dispatch)

    def _key(self) -> str:
        """Of everything that the machine code depends on."""
        digest = hashlib.blake2b(digest_size=12)
        files = [f for s in self._sources for f in (sorted(s.glob("*.py")) if s.is_dir() else [s])]
        for part in (*(file.read_bytes() for file in (*files, Path(__file__))), *_platform()):
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()


def address(array: NDArray[np.generic]) -> int:
    """Where an array's data begins. The caller keeps the array."""
    assert array.flags.c_contiguous, "compiled code reads contiguous arrays"
    return array.ctypes.data


def cache_folders() -> list[Path]:
    """Where object files are looked for, in this order, and kept: the first that can be written."""
    given = os.environ.get("KAVIER_CACHE_DIR")
    if given:
        return [Path(given)]
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - never raises
    return [Path(home) / "kavier", Path(__file__).parent / "__pycache__"]


def _platform() -> tuple[bytes, ...]:
    names = (version("numba"), version("llvmlite"), llvm.get_host_cpu_name(), _features())
    return tuple(name.encode() for name in names)


def _features() -> str:
    return str(llvm.get_host_cpu_features().flatten())


def _compile(dispatch: Callable[[], Callable[..., int]], arguments: int) -> bytes:
    """An object file that exports what `dispatch` imports, with Numba's calling convention."""
    from numba import njit, types

    signature = (types.int64,) * arguments
    options: dict[str, Any] = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    with _whole_program():
        function: Any = njit(**options)(dispatch())
        function.compile(signature)
        text = function.inspect_llvm(signature)
    name = function.overloads[signature].fndesc.llvm_func_name
    module = llvm.parse_assembly(text.replace(name, "dispatch"))
    for part in module.functions:
        if part.name != "dispatch" and not part.is_declaration:
            part.linkage = "internal"
    machine = _machine(opt=3)
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    return cast("bytes", machine.emit_object(module))


@contextmanager
def _whole_program() -> Iterator[None]:
    """Leave it to us to optimise and to emit machine code.

    Numba does so for each function with everything that it calls, and again for its callers: 12 s
    of 20.
    """
    from numba.core import codegen
    from numba.core.compiler_lock import global_compiler_lock

    skipped = [
        (codegen.CPUCodeLibrary, "_optimize_final_module"),
        (codegen.JITCodeLibrary, "_finalize_specific"),
        (codegen.JITCPUCodegen, "_add_module"),
        (codegen.JITCPUCodegen, "set_env"),
    ]
    kept = [(owner, name, getattr(owner, name)) for owner, name in skipped]
    with global_compiler_lock:  # other threads do not compile meanwhile
        try:
            for owner, name in skipped:
                setattr(owner, name, lambda *_arguments: None)
            yield
        finally:
            for owner, name, method in kept:
                setattr(owner, name, method)


def _machine(**options: Any) -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=_features(), codemodel="jitdefault", jit=True, **options
    )


def _read(path: Path) -> bytes | None:
    """What `_keep` has written; None if it is not there, not for us to read, or damaged."""
    try:
        text = path.read_bytes()
    except OSError:
        return None
    data = text[DIGEST_BYTES:]
    if _digest(data) != text[:DIGEST_BYTES]:
        _LOG.warning("%s is damaged", path)
        return None
    return data


def _keep(path: Path, data: bytes) -> bool:
    """Write a whole file or none, for everybody to read: a digest, then the data."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            file = Path(folder) / path.name
            file.write_bytes(_digest(data) + data)
            file.replace(path)
    except OSError:
        return False
    return True


DIGEST_BYTES = 16


def _digest(data: bytes) -> bytes:
    """Linked as it is, a damaged object file would crash, or compute nonsense."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


_ENGINES: list[Any] = []
"""Hold the memory of the linked code."""


def _link(data: bytes, arguments: int) -> Function:
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(data))
    engine.finalize_object()
    _ENGINES.append(engine)
    integers = (ctypes.c_int64,) * arguments
    prototype = ctypes.CFUNCTYPE(
        ctypes.c_int32, ctypes.POINTER(ctypes.c_int64), ctypes.POINTER(ctypes.c_void_p), *integers
    )
    native = prototype(engine.get_function_address("dispatch"))

    def call(*values: int) -> int:
        result, exception = ctypes.c_int64(), ctypes.c_void_p()
        status = native(ctypes.byref(result), ctypes.byref(exception), *values)
        assert status == 0, "compiled code does not raise"
        return result.value

    return call
