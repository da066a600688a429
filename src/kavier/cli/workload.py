"""`kavier workload`: look at traces, convert them, make synthetic ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kavier.cli.vllm_command import VllmCommand

app = typer.Typer(
    help="Look at a trace, convert it, or make a synthetic one.", no_args_is_help=True, rich_markup_mode=None
)

_Format = Annotated[str, typer.Option(help="Trace format; auto: found by its header.")]


@app.command()
def info(
    trace: Annotated[Path, typer.Argument(help="Trace in any known format.")],
    format: _Format = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Counts, rate, burstiness, lengths, sessions, and the hit ratio of an infinite prefix cache."""
    from kavier.report.workload import print_info
    from kavier.workload.read import read_trace

    print_info(read_trace(trace, format), json=json)


@app.command()
def convert(
    trace: Annotated[Path, typer.Argument(help="Trace in any known format.")],
    out: Annotated[Path, typer.Argument(help="Native trace to write: .parquet or .jsonl.")],
    format: _Format = "auto",
) -> None:
    """Write a trace in Kavier's native format."""
    from kavier.report.workload import print_written
    from kavier.workload.formats.native import write_trace
    from kavier.workload.read import read_trace

    workload = read_trace(trace, format)
    write_trace(workload, out)
    print_written(workload, out)


@app.command(cls=VllmCommand)
def synth(
    out: Annotated[Path, typer.Argument(help="Native trace to write: .parquet or .jsonl.")],
    preset: Annotated[
        str | None, typer.Option(help="azure-conversation, azure-code or mooncake-conversation.")
    ] = None,
    spec: Annotated[Path | None, typer.Option(help="YAML file with the keys of workload.synthetic.")] = None,
    num_prompts: Annotated[int | None, typer.Option(help="Requests.")] = None,
    duration_s: Annotated[float | None, typer.Option(help="Seconds of arrivals.")] = None,
    request_rate: Annotated[float | None, typer.Option(help="Requests per second.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
) -> None:
    """Generate a synthetic trace from a preset, or from a specification."""
    from kavier.report.workload import print_written
    from kavier.workload.formats.native import write_trace
    from kavier.workload.synthetic import generate, read_spec

    overrides = {
        "preset": preset,
        "num_prompts": num_prompts,
        "duration_s": duration_s,
        "request_rate": request_rate,
    }
    workload = generate(read_spec(spec, overrides), seed)
    write_trace(workload, out)
    print_written(workload, out)
