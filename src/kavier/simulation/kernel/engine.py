"""The compiled code of this package, as one library that is loaded or compiled when it is first called."""

from __future__ import annotations

from pathlib import Path

from kavier.native.library import Library

_KAVIER = Path(__file__).parents[2]

LIBRARY = Library(
    "kavier.simulation.kernel.dispatch",
    arguments=5,
    sources=(
        Path(__file__).parent,
        _KAVIER / "native",
        _KAVIER / "timing" / "compiled.py",
        _KAVIER / "timing" / "step.py",
        _KAVIER / "simulation" / "router.py",
    ),
    label="the engine (about 15 s)",
)
"""Call it with an operation of `operations` and its arguments."""
