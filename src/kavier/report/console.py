"""The result page for a terminal."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kavier import __version__
from kavier.errors import InputError
from kavier.runner import Result
from kavier.scenario import Slo, WorkloadSection
from kavier.units import MS_PER_S
from kavier.workload.presets import changes

WIDTH = 100
NARROWEST = 80
"""Columns of the page at least: a narrower terminal breaks its lines, but no number is cut."""

BARS = " ▁▂▃▄▅▆▇█"
LATENCIES = {
    "ttft_s": "TTFT  to first token",
    "tpot_s": "TPOT  per output token",
    "itl_s": "ITL   between tokens",
    "e2e_s": "E2E   end to end",
    "queue_s": "Queue  to first schedule",
}


def print_page(result: Result, out: Path | None) -> None:
    """Print the page on stdout; `out` is where the run was kept."""
    console = Console(highlight=False)
    width = max(min(console.width, WIDTH), NARROWEST) if console.is_terminal else WIDTH
    console = Console(highlight=False, width=width)
    console.rule(f"Kavier {__version__}", align="left")
    for part in (
        _headline(result),
        _latency_table(result.summary),
        _serving_table(result),
        _impact_table(result.summary),
        _over_time(result, width - 36) if result.summary["makespan_s"] else "Nothing ran.",
        _trust(result.summary),
    ):
        console.print(part)
        console.print()
    kept = f"Kept in {out}" if out else "Nothing kept; --out DIR keeps summary, requests and timeline."
    console.print(kept, markup=False)


def glossary() -> dict[str, dict[str, str]]:
    """Metric -> {unit, meaning, formula, source, note}, in the order of summary.json."""
    return tomllib.loads(files("kavier.report").joinpath("glossary.toml").read_text(encoding="utf-8"))


def print_glossary() -> None:
    """All metrics, a line each."""
    table = Table("metric", "unit", "meaning", box=None, padding=(0, 2, 0, 0))
    for name, entry in glossary().items():
        table.add_row(f"[bold]{name}[/]", entry["unit"], entry["meaning"])
    Console(highlight=False).print(table)


def print_explanation(metric: str) -> None:
    """One metric; `energy.gpu_kwh` is explained by `energy`.

    Raises:
        InputError: No such metric.
    """
    entries = glossary()
    name, _, part = metric.partition(".")
    name = next((known for known in (name, f"{name}_s") if known in entries), _owner(name, entries))
    if name not in entries or (part and part not in entries[name].get("parts", "").split()):
        parts = [f"{entry}.{part}" for entry in entries for part in entries[entry].get("parts", "").split()]
        raise InputError(
            f"unknown metric {metric!r}",
            expected="a name of `kavier explain`",
            near=(metric, [*entries, *parts]),
        )
    console = Console(highlight=False)
    console.print(f"[bold]{name}[/]  ({entries[name]['unit']})")
    for key in ("meaning", "formula", "source", "note"):
        if key in entries[name]:
            console.print(f"  [dim]{key:8}[/] {entries[name][key]}")


def _owner(part: str, entries: dict[str, dict[str, str]]) -> str:
    """The metric that a bare part such as mfu or hit_ratio belongs to; the part itself if none or several."""
    owners = [name for name, entry in entries.items() if part in entry.get("parts", "").split()]
    return owners[0] if len(owners) == 1 else part


def _headline(result: Result) -> Text:
    scenario, summary = result.scenario, result.summary
    engine, fleet = scenario.engine, scenario.fleet
    gpus = "" if engine.tensor_parallel_size == 1 else f" x TP{engine.tensor_parallel_size}"
    text = Text()
    text.append(f"{scenario.model}", "bold")
    text.append(f" on {fleet.replicas} x {fleet.gpu}{gpus}", "bold")
    loop = "asynchronous" if engine.async_scheduling else "synchronous"
    text.append(f", vLLM {engine.vllm_version} {loop} scheduling, {fleet.router} routing\n")
    outcome = summary["requests"]
    text.append(f"{outcome['arrived']:,} requests from {_source(scenario.workload)}")
    text.append(f" in {_duration(summary['makespan_s'])}: ")
    text.append(f"{outcome['finished']:,} finished", "green")
    for reason, count in outcome["rejected_by_reason"].items():
        text.append(f", {count:,} rejected ({reason})", "red")
    return text


def _source(workload: WorkloadSection) -> str:
    """Where the requests came from; a preset that was changed is no longer what was published."""
    synthetic = workload.synthetic
    if synthetic is None:
        return str(workload.trace)
    changed = changes(synthetic)
    return f"{synthetic.preset or 'synthetic'} load" + (
        f" (changed: {', '.join(changed)})" if changed else ""
    )


def _latency_table(summary: dict[str, Any]) -> Table:
    table = _table("Latency", "mean", "P50", "P90", "P99")
    for key, label in LATENCIES.items():
        table.add_row(label, *(_latency(summary[key][point]) for point in ("mean", "p50", "p90", "p99")))
    return table


def _serving_table(result: Result) -> Table:
    summary = result.summary
    rate, cache, kv, use = (summary[key] for key in ("throughput", "cache", "kv", "utilization"))
    table = _table("Serving", "", "", "")
    table.add_row(
        "Throughput",
        _amount(rate["requests_per_s"], "req/s"),
        f"{rate['output_tokens_per_s']:,.0f} out tok/s",
        f"{rate['total_tokens_per_s']:,.0f} tok/s",
    )
    table.add_row(
        "Utilisation", f"{use['busy_ratio']:.1%} busy", f"{use['mfu']:.1%} MFU", f"{use['mbu']:.1%} MBU"
    )
    table.add_row(
        "KV memory",
        f"{kv['blocks']:,} blocks",
        f"{kv['peak_used_blocks'] / max(kv['blocks'], 1):.1%} peak use",
        f"{kv['mean_used_ratio']:.1%} mean use",
    )
    table.add_row(
        "Prefix cache",
        f"{cache['hit_ratio']:.1%} hit",
        f"{cache['hit_tokens']:,} of {cache['queried_tokens']:,} tok",
        f"{kv['evicted_blocks']:,} blocks evicted",
    )
    table.add_row("Preemptions", f"{summary['preemptions']:,}")
    if goodput := summary["goodput"]:
        table.add_row(
            f"Goodput  {_objectives(result.scenario.slo)}",
            _amount(goodput["requests_per_s"], "req/s"),
            f"{goodput['good_requests']:,} good requests",
            f"{goodput['good_ratio']:.1%} of arrived",
        )
    return table


def _objectives(slo: Slo) -> str:
    limits = {name.removesuffix("_s").upper(): limit for name, limit in slo.model_dump().items() if limit}
    return ", ".join(f"{name} {limit * MS_PER_S:g} ms" for name, limit in limits.items())


def _impact_table(summary: dict[str, Any]) -> Table:
    energy, carbon, cost = summary["energy"], summary["carbon"], summary["cost"]
    table = _table("Energy, carbon, cost", "total", "per M tokens", "")
    table.add_row(
        "GPU energy",
        _amount(energy["gpu_kwh"], "kWh"),
        _amount(energy["gpu_wh_per_million_tokens"], "Wh"),
        _amount(energy["j_per_output_token"], "J per output token"),
    )
    table.add_row(
        "Facility energy",
        _amount(energy["facility_kwh"], "kWh"),
        _amount(energy["facility_wh_per_million_tokens"], "Wh"),
        _amount(energy["mean_gpu_w"], "W mean GPU power"),
    )
    table.add_row(
        "Operational carbon",
        _amount(carbon["operational_gco2e"], "gCO2e"),
        _amount(carbon["gco2e_per_million_tokens"], "gCO2e"),
        "at " + _amount(carbon["mean_gco2_per_kwh"], "gCO2e/kWh"),
    )
    rent = cost["usd_per_gpu_hour"]
    table.add_row(
        "Rent",
        _amount(cost["usd"], "USD"),
        _amount(cost["usd_per_million_tokens"], "USD"),
        "no price known" if rent is None else f"{_amount(cost['gpu_hours'], 'GPU-h')} at {rent:.2f} USD",
    )
    return table


def _over_time(result: Result, width: int) -> Table:
    """Small plots: what the fleet did from the first arrival to the last token."""
    means = result.course.means(width)
    blocks = max(result.summary["kv"]["blocks"] * result.scenario.fleet.replicas, 1)
    series = {
        "running": (means["running"], "{:,.1f} requests"),
        "waiting": (means["waiting"], "{:,.1f} requests"),
        "KV use": (means["used_blocks"] * (100 / blocks), "{:.1f} %"),
        "GPU power": (means["energy_j"], "{:,.0f} W"),
    }
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, (values, unit) in series.items():
        table.add_row(name, Text(_sparkline(values), "cyan"), "up to " + unit.format(values.max()))
    table.caption = f"fleet means over {_duration(result.summary['makespan_s'] / width)}"
    table.caption_justify = "left"
    return table


def _sparkline(values: NDArray[np.float64]) -> str:
    """Drawn from 0 to the largest."""
    top = max(float(values.max()), 1e-12)
    return "".join(BARS[round(value / top * (len(BARS) - 1))] for value in values.tolist())


def _trust(summary: dict[str, Any]) -> Text:
    text, trust, engine = Text(), summary["trust"], summary["engine"]
    text.append(f"How far to trust this: step times at level {trust['timing_level']!r}.", "bold")
    played = "played by the compiled engine"
    if engine["why"]:
        played = f"played by the reference engine: {engine['why']}"
    for note in (played, *trust["notes"]):
        text.append(f"\n- {note}", "dim")
    return text


def _table(title: str, *columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(f"[bold not dim]{title}[/]", width=24)
    for column in columns:
        table.add_column(column, justify="right", min_width=11)
    return table


def _latency(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * MS_PER_S:,.2f} ms" if seconds < 1 else f"{seconds:,.2f} s"


def _amount(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:,.4g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def _duration(seconds: float) -> str:
    """Whole seconds from a minute on, three digits below."""
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts: Iterable[str] = (f"{hours} h" if hours else "", f"{minutes} min" if minutes else "", f"{rest} s")
    return " ".join(part for part in parts if part)
