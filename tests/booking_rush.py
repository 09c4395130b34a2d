"""A rush on one trip at the level of the database functions: many connections that hold and release, duels, double clicks and keys used twice,
swaps and killed connections if asked, judged by bench/checks.py while it runs and by what the clients were answered.

What builds mutants uses it: `mutate` replaces a piece of a deployed function, and fails where the piece is not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg

from bench import checks

SEATS, STOPS, TTL = 6, 4, timedelta(minutes=10)
PLANNER = {"lock_timeout": "2s", "plan_cache_mode": "force_generic_plan", "enable_seqscan": "off", "enable_bitmapscan": "off"}
BROKEN = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.OperatorInterventionError, OSError)

HOLD = """select booking.hold(p_partner => 'p', p_key => $1::uuid, p_print => $2, p_booking => $3::uuid, p_trip => $4, p_map => $5, p_seats => $6,
  p_from => $7, p_to => $8, p_prices => $9, p_currency => 'DZD', p_quote => '{}', p_holder => $10, p_channel => 'WEB', p_ttl => $11,
  p_actor => $10, p_request => $12, p_max_seats => 6, p_max_holds => 3)"""
HOLD_MANY = "select booking.hold_many('p', $1, $2, $3::jsonb)"
RELEASE = "select booking.release(p_key => $1::uuid, p_print => $2, p_lead => $3::uuid, p_actor => 'guest:x', p_request => $4)"

WORLD = """
insert into public.partner (partner_id, name) values ('p', 'P');
insert into sale.seat_layout (partner_id, layout_id, name, body) values ('p', 'l', 'L', '{}');
insert into sale.fare_plan (partner_id, fare_plan_id, name, currency, body) values ('p', 'f', 'F', 'DZD', '{}');
insert into sale.trip_instance (trip_id, partner_id, feed_id, route_id, start_date, closes_at, stops, departs_at, arrives_at, timezone, layout_id,
  fare_plan_id, currency) select 'f:t' || n || ':20300101', 'p', 'f', 'f:r', '2030-01-01', '2030-01-01', $STOPS, '2030-01-01', '2030-01-02', 'UTC',
  'l', 'f', 'DZD' from generate_series(1, 2) n;
insert into sale.seat_map select trip_no, 1, 'p', array(select g::int2 from generate_series(1, n) g),
  array(select 'S' || g from generate_series(1, n) g), '{}' from sale.trip_instance, lateral (select case trip_no when 1 then $SEATS else 99 end) s(n);
