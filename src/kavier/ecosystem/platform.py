"""A scenario's ecosystem, looked up and resolved: GPU, model, engine, KV memory, grid, prices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kavier.ecosystem.carbon_series import CarbonSeries, read_carbon_series
from kavier.ecosystem.engine_defaults import resolve_engine
from kavier.ecosystem.gpu import GpuSpec, find_gpu
from kavier.ecosystem.memory import KvMemory, kv_memory
from kavier.ecosystem.model import ModelSpec
from kavier.ecosystem.models import find_model
from kavier.ecosystem.prices import price_of
from kavier.ecosystem.regions import Region, find_region
from kavier.errors import InputError
from kavier.scenario import Engine, Scenario, Site


@dataclass(frozen=True, slots=True)
class Platform:
    """What exists.

    Attributes:
        gpu: Each GPU of the fleet.
        model: The model served.
        engine: Settings with every number that vLLM would choose filled in.
        kv: GPU memory of one replica, term by term.
        region: The grid.
        carbon_series: Intensity over time; None = `gco2_per_kwh` always.
        gco2_per_kwh: The region's mean, or what the scenario gives.
        usd_per_gpu_hour: Rent; None if the catalog lists none and the scenario gives none.
        usd_per_kwh: Tariff; None likewise.
        notes: What was defaulted, with its source.
    """

    gpu: GpuSpec
    model: ModelSpec
    engine: Engine
    kv: KvMemory
    region: Region
    carbon_series: CarbonSeries | None
    gco2_per_kwh: float
    usd_per_gpu_hour: float | None
    usd_per_kwh: float | None
    notes: tuple[str, ...]

    @property
    def constant_gco2_per_kwh(self) -> float | None:
        """The intensity that held all the time; None under a series."""
        return None if self.carbon_series else self.gco2_per_kwh

    def intensity(self, start_s: ArrayLike, length_s: ArrayLike) -> NDArray[np.float64]:
        """Mean gCO2e/kWh of each interval of the run.

        Raises:
            InputError: The series does not cover the run.
        """
        start, length = np.asarray(start_s, dtype=np.float64), np.asarray(length_s, dtype=np.float64)
        if self.carbon_series is None:
            return np.full(start.shape, self.gco2_per_kwh)
        return self.carbon_series.mean_over(start, start + length)


def build_platform(scenario: Scenario) -> Platform:
    """Look everything up and resolve every default.

    Raises:
        InputError: An unknown name, settings that contradict each other, or a model that does not fit.
    """
    gpu, model, region = (
        find_gpu(scenario.fleet.gpu),
        find_model(scenario.model),
        find_region(scenario.site.region),
    )
    _check_experts(scenario, model)
    engine, kv, engine_notes = _resolve(scenario.engine, gpu, model)
    rent, rent_note = _rent(scenario, gpu)
    tariff, tariff_note = _tariff(scenario, region)
    carbon, carbon_note = _carbon(scenario.site, region)
    return Platform(
        gpu=gpu,
        model=model,
        engine=engine,
        kv=kv,
        region=region,
        carbon_series=_series(scenario.site),
        gco2_per_kwh=carbon,
        usd_per_gpu_hour=rent,
        usd_per_kwh=tariff,
        notes=(*engine_notes, carbon_note, rent_note, tariff_note),
    )


def _check_experts(scenario: Scenario, model: ModelSpec) -> None:
    """Refuse to share or spread experts that a model does not have, or over engines that do not exist."""
    engine, replicas = scenario.engine, scenario.fleet.replicas
    asked = {
        "enable_expert_parallel": engine.enable_expert_parallel,
        "data_parallel_size": engine.data_parallel_size > 1,
        "expert_skew": engine.expert_skew > 0,
    }
    if not model.num_experts and (keys := [key for key, is_asked in asked.items() if is_asked]):
        raise InputError(
            f"{model.name} has no experts",
            where=f"engine.{keys[0]}",
            value=getattr(engine, keys[0]),
            expected="a mixture-of-experts model; engines of a dense model are fleet.replicas",
        )
    gpus = engine.tensor_parallel_size * engine.data_parallel_size
    if engine.enable_expert_parallel and gpus > model.num_experts:
        raise InputError(
            f"{model.name} has {model.num_experts} experts a layer, too few for {gpus} GPUs",
            where="engine.data_parallel_size",
            value=engine.data_parallel_size,
            expected=f"at most {model.num_experts} GPUs in tensor_parallel_size x data_parallel_size",
        )
    if replicas % engine.data_parallel_size:
        raise InputError(
            "engines that share experts are replicas",
            where="fleet.replicas",
            value=replicas,
            expected=f"a multiple of engine.data_parallel_size, {engine.data_parallel_size}",
        )


_NO_KV = {"num_gpu_blocks_override": 2, "max_model_len": None}
"""Without a KV cache only weights and reserves must fit, and the model alone limits a request."""


def _resolve(engine: Engine, gpu: GpuSpec, model: ModelSpec) -> tuple[Engine, KvMemory, tuple[str, ...]]:
    """Batch limits first: how much KV memory is left depends on them, and so may max_model_len."""
    longest = engine.max_model_len if isinstance(engine.max_model_len, int) else model.max_model_len
    engine, notes = resolve_engine(engine, gpu, longest)
    assert engine.max_num_batched_tokens is not None
    assert engine.max_num_seqs is not None
    in_memory = engine if engine.kv_cache else engine.model_copy(update=_NO_KV)
    kv = kv_memory(model, gpu, in_memory, engine.max_num_batched_tokens, engine.max_num_seqs)
    if engine.max_model_len is None:
        notes = (*notes, f"max_model_len = {kv.max_model_len} (the model's)")
    if engine.kv_cache and kv.kv_bytes > kv.free_bytes:
        fitting = kv.free_bytes // kv.kv_block_bytes
        override = f"num_gpu_blocks_override = {kv.kv_blocks}"
        notes = (*notes, f"{override} is more than the {fitting} that fit in memory")
    return engine.model_copy(update={"max_model_len": kv.max_model_len}), kv, notes


def _rent(scenario: Scenario, gpu: GpuSpec) -> tuple[float | None, str]:
    given = scenario.prices.usd_per_gpu_hour
    if given is not None:
        return given, f"rent {given:g} USD per GPU-hour, as given"
    listed = price_of(gpu.name)
    if listed is None:
        return None, f"no rent listed for {gpu.name}: no cost; give prices.usd_per_gpu_hour"
    return listed.value, f"rent {listed.value:g} USD per GPU-hour: {listed.source} ({listed.date})"


def _tariff(scenario: Scenario, region: Region) -> tuple[float | None, str]:
    given = scenario.prices.usd_per_kwh
    if given is not None:
        return given, f"electricity {given:g} USD/kWh (never added to the rent), as given"
    listed = region.electricity_price
    if listed is None:
        without = f"no electricity price listed for {region.code}: cost.electricity_usd is null"
        return None, f"{without}; give prices.usd_per_kwh"
    return (
        listed.value,
        f"electricity {listed.value:g} USD/kWh (never added to the rent): {listed.source} ({listed.date})",
    )


def _carbon(site: Site, region: Region) -> tuple[float, str]:
    if site.carbon_series is not None:
        return region.carbon.value, f"carbon intensity over time from {site.carbon_series}"
    if site.carbon_gco2_per_kwh is not None:
        return site.carbon_gco2_per_kwh, f"carbon intensity {site.carbon_gco2_per_kwh:g} gCO2e/kWh, as given"
    mean = region.carbon
    return (
        mean.value,
        f"carbon intensity {mean.value:g} gCO2e/kWh in {region.code}: {region.carbon_kind} ({mean.source})",
    )


def _series(site: Site) -> CarbonSeries | None:
    if site.carbon_series is None:
        if site.start is not None:
            raise InputError("site.start without site.carbon_series: it would change nothing")
        return None
    if site.carbon_gco2_per_kwh is not None:
        raise InputError("contradictory: site.carbon_series and site.carbon_gco2_per_kwh")
    if site.start is None:
        raise InputError(
            "site.carbon_series needs site.start",
            expected="the UTC time of arrival_s = 0, such as 2024-03-01T00:00Z",
        )
    return read_carbon_series(site.carbon_series, site.region, start=site.start)
