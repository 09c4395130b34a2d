"""From free seat to ticketed booking through HTTP, one worker, the generator on the same cores: hold, book, initiate, confirm.

    python -m bench.booking                              the bars: about half a minute
    python -m bench.booking --seconds 20 --lanes 24      longer, with more callers at once
    python -m bench.booking --roles api,office           the worker also relays the events of every booking
    python -m bench.booking --out booking.json           the figures as JSON too

Every caller is a guest who takes the next free seat for one leg and pays with SIMULATED_CARD without faults; only a round whose four calls were
all answered 2xx counts. Closed loop for the rate. Then by the clock at the bar's rate, with as many callers as come (CROWD at most), for the
times of the calls that were answered 2xx: where more is offered than can be done, holds are turned away at once (503), and how many is said
beside the times. PostgreSQL is durable (fsync, autovacuum) and as large as after a season: 50,000 sold seats. CPU per booking of each process
as the kernel counts it.
"""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Iterator
from typing import Any

import msgspec
import uvloop

from bench import checks, sold
from bench.lanes import Lanes, Script, request
from bench.product import Product, table
from bench.seat_rush import LEGS, Held, arguments, bound, described, finish, over_ones, play, say

BAR_BOOKINGS, BAR_MS = 200.0, 200.0
TRIPS = 40
CROWD = 400  # callers by the clock: two seconds of the bar's rate
CALLS = ("hold", "book", "initiate", "confirm")


class Booked(msgspec.Struct):
    """What we need of an answered booking."""

    ref: str


class Paying(msgspec.Struct):
    """What we need of an answered payment."""

    id: str


_HELD, _BOOKED, _PAYING = (msgspec.json.Decoder(kind) for kind in (Held, Booked, Paying))


def free_seats() -> Iterator[tuple[int, int, str]]:
    """(trip, leg, seat): each once; neighbours in time are not neighbours on a bus."""
    names = sold.labels()
    for leg in range(LEGS):
        for name in names:
            for trip in range(1, TRIPS + 1):
                yield trip, leg, name


def booking(seats: Iterator[tuple[int, int, str]]) -> Script:
    """A guest after the other, each with a seat of their own. A call that is refused ends the round."""
    for trip, leg, seat in seats:
        wanted = f'{{"seats":["{seat}"],"from":"{sold.stop_id(leg)}","to":"{sold.stop_id(leg + 1)}"}}'.encode()
        status, body = yield "hold", request("POST", f"/v1/trips/{sold.trip_id(trip)}/holds", wanted, Idempotency_Key=uuid.uuid4())  # type: ignore[misc]
        if status == 201:
            held = _HELD.decode(body)
            who = {"X_Hold_Token": held.hold_token}
            passenger = f'{{"seat":"{seat}","firstName":"Amal","lastName":"Benali","type":"ADULT"}}'
            wanted = f'{{"holdId":"{held.id}","passengers":[{passenger}],"contact":{{"email":"amal@example.org"}}}}'.encode()
            status, body = yield "book", request("POST", "/v1/bookings", wanted, Idempotency_Key=uuid.uuid4(), **who)
        if status == 201:
            wanted = f'{{"bookingRef":"{_BOOKED.decode(body).ref}","provider":"SIMULATED_CARD"}}'.encode()
            status, body = yield "initiate", request("POST", "/v1/payments/initiate", wanted, Idempotency_Key=uuid.uuid4(), **who)
        if status == 201:
            wanted = f'{{"paymentId":"{_PAYING.decode(body).id}"}}'.encode()
            yield "confirm", request("POST", "/v1/payments/confirm", wanted, Idempotency_Key=uuid.uuid4(), **who)
        yield None


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    say("starting a product of its own; selling 200 x 250 seats beside the trips")
    with Product(durable=True, ROLES=args.roles, RUSH_THRESHOLD_PER_S="0") as product:
        await sold.sell(product.postgres.admin_url, TRIPS, full=args.full)
        seats = free_seats()
        lanes = Lanes(product.port, args.lanes, lambda _: booking(seats))
        await lanes.open()
        tally, cost, rate = await play(product, "confirm", lanes, args.seconds)
        lanes.close()
        crowd = Lanes(product.port, CROWD, lambda _: booking(seats))
        await crowd.open()
        timed, timed_cost, kept = await play(product, "confirm", crowd, args.seconds, BAR_BOOKINGS)
        crowd.close()
        say("checking what is there")
        return {
            "rate": rate, "us": cost, "refused": tally.bad() | timed.bad(),
            "ms": {call: [tally.p(call, 0.5), tally.p(call, 0.95)] for call in CALLS},
            "at_the_bar": {
                "rate": kept, "late": timed.late, "later": timed.bad().get("hold 503", 0), "us": timed_cost,
                "ms": {call: [timed.p(call, 0.5), timed.p(call, 0.95)] for call in CALLS},
            },
            "wrong": await judged(product),
        }  # fmt: skip


async def judged(product: Product) -> list[str]:
    """Names of the checks of bench/checks.sql that find something wrong in what this bench left behind."""
    import asyncpg

    admin = await asyncpg.connect(product.postgres.admin_url)
    try:
        return sorted(await checks.wrong(admin, ("overlaps", "partial", "orphans")))
    finally:
        await admin.close()


def report(found: dict[str, Any]) -> bool:
    """Prints the table; whether every bar is met."""
    timed = found["at_the_bar"]
    worst = max(p95 for _, p95 in timed["ms"].values())
    good = worst < BAR_MS and not timed["late"] and not timed["later"]
    verdicts = over_ones(found["rate"], BAR_BOOKINGS), "pass" if good else "SHORT"
    rows = [("bookings confirmed /s", f"{found['rate']:.0f}", f">= {BAR_BOOKINGS:.0f}", verdicts[0], bound(found["us"], found["rate"]))]
    rows += [
        (
            f"worst p95 of a call at {BAR_BOOKINGS:.0f}/s, ms",
            f"{worst:.1f}",
            f"< {BAR_MS:.0f}",
            verdicts[1],
            f"{timed['rate']:.0f}/s confirmed, {timed['later']} turned away at once",
        )
    ]
    for call in CALLS:
        there, here = timed["ms"][call], found["ms"][call]
        rows += [(f"  {call}: p50 / p95 ms", f"{there[0]:.1f} / {there[1]:.1f}", "", "", f"closed loop {here[0]:.1f} / {here[1]:.1f}")]
    wrong = ", ".join(found["wrong"]) or "nothing"
    rows += [("wrong in the database afterwards", wrong, "nothing", "pass" if not found["wrong"] else "SHORT", "")]
    table("hold, book, initiate, confirm through HTTP, one worker, generator on the same cores", rows)
    print("  CPU a booking: " + described(found["us"]))
    return verdicts == ("pass", "pass") and not found["wrong"]


def main() -> None:
    args = arguments("python -m bench.booking", __doc__, "them").parse_args()
    finish(uvloop.run(measure(args)), args.out, report)


if __name__ == "__main__":
    main()
