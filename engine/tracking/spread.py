"""How wrong arrivals turn out to be: quantiles of (actual - expected) by predicted horizon and by what the bus is doing.

`Spread` is asked for the offsets that turn an expected arrival into p10, p50 and p90, and is told every measured crossing. It moves each
quantile by stochastic approximation of the pinball loss (Robbins and Monro 1951; the step keeps a floor, so it follows a day that changes).
Errors are scored against every expectation we gave at most `sample_every_s` apart, not only the last one: that is what a passenger sees.
Seconds throughout. The expectations that still wait for their crossing live in memory only: a restart forgets some lessons, never a table.
"""

from __future__ import annotations

from struct import Struct
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# What a bus is doing, as far as the error of its arrivals depends on it: rows of the table.
MOVING, PAUSED, WAITING, OVERDUE, STALLED = 0, 1, 5, 6, 10  # 1..4: standing, longer and longer; 6..9: ever longer past its departure
STATES = 11
TAUS = np.array([0.09, 0.5, 0.91])  # p10 and p90: what follows a day lags behind it, 82 % asked for are 79 % had (two recorded days)
LEAST_S = -90.0  # an arrival that should have been so long ago is as uncertain as any that should have been before
EDGES_S = np.array([2 * LEAST_S, -45.0, 0.0, 60.0, 180.0, 360.0, 600.0, 900.0, 1800.0, 3600.0])
MIDS_S = np.array([-75.0, -22.5, 30.0, 120.0, 270.0, 480.0, 750.0, 1350.0, 2700.0])
RECOVERY_S = (120.0, 1800.0)  # horizons that say whether late buses make up time: nearer is noise, further is another trip's matter
_STEP_S = 5.0

# One forecast that waits for its crossings, as bytes: made at, state, index of its first stop, whether the bus was late and expected to make
# up for it; then the horizons in seconds. There are up to 80 a vehicle: with numpy arrays each was half a kilobyte.
_HEAD, _HORIZON = Struct("=dBH?"), Struct("=f")
_GRID_S = np.arange(LEAST_S, EDGES_S[-1] + _STEP_S, _STEP_S)


class SpreadConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Units last in the name."""

    sample_every_s: Annotated[float, Meta(description="an expectation is kept for learning at most this often: the score samples so")] = (
        30.0
    )
    samples_max: Annotated[int, Meta(description="expectations kept a vehicle: 40 min of them; beyond, every second one goes")] = 80
    step_floor: Annotated[float, Meta(description="least share of the scale that one error moves a quantile: it goes on following")] = 0.002
    step_start: Annotated[float, Meta(description="numerator of the early steps: start / (n + calm)")] = 4.0
    step_calm: Annotated[float, Meta(description="errors after which the early steps calm down")] = 300.0
    scale_s: Annotated[float, Meta(description="scale of a step at horizon 0, seconds")] = 15.0
    scale_share: Annotated[float, Meta(description="and its growth with the horizon: 0.1 of it")] = 0.1
    recovery_step: Annotated[float, Meta(description="first step of the share of their delay that late buses make up")] = 0.02
    recovery_floor: Annotated[float, Meta(description="the least of that step: recovery follows the day")] = 0.0003
    recovery_calm: Annotated[float, Meta(description="samples after which that step has halved")] = 5_000.0
    recovery_most: Annotated[float, Meta(description="the largest share of their delay, even where they are seen to make up more")] = 1.5
    soft_s: Annotated[
        float, Meta(description="scale at which an arrival that should be over is first pushed ahead of now: softplus; then learned")
    ] = 15.0
    start_s: Annotated[float, Meta(description="half width of the first interval at horizon 0, seconds")] = 30.0
    start_share: Annotated[float, Meta(description="and its growth with the horizon")] = 0.15


def _place(horizons_s: Floats) -> NDArray[np.intp]:
    """On the grid; past its ends for those beyond."""
    return ((horizons_s - LEAST_S) * (1 / _STEP_S) + 0.5).astype(np.intp)


class Spread:
    """The tables of one area, and the expectations of each vehicle that are still open."""

    def __init__(self, config: SpreadConfig | None = None) -> None:
        self.config = config or SpreadConfig()
        c = self.config
        ahead = np.maximum(MIDS_S, 0.0)
        half = c.start_s + c.start_share * ahead
        self._scale = c.scale_s + c.scale_share * ahead
        first = half[:, None] * np.array([-1.0, 0.0, 1.0]) + (c.soft_s * np.logaddexp(0.0, MIDS_S / c.soft_s) - MIDS_S)[:, None]
        self.table: Floats = np.repeat(first[None], STATES, axis=0)  # [state, bin, quantile] seconds
        self.counts: Floats = np.zeros((STATES, len(MIDS_S)))
        self._fine: list[Floats | None] = [None] * STATES  # the tables on a grid of 5 s, made when asked for
        self.recovery, self._late_seen = 0.0, 0.0  # share of its delay that a late bus makes up: none until it is seen
        self._open: dict[str, list[bytes]] = {}

    def offsets(self, state: int, horizons_s: Floats) -> Floats:
        """Shape (3, n): seconds to add to each expected arrival for p10, p50, p90; linear between the bins' middles, in steps of 5 s."""
        fine = self._fine[state]
        if fine is None:
            fine = self._fine[state] = np.stack([np.interp(_GRID_S, MIDS_S, self.table[state, :, q]) for q in range(3)])
        return fine.take(_place(horizons_s), axis=1, mode="clip")

    def due(self, bus_id: str, now_s: float) -> bool:
        """Whether the next forecast of this vehicle is one to keep."""
        kept = self._open.get(bus_id)
        return not kept or now_s - _HEAD.unpack_from(kept[-1])[0] >= self.config.sample_every_s

    def keep(self, bus_id: str, now_s: float, state: int, first: int, horizons_s: Floats, *, late: bool = False) -> None:
        """Remember a forecast until its stops are crossed."""
        kept = self._open.setdefault(bus_id, [])
        if len(kept) >= self.config.samples_max:
            del kept[::2]
        kept.append(_HEAD.pack(now_s, state, first, late) + horizons_s.astype(np.float32).tobytes())

    def forget(self, bus_id: str) -> None:
        """The vehicle has another trip or none: what is open can no longer be judged."""
        self._open.pop(bus_id, None)

    def learn(self, bus_id: str, index: int, crossed_at_s: float) -> bool:
        """The vehicle was at the stop with this index then. True when a table changed."""
        judged: dict[int, list[tuple[float, float]]] = {}
        late: list[float] = []
        for kept in self._open.get(bus_id, ()):
            at_s, state, first, was_late = _HEAD.unpack_from(kept)
            if index >= first and at_s < crossed_at_s:
                (expected,) = _HORIZON.unpack_from(kept, _HEAD.size + (index - first) * _HORIZON.size)
                if expected <= EDGES_S[-1]:
                    error = crossed_at_s - at_s - expected
                    judged.setdefault(state, []).append((expected, error))
                    if was_late and RECOVERY_S[0] < expected < RECOVERY_S[1]:
                        late.append(error)
        for state, pairs in judged.items():
            self._step(state, np.array(pairs))
        if late:
            self._recover(late)
        return bool(judged)

    def _recover(self, errors: list[float]) -> None:
        """Late buses came sooner than expected: they make up more of their delay; later: less. Towards the median, by signs."""
        c = self.config
        self._late_seen += len(errors)
        step = max(c.recovery_floor, c.recovery_step / (1 + self._late_seen / c.recovery_calm)) * min(1.0, len(errors) / 20)
        sooner = sum(1 if error < 0 else -1 for error in errors) / len(errors)
        self.recovery = min(max(self.recovery + step * sooner, 0.0), c.recovery_most)

    def _step(self, state: int, pairs: Floats) -> None:
        """One step of all bins of a state; pairs are (expected horizon, error), seconds."""
        c, bins = self.config, len(MIDS_S)
        expected, errors = pairs[:, 0], pairs[:, 1]
        rounded = _GRID_S.take(_place(expected), mode="clip")  # a few values: dearer to make the whole grid anew, as every step asks for
        low, medians, high = (np.interp(at, MIDS_S, self.table[state, :, q]) for q, at in enumerate((rounded, expected, rounded)))
        gradient = TAUS[:, None] - (errors < np.stack((low, medians, high)))
        bin_of = np.maximum(np.searchsorted(EDGES_S, expected) - 1, 0)
        self.counts[state] += np.bincount(bin_of, minlength=bins)
        share = np.maximum(c.step_floor, c.step_start / (self.counts[state] + c.step_calm))
        for q in range(3):
            self.table[state, :, q] += share * self._scale * np.bincount(bin_of, gradient[q], minlength=bins)
        self._fine[state] = None

    def state(self) -> tuple[list[float], list[float], list[float]]:
        """Tables and counts, flat, and the late buses' recovery, for the dump."""
        return (
            self.table.ravel().tolist(),
            self.counts.ravel().tolist(),
            [self.recovery, self._late_seen],
        )

    def restore(self, table: list[float], counts: list[float], rest: list[float]) -> None:
        """What `state` said; a dump of another shape (an older version's) is not taken and the first tables stay."""
        if len(table) == self.table.size and len(counts) == self.counts.size and len(rest) == 2:
            self.table = np.array(table).reshape(self.table.shape)
            self.counts = np.array(counts).reshape(self.counts.shape)
            self._fine = [None] * STATES
            self.recovery, self._late_seen = rest
