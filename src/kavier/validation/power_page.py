"""What a power fit and the runs played found, as tables, as plain data and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from kavier.metrics.power import FITTED
from kavier.report.scatter import scatter_svg
from kavier.report.sections import Section
from kavier.validation.ml_energy import INPUT_TOKENS, Measured
from kavier.validation.power_constants import constants, unit_of
from kavier.validation.power_fit import (
    CANDIDATES,
    Errors,
    PowerFit,
    by_group,
    calibrated,
    deployments,
    errors,
    regimes,
)
from kavier.validation.power_runs import DENSE_BF16, VLLM_VERSION, PlayedPoint
from kavier.validation.power_work import Work
from kavier.validation.splitwise import LONGEST_PROMPT, StaticRun

ERRORS = ("runs", "MAPE", "bias", "P95")

LIMITS = Section(
    "What these numbers do not know",
    "- Qwen3-235B in fp8 is a known failure. At 8 requests on 8 GPUs it is slower and hotter than in bf16 "
    "(25.5 against 20.2 ms a token, 453 against 355 W a GPU) though it reads half as many bytes: no model of "
    "bytes and FLOPs sees that. Results with experts in fp8 or fp4 therefore say 30 %.\n"
    "- Dense models on several GPUs come out too high; waiting for others in all-reduces may draw less.\n"
    "- All runs are saturated serving on H100. Nothing tests low load, idle gaps or power limits below TDP.\n"
    "- Prompts of the runs are assumed, see above. Experts are taken as balanced.\n"
    "- Of models that a scenario cannot serve (Nemotron-Nano, Llama 4, Llama-3.1-405B-FP8) the work is "
    "counted from shapes typed in (`validation/power_work.py`).\n"
    "- With simulated time most of the error is that of the throughput: steps that are too short do the same "
    "work at a higher power, so energy errs less than time.",
)
"""Facts beside the tables."""


def fit_sections(fits: Sequence[PowerFit], work: Work, measured: Measured) -> list[Section]:
    """Tables of a fit: candidates, constants, regimes and deployments of the first candidate, calibration."""
    best = fits[0]
    left_out = ", ".join(f"{count} of {task}" for task, count in measured.left_out.items())
    inputs = ", ".join(f"{tokens:,} ({task})" for task, tokens in INPUT_TOKENS.items())
    count, families = len(work.points), len(set(work.families.tolist()))
    return [
        Section(
            "Candidates",
            f"GPU power of {count} measured runs (ML.ENERGY leaderboard, vLLM 0.11.1, saturated closed "
            f"loop), {families} families of models; time is as measured, work is counted by the code that "
            "prices steps. Each family is predicted from a fit to the others. "
            f"Assumed, since not published: prompts of {inputs} tokens. "
            f"Left out, prompts unknown: {left_out or 'none'}.",
            ("Model", "parameters", "MAPE", "bias", "P95"),
            [_candidate(fit, work) for fit in fits],
        ),
        Section(
            "Constants",
            "Fitted to all runs; the deviation is a jackknife over families.",
            ("Constant", "value", "unit", "fit error", "shipped"),
            [
                (
                    name,
                    f"{value:g}",
                    unit_of(name),
                    doubt.partition(",")[0],
                    f"{FITTED[name]:g}",
                )
                for name, (value, doubt) in constants(fits, work).items()
            ],
        ),
        *(
            Section(
                f"{best.name.capitalize()} model by {what}",
                "The family of each run left out of its fit.",
                (what[0].upper() + what[1:], *ERRORS),
                _error_rows(by_group(best.left_out_w, work, groups)),
            )
            for what, groups in regimes(work).items()
        ),
        Section(
            f"{best.name.capitalize()} model by deployment",
            "The family of each run left out of its fit.",
            ("Model", "GPUs", "task", *ERRORS),
            [
                (*group.split(" | "), *row[1:])
                for group, row in zip(
                    dict.fromkeys(deployments(work).tolist()),
                    _error_rows(by_group(best.left_out_w, work, deployments(work))),
                    strict=True,
                )
            ],
        ),
        Section(
            "With one measured point a deployment",
            "One factor on the activity of a deployment (`power_factor`) from its middle batch, the family "
            "left out of the fit; the errors are those of its other runs.",
            ("", *ERRORS),
            _error_rows({"calibrated": calibrated(best, work)}),
        ),
    ]


def _candidate(fit: PowerFit, work: Work) -> tuple[str, ...]:
    out = errors(fit.left_out_w, work.power_w)
    return fit.name, str(len(CANDIDATES[fit.name].start)), *_percents(out)


def _percents(out: Errors) -> tuple[str, ...]:
    return f"{out.mape:.1%}", f"{out.bias:+.1%}", f"{out.p95:.0%}"


def _error_rows(groups: Mapping[str, Errors]) -> list[tuple[str, ...]]:
    return [(group, str(out.count), *_percents(out)) for group, out in groups.items()]


def played_errors(played: Sequence[PlayedPoint]) -> dict[str, dict[str, Errors]]:
    """Model (and all) -> errors of energy a token, of throughput, and of power."""
    groups = {"all": list(played)}
    for one in played:
        groups.setdefault(one.point.model, []).append(one)
    return {
        group: {
            "j_per_token": _played(members, "j_per_token"),
            "tokens_per_s": _played(members, "tokens_per_s"),
            "power_w": _played(members, "power_w"),
        }
        for group, members in groups.items()
    }


def _played(played: Sequence[PlayedPoint], name: str) -> Errors:
    return errors(
        np.array([getattr(one, name) for one in played]),
        np.array([getattr(one.point, name) for one in played]),
    )


def played_sections(played: Sequence[PlayedPoint], timing: str, power: str) -> list[Section]:
    """Tables of the runs played by the simulator."""
    summary = played_errors(played)
    return [
        Section(
            f"Energy a token with simulated time, level {timing}",
            f"Runs of the dense 16-bit models ({', '.join(name.rpartition('/')[2] for name in DENSE_BF16)}) "
            "played in a closed loop: all requests at once, lengths from the published histograms, vLLM's "
            f"arguments as published, rules of vLLM {VLLM_VERSION}, synchronous (0.11.1 ran, asynchronous, "
            "which hid little: played as 0.14's loop, throughput is 22 % too high and energy a token 12 % "
            f"off). Power model: {power}. Counted from the first step with a full "
            "batch to the last behind which requests wait.",
            ("Model", "runs", "J/token MAPE", "bias", "throughput MAPE", "bias", "power MAPE", "bias"),
            [
                (
                    group,
                    str(of["power_w"].count),
                    *(text for out in of.values() for text in _percents(out)[:2]),
                )
                for group, of in summary.items()
            ],
        ),
        Section(
            "Run by run",
            "Simulated / measured, and its error.",
            ("Model", "GPUs", "task", "max_num_seqs", "running", "W a GPU", "tokens/s", "J/token"),
            [_played_row(one) for one in played],
        ),
    ]


def _played_row(one: PlayedPoint) -> tuple[str, ...]:
    point = one.point
    return (
        point.model.rpartition("/")[2],
        str(point.gpus),
        point.task,
        str(point.max_num_seqs),
        f"{one.batch:.0f} / {point.batch:.0f}",
        _pair(one.power_w, point.power_w, ".0f"),
        _pair(one.tokens_per_s, point.tokens_per_s, ".0f"),
        _pair(one.j_per_token, point.j_per_token, ".3f"),
    )


def _pair(simulated: float, measured: float, form: str) -> str:
    return f"{simulated:{form}} / {measured:{form}} ({simulated / measured - 1:+.0%})"


def static_errors(runs: Sequence[StaticRun]) -> dict[str, dict[str, Errors]]:
    """Power model -> deployment (and all) -> errors."""
    measured = np.array([run.measured_w for run in runs])
    groups = {"all": np.ones(len(runs), bool)}
    for group in dict.fromkeys(run.group for run in runs):
        groups[group] = np.array([run.group == group for run in runs])
    found = {}
    for name in runs[0].models:
        modelled = np.array([run.modelled_w(name) for run in runs])
        found[name] = {group: errors(modelled[chosen], measured[chosen]) for group, chosen in groups.items()}
    return found


def static_section(runs: Sequence[StaticRun]) -> Section:
    """The check on A100s."""
    return Section(
        "A100, not fitted",
        f"Static batches (Splitwise, vLLM of 2023), prompts of up to {LONGEST_PROMPT:,} tokens; "
        "constants carried over from H100 as the power models say.",
        ("Model", "deployment", *ERRORS),
        [(name, *row) for name, groups in static_errors(runs).items() for row in _error_rows(groups)],
    )


def picture(fit: PowerFit, work: Work) -> str:
    """Predicted against measured power of all runs, SVG."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for family, measured, predicted in zip(work.families, work.power_w, fit.left_out_w, strict=True):
        groups.setdefault(str(family), []).append((float(measured), float(predicted)))
    title = f"GPU power, model {fit.name!r}, family left out of the fit"
    return scatter_svg(title, "W a GPU", groups, float(np.max(work.tdp_w)))


def fit_numbers(fits: Sequence[PowerFit], work: Work) -> dict[str, Any]:
    """The same as plain data."""
    return {
        "runs": len(work.points),
        "families": sorted(set(work.families.tolist())),
        "candidates": {
            fit.name: {
                "parameters": dict(fit.parameters),
                "jackknife_sd": dict(fit.sd),
                "family_left_out": asdict(errors(fit.left_out_w, work.power_w)),
            }
            for fit in fits
        },
        "regimes": {
            what: {group: asdict(out) for group, out in by_group(fits[0].left_out_w, work, groups).items()}
            for what, groups in {**regimes(work), "deployment": deployments(work)}.items()
        },
        "one_point_a_deployment": asdict(calibrated(fits[0], work)),
    }


def grouped_numbers(groups: Mapping[str, Mapping[str, Errors]]) -> dict[str, dict[str, Any]]:
    """Errors of groups as plain data."""
    return {name: {group: asdict(out) for group, out in of.items()} for name, of in groups.items()}
