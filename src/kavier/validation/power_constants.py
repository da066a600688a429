"""The constants of a power fit, as Kavier ships them."""

from __future__ import annotations

from collections.abc import Sequence

from kavier.validation.power_fit import SHIPPED, PowerFit, errors
from kavier.validation.power_work import Work

UNITS = {
    "alpha": "1",
    "beta": "1",
    "byte_energy": "pJ/byte",
    "flop_energy": "pJ/FLOP in 16 bits",
    "floor": "share of the TDP",
    "share": "share of the TDP",
    "sd": "relative, one standard deviation",
}
DIGITS = 3
"""Significant digits of a shipped constant."""


def unit_of(name: str) -> str:
    """Unit of a constant by its dotted name."""
    return UNITS[name.rpartition(".")[2]]


def constants(fits: Sequence[PowerFit], work: Work) -> dict[str, tuple[float, str]]:
    """Dotted name -> value and fit error, of everything `metrics/power.toml` holds."""
    found: dict[str, tuple[float, str]] = {}
    for fit in fits:
        if fit.name not in SHIPPED:
            continue
        for name, value in fit.parameters.items():
            doubt = f"+-{_rounded(fit.sd[name]):g}, jackknife over families of models"
            found[f"{fit.name}.{name}"] = _rounded(value), doubt
        out = errors(fit.left_out_w, work.power_w)
        found[f"{fit.name}.sd"] = (
            _rounded(out.sd),
            f"root mean square, family left out; MAPE {out.mape:.1%}, bias {out.bias:+.1%}",
        )
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def constants_toml(fits: Sequence[PowerFit], work: Work, source: str, date: str) -> str:
    """`metrics/power.toml` as shipped."""
    families = len(set(work.families.tolist()))
    head = (
        f"# Written by `kavier fit-power {source}`: power models of one GPU, fitted to\n"
        f"# {len(work.points)} runs of {families} families of models. See docs/validation-power.md.\n"
    )
    entries = [
        f'[{name}]\nvalue = {value:g}\nunit = "{unit_of(name)}"\n'
        f'source = "kavier fit-power: {source}, {len(work.points)} runs on H100 SXM, time as measured"\n'
        f'error = "{doubt}"\ndate = "{date}"\n'
        for name, (value, doubt) in constants(fits, work).items()
    ]
    return "\n".join([head, *entries])
