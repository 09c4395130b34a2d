"""Boarding on a real PostgreSQL: tickets are issued with the confirmation, scans merge in any order, and who has not come is given up."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from engine.booking import tickets
from engine.booking.boarding import Boarding, ScanIn
from engine.booking.issuing import Issuer, Ticket
from engine.booking.manifest import Manifests, as_csv
from engine.booking.refusals import Refused
from engine.clock import SystemClock
from engine.errors import NotFound
from tests.booking_world import OTHER, SECRET, World

HOUR_MS = 3_600_000


class Later(SystemClock):
    """The real time, moved."""

    by_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.by_ms


class House:
    """A world with its tickets and its doors."""

    world: World

    @classmethod
    async def make(cls, database_url: str, **settings: Any) -> House:
        house = cls()
        house.world = await World.make(database_url, **settings)
        house.clock = Later()
        house.issuer = house.another()
        house.boarding = Boarding(house.world.pool, house.world.catalogue, house.issuer, clock=house.clock, settings=house.world.settings)
        house.manifests = house.boarding.manifests
        await house.issuer.keys()
        return house

    def __init__(self) -> None:
        self.clock: Later
        self.issuer: Issuer
        self.boarding: Boarding
        self.manifests: Manifests

    def another(self, alg: str = "ed25519", secret: str = SECRET) -> Issuer:
        """Another worker's."""
        return Issuer(self.world.pool, self.world.catalogue, secret_key=secret, alg=alg, clock=self.clock)

    async def tickets(self, shown: Any) -> list[Ticket]:
        again = await self.world.bookings.shown(booking_id=shown["lead"])
        return await self.issuer.tickets(again, self.world.guest())

    async def sold(self, *labels: str, **more: Any) -> tuple[Any, list[Ticket]]:
        shown = await self.world.confirmed(*labels, **more)
        return shown, await self.tickets(shown)

    async def scan(self, device: str, *given: ScanIn, partner: str = "north", told_ms: int | None = None) -> list[str]:
        driver = self.world.agent(partner, "DRIVER")
        return [one.result for one in await self.boarding.scan(driver, device, told_ms, given)]

    async def edge(self, shown: Any, statement: str, *args: Any) -> Any:
        """One statement on the rows of a booking, locked."""

        async def work(connection: Any) -> Any:
            ids = [row["booking_id"] for row in await connection.fetch("select * from booking.locked($1)", shown["lead"])]
            return await connection.fetchval(statement, ids, *args)

        return await self.world.pool.run("*", work)

    async def state(self, shown: Any) -> tuple[str, list[str]]:
        row = (await self.world.bookings.shown(booking_id=shown["lead"]))["rows"][0]
        return row["state"], [one["state"] for one in row["passengers"]]

    async def cancel(self, shown: Any) -> None:
        await self.edge(shown, "select ticket.revoke($1, null, 'test', 'test')")
        await self.edge(shown, "select booking.move($1, 'CANCELLED', 'test', 'test')")


@pytest.fixture
async def house(database_url: str) -> AsyncIterator[House]:
    made = await House.make(database_url)
    yield made
    await made.world.close()


async def result(house: House, ticket: Ticket, trip_id: str | None = None) -> str:
    return (await house.issuer.seen(ticket.qr, trip_id)).result


# ------------------------------------------------------------------------------------------------ issue


async def test_a_confirmed_booking_has_a_ticket_for_each_seat_that_verifies_with_public_keys_alone(house: House) -> None:
    shown, mine = await house.sold("1A", "1B")
    assert [one.seat for one in mine] == ["1A", "1B"]
    public = tickets.Keys(await house.issuer.published())
    now_s = house.clock.now_ms() // 1000
    for one in mine:
        assert tickets.verify(one.qr, public, now_s, trip_id=house.world.trip_id).result == "VALID"
        assert one.valid_to_ms - one.trip.arrives_at_ms == pytest.approx(24 * HOUR_MS, abs=1000)
    assert [one.qr for one in await house.tickets(shown)] == [one.qr for one in mine], "signed anew, the same bytes"
    assert await house.world.value("select count(*) from office.outbox where topic = 'ticket' and kind = 'ISSUED'") == 2
    assert await house.world.value("select count(*) from office.audit where action = 'ticket.ISSUED'") == 2


