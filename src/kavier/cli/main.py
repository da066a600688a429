"""The `kavier` command."""

from __future__ import annotations

import sys

import typer

from kavier.cli import catalog, explain, run, workload
from kavier.errors import InputError

app = typer.Typer(
    name="kavier",
    help="Simulate LLM serving before you buy a GPU or change a flag: latency, cache, energy, carbon, cost.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: rich would take most of its 0.15 s
    pretty_exceptions_enable=False,
)
app.command("run")(run.run)
app.add_typer(workload.app, name="workload")
app.command("catalog")(catalog.catalog)
app.command("explain")(explain.explain)


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
    try:
        app()
    except InputError as error:
        print(f"kavier: error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `kavier ... | head`
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    main()
