"""What managers read of the days behind them: punctuality, headways, detours, and where buses drove. For PARTNER_ADMIN, AGENT, SUPER_ADMIN.

Read from summaries (engine/tracking/summaries.py), so a month of a fleet costs little; `asOf` says how new they are, the running day is at
most some minutes behind. Dates are service dates, both ends included, at most `DAYS_MOST` of them. Another operator's routes and days are
as unknown as those that do not exist. docs/analytics.md says what each figure means.
"""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo

import msgspec
from litestar import Request, get
from litestar.params import FromQuery, QueryParameter

from api.auth import AGENT, PARTNER_ADMIN, SUPER_ADMIN, need
from api.ids import public_id, split_id
from api.parts import Parts, parts_of
from api.tracking import parse_box, principal_of
from engine.errors import Invalid, NotFound, Unavailable
from engine.live.frames import rfc3339
from engine.store.analytics import EARLY_MOST_S, EDGE_S, LATE_MOST_S, Analytics, HeadwaySums, HeatCell, Punctuality
from engine.tracking.plans import Plan
from engine.tracking.rules import NO_RULES

DAYS_MOST: Final = 92
DAYS: Final = 7  # where `from` is not said
ROWS_MOST: Final = 2_000
CELLS_MOST: Final = 5_000
CELL_M: Final = 111.2  # a thousandth of a degree from north to south
BUNCHED, GAPPED = 0.25, 1.5  # shares of the planned headway (analytics.sql counts by them)

Since = Annotated[str | None, QueryParameter(name="from", description="yyyy-mm-dd; default: a week before `to`")]
Until = Annotated[str | None, QueryParameter(name="to", description="yyyy-mm-dd, included; default: today")]
Route = Annotated[str | None, QueryParameter(description="a route's id; default: all")]
Direction = Annotated[int | None, QueryParameter(ge=0, le=1, description="GTFS direction_id; default: both")]


class OnTimeRow(msgspec.Struct, frozen=True, rename="camel"):
    """Calls (a stop of a trip) by how late they were."""

    key: str  # a date, a route id, an hour (00 .. 23) or a stop id; empty: all of it
    calls: int
    early: int
    on_time: int
    late: int
    missed: int
    on_time_share: float | None  # of the calls, missed ones among them; None: there are none
    mean_delay_s: float | None


class OnTime(msgspec.Struct, frozen=True, rename="camel"):
    since: str = msgspec.field(name="from")
    until: str = msgspec.field(name="to")
    by: str
    early_s: int  # on time is from so much before the planned time ...
    late_s: int  # ... to so much after it
    as_of: str | None  # None: nothing is summarised yet
    total: OnTimeRow
    rows: list[OnTimeRow]
    truncated: bool


class HeadwayRow(msgspec.Struct, frozen=True, rename="camel"):
    """Times between departures, seconds. None: too few to say."""

    route_id: str | None
    direction_id: int | None
    stop_id: str | None
    day: str | None
    observed: int
    planned: int
    mean_s: float | None
    sd_s: float | None
    variation: float | None  # sd / mean: 0 is even, above 0.5 buses often come in pairs
    planned_mean_s: float | None
    wait_s: float | None  # a passenger's mean wait who comes at any moment: sum of squares / twice the sum
    excess_wait_s: float | None  # beyond that of the timetable
    bunched_share: float | None  # below a quarter of the planned headway
    gapped_share: float | None  # above one and a half of it


class Headways(msgspec.Struct, frozen=True, rename="camel"):
    since: str = msgspec.field(name="from")
    until: str = msgspec.field(name="to")
    by: str
    as_of: str | None
    rows: list[HeadwayRow]
    truncated: bool


class DeviationRoute(msgspec.Struct, frozen=True, rename="camel"):
    route_id: str | None
    episodes: int
    minutes: float
    max_offset_m: float | None
    stops_bypassed: int


class DeviationPlace(msgspec.Struct, frozen=True, rename="camel"):
    """Where buses were when it was said that they are off, within about 200 m."""

    lat: float
    lon: float
    episodes: int
    minutes: float
    route_ids: list[str]


class Deviation(msgspec.Struct, frozen=True, rename="camel"):
    since: str = msgspec.field(name="from")
    until: str = msgspec.field(name="to")
    routes: list[DeviationRoute]  # the longest off first
    places: list[DeviationPlace]  # the most frequent first, at most 200


