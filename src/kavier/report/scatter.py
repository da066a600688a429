"""Predicted against measured numbers, as an SVG picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

SIDE, MARGIN = 480, 56
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933", "#882255",
          "#44aa99", "#aa4499")  # fmt: skip


def scatter_svg(
    title: str, unit: str, groups: Mapping[str, Sequence[tuple[float, float]]], limit: float
) -> str:
    """Points (measured, predicted) from 0 to `limit` on both axes, a color a group, and lines at +-20 %."""
    height, width = SIDE + 2 * MARGIN, SIDE + 2 * MARGIN + 260

    def x(value: float) -> str:
        return f"{MARGIN + SIDE * value / limit:.1f}"

    def y(value: float) -> str:
        return f"{MARGIN + SIDE * (1 - value / limit):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
        "<style>text {font: 13px sans-serif}</style>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{MARGIN}" y="{MARGIN - 20}">{escape(title)}</text>',
    ]
    for tick in range(6):
        value = limit * tick / 5
        parts += [
            f'<path d="M{x(value)} {y(0)}V{y(limit)}M{x(0)} {y(value)}H{x(limit)}" stroke="#ddd"/>',
            f'<text x="{x(value)}" y="{MARGIN + SIDE + 18}" text-anchor="middle">{value:.0f}</text>',
            f'<text x="{MARGIN - 6}" y="{y(value)}" text-anchor="end" dy="4">{value:.0f}</text>',
        ]
    for slope, style in ((1.0, ""), (1.2, ' stroke-dasharray="4"'), (0.8, ' stroke-dasharray="4"')):
        end = min(limit, limit / slope)
        parts.append(f'<path d="M{x(0)} {y(0)}L{x(end)} {y(end * slope)}" stroke="#888"{style}/>')
    parts += [
        f'<text x="{MARGIN + SIDE / 2}" y="{height - 12}" text-anchor="middle">measured, {unit}</text>',
        f'<g transform="translate(14 {MARGIN + SIDE / 2}) rotate(-90)">',
        f'<text text-anchor="middle">predicted, {unit}</text></g>',
    ]
    for number, (name, points) in enumerate(groups.items()):
        color = COLORS[number % len(COLORS)]
        parts += [
            f'<circle cx="{x(a)}" cy="{y(b)}" r="3.5" fill="{color}" fill-opacity="0.7"/>' for a, b in points
        ]
        place = MARGIN + 18 * number
        parts.append(f'<circle cx="{MARGIN + SIDE + 24}" cy="{place}" r="4" fill="{color}"/>')
        parts.append(f'<text x="{MARGIN + SIDE + 34}" y="{place}" dy="4">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])
