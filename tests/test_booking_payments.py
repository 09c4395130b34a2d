"""What providers say and what follows from it, without any of them: the fold, signatures, card numbers, backoff."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.booking.payments import (
    RANKS,
    REPLAY_WINDOW_S,
    Fact,
    check_signature,
    fold,
    has_card_number,
    read_webhook,
    refuse_card_numbers,
    retry_after_s,
    signature,
    webhook_body,
    webhook_secret,
)
from engine.booking.refusals import Refused
from engine.errors import Invalid, MalformedBody, Unauthenticated
from tests.paying_world import PayingWorld

NOW_MS = 1_795_262_400_000


def fact(kind: str, event_id: str, amount: int = 100, **more: Any) -> Fact:
    about: dict[str, Any] = {"reference": "p", "provider_ref": "x", "currency": "DZD", "at_ms": NOW_MS}
    return Fact(kind=kind, event_id=event_id, amount=amount, **about | more)


FACTS = st.lists(
    st.builds(
        fact,
        st.sampled_from(sorted(RANKS)),
        st.integers(0, 12).map(lambda n: f"e{n:02}"),
        st.integers(0, 1000),
        part=st.sampled_from(["a", "b"]),
        reason=st.sampled_from([None, "DECLINED", "TIMEOUT"]),
        currency=st.sampled_from(["DZD", "DZD", "DZD", "EUR"]),
    ),
    unique_by=lambda one: one.event_id,
    max_size=10,
)


@given(FACTS, st.randoms(use_true_random=False))
def test_the_fold_is_the_same_in_every_order_and_with_every_repetition(facts: list[Fact], chance: random.Random) -> None:
    again = [*facts, *chance.choices(facts, k=3)] if facts else []
    chance.shuffle(again)
    assert fold(again, "DZD") == fold(facts, "DZD")


def test_money_outranks_a_report_of_failure_whichever_came_first() -> None:
    for facts in ([fact("FAILED", "1"), fact("CAPTURED", "2")], [fact("CAPTURED", "2"), fact("FAILED", "1")]):
        folded = fold(facts, "DZD")
        assert (folded.top, folded.captured) == ("CAPTURED", 100)


def test_a_capture_counts_once_and_refunds_once_for_each_part() -> None:
    facts = [fact("CAPTURED", "1"), fact("CAPTURED", "2"), fact("REFUNDED", "3", 30, part="a"), fact("REFUNDED", "4", 30, part="a")]
    folded = fold([*facts, fact("REFUNDED", "5", 20, part="b")], "DZD")
    assert (folded.captured, folded.refunded) == (100, 50)


def test_money_of_another_currency_is_no_money_of_this_payment() -> None:
    assert fold([fact("CAPTURED", "1", currency="EUR")], "DZD").captured is None


@pytest.fixture
async def world(database_url: str) -> AsyncIterator[PayingWorld]:
    world = await PayingWorld.make(database_url)
    yield world
    await world.close()


async def test_the_database_ranks_facts_as_this_table_does(world: PayingWorld) -> None:
    ranked = {kind: await world.value("select money.rank($1)", kind) for kind in RANKS}
    assert sorted(ranked, key=ranked.__getitem__) == sorted(RANKS, key=RANKS.__getitem__)
    assert await world.value("select money.rank('PAID')") is None


async def test_the_database_folds_as_this_module_does_in_any_order(world: PayingWorld) -> None:
    chance = random.Random(7)
    for seat in ("1A", "1B", "1C", "2A", "2B", "2C"):
        shown, payment_id = await world.begun(seat)
        kinds = [("FAILED", 50_000), ("CAPTURED", 50_000), ("AUTHORIZED", 50_000), ("REFUNDED", 10_000), ("CAPTURED", 50_000)]
        facts = [
            fact(kind, f"{seat}{n}", amount, reference=payment_id, part="r" if kind == "REFUNDED" else None)
            for n, (kind, amount) in enumerate(kinds)
        ]
        chance.shuffle(facts)
        for one in facts:
            await world.says([one])
        row, folded = await world.payment(payment_id), fold(facts, "DZD")
        assert (row["captured"], row["refunded"]) == (folded.captured, folded.refunded), [one.kind for one in facts]
        assert await world.state(shown) == "CONFIRMED"
    await world.sound()


# ------------------------------------------------------------------------------------------------ signatures


def test_a_signature_holds_for_its_body_its_time_and_its_provider_only() -> None:
    secret, body = webhook_secret("k" * 40, "A"), b'{"events":[]}'
    good = signature(secret, body, NOW_MS)
    check_signature(secret, good, body, NOW_MS + (REPLAY_WINDOW_S - 1) * 1000)
    check_signature(secret, good, body, NOW_MS - (REPLAY_WINDOW_S - 1) * 1000)
    wrong = [
        (secret, good, body + b" ", NOW_MS),
        (webhook_secret("k" * 40, "B"), good, body, NOW_MS),
        (secret, good, body, NOW_MS + (REPLAY_WINDOW_S + 2) * 1000),
        (secret, good, body, NOW_MS - (REPLAY_WINDOW_S + 2) * 1000),
        (secret, good.replace("t=1", "t=2"), body, NOW_MS),
        (secret, None, body, NOW_MS),
        (secret, "t=1,v1=", body, NOW_MS),
        (secret, "v1=" + good, body, NOW_MS),
    ]
    for key, header, sent, now_ms in wrong:
        with pytest.raises(Unauthenticated):
            check_signature(key, header, sent, now_ms)


@given(st.integers(0, 200), st.integers(0, 7))
def test_a_signed_body_with_any_bit_turned_is_refused(place: int, bit: int) -> None:
    body = webhook_body([fact("CAPTURED", "1")])
    header = signature(b"s" * 32, body, NOW_MS)
    turned = bytearray(body)
    turned[place % len(body)] ^= 1 << bit
    with pytest.raises(Unauthenticated):
        check_signature(b"s" * 32, header, bytes(turned), NOW_MS)


def test_a_webhook_reads_as_it_was_written_and_nothing_else_reads() -> None:
    facts = [fact("CAPTURED", "1"), fact("REFUNDED", "2", part="r")]
    assert read_webhook(webhook_body(facts)) == facts
    with pytest.raises(MalformedBody):
        read_webhook(b"{")
    with pytest.raises(Invalid):
        read_webhook(b'{"events":[{"kind":"CAPTURED"}]}')
    for wrong in (
        fact("PAID", "1"),
        fact("CAPTURED", ""),
        fact("CAPTURED", "1", -1),
        fact("CAPTURED", "1", at_ms=-5),
        fact("CAPTURED", "1", 2**62),
    ):
        with pytest.raises(Invalid):
            read_webhook(webhook_body([wrong]))
    with pytest.raises(Invalid):
        read_webhook(webhook_body([fact("CAPTURED", str(n)) for n in range(101)]))


# ------------------------------------------------------------------------------------------------ card numbers

CARDS = ("4111111111111111", "5500005555555559", "378282246310005", "6011000990139424", "30569309025904", "4222222222222")


@pytest.mark.parametrize("number", CARDS)
def test_a_card_number_is_found_wherever_it_hides(number: str) -> None:
    spaced = " ".join(number[n : n + 4] for n in range(0, len(number), 4))
    for body in (number, spaced, spaced.replace(" ", "-"), int(number), {"a": [{"b": f"card {number}, thanks"}]}, {number: 1}):
        assert has_card_number(body), body


def test_what_is_no_card_number_is_let_through() -> None:
    for body in (
        "0195c0de-0001-7000-8000-000000000001", "4111111111111112", "12345", 123456789012, "K7MWXQ", None, True, 1.5,
        "2026-11-21T06:00:00Z", "+213 555 12 34 56", {"amount": 4_111_111_111},
    ):  # fmt: skip
        assert not has_card_number(body), body


@given(st.uuids())
def test_an_id_is_never_taken_for_a_card_number(one: Any) -> None:
    assert not has_card_number({"paymentId": str(one), "text": f"see {one}."})


def test_a_refusal_of_a_card_number_does_not_say_it() -> None:
    with pytest.raises(Refused) as caught:
        refuse_card_numbers(b'{"number":"4111111111111111"}')
    assert "4111" not in str(caught.value) and caught.value.code == "CARD_NUMBER_REFUSED"
    refuse_card_numbers(b"")
    refuse_card_numbers(b"not json 4111111111111111")


def test_the_pause_between_looks_grows_to_an_hour() -> None:
    assert [retry_after_s(n) for n in (0, 1, 2, 3)] == [5, 10, 20, 40]
    assert retry_after_s(9) == 2560 and retry_after_s(500) == 3600
