"""Buyers of the torture run: many at once, over HTTP, each journey by chance; they try again with the same key until they get a definite
answer, and write down what they were promised. `Log.compare` holds the promises against the database afterwards.

A definite answer is any but a broken connection, no answer in time, 429, 503, and the 409s that say "ask again". What never got one is unknown
and promises nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from bench import sold

ANSWER_S = 2.5  # a worker that says nothing for so long is given up; the other one is asked
PATIENCE_S = 20.0  # of one request, all its tries together
AGAIN = frozenset({"IDEMPOTENCY_IN_PROGRESS", "BUSY"})
SCENARIOS = (
    "DECLINE", "INSUFFICIENT_FUNDS", "TIMEOUT_AFTER_CHARGE", "DUPLICATE_WEBHOOK", "REORDERED_WEBHOOKS", "MISSING_CALLBACK", "NO_ANSWER",
    "REFUND_FAILS_ONCE", "REFUND_TIMEOUT",
)  # fmt: skip


class Unanswered(Exception):
    """No definite answer within the patience of a buyer."""


class Reply(msgspec.Struct, frozen=True):
    """A definite answer. `clean`: every try was answered, so no earlier one can still take effect."""

    status: int
    body: Any
    clean: bool
    requests: tuple[str, ...] = ()  # ids of all tries

    @property
    def code(self) -> str:
        """Of a refusal; of anything else its status."""
        return str(self.body.get("code", self.status)) if isinstance(self.body, dict) and self.status >= 400 else str(self.status)


class Line:
    """One kept connection to one worker."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, Any]:
        """Raises OSError, EOFError, TimeoutError; the connection is then given up."""
        try:
            async with asyncio.timeout(ANSWER_S):
                if self._streams is None:
                    self._streams = await asyncio.open_connection("127.0.0.1", self.port)
                reader, writer = self._streams
                head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
                writer.write(f"{method} {path} HTTP/1.1\r\nHost: torture\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                said = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = next((int(line[15:]) for line in said.lower().split("\r\n") if line.startswith("content-length:")), 0)
                content = await reader.readexactly(length)
                if "connection: close" in said.lower():
                    self.close()
                return int(said[9:12]), json.loads(content) if content.strip() else None
        except BaseException:  # cancelled too: half an answer left on the line would be taken for the next one's
            self.close()
            raise

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Held(msgspec.Struct):
    """A hold that was promised."""

    id: str
    trip: int
    seats: list[str]
    token: str
    start: str = ""  # stop ids
    end: str = ""


class Log:
    """What was tried, and what was promised."""

    def __init__(self) -> None:
        self.tried: Counter[str] = Counter()  # kind of operation
        self.said: Counter[str] = Counter()  # kind and answer
        self.samples: dict[str, Any] = {}  # the first refusal of each kind and code
        self.lost = 0  # tries without an answer
        self.held: dict[str, Held] = {}
        self.released: set[str] = set()
        self.booked: dict[str, list[str]] = {}  # reference -> ids of its holds
        self.confirmed: set[str] = set()
        self.cancelled: set[str] = set()
        self.refused: list[tuple[str, tuple[str, ...]]] = []  # code and request ids of holds that were refused, every try answered
        self.wrong: dict[str, list[Any]] = {}

    def fault(self, check: str, fact: Any) -> None:
        """A broken promise."""
        self.wrong.setdefault(check, []).append(fact)

    def compare(self, states: Iterable[Mapping[str, Any]], made: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """What was promised and is not so. `states`, `made`: rows of the statements `states` and `held_by_request` of checks.sql."""
        rows = {row["id"]: row for row in states}
        refs: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows.values():
            refs.setdefault(row["reference"] or "", []).append(row)
        for one in self.held.values():
            if one.id not in rows:
                self.fault("lost_hold", one.id)
        for hold_id in self.released:
            if (state := rows.get(hold_id, {}).get("state")) not in ("RELEASED", "EXPIRED"):
                self.fault("release_undone", (hold_id, state))
        for ref in self.booked:
            if ref not in refs or any(row["state"] == "HELD" for row in refs[ref]):
                self.fault("lost_booking", ref)
        for ref in self.confirmed:
            if not any(row["confirmed"] for row in refs.get(ref, ())):
                self.fault("lost_confirm", ref)
            elif ref not in self.cancelled and any(row["state"] in ("HELD", "PENDING_PAYMENT", "EXPIRED", "RELEASED") for row in refs[ref]):
                self.fault("confirm_undone", (ref, [row["state"] for row in refs[ref]]))
        for ref in self.cancelled:
            if any(row["state"] in ("HELD", "PENDING_PAYMENT", "CONFIRMED") for row in refs.get(ref, ())):
                self.fault("cancel_undone", (ref, [row["state"] for row in refs[ref]]))
        by_request = {row["request_id"]: row["id"] for row in made}
        for code, requests in self.refused:
            for request_id in requests:
                if request_id in by_request:
                    self.fault("refused_but_held", (code, request_id, by_request[request_id]))
        return self.wrong


class Buyer:
    """One of many. `live` until told to stop; every journey is a guest's own."""

    def __init__(self, ports: Sequence[int], log: Log, chance: random.Random, trips: int, seats: Sequence[str], stops: int) -> None:
        self.lines = [Line(port) for port in ports]
        self.log, self.chance, self.trips, self.seats, self.stops = log, chance, trips, seats, stops
        self.over = False
        self._shunned_until_s = [0.0 for _ in ports]  # monotonic: a worker that did not answer is left alone for a while

    async def live(self) -> None:
        journeys: tuple[tuple[Callable[[], Awaitable[None]], int], ...] = (
            (self.journey, 10), (self.duel, 5), (self.double_click, 3), (self.key_again, 2), (self.there_and_back, 2), (self.look, 2),
        )  # fmt: skip
        kinds, weights = zip(*journeys, strict=True)
        while not self.over:
            with contextlib.suppress(Unanswered):
                await self.chance.choices(kinds, weights)[0]()
        for line in self.lines:
            line.close()

    # --- one request ---

    async def ask(
        self, kind: str, method: str, path: str, body: Any = None, *, key: str | None = None, token: str | None = None, first: int | None = None,
        bearer: str | None = None,
    ) -> Reply:  # fmt: skip
        """Tries, on one worker after the other, until a definite answer. Raises `Unanswered`."""
        self.log.tried[kind] += 1
        content = b"" if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if content else {}
        headers |= {"Idempotency-Key": key} if key else {}
        headers |= {"X-Hold-Token": token} if token else {}
        headers |= {"Authorization": f"Bearer {bearer}"} if bearer else {}
        worker = self._rather(self.chance.randrange(len(self.lines)) if first is None else first)
        limit_s, clean, requests = time.monotonic() + PATIENCE_S, True, []
        while time.monotonic() < limit_s:
            requests.append(str(uuid.UUID(int=self.chance.getrandbits(128), version=4)))
            try:
                status, said = await self.lines[worker].ask(method, path, content, headers | {"X-Request-Id": requests[-1]})
            except (OSError, EOFError, TimeoutError, ValueError):
                self.log.lost += 1
                self._shunned_until_s[worker] = time.monotonic() + ANSWER_S
                clean, worker = False, self._rather(worker)
                await asyncio.sleep(0.05 + self.chance.random() * 0.1)
                continue
            reply = Reply(status, said, clean, tuple(requests))
            self.log.said[f"{kind} {reply.code}"] += 1
            if status >= 400:
                self.log.samples.setdefault(f"{kind} {reply.code}", {"path": path, "asked": body, "said": said})
            if status in (429, 503) or reply.code in AGAIN:
                worker = (worker + 1) % len(self.lines)
                await asyncio.sleep(0.1 + self.chance.random() * 0.2)
                continue
            if status >= 500:
                self.log.fault("server_error", (kind, method, path, said))
            return reply
        self.log.said[f"{kind} unanswered"] += 1
        raise Unanswered(f"{kind}: {method} {path}")

    def _rather(self, worker: int) -> int:
        """That worker, or the one that answered last where it does not."""
        if self._shunned_until_s[worker] < time.monotonic():
            return worker
        return min(range(len(self.lines)), key=lambda one: self._shunned_until_s[one])

    def key(self) -> str:
        return str(uuid.UUID(int=self.chance.getrandbits(128), version=4))

    # --- pieces of journeys ---

    def wish(self, trip: int | None = None, *, any_seats: bool = False) -> tuple[int, dict[str, Any]]:
        """A trip and what is wanted of it: seats by name (or any) for a ride of some legs, mostly few seats."""
        trip = trip or self.chance.randint(1, self.trips)
        begin = self.chance.randrange(self.stops - 1)
        end = self.chance.randint(begin + 1, self.stops - 1)
        count = self.chance.choice((1, 1, 2, 2, 3))
        seats = self.chance.sample(list(self.seats), count)
        return trip, {"seats": {"count": count} if any_seats else seats, "from": sold.stop_id(begin), "to": sold.stop_id(end)}

    async def hold(
        self, wish: tuple[int, dict[str, Any]], *, key: str | None = None, token: str | None = None, first: int | None = None
    ) -> Held | None:
        trip, body = wish
        reply = await self.ask(
            "hold", "POST", f"/v1/trips/{sold.trip_id(trip)}/holds", body, key=key or self.key(), token=token, first=first
        )
        return self.noted(trip, reply)

    def noted(self, trip: int, reply: Reply) -> Held | None:
        if reply.status == 201:
            made = Held(reply.body["id"], trip, [one["seat"] for one in reply.body["seats"]], reply.body["holdToken"],
                        reply.body["from"], reply.body["to"])  # fmt: skip
            self.log.held[made.id] = made
            return made
        if reply.clean:
            self.log.refused.append((reply.code, reply.requests))
        return None

    async def release(self, held: Held) -> None:
        reply = await self.ask("release", "DELETE", f"/v1/holds/{held.id}", key=self.key(), token=held.token)
        if reply.status == 200:
            self.log.released.add(held.id)

    async def book(self, *holds: Held) -> str | None:
        """The reference."""
        passengers = [
            {"seat": seat, "firstName": "Amal", "lastName": self.chance.choice(("Benali", "Haddad", "Saïdi")), "type": "ADULT",
             "tripId": sold.trip_id(one.trip)}
            for one in holds for seat in one.seats
        ]  # fmt: skip
        which = {"holdId": holds[0].id} if len(holds) == 1 else {"holdIds": [one.id for one in holds]}
        body = which | {"passengers": passengers, "contact": {"email": "amal@example.org"}}
        reply = await self.ask("book", "POST", "/v1/bookings", body, key=self.key(), token=holds[0].token)
        if reply.status != 201:
            return None
        self.log.booked[reply.body["ref"]] = [one.id for one in holds]
        return str(reply.body["ref"])

    async def pay(self, ref: str, token: str, *, noted: bool = True) -> bool:
        """Whether the booking was confirmed, as far as this buyer was told; a promise, if `noted`."""
        body: dict[str, Any] = {
            "bookingRef": ref,
            "provider": self.chance.choice(("SIMULATED_CARD", "SIMULATED_CARD", "SIMULATED_MOBILE_MONEY")),
        }
        if self.chance.random() < 0.4:
            body["scenario"] = self.chance.choice(SCENARIOS)
        begun = await self.ask("initiate", "POST", "/v1/payments/initiate", body, key=self.key(), token=token)
        if begun.status != 201:
            return False
        key = self.key()
        for _ in range(12):
            reply = await self.ask("confirm", "POST", "/v1/payments/confirm", {"paymentId": begun.body["id"]}, key=key, token=token)
            if reply.status == 200 and reply.body["status"] == "CONFIRMED":
                if noted:
                    self.log.confirmed.add(ref)
                return True
            if reply.status != 202 or self.over:
                return False
            key = self.key()
            await asyncio.sleep(0.3)
        return False

    async def cancel(self, ref: str, token: str) -> None:
        path = f"/v1/bookings/{ref}/cancel"
        offer = await self.ask("cancel offer", "PATCH", path, {}, key=self.key(), token=token)
        if offer.status == 200 and offer.body.get("offerId") and self.chance.random() < 0.8:
            done = await self.ask("cancel", "PATCH", path, {"offerId": offer.body["offerId"]}, key=self.key(), token=token)
            if done.status == 200:
                self.log.cancelled.add(ref)

    # --- journeys ---

    async def journey(self) -> None:
        """Choose, hold, and then whatever people do."""
        any_seats = self.chance.random() < 0.15
        wish = self.wish(any_seats=any_seats)
        if not any_seats and self.chance.random() < 0.3:
            picked = await self.ask("pick", "POST", f"/v1/trips/{sold.trip_id(wish[0])}/picks", wish[1])
            if picked.status == 201:
                wish[1]["pickId"] = picked.body["pickId"]
        held = await self.hold(wish)
        if held is None:
            return
        what = self.chance.random()
        if what < 0.15:
            return await self.release(held)
        if what < 0.25:
            return None  # it runs out
        if what < 0.4:
            await self.ask("extend", "POST", f"/v1/holds/{held.id}/extend", token=held.token)
        if what > 0.9:
            await asyncio.sleep(self.chance.random() * 5)  # dawdles, perhaps past the end of the hold
        await self.go_on(held)

    async def go_on(self, *holds: Held) -> None:
        """From holds to a booking, and what comes after it."""
        ref, token = await self.book(*holds), holds[0].token
        if ref is None or self.chance.random() < 0.1:
            return
        if not await self.pay(ref, token):
            return
        after = self.chance.random()
        if after < 0.65:  # seats come back, or a long run would end with everything sold
            await self.cancel(ref, token)
        elif after < 0.8:
            kind, body = self.change(holds)
            changed = await self.ask(kind, "POST", f"/v1/bookings/{ref}/modify", body, key=self.key(), token=token)
            if changed.status == 200 and changed.body.get("payRef"):  # dearer: done once the rest is paid, under a reference of its own
                await self.pay(changed.body["payRef"], changed.body.get("holdToken") or token, noted=False)
        elif after < 0.9:
            await self.ask("ticket", "GET", f"/v1/bookings/{ref}/ticket", token=token)
        shown = await self.ask("booking", "GET", f"/v1/bookings/{ref}", token=token)
        if shown.status == 200 and shown.body["status"] in ("HELD", "PENDING_PAYMENT", "EXPIRED", "RELEASED"):
            self.log.fault("confirm_forgotten", (ref, shown.body["status"]))

    def change(self, holds: Sequence[Held]) -> tuple[str, dict[str, Any]]:
        """Other names, other seats on the same trip, or another trip."""
        one = holds[0]
        free = [seat for seat in self.seats if seat not in one.seats]
        what = self.chance.random()
        if what < 0.4:
            return "rename", {
                "passengers": [{"seat": seat, "lastName": "Mansouri"} for seat in one.seats],
                "tripId": sold.trip_id(one.trip),
            }
        if what < 0.7:
            others = dict(zip(one.seats, self.chance.sample(free, len(one.seats)), strict=True))
            return "reseat", {"seats": others, "tripId": sold.trip_id(one.trip)}
        other = one.trip % self.trips + 1
        body = {
            "tripId": sold.trip_id(other),
            "seats": self.chance.sample(list(self.seats), len(one.seats)),
            "from": one.start,
            "to": one.end,
        }
        return "exchange", body | {"fromTripId": sold.trip_id(one.trip)}

    async def duel(self) -> None:
        """Two strangers, the same seats, the same instant, on two workers."""
        wish = self.wish()
        path = f"/v1/trips/{sold.trip_id(wish[0])}/holds"
        other = Buyer(
            [line.port for line in self.lines], self.log, random.Random(self.chance.getrandbits(64)), self.trips, self.seats, self.stops
        )
        said = await asyncio.gather(
            self.ask("hold", "POST", path, wish[1], key=self.key(), first=0),
            other.ask("hold", "POST", path, wish[1], key=other.key(), first=1),
            return_exceptions=True,
        )
        self.log.tried["duel"] += 1
        for line in other.lines:
            line.close()
        winners = [held for reply in said if isinstance(reply, Reply) and (held := self.noted(wish[0], reply)) is not None]
        for held in winners:
            await (self.release(held) if self.chance.random() < 0.7 else self.go_on(held))

    async def double_click(self) -> None:
        """The same request twice at once, on two workers: one hold."""
        trip, body = self.wish()
        key, path = self.key(), f"/v1/trips/{sold.trip_id(trip)}/holds"
        other = Buyer(
            [line.port for line in self.lines], self.log, random.Random(self.chance.getrandbits(64)), self.trips, self.seats, self.stops
        )
        said = await asyncio.gather(
            self.ask("hold", "POST", path, body, key=key, first=0), other.ask("hold", "POST", path, body, key=key, first=1),
            return_exceptions=True,
        )  # fmt: skip
        self.log.tried["double click"] += 1
        for line in other.lines:
            line.close()
        granted = [reply for reply in said if isinstance(reply, Reply) and reply.status == 201]
        if len({reply.body["id"] for reply in granted}) > 1:
            self.log.fault("one_answer_a_key", [reply.body for reply in granted])
        if granted:
            held = self.noted(trip, granted[0])
            assert held is not None
            await self.release(held)

    async def key_again(self) -> None:
        """A key that has its answer, with another body, on another worker."""
        trip, body = self.wish()
        key = self.key()
        held = await self.hold((trip, body), key=key, first=0)
        if held is None:
            return
        other = await self.ask(
            "key again", "POST", f"/v1/trips/{sold.trip_id(trip)}/holds", body | {"seats": [self.seats[0]], "to": sold.stop_id(self.stops - 1),
            "from": sold.stop_id(0)}, key=key, first=1,
        )  # fmt: skip
        if other.code != "IDEMPOTENCY_KEY_REUSED" and body["seats"] != [self.seats[0]]:
            self.log.fault("fingerprint", other.body)
        await self.release(held)

    async def there_and_back(self) -> None:
        """Two holds of one guest become one booking of two trips."""
        if self.trips < 2:
            return
        out, back = self.chance.sample(range(1, self.trips + 1), 2)
        one = await self.hold(self.wish(out))
        if one is None:
            return
        other = await self.hold(self.wish(back), token=one.token)
        await self.go_on(*([one, other] if other is not None and len(one.seats) == len(other.seats) else [one]))

    async def look(self) -> None:
        """The seat map, as everybody looks at it all the time."""
        await self.ask("seats", "GET", f"/v1/trips/{sold.trip_id(self.chance.randint(1, self.trips))}/seats")
