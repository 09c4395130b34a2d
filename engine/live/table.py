"""The live table: what a worker knows of every vehicle right now. Reads, bounding boxes, GTFS-Realtime and snapshots come from it.

Fed by the numbered batches of `live:{area}`. Promises: batches of an area are applied once, in order, without a hole: a missing number, a
new epoch or a reconnect makes it read the area's picture again, and what arrives meanwhile waits (bounded) and is applied after it. A new
epoch (Redis lost something) is told as a reset. While Redis is away the last picture stays and `stale` says so. Refuses to be a history: it
holds the newest position and forecast per vehicle, nothing else.

Every worker hears every vehicle, most of which nobody asks it about: so what is said of one is encoded when somebody listens, and a forecast
(twenty stops: 9 us to decode) is decoded when somebody reads it. Until then its head and its number of stops say all that the indexes need.

What does not decode is counted, logged and left out, whoever comes upon it; a forecast has no stops then. Its area's picture is read once more.

`hear` and `learn` are pure; `follow` is the shell around them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from math import floor
from typing import Final, Protocol, TypeVar

import msgspec

from engine.errors import Unavailable
from engine.events import SKIPPED, ApproachEvent, IncidentEvent, LiveBatch, Position, StopEvent, TripForecast
from engine.live import frames
from engine.live.channels import trip_key
from engine.live.frames import ENCODE
from engine.meter import Meter

log = logging.getLogger(__name__)

K = TypeVar("K")
D = TypeVar("D")

WAITING_MAX: Final = 2_000  # batches kept per area while its picture is read; past it the oldest go and it is read once more
LEFT_MAX: Final = 4_096  # departures from channels remembered per area: what a resume may look back on
CELL_DEG: Final = 0.05  # grid of the bounding boxes: about 5 km
CLOSED: Final = "CLOSED"  # what a person closed is shown to nobody, though its episode may go on
CHECK_S: Final = 1.0  # how often Redis is asked whether it is there
RETRY_S: Final = 0.5
BROKEN: Final = (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError)  # what decoding raises

NOT_MADE: Final[tuple[bytes | None, bytes | None]] = (None, None)


class Seen:
    """The newest position of one vehicle, the area that said it, and the number of the batch in which it last changed. `names`: the channels
    that carry it, its own first; a tuple that all positions of a vehicle share for as long as it stays on them."""

    __slots__ = ("_bodies", "area", "cell", "n", "names", "position")

    def __init__(self, area: str, n: int, position: Position, names: tuple[str, ...], cell: tuple[int, int]) -> None:
        self.area, self.n, self.position, self.names, self.cell = area, n, position, names, cell
        self._bodies: tuple[bytes | None, bytes | None] = NOT_MADE

    def body(self, encoding: int) -> bytes:
        """The encoded `pos`: made once, whichever channels, viewports and snapshots say it."""
        made = self._bodies[encoding]
        if made is None:
            made = ENCODE[encoding](frames.pos(self.position))
            self._bodies = (made, self._bodies[1]) if encoding == frames.JSON else (self._bodies[0], made)
        return made


class Head(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A forecast without a look at its stops."""

    bus_id: str
    trip_id: str
    start_date: str
    route_id: str
    made_at_ms: int
    stops: msgspec.Raw


_head: Final = msgspec.msgpack.Decoder(Head).decode
_whole: Final = msgspec.msgpack.Decoder(TripForecast).decode
_MISSED: Final = SKIPPED.encode()


Spoilt = Callable[[str, str, Exception], None]  # (area, what, why) of what did not decode


