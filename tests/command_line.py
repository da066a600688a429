"""The real command line, in this process or in one of its own."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from kavier.cli.main import main

LLAMA = ("--model", "meta-llama/Llama-3.1-8B", "--gpu", "H100")
"""A model and a GPU that go together."""

THREE = "arrival_s,input_tokens,output_tokens\n0,100,10\n1,200,20\n2,300,5\n"
"""A trace of three requests, in the columns of `azure`."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line on stderr, once it is certain that there is nothing else."""
        assert self.status == 2, self
        assert self.out == ""
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("kavier: error: ")
        assert "Traceback" not in self.err
        return self.err.removeprefix("kavier: error: ").rstrip("\n")


class Terminal(io.StringIO):
    """Says that it is one."""

    def isatty(self) -> bool:
        return True


def kavier(*arguments: str | Path, stderr: type[io.StringIO] = io.StringIO) -> Ended:
    """Call what the console script calls; anything but SystemExit is a bug and passes through."""
    out, err = io.StringIO(), stderr()
    argv = ["kavier", *map(str, arguments)]
    hook = patch.object(sys, "excepthook", sys.excepthook)  # typer sets its own
    script = patch.object(sys.modules["__main__"], "__package__", None)  # not `python -m pytest`
    with patch.object(sys, "argv", argv), hook, script, redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as exit_:
            return Ended(int(exit_.code or 0), out.getvalue(), err.getvalue())
    raise AssertionError("main() did not exit")


def command(*arguments: str | Path) -> list[str]:
    """The command as its own process."""
    return [sys.executable, "-m", "kavier", *map(str, arguments)]


def run_process(arguments: Sequence[str | Path], cwd: Path, **options: object) -> Ended:
    """Run it as its own process."""
    done = subprocess.run(
        command(*arguments), cwd=cwd, capture_output=True, text=True, check=False, **options
    )  # type: ignore[call-overload]
    return Ended(done.returncode, done.stdout, done.stderr)
