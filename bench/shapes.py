"""Lines that meet themselves, drawn by chance: loops, out and back, figures of eight, lollipops, grids; and plain ones. In local metres."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import numpy as np

from geo.coords import moved
from geo.shape import Shape

Points = list[tuple[float, float]]


def shape_of(kind: str, chance: random.Random, name: str | None = None) -> Shape:
    """A line of some kilometres, put somewhere between the tropics and Scandinavia."""
    points = DRAWN[kind](chance)
    lon0, lat0 = chance.uniform(-120, 140), chance.uniform(-40, 60)
    places = [moved(lon0, lat0, x, y) for x, y in points]
    return Shape(name or kind, np.array([lon for lon, _ in places]), np.array([lat for _, lat in places]))


def wander(chance: random.Random, length_m: float = 8_000) -> Points:
    points, heading = [(0.0, 0.0)], chance.uniform(0, 6.28)
    for _ in range(int(length_m / 40)):
        heading += chance.gauss(0, 0.12) + (chance.choice((-1.5, 1.5)) if chance.random() < 0.02 else 0)
        points.append((points[-1][0] + 40 * math.cos(heading), points[-1][1] + 40 * math.sin(heading)))
    return points


def loop(chance: random.Random) -> Points:
    radius = chance.uniform(400, 1_500)
    return [(radius * math.cos(a), radius * math.sin(a)) for a in np.linspace(0, 2 * math.pi, 120)]


def out_and_back(chance: random.Random) -> Points:
    out = wander(chance, chance.uniform(2_000, 6_000))
    return out + out[-2::-1]


def figure_of_eight(chance: random.Random) -> Points:
    size = chance.uniform(500, 1_500)
    return [(size * math.sin(a), size * math.sin(a) * math.cos(a)) for a in np.linspace(0.3, 0.3 + 2 * math.pi, 160)]


def lollipop(chance: random.Random) -> Points:
    stick = [(x, 0.0) for x in np.arange(0, chance.uniform(1_000, 3_000), 50)]
    radius = chance.uniform(200, 600)
    end = stick[-1][0]
    head = [(end + radius - radius * math.cos(a), radius * math.sin(a)) for a in np.linspace(0, 2 * math.pi, 60)]
    return stick + head + stick[::-1]


def grid_loop(chance: random.Random) -> Points:
    """Round a block, along a street that is driven again later: two arcs 0 m apart, driven in one direction."""
    side = chance.uniform(300, 700)
    corners = [(0, 0), (side, 0), (side, side), (0, side), (0, 0), (side, 0), (side, -side), (2 * side, -side)]
    points = []
    for (x0, y0), (x1, y1) in itertools.pairwise(corners):
        points += [(x0 + (x1 - x0) * u, y0 + (y1 - y0) * u) for u in np.linspace(0, 1, 8, endpoint=False)]
    return [*points, corners[-1]]


DRAWN: dict[str, Callable[[random.Random], Points]] = {
    "wander": wander, "loop": loop, "out_and_back": out_and_back, "figure_of_eight": figure_of_eight, "lollipop": lollipop, "grid_loop": grid_loop,
}  # fmt: skip