class Foreseen:
    """The newest forecast of one vehicle, likewise. `trip`: the channel that carries it; `ahead`: the channels of its stops."""

    __slots__ = ("_forecast", "_raw", "_spoilt", "ahead", "area", "bus_id", "made_at_ms", "n", "shape", "trip", "trip_id")

    def __init__(self, area: str, n: int, head: Head, raw: msgspec.Raw, held: Foreseen | None, spoilt: Spoilt) -> None:
        """`held`: the one before; `spoilt` hears of stops that do not decode."""
        self._spoilt = spoilt
        self.area, self.n, self.bus_id, self.trip_id, self.made_at_ms = area, n, head.bus_id, head.trip_id, head.made_at_ms
        self._raw = bytes(raw)  # a view would keep the whole batch
        self._forecast: TripForecast | None = None
        stops = bytes(head.stops)
        count = stops[:3] if stops[0] == 0xDC else stops[:1]  # the header of the array
        self.shape = (area, head.trip_id, head.start_date, count, _MISSED in stops)
        # the rest of a trip only ever gets shorter: where none was missed, their number says whether the stops are still the same
        self.trip: str
        self.ahead: tuple[str, ...]
        if held is not None and held.shape == self.shape and not self.shape[4]:
            self.trip, self.ahead = held.trip, held.ahead
        else:
            self.trip = "trip:" + trip_key(area, head.trip_id, head.start_date)
            self.ahead = tuple(f"stop:{area}:{stop.stop_id}" for stop in self.forecast.ahead)

    @property
    def forecast(self) -> TripForecast:
        if self._forecast is None:
            try:
                self._forecast = _whole(self._raw)
            except BROKEN as fault:
                self._spoilt(self.area, "forecast", fault)
                head = _head(self._raw)
                self._forecast = TripForecast(head.bus_id, head.trip_id, head.start_date, head.route_id, head.made_at_ms, ())
                self.made_at_ms = -1  # so that the next picture's is another
        return self._forecast


class Change:
    """What one batch, or one reading of the picture, changed."""

    __slots__ = ("area", "forecasts", "gone", "incidents", "moved", "n", "over", "reset", "stops")

    def __init__(self, area: str, n: int, *, reset: bool = False) -> None:
        self.area, self.n = area, n
        self.reset = reset  # True: a new epoch; nothing said before counts, everyone needs a snapshot
        self.moved: list[tuple[Seen | None, Seen]] = []  # (before, now)
        self.gone: list[Seen] = []
        self.forecasts: list[Foreseen] = []
        self.stops: list[StopEvent] = []
        self.incidents: list[IncidentEvent] = []  # opened, changed, or closed (`closed_at_ms`), as they were said
        self.over: list[IncidentEvent] = []  # closed while we did not hear: no longer in the picture


class Area:
    """How far we have heard one area."""

    __slots__ = ("base_n", "buses", "epoch", "id", "incidents", "left", "loading", "n", "waiting")

    def __init__(self, area_id: str) -> None:
        self.id = area_id
        self.epoch = ""  # "": nothing known yet
        self.n = 0
        self.base_n = 0  # we know every departure since this number; a resume from before it needs a snapshot
        self.buses: dict[str, None] = {}
        self.incidents: dict[str, IncidentEvent] = {}  # open ones by id, the oldest first
        self.left: deque[tuple[int, str, tuple[str, ...]]] = deque()  # (n, bus_id, channels it left)
        self.loading = False
        self.waiting: deque[LiveBatch] = deque(maxlen=WAITING_MAX)


class Source(Protocol):
    """What the table needs of `engine.store.redis.Redis`."""

    async def ping(self) -> None: ...
    async def areas(self) -> list[str]: ...
    async def load_live(self, area: str) -> LiveBatch: ...
    def listen_live(self) -> AsyncIterator[bytes | None]: ...


def trip_of(p: Position) -> str | None:
    """The public id of the trip instance that it drives."""
    return None if p.trip_id is None or p.start_date is None else trip_key(p.feed_id, p.trip_id, p.start_date)


def route_of(p: Position) -> str | None:
    return None if p.route_id is None else f"{p.feed_id}:{p.route_id}"


def group_channels(p: Position) -> tuple[str, ...]:
    """The channels besides its own that carry this position: of its trip, its route and its fleet."""
    trip, route = trip_of(p), route_of(p)
    fleet = "fleet:" + p.partner_id
    if trip is None:
        return (fleet,) if route is None else ("route:" + route, fleet)
    return ("trip:" + trip, fleet) if route is None else ("trip:" + trip, "route:" + route, fleet)


def _cell(p: Position) -> tuple[int, int]:
    return floor(p.lon / CELL_DEG), floor(p.lat / CELL_DEG)


def _is_carried_alike(p: Position, q: Position) -> bool:
    """Whether both are carried by the same channels (of one vehicle in one area)."""
    return p.trip_id == q.trip_id and p.route_id == q.route_id and p.start_date == q.start_date and p.partner_id == q.partner_id


