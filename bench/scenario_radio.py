"""What receivers, clocks and modems do to true positions: noise, reflections, tunnels, wrong clocks, late, doubled and shuffled deliveries.

Each kind of trouble is a small struct; `begin` draws its time and place and answers what happened and a function from one fix on its way to
those that arrive instead: none, one, or several. The function looks at no other fix, so that the same pieces work over a whole trace and
on a live stream. Pure: all chance comes from the `random.Random` given.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import msgspec

from bench.receiver import Reading, Truth
from bench.scenario_roads import Happening
from engine.tracking.fix import WEEK_ROLLOVER_MS
from geo.coords import moved


class Sent(NamedTuple):
    """A reading on its way, and when it arrives."""

    due_ms: int
    reading: Reading


Change = Callable[[Sent, Truth], list[Sent]]


class Scene(NamedTuple):
    """What a trouble may strike: a bus from one moment to another, as a rule while it drives a trip."""

    bus_id: str
    trip_id: str | None
    start_date: str | None
    from_ms: int
    to_ms: int

    def window(self, at_s: float | None, seconds: float, chance: random.Random) -> tuple[int, int]:
        """(from, to) of so many seconds, `at_s` after the scene's begin or anywhere in it; cut at its end."""
        room_s = max(0.0, (self.to_ms - self.from_ms) / 1000 - seconds)
        begin = self.from_ms + round(1000 * (at_s if at_s is not None else chance.random() * room_s))
        return begin, min(self.to_ms, begin + round(seconds * 1000))

    def happening(self, kind: str, from_ms: int, to_ms: int, **facts: Any) -> Happening:
        return Happening(kind, self.bus_id, self.trip_id, self.start_date, from_ms, to_ms, None, None, facts)


class RadioTrouble(Protocol):
    """One kind of trouble with its options. Where an option is None, chance decides."""

    def begin(self, scene: Scene, chance: random.Random) -> tuple[Happening, Change]: ...


def _shifted(sent: Sent, east_m: float, north_m: float, accuracy_m: float | None = None) -> Sent:
    reading = sent.reading
    lon, lat = moved(reading.lon, reading.lat, east_m, north_m)
    told = reading.accuracy_m if accuracy_m is None else accuracy_m
    return Sent(sent.due_ms, msgspec.structs.replace(reading, lat=round(lat, 7), lon=round(lon, 7), accuracy_m=told))


class Noise(msgspec.Struct, frozen=True):
    """Gaussian error of `sigma_m` to each of east and north that wanders with a time constant of `wander_s` (0: every fix anew)."""

    sigma_m: float = 5.0
    wander_s: float = 25.0
    jitter_m: float = 0.5  # beside it, from fix to fix
    accuracy: float = 1.5  # what the device says of its accuracy, in sigmas (the 68 % circle)
    motion: bool = True  # speed and bearing are uncertain too

    def begin(self, scene: Scene, chance: random.Random) -> tuple[Happening, Change]:
        error = [0.0, 0.0, float(scene.from_ms) - 1e9]  # east, north, when
        gauss = chance.gauss

        def change(sent: Sent, truth: Truth) -> list[Sent]:
            dt_s = abs(truth.at_ms - error[2]) / 1000
            keep = math.exp(-dt_s / self.wander_s) if self.wander_s > 0 else 0.0
            fresh = self.sigma_m * math.sqrt(1 - keep * keep)
            error[0], error[1], error[2] = error[0] * keep + gauss(0, fresh), error[1] * keep + gauss(0, fresh), truth.at_ms
            jitter = min(self.jitter_m, self.sigma_m)
            seen = _shifted(
                sent, error[0] + gauss(0, jitter), error[1] + gauss(0, jitter), max(3.0, round(self.accuracy * self.sigma_m, 1))
            )
            if not self.motion or self.sigma_m == 0:
                return [seen]
            speed = max(0.0, seen.reading.speed_mps + (gauss(0, 0.25) if truth.speed_mps > 0.5 else 0.0))
            bearing = (seen.reading.bearing_deg + (gauss(0, 4) if truth.speed_mps > 1 else 0.0)) % 360.0
            return [Sent(seen.due_ms, msgspec.structs.replace(seen.reading, speed_mps=round(speed, 2), bearing_deg=round(bearing, 1)))]

        return scene.happening("NOISE", scene.from_ms, scene.to_ms, sigmaM=self.sigma_m), change