async def test_a_booking_that_is_not_confirmed_is_never_signed(house: House) -> None:
    shown = await house.world.booked("1A")
    with pytest.raises(Refused) as refused:
        await house.tickets(shown)
    assert refused.value.code == "NOT_CONFIRMED"
    with pytest.raises(Refused) as refused:
        await house.edge(shown, "select ticket.issue($1, 'test', 'test')")
    assert refused.value.code == "NOT_CONFIRMED"
    assert await house.world.value("select count(*) from ticket.ticket") == 0


async def test_issuing_twice_issues_once(house: House) -> None:
    shown = await house.world.confirmed("1A", "1B")
    issue = "select ticket.issue($1, 'test', 'test')"
    assert [await house.edge(shown, issue) for _ in range(2)] == [2, 0]


async def test_reissue_after_cancel_leaves_the_old_qr_superseded(house: House) -> None:
    shown, (old,) = await house.sold("1A")
    assert await house.edge(shown, "select ticket.revoke($1, '{1}', 'test', 'test')") == 1
    assert await result(house, old) == "REVOKED"
    with pytest.raises(Refused) as refused:
        await house.tickets(shown)
    assert refused.value.code == "TICKETS_REVOKED", "reading brings nothing back"
    assert await house.edge(shown, "select ticket.issue($1, 'test', 'test')") == 1
    (new,) = await house.tickets(shown)
    assert new.ticket_id == old.ticket_id and new.version == 2 and new.qr != old.qr
    assert await result(house, old) == "SUPERSEDED" and await result(house, new) == "VALID"
    assert await house.scan("door", ScanIn(old.qr), ScanIn(new.qr)) == ["SUPERSEDED", "BOARDED"]
    events = await house.world.run("select kind, version from office.outbox where topic = 'ticket' order by version")
    assert [(row[0], row[1]) for row in events] == [("ISSUED", 1), ("REVOKED", 2), ("ISSUED", 3), ("SCANNED", 4), ("SCANNED", 5)]


async def test_a_cancelled_booking_shows_no_ticket_and_its_qr_is_revoked(house: House) -> None:
    shown, (mine,) = await house.sold("1A")
    await house.cancel(shown)
    with pytest.raises(Refused) as refused:
        await house.tickets(shown)
    assert refused.value.code == "NOT_CONFIRMED"
    assert await result(house, mine) == "REVOKED"


async def test_a_renumbered_bus_keeps_the_qr_valid_and_the_manifest_tells_the_seat(house: House) -> None:
    """A swap on which two passengers of one booking change places, onto a bus that calls its seats otherwise."""
    shown, (first, second) = await house.sold("1A", "1B")
    trip = await house.world.catalogue.trip(house.world.trip_id)
    labels = [f"{number}" for number in range(101, 113)]
    text = json.dumps(await house.world.value("select layout from sale.seat_map where trip_no = $1", trip.trip_no))
    for old, new in zip(trip.labels, labels, strict=True):
        text = text.replace(f'"{old}"', f'"{new}"')
    drawn = json.loads(text)

    async def swap(connection: Any) -> None:
        await connection.execute("select booking.lock_trip($1, true)", trip.trip_no)
        rows = await connection.fetch("select booking_id, seats from booking.locked($1, true)", shown["lead"])
        await connection.execute(
            "select booking.swap($1, 1, $2, $3, $4, 'twelve', 'BUS-9', $5, $6, $7, 'test', 'test')", trip.trip_no,
            [rows[0]["booking_id"]] * 2, [1, 2], [2, 1], list(range(1, 13)), labels, drawn,
        )  # fmt: skip

    await house.world.pool.run("*", swap)
    house.world.catalogue.forget(trip.trip_id)
    one, two = await house.tickets(shown)
    assert (one.seat, one.qr) == ("101", second.qr) and (two.seat, two.qr) == ("102", first.qr)
    assert await result(house, first) == "VALID"
    assert (await house.issuer.seen(first.qr, trip.trip_id)).seat == "102"
    driver = house.world.agent(role="DRIVER")
    (done,) = await house.boarding.scan(driver, "door", None, [ScanIn(first.qr, trip.trip_id)])
    assert (done.result, done.seat) == ("BOARDED", "102")
    manifest = await house.manifests.of(trip)
    assert (manifest.bus_id, manifest.map_version) == ("BUS-9", 2)
    assert [(one.seat, one.state) for one in manifest.passengers] == [("101", "BOOKED"), ("102", "BOARDED")]
    assert not manifest.revoked


