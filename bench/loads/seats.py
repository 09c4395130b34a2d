"""People who want seats: a rush on one trip, and guests who book. Every answer is judged: no seat is granted twice, none is lost, none stays taken.

`booking` sells seats for good: run it against a deployment that may be sold out.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import msgspec

from bench.harness.calls import CONNECTIONS, Calls, request
from bench.harness.scenario import Measure, Option, Scenario, Share, Target
from bench.loads.onsale import Sold, on_sale, seats_of, sold_of
from bench.loads.socket import Socket
from bench.loads.watch import Crowd, Ordered, Wish, pushes, subscribe, until

SETTLE_S = 5.0
SERVES = {"ROLES": "api,track,history,office", "SALES_PASS_S": "1", "RUSH_THRESHOLD_PER_S": "0"}


class Picked(msgspec.Struct):
    pick_id: str = msgspec.field(name="pickId")


class Held(msgspec.Struct, rename="camel"):
    id: str
    hold_token: str


class Booked(msgspec.Struct):
    ref: str


class Paying(msgspec.Struct):
    id: str


class SeatChange(msgspec.Struct):
    """Of a `seat` message."""

    seat: str
    state: str
    start: str = msgspec.field(name="from")
    end: str = msgspec.field(name="to")


_picked, _held = msgspec.json.Decoder(Picked).decode, msgspec.json.Decoder(Held).decode
_booked, _paying = msgspec.json.Decoder(Booked).decode, msgspec.json.Decoder(Paying).decode
_change = msgspec.json.Decoder(SeatChange).decode


class Judge:
    """What one listener of `seats:` makes of it: nothing missing, nothing twice, and no seat taken that was not free."""

    def __init__(self, share: Share) -> None:
        self.share, self.ordered = share, Ordered(share)
        self._taken: set[tuple[str, str, str]] = set()

    def heard(self, socket: Socket, payload: bytes) -> None:
        for push in pushes(payload):
            if self.ordered.message(push) and push.t == "seat":
                self._changed(_change(push.d))

    def _changed(self, change: SeatChange) -> None:
        self.share.count("seat messages")
        key = change.seat, change.start, change.end
        if change.state != "TAKEN":
            self._taken.discard(key)
        elif key in self._taken:
            self.share.fault("seat taken twice")
        else:
            self._taken.add(key)


class SeatRush(Scenario):
    name = "seat-rush"
    summary = "a rush on one trip: guests pick neighbouring seats, hold them, and let them go again"
    unit = "guests"
    rate: ClassVar[float] = 50.0
    options = (
        Option("seats", 3, "seats that a guest wants"),
        Option("holds", 0.5, "share of the guests that hold what they picked; the others drop it"),
        Option("trip", "", "the trip instance; empty: the one with the most free seats"),
        CONNECTIONS,
    )
    measures = (
        Measure("pick", "from the moment a guest comes until the pick is answered, granted or not"),
        Measure("hold", "from the pick's answer until the hold is answered"),
        Measure("release", "from then until the seats are let go"),
    )
    needs = frozenset({"token"})
    serves: ClassVar[Mapping[str, str]] = SERVES

    def prepare(self, target: Target, options: Mapping[str, Any], rate: float, seed: int) -> Any:
        found = seats_of(target, options["trip"]) if options["trip"] else on_sale(target, 1)[0]
        if len(found.seats) < int(options["seats"]):
            raise ValueError(f"{found.trip_id} has {len(found.seats)} free seats")
        return msgspec.to_builtins(found)

    async def drive(self, share: Share) -> None:
        trip, judge = msgspec.convert(share.data, Sold), Judge(share)
        crowd = Crowd(share, [Wish([subscribe(f"seats:{trip.trip_id}")], "seats")] if share.number == 0 else [], judge.heard)
        await crowd.open()
        calls = await Calls.open(share)
        guests = _Guests(share, calls, trip)
        async for moment in share.moments():
            guests.come(moment)
        await until(lambda: not guests.under_way, SETTLE_S * 2)
        await calls.rest()
        if share.number == 0:
            await until(lambda: judge.ordered.heard >= guests.said, SETTLE_S)
            if judge.ordered.heard < guests.said:
                share.fault("seat messages missing")
        crowd.close()

    def verify(self, target: Target, data: Any, counts: Mapping[str, int]) -> list[str]:
        wrong, until_s = [], time.monotonic() + SETTLE_S
        while (left := data["free"] - seats_of(target, data["trip_id"]).free) > 0 and time.monotonic() < until_s:
            time.sleep(0.2)
        if left > 0:
            wrong.append(f"{left} seats of {data['trip_id']} are still taken though everybody let go")
        if not counts.get("picked"):
            wrong.append("nobody picked a seat")
        return wrong


class _Guests:
    """Those of one generator. `claimed`: what is granted to one of them now; `said`: the least that a listener must have heard."""

    def __init__(self, share: Share, calls: Calls, trip: Sold) -> None:
        self.share, self.calls, self.trip = share, calls, trip
        self.chance = random.Random(share.seed)
        self.size, self.holds = int(share.options["seats"]), float(share.options["holds"])
        self.path = f"/v1/trips/{trip.trip_id}"
        self.claimed: dict[tuple[str, int], str] = {}  # seat and leg -> what it was granted as
        self.under_way = self.said = 0

    def come(self, moment: float) -> None:
        at = self.chance.randrange(len(self.trip.seats) - self.size + 1)
        seats = self.trip.seats[at : at + self.size]
        leg = self.chance.randrange(len(self.trip.stops) - 1)
        wish = {"seats": seats, "from": self.trip.stops[leg], "to": self.trip.stops[leg + 1]}
        goes_on = self.chance.random() < self.holds
        self.under_way += 1

        def picked(status: int, body: bytes) -> None:
            if status != 201:
                self._refused(status)
                return
            pick_id = _picked(body).pick_id
            self.share.count("picked")
            self._claim(seats, leg, pick_id)
            if goes_on:
                self._hold(wish, leg, pick_id)
            else:
                self._free(seats, leg)
                self._end(request("DELETE", f"{self.path}/picks/{pick_id}", host=self.calls.host))

        self.calls.send(moment, request("POST", f"{self.path}/picks", wish, host=self.calls.host), "pick", picked)

    def _hold(self, wish: dict[str, Any], leg: int, pick_id: str) -> None:
        def held(status: int, body: bytes) -> None:
            if status != 201:
                self._free(wish["seats"], leg)
                if status == 409:
                    self.share.fault("picked seats were not held")
                self._refused(status)
                self._drop(pick_id)
                return
            made = _held(body)
            self.share.count("held")
            self._free(wish["seats"], leg)
            headers = {"X_Hold_Token": made.hold_token, "Idempotency_Key": str(uuid.uuid4())}
            self._end(request("DELETE", f"/v1/holds/{made.id}", host=self.calls.host, **headers))

        data = request("POST", f"{self.path}/holds", wish | {"pickId": pick_id}, host=self.calls.host, Idempotency_Key=str(uuid.uuid4()))
        self.calls.send(time.monotonic(), data, "hold", held)

    def _drop(self, pick_id: str) -> None:
        self.under_way += 1
        self._end(request("DELETE", f"{self.path}/picks/{pick_id}", host=self.calls.host))

    def _end(self, data: bytes) -> None:
        """Lets go."""

        def ended(status: int, body: bytes) -> None:
            self.under_way -= 1
            if status >= 300:
                self.share.fault(f"let go: {status}")
            else:
                self.said += 2 * self.size

        self.calls.send(time.monotonic(), data, "release", ended)

    def _refused(self, status: int) -> None:
        self.under_way -= 1
        if status == 409:
            self.share.count("taken")
        else:
            self.share.fault(str(status))

    def _claim(self, seats: list[str], leg: int, name: str) -> None:
        for seat in seats:
            if self.claimed.get((seat, leg), name) != name:
                self.share.fault("granted twice")
            self.claimed[seat, leg] = name

    def _free(self, seats: list[str], leg: int) -> None:
        """Before the request that lets go is sent: from then on somebody else may have them."""
        for seat in seats:
            self.claimed.pop((seat, leg), None)


class Booking(Scenario):
    name = "booking"
    summary = "guests who hold a seat, book it, and pay: four calls to a confirmed booking"
    unit = "bookings"
    rate: ClassVar[float] = 20.0
    options = (
        Option("trips", 20, "trips that are sold, those with the most free seats"),
        CONNECTIONS,
    )
    measures = (
        Measure("booked", "from the moment a guest comes until the booking is confirmed"),
        *(Measure(call, "one call, from the answer before it") for call in ("hold", "book", "initiate", "confirm")),
    )
    needs = frozenset({"token"})
    serves: ClassVar[Mapping[str, str]] = SERVES

    def prepare(self, target: Target, options: Mapping[str, Any], rate: float, seed: int) -> Any:
        return msgspec.to_builtins(on_sale(target, int(options["trips"])))

    async def drive(self, share: Share) -> None:
        calls = await Calls.open(share)
        guests = Customers(share, calls, sold_of(share.data))
        async for moment in share.moments():
            guests.come(moment)
        await until(lambda: not guests.under_way, SETTLE_S * 2)
        await calls.rest()

    def verify(self, target: Target, data: Any, counts: Mapping[str, int]) -> list[str]:
        wrong, confirmed, held = [], counts.get("confirmed", 0), counts.get("held", 0)
        taken = sum(_taken(target, trip) for trip in sold_of(data))
        if taken < confirmed:
            wrong.append(f"{confirmed} bookings were confirmed, and {taken} seats are taken")
        if taken > held + counts.get("unknown", 0):
            wrong.append(f"{held} seats were held, and {taken} are taken")
        if not confirmed:
            wrong.append("not one booking was confirmed")
        return wrong


def _taken(target: Target, trip: Sold) -> int:
    """Seats, leg by leg, that were free before."""
    count, before = 0, set(trip.seats)
    for start, end in zip(trip.stops, trip.stops[1:], strict=False):
        shown = target.call("GET", f"/v1/trips/{trip.trip_id}/seats?from={start}&to={end}")
        count += sum(one["state"] != "FREE" and one["seat"] in before for one in shown["seats"])
    return count


def places(trips: list[Sold], number: int, of: int) -> Iterator[tuple[Sold, int, str]]:
    """(trip, leg, seat) of one generator, each once; neighbours in time are not neighbours on a bus."""
    turn = 0
    for at in range(max((len(trip.seats) for trip in trips), default=0)):
        for leg in range(max(len(trip.stops) for trip in trips) - 1):
            for trip in trips:
                if at < len(trip.seats) and leg < len(trip.stops) - 1:
                    if turn % of == number:
                        yield trip, leg, trip.seats[at]
                    turn += 1


class Customers:
    """Those of one generator: guests, each with a seat of their own for one leg. A call that is refused ends the round."""

    def __init__(self, share: Share, calls: Calls, trips: list[Sold]) -> None:
        self.share, self.calls = share, calls
        self.places = places(trips, share.number, share.of)
        self.under_way = 0

    def come(self, moment: float) -> None:
        place = next(self.places, None)
        if place is None:
            self.share.fault("nothing left to sell")
            return
        trip, leg, seat = place
        self.under_way += 1
        wish = {"seats": [seat], "from": trip.stops[leg], "to": trip.stops[leg + 1]}
        self._call(moment, "hold", f"/v1/trips/{trip.trip_id}/holds", wish, {}, lambda body: self._book(moment, seat, body))

    def _call(self, due_s: float, kind: str, path: str, body: dict[str, Any], who: dict[str, str], then: Any) -> None:
        def heard(status: int, said: bytes) -> None:
            if status in (200, 201):
                then(said)
            else:
                self.under_way -= 1
                self.share.fault(f"{kind} {status}")

        data = request("POST", path, body, host=self.calls.host, Idempotency_Key=str(uuid.uuid4()), **who)
        self.calls.send(due_s, data, kind, heard)

    def _book(self, moment: float, seat: str, said: bytes) -> None:
        held = _held(said)
        self.share.count("held")
        who = {"X_Hold_Token": held.hold_token}
        passenger = {"seat": seat, "firstName": "Amal", "lastName": "Benali", "type": "ADULT"}
        body = {"holdId": held.id, "passengers": [passenger], "contact": {"email": "amal@example.org"}}

        def booked(answer: bytes) -> None:
            wish = {"bookingRef": _booked(answer).ref, "provider": "SIMULATED_CARD"}
            self._call(time.monotonic(), "initiate", "/v1/payments/initiate", wish, who, initiated)

        def initiated(answer: bytes) -> None:
            self._call(time.monotonic(), "confirm", "/v1/payments/confirm", {"paymentId": _paying(answer).id}, who, confirmed)

        def confirmed(answer: bytes) -> None:
            self.under_way -= 1
            self.share.count("confirmed")
            self.share.note("booked", time.monotonic() - moment)

        self._call(time.monotonic(), "book", "/v1/bookings", body, who, booked)
