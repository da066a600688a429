"""Constants that GPUs share: the median of what was fitted to each, class by class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from kavier.ecosystem.gpu import GpuSpec
from kavier.fitting.kernels import Group
from kavier.timing.parameters import attention_kernel, link_class, memory_class, version_number

LEFT_OUT = ("H100-SXM", "H200-SXM")
"""Not among them, so that level "datasheet" can be checked against runs on them."""


def shared_groups(own: Mapping[str, list[Group]], gpus: Iterable[GpuSpec]) -> list[Group]:
    """Medians over GPUs: of memory by kind of memory, of attention by kernel, of links by link.

    Args:
        own: Groups fitted to each GPU, by its name.
        gpus: These GPUs.
    """
    collected: dict[str, dict[str, list[tuple[str, float]]]] = {}
    units: dict[str, str] = {}
    for gpu in gpus:
        if gpu.name in LEFT_OUT:
            continue
        newest = {
            g.name: g.version for g in sorted(own.get(gpu.name, []), key=lambda g: version_number(g.version))
        }
        for group in own.get(gpu.name, []):
            if group.version != newest[group.name]:
                continue
            for name, value in group.values.items():
                path = _class_of(gpu, group.name, name)
                collected.setdefault(path, {}).setdefault(name, []).append((gpu.name, value))
                units[name] = group.units[name]
    return [_median(path, members, units) for path, members in sorted(collected.items())]


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


def _median(path: str, members: Mapping[str, list[tuple[str, float]]], units: Mapping[str, str]) -> Group:
    values = {name: float(np.median([v for _, v in found])) for name, found in members.items()}
    names = sorted({gpu for found in members.values() for gpu, _ in found})
    spreads = {name: max(v for _, v in found) / min(v for _, v in found) for name, found in members.items()}
    widest = max(spreads, key=lambda name: spreads[name])
    error = f"largest over least between GPUs: {spreads[widest]:.2f} ({widest})"
    nothing = np.zeros(0)
    source = f"median of the fits of {', '.join(names)}"
    return Group(path, "", values, units, source, error, nothing, nothing)
