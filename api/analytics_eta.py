"""How good the published arrivals were, for the operator: by service date and route, with the score of the public benchmark.

Whole days come from the record that the nightly job keeps (`engine/tracking/nights.py`); the day that still runs is worked out on demand, for
one route and a bounded number of its trips, and says so (`provisional`). For PARTNER_ADMIN, AGENT and SUPER_ADMIN; another operator's routes
are as unknown as those that do not exist.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, get
from litestar.params import FromQuery, QueryParameter

from api.auth import AGENT, PARTNER_ADMIN, SUPER_ADMIN, Principal, need
from api.ids import public_id, split_id
from api.network import Cursor, Limit
from api.parts import Parts, parts_of
from api.tracking import principal_of
from engine.errors import Forbidden, Invalid, NotFound, Unavailable
from engine.store.accuracy import AccuracyStore, RouteDay
from engine.tracking.accuracy import ACTUAL, POOLED_S, PREDICTED, BucketSums
from engine.tracking.nights import DUE_HOUR, judged
from engine.tracking.plans import Plan

SPAN_MOST: Final = timedelta(days=366)  # of one question
SPAN: Final = timedelta(days=7)  # where it names no beginning
TRIPS_TODAY: Final = 40  # of the running day: the newest ones that have departed, about a second's work in pieces


class EtaBucket(msgspec.Struct, frozen=True, rename="camel"):
    """Samples whose horizon lies in (fromS, toS]; a sample is one published forecast a minute at one stop ahead. Error = actual - foretold."""

    from_s: int
    to_s: int
    samples: int  # those without a value among them
    missing: int  # without a value
    mae_s: float | None  # None here and below: no sample with a value
    bias_s: float | None  # mean error: positive, the bus came later than said
    p50_s: int | None  # of the errors without their sign; None also of totals
    p90_s: int | None
    coverage: float | None  # share of arrivals within p10 .. p90
    early: float | None  # share of buses that came over 60 s before they were said to
    in_window: float | None  # share inside the benchmark's window, without a value counting against us; None beyond 15 min


class EtaFigures(msgspec.Struct, frozen=True, rename="camel"):
    """All samples to 15 min ahead, and the buckets to 60."""

    score: float | None  # ETA Accuracy Benchmark, 0 .. 100: the mean of the buckets' windows to 15 min
    samples: int
    missing: int
    mae_s: float | None
    bias_s: float | None
    coverage: float | None
    buckets: list[EtaBucket]  # by time to the actual arrival
    by_predicted: list[EtaBucket]  # by the time that was foretold: where a bias shows


class EtaAccuracy(EtaFigures, frozen=True, rename="camel"):
    """One route on one service date."""

    day: str  # yyyy-mm-dd
    route_id: str
    provisional: bool  # True: the day still runs, or is not worked out yet


class EtaAccuracyItems(msgspec.Struct, frozen=True, rename="camel"):
    items: list[EtaAccuracy]
    total: EtaFigures  # of all days and routes that were asked for, whole days only
    next_cursor: str | None


@get("/analytics/eta-accuracy", tags=["analytics"])
async def read_eta_accuracy(
    request: Request[Any, Any, Any],
    since: Annotated[str | None, QueryParameter(name="from", description="yyyy-mm-dd, a service date; default: a week before `to`")] = None,
    until: Annotated[str | None, QueryParameter(name="to", description="yyyy-mm-dd, the last service date; default: today")] = None,
    route: Annotated[str | None, QueryParameter(description="only this route; the running day is answered then too")] = None,
    partner: FromQuery[str | None] = None,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> EtaAccuracyItems:
    """The accuracy of what was published, per service date and route, the newest day first."""
    parts = parts_of(request)
    plans = _plans(parts, need(principal_of(parts, request), PARTNER_ADMIN, AGENT, SUPER_ADMIN), partner)
    route_id = None
    if route is not None:
        plans, route_id = _of_route(plans, route)
    first, last = _days(since, until, parts.clock.now_ms())
    store, areas = _store(parts), [plan.feed_id for plan in plans]
    after = None if cursor is None else _place(cursor)
    rows = await store.route_days(areas, first, last, route_id, after, limit + 1)
    more = rows[limit - 1] if len(rows) > limit else None
    found = await store.buckets(rows[:limit])
    items = [_item(one, found[one], provisional=False) for one in rows[:limit] if one in found]
    if route_id is not None and after is None:
        items = [*await _running(parts, store, plans[0], route_id, (first, last), {one.day for one in rows}), *items]
    total = figures(await store.totals(areas, first, last, route_id))
    return EtaAccuracyItems(items, total, None if more is None else f"{more.day:%Y%m%d}.{public_id(more.area, more.route_id)}")


# ------------------------------------------------------------------------------------------------ how they are made


def _plans(parts: Parts, who: Principal, wanted: str | None) -> list[Plan]:
    """The feeds that the caller may see: its partner's, or of a super admin those of the partner it names, else all."""
    if who.role != SUPER_ADMIN:
        if who.partner_id is None or wanted not in (None, who.partner_id):
            raise Forbidden("your token acts for another partner")
        wanted = who.partner_id
    plans = parts.plans.all() if parts.plans is not None else []
    return [plan for plan in plans if wanted is None or plan.partner_id == wanted]