async def test_a_ticket_altered_and_one_forged_have_their_own_codes(house: House) -> None:
    _, (mine,) = await house.sold("1A")
    payload, said, proof = tickets.parse(mine.qr)
    another_seat = tickets.base45(said[:28] + bytes([said[28] ^ 1]) + said[29:] + proof)
    assert (await house.issuer.seen(another_seat, None)).result == "ALTERED"
    assert (await house.issuer.seen(tickets.base45(said[:12] + b"x" + said[13:] + proof), None)).result == "FORGED"
    assert (await house.issuer.seen("HELLO", None)).result == "MALFORMED"
    assert await result(house, mine, "demo:other:20260101") == "WRONG_TRIP"
    keys = await house.issuer.keys()
    nobody = keys.sign(msgspec.structs.replace(payload, ticket_id="0195c0de-0001-7000-8000-000000000001"))
    assert (await house.issuer.seen(nobody, None)).result == "UNKNOWN_TICKET"
    assert await house.scan("door", ScanIn(another_seat, seq=1), ScanIn(nobody, seq=2), ScanIn("HELLO", seq=3)) == [
        "ALTERED", "UNKNOWN_TICKET", "MALFORMED"
    ]  # fmt: skip
    house.clock.by_ms = 40 * 24 * HOUR_MS
    assert await result(house, mine) == "EXPIRED"


# ------------------------------------------------------------------------------------------------ keys


async def test_a_rotated_key_signs_new_tickets_and_the_old_ones_stay_good(house: House) -> None:
    _, (old,) = await house.sold("1A")
    other_worker = house.another()
    await other_worker.keys()
    fresh = await house.issuer.rotate()
    _, (new,) = await house.sold("1B")
    assert (tickets.parse(old.qr)[0].key_id, tickets.parse(new.qr)[0].key_id) == (1, 2)
    assert fresh.key_id == 2 and fresh.retired_at is None
    assert [key.retired_at is None for key in (await house.issuer.published()).keys] == [False, True]
    house.clock.by_ms = 6_000  # an unknown key is asked for again at most every five seconds
    for issuer in (house.issuer, other_worker):
        for qr in (old.qr, new.qr):
            assert (await issuer.seen(qr, house.world.trip_id)).result == "VALID"


async def test_after_a_change_of_secret_old_paper_verifies_and_new_tickets_are_signed_with_a_new_key(house: House) -> None:
    shown, (old,) = await house.sold("1A")
    house.issuer = house.another(secret="another-secret-of-the-tests-that-is-long")
    (new,) = await house.tickets(shown)
    assert tickets.parse(new.qr)[0].key_id == 2
    assert await result(house, old) == "VALID" and await result(house, new) == "VALID"


async def test_hmac_tickets_need_the_secret_of_their_trip(house: House) -> None:
    house.issuer = house.boarding.issuer = house.manifests._issuer = house.another("hmac")
    _, (mine,) = await house.sold("1A")
    assert len(mine.qr) == 108
    trip = await house.world.catalogue.trip(house.world.trip_id)
    manifest = await house.manifests.of(trip)
    now_s = house.clock.now_ms() // 1000
    public = tickets.KeyFile(manifest.keys)
    with_secret = tickets.KeyFile(manifest.keys, manifest.trip_secrets)
    assert tickets.verify(mine.qr, tickets.Keys(public), now_s).result == "UNKNOWN_KEY"
    assert tickets.verify(mine.qr, tickets.Keys(with_secret), now_s).result == "VALID"
    assert await house.scan("door", ScanIn(mine.qr)) == ["BOARDED"]


# ------------------------------------------------------------------------------------------------ scans


async def test_the_first_valid_scan_boards_and_a_screenshot_of_the_qr_is_told_when_and_where(house: House) -> None:
    shown, (mine, hers) = await house.sold("1A", "1B")
    assert await house.scan("door", ScanIn(mine.qr)) == ["BOARDED"]
    driver = house.world.agent(role="DRIVER")
    (again,) = await house.boarding.scan(driver, "back door", None, [ScanIn(mine.qr)])
    assert (again.result, again.boarded_by, again.passenger, again.seat) == ("ALREADY_BOARDED", "door", "Amal Benaïssa", "1A")
    assert await result(house, mine) == "ALREADY_BOARDED"
    assert await house.state(shown) == ("BOARDED", ["BOARDED", "BOOKED"])
    assert await house.scan("door", ScanIn(hers.qr)) == ["BOARDED"]
    assert await house.state(shown) == ("BOARDED", ["BOARDED", "BOARDED"])
    assert await house.world.value("select count(*) from office.outbox where topic = 'booking' and kind = 'BOARDED'") == 1


