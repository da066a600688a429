"""Kavier: simulate LLM serving — latency, throughput, cache, energy, carbon, cost.

    import kavier
    result = kavier.simulate("scenario.yaml")
    result.summary["ttft_s"]["p99"]

`Scenario`, `Result`, `simulate` and `InputError` are the whole of the interface, and what a policy of yours
is given: `RequestView`, `ReplicaView`, `StepWork`. They are imported when first used, so that `import
kavier` and `kavier --help` are quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "InputError",
    "ReplicaView",
    "RequestView",
    "Result",
    "Scenario",
    "StepWork",
    "__version__",
    "simulate",
]

if TYPE_CHECKING:
    from kavier.errors import InputError
    from kavier.runner import Result, simulate
    from kavier.scenario import Scenario
    from kavier.simulation.policy.views import ReplicaView, RequestView
    from kavier.timing.step import StepWork

_HOME = {
    "InputError": "kavier.errors",
    "ReplicaView": "kavier.simulation.policy.views",
    "RequestView": "kavier.simulation.policy.views",
    "Result": "kavier.runner",
    "Scenario": "kavier.scenario",
    "StepWork": "kavier.timing.step",
    "simulate": "kavier.runner",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kavier' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