class Heatmap(msgspec.Struct, frozen=True, rename="camel"):
    """Cells in columns: the same place of each list is one cell; `lat`, `lon` are its south-west corner."""

    since: str = msgspec.field(name="from")
    until: str = msgspec.field(name="to")
    cell_deg: float
    lat: list[float]
    lon: list[float]
    fixes: list[int]
    mean_speed_mps: list[float | None]
    delay_s: list[float | None]  # mean of the calls at stops in the cell; None: there is no stop
    truncated: bool


@get("/analytics/on-time", tags=["analytics"])
async def read_on_time(
    request: Request[Any, Any, Any],
    by: Annotated[Literal["day", "route", "hour", "stop"], QueryParameter(description="what a row is")] = "day",
    since: Since = None,
    until: Until = None,
    route: Route = None,
    direction: Direction = None,
    early: Annotated[
        int | None, QueryParameter(name="earlyS", ge=0, le=EARLY_MOST_S, description="default: the operator's; to 30 s")
    ] = None,
    late: Annotated[int | None, QueryParameter(name="lateS", ge=0, le=LATE_MOST_S, description="default: the operator's; to 30 s")] = None,
    partner: FromQuery[str | None] = None,
) -> OnTime:
    """How many calls were early, on time, late or missed, by day, route, hour of the planned time, or stop (the least punctual first)."""
    parts, plans = parts_of(request), plans_of(request, partner)
    first, last = days_of(parts, plans, since, until)
    plans, local = route_of(plans, route)
    store, windows = analytics_of(parts), []
    for plan in plans:
        rules = NO_RULES if parts.rules is None else parts.rules.get(plan.feed_id)
        early_s, late_s = rules.on_time_early_s if early is None else early, rules.on_time_late_s if late is None else late
        windows.append((plan.feed_id, _edge(early_s, EARLY_MOST_S), _edge(late_s, LATE_MOST_S)))
    found = await store.on_time(windows, first, last, by, local, direction)
    all_of_it = await store.on_time(windows, first, last, "total", local, direction) if len(found) > ROWS_MOST else [_total(found)]
    as_of = await store.as_of([plan.feed_id for plan in plans], first, last)
    return OnTime(
        since=first.isoformat(),
        until=last.isoformat(),
        by=by,
        early_s=windows[0][1] if windows else early or 0,
        late_s=windows[0][2] if windows else late or 0,
        as_of=said_at(as_of),
        total=_on_time_row(all_of_it[0]),
        rows=[_on_time_row(row) for row in found[:ROWS_MOST]],
        truncated=len(found) > ROWS_MOST,
    )


@get("/analytics/headways", tags=["analytics"])
async def read_headways(
    request: Request[Any, Any, Any],
    by: Annotated[Literal["route", "stop", "day"], QueryParameter(description="what a row is")] = "route",
    since: Since = None,
    until: Until = None,
    route: Route = None,
    direction: Direction = None,
    partner: FromQuery[str | None] = None,
) -> Headways:
    """How evenly buses came: observed against planned times between departures, by route and direction, stop (in the line's order) or day."""
    parts, plans = parts_of(request), plans_of(request, partner)
    first, last = days_of(parts, plans, since, until)
    plans, local = route_of(plans, route)
    areas = [plan.feed_id for plan in plans]
    found = await analytics_of(parts).headways(areas, first, last, by, local, direction)
    as_of = said_at(await analytics_of(parts).as_of(areas, first, last))
    rows = [_headway_row(row) for row in found[:ROWS_MOST]]
    return Headways(since=first.isoformat(), until=last.isoformat(), by=by, as_of=as_of, rows=rows, truncated=len(found) > ROWS_MOST)


