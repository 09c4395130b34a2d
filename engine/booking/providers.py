"""Simulated payment providers: they behave like real ones, faults included, and remember what they did apart from everything of ours.

SIMULATED_CARD takes the money when it is asked to (capture) and says so in its answer; it posts webhooks only for scripted payments, and has
not heard of a payment before.
SIMULATED_MOBILE_MONEY asks the customer on the phone, takes the money when they agree, and says so by webhook.

`scenario` of a payment scripts the faults (one word or several):

    DECLINE, INSUFFICIENT_FUNDS   the money is refused
    TIMEOUT_AFTER_CHARGE          the money is taken and the answer lost, once
    DUPLICATE_WEBHOOK             every webhook comes twice
    REORDERED_WEBHOOKS            webhooks come newest first
    THREE_DAYS_LATE               the money moves three days later
    MISSING_CALLBACK              no webhook ever; only fetch tells
    NO_ANSWER                     the customer never answers
    CHARGEBACK                    the customer's bank takes the money back soon after
    REFUND_FAILS_ONCE             the first try of a refund is refused
    REFUND_TIMEOUT                the first refund is paid and the answer lost

The core is pure: a `Memory` is everything a provider knows of one payment, with what will happen later already in it (`at_ms` ahead of now);
each call is a function from memory to memory. `Simulated` is the shell around it and a store (engine/store/simulator.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, Protocol

import msgspec

from engine.booking import payments
from engine.booking.money import Money
from engine.booking.payments import (
    CAPTURED,
    CHARGED_BACK,
    CREATED,
    FAILED,
    PENDING,
    REFUNDED,
    Charge,
    Fact,
    ProviderRefused,
    ProviderSilent,
)
from engine.clock import Clock
from engine.errors import EngineError, Invalid
from engine.settings import Settings

log = logging.getLogger(__name__)

CARD, MOBILE_MONEY = "SIMULATED_CARD", "SIMULATED_MOBILE_MONEY"
NAMES: Final = (CARD, MOBILE_MONEY)
SCENARIOS: Final = frozenset(
    {
        "DECLINE", "INSUFFICIENT_FUNDS", "TIMEOUT_AFTER_CHARGE", "DUPLICATE_WEBHOOK", "REORDERED_WEBHOOKS", "THREE_DAYS_LATE",
        "MISSING_CALLBACK", "NO_ANSWER", "CHARGEBACK", "REFUND_FAILS_ONCE", "REFUND_TIMEOUT",
    }
)  # fmt: skip
THREE_DAYS_MS: Final = 3 * 86_400_000
CHARGEBACK_MS: Final = 1_000  # after the money
REORDER_MS: Final = 400  # the newest webhook of a payment comes first, each older one so much later
SAVES: Final = 20  # tries of a change that others overtake
DELIVER_S: Final = 0.2  # pause between two looks for webhooks to post

Poster = Callable[[str, dict[str, str], bytes], Awaitable[bool]]  # (provider, headers, body) -> accepted


class Memory(msgspec.Struct, kw_only=True):
    """What a provider knows of one payment, and what is going to happen."""

    key: str
    ref: str
    amount: int
    currency: str
    scenario: list[str]
    facts: list[Fact]
    played: list[str] = []  # faults that come once and have


class Post(msgspec.Struct, frozen=True):
    """A webhook to be sent: one event of a payment."""

    due_at_ms: int
    key: str
    event_id: str


class Step(msgspec.Struct):
    """What a call did: memory as it now is, webhooks to come, what happened, and the fault to raise after it is stored."""

    memory: Memory
    posts: list[Post]
    happened: list[Fact] = []
    fault: Exception | None = None


def scenario_of(given: str | list[str] | None) -> tuple[str, ...]:
    """Words of a script. Raises `Invalid` for one that nobody can play."""
    words = [given] if isinstance(given, str) else list(given or ())
    named = tuple(word.strip().upper() for word in words)
    unknown = [word for word in named if word not in SCENARIOS]
    if unknown:
        raise Invalid(
            f"no scenario {unknown[0][:40]!r}; there are {', '.join(sorted(SCENARIOS))}",
            errors=[{"pointer": "/scenario", "code": "UNKNOWN_SCENARIO", "detail": "see the list"}],
        )
    return named


def created(provider: str, charge: Charge, ref: str, now_ms: int, answer_ms: int) -> Step:
    """A charge is prepared. A wallet's customer is asked, and will have answered in `answer_ms`."""
    memory = Memory(
        key=charge.payment_id,
        ref=ref,
        amount=charge.amount.amount,
        currency=charge.amount.currency,
        scenario=list(charge.scenario),
        facts=[],
    )
    happened = [_add(memory, CREATED, now_ms)]
    if provider == MOBILE_MONEY:
        happened.append(_add(memory, PENDING, now_ms))
        happened += _outcome(memory, now_ms + answer_ms)
    step = Step(memory, _posts(provider, memory, happened), happened)
    if provider == MOBILE_MONEY and _plays_once(memory, "TIMEOUT_AFTER_CHARGE"):
        step.fault = ProviderSilent("the provider did not answer in time")
    return step


