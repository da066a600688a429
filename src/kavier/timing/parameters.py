"""The numbers of the step-time model for one GPU: its own where its kernels were measured, else shared ones.

`datasheet.toml` holds constants that GPUs share, by class of memory, attention kernel and link; a file of
`kernels/` holds what was fitted to measured kernels of one GPU, under the same names. Both are written by
`kavier fit-kernels`. A calibration corrects them by what was fitted to a measured run: `calibration.py`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from kavier.ecosystem.gpu import GpuSpec
from kavier.errors import InputError
from kavier.timing.calibration import BaseLevel, Calibration, calibrated_gpus, shipped_calibration
from kavier.timing.constants import entries
from kavier.timing.own_kernels import read_folder, version_number

Level = BaseLevel | Literal["calibrated"]

HBM3_BANDWIDTH = 3e12
GDDR6_BANDWIDTH = 0.9e12


@dataclass(frozen=True, slots=True)
class Parameters:
    """Numbers by dotted name (`gemm.bf16.launch_s`).

    Attributes:
        level: "kernels" when some were fitted to measured kernels of this GPU, "calibrated" when some were
            to a measured run.
        measured: Groups (`gemm.bf16`) fitted to kernels.
        calibration: Of level "calibrated": the run's numbers; `values` has them already.
        own: Those of the measured groups that come from a folder of the user's.
        folder: That folder.
    """

    level: Level
    values: Mapping[str, float] = field(repr=False)
    measured: frozenset[str] = frozenset()
    calibration: Calibration | None = None
    own: frozenset[str] = frozenset()
    folder: Path | None = None

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def of(self, group: str) -> dict[str, float]:
        """The numbers of a group, by their last name."""
        start = f"{group}."
        found = {name[len(start) :]: n for name, n in self.values.items() if name.startswith(start)}
        if not found:
            raise KeyError(group)
        return found

    def replaced(self, values: Mapping[str, float]) -> Parameters:
        """The same with some numbers replaced."""
        return replace(self, values={**self.values, **values})

    def calibrated(self, calibration: Calibration) -> Parameters:
        """The same, corrected by a measured run."""
        corrected = calibration.corrected(self.values)
        return replace(self, level="calibrated", values=corrected, calibration=calibration)


def parameters_of(
    gpu: GpuSpec,
    level: Level | None = None,
    vllm_version: str = "0.33",
    calibration: Calibration | None = None,
    folder: Path | None = None,
) -> Parameters:
    """The numbers for a GPU at a level; None = the best there is: kernels, calibrated, datasheet.

    Of each group those measured with the version of vLLM that is nearest to `vllm_version`, and those of
    `folder` (see `own_kernels`) before the shipped ones. A calibration is that of level "calibrated";
    without one it is the GPU's that comes with Kavier.

    Raises:
        InputError: Level "kernels" for a GPU without measured kernels, "calibrated" for one without
            calibration, "datasheet" with a folder of kernels, or a folder without numbers of this GPU.
    """
    kernels = folder is not None or has_kernels(gpu.name)
    if level == "calibrated" or (level is None and (calibration or not kernels)):
        calibration = calibration or shipped_calibration(gpu.name)
        if calibration:
            base = parameters_of(gpu, calibration.level, vllm_version, folder=folder)
            return base.calibrated(calibration)
        if level:
            raise InputError(
                f"no calibration of {gpu.name} comes with Kavier",
                expected=f"one of {', '.join(calibrated_gpus())}; or --calibration FILE, the output of "
                "kavier calibrate",
            )
    if level != "datasheet" and kernels:
        return _of_kernels(gpu, vllm_version, folder)
    if level == "kernels":
        raise InputError(
            f"no measured kernels of {gpu.name}",
            expected=f"one of {', '.join(measured_gpus())}; or --timing datasheet; or --kernels with the "
            "output of kavier fit-kernels",
        )
    if folder is not None:
        raise InputError(
            "kernels names a folder, but level datasheet takes none", value=str(folder),
            expected="timing: kernels or auto",
        )  # fmt: skip
    return Parameters("datasheet", _shared(gpu))


def _of_kernels(gpu: GpuSpec, vllm_version: str, folder: Path | None) -> Parameters:
    shared = _shared(gpu)
    shipped = _nearest(_shipped(gpu.name), vllm_version) if has_kernels(gpu.name) else {}
    own = _nearest(read_folder(folder, gpu.name, shared), vllm_version) if folder else {}
    groups = frozenset(_group(name) for name in own)
    return Parameters(
        "kernels",
        _merged(_merged(shared, shipped), own),
        groups | {_group(name) for name in shipped},
        own=groups,
        folder=folder,
    )


Entries = Mapping[str, Mapping[str, Any]]
"""All that is said of each number, by dotted name."""


def _shipped(gpu: str) -> dict[str, Entries]:
    return {version: kernel_entries(gpu, version) for version in kernel_versions(gpu)}


def _nearest(versions: Mapping[str, Entries], vllm_version: str) -> dict[str, float]:
    """The numbers of each group from the nearest version that has it; of two as near, the older."""
    wanted, chosen = version_number(vllm_version), dict[str, str]()
    for version, found in versions.items():
        for name in found:
            best = chosen.setdefault(_group(name), version)
            if abs(version_number(version) - wanted) < abs(version_number(best) - wanted):
                chosen[_group(name)] = version
    return {
        name: float(entry["value"])
        for version, found in versions.items()
        for name, entry in found.items()
        if chosen[_group(name)] == version
    }


def _merged(shared: Mapping[str, float], own: Mapping[str, float]) -> dict[str, float]:
    """A measured group replaces the shared one as a whole: forms may differ in their numbers."""
    groups = {_group(name) for name in own}
    return {**{name: n for name, n in shared.items() if _group(name) not in groups}, **own}


def _group(name: str) -> str:
    return name.rpartition(".")[0]


def has_kernels(gpu: str) -> bool:
    """Whether kernels of this GPU were measured."""
    return gpu in measured_gpus()


@cache
def measured_gpus() -> tuple[str, ...]:
    """Catalog names of the GPUs with measured kernels."""
    return tuple(
        sorted(folder.name for folder in (files("kavier.timing") / "kernels").iterdir() if folder.is_dir())
    )


@cache
def kernel_versions(gpu: str) -> tuple[str, ...]:
    """Versions of vLLM with which a GPU's kernels were measured, oldest first."""
    folder = files("kavier.timing") / "kernels" / gpu
    found = [file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml")]
    return tuple(sorted(found, key=version_number))


@cache
def kernel_entries(gpu: str, version: str) -> Mapping[str, dict[str, Any]]:
    """All that is said of each number fitted to a GPU's kernels: value, unit, source, error, date."""
    return _read(f"kernels/{gpu}/{version}.toml")


@cache
def shared_entries() -> Mapping[str, dict[str, Any]]:
    """All that is said of each shared constant, fitted or not."""
    return {**_read("constants.toml"), **_read("datasheet.toml")}


def _read(name: str) -> Mapping[str, dict[str, Any]]:
    text = files("kavier.timing").joinpath(name).read_text(encoding="utf-8")
    return entries(tomllib.loads(text))


def _numbers(found: Mapping[str, dict[str, Any]]) -> dict[str, float]:
    return {name: float(entry["value"]) for name, entry in found.items()}


def _shared(gpu: GpuSpec) -> dict[str, float]:
    """The shared constants of this GPU's classes, under the names that a measured GPU's have.

    Kernels that were measured on no memory of its class reach of it what plain matrix multiplications do.
    """
    found = dict(_of_classes(gpu))
    for group in {_group(name) for name in found if name.endswith(".compute_efficiency")}:
        if group.startswith(("gemm.", "moe.")):
            found.setdefault(f"{group}.memory_efficiency", found["gemm.bf16.memory_efficiency"])
    return found


def _of_classes(gpu: GpuSpec) -> Iterator[tuple[str, float]]:
    memory, attention, link = f"memory.{memory_class(gpu)}.", attention_kernel(gpu), link_class(gpu)
    for name, number in _numbers(shared_entries()).items():
        kind, _, rest = name.partition(".")
        if name.startswith(memory):
            yield name.removeprefix(memory), number
        elif rest.startswith(f"{attention}."):
            yield f"attention.{rest.partition('.')[2]}", number
        elif kind == "collectives" and rest.startswith(f"{link}."):
            yield f"collectives.{rest.partition('.')[2]}", number
        elif kind not in ("memory", "collectives") and not rest.startswith(("flash2.", "flash3.")):
            yield name, number


def memory_class(gpu: GpuSpec) -> str:
    """Slow memory (HBM2e, GDDR6) reaches less of its bandwidth than fast (HBM3, HBM3e, GDDR6X, GDDR7).

    Told from bandwidth and architecture, as the datasheet entry does not name it: below 0.9 TB/s GDDR6;
    Ampere and Hopper up to 3 TB/s HBM2e.
    """
    hbm2e = gpu.architecture in ("ampere", "hopper") and gpu.bandwidth_bytes_per_s < HBM3_BANDWIDTH
    return "slow" if hbm2e or gpu.bandwidth_bytes_per_s < GDDR6_BANDWIDTH else "fast"


def attention_kernel(gpu: GpuSpec) -> str:
    """FlashAttention-3 or its like on Hopper, datacenter Blackwell and other vendors; else version 2."""
    modern = gpu.architecture == "hopper" or is_datacenter_blackwell(gpu) or gpu.vendor != "nvidia"
    return "flash3" if modern else "flash2"


def link_class(gpu: GpuSpec) -> str:
    """What tensor-parallel GPUs talk over: "pcie", or "nvlink" for every link of its own."""
    return "pcie" if gpu.interconnect == "pcie" else "nvlink"


def is_datacenter_blackwell(gpu: GpuSpec) -> bool:
    """Compute capability 10.x (B200 and its like); Blackwell cards without NVLink are 12.x."""
    return gpu.architecture == "blackwell" and gpu.interconnect == "nvlink"