@get("/analytics/deviation", tags=["analytics"])
async def read_deviation(
    request: Request[Any, Any, Any],
    since: Since = None,
    until: Until = None,
    route: Route = None,
    partner: FromQuery[str | None] = None,
) -> Deviation:
    """Where and how long buses were off their route: episodes by route and by place, and how many stops they passed by."""
    parts, plans = parts_of(request), plans_of(request, partner)
    first, last = days_of(parts, plans, since, until)
    plans, local = route_of(plans, route)
    areas, zone = [plan.feed_id for plan in plans], _zone(plans)
    begin = datetime(first.year, first.month, first.day, tzinfo=zone)
    span = begin, datetime(last.year, last.month, last.day, tzinfo=zone) + timedelta(days=1), _now(parts)
    routes = await analytics_of(parts).off_route_routes(areas, *span, local)
    places = await analytics_of(parts).off_route_places(areas, *span, local)
    return Deviation(
        since=first.isoformat(),
        until=last.isoformat(),
        routes=[
            DeviationRoute(
                None if row.route_id is None else public_id(row.area, row.route_id),
                row.episodes,
                round(row.minutes, 1),
                row.worst_m,
                row.bypassed,
            )
            for row in routes[:ROWS_MOST]
        ],
        places=[
            DeviationPlace(round(row.lat, 6), round(row.lon, 6), row.episodes, round(row.minutes, 1), sorted(row.routes or ()))
            for row in places
        ],
    )


@get("/analytics/heatmap", tags=["analytics"])
async def read_heatmap(
    request: Request[Any, Any, Any],
    bbox: Annotated[str, QueryParameter(description="west,south,east,north in degrees")],
    resolution: Annotated[int, QueryParameter(ge=100, le=20_000, description="metres of a cell, about")] = 200,
    since: Since = None,
    until: Until = None,
    partner: FromQuery[str | None] = None,
) -> Heatmap:
    """Where buses were, how fast, and how late they called there: cells of a box, the fullest first."""
    parts, plans = parts_of(request), plans_of(request, partner)
    first, last = days_of(parts, plans, since, until)
    west, south, east, north = parse_box(bbox)
    cell, areas = max(1, round(resolution / CELL_M)), [plan.feed_id for plan in plans]
    store = analytics_of(parts)
    cells: list[HeatCell] = []
    for low, high in ((west, east),) if west <= east else ((west, 180.0), (-180.0, east)):
        box = math.floor(low * 1000), math.floor(high * 1000), math.floor(south * 1000), math.floor(north * 1000)
        cells += await store.heat(areas, first, last, box, cell)
    cells.sort(key=lambda one: -one.fixes)
    delays = await _delays(store, plans, first, last, cell)
    shown = cells[:CELLS_MOST]
    return Heatmap(
        since=first.isoformat(),
        until=last.isoformat(),
        cell_deg=cell / 1000,
        lat=[round(one.y * cell / 1000, 3) for one in shown],
        lon=[round(one.x * cell / 1000, 3) for one in shown],
        fixes=[one.fixes for one in shown],
        mean_speed_mps=[None if one.mean_speed_mps is None else round(one.mean_speed_mps, 2) for one in shown],
        delay_s=[delays.get((one.x, one.y)) for one in shown],
        truncated=len(cells) > CELLS_MOST,
    )


# ------------------------------------------------------------------------------------------------ how they are made


def plans_of(request: Request[Any, Any, Any], wanted: str | None) -> list[Plan]:
    """The feeds that the caller may see: its partner's, or of a super admin those of the partner it names, else all. Raises `NotFound` for
    another operator."""
    parts = parts_of(request)
    who = need(principal_of(parts, request), PARTNER_ADMIN, AGENT, SUPER_ADMIN)
    if parts.plans is None:
        raise Unavailable("no timetable is loaded yet", retry_after_s=2)
    if who.role != SUPER_ADMIN:
        if wanted not in (None, who.partner_id):
            raise NotFound(f"no partner {wanted!r}")
        wanted = who.partner_id or ""
    return [plan for plan in parts.plans.all() if wanted is None or plan.partner_id == wanted]


def route_of(plans: list[Plan], route: str | None) -> tuple[list[Plan], str | None]:
    """The feed of a route and the route's own id there; all feeds and None where none is named. Raises `NotFound`."""
    if route is None:
        return plans, None
    feed_id, local = split_id(route, "route")
    own = [plan for plan in plans if plan.feed_id == feed_id]
    if not own or local not in own[0].timetable.routes:
        raise NotFound(f"no route {route!r}")
    return own, local


def analytics_of(parts: Parts) -> Analytics:
    if parts.postgres is None:
        raise Unavailable("this worker has no access to the record", retry_after_s=5)
    return Analytics(parts.postgres)


