"""Troubles: the incidents that passengers hear of, by the channel of their trip, and those that ended while somebody was away.

The hub asks for what a newcomer has to know (all that is open) and what somebody who comes back missed (whatever was said since, endings
included). Bounded: endings are kept for a while only, and whoever was away for longer takes a snapshot. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from engine.events import IncidentEvent
from engine.live.advice import TripIncident, channel_of, concerns
from engine.live.table import Change
from engine.tracking.episodes import MISSED_STOP

ENDED_MAX: Final = 1_000  # endings remembered per worker

Words = Callable[[str, IncidentEvent], TripIncident | None]  # (area, incident) -> what its trip's channel says; None: nothing


class Trouble:
    """One incident as it was last said. `n`: the number of its area then."""

    __slots__ = ("area", "body", "channel", "n", "over")

    def __init__(self, area: str, channel: str, n: int, body: TripIncident, over: bool) -> None:
        self.area, self.channel, self.n, self.body, self.over = area, channel, n, body, over


class Troubles:
    """All of one worker."""

    def __init__(self, words: Words, now_ms: Callable[[], int]) -> None:
        self._words, self._now_ms = words, now_ms
        self._open: dict[str, dict[str, Trouble]] = {}  # channel -> incident id -> as it stands
        self._ended: deque[Trouble] = deque()
        self._base: dict[str, int] = {}  # area -> endings before this number are forgotten

    def hear(self, change: Change) -> list[Trouble]:
        """What has to be said of a change: openings, what changed for passengers, endings. Nothing is said twice."""
        if change.reset:  # numbers begin anew
            for held in self._open.values():
                for one in held.values():
                    if one.area == change.area:
                        one.n = change.n
            self._ended = deque(one for one in self._ended if one.area != change.area)
            self._base[change.area] = change.n
        said = [self._heard(change, event) for event in change.incidents]
        for event in change.over:  # nobody told us when
            said.append(self._heard(change, msgspec.structs.replace(event, closed_at_ms=self._now_ms())))
        return [one for one in said if one is not None]

    def _heard(self, change: Change, event: IncidentEvent) -> Trouble | None:
        if not concerns(event):
            return None
        channel = channel_of(change.area, event)
        held = self._open.get(channel, {}).get(event.incident_id)
        body = self._words(change.area, event)
        if body is None:
            return None
        over = body.closed_at is not None
        if held is not None and held.body == body:
            return None
        if held is None and over and event.kind != MISSED_STOP:
            return None  # it ended before anybody heard of it here
        made = Trouble(change.area, channel, change.n, body, over)
        if over:
            self._end(made)
        else:
            self._open.setdefault(channel, {})[body.incident_id] = made
        return made

    def _end(self, made: Trouble) -> None:
        among = self._open.get(made.channel)
        if among is not None:
            among.pop(made.body.incident_id, None)
            if not among:
                del self._open[made.channel]
        if len(self._ended) >= ENDED_MAX:
            oldest = self._ended.popleft()
            self._base[oldest.area] = max(self._base.get(oldest.area, 0), oldest.n)
        self._ended.append(made)

    def open_on(self, channel: str) -> list[Trouble]:
        """What goes on, the oldest first."""
        return list(self._open.get(channel, {}).values())

    def since(self, area: str, channel: str, n: int) -> list[Trouble] | None:
        """What was said on the channel after that number; None: we do not look that far back."""
        if n < self._base.get(area, 0):
            return None
        ended = [one for one in self._ended if one.channel == channel and one.n > n]
        return [one for one in self.open_on(channel) if one.n > n] + ended