class LiveTable:
    """Everything we hear of, by bus id, with indexes by channel, stop and place."""

    def __init__(self, meter: Meter | None = None) -> None:
        self.areas: dict[str, Area] = {}
        self.buses: dict[str, Seen] = {}
        self.forecasts: dict[str, Foreseen] = {}
        self.groups: dict[str, dict[str, None]] = {}  # "trip:..", "route:..", "fleet:.." -> bus ids
        self.stops: dict[str, dict[str, None]] = {}  # "stop:.." -> ids of the buses whose forecast has that stop
        self.cells: dict[tuple[int, int], dict[str, None]] = {}
        self.troubled: dict[str, dict[str, None]] = {}  # public id of a trip instance -> ids of its open incidents
        self.stale = True  # True until the first picture is read, and while Redis is away
        self.wanted: dict[str, None] = {}  # areas whose picture has to be read
        self.doubted: dict[str, None] = {}  # areas of which something did not decode: read once more when there is time
        meter = meter or Meter()
        self._heard = meter.counter("timepoint_live_batches_total", "numbered live batches applied")
        self._gaps = meter.counter("timepoint_live_gaps_total", "times an area's picture was read again, by cause", ("cause",))
        self._bad = meter.counter(
            "timepoint_live_undecodable_total", "live batches, positions, forecasts and incidents that did not decode"
        )
        self._decode_batch = msgspec.msgpack.Decoder(LiveBatch).decode
        self._decode_position = msgspec.msgpack.Decoder(Position).decode
        self._decode_incident = msgspec.msgpack.Decoder(IncidentEvent).decode
        self._say_spoilt: Spoilt = self._spoilt  # bound once: every forecast keeps it
        self._logged: dict[tuple[str, str], None] = {}  # (area, what): said once between two doubts, so that a log is not flooded

    # --- reading ---

    def position(self, bus_id: str) -> Position | None:
        seen = self.buses.get(bus_id)
        return None if seen is None else seen.position

    def forecast(self, bus_id: str) -> TripForecast | None:
        found = self.forecasts.get(bus_id)
        return None if found is None else found.forecast

    def incidents(self, area_id: str) -> list[IncidentEvent]:
        """What is open in an area, the oldest first."""
        area = self.areas.get(area_id)
        return [] if area is None else list(area.incidents.values())

    def incidents_of_trip(self, area_id: str, trip: str) -> list[IncidentEvent]:
        """What is open on a trip instance (its public id), the oldest first."""
        area, found = self.areas.get(area_id), self.troubled.get(trip)
        return [] if area is None or found is None else [area.incidents[name] for name in found]

    def on_channel(self, channel: str) -> list[Seen]:
        """The vehicles that a `bus:`, `trip:`, `route:` or `fleet:` channel carries now."""
        if channel.startswith("bus:"):
            seen = self.buses.get(channel[4:])
            return [] if seen is None else [seen]
        return [self.buses[bus_id] for bus_id in self.groups.get(channel, ())]

    def at_stop(self, stop: str) -> list[Foreseen]:
        """Forecasts that have this stop (public id) ahead; not those that missed it."""
        return [self.forecasts[bus_id] for bus_id in self.stops.get("stop:" + stop, ())]

    def on_trip(self, trip: str) -> list[Seen]:
        """The vehicles on this trip instance (public id)."""
        return self.on_channel("trip:" + trip)

    def inside(self, west: float, south: float, east: float, north: float) -> Iterator[Seen]:
        """The vehicles in a box of degrees; west > east means a box across the antimeridian."""
        if west > east:
            yield from self.inside(west, south, 180.0, north)
            yield from self.inside(-180.0, south, east, north)
            return
        columns = range(floor(west / CELL_DEG), floor(east / CELL_DEG) + 1)
        rows = range(floor(south / CELL_DEG), floor(north / CELL_DEG) + 1)
        if len(columns) * len(rows) > len(self.cells):
            candidates: Iterator[str] = iter(self.buses)
        else:
            candidates = (bus_id for x in columns for y in rows for bus_id in self.cells.get((x, y), ()))
        for bus_id in candidates:
            seen = self.buses[bus_id]
            p = seen.position
            if west <= p.lon <= east and south <= p.lat <= north:
                yield seen

    def mark(self, channel: str) -> tuple[Area | None, bool]:
        """The area whose epoch and number are this channel's, and whether there is just one (else nothing can be resumed)."""
        kind, _, rest = channel.partition(":")
        if kind == "bus":
            seen = self.buses.get(rest)
            return (self.areas.get(seen.area), True) if seen is not None else (None, False)
        if kind == "fleet":
            names = {self.buses[bus_id].area for bus_id in self.groups.get(channel, ())}
            return (self.areas.get(names.pop()), True) if len(names) == 1 else (None, False)
        area = self.areas.get(rest.partition(":")[0])
        return area, area is not None

    def left_since(self, area: Area, channel: str, offset: int) -> list[str] | None:
        """Ids of the buses that left the channel after that number and are not back; None where we do not look that far back."""
        if offset < area.base_n or offset > area.n:
            return None
        here = self.groups.get(channel, {})
        found = {bus_id: None for n, bus_id, channels in area.left if n > offset and channel in channels and bus_id not in here}
        return list(found)

    # --- hearing ---

    def hear(self, batch: LiveBatch) -> Change | None:
        """One batch as it comes from `live:*`. None: a repetition, or it waits for the picture (`wanted` says which areas)."""
        area = self.areas.get(batch.area)
        if area is None:
            area = self.areas[batch.area] = Area(batch.area)
            self._lose(area, "NEW_AREA", batch)
        elif area.loading:
            area.waiting.append(batch)
        elif batch.epoch != area.epoch:
            self._lose(area, "NEW_EPOCH", batch)
        elif batch.n == area.n + 1:
            return self._apply(area, batch)
        elif batch.n > area.n:
            self._lose(area, "MISSING_NUMBER", batch)
        return None

    def lose(self, area_id: str, cause: str) -> None:
        """What we know of this area may have a hole: read it again."""
        self._lose(self.areas.setdefault(area_id, Area(area_id)), cause, None)

    def learn(self, picture: LiveBatch) -> list[Change]:
        """The whole picture of one area, and then what waited for it. The area may be wanted again after it, if there is still a hole."""
        area = self.areas.setdefault(picture.area, Area(picture.area))
        area.loading = False
        self.wanted.pop(area.id, None)
        waiting, area.waiting = area.waiting, deque(maxlen=WAITING_MAX)
        changes = []
        if picture.epoch != area.epoch or picture.n >= area.n:  # an older picture of the same epoch can only come from a lagging replica
            changes.append(self._compare(area, picture))
        if any(batch.epoch != area.epoch for batch in waiting):
            # of an epoch that is over, or of one that began after this picture: only another look can tell, and it needs none of them
            self._lose(area, "NEW_EPOCH", None)
        for batch in waiting:
            if batch.epoch != area.epoch:
                continue
            change = self.hear(batch)
            if change is not None:
                changes.append(change)
        return changes

    def _whole_ones(self, area: Area, blobs: Sequence[msgspec.Raw], what: str, decode: Callable[[msgspec.Raw], D]) -> list[D]:
        """Those of a picture that decode. To read it again would find the others as they are."""
        found = []
        for blob in blobs:
            try:
                found.append(decode(blob))
            except BROKEN as fault:
                self._spoilt(area.id, what, fault, again=False)
        return found

    def _spoilt(self, area_id: str, what: str, fault: Exception, *, again: bool = True) -> None:
        self._bad.add()
        if (area_id, what) not in self._logged:
            self._logged[area_id, what] = None
            log.error("area %s: a live %s does not decode: %s", area_id, what, fault)
        if again:
            self.doubted[area_id] = None

    def heed_doubts(self) -> None:
        """Areas of which something did not decode are wanted again: what came over the wire may be whole where it is kept."""
        doubted, self.doubted = self.doubted, {}
        self._logged.clear()
        for area_id in doubted:
            self.lose(area_id, "UNDECODABLE")

    def _lose(self, area: Area, cause: str, batch: LiveBatch | None) -> None:
        self._gaps.add(1, cause)
        area.loading = True
        area.waiting.clear()
        if batch is not None:
            area.waiting.append(batch)
        self.wanted[area.id] = None

    def _apply(self, area: Area, batch: LiveBatch) -> Change:
        area.n = batch.n
        self._heard.add()
        change = Change(area.id, batch.n)
        for raw in batch.positions:
            try:
                position = self._decode_position(raw)
            except BROKEN as fault:
                self._spoilt(area.id, "position", fault)
            else:
                self._move(area, position, change)
        for blob in batch.forecasts:
            try:
                head = _head(blob)
            except BROKEN as fault:
                self._spoilt(area.id, "forecast", fault)
            else:
                self._foresee(area, head, blob, change)
        for event in batch.events:
            if isinstance(event, StopEvent):
                if not event.late:
                    change.stops.append(event)
            elif isinstance(event, IncidentEvent) and not event.late:
                change.incidents.append(event)
                self._stand(area, event)
            elif isinstance(event, ApproachEvent):
                change.stops.append(_near(event))
        for bus_id in batch.gone:
            self._drop(area, bus_id, change)
        return change

    def _compare(self, area: Area, picture: LiveBatch) -> Change:
        """The picture against what we hold: only what differs is a change, so a reload after a hole costs its listeners only that."""
        reset = picture.epoch != area.epoch
        area.epoch, area.n = picture.epoch, picture.n
        change = Change(area.id, picture.n, reset=reset)
        if reset:
            area.base_n = picture.n
            area.left.clear()
        here = set()
        for position in self._whole_ones(area, picture.positions, "position", self._decode_position):
            here.add(position.bus_id)
            held = self.buses.get(position.bus_id)
            if reset or held is None or held.area != area.id or held.position != position:
                self._move(area, position, change)
        for bus_id in [bus_id for bus_id in area.buses if bus_id not in here]:
            self._drop(area, bus_id, change)
        for blob in picture.forecasts:
            try:
                head = _head(blob)
            except BROKEN as fault:
                self._spoilt(area.id, "forecast", fault, again=False)
                continue
            known = self.forecasts.get(head.bus_id)
            if head.bus_id in area.buses and (reset or known is None or known.made_at_ms != head.made_at_ms):
                self._foresee(area, head, blob, change)
        self._compare_incidents(area, self._whole_ones(area, picture.incidents, "incident", self._decode_incident), change)
        return change

    def _compare_incidents(self, area: Area, standing: list[IncidentEvent], change: Change) -> None:
        held = dict(area.incidents)
        for event in sorted(standing, key=lambda each: (each.opened_at_ms, each.incident_id)):
            if held.pop(event.incident_id, None) != event:
                change.incidents.append(event)
            self._stand(area, event)
        for event in held.values():
            self._end(area, event)
            change.over.append(event)

    # --- the indexes ---

    def _stand(self, area: Area, event: IncidentEvent) -> None:
        """The incident as it is now: open, or no longer shown."""
        if event.closed_at_ms is not None or event.handled == CLOSED:
            self._end(area, event)
            return
        area.incidents[event.incident_id] = event
        if event.trip_id is not None and event.start_date is not None:
            self.troubled.setdefault(trip_key(area.id, event.trip_id, event.start_date), {})[event.incident_id] = None

    def _end(self, area: Area, event: IncidentEvent) -> None:
        known = area.incidents.pop(event.incident_id, None)
        if known is not None and known.trip_id is not None and known.start_date is not None:
            _leave(self.troubled, trip_key(area.id, known.trip_id, known.start_date), known.incident_id)

    def _move(self, area: Area, p: Position, change: Change) -> None:
        bus_id, area_id, cell = p.bus_id, area.id, _cell(p)
        before = self.buses.get(bus_id)
        if before is None:
            names = ("bus:" + bus_id, *group_channels(p))
            area.buses[bus_id] = None
            self._enter(names, bus_id)
            self.cells.setdefault(cell, {})[bus_id] = None
        else:
            if before.area == area_id:
                names = before.names if _is_carried_alike(p, before.position) else self._regroup(area, p, before)
            elif p.fixed_at_ms < before.position.fixed_at_ms:
                return  # it drives in another area now; this one has only noticed its silence
            else:
                self.areas[before.area].buses.pop(bus_id, None)
                area.buses[bus_id] = None
                names = self._regroup(area, p, before)
            if cell != before.cell:
                _leave(self.cells, before.cell, bus_id)
                self.cells.setdefault(cell, {})[bus_id] = None
        now = self.buses[bus_id] = Seen(area_id, area.n, p, names, cell)
        change.moved.append((before, now))

    def _regroup(self, area: Area, p: Position, before: Seen) -> tuple[str, ...]:
        """It is on other channels now, or another area's."""
        bus_id, q = p.bus_id, before.position
        names = ("bus:" + bus_id, *group_channels(p))
        self._leave_groups(area, before, names)
        self._enter(names, bus_id)
        held = self.forecasts.get(bus_id)
        if held is not None and held.trip_id == q.trip_id and p.trip_id != q.trip_id:
            self._forget_forecast(bus_id)
        return names

    def _enter(self, names: tuple[str, ...], bus_id: str) -> None:
        for channel in names[1:]:
            self.groups.setdefault(channel, {})[bus_id] = None

    def _drop(self, area: Area, bus_id: str, change: Change) -> None:
        seen = self.buses.get(bus_id)
        if seen is None or seen.area != area.id:
            return
        del self.buses[bus_id]
        area.buses.pop(bus_id, None)
        self._leave_groups(area, seen, ())
        _leave(self.cells, seen.cell, bus_id)
        self._forget_forecast(bus_id)
        change.gone.append(Seen(area.id, area.n, seen.position, seen.names, seen.cell))

    def _leave_groups(self, area: Area, seen: Seen, stays_in: tuple[str, ...]) -> None:
        bus_id = seen.position.bus_id
        gone = tuple(channel for channel in seen.names[1:] if channel not in stays_in)
        for channel in gone:
            _leave(self.groups, channel, bus_id)
        if gone:
            if len(area.left) >= LEFT_MAX:
                area.base_n = area.left.popleft()[0]
            area.left.append((area.n, bus_id, gone))

    def _foresee(self, area: Area, head: Head, raw: msgspec.Raw, change: Change) -> None:
        bus_id = head.bus_id
        held = self.forecasts.get(bus_id)
        found = Foreseen(area.id, area.n, head, raw, held, self._say_spoilt)
        if held is None or held.ahead is not found.ahead:
            self._forget_forecast(bus_id)
            for stop in found.ahead:
                self.stops.setdefault(stop, {})[bus_id] = None
        self.forecasts[bus_id] = found
        change.forecasts.append(found)

    def _forget_forecast(self, bus_id: str) -> None:
        held = self.forecasts.pop(bus_id, None)
        if held is not None:
            for stop in held.ahead:
                _leave(self.stops, stop, bus_id)

    # --- the shell ---

    async def follow(self, source: Source, say: Callable[[Change], None]) -> None:
        """Listens until cancelled; `say` gets every change, in order per area."""
        needed = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            reader = _Reader(self, source, say, needed)
            tasks.create_task(reader.run(), name="live pictures")
            async for raw in source.listen_live():
                if raw is None:
                    reader.relist = True
                else:
                    try:
                        batch = self._decode_batch(raw)
                    except BROKEN as fault:  # its number is missed by the next one
                        self._spoilt("?", "batch", fault, again=False)
                        continue
                    change = self.hear(batch)
                    if change is not None:
                        say(change)
                if reader.relist or self.wanted:
                    needed.set()