def _of_route(plans: list[Plan], route: str) -> tuple[list[Plan], str]:
    feed_id, route_id = split_id(route, "route")
    for plan in plans:
        if plan.feed_id == feed_id and route_id in plan.timetable.routes:
            return [plan], route_id
    raise NotFound(f"no route {route[:80]!r}")


def _store(parts: Parts) -> AccuracyStore:
    if parts.postgres is None:
        raise Unavailable("this worker has no access to the record", retry_after_s=5)
    return AccuracyStore(parts.postgres)


def _days(since: str | None, until: str | None, now_ms: int) -> tuple[date, date]:
    """The first and the last service date. Tomorrow's is today's somewhere."""
    today = datetime.fromtimestamp(now_ms / 1000, UTC).date()
    last = _day(until, "to") if until is not None else today + timedelta(days=1)
    if since is not None:
        first = _day(since, "from")
    else:
        first = last - SPAN if last - date.min > SPAN else date.min
    if first > last or last - first > SPAN_MOST:
        detail = f"from must not lie behind to, nor more than {SPAN_MOST.days} days before it"
        raise Invalid(detail, errors=[{"pointer": "/from", "code": "OUT_OF_RANGE", "detail": detail}])
    return first, last


def _day(text: str, name: str) -> date:
    """yyyy-mm-dd, or the date of an RFC 3339 time as it is written there."""
    try:
        return date.fromisoformat(text) if "T" not in text else datetime.fromisoformat(text).date()
    except ValueError:
        detail = f"{name} reads yyyy-mm-dd, not {text[:40]!r}"
        raise Invalid(detail, errors=[{"pointer": f"/{name}", "code": "INVALID", "detail": "yyyy-mm-dd"}]) from None


def _place(cursor: str) -> RouteDay:
    """The last item of the page before. Raises `Invalid`."""
    day, dot, route = cursor.partition(".")
    feed_id, colon, route_id = route.partition(":")
    try:
        if not (dot and colon and feed_id and route_id and "\x00" not in route and len(day) == 8):
            raise ValueError
        return RouteDay(date.fromisoformat(day), feed_id, route_id)
    except ValueError:
        raise Invalid("cursor must be the nextCursor of an earlier page") from None


async def _running(
    parts: Parts, store: AccuracyStore, plan: Plan, route_id: str, asked: tuple[date, date], known: set[date]
) -> list[EtaAccuracy]:
    """The service date that runs, and in the small hours the one before: by the newest trips of the route that have departed."""
    now_ms, tz = parts.clock.now_ms(), plan.timetable.tz
    now = datetime.fromtimestamp(now_ms / 1000, tz)
    found = []
    for back in (0, 1) if now.hour <= DUE_HOUR else (0,):
        day = now.date() - timedelta(days=back)
        if not asked[0] <= day <= asked[1] or day in known:
            continue
        departed = [one for one in plan.timetable.instances_on(day) if one.trip.route_id == route_id and one.departure_ms(0) <= now_ms]
        trips = [one.trip.trip_id for one in departed[-TRIPS_TODAY:]]
        buckets = (await judged(store, plan.feed_id, day, tz, trips)).buckets()
        if buckets:
            found.append(_item(RouteDay(day, plan.feed_id, route_id), buckets, provisional=True))
    return found


def _item(where: RouteDay, sums: list[BucketSums], *, provisional: bool) -> EtaAccuracy:
    of = figures(sums)
    return EtaAccuracy(
        **msgspec.structs.asdict(of),
        day=where.day.isoformat(),
        route_id=public_id(where.area, where.route_id),
        provisional=provisional,
    )


def figures(sums: list[BucketSums]) -> EtaFigures:
    """Shares, means and the score of some buckets."""
    by = {
        horizon: list(rows) for horizon, rows in groupby(sorted(sums, key=lambda one: (one.horizon, one.from_s)), lambda one: one.horizon)
    }
    actual = by.get(ACTUAL, [])
    near = [one for one in actual if one.to_s <= POOLED_S]
    samples, missing = sum(one.samples for one in near), sum(one.missing for one in near)
    known = samples - missing
    return EtaFigures(
        score=round(sum(100 * one.in_window / one.samples for one in near) / len(near), 2) if near else None,
        samples=samples,
        missing=missing,
        mae_s=_mean(sum(one.size_sum_s for one in near), known),
        bias_s=_mean(sum(one.error_sum_s for one in near), known),
        coverage=_share(sum(one.covered for one in near), known),
        buckets=[_bucket(one, windowed=one.to_s <= POOLED_S) for one in actual],
        by_predicted=[_bucket(one, windowed=False) for one in by.get(PREDICTED, [])],
    )


def _bucket(one: BucketSums, *, windowed: bool) -> EtaBucket:
    known = one.samples - one.missing
    return EtaBucket(
        from_s=one.from_s,
        to_s=one.to_s,
        samples=one.samples,
        missing=one.missing,
        mae_s=_mean(one.size_sum_s, known),
        bias_s=_mean(one.error_sum_s, known),
        p50_s=one.p50_s,
        p90_s=one.p90_s,
        coverage=_share(one.covered, known),
        early=_share(one.early, known),
        in_window=_share(one.in_window, one.samples) if windowed else None,
    )


def _mean(total: int, count: int) -> float | None:
    return round(total / count, 1) if count else None


def _share(part: int, count: int) -> float | None:
    return round(part / count, 4) if count else None


ROUTERS: Final = (read_eta_accuracy,)
