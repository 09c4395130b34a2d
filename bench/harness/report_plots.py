"""Plots as inline SVG, drawn by hand: lines on linear, logarithmic and percentile axes, stacked areas, ratios about one.

Colours are CSS variables (`--c0`, `--c1`, ...) that `STYLE` gives a value in each theme, so that one drawing serves light and dark; lines differ by
dash as well. A drawing is 360 units wide and scales with its box, so text stays readable on a phone. No number is told by a drawing alone: whoever
draws puts a table beside it. No time, no chance: the same numbers give the same text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Final, NamedTuple

WIDTH: Final = 360.0
HEIGHT: Final = 230.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 12.0, 12.0, 36.0
COLOURS: Final = 8
DASHES: Final = ("", "6 3", "2 3", "9 3 2 3", "", "6 3", "2 3", "9 3 2 3")
LEAST: Final = 1e-9  # below it nothing is told apart from nothing
POINTS_MOST: Final = 180  # of one line: two units apart; more cannot be told from each other

PALETTE: Final = """:root{color-scheme:light dark;--bg:#fff;--card:#f6f7f8;--ink:#1b1f23;--dim:#57606a;--line:#d7dce1;--good:#0a6b47;--bad:#b3261e;
--c0:#0b6e4f;--c1:#0a62b5;--c2:#a8480a;--c3:#7a3e9d;--c4:#8a6500;--c5:#b32d5c;--c6:#2f6f7a;--c7:#59636e;--shade:#57606a1c}
@media (prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1d2126;--ink:#e8ebee;--dim:#a9b2bc;--line:#363d45;--good:#62d2a2;--bad:#ff8f87;
--c0:#4cc79a;--c1:#6db3f2;--c2:#f2985c;--c3:#c39be8;--c4:#e0b341;--c5:#f58ab0;--c6:#74c3cf;--c7:#a9b2bc;--shade:#a9b2bc24}}"""
MARKS: Final = """svg text{font:12px system-ui,sans-serif;fill:var(--ink)}svg .tick{fill:var(--dim);font-size:11px}
.over{paint-order:stroke;stroke:var(--card);stroke-width:4px;stroke-linejoin:round}
.grid{stroke:var(--line);fill:none}.axis{stroke:var(--dim);fill:none}.line{fill:none;stroke-width:2;stroke-linejoin:round}
.shade{fill:var(--shade)}.limit{stroke:var(--dim);stroke-dasharray:4 4;fill:none}"""


class Line(NamedTuple):
    """`points` by rising x; a y of None leaves a gap."""

    name: str
    points: Sequence[tuple[float, float | None]]


class Axis(NamedTuple):
    """`low` to `high` in the plotted measure, each of `ticks` with what is written there."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    label: str = ""
    log: bool = False

    def share(self, value: float) -> float:
        """0 at `low`, 1 at `high`; what lies beyond stands at the edge."""
        if self.log:
            value = max(value, self.low)
            return min(1.0, math.log(value / self.low) / math.log(self.high / self.low))
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def linear(
    values: Sequence[float], label: str = "", said: Callable[[float], str] | None = None, *, most: int = 5, tight: bool = False
) -> Axis:
    """Round numbers that hold zero and all `values`; `tight`: from the least to the most of them."""
    said = said or number
    low, high = min(values, default=0.0), max(values, default=1.0)
    low = low if tight else min(0.0, low)
    step = _step((high - low) or abs(high), most)
    if tight and high > low:
        rounds = range(math.ceil(low / step), math.floor(high / step) + 1)
        return Axis(low, high, [(k * step, said(k * step)) for k in rounds], label)
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return Axis(first * step, last * step, [(k * step, said(k * step)) for k in range(first, last + 1)], label)


def log(values: Sequence[float], label: str = "", said: Callable[[float], str] | None = None) -> Axis:
    """From the step of 1, 2, 5 below the least positive value to the one above the most, over at least one decade."""
    said = said or number
    positive = [value for value in values if value >= LEAST]
    least, most = min(positive, default=1.0), max(positive, default=10.0)
    most = max(most, least * 10)
    steps = [digit * 10.0**power for power in range(-9, 16) for digit in (1, 2, 5)]
    low = max(step for step in steps if step <= least * 1.000001)
    high = min(step for step in steps if step >= most * 0.999999)
    decades = math.log10(high / low)
    shown = [s for s in steps if low <= s <= high and (decades <= 2.4 or _is_decade(s))]
    return Axis(low, high, [(s, said(s)) for s in shown], label, log=True)


def percentile_axis(label: str = "share of all, %", nines: int = 4) -> Axis:
    """What HdrHistogram plots: as much room from 90 to 99 % as from 99 to 99.9 %. A share p stands at 1 / (1 - p)."""
    ticks = [(1.0, "0"), (2.0, "50")] + [(10.0**k, f"{100 - 100 / 10**k:.{max(0, k - 2)}f}") for k in range(1, nines + 1)]
    return Axis(1.0, 10.0**nines, ticks, label, log=True)


def chart(
    title: str, lines: Sequence[Line], x: Axis, y: Axis, *, shades: Sequence[tuple[float, float, str]] = (), level: float | None = None,
    marks: Sequence[tuple[float, str]] = (), dots: bool = False,
) -> str:  # fmt: skip
    """Lines over x. `shades`: parts of x with their names; `level`: a dashed line across; `marks`: dashed lines upright, with a word."""
    parts = [*_head(title), *_shades(shades, x), *_frame(x, y)]
    if level is not None:
        parts.append(f'<path class="limit" d="M{LEFT} {_y(level, y):.1f}H{WIDTH - RIGHT}"/>')
    for at, word in marks:
        place = _x(at, x)
        end = "end" if place > WIDTH / 2 else "start"
        parts.append(f'<path class="limit" d="M{place:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text class="tick over" x="{place + (-4 if end == "end" else 4):.1f}" y="{TOP + 9}" text-anchor="{end}">{escape(word)}</text>'
        )
    for i, one in reversed(list(enumerate(lines))):  # the first lies on top
        parts.append(_path(one, i, x, y))
        if dots:
            parts += [
                f'<circle cx="{_x(at, x):.1f}" cy="{_y(value, y):.1f}" r="3.2" fill="var(--c{i % COLOURS})">'
                f"<title>{escape(f'{one.name}: {number(at)}, {number(value)}')}</title></circle>"
                for at, value in one.points
                if value is not None
            ]
    return "".join([*parts, *_shade_names(shades, x), "</svg>"])


def stacked(title: str, lines: Sequence[Line], x: Axis, y: Axis, *, shades: Sequence[tuple[float, float, str]] = ()) -> str:
    """Areas on top of each other, the first at the bottom. All lines have the same x."""
    parts = [*_head(title)]
    floor = [0.0] * (len(lines[0].points) if lines else 0)
    for i, one in enumerate(lines):
        roof = [low + (value or 0.0) for low, (_, value) in zip(floor, one.points, strict=True)]
        there = [f"{_x(at, x):.1f},{_y(value, y):.1f}" for (at, _), value in zip(one.points, roof, strict=True)]
        back = [f"{_x(at, x):.1f},{_y(value, y):.1f}" for (at, _), value in zip(one.points, floor, strict=True)]
        parts.append(
            f'<polygon points="{" ".join([*there, *reversed(back)])}" fill="var(--c{i % COLOURS})" stroke="var(--card)" stroke-width="1">'
            f"<title>{escape(one.name)}</title></polygon>"
        )
        floor = roof
    return "".join([*parts, *_shades(shades, x), *_frame(x, y), *_shade_names(shades, x), "</svg>"])


def ratios(title: str, rows: Sequence[tuple[str, float, str]]) -> str:
    """Each name with its ratio, a bar from 1 to the left (less than the other) or to the right, on a logarithmic axis; `rows`: name, ratio, words."""
    high = max([2.0, *(max(ratio, 1 / ratio) for _, ratio, _ in rows if ratio > 0)]) * 1.15
    row, height = 36.0, 36.0 * len(rows) + 30
    pad, one = 20.0, WIDTH / 2

    def at(ratio: float) -> float:
        return one + math.log(max(ratio, 1 / high)) / math.log(high) * (WIDTH / 2 - pad)

    parts = [*_head(title, height)]
    steps = [s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if 1 / high <= s <= high]
    steps = [s for s in steps if len(steps) <= 9 or _is_decade(s)]
    for step in steps:
        kind = "axis" if step == 1 else "grid"
        parts.append(f'<path class="{kind}" d="M{at(step):.1f} 4V{height - 22:.0f}"/>')
        parts.append(f'<text class="tick" x="{at(step):.1f}" y="{height - 6:.0f}" text-anchor="middle">{number(step)}</text>')
    for i, (name, ratio, words) in enumerate(rows):
        top = 6 + row * i
        left, right = sorted((at(ratio), one))
        colour = "good" if ratio <= 1 else "bad"
        parts.append(f'<text class="over" x="6" y="{top + 11:.0f}">{escape(_short(name, 40))}</text>')
        parts.append(f'<text x="{WIDTH - 6}" y="{top + 11:.0f}" text-anchor="end" style="font-weight:600">{ratio:.2f}</text>')
        parts.append(
            f'<rect x="{left:.1f}" y="{top + 16:.0f}" width="{max(1.5, right - left):.1f}" height="12" fill="var(--{colour})">'
            f"<title>{escape(f'{name}: {words}')}</title></rect>"
        )
    return "".join([*parts, "</svg>"])


def alone(drawn: str, names: Sequence[str] = ()) -> str:
    """A drawing as a file of its own: with its colours and what they are (`names`), on a ground that suits them in either theme."""
    head, _, rest = drawn.partition(">")
    row, each = 18.0, 3
    height = float(head.partition('viewBox="0 0 ')[2].split('"')[0].split()[1])
    room = row * -(-len(names) // each)
    head = head.replace(f' {height:.0f}"', f' {height + room:.0f}"')
    ground = '<rect width="100%" height="100%" rx="6" fill="var(--card)"/>'
    marks = ""
    for i, name in enumerate(names):
        x, y = 10 + i % each * (WIDTH - 10) / each, row * (i // each) + 12
        dash = f' stroke-dasharray="{DASHES[i % COLOURS]}"' if DASHES[i % COLOURS] else ""
        marks += f'<path d="M{x:.0f} {y:.0f}h18" stroke="var(--c{i % COLOURS})" stroke-width="3"{dash}/>'
        marks += f'<text x="{x + 23:.0f}" y="{y + 4:.0f}">{escape(name)}</text>'
    style = f"<style>{PALETTE}{MARKS}</style>".replace("\n", "")
    return f'{head} xmlns="http://www.w3.org/2000/svg">{style}{ground}{marks}<g transform="translate(0 {room:.0f})">{rest.removesuffix("</svg>")}</g></svg>\n'


def key(names: Sequence[str], *, areas: bool = False) -> str:
    """What each colour is; `areas`: of a stack, without dashes."""
    marks = []
    for i, name in enumerate(names):
        dash = "" if areas or not DASHES[i % COLOURS] else f' stroke-dasharray="{DASHES[i % COLOURS]}"'
        width = 10 if areas else 3
        marks.append(
            f'<span><svg width="22" height="12" viewBox="0 0 22 12" aria-hidden="true"><path d="M0 6H22" stroke="var(--c{i % COLOURS})" '
            f'stroke-width="{width}"{dash}/></svg>{escape(name)}</span>'
        )
    return f'<div class="key">{"".join(marks)}</div>'


def thinned(points: Sequence[tuple[float, float | None]], *, worst: bool) -> list[tuple[float, float | None]]:
    """At most `POINTS_MOST`: of neighbours the worst, or their mean."""
    group = -(-len(points) // POINTS_MOST) if points else 1
    if group == 1:
        return list(points)
    found: list[tuple[float, float | None]] = []
    for start in range(0, len(points), group):
        some = points[start : start + group]
        values = [value for _, value in some if value is not None]
        middle = sum(at for at, _ in some) / len(some)
        found.append((middle, (max(values) if worst else sum(values) / len(values)) if values else None))
    return found


def number(value: float) -> str:
    """As short as its size allows: 0.05, 1.5, 120, 15k, 2M."""
    for size, word in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if word == 'k' else size):.3g}{word}"
    if value == int(value):
        return f"{value:.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def seconds_text(value: float) -> str:
    """12 us, 1.5 ms, 2 s."""
    for size, word in ((1.0, "s"), (1e-3, "ms")):
        if abs(value) >= size * 0.9999:
            return f"{value / size:.3g} {word}"
    return "0" if not value else f"{value * 1e6:.3g} us"


def _is_decade(value: float) -> bool:
    return abs(math.log10(value) - round(math.log10(value))) < 1e-6


def _step(span: float, most: int) -> float:
    power = 10.0 ** math.floor(math.log10(max(span, LEAST) / most))
    return next(step * power for step in (1, 2, 5, 10) if span / (step * power) <= most)


def _x(value: float, axis: Axis) -> float:
    return LEFT + axis.share(value) * (WIDTH - LEFT - RIGHT)


def _y(value: float, axis: Axis) -> float:
    return HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - TOP - BOTTOM)


def _head(title: str, height: float = HEIGHT) -> list[str]:
    return [f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(title)}">']


def _frame(x: Axis, y: Axis) -> list[str]:
    parts = []
    for value, said in y.ticks:
        at = _y(value, y)
        parts.append(f'<path class="{"axis" if value == y.low else "grid"}" d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 5}" y="{at + 4:.1f}" text-anchor="end">{escape(said)}</text>')
    for value, said in x.ticks:
        at = _x(value, x)
        end = "end" if at > WIDTH - RIGHT - 14 and len(said) > 3 else "middle"
        parts.append(f'<path class="grid" d="M{at:.1f} {HEIGHT - BOTTOM}v4"/>')
        place = WIDTH - 2 if end == "end" else at
        parts.append(f'<text class="tick" x="{place:.1f}" y="{HEIGHT - BOTTOM + 15:.0f}" text-anchor="{end}">{escape(said)}</text>')
    if x.label:
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text class="tick" x="{middle:.0f}" y="{HEIGHT - 5:.0f}" text-anchor="middle">{escape(x.label)}</text>')
    return parts


def _path(one: Line, i: int, x: Axis, y: Axis) -> str:
    moves, pen = [], False
    for at, value in one.points:
        if value is None:
            pen = False
            continue
        moves.append(f"{'L' if pen else 'M'}{_x(at, x):.1f} {_y(value, y):.1f}")
        pen = True
    dash = f' stroke-dasharray="{DASHES[i % COLOURS]}"' if DASHES[i % COLOURS] else ""
    return f'<path class="line" stroke="var(--c{i % COLOURS})"{dash} d="{"".join(moves)}"><title>{escape(one.name)}</title></path>'


def _shades(shades: Sequence[tuple[float, float, str]], x: Axis) -> list[str]:
    height = HEIGHT - TOP - BOTTOM
    return [
        f'<rect class="shade" x="{_x(begin, x):.1f}" y="{TOP}" width="{max(0.0, _x(end, x) - _x(begin, x)):.1f}" height="{height}">'
        f"<title>{escape(name)}</title></rect>"
        for begin, end, name in shades
    ]


def _shade_names(shades: Sequence[tuple[float, float, str]], x: Axis) -> list[str]:
    """Where there is room for them."""
    return [
        f'<text class="tick over" x="{_x(begin, x) + 4:.1f}" y="{TOP + 11}">{escape(name)}</text>'
        for begin, end, name in shades
        if _x(end, x) - _x(begin, x) > 6 * len(name)
    ]


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