def days_of(parts: Parts, plans: list[Plan], since: str | None, until: str | None) -> tuple[date, date]:
    """Both service dates. Raises `Invalid`."""
    last = _now(parts).astimezone(_zone(plans)).date() if until is None else day_of(until, "to")
    first = (last - timedelta(days=DAYS - 1) if last.toordinal() > DAYS else last) if since is None else day_of(since, "from")
    if not 0 <= (last - first).days < DAYS_MOST:
        raise Invalid(f"`to` must not lie before `from`, and both within {DAYS_MOST} days")
    return first, last


def day_of(text: str, name: str) -> date:
    """yyyy-mm-dd, of years in which there are buses. Raises `Invalid`."""
    try:
        if len(text) == 10 and text.isascii() and (day := date.fromisoformat(text)).year in range(1970, 2200):
            return day
    except ValueError:
        pass
    raise Invalid(f"{name} reads yyyy-mm-dd, not {text[:40]!r}")


def said_at(when: datetime | None) -> str | None:
    return None if when is None else rfc3339(round(when.timestamp() * 1000))


def _now(parts: Parts) -> datetime:
    return datetime.fromtimestamp(parts.clock.now_ms() / 1000, UTC)


def _zone(plans: list[Plan]) -> ZoneInfo:
    return plans[0].timetable.tz if plans else ZoneInfo("UTC")


def _edge(at_s: int, most_s: int) -> int:
    """The nearest edge that the summaries have, s."""
    return min(most_s, round(at_s / EDGE_S) * EDGE_S)


def _total(rows: list[Punctuality]) -> Punctuality:
    """Of all of them."""
    early, on_time, late, missed = (sum(getattr(row, name) for row in rows) for name in ("early", "on_time", "late", "missed"))
    known = early + on_time + late
    sum_s = sum((row.early + row.on_time + row.late) * (row.mean_s or 0.0) for row in rows)
    return Punctuality("", early, on_time, late, missed, sum_s / known if known else None)


def _on_time_row(row: Punctuality) -> OnTimeRow:
    calls = row.early + row.on_time + row.late + row.missed
    share = round(row.on_time / calls, 4) if calls else None
    mean = None if row.mean_s is None else round(row.mean_s, 1)
    return OnTimeRow(row.key, calls, row.early, row.on_time, row.late, row.missed, share, mean)


def _headway_row(row: HeadwaySums) -> HeadwayRow:
    mean = row.sum_s / row.n if row.n else None
    sd = math.sqrt(max(0.0, (row.sum2_s - row.sum_s**2 / row.n) / (row.n - 1))) if row.n > 1 else None
    wait = row.sum2_s / (2 * row.sum_s) if row.sum_s > 0 else None
    planned_wait = row.planned_sum2_s / (2 * row.planned_sum_s) if row.planned_sum_s > 0 else None
    return HeadwayRow(
        None if row.route_id is None else public_id(row.area, row.route_id),
        row.direction_id,
        None if row.stop_id is None else public_id(row.area, row.stop_id),
        None if row.service_day is None else row.service_day.isoformat(),
        row.n,
        row.planned_n,
        _rounded(mean),
        _rounded(sd),
        None if sd is None or not mean else round(sd / mean, 3),
        _rounded(row.planned_sum_s / row.planned_n if row.planned_n else None),
        _rounded(wait),
        None if wait is None or planned_wait is None else _rounded(wait - planned_wait),
        round(row.bunched / row.compared, 4) if row.compared else None,
        round(row.gapped / row.compared, 4) if row.compared else None,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


async def _delays(store: Analytics, plans: list[Plan], first: date, last: date, cell: int) -> dict[tuple[int, int], float]:
    """Mean delay by cell: of the calls at the stops in it."""
    stops = {plan.feed_id: plan.timetable.stops for plan in plans}
    sums: dict[tuple[int, int], tuple[int, float]] = {}
    for row in await store.stop_means(list(stops), first, last):
        stop = stops[row.area].get(row.stop_id)
        if stop is not None:
            place = math.floor(stop.lon * 1000 / cell), math.floor(stop.lat * 1000 / cell)
            n, total = sums.get(place, (0, 0.0))
            sums[place] = n + row.n, total + row.n * row.mean_s
    return {place: round(total / n, 1) for place, (n, total) in sums.items()}


ROUTERS: Final = (read_on_time, read_headways, read_deviation, read_heatmap)