def _near(event: ApproachEvent) -> StopEvent:
    """What is said of a stop that is near, on the channels and in the shape of what is said of a stop that was served."""
    return StopEvent(
        event.event_id, event.bus_id, event.trip_id, event.start_date, event.route_id, event.stop_id, event.stop_sequence, None, None,
        "APPROACHING",
    )  # fmt: skip


def _leave(index: dict[K, dict[str, None]], key: K, bus_id: str) -> None:
    members = index.get(key)
    if members is not None:
        members.pop(bus_id, None)
        if not members:
            del index[key]


class _Reader:
    """Reads wanted pictures, one at a time, and looks every second whether Redis is there."""

    def __init__(self, table: LiveTable, source: Source, say: Callable[[Change], None], needed: asyncio.Event) -> None:
        self.table, self.source, self.say, self.needed = table, source, say, needed
        self.relist = False  # True: every area there is has to be read
        self.heeded_s = float("-inf")  # when doubts were heeded last: no oftener than once in CHECK_S

    async def run(self) -> None:
        while True:
            try:
                await asyncio.wait_for(self.needed.wait(), CHECK_S)
            except TimeoutError:
                pass
            self.needed.clear()
            try:
                await self._look()
            except Unavailable as fault:
                if not self.table.stale:
                    log.warning("the live picture is stale: %s", fault.detail)
                self.table.stale = self.relist = True
                await asyncio.sleep(RETRY_S)
                self.needed.set()

    async def _look(self) -> None:
        table, now_s = self.table, asyncio.get_running_loop().time()
        if now_s - self.heeded_s >= CHECK_S:
            self.heeded_s = now_s
            table.heed_doubts()
        if self.relist:
            known = {*await self.source.areas(), *table.areas}
            self.relist = False
            for area_id in sorted(known):
                table.lose(area_id, "CONNECTED")
        elif not table.wanted:
            await self.source.ping()
            return
        while table.wanted:
            area_id = next(iter(table.wanted))
            for change in table.learn(await self.source.load_live(area_id)):
                self.say(change)
        if not self.relist:
            table.stale = False
