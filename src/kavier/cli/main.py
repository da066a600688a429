"""The `kavier` command."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from io import TextIOWrapper
from typing import NoReturn

import typer

from kavier.cli import (
    calibrate,
    catalog,
    conformance,
    explain,
    fit_kernels,
    power,
    run,
    validate,
    workload,
)
from kavier.cli.vllm_command import VllmCommand
from kavier.errors import InputError, one_of

app = typer.Typer(
    name="kavier",
    help="Simulate LLM serving before you buy a GPU or change a flag: latency, cache, energy, carbon, cost.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: rich would take most of its 0.15 s
    pretty_exceptions_enable=False,
)
app.command("run", cls=VllmCommand)(run.run)
app.add_typer(workload.app, name="workload")
app.command("catalog")(catalog.catalog)
app.command("explain")(explain.explain)
app.command("validate", cls=VllmCommand)(validate.validate)
app.command("calibrate", cls=VllmCommand)(calibrate.calibrate)
app.command("conformance", cls=VllmCommand)(conformance.conformance)
app.command("fit-kernels")(fit_kernels.fit_kernels)
app.command("fit-power")(power.fit_power)
app.command("validate-power")(power.validate_power)


def _version(show: bool) -> None:
    if show:
        from kavier import __version__

        typer.echo(f"kavier {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Nothing here: the options of all commands."""


def main() -> None:
    """Run the command line; bad input ends with one line on stderr and exit code 2."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a page with bars, or a path that is no text, in ASCII
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = app(standalone_mode=False)  # 130 after Ctrl-C
        if sys.stdout:  # None when it was closed before the start
            sys.stdout.flush()
    except InputError as error:
        _fail(str(error))
    except typer.TyperException as error:
        _fail(_misuse(error))
    except ValueError as error:
        _fail(_explained(error))
    except MemoryError as error:
        _fail(f"out of memory: {error}")
    except BrokenPipeError:  # `kavier ... | head`
        _drop_output()
        status = 0
    except OSError as error:  # stdout on a full disk
        _drop_output()
        _fail(str(error))
    sys.exit(status)


def _terminate(number: int, _: object) -> NoReturn:
    """Tidy up first: by itself SIGTERM ends a process on the spot, and what it was writing would stay."""
    sys.exit(128 + number)


def _drop_output() -> None:
    """Keep Python from trying, at its end, to write once more what could not be written."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(text: str) -> NoReturn:
    print("kavier: error:", " ".join(text.splitlines()), file=sys.stderr)
    sys.exit(2)


def _explained(error: ValueError) -> str:
    """What pydantic refused, wherever that was; anything else is a fault of Kavier's, and passes."""
    pydantic = sys.modules.get("pydantic")
    if pydantic is None or not isinstance(error, pydantic.ValidationError):
        raise error
    from kavier.scenario import Scenario
    from kavier.scenario_errors import explain

    return str(explain(error, "scenario", Scenario))


def _misuse(error: typer.TyperException) -> str:
    """What typer says of unknown commands and flags, and of values it cannot parse."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), file=sys.stderr)
        sys.exit(2)
    names = getattr(error, "possibilities", None)
    text = error.message if names else error.format_message()
    text += f"; did you mean {one_of(names)}?" if names else ""
    command = getattr(getattr(error, "ctx", None), "command_path", "kavier")
    return f"{text} (see `{command} --help`)"


if __name__ == "__main__":
    main()
