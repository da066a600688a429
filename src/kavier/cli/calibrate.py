"""`kavier calibrate`: from a measured run to a small correction."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kavier.cli import validate as validation
from kavier.errors import InputError, reason

if TYPE_CHECKING:
    from kavier.report.sections import Section
    from kavier.validation.calibrate import Calibrated


def calibrate(
    cases: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CASE.yaml[::PATTERN]", help="Cases to fit to; with --measured a scenario, or none."
        ),
    ] = None,
    measured: validation.Measured = None,
    fit: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            help="Numbers to fit: client_s, compute_factor, prefill_attention_factor, memory_factor, "
            "kv_read_factor, host.step_s, host.row_s.",
        ),
    ] = "client_s",
    on: Annotated[str, typer.Option(metavar="METRIC,...", help="Fit to these.")] = "ttft,tpot,e2e",
    gpu_power_w: Annotated[
        float | None,
        typer.Option(min=0.0, help="Mean power of a GPU, first arrival to last answer: fits power_factor."),
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(metavar="CASE.yaml[::PATTERN]", help="Other cases to test on; may be repeated."),
    ] = None,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="Test each case with the numbers of all the others.")
    ] = False,
    one_by_one: Annotated[
        bool, typer.Option("--one-by-one", help="Fit to each case alone, and test on all the others.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="TOML file for the numbers.")] = None,
    level: Annotated[
        str | None, typer.Option("--level", "--timing", help="What is corrected: kernels or datasheet.")
    ] = None,
    client: validation.Client = None,
    skip_first: validation.SkipFirst = 0,
    data: validation.Data = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    **flags: Any,
) -> None:
    """Fit a few numbers to a measured run, refuse what it does not tell, and test them on other runs.

    \b
    Examples:
    kavier calibrate --measured mine.csv --model Qwen/Qwen3-8B --gpu L40S --out mine.toml
    kavier calibrate validation/cases/vllm_h100_runs.yaml --one-by-one
    """  # noqa: D301 - \b keeps the lines as they are
    from kavier.cli.progress import progress_bar, show_log
    from kavier.report.calibration import calibration_sections, one_by_one_section
    from kavier.validation import calibrate as fits
    from kavier.validation.calibration_file import as_plain
    from kavier.validation.case import read_cases
    from kavier.validation.identify import names_from

    flags["timing"] = level
    named = validation.named_cases(measured, list(map(Path, cases or [])), flags, data, client, skip_first)
    tests = [one for path in test or [] for one in read_cases(Path(path), data, level)]
    if one_by_one and (tests or leave_one_out or out or gpu_power_w is not None):
        raise InputError("--one-by-one makes a table, no calibration", expected="no other of these options")
    show_log()
    names, metrics = names_from(fit), _metrics(on)
    with progress_bar("simulations") as progress:
        played = fits.Played(lambda count: progress(count, count + 1))
        if one_by_one:
            many = fits.one_by_one(named, names, metrics, played)
        else:
            made = fits.calibrate(
                named,
                names,
                metrics,
                tests,
                leave_one_out=leave_one_out,
                gpu_power_w=gpu_power_w,
                played=played,
            )
    if one_by_one:
        plain = [as_plain(one) for one in many]
        _show([one_by_one_section(plain)], {"calibrations": plain}, json=json)
        return
    if out is not None:
        _write(out, made)
    _show(calibration_sections(as_plain(made)), as_plain(made), json=json)


def _metrics(text: str) -> list[str]:
    known = {"ttft": "ttft_s", "tpot": "tpot_s", "e2e": "e2e_s"}
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names or (odd := [name for name in names if name not in known]):
        raise InputError("--on", value=odd[0] if names else text, expected="ttft, tpot or e2e")
    return [known[name] for name in names]


def _write(path: Path, made: Calibrated) -> None:
    import datetime as dt

    from kavier.validation.calibration_file import calibration_toml

    text = calibration_toml(made, dt.datetime.now(dt.UTC).date().isoformat())
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write it: {reason(error)}", where=str(path)) from None


def _show(sections: Iterable[Section], plain: dict[str, Any], *, json: bool) -> None:
    if json:
        import json as json_module

        typer.echo(json_module.dumps(plain, indent=2))
        return
    from kavier.report.sections import show_sections

    show_sections(list(sections))


def _signature() -> inspect.Signature:
    """The command's own parameters, and those of `kavier validate` that describe the engine."""
    own = inspect.signature(calibrate, eval_str=True).parameters
    theirs = inspect.signature(validation.validate).parameters
    shared = [p for name, p in theirs.items() if name not in {*own, "ablate", "calibration"}]
    return inspect.Signature([*(p for p in own.values() if p.kind is not p.VAR_KEYWORD), *shared])


calibrate.__signature__ = _signature()  # type: ignore[attr-defined]