async def test_a_batch_told_again_counts_once_and_answers_the_same(house: House) -> None:
    _, (mine, hers) = await house.sold("1A", "1B")
    now = house.clock.now_ms()
    batch = [
        ScanIn(mine.qr, seq=1, scanned_at_ms=now),
        ScanIn(hers.qr, seq=2, scanned_at_ms=now),
        ScanIn(mine.qr, seq=3, scanned_at_ms=now + 5),
    ]
    first = await house.scan("door", *batch, told_ms=now)
    assert first == ["BOARDED", "BOARDED", "ALREADY_BOARDED"]
    events = "select count(*) from office.outbox where topic = 'ticket'"
    before = await house.world.value(events)
    assert await house.scan("door", *batch, told_ms=now) == first
    assert await house.world.value(events) == before
    assert await house.scan("door", ScanIn(hers.qr, seq=1, scanned_at_ms=now), told_ms=now) == ["SEQ_REUSED"]


async def test_two_offline_scanners_merge_to_the_same_whatever_comes_first(house: House) -> None:
    """Every order of three uploads from two devices whose clocks are an hour wrong, on the real database."""
    ends = set()
    orders = list(itertools.permutations(range(3)))
    for label, order in zip(("1A", "1B", "1C", "1D", "2A", "2B"), orders, strict=True):
        _, (mine,) = await house.sold(label, who=house.world.agent())
        real = house.clock.now_ms() - 600_000
        await house.world.run("update ticket.ticket set valid_from = valid_from - interval '1 hour' where ticket_id = $1", mine.ticket_id)
        qr = (await house.tickets(await house.world.bookings.shown(reference=mine.reference)))[0].qr
        uploads = [  # device, how wrong its clock is, when it scanned
            (f"east-{label}", HOUR_MS, real + 20_000, 1),
            (f"west-{label}", -HOUR_MS, real + 10_000, 1),
            (f"east-{label}", HOUR_MS, real + 30_000, 2),
        ]
        for index in order:
            device, off, at, seq = uploads[index]
            await house.scan(device, ScanIn(qr, seq=seq, scanned_at_ms=at + off), told_ms=house.clock.now_ms() + off)
        rows = await house.world.run(
            "select device, seq, result from ticket.scan where ticket_id = $1 order by device, seq", mine.ticket_id
        )
        boarded = await house.world.run("select boarded_by, state from ticket.ticket where ticket_id = $1", mine.ticket_id)
        said = tuple((row[0].split("-")[0], row[1], row[2]) for row in rows)
        ends.add((said, boarded[0][0].split("-")[0], boarded[0][1]))
    assert ends == {((("east", 1, "DUPLICATE_OFFLINE"), ("east", 2, "DUPLICATE_OFFLINE"), ("west", 1, "BOARDED")), "west", "USED")}


async def test_a_scanner_whose_clock_is_an_hour_ahead_boards_at_the_right_time(house: House) -> None:
    _, (mine,) = await house.sold("1A")
    now = house.clock.now_ms() + 60_000
    house.clock.by_ms = 60_000
    assert await house.scan("door", ScanIn(mine.qr, seq=1, scanned_at_ms=now - 30_000 + HOUR_MS), told_ms=now + HOUR_MS) == ["BOARDED"]
    at = await house.world.value("select boarded_at from ticket.ticket")
    assert abs(at.timestamp() * 1000 - (now - 30_000)) < 5_000


