"""Small plots as inline SVG, drawn by hand: lines, bars and ranks of a few numbers.

Colours are CSS classes (`s0`, `s1`, ... and `grid`, `axis`, `band`) that the page gives a colour in each theme, so one drawing serves light and
dark. A drawing is 400 units wide and scales with its box; text of 12 units stays readable on a phone. Every mark says its number in a <title>,
and the caller puts the same numbers into a table beside it. No time, no chance: the same numbers give the same text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final, NamedTuple

WIDTH: Final = 400.0
HEIGHT: Final = 230.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 8.0, 10.0, 36.0
STEPS: Final = tuple(float(f"{digit}e{power}") for power in range(8) for digit in (1, 2, 5))
LINES_MOST: Final = 6  # of the grid


class Series(NamedTuple):
    """One name and its values, one for each label; None: nothing to show there. `low` and `high` draw whiskers."""

    name: str
    values: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None


def lines(
    title: str, labels: Sequence[str], series: Sequence[Series], *, below: str, unit: str = "s", band: tuple[float, float] | None = None
) -> str:
    """Values over labels, a line each. `band` shades where values should lie."""
    scale = _Scale(series, band)
    parts = [*_head(title), *_frame(scale, labels, below)]
    if band is not None:
        top, bottom = scale.y(band[1]), scale.y(band[0])
        parts.insert(1, f'<rect class="band" x="{LEFT}" y="{top:.1f}" width="{WIDTH - LEFT - RIGHT}" height="{bottom - top:.1f}"/>')
    for number, one in reversed(list(enumerate(series))):  # the first lies on top
        points = [(_x(i, len(labels)), scale.y(value), i) for i, value in enumerate(one.values) if value is not None]
        parts += _whiskers(one, number, scale, len(labels))
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
        parts.append(f'<polyline class="line s{number}" points="{joined}"/>')
        for x, y, i in points:
            said = f"{one.name}, {labels[i]}: {number_text(one.values[i])} {unit}"
            parts.append(f'<circle class="dot s{number}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{escape(said)}</title></circle>')
    return "".join([*parts, "</svg>"])


def bars(title: str, labels: Sequence[str], series: Sequence[Series], *, below: str, unit: str = "s", limit: float | None = None) -> str:
    """Values over labels as bars side by side, from zero up or down. `limit` draws a dashed line at plus and minus that."""
    scale = _Scale(series, None if limit is None else (-limit, limit))
    parts = [*_head(title), *_frame(scale, labels, below)]
    room = (WIDTH - LEFT - RIGHT) / max(1, len(labels))
    wide = 0.8 * room / max(1, len(series))
    for number, one in enumerate(series):
        for i, value in enumerate(one.values):
            if value is None:
                continue
            x = _x(i, len(labels)) - 0.4 * room + number * wide
            top, bottom = sorted((scale.y(value), scale.y(0.0)))
            said = f"{one.name}, {labels[i]}: {number_text(value)} {unit}"
            box = f'x="{x:.1f}" y="{top:.1f}" width="{wide * 0.92:.1f}" height="{max(0.5, bottom - top):.1f}"'
            parts.append(f'<rect class="bar s{number}" {box}><title>{escape(said)}</title></rect>')
    for value in () if limit is None else (-limit, limit):
        parts.append(f'<path class="limit" d="M{LEFT} {scale.y(value):.1f}H{WIDTH - RIGHT}"/>')
    return "".join([*parts, "</svg>"])


def ranks(title: str, labels: Sequence[str], main: Series, other: Series | None = None, *, unit: str = "s") -> str:
    """One horizontal bar a label with its whiskers, and a mark where `other` stands."""
    row, name_width = 22.0, 92.0
    height = TOP + row * len(labels) + 20
    values = [value for each in (main, other) if each for column in (each.values, each.high or ()) for value in column if value is not None]
    most = max(values, default=1.0) or 1.0
    step = _step(most, 4)

    def x(value: float) -> float:
        return name_width + value / most * (WIDTH - name_width - 44)

    parts = list(_head(title, height))
    for k in range(int(most / step) + 1):
        at = x(k * step)
        parts.append(f'<path class="grid" d="M{at:.1f} {TOP}V{height - 20:.1f}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{height - 6:.1f}" text-anchor="middle">{number_text(k * step)}</text>')
    for i, label in enumerate(labels):
        value, middle = main.values[i], TOP + row * (i + 0.5)
        parts.append(f'<text class="name" x="{name_width - 6}" y="{middle + 4:.1f}" text-anchor="end">{escape(_short(label))}</text>')
        if value is None:
            continue
        said = f"{label}: {number_text(value)} {unit}"
        low, high = (None if column is None else column[i] for column in (main.low, main.high))
        if low is not None and high is not None:
            said += f" ({number_text(low)} to {number_text(high)})"
        width = max(0.5, x(value) - name_width)
        parts.append(
            f'<rect class="bar s0" x="{name_width}" y="{middle - 7:.1f}" width="{width:.1f}" height="14"><title>{escape(said)}</title></rect>'
        )
        if low is not None and high is not None:
            parts.append(f'<path class="whisker" d="M{x(low):.1f} {middle:.1f}H{x(high):.1f}"/>')
        rival = other.values[i] if other is not None else None
        if other is not None and rival is not None:
            said = f"{label}, {other.name}: {number_text(rival)} {unit}"
            parts.append(f'<path class="mark" d="M{x(rival):.1f} {middle - 9:.1f}v18"><title>{escape(said)}</title></path>')
        end = max(each for each in (value, high, rival) if each is not None)
        parts.append(f'<text class="value" x="{x(end) + 5:.1f}" y="{middle + 4:.1f}">{number_text(value)}</text>')
    return "".join([*parts, "</svg>"])


def number_text(value: float | None) -> str:
    """A number as short as its size allows."""
    if value is None:
        return "-"
    if abs(value) >= 10_000 and value % 1_000 == 0:
        return f"{value / 1_000:,.0f}k"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.1f}"


class _Scale:
    """From values to y, over a grid of round numbers that holds zero and everything shown."""

    def __init__(self, series: Sequence[Series], also: tuple[float, float] | None) -> None:
        columns = [column for one in series for column in (one.values, one.low or (), one.high or ())]
        shown = [0.0, *(value for column in columns for value in column if value is not None), *(also or ())]
        least, most = min(shown), max(shown)
        self.step = _step(most - least or 1.0, LINES_MOST)
        self.low = float(self.step * math.floor(least / self.step))
        self.high = float(self.step * math.ceil(most / self.step)) or float(self.step)

    def y(self, value: float) -> float:
        return TOP + (self.high - value) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)

    def ticks(self) -> list[float]:
        return [self.low + k * self.step for k in range(round((self.high - self.low) / self.step) + 1)]


def _step(span: float, most: int) -> float:
    return next((step for step in STEPS if span / step <= most), STEPS[-1])


def _x(i: int, count: int) -> float:
    return LEFT + (i + 0.5) * (WIDTH - LEFT - RIGHT) / max(1, count)


def _head(title: str, height: float = HEIGHT) -> list[str]:
    return [f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">']


def _frame(scale: _Scale, labels: Sequence[str], below: str) -> list[str]:
    parts = []
    for value in scale.ticks():
        kind = "axis" if value == 0 else "grid"
        parts.append(f'<path class="{kind}" d="M{LEFT} {scale.y(value):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 5}" y="{scale.y(value) + 4:.1f}" text-anchor="end">{number_text(value)}</text>')
    every = -(-len(labels) // 9)
    for i, label in enumerate(labels):
        if i % every == 0:
            parts.append(
                f'<text class="tick" x="{_x(i, len(labels)):.1f}" y="{HEIGHT - BOTTOM + 15:.0f}" text-anchor="middle">{escape(label)}</text>'
            )
    parts.append(
        f'<text class="tick" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 4:.0f}" text-anchor="middle">{escape(below)}</text>'
    )
    return parts


def _whiskers(one: Series, number: int, scale: _Scale, count: int) -> list[str]:
    if one.low is None or one.high is None:
        return []
    pairs = [(i, low, high) for i, (low, high) in enumerate(zip(one.low, one.high, strict=True)) if low is not None and high is not None]
    return [f'<path class="whisker s{number}" d="M{_x(i, count):.1f} {scale.y(low):.1f}V{scale.y(high):.1f}"/>' for i, low, high in pairs]


def _short(label: str) -> str:
    return label if len(label) <= 14 else label[:13] + "\N{HORIZONTAL ELLIPSIS}"
