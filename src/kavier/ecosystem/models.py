"""Models by name: the catalog's, and any local config.json."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from kavier.ecosystem.hf_config import spec_from_hf_config
from kavier.ecosystem.model import ModelSpec
from kavier.errors import InputError


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model of the catalog, as typed in.

    Attributes:
        name: Hugging Face name.
        config: The fields of its config.json that matter here.
        published_parameters: What its makers publish, to check our own count by.
        published_source: What that number is.
        source: Where the fields come from.
        date: When they were looked up (ISO).
        base: Catalog name of the model it is a variant of, None when it is not one.
    """

    name: str
    config: Mapping[str, Any]
    published_parameters: int
    published_source: str
    source: str
    date: str
    base: str | None = None
    variants: tuple[str, ...] = field(default=())


@cache
def _catalog() -> Mapping[str, ModelEntry]:
    """Every model and variant by its name, in the order of the file."""
    text = (files("kavier.ecosystem") / "catalog" / "models.toml").read_text(encoding="utf-8")
    entries: dict[str, ModelEntry] = {}
    for row in tomllib.loads(text)["model"]:
        overrides: Mapping[str, Mapping[str, Any]] = row.pop("variants", {})
        entry = ModelEntry(**row, variants=tuple(overrides))
        entries[entry.name] = entry
        for name, changed in overrides.items():
            config = {**entry.config, **changed}
            entries[name] = ModelEntry(**{**row, "name": name, "config": config}, base=entry.name)
    return entries


@cache
def _lookup() -> Mapping[str, tuple[str, ...]]:
    """Folded full name, and folded name without its organisation -> the catalog names it may mean."""
    found: dict[str, list[str]] = {}
    for name in _catalog():
        for key in dict.fromkeys((name.casefold(), name.casefold().rpartition("/")[2])):
            found.setdefault(key, []).append(name)
    return {key: tuple(names) for key, names in found.items()}


def model_names(*, variants: bool = False) -> list[str]:
    """Names of the catalog's models, in its order; with `variants`, those that share a model's shapes too."""
    return [name for name, entry in _catalog().items() if variants or entry.base is None]


def model_entry(name: str) -> ModelEntry:
    """The catalog entry of a model: its full name or the part after the slash, whatever the case.

    Raises:
        InputError: No such model (the nearest names are offered), or a short name that means several.
    """
    names = _lookup().get(name.casefold(), ())
    if not names:
        raise InputError(
            f"unknown model {name!r}",
            expected="a name of `kavier catalog models`, or the path of a config.json or of its folder",
            near=(name.rpartition("/")[2], [known.rpartition("/")[2] for known in _catalog()]),
        )
    if len(names) > 1:
        raise InputError(f"{name!r} means several models", expected=" or ".join(names))
    return _catalog()[names[0]]


def find_model(name_or_path: str) -> ModelSpec:
    """The model of a catalog name or alias, or of a local config.json (or the folder that holds one).

    Raises:
        InputError: Neither; or a config.json that cannot be read or is not modelled (the field is named).
    """
    if name_or_path.casefold() not in _lookup():
        path = Path(name_or_path)
        if os.path.isdir(path) or path.suffix == ".json":  # noqa: PTH112 - Path.is_dir() raises on long names
            return _read_config(path / "config.json" if path.suffix != ".json" else path)
    entry = model_entry(name_or_path)
    return _spec(entry.name)


@cache
def _spec(name: str) -> ModelSpec:
    config = dict(_catalog()[name].config)
    return _with_sampling(config.pop("generation_config", {}), spec_from_hf_config(config, name))


def _with_sampling(generation: Mapping[str, Any], spec: ModelSpec) -> ModelSpec:
    """VLLM serves with the sampling defaults of generation_config.json (its --generation-config auto)."""
    top_k, top_p = generation.get("top_k") or 0, generation.get("top_p") or 1.0
    return replace(spec, top_k_top_p=top_k > 0 or top_p < 1.0)


def _read_config(path: Path) -> ModelSpec:
    """The model of a config.json, and what a generation_config.json beside it says of sampling."""
    generation = path.with_name("generation_config.json")
    spec = spec_from_hf_config(_read_json(path), str(path))
    return _with_sampling(_read_json(generation), spec) if generation.is_file() else spec


def _read_json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot read the model: {reason}", where=str(path)) from None
    except json.JSONDecodeError as error:
        raise InputError(f"not valid JSON: {error.msg}", where=f"{path}, line {error.lineno}") from None
    except RecursionError:
        raise InputError("JSON nested too deeply", where=str(path)) from None
    except ValueError:  # Python reads whole numbers of up to 4300 digits
        raise InputError("not valid JSON: a number of too many digits", where=str(path)) from None
    if not isinstance(config, dict):
        raise InputError(
            "the config is not an object", where=str(path), expected=f"a Hugging Face {path.name}"
        )
    return config
