"""Numbers with their units, as people read them."""

from __future__ import annotations

from kavier.units import MS_PER_S


def latency(seconds: float | None) -> str:
    """In ms below a second."""
    if seconds is None:
        return "-"
    return f"{seconds * MS_PER_S:,.2f} ms" if seconds < 1 else f"{seconds:,.2f} s"


def amount(value: float | None, unit: str) -> str:
    """Four digits below a thousand, whole units above."""
    return "-" if value is None else f"{value:,.4g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def level(value: float) -> str:
    """Three digits below a hundred, whole above; what is not zero is not shown as zero."""
    if 0 < value < 0.001:
        return "<0.001"
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def power(watts: float) -> str:
    """In W, kW or MW."""
    for unit, scale in (("MW", 1e6), ("kW", 1e3)):
        if watts >= scale:
            return f"{level(watts / scale)} {unit}"
    return f"{level(watts)} W"


def counted(count: int, what: str) -> str:
    """`1 request`, `2,000 requests`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Whole seconds from a minute on, three digits below."""
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = (f"{hours} h" if hours else "", f"{minutes} min" if minutes else "", f"{rest} s")
    return " ".join(part for part in parts if part)
