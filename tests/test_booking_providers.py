"""The simulated providers: scripts of faults, what they remember, and that nothing is done twice. Their core needs no database."""

from __future__ import annotations

from typing import Any

import pytest

from engine.booking.money import Money
from engine.booking.payments import Charge, ProviderRefused, ProviderSilent, fold, read_webhook
from engine.booking.providers import (
    CARD,
    MOBILE_MONEY,
    SCENARIOS,
    THREE_DAYS_MS,
    Memory,
    Post,
    Simulated,
    captured,
    created,
    providers_of,
    refunded,
    scenario_of,
)
from engine.clock import ManualClock
from engine.errors import Invalid
from engine.settings import Settings
from tests.paying_world import PayingWorld

NOW_MS = 1_795_262_400_000
KEY = "a key of the tests that is long enough"


class Drawer:
    """Memories in memory: as the store, without a database."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], tuple[Any, int]] = {}
        self.posts: list[tuple[int, Post]] = []

    async def load(self, provider: str, key: str) -> tuple[Memory, int] | None:
        import msgspec

        found = self.kept.get((provider, key))
        return None if found is None else (msgspec.convert(found[0], Memory), found[1])

    def recall(self, provider: str, key: str) -> None:
        return None

    async def save(self, provider: str, memory: Memory, version: int, posts: list[Post]) -> bool:
        import msgspec

        if self.kept.get((provider, memory.key), (None, 0))[1] != version:
            return False
        self.kept[provider, memory.key] = (msgspec.to_builtins(memory), version + 1)
        self.posts += [(len(self.posts) + n, post) for n, post in enumerate(posts)]
        return True

    async def due(self, provider: str, now_ms: int, limit: int) -> list[tuple[int, Post]]:
        return sorted((one for one in self.posts if one[1].due_at_ms <= now_ms), key=lambda one: (one[1].due_at_ms, one[0]))[:limit]

    async def sent(self, delivery_ids: list[int]) -> None:
        self.posts = [one for one in self.posts if one[0] not in delivery_ids]


def charge(*scenario: str, amount: int = 500) -> Charge:
    return Charge(payment_id="p1", reference="K7MWXQ", amount=Money(amount, "DZD"), scenario=scenario)


def provider(name: str = CARD) -> tuple[Simulated, ManualClock, Drawer]:
    clock, drawer = ManualClock(NOW_MS), Drawer()
    return Simulated(name, drawer, clock, b"s" * 32, 1_000), clock, drawer


async def heard(simulated: Simulated) -> list[str]:
    """Kinds of the webhooks that are due now, in the order in which they come."""
    kinds: list[str] = []

    async def post(name: str, headers: dict[str, str], body: bytes) -> bool:
        kinds.extend(fact.kind for fact in simulated.parse_webhook(headers, body, simulated._clock.now_ms()))
        return True

    await simulated.deliver(post)
    return kinds


def test_a_script_is_read_in_any_case_and_unknown_words_are_refused() -> None:
    assert scenario_of("decline") == ("DECLINE",)
    assert scenario_of([" Chargeback ", "DUPLICATE_WEBHOOK"]) == ("CHARGEBACK", "DUPLICATE_WEBHOOK")
    assert scenario_of(None) == ()
    with pytest.raises(Invalid):
        scenario_of(["DECLINE", "EXPLODE"])


async def test_creating_and_capturing_twice_is_done_once() -> None:
    card, _, drawer = provider()
    for _ in range(2):
        await card.create(charge())
        assert fold(await card.capture("p1"), "DZD").captured == 500
    assert len(drawer.kept) == 1
    assert [fact.kind for fact in await card.fetch("p1")] == ["CREATED", "CAPTURED"]
    assert drawer.posts == [], "the answers of a card say it all"


async def test_what_was_never_created_cannot_be_captured() -> None:
    card, _, _ = provider()
    assert await card.fetch("p1") == []
    with pytest.raises(ProviderRefused) as caught:
        await card.capture("p1")
    assert caught.value.again


async def test_a_timeout_after_the_charge_has_charged() -> None:
    card, _, _ = provider()
    await card.create(charge("TIMEOUT_AFTER_CHARGE"))
    with pytest.raises(ProviderSilent):
        await card.capture("p1")
    assert fold(await card.fetch("p1"), "DZD").captured == 500
    assert fold(await card.capture("p1"), "DZD").captured == 500


async def test_a_wallet_is_silent_until_its_customer_has_answered() -> None:
    wallet, clock, _ = provider(MOBILE_MONEY)
    assert [fact.kind for fact in await wallet.create(charge())] == ["CREATED", "PENDING"]
    assert fold(await wallet.capture("p1"), "DZD").captured is None
    clock.advance(1_000)
    assert fold(await wallet.capture("p1"), "DZD").captured == 500
    assert await heard(wallet) == ["CREATED", "CAPTURED"]


async def test_three_days_late_is_three_days_late() -> None:
    wallet, clock, _ = provider(MOBILE_MONEY)
    await wallet.create(charge("THREE_DAYS_LATE"))
    assert await heard(wallet) == ["CREATED"]
    clock.advance(THREE_DAYS_MS)
    assert await heard(wallet) == []
    clock.advance(1_000)
    assert await heard(wallet) == ["CAPTURED"]


async def test_webhooks_come_twice_backwards_or_never_as_the_script_says() -> None:
    for script, wanted in (
        (("DUPLICATE_WEBHOOK",), ["CREATED", "CREATED", "CAPTURED", "CAPTURED"]),
        (("REORDERED_WEBHOOKS",), ["CAPTURED", "CREATED"]),
        (("MISSING_CALLBACK",), []),
        (("NO_ANSWER",), ["CREATED"]),
        (("DECLINE",), ["CREATED", "FAILED"]),
    ):
        wallet, clock, _ = provider(MOBILE_MONEY)
        await wallet.create(charge(*script))
        clock.advance(10_000)
        assert await heard(wallet) == wanted, script


async def test_a_webhook_that_is_not_accepted_is_posted_again() -> None:
    wallet, _, drawer = provider(MOBILE_MONEY)
    await wallet.create(charge())

    async def away(name: str, headers: dict[str, str], body: bytes) -> bool:
        assert read_webhook(body)
        return False

    assert await wallet.deliver(away) == 0
    assert len(drawer.posts) == 2


def test_a_refund_counts_once_for_its_id_and_never_beyond_what_is_there() -> None:
    memory = captured(CARD, created(CARD, charge(), "r", NOW_MS, 0).memory, NOW_MS).memory
    for _ in range(2):
        assert refunded(CARD, memory, "a", Money(300, "DZD"), NOW_MS).fault is None
    assert fold(memory.facts, "DZD").refunded == 300
    for amount in (Money(201, "DZD"), Money(1, "EUR")):
        fault = refunded(CARD, memory, "b", amount, NOW_MS).fault
        assert isinstance(fault, ProviderRefused) and not fault.again


def test_after_a_chargeback_nothing_is_refunded_and_a_refund_shrinks_what_can_be_disputed() -> None:
    memory = captured(CARD, created(CARD, charge("CHARGEBACK"), "r", NOW_MS, 0).memory, NOW_MS).memory
    assert refunded(CARD, memory, "a", Money(200, "DZD"), NOW_MS).fault is None
    later = NOW_MS + 5_000
    assert fold([one for one in memory.facts if one.at_ms <= later], "DZD").charged_back == 300
    fault = refunded(CARD, memory, "b", Money(100, "DZD"), later).fault
    assert isinstance(fault, ProviderRefused) and fault.covered


def test_every_scenario_has_a_line_in_the_module_that_plays_it() -> None:
    from engine.booking import providers

    assert all(word in (providers.__doc__ or "") for word in SCENARIOS)


def test_providers_are_chosen_by_settings() -> None:
    made = providers_of(Settings(), KEY, Drawer(), ManualClock(NOW_MS))
    assert list(made) == [CARD, MOBILE_MONEY]
    assert list(providers_of(Settings(payment_providers=CARD), KEY, Drawer(), ManualClock())) == [CARD]
    with pytest.raises(Invalid):
        providers_of(Settings(payment_providers="PAYPAL"), KEY, Drawer(), ManualClock())
    with pytest.raises(Invalid):
        providers_of(Settings(payment_webhook_secrets=f"{CARD}=short"), KEY, Drawer(), ManualClock())


async def test_a_provider_remembers_across_workers_and_an_old_memory_decides_nothing(database_url: str) -> None:
    world = await PayingWorld.make(database_url)
    here, there = world.provider(CARD), world.provider(CARD)
    await here.create(charge())
    await there.capture("p1")
    await there.refund("p1", "a", Money(500, "DZD"))
    with pytest.raises(ProviderRefused):
        await here.refund("p1", "b", Money(500, "DZD"))
    assert fold(await here.capture("p1"), "DZD").refunded == 500
    await world.close()
