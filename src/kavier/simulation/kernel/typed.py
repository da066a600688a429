"""Compiled: the decorators of this package, and the types that its annotations name."""

from __future__ import annotations

from typing import Any, TypeAlias

from kavier.native.kit import decorators
from kavier.simulation.kernel import records
from kavier.timing.compiled import ATTENTION, SHARES

Attention: TypeAlias = Any
Cell: TypeAlias = Any
Coast: TypeAlias = Any
Columns: TypeAlias = Any
Fleet: TypeAlias = Any
Power: TypeAlias = Any
Replica: TypeAlias = Any
Request: TypeAlias = Any
Settings: TypeAlias = Any
Shares: TypeAlias = Any
Slot: TypeAlias = Any
Step: TypeAlias = Any
Timeline: TypeAlias = Any

compiled, inlined = decorators(
    {
        "Attention": ATTENTION,
        "Cell": records.CELL,
        "Coast": records.COAST,
        "Columns": records.COLUMNS,
        "Fleet": records.FLEET,
        "Power": records.POWER,
        "Replica": records.REPLICA,
        "Request": records.REQUEST,
        "Settings": records.SETTINGS,
        "Shares": SHARES,
        "Slot": records.SLOT,
        "Step": records.STEP,
        "Timeline": records.TIMELINE,
    }
)