"""


def print_of(*asked: Any) -> bytes:
    return hashlib.sha256(json.dumps(asked).encode()).digest()


class Caller:
    """One connection that comes back when it is killed; the same request is then sent again."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.line: Any = None
        self.lost = 0

    async def ask(self, statement: str, *args: Any) -> Any:
        """The function's answer; a race lost inside (TP409), a lock wait and a deadlock are answers too, by their SQL state."""
        while True:
            try:
                if self.line is None:
                    settings = PLANNER | {"application_name": "timepoint rush"}
                    self.line = await asyncpg.connect(self.url, server_settings=settings, timeout=5)
                return json.loads(await self.line.fetchval(statement, *args))
            except BROKEN:
                self.lost += 1
                with contextlib.suppress(Exception):
                    self.line.terminate()
                self.line = None
                await asyncio.sleep(0.02)
            except asyncpg.DeadlockDetectedError:
                await asyncio.sleep(random.random() * 0.02)
            except asyncpg.PostgresError as fault:
                return {"status": "REFUSED", "code": fault.sqlstate}

    async def hold(self, key: str, seats: list[int], legs: tuple[int, int], map_version: int, holder: str, trip_no: int = 1) -> Any:
        """Answered anew by a new booking id, as a worker would."""
        asked = print_of(trip_no, seats, legs)
        return await self.ask(
            HOLD, key, asked, str(uuid.uuid4()), trip_no, map_version, seats, *legs, [100] * len(seats), holder, TTL, key
        )  # fmt: skip

    async def hold_many(self, wanted: list[tuple[str, list[int], tuple[int, int]]], map_version: int, trip_no: int = 1) -> list[Any]:
        """The same of several strangers in one call, as a worker gathers them: (key, seats, legs) of each. RETRY goes singly."""
        asked = [
            {
                "key": key, "print": print_of(trip_no, seats, legs).hex(), "booking": str(uuid.uuid4()), "map": map_version, "seats": seats,
                "first": legs[0], "last": legs[1], "prices": [100] * len(seats), "currency": "DZD", "quote": {}, "holder": f"guest:{key}",
                "channel": "WEB", "actor": f"guest:{key}", "request": key, "max_seats": 6, "max_holds": 3,
            }
            for key, seats, legs in wanted
        ]  # fmt: skip
        said = await self.ask(HOLD_MANY, trip_no, TTL, json.dumps(asked))
        answers = said if isinstance(said, list) else [{"status": "RETRY"}] * len(wanted)  # its lock_timeout
        for at, ((key, seats, legs), answer) in enumerate(zip(wanted, answers, strict=True)):
            if answer["status"] == "RETRY":
                answers[at] = await self.hold(key, seats, legs, map_version, f"guest:{key}", trip_no)
        return answers

    async def release(self, booking: str) -> Any:
        key = str(uuid.uuid4())
        return await self.ask(RELEASE, key, b"-", booking, key)

    async def close(self) -> None:
        if self.line is not None:
            await self.line.close()