class Reflection(msgspec.Struct, frozen=True):
    """An urban canyon: a run of fixes thrown sideways by one and the same vector."""

    seconds: float | None = None  # None: 30 to 90
    metres: float | None = None  # None: 50 to 180
    at_s: float | None = None  # after the scene's begin

    def begin(self, scene: Scene, chance: random.Random) -> tuple[Happening, Change]:
        seconds = self.seconds if self.seconds is not None else chance.uniform(30, 90)
        size = self.metres if self.metres is not None else chance.uniform(50, 180)
        first, last = scene.window(self.at_s, seconds, chance)
        side, vector = chance.choice((-1, 1)), list[float]()

        def change(sent: Sent, truth: Truth) -> list[Sent]:
            if not first <= truth.at_ms < last:
                return [sent]
            if not vector:  # the wall stands where it stands, also behind the next corner
                right = math.radians(truth.bearing_deg + 90.0 * side)
                vector.extend((size * math.sin(right), size * math.cos(right)))
            return [_shifted(sent, *vector, sent.reading.accuracy_m + 10.0)]

        return scene.happening("REFLECTION", first, last, metres=round(size)), change


class Tunnel(msgspec.Struct, frozen=True):
    """No sky: no fixes at all."""

    seconds: float | None = None  # None: 30 to 180
    at_s: float | None = None

    def begin(self, scene: Scene, chance: random.Random) -> tuple[Happening, Change]:
        first, last = scene.window(self.at_s, self.seconds if self.seconds is not None else chance.uniform(30, 180), chance)
        return scene.happening("TUNNEL", first, last), lambda sent, truth: [] if first <= truth.at_ms < last else [sent]


class Teleport(msgspec.Struct, frozen=True):
    """A moment's fixes lie far away, as a receiver's first guess after a cold start does."""

    metres: float = 5_000.0
    seconds: float = 10.0
    at_s: float | None = None

    def begin(self, scene: Scene, chance: random.Random) -> tuple[Happening, Change]:
        first, last = scene.window(self.at_s, self.seconds, chance)
        angle = chance.uniform(0, 2 * math.pi)
        away = self.metres * math.sin(angle), self.metres * math.cos(angle)
        change: Change = lambda sent, truth: [_shifted(sent, *away)] if first <= truth.at_ms < last else [sent]  # noqa: E731
        return scene.happening("TELEPORT", first, last, metres=round(self.metres)), change


class Frozen(msgspec.Struct, frozen=True):
    """The receiver repeats one place while it goes on reporting speed."""

    seconds: float = 90.0
    at_s: float | None = None

    def begin(self, scene: Scene, chance: random.Random) -> tuple[Happening, Change]:
        first, last = scene.window(self.at_s, self.seconds, chance)
        stuck: list[Reading] = []

        def change(sent: Sent, truth: Truth) -> list[Sent]:
            if not first <= truth.at_ms < last:
                return [sent]
            stuck.append(sent.reading) if not stuck else None
            return [Sent(sent.due_ms, msgspec.structs.replace(sent.reading, lat=stuck[0].lat, lon=stuck[0].lon))]

        return scene.happening("FROZEN", first, last), change


# --- clocks ---


def _clocked(sent: Sent, ms: int) -> list[Sent]:
    return [Sent(sent.due_ms, msgspec.structs.replace(sent.reading, timestamp_ms=sent.reading.timestamp_ms + ms))]


class Skew(msgspec.Struct, frozen=True):
    """The clock is off by the same amount all the time. Positive: it is fast."""

    seconds: float | None = None  # None: 6 to 60, either way

    def begin(self, scene: Scene, chance: random.Random) -> tuple[Happening, Change]:
        seconds = self.seconds if self.seconds is not None else chance.uniform(6, 60) * chance.choice((-1, 1))
        ms = round(seconds * 1000)
        return scene.happening("SKEW", scene.from_ms, scene.to_ms, skewMillis=ms), lambda sent, truth: _clocked(sent, ms)


