"""How far a replay agrees with a recording, for a terminal or as JSON."""

from __future__ import annotations

import json as json_module
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH = 100
MOST_PARTS = 3
"""Entries of a list that are shown, from the first that differs on."""

SIDES = ("recorded", "replayed")


def print_conformance(compared: dict[str, Any], *, json: bool) -> None:
    """Print what was compared, how much is identical, and the first step and request that are not.

    Args:
        compared: `Comparison.as_dict` of `kavier.validation.conformance`.
        json: As it is.
    """
    if json:
        print(json_module.dumps(compared, indent=2))
        return
    console = Console(highlight=False)
    console = Console(highlight=False, width=console.width if console.is_terminal else WIDTH)
    console.print(_headline(compared), _counts(compared), sep="\n")
    for what in ("steps", "requests"):
        if difference := compared[what]["first_difference"]:
            console.print()
            console.print(_title(what.removesuffix("s"), difference))
            console.print(_difference(compared[what]["fields"], difference))
    if cut := compared["truncated_requests"]:
        limit = f"max_model_len, {compared['max_model_len']:,}"
        console.print(f"\n{cut:,} requests have their answer cut at {limit}, as vLLM cuts it.")
    verdict = ("Identical.", "bold green") if compared["identical"] else ("Not identical.", "bold red")
    console.print()
    console.print(Text(*verdict))


def _headline(compared: dict[str, Any]) -> Text:
    loop = "synchronous scheduling"
    if compared["async_scheduling"]:
        owner = {"oracle": "the recorded", "vllm": "vLLM's own"}[compared["engine_loop"]]
        loop = f"asynchronous scheduling in {owner} loop"
    name = f"vLLM {compared['vllm_version']}"
    return Text.assemble((name, "bold"), f", {loop}, replayed by the {compared['engine']} engine\n")


def _counts(compared: dict[str, Any]) -> Table:
    table = Table("", *SIDES, "identical", "compared", box=None, padding=(0, 2, 0, 0))
    for column in table.columns[1:4]:
        column.justify = "right"
    for what in ("steps", "requests"):
        log = compared[what]
        numbers = [f"{log[name]:,}" for name in (*SIDES, "identical")]
        table.add_row(
            what, *numbers, ", ".join(log["fields"]), style="red" if log["first_difference"] else None
        )
    return table


def _title(what: str, difference: dict[str, Any]) -> Text:
    for side, other in (SIDES, SIDES[::-1]):
        if difference[side] is None:
            return Text(
                f"Behind its last {what} the {side} run ends; the {other} one goes on with this:", "bold"
            )
    return Text(f"The first {what} that differs is {difference['name']}:", "bold")


def _difference(fields: tuple[str, ...], difference: dict[str, Any]) -> Table:
    """Field by field; a field that differs is marked."""
    rows = {side: difference[side] for side in SIDES if difference[side] is not None}
    table = Table("", "", *rows, box=None, padding=(0, 2, 0, 0))
    for name in fields:
        differs = name in difference["fields"]
        values = _values([row[name] for row in rows.values()])
        table.add_row("!=" if differs else "", name, *map(Text, values), style="red" if differs else "dim")
    return table


def _values(values: list[Any]) -> list[str]:
    """Both sides of a field; of lists only the part where they begin to differ."""
    if not isinstance(values[0], list):
        return [json_module.dumps(value) for value in values]
    start = _first_different(values)
    return [_part(value, start) for value in values]


def _first_different(lists: list[list[Any]]) -> int:
    """Index of the first entry that is not in both; 0 if they are the same."""
    shortest = min(map(len, lists))
    places = [i for i in range(shortest) if any(one[i] != lists[0][i] for one in lists)]
    if places or all(one == lists[0] for one in lists):
        return places[0] if places else 0
    return shortest


def _part(entries: list[Any], start: int) -> str:
    """How many entries, and a few of them, a line each."""
    shown = [json_module.dumps(entry) for entry in entries[start : start + MOST_PARTS]]
    more = ["..."] if len(entries) > start + MOST_PARTS else []
    count = f"{len(entries)} in all" + (f", from number {start + 1} on:" if start else "")
    return "\n".join([count, *shown, *more])
