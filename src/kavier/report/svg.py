"""Small plots as SVG text: lines and dots in panels side by side, for pages that are kept."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

PALETTE = ("#222222", "#d1495b", "#2e6f95", "#3f8f4f", "#b07a1e", "#7a5195")
PANEL_WIDTH, PANEL_HEIGHT = 260, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 18, 40, 38
"""Room around the axes of a panel, in pixels."""

TICKS = 4


@dataclass(frozen=True, slots=True)
class Series:
    """Points that belong together.

    Attributes:
        label: In the legend.
        x: Places.
        y: As many.
        dots: Dots instead of a line.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: Above.
        x_label: Below.
        series: What is drawn; the colour follows from the place.
        log_x: Equal ratios of x are equally far apart; only positive x are drawn.
        zero: Draw the line y = 0.
    """

    title: str
    x_label: str
    series: Sequence[Series]
    log_x: bool = False
    zero: bool = False


def svg(panels: Sequence[Panel]) -> str:
    """The panels in a row."""
    width = PANEL_WIDTH * len(panels)
    size = f'width="{width}" height="{PANEL_HEIGHT}" viewBox="0 0 {width} {PANEL_HEIGHT}"'
    style = "text{font:11px sans-serif;fill:#222}path{fill:none;stroke-width:1.5}"
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>']
    parts.append(f'<rect width="{width}" height="{PANEL_HEIGHT}" fill="#fff"/>')
    for number, panel in enumerate(panels):
        parts += [f'<g transform="translate({number * PANEL_WIDTH})">', *_panel(panel), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel) -> Iterator[str]:
    drawn = [_drawable(one, log_x=panel.log_x) for one in panel.series]
    x_axis = _Axis([x for points in drawn for x, _ in points], LEFT, PANEL_WIDTH - RIGHT, log=panel.log_x)
    y_values = [y for points in drawn for _, y in points] + ([0.0] if panel.zero else [])
    y_axis = _Axis(y_values, PANEL_HEIGHT - BOTTOM, TOP)
    yield f'<text x="{LEFT}" y="15" font-weight="bold">{escape(panel.title)}</text>'
    yield f'<text x="{LEFT}" y="30">{"".join(_keys(panel.series))}</text>'
    middle = (LEFT + PANEL_WIDTH - RIGHT) / 2
    yield f'<text x="{middle}" y="{PANEL_HEIGHT - 6}" text-anchor="middle">{escape(panel.x_label)}</text>'
    for value in x_axis.ticks:
        shown = f"{10**value if panel.log_x else value:.3g}"
        place = f'x="{x_axis.at(value):.1f}" y="{PANEL_HEIGHT - BOTTOM + 14}"'
        yield f'<text {place} text-anchor="middle">{shown}</text>'
    for value in y_axis.ticks:
        height = y_axis.at(value)
        line = f"M{LEFT} {height:.1f}H{PANEL_WIDTH - RIGHT}"
        yield f'<path d="{line}" stroke="{"#888" if panel.zero and value == 0 else "#ddd"}"/>'
        yield f'<text x="{LEFT - 4}" y="{height + 4:.1f}" text-anchor="end">{value:.3g}</text>'
    for number, (one, points) in enumerate(zip(panel.series, drawn, strict=True)):
        colour = PALETTE[number % len(PALETTE)]
        places = [(x_axis.at(x), y_axis.at(y)) for x, y in points]
        if one.dots:
            yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in places)
        elif places:
            yield f'<path d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}" stroke="{colour}"/>'


def _keys(series: Sequence[Series]) -> Iterator[str]:
    """The legend, one word behind the other."""
    for number, one in enumerate(series):
        colour = PALETTE[number % len(PALETTE)]
        yield f'<tspan dx="{8 if number else 0}" style="fill:{colour}">{escape(one.label)}</tspan>'


def _drawable(series: Series, *, log_x: bool) -> list[tuple[float, float]]:
    pairs = zip(series.x, series.y, strict=True)
    if log_x:
        return [(math.log10(x), y) for x, y in pairs if x > 0]
    return list(pairs)


class _Axis:
    """From values (their logarithms, if `log`) to pixels, over round numbers."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, log: bool = False) -> None:
        low, high = min(values, default=0.0), max(values, default=1.0)
        self.ticks = _log_ticks(low, high) if log else _ticks(low, high)
        self._start, self._scale = start, (end - start) / (self.ticks[-1] - self.ticks[0])

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return self._start + (value - self.ticks[0]) * self._scale


def _ticks(low: float, high: float) -> list[float]:
    step = _round_step((high - low) / TICKS or abs(high) / TICKS or 1.0)
    first = math.floor(low / step)
    return [number * step for number in range(first, max(math.ceil(high / step), first + 1) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, or the powers alone where those are many; as logarithms."""
    leads = (1, 2, 5) if high - low < TICKS / 2 else (1,)
    decades = range(math.floor(low), math.floor(high) + 2)
    every = [decade + math.log10(lead) for decade in decades for lead in leads]
    first = max(number for number, tick in enumerate(every) if tick <= low)
    last = min(number for number, tick in enumerate(every) if tick >= high)
    return every[first : max(last, first + 1) + 1]


def _round_step(rough: float) -> float:
    """1, 2 or 5 times a power of ten, at least as large."""
    power: float = 10.0 ** math.floor(math.log10(rough))
    return next(power * lead for lead in (1, 2, 5, 10) if power * lead >= rough * (1 - 1e-9))