class ClockJump(msgspec.Struct, frozen=True):
    """From one moment on the clock is off."""

    seconds: float | None = None  # None: 6 to 120, either way
    at_s: float | None = None

    def begin(self, scene: Scene, chance: random.Random) -> tuple[Happening, Change]:
        seconds = self.seconds if self.seconds is not None else chance.uniform(6, 120) * chance.choice((-1, 1))
        ms, (first, _) = round(seconds * 1000), scene.window(self.at_s, 0.0, chance)
        change: Change = lambda sent, truth: _clocked(sent, ms) if truth.at_ms >= first else [sent]  # noqa: E731
        return scene.happening("CLOCK_JUMP", first, scene.to_ms, skewMillis=ms), change


class WeekRollover(msgspec.Struct, frozen=True):
    """An old receiver counts the weeks in ten bits and is 1,024 weeks behind."""

    def begin(self, scene: Scene, chance: random.Random) -> tuple[Happening, Change]:
        happening = scene.happening("WEEK_ROLLOVER", scene.from_ms, scene.to_ms, skewMillis=-WEEK_ROLLOVER_MS)
        return happening, lambda sent, truth: _clocked(sent, -WEEK_ROLLOVER_MS)


# --- deliveries ---


class Duplicates(msgspec.Struct, frozen=True):
    """A share of fixes arrives again, up to `delay_s` later."""

    share: float = 0.2
    delay_s: float = 20.0

    def begin(self, scene: Scene, chance: random.Random) -> tuple[Happening, Change]:
        def change(sent: Sent, truth: Truth) -> list[Sent]:
            if chance.random() >= self.share:
                return [sent]
            return [sent, Sent(sent.due_ms + round(1000 * chance.uniform(0, self.delay_s)), sent.reading)]

        return scene.happening("DUPLICATES", scene.from_ms, scene.to_ms, share=self.share), change


class OutOfOrder(msgspec.Struct, frozen=True):
    """Every fix is up to `within_s` late, each by its own amount: 3 s stays inside the tracker's window, 20 s does not."""

    within_s: float = 2.5

    def begin(self, scene: Scene, chance: random.Random) -> tuple[Happening, Change]:
        def change(sent: Sent, truth: Truth) -> list[Sent]:
            return [Sent(sent.due_ms + round(1000 * chance.uniform(0, self.within_s)), sent.reading)]

        return scene.happening("OUT_OF_ORDER", scene.from_ms, scene.to_ms, withinSeconds=self.within_s), change


class LateBatch(msgspec.Struct, frozen=True):
    """The modem is away for a while and delivers everything afterwards; `newest_first`: the backlog backwards, as some trackers do."""

    seconds: float | None = None  # None: 20 to 170; a backlog of hours is 7200
    at_s: float | None = None
    newest_first: bool = False

    def begin(self, scene: Scene, chance: random.Random) -> tuple[Happening, Change]:
        first, last = scene.window(self.at_s, self.seconds if self.seconds is not None else chance.uniform(20, 170), chance)

        def change(sent: Sent, truth: Truth) -> list[Sent]:
            if not first <= truth.at_ms < last:
                return [sent]
            order = last - truth.at_ms if self.newest_first else truth.at_ms - first
            return [Sent(last + 100 + order // 50, sent.reading)]  # fifty times as fast as it was measured

        return scene.happening("NEWEST_FIRST" if self.newest_first else "LATE_BATCH", first, last), change


class Unnamed(msgspec.Struct, frozen=True):
    """The device does not say which trip it drives."""

    def begin(self, scene: Scene, chance: random.Random) -> tuple[Happening, Change]:
        def change(sent: Sent, truth: Truth) -> list[Sent]:
            return [Sent(sent.due_ms, msgspec.structs.replace(sent.reading, trip_id=None, start_date=None))]

        return scene.happening("UNNAMED", scene.from_ms, scene.to_ms), change
