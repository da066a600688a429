"""Constants that GPUs share: the median of what was fitted to each, class by class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from kavier.ecosystem.gpu import GpuSpec
from kavier.fitting.groups import Group
from kavier.timing.own_kernels import version_number
from kavier.timing.parameters import attention_kernel, link_class, memory_class

LEFT_OUT = ("H100-SXM", "H200-SXM")
"""Not among them, so that level "datasheet" can be checked against runs on them."""

Found = dict[str, list[tuple[str, float, str]]]
"""Number -> (GPU, value, unit) of each fit."""


def shared_groups(own: Mapping[str, Iterable[Group]], gpus: Iterable[GpuSpec]) -> list[Group]:
    """Medians over GPUs: of memory by kind of memory, of attention by kernel, of links by link.

    Args:
        own: Groups fitted to each GPU, by its name; of each the newest version counts.
        gpus: These GPUs.
    """
    collected: dict[str, Found] = {}
    for gpu in gpus:
        if gpu.name in LEFT_OUT:
            continue
        for group in _newest(own.get(gpu.name, ())):
            for name, value in group.values.items():
                found = collected.setdefault(_class_of(gpu, group.name, name), {})
                found.setdefault(name, []).append((gpu.name, value, group.units[name]))
    return [_median(path, found) for path, found in sorted(collected.items())]


def _newest(groups: Iterable[Group]) -> list[Group]:
    """Of each group that of the newest version."""
    return list({g.name: g for g in sorted(groups, key=lambda g: version_number(g.version))}.values())


def _class_of(gpu: GpuSpec, group: str, name: str) -> str:
    """Where a number is kept: under its class, if its kind is told by class."""
    kind, _, rest = group.partition(".")
    if name == "memory_efficiency":
        return f"memory.{memory_class(gpu)}.{group}"
    if group == "attention.mixed":
        return f"attention.{attention_kernel(gpu)}.{rest}"
    if kind == "collectives":
        return f"collectives.{link_class(gpu)}.{rest}"
    return group


def _median(path: str, found: Found) -> Group:
    values = {name: float(np.median([value for _, value, _ in each])) for name, each in found.items()}
    units = {name: each[0][2] for name, each in found.items()}
    gpus = sorted({gpu for each in found.values() for gpu, _, _ in each})
    source = f"median of the fits of {', '.join(gpus)}"
    if len(gpus) == 1:
        return Group(path, "", values, units, source, "not known: one GPU")
    ratios = {name: max(v for _, v, _ in each) / min(v for _, v, _ in each) for name, each in found.items()}
    widest = max(ratios, key=lambda name: ratios[name])
    error = f"largest over least between GPUs: {ratios[widest]:.2f} ({widest})"
    return Group(path, "", values, units, source, error)
