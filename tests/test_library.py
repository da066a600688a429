"""Machine code in a file: compiled once, found again, and compiled anew when a source changes."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kavier.native import library
from kavier.native.library import Library, cache_folders

SOURCE = """
def dispatch(operation, value, more):
    if operation == 1:
        return value + 1
    return value * 2 + more
"""


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The folder of object files; not there yet."""
    monkeypatch.setenv("KAVIER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("NUMBA_BOUNDSCHECK", raising=False)
    return Path(tmp_path) / "cache"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Of the package `tiny`, whose module `work` has a dispatch."""
    folder: Path = tmp_path / "tiny"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "work.py").write_text(SOURCE)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    return folder


@pytest.fixture
def compiled(monkeypatch) -> list[int]:
    """One entry for each time that something is compiled."""
    times: list[int] = []
    plain = library._compile

    def counted(dispatch: Callable[[], Callable[..., int]], arguments: int) -> bytes:
        times.append(arguments)
        return plain(dispatch, arguments)

    monkeypatch.setattr(library, "_compile", counted)
    return times


def forget() -> None:
    """A new process would not have imported it."""
    for name in ("tiny", "tiny.work"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()


def tiny(*sources: Path) -> Library:
    forget()
    return Library("tiny.work", 3, sources, "a tiny library")


def must_not_compile(*_arguments: object) -> bytes:
    raise AssertionError("it compiles")


def test_it_compiles_once_and_the_next_loads_the_file(cache, folder, compiled, monkeypatch):
    first = tiny(folder)
    assert [first.call(1, 41), first.call(2, 20, 2), first.call(1, -1)] == [42, 42, 0]
    assert compiled == [3]
    assert [path.suffix for path in cache.iterdir()] == [".o"]
    monkeypatch.setattr(library, "_compile", must_not_compile)
    second = tiny(folder)
    assert [second.call(1, 41), second.call(2, 20, 2)] == [42, 42]
    assert "tiny.work" not in sys.modules  # nor is what would be compiled imported


def test_integers_have_64_bits_and_those_not_given_are_zero(cache, folder):
    assert tiny(folder).call(2, 2**61) == 2**62
    assert tiny(folder).call(2, -(2**61), 5) == -(2**62) + 5


def test_an_edited_source_is_compiled_anew(cache, folder, compiled):
    assert tiny(folder).call(1, 41) == 42
    (folder / "work.py").write_text(SOURCE.replace("value + 1", "value + 2"))
    assert tiny(folder).call(1, 41) == 43
    (folder / "work.py").write_text(SOURCE)
    assert tiny(folder).call(1, 41) == 42  # the first file is still there
    assert compiled == [3, 3]


def test_any_change_in_any_source_changes_the_key(folder, tmp_path):
    other = tmp_path / "other.py"
    other.write_text("x = 1\n")
    (tmp_path / "unrelated.py").write_text("")
    sources = (folder, other)
    keys = [tiny(*sources)._key()]
    for change in (
        lambda: other.write_text("x = 2\n"),
        lambda: (folder / "__init__.py").write_text("# changed\n"),
        lambda: (folder / "more.py").write_text(""),
        lambda: (folder / "more.py").write_text("\n"),
    ):
        change()
        keys.append(tiny(*sources)._key())
    assert len(set(keys)) == len(keys)
    (tmp_path / "unrelated.py").write_text("changed")
    assert tiny(*sources)._key() == keys[-1]


def test_another_processor_or_compiler_has_another_key(folder, monkeypatch):
    keys = {tiny(folder)._key()}
    for index, known in enumerate(library._platform()):
        other = [*library._platform()]
        other[index] = known + b"x"
        with monkeypatch.context() as patch:
            patch.setattr(library, "_platform", lambda other=other: tuple(other))
            keys.add(tiny(folder)._key())
    assert len(keys) == 1 + len(library._platform())


def test_without_a_folder_to_write_in_it_warns_and_works(folder, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KAVIER_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.delenv("NUMBA_BOUNDSCHECK", raising=False)
    assert tiny(folder).call(1, 41) == 42
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "KAVIER_CACHE_DIR" in warnings[0]


def test_the_first_folder_that_can_be_written_keeps_it_and_all_are_searched(
    cache, folder, tmp_path, monkeypatch, caplog
):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(library, "cache_folders", lambda: [tmp_path / "file", tmp_path / "second"])
    assert tiny(folder).call(1, 41) == 42
    assert len(list((tmp_path / "second").iterdir())) == 1
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]
    monkeypatch.setattr(library, "_compile", must_not_compile)
    assert tiny(folder).call(1, 41) == 42


def test_a_named_folder_is_the_only_one_and_else_it_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("KAVIER_CACHE_DIR", str(tmp_path))
    assert cache_folders() == [tmp_path]
    monkeypatch.delenv("KAVIER_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folders()[0] == tmp_path / "kavier"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folders()[0] == Path.home() / ".cache" / "kavier"


def test_threads_that_come_at_once_compile_once(cache, folder, compiled):
    shared = tiny(folder)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda value: shared.call(1, value), range(64)))
    assert found == list(range(1, 65))
    assert compiled == [3]


def test_with_bounds_checks_nothing_is_loaded_or_kept(cache, folder, monkeypatch):
    monkeypatch.setattr(library, "_compile", must_not_compile)
    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "1")
    assert tiny(folder).call(1, 41) == 42
    assert not cache.exists()


def full(self: Path, target: object) -> None:
    raise OSError(28, "No space left on device", str(self))


def test_a_disk_that_is_full_is_no_error(cache, folder, monkeypatch):
    monkeypatch.setattr(Path, "replace", full)
    assert tiny(folder).call(1, 41) == 42
    assert not list(cache.glob("*.o"))


def test_what_cannot_be_kept_leaves_nothing_behind(cache, folder, monkeypatch):
    monkeypatch.setattr(Path, "replace", full)
    tiny(folder).call(1, 41)
    assert list(cache.iterdir()) == []


CALL = """
import sys
from pathlib import Path
from kavier.native.library import Library
sys.path.insert(0, sys.argv[1])
print(Library("tiny.work", 3, (Path(sys.argv[1]) / "tiny",), "a tiny library").call(1, 41))
"""


def in_a_process_of_its_own(folder: Path) -> tuple[int, str]:
    command = [sys.executable, "-B", "-c", CALL, str(folder.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_another_process_finds_what_this_one_left(cache, folder, compiled):
    tiny(folder).call(1, 41)
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert in_a_process_of_its_own(folder) == (0, "42\n")
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == before


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99], ids=["empty", "10 bytes", "half", "all but 1%"])
def test_a_damaged_file_is_compiled_anew(cache, folder, kept):
    tiny(folder).call(1, 41)
    (path,) = cache.iterdir()
    data = path.read_bytes()
    path.write_bytes(data[: kept if kept >= 1 else int(kept * len(data))])
    assert in_a_process_of_its_own(folder) == (0, "42\n")