def captured(provider: str, memory: Memory, now_ms: int) -> Step:
    """The money of a card is taken; what was decided once stays. A wallet's customer decides alone."""
    happened: list[Fact] = []
    if provider == CARD and not any(fact.kind in (CAPTURED, FAILED) for fact in memory.facts):
        happened = _outcome(memory, now_ms)
    step = Step(memory, _posts(provider, memory, happened), happened)
    if happened and _plays_once(memory, "TIMEOUT_AFTER_CHARGE"):
        step.fault = ProviderSilent("the provider did not answer in time")
    return step


def refunded(provider: str, memory: Memory, refund_id: str, amount: Money, now_ms: int) -> Step:
    """Money goes back, once for a refund's id."""
    if any(fact.kind == REFUNDED and fact.part == refund_id for fact in memory.facts):
        return Step(memory, [])
    if _plays_once(memory, "REFUND_FAILS_ONCE"):
        return Step(memory, [], fault=ProviderRefused("the provider cannot refund right now", again=True))
    now = [fact for fact in memory.facts if fact.at_ms <= now_ms]
    folded = payments.fold(now, memory.currency)
    if folded.charged_back:
        return Step(memory, [], fault=ProviderRefused("the customer's bank has taken this money back", covered=True))
    left = (folded.captured or 0) - folded.refunded
    if amount.currency != memory.currency or amount.amount > left:
        return Step(memory, [], fault=ProviderRefused(f"of this payment {left} is left to refund"))
    happened = [_add(memory, REFUNDED, now_ms, amount=amount.amount, part=refund_id)]
    memory.facts = [  # a dispute that is still to come is about what is left
        msgspec.structs.replace(fact, amount=min(fact.amount, left - amount.amount)) if fact.kind == CHARGED_BACK else fact
        for fact in memory.facts
        if fact.kind != CHARGED_BACK or left > amount.amount
    ]
    step = Step(memory, _posts(provider, memory, happened), happened)
    if _plays_once(memory, "REFUND_TIMEOUT"):
        step.fault = ProviderSilent("the provider did not answer in time")
    return step


def _outcome(memory: Memory, at_ms: int) -> list[Fact]:
    """How it ends, if it does."""
    if "NO_ANSWER" in memory.scenario:
        return []
    if "THREE_DAYS_LATE" in memory.scenario:
        at_ms += THREE_DAYS_MS
    if "DECLINE" in memory.scenario:
        return [_add(memory, FAILED, at_ms, reason="DECLINED")]
    if "INSUFFICIENT_FUNDS" in memory.scenario:
        return [_add(memory, FAILED, at_ms, reason="INSUFFICIENT_FUNDS")]
    happened = [_add(memory, CAPTURED, at_ms)]
    if "CHARGEBACK" in memory.scenario and memory.amount:
        happened.append(_add(memory, CHARGED_BACK, at_ms + CHARGEBACK_MS, part=f"dispute-{memory.ref}", reason="DISPUTED"))
    return happened


