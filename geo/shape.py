"""A trip's line, measured in metres along it. (To be deepened: see the brief.)"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Shape:
    """Vertices in degrees and the arc position of each in metres. Never changed after it is made."""

    __slots__ = ("cum_m", "lats", "length_m", "lons", "shape_id")

    def __init__(self, shape_id: str, lons: NDArray[np.float64], lats: NDArray[np.float64]) -> None:
        self.shape_id, self.lons, self.lats = shape_id, lons, lats
        self.cum_m: NDArray[np.float64] = np.zeros(len(lons))
        self.length_m = 0.0