async def test_cancelled_while_a_scanner_is_offline(house: House) -> None:
    """The times tell who was first; the booking stays cancelled, and somebody has to look at it."""
    late, (after,) = await house.sold("1A")
    early, (before,) = await house.sold("1B")
    scanned_before = house.clock.now_ms() + 500
    house.clock.by_ms = 1_000
    for shown in (late, early):
        await house.cancel(shown)
    cancelled = datetime.fromtimestamp((scanned_before + 500) / 1000, UTC)
    await house.world.run("update ticket.ticket set revoked_at = $1", cancelled)
    house.clock.by_ms = 60_000
    told = house.clock.now_ms()
    assert await house.scan("door", ScanIn(after.qr, seq=1, scanned_at_ms=told - 1), told_ms=told) == ["CANCELLED_BEFORE_SCAN"]
    assert await house.scan("door", ScanIn(before.qr, seq=2, scanned_at_ms=scanned_before), told_ms=told) == ["BOARDED_BEFORE_CANCELLATION"]
    assert (await house.state(late))[0] == (await house.state(early))[0] == "CANCELLED"
    trip = await house.world.catalogue.trip(house.world.trip_id)
    assert [one.result for one in (await house.manifests.of(trip)).look_at] == ["BOARDED_BEFORE_CANCELLATION", "CANCELLED_BEFORE_SCAN"]
    assert await house.scan("door", ScanIn(after.qr)) == ["REVOKED"], "online it is simply refused"


async def test_a_ticket_of_another_operator_is_unknown_to_this_one(house: House) -> None:
    _, (mine,) = await house.sold("1A")
    assert await house.scan("door", ScanIn(mine.qr), partner=OTHER) == ["UNKNOWN_TICKET"]
    assert await result(house, mine) == "VALID"
    with pytest.raises(NotFound):
        await house.boarding.trip_of(house.world.agent(OTHER), house.world.trip_id)


# ------------------------------------------------------------------------------------------------ check-in, start, end, no-show


async def test_check_in_opens_before_departure_and_again_changes_nothing(house: House) -> None:
    trip_id, _ = await house.world.trip(departs_in=timedelta(days=9))
    early = await house.world.confirmed("1A", trip=trip_id)
    with pytest.raises(Refused) as refused:
        await house.boarding.check_in(house.world.guest(), early, None)
    assert refused.value.code == "CHECK_IN_CLOSED"
    shown, (mine,) = await house.sold("1A")
    house.clock.by_ms = 60_000
    for _ in range(2):
        again = await house.world.bookings.shown(booking_id=shown["lead"])
        await house.boarding.check_in(house.world.guest(), again, None)
    assert await house.state(shown) == ("CHECKED_IN", ["CHECKED_IN"])
    with pytest.raises(NotFound):
        await house.boarding.check_in(house.world.guest(), shown, trip_id)
    waiting = await house.world.booked("2A")
    with pytest.raises(Refused) as refused:
        await house.boarding.check_in(house.world.guest(), waiting, None)
    assert refused.value.code == "NOT_CONFIRMED"
    assert await house.scan("door", ScanIn(mine.qr)) == ["BOARDED"]


async def test_who_has_not_come_is_a_no_show_at_their_own_stop_and_who_boarded_arrives(house: House) -> None:
    gone, _ = await house.sold("1A", frm="demo:A", to="demo:C")
    there, (mine, hers) = await house.sold("1B", "1C", frm="demo:A", to="demo:C")
    later, _ = await house.sold("1D", frm="demo:E", to="demo:F")
    assert await house.scan("door", ScanIn(mine.qr)) == ["BOARDED"]
    departs = (await house.world.catalogue.trip(house.world.trip_id)).departs_at_ms
    assert await house.boarding.sweep() == 0
    house.clock.by_ms = departs - SystemClock().now_ms() + 7_200_000 + 60_000  # at stop A two hours ago; at stop E just left
    assert await house.boarding.sweep() == 2
    assert await house.boarding.sweep() == 0
    assert await house.state(gone) == ("NO_SHOW", ["NO_SHOW"])
    assert await house.state(there) == ("COMPLETED", ["BOARDED", "NO_SHOW"])
    assert await house.state(later) == ("CONFIRMED", ["BOOKED"])
    assert await result(house, hers) == "NO_SHOW"
    told = house.clock.now_ms()
    scanned = ScanIn(hers.qr, seq=9, scanned_at_ms=told - 7_000_000)
    assert await house.scan("back door", scanned, told_ms=told) == ["BOARDED_AFTER_NO_SHOW"]


