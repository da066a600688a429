"""Named workloads: `presets.toml` says what they are, where the numbers come from, and how well they fit."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import inf

from kavier.errors import InputError
from kavier.scenario import Arrivals, Synthetic


@dataclass(frozen=True, slots=True)
class Preset:
    """A named workload.

    Attributes:
        about: What it is and what it leaves out.
        source: Where its numbers come from.
        date: When they were published or measured.
        synthetic: Complete description, ready to generate.
        targets: Published or measured statistics it must show, as "column.statistic" -> value.
    """

    about: str
    source: str
    date: str
    synthetic: Synthetic
    targets: Mapping[str, float]


def preset_names() -> list[str]:
    """Names of all presets."""
    return list(_presets())


def find_preset(name: str) -> Preset:
    """The preset of this name.

    Raises:
        InputError: No such preset; the nearest names are offered.
    """
    try:
        return _presets()[name]
    except KeyError:
        raise InputError(
            f"unknown preset {name!r}", expected=", ".join(preset_names()), near=(name, preset_names())
        ) from None


def resolve(spec: Synthetic) -> Synthetic:
    """Fill what is not given: from the preset, or with Poisson arrivals at 1 request/s.

    A section that is given replaces the preset's whole, save that `arrivals` may change the rate and
    keep the process, or the other way round; an infinite rate leaves no process. Resolving twice changes
    nothing.

    Raises:
        InputError: Unknown preset, missing lengths, or nothing that ends the load.
    """
    base = find_preset(spec.preset).synthetic if spec.preset else Synthetic()
    ends = spec.num_prompts is not None or spec.duration_s is not None
    full = Synthetic(
        preset=spec.preset,
        num_prompts=spec.num_prompts if ends else base.num_prompts,
        duration_s=spec.duration_s if ends else base.duration_s,
        arrivals=_merge(spec.arrivals or Arrivals(), base.arrivals or Arrivals()),
        prompt_tokens=spec.prompt_tokens or base.prompt_tokens,
        output_tokens=spec.output_tokens or base.output_tokens,
        prefixes=spec.prefixes or base.prefixes,
    )
    _check_complete(full)
    return full


def changes(full: Synthetic) -> list[str]:
    """What of a resolved workload is not its preset's own; where it stops is not looked at."""
    if full.preset is None:
        return []
    own = find_preset(full.preset).synthetic
    sections = ("prompt_tokens", "output_tokens", "prefixes")
    return [
        *_changed_arrivals(full.arrivals or Arrivals(), own.arrivals or Arrivals()),
        *(name for name in sections if getattr(full, name) != getattr(own, name)),
    ]


def _changed_arrivals(given: Arrivals, own: Arrivals) -> Iterator[str]:
    """With another process its settings are others, too; all at once there is none."""
    if given.request_rate != own.request_rate:
        yield "request_rate"
    if given.request_rate == inf:
        return
    if given.process != own.process:
        yield "process"
    elif given.model_copy(update={"request_rate": own.request_rate}) != own:
        yield "gaps between arrivals"


def _merge(given: Arrivals, base: Arrivals) -> Arrivals:
    """The rate of one may come with the process of the other; all at once there are no gaps to draw."""
    rate = given.request_rate or base.request_rate or 1.0
    if rate == inf:
        return Arrivals(process="poisson", request_rate=inf)
    shape = given if given.process else base
    return shape.model_copy(update={"process": shape.process or "poisson", "request_rate": rate})


def _check_complete(spec: Synthetic) -> None:
    for name in ("prompt_tokens", "output_tokens"):
        if getattr(spec, name) is None:
            raise InputError(f"synthetic load has no {name}", expected=f"{name} or a preset")
    if spec.num_prompts is None and spec.duration_s is None:
        raise InputError("synthetic load never ends", expected="num_prompts or duration_s")


@cache
def _presets() -> dict[str, Preset]:
    text = files("kavier.workload").joinpath("presets.toml").read_text(encoding="utf-8")
    return {name: _preset(name, entry) for name, entry in tomllib.loads(text).items()}


def _preset(name: str, entry: Mapping[str, object]) -> Preset:
    fields = dict(entry)
    synthetic = Synthetic.model_validate({"preset": name, **fields.pop("synthetic")})  # type: ignore[dict-item]
    return Preset(synthetic=synthetic, **fields)  # type: ignore[arg-type]
