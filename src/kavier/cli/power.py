"""`kavier fit-power` and `kavier validate-power`: power models against measured serving runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kavier.report.sections import Section

_File = Annotated[
    Path,
    typer.Argument(
        help="llm_energy_h100.csv of ML.ENERGY, with output_length_histograms.json and vllm_configs.json "
        "beside it."
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


def fit_power(
    file: _File,
    toml: Annotated[
        Path | None, typer.Option(help="File for the constants, as src/kavier/metrics/power.toml.")
    ] = None,
    svg: Annotated[Path | None, typer.Option(help="File for a picture: predicted against measured.")] = None,
    json: _Json = False,
) -> None:
    """Fit the power models to measured runs, and tell their errors on families of models left out.

    Example: kavier fit-power ../shared/data/ml_energy/llm_energy_h100.csv --svg power.svg
    """
    import datetime as dt

    from kavier.validation import power_page
    from kavier.validation.ml_energy import read_measured
    from kavier.validation.power_constants import constants_toml
    from kavier.validation.power_fit import fit_power as fit
    from kavier.validation.power_work import work_of

    measured = read_measured(file)
    work = work_of(measured.points)
    fits = fit(work)
    if toml is not None:
        today = dt.datetime.now(dt.UTC).date().isoformat()
        _write(toml, constants_toml(fits, work, file.name, today))
    if svg is not None:
        _write(svg, power_page.picture(fits[0], work))
    _show(power_page.fit_sections(fits, work, measured), power_page.fit_numbers(fits, work), json=json)


def validate_power(
    file: _File,
    timing: Annotated[
        str, typer.Option("--level", "--timing", help="What prices a step, as `timing` of a scenario.")
    ] = "auto",
    power: Annotated[str, typer.Option(help="saturating, additive or constant.")] = "saturating",
    splitwise: Annotated[
        Path | None, typer.Option(help="step_times.csv of Splitwise: A100s, as a check.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Markdown file to write.")] = None,
    json: _Json = False,
) -> None:
    """Power, and energy a token with simulated time, of measured runs.

    Example: kavier validate-power ../shared/data/ml_energy/llm_energy_h100.csv
    """
    from kavier.cli.progress import progress_bar, show_log
    from kavier.report.sections import Section, markdown
    from kavier.validation import power_page
    from kavier.validation.ml_energy import read_measured
    from kavier.validation.power_fit import SHIPPED
    from kavier.validation.power_fit import fit_power as fit
    from kavier.validation.power_runs import DENSE_BF16, play_points
    from kavier.validation.power_work import work_of
    from kavier.validation.splitwise import read_static_runs

    show_log()
    measured = read_measured(file)
    work = work_of(measured.points)
    runs = read_static_runs(splitwise, SHIPPED) if splitwise else []
    fits, played = fit(work), []
    total = sum(point.model in DENSE_BF16 for point in measured.points)
    with progress_bar("simulating") as progress:
        for one in play_points(measured, timing, power):
            played.append(one)
            progress(len(played), total)
    flags = [f"--level {timing}", f"--power {power}", *([f"--splitwise {splitwise}"] if splitwise else ())]
    sections = [
        Section("How to repeat it", f"`kavier validate-power {file} {' '.join(flags)}`"),
        *power_page.played_sections(played, timing, power),
        *power_page.fit_sections(fits, work, measured),
        *([power_page.static_section(runs)] if runs else ()),
        power_page.LIMITS,
    ]
    numbers = {
        "fit": power_page.fit_numbers(fits, work),
        "simulated": {
            "timing": timing,
            "errors": power_page.grouped_numbers(power_page.played_errors(played)),
        },
        "a100": power_page.grouped_numbers(power_page.static_errors(runs)) if runs else None,
    }
    if out is not None:
        _write(out, markdown("Validation of power", sections))
    _show(sections, numbers, json=json)


def _show(sections: list[Section], numbers: Mapping[str, object], *, json: bool) -> None:
    if json:
        import json as json_module

        typer.echo(json_module.dumps(numbers, indent=2))
        return
    from kavier.report.sections import show_sections

    show_sections(sections)


def _write(path: Path, text: str) -> None:
    """Write a file.

    Raises:
        InputError: The system does not let us.
    """
    from kavier.errors import InputError, reason

    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write it: {reason(error)}", where=str(path)) from None