async def test_a_trip_starts_and_ends_once_and_the_end_settles_its_bookings(house: House) -> None:
    gone, _ = await house.sold("1A")
    there, (mine,) = await house.sold("1B")
    driver = house.world.agent(role="DRIVER")
    with pytest.raises(Refused) as refused:
        await house.boarding.end(driver, house.world.trip_id)
    assert refused.value.code == "WRONG_STATE"
    assert {(await house.boarding.start(driver, house.world.trip_id)).status for _ in range(2)} == {"STARTED"}
    assert await house.scan("door", ScanIn(mine.qr)) == ["BOARDED"]
    assert (await house.boarding.end(driver, house.world.trip_id)).status == "COMPLETED"
    assert (await house.state(gone))[0] == "NO_SHOW" and (await house.state(there))[0] == "COMPLETED"
    said = await house.world.run("select kind, version from office.outbox where topic = 'trip' order by version")
    assert [tuple(row) for row in said] == [("STARTED", 2), ("COMPLETED", 3)]
    with pytest.raises(NotFound):
        await house.boarding.start(house.world.agent(OTHER, "DRIVER"), house.world.trip_id)


async def test_the_manifest_has_every_passenger_and_what_an_offline_scanner_needs(house: House) -> None:
    _, (mine, hers) = await house.sold("1A", "2C", frm="demo:A", to="demo:C")
    await house.sold("1A", frm="demo:C", to="demo:F")
    cancelled, (dead,) = await house.sold("3D")
    await house.cancel(cancelled)
    await house.scan("door", ScanIn(mine.qr))
    manifest = await house.manifests.of(await house.world.catalogue.trip(house.world.trip_id))
    assert [(one.seat, one.from_, one.to, one.state) for one in manifest.passengers] == [
        ("1A", "Stop A", "Stop C", "BOARDED"), ("1A", "Stop C", "Stop F", "BOOKED"), ("2C", "Stop A", "Stop C", "BOOKED")
    ]  # fmt: skip
    assert manifest.counts == {"passengers": 3, "seats": 12, "BOOKED": 2, "CHECKED_IN": 0, "BOARDED": 1, "NO_SHOW": 0}
    assert [(one.ticket_id, one.good_from_version) for one in manifest.revoked] == [(dead.ticket_id, None)]
    now_s = house.clock.now_ms() // 1000
    revoked = {one.ticket_id: one.good_from_version for one in manifest.revoked}
    keys = tickets.Keys(tickets.KeyFile(manifest.keys))
    assert tickets.verify(dead.qr, keys, now_s, trip_id=manifest.trip_id, revocations=revoked).result == "REVOKED"
    assert tickets.verify(hers.qr, keys, now_s, trip_id=manifest.trip_id, revocations=revoked).result == "VALID"
    lines = as_csv(manifest).split("\r\n")
    assert lines[0].startswith("seat,lastName,firstName") and lines[1].startswith("1A,Benaïssa,Amal,ADULT,Stop A,Stop C,BOARDED")


async def test_many_doors_at_the_same_instant_board_a_ticket_once(house: House) -> None:
    _, (mine,) = await house.sold("1A")
    said = await asyncio.gather(*(house.scan(f"door-{n}", ScanIn(mine.qr)) for n in range(8)))
    assert sorted(one for (one,) in said) == ["ALREADY_BOARDED"] * 7 + ["BOARDED"]
    assert await house.world.value("select count(*) from office.outbox where topic = 'booking' and kind = 'BOARDED'") == 1


async def test_a_cancellation_and_a_scan_at_the_same_instant_never_both_win(house: House) -> None:
    for label in ("1A", "1B", "1C", "1D", "2A", "2B"):
        shown, (mine,) = await house.sold(label, who=house.world.agent())

        async def cancel(shown: Any = shown) -> str:
            async def work(connection: Any) -> str:
                ids = [row["booking_id"] for row in await connection.fetch("select * from booking.locked($1)", shown["lead"])]
                await connection.execute("select booking.move($1, 'CANCELLED', 'test', 'test')", ids)
                await connection.execute("select ticket.revoke($1, null, 'test', 'test')", ids)
                return "CANCELLED"

            try:
                return str(await house.world.pool.run("*", work))
            except Refused as refused:
                return refused.code

        cancelled, (scanned,) = await asyncio.gather(cancel(), house.scan("door", ScanIn(mine.qr)))
        assert (cancelled, scanned) in {("CANCELLED", "REVOKED"), ("WRONG_STATE", "BOARDED")}
