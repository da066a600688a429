"""Fits of kernels: tables for a terminal, JSON, and pictures of fit against data."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kavier.fitting.files import rounded
from kavier.fitting.groups import Group, Refused
from kavier.report.kernel_catalog import GroupRow, numbers_told, print_groups
from kavier.report.svg import Panel, Series, svg
from kavier.timing.own_kernels import version_number

MOST_DOTS = 120
"""Of one series: more only make the file large."""

HIGHEST = 2.0
"""Predicted over measured: what is above is drawn here."""


def print_fits(
    found: Mapping[str, Sequence[Group | Refused]], left_out: Sequence[str], *, json: bool
) -> None:
    """A table per GPU: every group of every version, its numbers and errors, or why there are none.

    Args:
        found: What was tried, by GPU.
        left_out: What was read and not used, in words.
        json: Print plain data instead.
    """
    if json:
        plain = {gpu: [_plain(each) for each in groups] for gpu, groups in found.items()}
        print(json_module.dumps({"fits": plain, "left_out": left_out}, indent=2))
        return
    for gpu, groups in found.items():
        print_groups(gpu, [_row(each) for each in groups])
    for note in left_out:
        print(f"left out: {note}")


def _plain(each: Group | Refused) -> dict[str, Any]:
    said = {"group": each.name, "vllm_version": each.version}
    if isinstance(each, Refused):
        return {**said, "refused": each.why}
    return {
        **said,
        "values": {name: float(rounded(value)) for name, value in each.values.items()},
        "units": dict(each.units),
        "error": each.error,
        "source": each.source,
    }


def _row(each: Group | Refused) -> GroupRow:
    if isinstance(each, Refused):
        return GroupRow(each.name, each.version, "refused", each.why)
    said = "\n".join([*each.error.split("; "), each.source])
    return GroupRow(each.name, each.version, numbers_told(each.values, each.units), said)


def pictures(own: Mapping[str, Sequence[Group]]) -> dict[str, str]:
    """GPU-KIND.svg -> picture: predicted over measured by size, a panel a group, a colour a version."""
    found = {}
    for gpu, groups in own.items():
        for kind in dict.fromkeys(group.name.partition(".")[0] for group in groups):
            panels = list(_panels([each for each in groups if each.name.startswith(f"{kind}.")]))
            found[f"{gpu}-{kind}.svg"] = svg(panels)
    return found


def _panels(groups: Sequence[Group]) -> Iterator[Panel]:
    for name in dict.fromkeys(group.name for group in groups):
        same = sorted((g for g in groups if g.name == name), key=lambda g: version_number(g.version))
        series = [_series(group) for group in same]
        yield Panel(f"{name}, fit / data", same[0].size_name, series, log_x=True)


def _series(group: Group) -> Series:
    """Points evenly thinned in the order of their sizes."""
    order = np.argsort(group.size, kind="stable")
    kept = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), MOST_DOTS)).astype(np.int64))]
    ratios = np.minimum(group.predicted_s[kept] / group.measured_s[kept], HIGHEST)
    return Series(f"vLLM {group.version}", group.size[kept].tolist(), ratios.tolist(), dots=True)
