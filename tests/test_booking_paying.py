"""Payments whole, on a real PostgreSQL: what providers do to us, in every order, and what people get for their money."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from engine.booking.money import Money
from engine.booking.payments import CAPTURED, Charge, Fact
from engine.booking.providers import CARD, MOBILE_MONEY, THREE_DAYS_MS
from engine.booking.refusals import Refused
from engine.errors import NotFound, Unauthenticated
from tests.booking_world import LAYOUT
from tests.paying_world import PayingWorld

PRICE = 50_000  # one seat from A to F
KEPT = 2_500  # commission of it


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[PayingWorld]:
    world = await PayingWorld.make(database_url)
    yield world
    await world.sound()
    await world.close()


def fact(payment_id: str, kind: str, event_id: str, amount: int = PRICE, **more: Any) -> Fact:
    about: dict[str, Any] = {"reference": payment_id, "provider_ref": "x", "currency": "DZD", "at_ms": 1_795_262_400_000}
    return Fact(kind=kind, event_id=event_id, amount=amount, **about | more)


async def refused(code: str, work: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        await work
    assert caught.value.code == code, caught.value.detail
    return caught.value


# ------------------------------------------------------------------------------------------------ the good way


async def test_a_card_payment_makes_a_confirmed_booking_with_tickets_and_a_balanced_ledger(world: PayingWorld) -> None:
    shown = await world.booked("1A", "1B")
    begun = await world.paying.initiate(world.payer(shown), world.key(), shown["ref"], CARD)
    assert begun.status == 201
    assert begun.body["status"] == "INITIATED"
    assert begun.body["amount"] == {"amount": 2 * PRICE, "currency": "DZD"}
    done = await world.confirm(shown, begun.body["id"])
    assert (done.status, done.body["status"], done.body["bookingRef"]) == (200, "CONFIRMED", shown["ref"])
    assert await world.state(shown) == "CONFIRMED"
    assert await world.value("select count(*) from ticket.ticket where booking_id = $1", shown["lead"]) == 2
    assert await world.events(begun.body["id"]) == ["INITIATED", "CONFIRMED"]
    assert await world.accounts() == {f"PROVIDER:{CARD}": -2 * PRICE, "PARTNER": 2 * (PRICE - KEPT), "COMMISSION": 2 * KEPT}
    assert {state for _, _, _, state in await world.claims()} == {"SOLD"}
    assert (await world.paying.status(world.payer(shown), begun.body["id"]))["status"] == "CONFIRMED"


async def test_a_wallet_payment_is_confirmed_by_its_webhook_and_until_then_it_is_in_progress(world: PayingWorld) -> None:
    world.simulated[MOBILE_MONEY]._answer_ms = 60_000
    shown, payment_id = await world.begun("1A", provider=MOBILE_MONEY)
    waiting = await world.confirm(shown, payment_id)
    assert (waiting.status, waiting.body["status"]) == (202, "IN_PROGRESS")
    world.their_clock.ahead_ms = 61_000
    assert sum(await world.deliver()) >= 1
    assert await world.state(shown) == "CONFIRMED"
    assert (await world.confirm(shown, payment_id)).status == 200


async def test_asking_again_with_the_same_key_answers_the_same_and_does_nothing_again(world: PayingWorld) -> None:
    shown = await world.booked("1A")
    key, again = world.key(), world.key()
    first = await world.paying.initiate(world.payer(shown), key, shown["ref"], CARD)
    second = await world.paying.initiate(world.payer(shown), key, shown["ref"], CARD)
    assert (second.body, second.replayed, first.replayed) == (first.body, True, False)
    done = await world.confirm(shown, first.body["id"], again)
    twice = await world.confirm(shown, first.body["id"], again)
    assert (twice.body, twice.replayed) == (done.body, True)
    other = type(key)(key.key, b"another body")
    await refused("IDEMPOTENCY_KEY_REUSED", world.paying.initiate(world.payer(shown), other, shown["ref"], CARD))
    assert await world.value("select count(*) from money.payment") == 1


async def test_a_double_click_on_pay_begins_one_payment(world: PayingWorld) -> None:
    shown = await world.booked("1A")
    tries = [world.paying.initiate(world.payer(shown), world.key(), shown["ref"], CARD) for _ in range(6)]
    ended = await asyncio.gather(*tries, return_exceptions=True)
    codes = [one.code for one in ended if isinstance(one, Refused)]
    assert codes == ["PAYMENT_IN_PROGRESS"] * 5


async def test_a_double_click_on_confirm_charges_once(world: PayingWorld) -> None:
    shown, payment_id = await world.begun("1A")
    keys = [world.key() for _ in range(6)]
    done = await asyncio.gather(*(world.confirm(shown, payment_id, key) for key in keys))
    assert {answer.status for answer in done} == {200}
    again = [await world.confirm(shown, payment_id, key) for key in keys]
    assert all(answer.replayed and answer.body == done[0].body for answer in again)
    assert (await world.payment(payment_id))["captured"] == PRICE
    assert await world.events(payment_id) == ["INITIATED", "CONFIRMED"]


async def test_a_strangers_payment_and_booking_are_unknown(world: PayingWorld) -> None:
    shown, payment_id = await world.begun("1A")
    for stranger in (world.guest(), world.customer(), world.agent("south")):
        with pytest.raises(NotFound):
            await world.paying.status(stranger, payment_id)
        with pytest.raises(NotFound):
            await world.paying.confirm(stranger, world.key(), payment_id)
        with pytest.raises(NotFound):
            await world.paying.initiate(stranger, world.key(), shown["ref"], CARD)
    assert (await world.paying.status(world.agent(), payment_id))["id"] == payment_id


async def test_a_decline_lets_the_customer_pay_another_way(world: PayingWorld) -> None:
    shown, payment_id = await world.begun("1A", scenario="INSUFFICIENT_FUNDS")
    fault = await refused("PAYMENT_FAILED", world.confirm(shown, payment_id))
    assert "INSUFFICIENT_FUNDS" in fault.detail
    assert await world.events(payment_id) == ["INITIATED", "FAILED"]
    assert await world.state(shown) == "PENDING_PAYMENT"
    await world.confirm(shown, await world.begin(shown))
    assert await world.state(shown) == "CONFIRMED"


async def test_yen_and_dinars_of_kuwait_are_whole_minor_units_everywhere(world: PayingWorld) -> None:
    for currency, total, commission in (("JPY", PRICE, KEPT), ("KWD", PRICE, KEPT)):
        trip_id, _ = await world.trip(currency=currency)
        shown, payment_id = await world.paid("1A", trip=trip_id)
        row = await world.payment(payment_id)
        assert (row["currency"], row["captured"], row["commission"]) == (currency, total, commission)
        await refused("WRONG_CURRENCY", world.refund(shown, 1, "DZD"))
        assert (await world.refund(shown, 333, currency)).body["amount"] == {"amount": 333, "currency": currency}
        rows = await world.run("select account, credit - debit as net from money.ledger where currency = $1 and kind = 'REFUND'", currency)
        assert {row["account"]: row["net"] for row in rows} == {"PARTNER": -316, "COMMISSION": -17, "REFUNDS": 333}


# ------------------------------------------------------------------------------------------------ providers that fail


async def test_a_timeout_after_the_charge_is_finished_by_the_same_request_sent_again(world: PayingWorld) -> None:
    shown, payment_id = await world.begun("1A", scenario="TIMEOUT_AFTER_CHARGE")
    key = world.key()
    await refused("PROVIDER_SILENT", world.confirm(shown, payment_id, key))
    assert (await world.confirm(shown, payment_id, key)).body["status"] == "CONFIRMED"
    assert (await world.payment(payment_id))["captured"] == PRICE


async def test_a_worker_that_dies_between_charge_and_write_is_finished_by_the_reconciler(world: PayingWorld) -> None:
    class Dying(type(world.simulated[CARD])):  # type: ignore[misc]
        async def capture(self, payment_id: str, charge: Charge | None = None) -> list[Fact]:
            await super().capture(payment_id, charge)
            raise SystemError("killed")

    shown, payment_id = await world.begun("1A")
    card = world.simulated[CARD]
    dying = Dying(CARD, card._memories, card._clock, card._secret)
    key = world.key()
    with pytest.raises(SystemError):
        await world.worker(**{CARD: dying}).confirm(world.payer(shown), key, payment_id)
    assert await world.state(shown) == "PENDING_PAYMENT"
    await world.due()
    assert await world.state(shown) == "CONFIRMED"
    answer = await world.confirm(shown, payment_id, key)
    assert (answer.status, answer.body["status"], answer.replayed) == (200, "CONFIRMED", True)


async def test_a_worker_that_dies_before_a_card_was_ever_asked_is_finished_by_the_reconciler(world: PayingWorld) -> None:
    class Dying(type(world.simulated[CARD])):  # type: ignore[misc]
        async def capture(self, payment_id: str, charge: Charge | None = None) -> list[Fact]:
            raise SystemError("killed")

    shown, payment_id = await world.begun("1A")
    card = world.simulated[CARD]
    key = world.key()
    with pytest.raises(SystemError):
        await world.worker(**{CARD: Dying(CARD, card._memories, card._clock, card._secret)}).confirm(world.payer(shown), key, payment_id)
    assert await world.value("select count(*) from simulator.charge") == 0
    await world.due()
    assert await world.state(shown) == "CONFIRMED"
    assert (await world.confirm(shown, payment_id, key)).body["status"] == "CONFIRMED"


async def test_the_beginning_of_a_card_payment_is_one_answer_that_is_kept(world: PayingWorld) -> None:
    shown = await world.booked("1A")
    key = world.key()
    first = await world.paying.initiate(world.payer(shown), key, shown["ref"], CARD)
    again = await world.paying.initiate(world.payer(shown), key, shown["ref"], CARD)
    assert (first.status, first.replayed, again.replayed) == (201, False, True) and again.body == first.body
    assert await world.events(first.body["id"]) == ["INITIATED"]
    row = await world.payment(first.body["id"])
    assert row["next_try_at"] == row["deadline_at"], "nobody is asked before that"


async def test_the_twin_of_a_running_confirm_is_told_to_wait_and_an_abandoned_one_is_taken_over(database_url: str) -> None:
    world = await PayingWorld.make(database_url, payment_run_s=60.0)

    class Stuck(type(world.simulated[CARD])):  # type: ignore[misc]
        async def capture(self, payment_id: str, charge: Charge | None = None) -> list[Fact]:
            await super().capture(payment_id, charge)
            raise SystemError("frozen")

    shown, payment_id = await world.begun("1A")
    card = world.simulated[CARD]
    key = world.key()
    with pytest.raises(SystemError):
        await world.worker(**{CARD: Stuck(CARD, card._memories, card._clock, card._secret)}).confirm(world.payer(shown), key, payment_id)
    fault = await refused("IDEMPOTENCY_IN_PROGRESS", world.confirm(shown, payment_id, key))
    assert fault.retry_after_s == 1
    await world.run("update office.idempotency set answer = answer || jsonb_build_object('until', clock_timestamp())")
    assert (await world.confirm(shown, payment_id, key)).body["status"] == "CONFIRMED"
    await world.sound()
    await world.close()


async def test_a_missing_callback_is_found_by_the_reconciler(world: PayingWorld) -> None:
    shown, payment_id = await world.begun("1A", provider=MOBILE_MONEY, scenario="MISSING_CALLBACK")
    assert await world.deliver() == []
    assert (await world.payment(payment_id))["state"] == "INITIATED"
    await world.due()
    assert await world.state(shown) == "CONFIRMED"


async def test_a_duplicate_webhook_is_one_fact(world: PayingWorld) -> None:
    shown, payment_id = await world.begun("1A", provider=MOBILE_MONEY, scenario="DUPLICATE_WEBHOOK")
    assert len(await world.deliver()) == 4
    assert await world.state(shown) == "CONFIRMED"
    assert await world.value("select count(*) from money.fact where payment_id = $1 and kind = 'CAPTURED'", payment_id) == 1
    assert await world.events(payment_id) == ["INITIATED", "CONFIRMED"]


async def test_webhooks_out_of_order_end_in_the_same_state(world: PayingWorld) -> None:
    shown, payment_id = await world.begun("1A")
    await world.says([fact(payment_id, "CAPTURED", "e2")])
    assert await world.state(shown) == "CONFIRMED"
    for kind, event in (("FAILED", "e1"), ("AUTHORIZED", "e0"), ("CREATED", "e3"), ("CAPTURED", "e4")):
        await world.says([fact(payment_id, kind, event)])
    row = await world.payment(payment_id)
    assert (row["state"], row["captured"]) == ("CONFIRMED", PRICE)
    assert await world.state(shown) == "CONFIRMED"


async def test_reordered_webhooks_of_a_wallet_end_in_one_confirmed_booking(world: PayingWorld) -> None:
    shown, payment_id = await world.begun("1A", provider=MOBILE_MONEY, scenario=["REORDERED_WEBHOOKS", "DUPLICATE_WEBHOOK"])
    world.their_clock.ahead_ms = 10_000
    await world.deliver()
    assert await world.state(shown) == "CONFIRMED"
    assert await world.events(payment_id) == ["INITIATED", "CONFIRMED"]


async def test_money_after_a_failure_report_is_still_money(world: PayingWorld) -> None:
    shown, payment_id = await world.begun("1A")
    await world.says([fact(payment_id, "FAILED", "e1", reason="TIMEOUT")])
    assert (await world.payment(payment_id))["state"] == "FAILED"
    await world.says([fact(payment_id, "CAPTURED", "e2")])
    assert await world.state(shown) == "CONFIRMED"


async def test_a_webhook_with_a_bad_signature_leaves_nothing_behind(world: PayingWorld) -> None:
    _, payment_id = await world.begun("1A")
    from engine.booking.payments import SIGNATURE, signature, webhook_body, webhook_secret
    from tests.booking_world import SECRET

    body, now_ms = webhook_body([fact(payment_id, "CAPTURED", "e1")]), world.their_clock.now_ms()
    good = signature(webhook_secret(SECRET, CARD), body, now_ms)
    old = signature(webhook_secret(SECRET, CARD), body, now_ms - 301_000)
    of_another = signature(webhook_secret(SECRET, MOBILE_MONEY), body, now_ms)
    for header, sent in (
        (good[:-1] + ("0" if good[-1] != "0" else "1"), body),
        (good, body + b" "),
        (old, body),
        (of_another, body),
        ("", body),
    ):
        with pytest.raises(Unauthenticated):
            await world.paying.webhook(CARD, {SIGNATURE: header}, sent, "w")
    assert await world.value("select count(*) from money.fact where event_id = 'e1'") == 0


async def test_a_provider_speaks_only_of_its_own_payments(world: PayingWorld) -> None:
    shown, payment_id = await world.begun("1A", provider=CARD)
    await world.says([fact(payment_id, "CAPTURED", "e1")], provider=MOBILE_MONEY)
    assert await world.state(shown) == "PENDING_PAYMENT"


async def test_facts_of_an_unknown_payment_are_kept_until_it_is_known(world: PayingWorld) -> None:
    stranger = world.clock.uuid7()
    assert await world.says([fact(stranger, "CAPTURED", "e1"), fact("no uuid", "CAPTURED", "e2")]) == 2
    assert await world.value("select count(*) from money.fact where payment_id is null") == 2
    shown, payment_id = await world.begun("1A")
    await world.run("update money.fact set payment_id = null, partner_id = '-' where event_id = 'e1'")
    await world.run(
        "insert into money.fact select provider, 'e3', null, '-', $1, null, kind, amount, currency, part, reason, at from money.fact where event_id = 'e1'",
        payment_id,
    )
    await world.paying.reconcile()
    assert await world.state(shown) == "CONFIRMED"


# ------------------------------------------------------------------------------------------------ late money


async def test_a_hold_that_expires_while_its_payment_goes_on_stays_until_the_payment_ends(world: PayingWorld) -> None:
    shown, payment_id = await world.begun("1A")
    await world.age(shown["lead"], 10_000)
    assert await world.value("select booking.expire(array[$1::uuid], 'sweep')", shown["lead"]) is None
    await refused("SEAT_TAKEN", world.hold("1A"))
    await world.confirm(shown, payment_id)
    assert await world.state(shown) == "CONFIRMED"


async def test_a_hold_that_expired_before_its_payment_began_cannot_be_paid(world: PayingWorld) -> None:
    shown = await world.booked("1A")
    await world.age(shown["lead"], 10_000)
    await refused("HOLD_EXPIRED", world.begin(shown))
    assert await world.value("select count(*) from money.payment") == 0


async def test_hold_expiry_races_payment_and_one_of_the_two_wins_whole(world: PayingWorld) -> None:
    shown = await world.booked("1A")
    await world.run("update booking.booking set expires_at = clock_timestamp() + interval '20 ms' where booking_id = $1", shown["lead"])

    async def sweep() -> None:
        for _ in range(20):
            await world.run("select booking.expire(array[$1::uuid], 'sweep')", shown["lead"])

    begun, _ = await asyncio.gather(world.begin(shown), sweep(), return_exceptions=True)
    if isinstance(begun, Refused):
        assert begun.code == "HOLD_EXPIRED"
        assert await world.state(shown) in ("EXPIRED", "PENDING_PAYMENT")
    else:
        assert isinstance(begun, str)
        await world.confirm(shown, begun)
        assert await world.state(shown) == "CONFIRMED"


async def test_a_payment_three_days_late_whose_seat_is_free_is_honoured(world: PayingWorld) -> None:
    await world.run(
        "update sale.trip_instance set departs_at = departs_at + interval '9 days', arrives_at = arrives_at + interval '9 days'"
    )
    shown, payment_id = await world.begun("1A", provider=MOBILE_MONEY, scenario="THREE_DAYS_LATE")
    await world.expire(shown)
    assert await world.state(shown) == "EXPIRED"
    assert (await world.payment(payment_id))["state"] == "FAILED"
    assert await world.deliver() != [] and await world.state(shown) == "EXPIRED"
    world.their_clock.ahead_ms = THREE_DAYS_MS + 1_000
    await world.deliver()
    assert await world.state(shown) == "CONFIRMED"
    assert [claim[3] for claim in await world.claims()] == ["SOLD"]
    assert await world.value("select count(*) from ticket.ticket where booking_id = $1", shown["lead"]) == 1


async def test_a_payment_after_expiry_takes_no_seat_from_somebody_and_may_choose_others(world: PayingWorld) -> None:
    shown, payment_id = await world.begun("1A", "1B")
    await world.run(
        """insert into booking.ancillary (booking_id, seat, code, partner_id, trip_no, kind, name, count, price)
        select booking_id, 2, 'BAG', partner_id, trip_no, 'BAGGAGE', 'bag', 1, 0 from booking.booking where booking_id = $1""", shown["lead"],
    )  # fmt: skip
    await world.expire(shown)
    rival, _ = await world.paid("1A")
    await world.says([fact(payment_id, "CAPTURED", "late", 2 * PRICE)])
    assert (await world.paying.status(world.payer(shown), payment_id))["status"] == "OFFER_OTHER_SEATS"
    assert await world.state(rival) == "CONFIRMED"
    assert (await world.accounts())["CUSTOMER"] == 2 * PRICE
    await refused("OFFER_OTHER_SEATS", world.confirm(shown, payment_id))
    payer = world.payer(shown)
    await refused("SEAT_TAKEN", world.paying.choose_seats(payer, world.key(), payment_id, {world.trip_id: ["1A", "2A"]}))
    await refused("SEATS_DO_NOT_FIT", world.paying.choose_seats(payer, world.key(), payment_id, {world.trip_id: ["2A"]}))
    done = await world.paying.choose_seats(payer, world.key(), payment_id, {world.trip_id: ["2B", "2A"]})
    assert done.body["status"] == "CONFIRMED"
    assert await world.state(shown) == "CONFIRMED"
    seats = await world.value("select array_agg(seat order by seat) from booking.passenger where booking_id = $1", shown["lead"])
    assert seats == [5, 6]
    assert await world.value("select count(*) from ticket.ticket where booking_id = $1 and seat in (5, 6)", shown["lead"]) == 2
    assert await world.value("select seat from booking.ancillary where booking_id = $1", shown["lead"]) == 6  # its bag too


async def test_other_seats_for_late_money_are_of_the_class_paid_for_and_not_kept_for_others(world: PayingWorld) -> None:
    drawn = [dict(seat) for seat in LAYOUT["seats"]]
    drawn[4]["features"], drawn[5]["kind"] = ["WOMEN_ONLY"], "PREMIUM"  # 2A and 2B
    trip_id, _ = await world.trip(layout=LAYOUT | {"seats": drawn})
    shown, payment_id = await world.begun("1A", trip=trip_id)
    await world.expire(shown)
    await world.paid("1A", trip=trip_id)
    await world.says([fact(payment_id, "CAPTURED", "late", PRICE)])
    payer = world.payer(shown)
    for label in ("2A", "2B"):
        await refused("SEATS_DO_NOT_FIT", world.paying.choose_seats(payer, world.key(), payment_id, {trip_id: [label]}))
    done = await world.paying.choose_seats(payer, world.key(), payment_id, {trip_id: ["2C"]})
    assert done.body["status"] == "CONFIRMED"


async def test_a_no_show_that_gets_a_part_back_stays_one_until_all_is_given_back(world: PayingWorld) -> None:
    shown, _ = await world.paid("1A")
    await world.run("select * from booking.locked($1)", shown["lead"])
    await world.run("select booking.move(array[$1::uuid], 'NO_SHOW', 'test', 'test')", shown["lead"])
    await world.refund(shown, PRICE // 4)
    assert await world.state(shown) == "NO_SHOW"
    await world.refund(shown, PRICE - PRICE // 4)
    assert await world.state(shown) == "REFUNDED"


async def test_an_offer_that_nobody_takes_up_is_refunded_within_its_deadline(world: PayingWorld) -> None:
    shown, payment_id = await world.begun("1A")
    await world.expire(shown)
    await world.paid("1A")
    await world.says(await world.takes(payment_id))
    assert (await world.payment(payment_id))["state"] == "OFFER_OTHER_SEATS"
    await world.due()
    assert (await world.payment(payment_id))["state"] == "REFUNDED"
    assert await world.state(shown) == "REFUNDED"
    assert (await world.accounts()).get("CUSTOMER") is None and (await world.accounts()).get("REFUNDS") is None


async def test_who_declines_other_seats_has_the_money_back_at_once(world: PayingWorld) -> None:
    shown, payment_id = await world.begun("1A")
    await world.expire(shown)
    await world.paid("1A")
    await world.says(await world.takes(payment_id))
    body = await world.paying.decline_seats(world.payer(shown), payment_id)
    assert body["status"] in ("REFUNDING", "REFUNDED")
    assert (await world.payment(payment_id))["state"] == "REFUNDED"


async def test_money_for_a_trip_that_has_left_goes_back(world: PayingWorld) -> None:
    shown, payment_id = await world.begun("1A")
    await world.expire(shown)
    await world.run("update sale.trip_instance set departs_at = clock_timestamp() - interval '1 minute'")
    await world.says(await world.takes(payment_id))
    assert (await world.payment(payment_id))["state"] == "REFUNDED"
    assert await world.state(shown) == "REFUNDED"


async def test_who_pays_twice_because_the_first_payment_was_late_gets_one_of_them_back(world: PayingWorld) -> None:
    shown, first = await world.begun("1A")
    await world.run("update money.payment set deadline_at = clock_timestamp(), next_try_at = clock_timestamp()")
    await world.paying.reconcile()
    second = await world.begin(shown)
    await world.confirm(shown, second)
    await world.says(await world.takes(first))
    states = {(await world.payment(one))["state"] for one in (first, second)}
    assert states == {"CONFIRMED", "REFUNDED"}
    assert await world.state(shown) == "CONFIRMED"


async def test_too_little_money_is_no_ticket_and_goes_back(world: PayingWorld) -> None:
    shown, payment_id = await world.begun("1A")
    await world.takes(payment_id)
    await world.says([fact(payment_id, "CAPTURED", "less", PRICE - 1)])
    assert (await world.payment(payment_id))["state"] in ("REFUNDING", "REFUNDED")
    assert await world.state(shown) == "PENDING_PAYMENT"
    await world.confirm(shown, await world.begin(shown))
    assert await world.state(shown) == "CONFIRMED"


# ------------------------------------------------------------------------------------------------ refunds and chargebacks


async def test_a_refund_asked_for_twice_is_paid_once(world: PayingWorld) -> None:
    shown, payment_id = await world.paid("1A")
    key = world.key()
    first = await world.refund(shown, 20_000, key=key)
    second = await world.refund(shown, 20_000, key=key)
    assert (first.status, first.body["status"]) == (201, "DONE")
    assert (second.body["id"], second.replayed) == (first.body["id"], True)
    assert (await world.payment(payment_id))["refunded"] == 20_000
    assert await world.accounts() == {f"PROVIDER:{CARD}": -30_000, "PARTNER": 28_500, "COMMISSION": 1_500}


async def test_more_than_was_paid_is_never_refunded_however_many_ask_at_once(world: PayingWorld) -> None:
    shown, payment_id = await world.paid("1A")
    await refused("REFUND_TOO_MUCH", world.refund(shown, PRICE + 1))
    ended = await asyncio.gather(*(world.refund(shown, 20_000) for _ in range(8)), return_exceptions=True)
    assert sum(not isinstance(one, Exception) for one in ended) == 2
    row = await world.payment(payment_id)
    assert (row["refunded"], row["captured"]) == (40_000, PRICE)
    await refused("REFUND_TOO_MUCH", world.refund(shown, 10_001))


async def test_the_database_itself_refuses_a_refund_beyond_what_was_captured(world: PayingWorld) -> None:
    import asyncpg

    _, payment_id = await world.paid("1A")
    with pytest.raises(asyncpg.CheckViolationError):
        await world.run("update money.payment set refunded = captured + 1 where payment_id = $1", payment_id)


async def test_parts_of_a_refund_give_back_exactly_the_whole_commission(world: PayingWorld) -> None:
    shown, payment_id = await world.paid("1A")
    for amount in (1, 9_999, 3, 33_333, 6_664):
        await world.refund(shown, amount)
    assert await world.accounts() == {}
    assert (await world.payment(payment_id))["state"] == "REFUNDED"


async def test_a_refund_whose_provider_fails_once_is_sent_later(world: PayingWorld) -> None:
    shown, payment_id = await world.paid("1A", scenario="REFUND_FAILS_ONCE")
    assert (await world.refund(shown, PRICE)).body["status"] == "PENDING"
    assert (await world.accounts())["REFUNDS"] == PRICE
    await world.due()
    assert (await world.payment(payment_id))["state"] == "REFUNDED"


async def test_a_refund_whose_answer_was_lost_is_not_paid_twice(world: PayingWorld) -> None:
    shown, _ = await world.paid("1A", scenario="REFUND_TIMEOUT")
    assert (await world.refund(shown, 10_000)).body["status"] == "PENDING"
    await world.due()
    assert (await world.accounts())[f"PROVIDER:{CARD}"] == -40_000
    assert await world.value("select count(*) from money.refund where state = 'DONE'") == 1


async def test_a_cancelled_booking_becomes_refunded_when_its_money_is_back(world: PayingWorld) -> None:
    shown, _ = await world.paid("1A", scenario="REFUND_FAILS_ONCE")

    async def cancel(connection: Any) -> list[str]:
        ids = [row["booking_id"] for row in await connection.fetch("select * from booking.locked($1)", shown["lead"])]
        await connection.execute("select booking.move($1, 'CANCELLED', 'test', 'test')", ids)
        return await world.paying.plan_refund(connection, shown["lead"], None, "CANCELLED", "test", "test")

    [refund_id] = await world.pool.run("*", cancel)
    await world.paying.run_refund(refund_id)
    assert await world.state(shown) == "CANCELLED"
    await world.due()
    assert await world.state(shown) == "REFUNDED"


async def test_a_chargeback_takes_the_ticket_and_the_commission_back(world: PayingWorld) -> None:
    shown, payment_id = await world.paid("1A", scenario="CHARGEBACK")
    world.their_clock.ahead_ms = 5_000
    await world.deliver(CARD)
    assert (await world.payment(payment_id))["state"] == "CHARGED_BACK"
    assert await world.state(shown) == "REFUNDED"
    assert await world.value("select state from ticket.ticket where booking_id = $1", shown["lead"]) == "REVOKED"
    assert await world.accounts() == {}
    await refused("REFUND_TOO_MUCH", world.refund(shown, 1))


async def test_a_refund_racing_a_chargeback_gives_the_money_back_once(world: PayingWorld) -> None:
    """The refund is promised first, the bank is faster: the promise is covered by the chargeback."""
    shown, payment_id = await world.paid("1A", scenario="CHARGEBACK")
    async with world.pool.connection() as connection, connection.transaction():
        await connection.execute("select * from booking.locked($1)", shown["lead"])
        [refund_id] = await world.paying.plan_refund(connection, shown["lead"], None, "asked for", "test", "test")
    world.their_clock.ahead_ms = 5_000
    await asyncio.gather(world.deliver(CARD), world.paying.run_refund(refund_id))
    await world.due()
    assert await world.value("select state from money.refund") == "SUPERSEDED"
    row = await world.payment(payment_id)
    assert (row["refunded"], row["charged_back"]) == (0, PRICE)
    assert await world.accounts() == {}


async def test_a_chargeback_after_the_refund_has_left_takes_nothing_again(world: PayingWorld) -> None:
    shown, payment_id = await world.paid("1A", scenario="CHARGEBACK")
    await world.refund(shown, PRICE)
    world.their_clock.ahead_ms = 5_000
    await world.deliver(CARD)
    assert (await world.payment(payment_id))["state"] == "REFUNDED"
    assert await world.accounts() == {}


async def test_a_refund_made_at_the_provider_itself_is_taken_into_the_books(world: PayingWorld) -> None:
    shown, payment_id = await world.paid("1A")
    for _ in range(2):
        await world.says([fact(payment_id, "REFUNDED", "r1", 10_000, part="dashboard-1")])
    assert (await world.payment(payment_id))["refunded"] == 10_000
    assert (await world.accounts())[f"PROVIDER:{CARD}"] == -40_000
    assert await world.state(shown) == "CONFIRMED"


# ------------------------------------------------------------------------------------------------ cash


async def test_cash_goes_into_a_drawer_and_what_is_missing_is_booked(world: PayingWorld) -> None:
    shown = await world.booked("1A")

    async def sell(connection: Any) -> int:
        await connection.execute("select set_config('tp.partner', 'north', true)")
        await connection.execute("select money.open_drawer('north', 'd1', 'DZD', 10000, 'r')")
        ids = [row["booking_id"] for row in await connection.fetch("select * from booking.locked($1)", shown["lead"])]
        taken = await connection.fetchval("select money.take_cash($1, $2, 'd1', 'device:d1', 'r')", world.clock.uuid7(), shown["lead"])
        await connection.execute("select booking.move($1, 'CONFIRMED', 'device:d1', 'r')", ids)
        return int(taken)

    assert await world.pool.run("north", sell) == PRICE
    assert await world.value("select money.drawer('north', 'd1', 'DZD')") == PRICE + 10_000
    refund = await world.refund(shown, 10_000)
    assert refund.body["status"] == "AT_COUNTER"
    assert await world.value("select money.give_cash($1, 'd1', 'device:d1', 'r')", refund.body["id"]) == 10_000
    assert await world.value("select money.give_cash($1, 'd1', 'device:d1', 'r')", refund.body["id"]) == 0
    counted = await world.value("select money.count_drawer('north', 'd1', 'DZD', 49900, 'r')")
    assert counted == {"expected": PRICE, "counted": 49_900, "difference": -100}
    assert await world.value("select money.drawer('north', 'd1', 'DZD')") == 0


async def test_a_charge_that_never_reached_the_provider_is_made_when_it_is_confirmed(world: PayingWorld) -> None:
    shown, payment_id = await world.begun("1A")
    assert await world.value("select count(*) from simulator.charge") == 0
    assert (await world.confirm(shown, payment_id)).body["status"] == "CONFIRMED"
    again = await world.simulated[CARD].create(Charge(payment_id=payment_id, reference=shown["ref"], amount=Money(1, "DZD")))
    assert max(one.amount for one in again if one.kind == CAPTURED) == PRICE


async def test_a_refund_that_the_provider_never_takes_ends_as_a_case_for_people(world: PayingWorld) -> None:
    from engine.booking.payments import ProviderRefused

    class Closed(type(world.simulated[CARD])):  # type: ignore[misc]
        async def refund(self, payment_id: str, refund_id: str, amount: Money) -> list[Fact]:
            raise ProviderRefused("the account is closed")

    shown, _ = await world.paid("1A")
    card = world.simulated[CARD]
    worker = world.worker(**{CARD: Closed(CARD, card._memories, card._clock, card._secret)})
    key = world.key()
    assert (await world.refund(shown, PRICE, key=key, worker=worker)).body["status"] == "FAILED"
    assert await world.value("select kind from office.outbox where topic = 'system'") == "ALERT"
    assert (await world.accounts())["REFUNDS"] == PRICE, "it is still owed"
    assert (await world.refund(shown, PRICE, key=key)).replayed
    await world.due()
    assert await world.value("select state from money.refund") == "FAILED"


async def test_a_payment_that_was_begun_and_never_reached_anybody_fails_at_its_deadline_and_frees_its_key(world: PayingWorld) -> None:
    class Dead(type(world.simulated[MOBILE_MONEY])):  # type: ignore[misc]
        async def create(self, charge: Charge) -> list[Fact]:
            raise SystemError("killed")

    shown = await world.booked("1A")
    wallet = world.simulated[MOBILE_MONEY]
    worker = world.worker(**{MOBILE_MONEY: Dead(MOBILE_MONEY, wallet._memories, wallet._clock, wallet._secret)})
    key = world.key()
    with pytest.raises(SystemError):
        await worker.initiate(world.payer(shown), key, shown["ref"], MOBILE_MONEY)
    await world.run("update money.payment set deadline_at = clock_timestamp()")
    await world.due()
    assert await world.value("select state || ' ' || reason from money.payment") == "FAILED NO_ANSWER"
    again = await world.paying.initiate(world.payer(shown), key, shown["ref"], MOBILE_MONEY)
    assert again.status == 201
    await world.confirm(shown, again.body["id"])
    assert await world.state(shown) == "CONFIRMED"


async def test_an_abandoned_beginning_is_gone_on_with_by_the_same_request(world: PayingWorld) -> None:
    class Dead(type(world.simulated[MOBILE_MONEY])):  # type: ignore[misc]
        async def create(self, charge: Charge) -> list[Fact]:
            await super().create(charge)
            raise SystemError("killed")

    shown = await world.booked("1A")
    wallet = world.simulated[MOBILE_MONEY]
    worker = world.worker(**{MOBILE_MONEY: Dead(MOBILE_MONEY, wallet._memories, wallet._clock, wallet._secret)})
    key = world.key()
    with pytest.raises(SystemError):
        await worker.initiate(world.payer(shown), key, shown["ref"], MOBILE_MONEY)
    await world.run(
        "update office.idempotency set answer = answer || jsonb_build_object('until', clock_timestamp()) where answer ? 'until'"
    )
    again = await world.paying.initiate(world.payer(shown), key, shown["ref"], MOBILE_MONEY)
    assert again.body["status"] == "INITIATED"
    assert await world.value("select count(*) from money.payment") == 1
    assert await world.value("select count(*) from simulator.charge") == 1


async def test_a_booking_that_was_let_go_after_its_payment_failed_gets_late_money_back(world: PayingWorld) -> None:
    shown, payment_id = await world.begun("1A")
    await refused("PAYMENT_IN_PROGRESS", world.desk.release(world.payer(shown), world.key(), shown["lead"]))
    await world.says([fact(payment_id, "FAILED", "f1")])
    await world.desk.release(world.payer(shown), world.key(), shown["lead"])
    await world.says(await world.takes(payment_id))
    assert (await world.payment(payment_id))["state"] == "REFUNDED"
    assert await world.state(shown) == "RELEASED"
    assert await world.accounts() == {}


async def test_a_return_trip_is_paid_with_one_payment_and_refunded_over_both_ways(world: PayingWorld) -> None:
    from engine.booking.desk import Named

    back_id, _ = await world.trip()
    there = await world.hold("1A")
    guest = world.guest(there.token)
    back = await world.hold("2B", who=guest, trip=back_id)
    named = [Named(seat="1A", first_name="Amal", last_name="Kaci"), Named(seat="2B", first_name="Amal", last_name="Kaci")]
    shown, _ = await world.desk.book(guest, world.key(), [there.held.booking, back.held.booking], named, {"email": "a@example.org"})
    begun = await world.paying.initiate(world.guest(back.token), world.key(), shown["ref"], CARD)
    assert begun.body["amount"]["amount"] == 2 * PRICE
    await world.paying.confirm(guest, world.key(), begun.body["id"])
    assert await world.value("select array_agg(state) from booking.booking where lead_id = $1", shown["lead"]) == ["CONFIRMED", "CONFIRMED"]
    await world.refund(shown, PRICE)
    assert (await world.payment(begun.body["id"]))["refunded"] == PRICE


async def test_a_booking_that_costs_nothing_is_confirmed_without_a_posting(world: PayingWorld) -> None:
    shown = await world.booked("1A")
    await world.run("update booking.booking set total = 0 where lead_id = $1", shown["lead"])
    await world.confirm(shown, await world.begin(shown))
    assert await world.state(shown) == "CONFIRMED"
    assert await world.accounts() == {}