def _add(memory: Memory, kind: str, at_ms: int, *, amount: int | None = None, part: str | None = None, reason: str | None = None) -> Fact:
    fact = Fact(
        event_id=f"{memory.ref}-{kind.lower()}" + (f"-{part}" if kind == REFUNDED else ""),
        reference=memory.key,
        provider_ref=memory.ref,
        kind=kind,
        amount=memory.amount if amount is None else amount,
        currency=memory.currency,
        at_ms=at_ms,
        part=part,
        reason=reason,
    )
    memory.facts.append(fact)
    return fact


def _plays_once(memory: Memory, fault: str) -> bool:
    if fault not in memory.scenario or fault in memory.played:
        return False
    memory.played.append(fault)
    return True


def _posts(provider: str, memory: Memory, happened: list[Fact]) -> list[Post]:
    if "MISSING_CALLBACK" in memory.scenario or (provider == CARD and not memory.scenario):
        return []
    posts = [Post(fact.at_ms, memory.key, fact.event_id) for fact in happened if fact.kind != PENDING]
    if "REORDERED_WEBHOOKS" in memory.scenario and posts:
        last = max(post.due_at_ms for post in posts)
        posts = [Post(last + REORDER_MS * n, post.key, post.event_id) for n, post in enumerate(reversed(posts))]
    return posts * 2 if "DUPLICATE_WEBHOOK" in memory.scenario else posts


# ------------------------------------------------------------------------------------------------ the shell


class Memories(Protocol):
    """Where providers remember: transactions of its own (engine/store/simulator.py)."""

    async def load(self, provider: str, key: str) -> tuple[Memory, int] | None: ...

    def recall(self, provider: str, key: str) -> tuple[Memory, int] | None:
        """The memory as this process stored it last, which may be old; None: load it."""
        ...

    async def save(self, provider: str, memory: Memory, version: int, posts: list[Post]) -> bool:
        """False: somebody else has changed it since `version` (0: it was made meanwhile)."""
        ...

    async def due(self, provider: str, now_ms: int, limit: int) -> list[tuple[int, Post]]:
        """Webhooks to be posted now; each comes again a while later unless it is `sent`."""
        ...

    async def sent(self, delivery_ids: list[int]) -> None: ...


