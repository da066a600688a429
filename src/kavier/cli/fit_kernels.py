"""`kavier fit-kernels`: from kernel timings to the numbers of the step-time model."""

from __future__ import annotations

import datetime as dt
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kavier.fitting.groups import Group, Refused
    from kavier.fitting.tables import KernelTable

_LOG = logging.getLogger(__name__)


def fit_kernels(
    files: Annotated[
        list[Path],
        typer.Argument(help="Tables of kernel timings (docs/kernels.md), Parquet or CSV."),
    ],
    gpu: Annotated[str | None, typer.Option(help="This GPU alone.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for GPU/VERSION.toml; goes with kavier run --kernels.")
    ] = None,
    shared: Annotated[
        Path | None, typer.Option(help="File for the medians over GPUs, as timing/datasheet.toml.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Folder for pictures: predicted over measured, by size.")
    ] = None,
    date: Annotated[
        dt.datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Date of the numbers.  [today]")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Fit the step-time model's numbers to measured kernels, and tell their errors by regime.

    Example: kavier fit-kernels my_gemm.csv --out mine && kavier run my.yaml --kernels mine
    """
    from kavier.cli.progress import show_log
    from kavier.fitting.files import gpu_files, toml_of, write_all
    from kavier.fitting.groups import Group
    from kavier.fitting.kernels import unknown_types
    from kavier.fitting.robust import need_scipy
    from kavier.fitting.shared import shared_groups
    from kavier.fitting.tables import gpus_of, read_tables
    from kavier.report.kernels import pictures, print_fits

    show_log()
    need_scipy()
    tables = read_tables(files)
    found = _fit_all(tables, gpu)
    own = {name: [each for each in groups if isinstance(each, Group)] for name, groups in found.items()}
    day = (date.date() if date else dt.datetime.now(dt.UTC).date()).isoformat()
    texts: dict[Path, str] = {}
    if out is not None:
        texts |= gpu_files(out, own, day)
    if shared is not None:
        texts[shared] = toml_of(shared_groups(own, gpus_of(tables)), "shared", day)
    if plot is not None:
        texts |= {plot / name: text for name, text in pictures(own).items()}
    write_all(texts)
    left_out = [note for table in tables for note in table.left_out]
    print_fits(found, [*left_out, *unknown_types(tables)], json=json)


def _fit_all(tables: list[KernelTable], only: str | None) -> dict[str, list[Group | Refused]]:
    """Everything that was tried, by GPU.

    Raises:
        InputError: The tables have no such GPU, or tell no group of any.
    """
    from kavier.ecosystem.gpu import find_gpu
    from kavier.errors import InputError
    from kavier.fitting.groups import Refused
    from kavier.fitting.kernels import fit_gpu, unknown_types
    from kavier.fitting.tables import gpus_of

    gpus = gpus_of(tables)
    if only is not None:
        names = [gpu.name for gpu in gpus]
        gpus = [gpu for gpu in gpus if gpu.name == find_gpu(only).name]
        if not gpus:
            raise InputError(f"--gpu: the files have no {only}", expected=f"one of {', '.join(names)}")
    found = {}
    for gpu in gpus:
        _LOG.info("fitting %s", gpu.name)
        found[gpu.name] = list(fit_gpu(gpu, tables))
    tried = [each for groups in found.values() for each in groups]
    refused = [each for each in tried if isinstance(each, Refused)]
    if len(refused) == len(tried):
        why = [f"{each.name}: {each.why}" for each in refused] or ["no kind of them is fitted alone"]
        said = "; ".join([*why, *unknown_types(tables)])
        raise InputError(f"the files tell no group of numbers ({said})")
    return found
