"""The result page for a terminal."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from kavier import __version__
from kavier.errors import InputError
from kavier.metrics.trust import NOTHING_SHARED
from kavier.report.amounts import amount, counted, duration, latency, level, power
from kavier.report.over_time import over_time
from kavier.report.terminal import page_console, show
from kavier.report.trust import notes_table, trust_table
from kavier.runner import Result
from kavier.scenario import Slo, WorkloadSection
from kavier.units import MS_PER_S
from kavier.workload.presets import changes

WIDTH = 100
"""Columns of the page at most."""

LATENCIES = {
    "ttft_s": "TTFT  to first token",
    "tpot_s": "TPOT  per output token",
    "itl_s": "ITL   between tokens",
    "e2e_s": "E2E   end to end",
    "queue_s": "Queue  to first schedule",
}


def print_page(result: Result, out: Path | None) -> None:
    """Print the page on stdout; `out` is where the run was kept."""
    console = page_console(WIDTH)
    kept = f"Kept in {out}" if out else "Nothing kept; --out DIR keeps summary, requests and timeline."
    show(
        console,
        Rule(f"Kavier {__version__}", align="left"),
        _headline(result),
        "",
        _latency_table(result.summary),
        "",
        _fleet_table(result),
        "",
        _replica_table(result),
        "",
        _impact_table(result.summary),
        "",
        over_time(result, console.width) if result.summary["makespan_s"] else "Nothing ran.",
        "",
        trust_table(result.summary),
        notes_table(result.summary),
        "",
        Text(kept),
    )


def glossary() -> dict[str, dict[str, str]]:
    """Metric -> {unit, meaning, formula, source, note}, in the order of summary.json."""
    return tomllib.loads(files("kavier.report").joinpath("glossary.toml").read_text(encoding="utf-8"))


def print_glossary() -> None:
    """All metrics, a line each."""
    table = Table("metric", "unit", "meaning", box=None, padding=(0, 2, 0, 0))
    for name, entry in glossary().items():
        table.add_row(f"[bold]{name}[/]", entry["unit"], entry["meaning"])
    show(page_console(WIDTH), table)


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
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, show_header=False)
    for key in ("meaning", "formula", "source", "note"):
        if key in entries[name]:
            table.add_row(Text(f"  {key:8}", "dim"), Text(entries[name][key]))
    show(page_console(WIDTH), Text.assemble((name, "bold"), f"  ({entries[name]['unit']})"), table)


def _owner(part: str, entries: dict[str, dict[str, str]]) -> str:
    """The metric that a bare part such as mfu or hit_ratio belongs to; the part itself if none or several."""
    owners = [name for name, entry in entries.items() if part in entry.get("parts", "").split()]
    return owners[0] if len(owners) == 1 else part


def _headline(result: Result) -> Text:
    scenario, summary = result.scenario, result.summary
    engine, fleet = scenario.engine, scenario.fleet
    each = engine.tensor_parallel_size
    gpus = f"{fleet.replicas * each:,} x {fleet.gpu}"
    gpus += f" ({counted(fleet.replicas, 'replica')} of TP{each})" if each > 1 else ""
    source = _source(scenario.workload)
    text = Text(f"{scenario.model} on {gpus}\n", "bold", end="")
    loop = "asynchronous" if engine.async_scheduling else "synchronous"
    router = Path(fleet.router).name  # of a policy the file's name will do: the summary has its path
    text.append(f"vLLM {engine.vllm_version}, {loop} scheduling, {router} routing\n", "not bold")
    outcome = summary["requests"]
    arrived = counted(outcome["arrived"], "request")
    text.append(f"{arrived} from {source} in {duration(summary['makespan_s'])}: ", "not bold")
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
        table.add_row(label, *(latency(summary[key][point]) for point in ("mean", "p50", "p90", "p99")))
    return table


def _fleet_table(result: Result) -> Table:
    summary = result.summary
    rate, cache, evicted = summary["throughput"], summary["cache"], summary["kv"]["evicted_blocks"]
    table = _table("Serving, whole fleet", "", "", "")
    table.add_row(
        "Throughput",
        amount(rate["requests_per_s"], "req/s"),
        f"{rate['output_tokens_per_s']:,.0f} out tok/s",
        f"{rate['total_tokens_per_s']:,.0f} tok/s",
    )
    if goodput := summary["goodput"]:
        table.add_row(
            "Goodput",
            amount(goodput["requests_per_s"], "req/s"),
            f"{goodput['good_requests']:,} good",
            f"{goodput['good_ratio']:.1%} of arrived",
        )
        table.caption = Text(f"good: {_objectives(result.scenario.slo)}", "dim not italic")
        table.caption_justify = "left"
    if cache["queried_tokens"]:
        table.add_row(
            "Prefix cache",
            f"{cache['hit_ratio']:.1%} hit",
            f"{cache['hit_tokens']:,}",
            f"of {cache['queried_tokens']:,} tok",
        )
    if evicted and NOTHING_SHARED not in summary["trust"]["notes"]:  # else they tell nothing: none could hit
        table.add_row("Idle blocks evicted", f"{evicted:,}")
    table.add_row("Preemptions", f"{summary['preemptions']:,}")
    return table


def _replica_table(result: Result) -> Table:
    """Means are those of all replicas over the makespan; peaks are those of any one replica."""
    kv, use = result.summary["kv"], result.summary["utilization"]
    table = _table("Serving, a replica", "mean of all", "peak of any")
    table.add_column("")
    seats = f"of max_num_seqs = {result.scenario.engine.max_num_seqs:,}"
    table.add_row("Running requests", level(use["mean_running_requests"]), "", seats)
    table.add_row("Busy", f"{use['busy_ratio']:.1%}", "", "of time, if by one request")
    if kv["blocks"]:  # none without KV cache
        peak_used = kv["peak_used_blocks"] / kv["blocks"]
        table.add_row(
            "KV memory", f"{kv['mean_used_ratio']:.1%}", f"{peak_used:.1%}", f"of {kv['blocks']:,} blocks"
        )
    table.add_row("Compute (MFU)", f"{use['mfu']:.1%}", "", "of the GPU's peak")
    table.add_row("Memory bandwidth (MBU)", f"{use['mbu']:.1%}", "", "of the GPU's peak")
    return table


def _objectives(slo: Slo) -> str:
    limits = {name.removesuffix("_s").upper(): limit for name, limit in slo.model_dump().items() if limit}
    return ", ".join(f"{name} {limit * MS_PER_S:g} ms" for name, limit in limits.items())


def _impact_table(summary: dict[str, Any]) -> Table:
    energy, carbon, cost = summary["energy"], summary["carbon"], summary["cost"]
    of_request = summary["energy_j"]
    table = _table("Energy, carbon, cost", "fleet total", "per M tokens", "")
    table.add_row(
        "GPU energy",
        amount(energy["gpu_kwh"], "kWh"),
        amount(energy["gpu_wh_per_million_tokens"], "Wh"),
        amount(energy["j_per_output_token"], "J/output token"),
    )
    table.add_row(
        "  of it in requests",
        amount(energy["gpu_kwh"] - energy["idle_kwh"], "kWh"),
        "",
        f"{amount(of_request['mean'], 'J')} mean, {amount(of_request['p99'], 'J')} P99",
    )
    table.add_row(
        "Facility energy",
        amount(energy["facility_kwh"], "kWh"),
        amount(energy["facility_wh_per_million_tokens"], "Wh"),
        "-" if energy["mean_facility_w"] is None else f"{power(energy['mean_facility_w'])} mean",
    )
    table.add_row(
        "Operational carbon",
        amount(carbon["operational_gco2e"], "gCO2e"),
        amount(carbon["gco2e_per_million_tokens"], "gCO2e"),
        "at " + amount(carbon["mean_gco2_per_kwh"], "gCO2e/kWh"),
    )
    rent = cost["usd_per_gpu_hour"]
    table.add_row(
        "Rent",
        amount(cost["usd"], "USD"),
        amount(cost["usd_per_million_tokens"], "USD"),
        "no price known" if rent is None else f"{amount(cost['gpu_hours'], 'GPU-h')} x {rent:.2f} USD",
    )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(f"[bold not dim]{title}[/]", width=24)
    for column in columns:
        table.add_column(column, justify="right", min_width=11)
    return table
