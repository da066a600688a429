"""A scenario as a YAML file: reading, writing, and dotted paths into its plain data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kavier.errors import InputError
from kavier.scenario import Scenario


def read_scenario_tree(path: Path) -> dict[str, Any]:
    """The plain data of a YAML scenario; relative paths in it are taken from the file's folder.

    Raises:
        InputError: Missing or unreadable file, YAML that does not parse (line named), not a mapping.
    """
    from kavier.yaml_text import read_mapping  # not every run reads or writes YAML, and it takes 20 ms

    return anchor_paths(read_mapping(path, "scenario", "model, workload, fleet"), path.parent)


_FILES = (
    "workload.trace",
    "workload.synthetic.prompt_tokens.trace",
    "workload.synthetic.output_tokens.trace",
    "workload.synthetic.prefixes.turn_tokens.trace",
    "site.carbon_series",
    "calibration",
    "kernels",
)

_POLICIES = ("fleet.router", "engine.scheduling_policy", "timing")
"""Keys that may name a policy: FILE.py:function."""


def anchor_paths(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Take the relative paths of a scenario tree from `folder`, in place."""
    for path in _files(tree):
        set_path(tree, path, str(folder / get_path(tree, path)))
    return tree


def _files(tree: Mapping[str, Any]) -> list[str]:
    """Where a scenario tree names a file; a model is a name of the catalog unless it ends in .json."""
    named = [path for path in _FILES if isinstance(get_path(tree, path), str)]
    named += [path for path in _POLICIES if ".py:" in str(get_path(tree, path))]
    model = tree.get("model")
    return [*named, "model"] if isinstance(model, str) and model.endswith(".json") else named


def set_path(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted path (`fleet.replicas`) in plain data, creating sections on the way.

    Raises:
        InputError: Something on the way is not a section.
    """
    *parents, leaf = path.split(".")
    for depth, key in enumerate(parents, 1):
        child = tree.get(key)
        if child is None:
            child = tree[key] = {}
        if not isinstance(child, dict):
            raise InputError(
                f"cannot set {path}: {'.'.join(parents[:depth])} is not a section of keys", value=child
            )
        tree = child
    tree[leaf] = value


def get_path(tree: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of plain data; None where there is none."""
    node: Any = tree
    for key in path.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def dump_scenario(scenario: Scenario, folder: Path) -> str:
    """The scenario as the YAML of a file in `folder`, every default written out, paths relative to it."""
    import yaml

    tree = scenario.model_dump(mode="json")
    for path in _files(tree):
        set_path(tree, path, os.path.relpath(get_path(tree, path), folder))
    return yaml.safe_dump(tree, sort_keys=False)