class Rush:
    """`run` until something wrong is found or the time is over; `found` names what, by check. `stats` counts what was tried."""

    def __init__(self, admins: tuple[Any, Any, Any], url: str, seed: int, lines: int) -> None:
        self.admin, self.swapper, self.killer = admins
        self.chance = random.Random(seed)
        self.callers = [Caller(url) for _ in range(2 * lines)]
        self.found: dict[str, Any] = {}
        self.stats: Counter[str] = Counter()
        self.last: dict[str, Any] = {}  # key -> what it was answered last; HELD stays
        self.map_version = 1
        self.over = False
        self.shuffled = False  # seats are asked for in any order

    async def mutate(self, function: str, old: str, new: str) -> str:
        """Replaces a piece of a deployed function; whitespace has to fit. Answers the function as it was."""
        text = await self.admin.fetchval("select pg_get_functiondef($1::regproc)", function)
        assert text.count(old) == 1, f"{function} has {text.count(old)} of {old!r}: the mutant has to follow the code"
        await self.admin.execute(text.replace(old, new))
        return str(text)

    async def begin_anew(self, function: str) -> None:
        """A function as it was, nothing sold, nothing found."""
        await self.admin.execute(function)
        await self.admin.execute("truncate booking.booking, booking.seat_claim, office.audit, office.outbox, office.idempotency cascade")
        self.found, self.last, self.over = {}, {}, False

    async def run(
        self, seconds: float, *, swaps: bool = False, kills: bool = False, probes: tuple[str, ...] = checks.ALWAYS
    ) -> dict[str, Any]:
        """`probes`: what is judged while it runs; all of it is at the end."""
        work = [self._client(i) for i in range(len(self.callers) // 2)] + [self._probe(probes)]
        work += [self._swaps()] if swaps else []
        work += [self._kills()] if kills else []
        tasks = [asyncio.create_task(one) for one in work]
        stop = asyncio.get_running_loop().call_later(seconds, self._stop)
        await asyncio.gather(*tasks)
        stop.cancel()
        self.found |= await checks.wrong(self.admin)
        await self._compare()
        return self.found

    def _stop(self) -> None:
        self.over = True

    def _wrong(self, check: str, fact: Any) -> None:
        self.found.setdefault(check, []).append(fact)
        self.over = True

    async def _probe(self, probes: tuple[str, ...]) -> None:
        while not self.over:
            for check, rows in (await checks.wrong(self.admin, probes)).items():
                self._wrong(check, rows)
            await asyncio.sleep(0.1)

    def _seats(self) -> list[int]:
        seats = sorted(self.chance.sample(range(1, SEATS + 1), self.chance.choice((1, 2, 3))))
        if self.shuffled:
            self.chance.shuffle(seats)
        return seats

    def _legs(self) -> tuple[int, int]:
        begin = self.chance.randrange(STOPS - 1)
        return begin, self.chance.randrange(begin + 1, STOPS)

    @staticmethod
    def _legs_of(key: str) -> tuple[int, int]:
        return int(key[0], 16) % (STOPS - 1), STOPS - 1

    async def _client(self, number: int) -> None:
        one, two = self.callers[2 * number : 2 * number + 2]
        kinds = (self._duel, self._duel, self._double_click, self._key_again) + (() if self.shuffled else (self._crowds,))
        while not self.over:
            await self.chance.choice(kinds)(one, two)

    def _note(self, kind: str, key: str, said: Any) -> None:
        if self.last.get(key, said)["status"] != "HELD" or said["status"] == "HELD":
            self.last[key] = said
        self.stats[f"{kind} {said.get('code') or said['status']}"] += 1

    async def _let_go(self, caller: Caller, *answers: Any) -> None:
        await asyncio.sleep(self.chance.random() * 0.005)
        for booking in {said["booking"] for said in answers if said["status"] == "HELD"}:
            await caller.release(booking)

    async def _duel(self, one: Caller, two: Caller) -> None:
        """Two strangers, the same seats, the same instant."""
        seats, legs, keys = self._seats(), self._legs(), (str(uuid.uuid4()), str(uuid.uuid4()))
        mirrored = seats[::-1] if self.shuffled else seats
        said = await asyncio.gather(
            one.hold(keys[0], seats, legs, self.map_version, f"guest:{keys[0]}"),
            two.hold(keys[1], mirrored, legs, self.map_version, f"guest:{keys[1]}"),
        )
        for key, answer in zip(keys, said, strict=True):
            self._note("duel", key, answer)
        await self._let_go(one, *said)

    async def _crowds(self, one: Caller, two: Caller) -> None:
        """Strangers at two workers, each of which writes them together, at the same instant."""
        wanted = [[(str(uuid.uuid4()), self._seats(), self._legs()) for _ in range(3)] for _ in (one, two)]
        said = await asyncio.gather(one.hold_many(wanted[0], self.map_version), two.hold_many(wanted[1], self.map_version))
        for (key, _, _), answer in zip(wanted[0] + wanted[1], said[0] + said[1], strict=True):
            self._note("crowd", key, answer)
        await self._let_go(two, *said[0], *said[1])

    async def _double_click(self, one: Caller, two: Caller) -> None:
        """The same request twice, by two workers, for seats that nobody else wants: one hold, and both are told of it."""
        number = self.callers.index(one)
        key, seats = str(uuid.uuid4()), [number + 1, number + 2]
        said = await asyncio.gather(*(caller.hold(key, seats, self._legs_of(key), 1, f"guest:{key}", 2) for caller in (one, two)))
        for answer in said:
            self._note("click", key, answer)
        told = {answer.get("booking") for answer in said if answer.get("code") != "55P03"}
        if len(told) > 1 or None in told:
            self._wrong("one_answer_a_key", said)
        await self._let_go(two, *said)

    async def _key_again(self, one: Caller, two: Caller) -> None:
        """A key that has its answer, with another body."""
        key, legs = str(uuid.uuid4()), self._legs()
        first = await one.hold(key, [1, 2], legs, self.map_version, f"guest:{key}")
        self._note("first", key, first)
        if first["status"] == "HELD":
            together = self.chance.random() < 0.5
            other = (
                (await two.hold_many([(key, [3], legs)], self.map_version))[0]
                if together
                else await two.hold(key, [3], legs, self.map_version, f"guest:{key}")
            )
            self.stats[f"again {other.get('code') or other['status']}"] += 1
            if other.get("code") not in ("IDEMPOTENCY_KEY_REUSED", "55P03"):
                self._wrong("fingerprint", other)
        await self._let_go(two, first)

    async def _compare(self) -> None:
        """What the clients were answered against what is there: a key that was answered HELD has one hold, one that was refused has none."""
        rows = await self.admin.fetch(
            "select request_id, count(*) as n from office.audit where action = 'booking.HELD' group by request_id"
        )  # fmt: skip
        held = {row["request_id"]: row["n"] for row in rows}
        for key, said in self.last.items():
            n = held.get(key, 0)
            if n != (1 if said["status"] == "HELD" else 0):
                self.found.setdefault("acknowledged", []).append((key, said, n))

    async def _swaps(self) -> None:
        """Another bus, seats renumbered, again and again: the trip alone, rows before claims, new claims before the old ones are MOVED."""
        while not self.over:
            async with self.swapper.transaction():
                await self.swapper.execute("select booking.lock_trip(1, true), set_config('tp.partner', 'p', true)")
                ids = await self.swapper.fetch("select booking_id from booking.booking where trip_no = 1 order by booking_id for update")
                was = await self.swapper.fetchval("select map_version from sale.trip_instance where trip_no = 1")
                moved = await self.swapper.fetch(
                    "insert into booking.seat_claim (booking_id, map_version, seat, partner_id, trip_no, legs, state)"
                    f" select booking_id, map_version + 1, seat % {SEATS} + 1, partner_id, trip_no, legs, state from booking.seat_claim"
                    " where trip_no = 1 and map_version = $1 and state in ('HELD', 'SOLD') and booking_id = any($2)"
                    " order by 3 returning booking_id",
                    was, [row[0] for row in ids],
                )  # fmt: skip
                gone = list({row[0] for row in moved})
                await self.swapper.execute(
                    "update booking.seat_claim set state = 'MOVED' where trip_no = 1 and map_version = $1 and state in ('HELD', 'SOLD')"
                    " and booking_id = any($2)",
                    was, gone,
                )  # fmt: skip
                await self.swapper.execute(
                    "update booking.booking set map_version = map_version + 1, version = version + 1,"
                    f" seats = array(select u % {SEATS} + 1 from unnest(seats) u order by 1)::int2[] where booking_id = any($1)",
                    gone,
                )
                await self.swapper.execute("insert into sale.seat_map select trip_no, map_version + 1, partner_id, seats, labels, layout"
                                         " from sale.seat_map where trip_no = 1 and map_version = $1", was)  # fmt: skip
                await self.swapper.execute("update sale.trip_instance set map_version = map_version + 1 where trip_no = 1")
                await self.swapper.execute("select booking.note($1, 'MOVED', 'agent:x', 'swap')", gone)
            self.map_version = was + 1
            self.stats["swaps"] += 1
            await asyncio.sleep(0.01)

    async def _kills(self) -> None:
        while not self.over:
            await asyncio.sleep(0.05)
            caller = self.chance.choice(self.callers)
            if caller.line is not None and not caller.line.is_closed():
                await self.killer.execute("select pg_terminate_backend($1)", caller.line.get_server_pid())
                self.stats["kills"] += 1


@contextlib.asynccontextmanager
async def rush(admin_url: str, url: str, *, seed: int = 7, lines: int = 8) -> AsyncIterator[Rush]:
    """Two trips of `SEATS` seats and `STOPS` stops in a fresh database, and `lines` clients of two connections each."""
    admins = (await asyncpg.connect(admin_url), await asyncpg.connect(admin_url), await asyncpg.connect(admin_url))
    await admins[0].execute(WORLD.replace("$STOPS", str(STOPS)).replace("$SEATS", str(SEATS)))
    made = Rush(admins, url, seed, lines)
    try:
        yield made
    finally:
        for caller in made.callers:
            await caller.close()
        for admin in admins:
            await admin.close()
