"""`kavier catalog`: the GPUs, models, regions, prices and kernels Kavier knows, with sources."""

from __future__ import annotations

from typing import Annotated

import typer


def catalog(
    kind: Annotated[str, typer.Argument(help="gpus, models, regions, prices or kernels.")],
    name: Annotated[str | None, typer.Argument(help="One entry, with every value's source and date.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List what Kavier knows, or one entry with its sources."""
    from kavier.report.catalog import print_catalog, print_entry

    if name is None:
        print_catalog(kind, json=json)
    else:
        print_entry(kind, name, json=json)
