"""How often one address may ask for something that costs others: holds, look-ups. A token bucket for each, per worker, bounded.

Behind a gateway the address is the caller's only where the gateway is trusted to say so; people who signed in count by name.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from engine.booking.callers import Caller
from engine.clock import Clock
from engine.errors import TooMany
from engine.meter import Meter

CALLERS_MAX: Final = 50_000  # buckets kept; the longest unused go first (and are full again by then, or an attack is under way)


class Rate:
    """So many at once, and so many a second."""

    def __init__(self, burst: float, a_second: float) -> None:
        self.burst, self.a_second = burst, a_second


class Rates:
    """`rates` by name; a name that is not there is not limited."""

    def __init__(self, rates: dict[str, Rate], clock: Clock, meter: Meter | None = None) -> None:
        self._rates, self._clock = rates, clock
        self._buckets: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()  # (left, as of)
        self._refused = (meter or Meter()).counter("timepoint_rate_refused_total", "calls over a caller's rate", ("what",))

    def limited(self, what: str) -> bool:
        """Whether there is a rate at all: finding out who asks costs more than some calls."""
        return what in self._rates

    def take(self, what: str, caller: Caller) -> None:
        """One of them. Raises `TooMany` with the time until the next."""
        rate = self._rates.get(what)
        if rate is None:
            return
        key = (what, caller.actor if caller.role is not None else caller.address)
        now_s = self._clock.steady_s()
        left, since_s = self._buckets.get(key, (rate.burst, now_s))
        left = min(rate.burst, left + (now_s - since_s) * rate.a_second)
        if left < 1:
            self._refused.add(1, what)
            raise TooMany(f"too many calls of this kind ({what}); slow down", retry_after_s=(1 - left) / rate.a_second)
        self._buckets[key] = (left - 1, now_s)
        self._buckets.move_to_end(key)
        if len(self._buckets) > CALLERS_MAX:
            self._buckets.popitem(last=False)
