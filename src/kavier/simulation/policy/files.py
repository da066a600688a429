"""A policy named in a scenario: FILE.py:function."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kavier.errors import InputError
from kavier.scenario import Scenario
from kavier.simulation.policy.policy import Policy, make_policy


def policies_of(scenario: Scenario, given: Mapping[str, Callable[..., Any] | None]) -> dict[str, Policy]:
    """The policies of a run.

    Args:
        scenario: Names files and functions.
        given: Functions instead, by the name of the key.

    Returns:
        Key of the scenario ("router", "scheduling_policy", "timing") -> policy, where it is one.

    Raises:
        InputError: No such file or function, or it does not take what policies are given.
    """
    named = {
        "router": scenario.fleet.router,
        "scheduling_policy": scenario.engine.scheduling_policy,
        "timing": scenario.timing,
    }
    modules: dict[Path, Any] = {}  # each file is run once, whatever it is named for
    loaded = {what: load_function(name, what, modules) for what, name in named.items() if ".py:" in name}
    found = {what: make_policy(what, function, named[what]) for what, function in loaded.items()}
    return found | {what: make_policy(what, one) for what, one in given.items() if one is not None}


def load_function(name: str, what: str, modules: dict[Path, Any]) -> Callable[..., Any]:
    """The function that FILE.py:function names; the file is run, unless it is among `modules`.

    Raises:
        InputError: No such file or function, or the file raises.
    """
    path, _, function = name.rpartition(":")
    file = Path(path).absolute()
    if file not in modules:
        modules[file] = _run(Path(path), what)
    module = modules[file]
    found = getattr(module, function, None)
    if not callable(found):
        functions = [
            key for key, value in vars(module).items() if callable(value) and not key.startswith("_")
        ]
        raise InputError(f"{what}: no function {function!r}", where=path, near=(function, functions))
    return found  # type: ignore[no-any-return]


def _run(path: Path, what: str) -> Any:
    if not path.is_file():
        raise InputError(f"{what}: no such file", where=str(path))
    label = f"kavier_policy {path.absolute()}"
    spec = importlib.util.spec_from_file_location(label, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[label] = module  # as an import does: dataclasses and pickle look there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise InputError(f"{what}: {type(error).__name__}: {error}", where=f"{path}{line}") from error
    return module
