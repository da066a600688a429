"""`kavier validate`: measured runs against simulated ones."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kavier.cli import run
from kavier.errors import InputError, reason

if TYPE_CHECKING:
    from kavier.validation.case import NamedCase
    from kavier.validation.compare import Comparison


# Options that `kavier calibrate` has too.
Measured = Annotated[
    Path | None,
    typer.Option(help="Requests of a run of yours, with ttft_s and e2e_s; the flags describe its engine."),
]
Client = Annotated[
    str | None, typer.Option(help="Where latencies were measured: http, or in the engine.  [http]")
]
SkipFirst = Annotated[int, typer.Option(min=0, help="Leave out so many of the first requests: warm-up.")]
Data = Annotated[
    Path | None, typer.Option(help="Folder that holds the measured data, instead of the case files'.")
]


def validate(
    cases: Annotated[
        list[Path] | None,
        typer.Argument(help="Case files (docs/validation.md); with --measured a scenario, or none."),
    ] = None,
    measured: Measured = None,
    level: Annotated[
        str | None, typer.Option("--level", "--timing", help="Level of step times, instead of the cases'.")
    ] = None,
    client: Client = None,
    skip_first: SkipFirst = 0,
    data: Data = None,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="What each term is worth: errors without it, cases as a whole.")
    ] = False,
    record: Annotated[
        Path | None, typer.Option(help="Also write the errors of each configuration, as Kavier ships them.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    **flags: Any,
) -> None:
    """Simulate what was measured, and say how far off the simulation is.

    \b
    Examples:
    kavier validate --measured mine.csv --model Qwen/Qwen3-8B --gpu L40S --vllm-version 0.20
    kavier validate validation/cases/vllm_h100_runs.yaml --level datasheet
    """  # noqa: D301 - \b keeps the lines as they are
    from kavier.cli.progress import show_log
    from kavier.report.validation import print_ablation, print_validation
    from kavier.validation.compare import summary

    if record and (ablate or measured):
        raise InputError("--record is of case files as they are", expected="no --ablate and no --measured")
    named = named_cases(measured, cases or [], {**flags, "timing": level}, data, client, skip_first)
    show_log()
    if ablate:
        print_ablation(_ablation(named), json=json)
        return
    compared = _compared(named)
    if record:
        _record(record, named, compared)
    print_validation([one.as_dict() for one in compared], summary(compared), json=json)


def named_cases(
    measured: Path | None,
    paths: list[Path],
    flags: dict[str, Any],  # None: not given
    data: Path | None,
    client: str | None,
    skip_first: int,
) -> list[NamedCase]:
    """Those of case files, or that of a measured table and the flags that describe its engine.

    Raises:
        InputError: Both, or neither, or whatever is wrong with them.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    if measured is None:
        return _from_files(paths, given, data, client, skip_first)
    return [_from_flags(measured, paths, given, client, skip_first)]


def _from_files(
    paths: list[Path], given: dict[str, Any], data: Path | None, client: str | None, skip_first: int
) -> list[NamedCase]:
    from kavier.validation.case import read_cases

    beside = {**given, "client": client, "skip_first": skip_first or None}
    allowed = ("timing", "calibration")
    odd = [name for name, value in beside.items() if value is not None and name not in allowed]
    if odd:
        raise InputError(
            f"--{odd[0].replace('_', '-')} describes the run of --measured FILE; a case file has its own",
            expected="--measured, or the key in the case file",
        )
    if not paths:
        raise InputError("no measured run", expected="case files, or --measured FILE")
    over = {"level": given.get("timing"), "calibration": given.get("calibration")}
    return [one for path in paths for one in read_cases(path, data, **over)]


def _from_flags(
    measured: Path, paths: list[Path], given: dict[str, Any], client: str | None, skip_first: int
) -> NamedCase:
    from kavier.scenario import parse_scenario
    from kavier.validation.validate import measured_file

    if len(paths) > 1:
        raise InputError(
            "--measured with several files", value=str(paths[1]), expected="one scenario, or none"
        )
    scenario = paths[0] if paths else None
    given = {**given, "scenario": scenario, "trace": measured}
    tree = run.scenario_tree(scenario, given)
    if client is not None or "client" not in tree:
        tree["client"] = client or "http"
    return measured_file(measured, parse_scenario(tree, where=run.origin(scenario, given)), skip_first)


def _compared(cases: list[NamedCase]) -> list[Comparison]:
    from kavier.cli.progress import progress_bar
    from kavier.validation.validate import validate_case

    compared = []
    with progress_bar("cases") as progress:
        for named in cases:
            compared.append(validate_case(named))
            progress(len(compared), len(cases))
    return compared


def _record(path: Path, named: list[NamedCase], compared: list[Comparison]) -> None:
    from kavier.metrics.validated import record_toml
    from kavier.validation.record import recorded

    text = record_toml(recorded(list(zip(named, compared, strict=True))))
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write the record: {reason(error)}", where=str(path)) from None


def _ablation(cases: list[NamedCase]) -> list[dict[str, Any]]:
    from kavier.cli.progress import progress_bar
    from kavier.validation.ablation import ablate

    with progress_bar("ablation") as progress:
        return ablate(cases, progress)


def _signature() -> inspect.Signature:
    """The command's own parameters, and of `kavier run` those that describe the engine that was measured."""
    own = inspect.signature(validate, eval_str=True).parameters
    theirs = inspect.signature(run.run, eval_str=True).parameters
    kept = {
        name for name in run.PATHS if name not in ("trace", "format", "trace_block_size", "timing", "client")
    }
    shared = [parameter for name, parameter in theirs.items() if name in {*kept, "set_"}]
    return inspect.Signature([*(p for p in own.values() if p.kind is not p.VAR_KEYWORD), *shared])


validate.__signature__ = _signature()  # type: ignore[attr-defined]