class Simulated:
    """A `Provider` that is nobody. `answer_ms`: how long a wallet's customer takes."""

    def __init__(self, name: str, memories: Memories, clock: Clock, secret: bytes, answer_ms: int = 1_000) -> None:
        if name not in NAMES:
            raise Invalid(f"no payment provider {name!r}; there are {', '.join(NAMES)}")
        self.name, self._memories, self._clock, self._secret, self._answer_ms = name, memories, clock, secret, answer_ms
        self.prepares = name == MOBILE_MONEY

    def _created(self, charge: Charge, now_ms: int) -> Step:
        return created(self.name, charge, self._clock.token(9), now_ms, self._answer_ms)

    async def create(self, charge: Charge) -> list[Fact]:
        now_ms = self._clock.now_ms()
        step = self._created(charge, now_ms)
        if not await self._memories.save(self.name, step.memory, 0, step.posts):
            return await self.fetch(charge.payment_id)
        if step.fault is not None:
            raise step.fault
        return _until(step.memory, now_ms)

    async def fetch(self, payment_id: str) -> list[Fact]:
        found = await self._memories.load(self.name, payment_id)
        return [] if found is None else _until(found[0], self._clock.now_ms())

    async def capture(self, payment_id: str, charge: Charge | None = None) -> list[Fact]:
        return await self._change(payment_id, lambda memory, now_ms: captured(self.name, memory, now_ms), charge)

    async def refund(self, payment_id: str, refund_id: str, amount: Money) -> list[Fact]:
        return await self._change(payment_id, lambda memory, now_ms: refunded(self.name, memory, refund_id, amount, now_ms))

    def parse_webhook(self, headers: Mapping[str, str], body: bytes, now_ms: int) -> list[Fact]:
        payments.check_signature(self._secret, headers.get(payments.SIGNATURE), body, now_ms)
        return payments.read_webhook(body)

    async def deliver(self, post: Poster, limit: int = 50) -> int:
        """Posts the webhooks that are due: `post(provider, headers, body) -> accepted`. How many were accepted."""
        now_ms = self._clock.now_ms()
        done = []
        for delivery_id, due in await self._memories.due(self.name, now_ms, limit):
            found = await self._memories.load(self.name, due.key)
            facts = [fact for fact in found[0].facts if fact.event_id == due.event_id] if found is not None else []
            body = payments.webhook_body(facts)
            if not facts or await post(self.name, {payments.SIGNATURE: payments.signature(self._secret, body, now_ms)}, body):
                done.append(delivery_id)
        await self._memories.sent(done)
        return len(done)

    async def _change(self, payment_id: str, step_of: Callable[[Memory, int], Step], charge: Charge | None = None) -> list[Fact]:
        kept = self._memories.recall(self.name, payment_id)
        new = kept is None and charge is not None and not self.prepares  # as a rule; if not, what is stored decides
        for _ in range(SAVES):
            now_ms = self._clock.now_ms()
            found = None if new else kept or await self._memories.load(self.name, payment_id)
            made: Step | None = None
            if found is None:
                if charge is None:
                    raise ProviderRefused("the provider has never heard of this payment", again=True)
                made = self._created(charge, now_ms)
                found = made.memory, 0
            memory, version = found
            before = b"" if made is not None else msgspec.json.encode(memory)
            step = step_of(memory, now_ms)
            posts, happened = (step.posts, step.happened) if made is None else (made.posts + step.posts, made.happened + step.happened)
            same = msgspec.json.encode(step.memory) == before
            if (same and kept is None) or (not same and await self._memories.save(self.name, step.memory, version, posts)):
                fault = step.fault or (made.fault if made is not None else None)
                if fault is not None:
                    raise fault
                return [fact for fact in happened if fact.at_ms <= now_ms] or _until(step.memory, now_ms)
            kept, new = None, False  # an old memory, or somebody else was first: what is stored decides
        raise ProviderSilent("the provider is busy with this payment")


def _until(memory: Memory, now_ms: int) -> list[Fact]:
    return [fact for fact in memory.facts if fact.at_ms <= now_ms]


def providers_of(settings: Settings, secret_key: str, memories: Memories, clock: Clock) -> dict[str, Simulated]:
    """The providers that settings name, each with its webhook secret. Raises `Invalid` for an unknown one, and for a secret too short."""
    given = {}
    for pair in filter(None, (part.strip() for part in settings.payment_webhook_secrets.split(","))):
        name, _, secret = pair.partition("=")
        if len(secret) < 32:
            raise Invalid(f"PAYMENT_WEBHOOK_SECRETS: the secret of {name[:40]!r} needs at least 32 characters")
        given[name] = secret.encode()
    names = [name.strip() for name in settings.payment_providers.split(",") if name.strip()]
    return {
        name: Simulated(name, memories, clock, given.get(name) or payments.webhook_secret(secret_key, name), settings.simulator_answer_ms)
        for name in names
    }


async def deliver_for_ever(providers: Iterable[Simulated], post: Poster) -> None:
    """What the simulated providers do by themselves: post their webhooks, and post again what was not accepted."""
    while True:
        count = 0
        for provider in providers:
            try:
                count += await provider.deliver(post)
            except EngineError as fault:
                log.warning("webhooks of %s are posted later: %s", provider.name, fault.detail)
        await asyncio.sleep(0 if count else DELIVER_S)
