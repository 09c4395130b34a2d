"""Payments as data: what a provider can say (facts), what follows from all it said (the fold), and what a provider has to be able to do.

A fact is stored once (provider, event id). The state of a payment is a fold over its facts by rank, not by arrival: however they are ordered
and however often they come, the same facts give the same state. A capture counts once; refunds and chargebacks count once for each part.
The database folds the same way in the transaction that acts on it (`money.settle`); a test compares the two.

Pure but for `Provider`, whose calls go out to whoever takes the money: the seam for real ones. A provider answers every call with facts, has a
memory of its own, and does nothing twice for one key (the payment's id, a refund's id).
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

import msgspec

from engine.booking.money import Money
from engine.booking.refusals import Refused
from engine.errors import EngineError, Invalid, MalformedBody, Unauthenticated

# kinds of facts -> rank: of two, the one of higher rank says what the payment is
CREATED, PENDING, AUTHORIZED, FAILED, CAPTURED, REFUNDED, CHARGED_BACK = (
    "CREATED", "PENDING", "AUTHORIZED", "FAILED", "CAPTURED", "REFUNDED", "CHARGED_BACK",
)  # fmt: skip
RANKS: Final = {kind: rank for rank, kind in enumerate((CREATED, PENDING, AUTHORIZED, FAILED, CAPTURED, REFUNDED, CHARGED_BACK))}

SIGNATURE: Final = "webhook-signature"  # header: t=<unix seconds>,v1=<hex HMAC-SHA256 of "<t>.<body>">
REPLAY_WINDOW_S: Final = 300
FACTS_MOST: Final = 100  # of one webhook
BACKOFF_FIRST_S: Final = 5
BACKOFF_MOST_S: Final = 3_600

_SIGNATURE: Final = re.compile(r"t=(\d{1,12}),v1=([0-9a-f]{64})")
UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_DIGITS: Final = re.compile(r"(?<![0-9A-Za-z])\d(?:[ -]?\d){12,18}(?![0-9A-Za-z])")


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a provider says happened. `part`: of a refund our refund's id, of a chargeback the dispute's; None else."""

    event_id: str
    reference: str  # the payment's id, as we gave it
    provider_ref: str | None
    kind: str
    amount: int
    currency: str
    at_ms: int
    part: str | None = None
    reason: str | None = None


class Folded(msgspec.Struct, frozen=True):
    """What all facts of a payment say. `captured` None: no money came."""

    top: str | None
    captured: int | None
    refunded: int
    charged_back: int
    reason: str | None  # of a failure


def fold(facts: Iterable[Fact], currency: str) -> Folded:
    """Facts in any order, any number of times. Money of another currency is no money of this payment."""
    once = sorted({fact.event_id: fact for fact in facts if fact.currency == currency and fact.kind in RANKS}.values(), key=_event)
    if not once:
        return Folded(None, None, 0, 0, None)
    failures = sorted(fact.reason for fact in once if fact.kind == FAILED and fact.reason is not None)
    captures = [fact.amount for fact in once if fact.kind == CAPTURED]
    return Folded(
        top=max(once, key=lambda fact: RANKS[fact.kind]).kind,
        captured=max(captures) if captures else None,
        refunded=_by_part(once, REFUNDED),
        charged_back=_by_part(once, CHARGED_BACK),
        reason=failures[0] if failures else None,
    )


def _event(fact: Fact) -> str:
    return fact.event_id


def _by_part(facts: Iterable[Fact], kind: str) -> int:
    parts: dict[str | None, int] = {}
    for fact in facts:
        if fact.kind == kind:
            parts.setdefault(fact.part, fact.amount)
    return sum(parts.values())


# ------------------------------------------------------------------------------------------------ providers


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be paid. `payment_id` is the key by which the provider knows it again."""

    payment_id: str
    reference: str  # of the booking, for the customer's statement
    amount: Money
    scenario: tuple[str, ...] = ()  # faults to play: of simulated providers only


class ProviderSilent(EngineError):
    """The provider did not answer in time: it may have done what we asked, or not."""

    code, status, retryable = "PROVIDER_SILENT", 503, True


class ProviderRefused(EngineError):
    """The provider will not do it. `again`: later it may; `covered`: the customer's bank has taken the money back already."""

    code, status = "PROVIDER_REFUSED", 502

    def __init__(self, detail: str, *, again: bool = False, covered: bool = False) -> None:
        super().__init__(detail)
        self.again, self.covered = again, covered


class Provider(Protocol):
    """Whoever takes the money. Every call may raise `ProviderSilent`; none does its work twice for one key."""

    name: str
    prepares: bool  # a charge has to be made before its customer can pay (a wallet asks them on the phone); False: capture makes it

    async def create(self, charge: Charge) -> list[Fact]:
        """A charge is prepared; of a mobile wallet, the customer is asked on the phone."""
        ...

    async def fetch(self, payment_id: str) -> list[Fact]:
        """All it knows of a payment; nothing: it has never heard of it."""
        ...

    async def capture(self, payment_id: str, charge: Charge | None = None) -> list[Fact]:
        """The money is taken: CAPTURED, FAILED, or what is known while the customer has not answered yet. `charge`: what to make first
        where the provider has not heard of it; without it that raises `ProviderRefused`."""
        ...

    async def refund(self, payment_id: str, refund_id: str, amount: Money) -> list[Fact]:
        """REFUNDED with the refund's id as its part. Raises `ProviderRefused`."""
        ...

    def parse_webhook(self, headers: Mapping[str, str], body: bytes, now_ms: int) -> list[Fact]:
        """Facts of a webhook, its signature checked first. Raises `Unauthenticated`, `MalformedBody`, `Invalid`."""
        ...


def retry_after_s(tries: int) -> int:
    """Seconds to the next look at something that did not end: 5, 10, 20 ... at most an hour."""
    return int(min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2 ** min(tries, 12)))


# ------------------------------------------------------------------------------------------------ webhooks


def webhook_secret(secret_key: str, provider: str) -> bytes:
    """The secret of a provider that has none of its own set: of the product's key, one for each."""
    return hmac.digest(secret_key.encode(), b"webhook:" + provider.encode(), "sha256")


def signature(secret: bytes, body: bytes, now_ms: int) -> str:
    """The header of a webhook sent now."""
    t = now_ms // 1000
    return f"t={t},v1={hmac.new(secret, f'{t}.'.encode() + body, hashlib.sha256).hexdigest()}"


def check_signature(secret: bytes, header: str | None, body: bytes, now_ms: int) -> None:
    """Raises `Unauthenticated` for a signature that is missing, forged, or older or newer than the replay window."""
    found = _SIGNATURE.fullmatch(header or "")
    if found is None:
        raise Unauthenticated(f"a webhook carries {SIGNATURE}: t=<unix seconds>,v1=<hex HMAC-SHA256>")
    expected = hmac.new(secret, f"{found[1]}.".encode() + body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected, found[2]):
        raise Unauthenticated("the webhook's signature does not hold")
    if abs(now_ms // 1000 - int(found[1])) > REPLAY_WINDOW_S:
        raise Unauthenticated(f"the webhook was signed more than {REPLAY_WINDOW_S} s away from now")


class _Post(msgspec.Struct, frozen=True):
    events: list[Fact]


def webhook_body(facts: list[Fact]) -> bytes:
    """What the simulated providers post."""
    return msgspec.json.encode(_Post(facts))


def read_webhook(body: bytes) -> list[Fact]:
    """Facts of a body whose signature held. Raises `MalformedBody`, `Invalid`."""
    try:
        facts = msgspec.json.decode(body, type=_Post).events
    except msgspec.ValidationError as fault:
        raise Invalid(f"the webhook's events do not read: {fault}") from fault
    except (msgspec.DecodeError, RecursionError) as fault:
        raise MalformedBody("the webhook does not parse as JSON") from fault
    if len(facts) > FACTS_MOST:
        raise Invalid(f"a webhook has at most {FACTS_MOST} events")
    for fact in facts:
        if fact.kind not in RANKS or not 0 <= fact.amount < 2**62 or not 0 < len(fact.event_id) <= 200 or len(fact.reference) > 200:
            raise Invalid("an event of the webhook has an unknown kind, or a number or a text beyond its limits")
        if not 0 <= fact.at_ms < 4_102_444_800_000:
            raise Invalid("an event of the webhook happened at no time of this century")
    return facts


# ------------------------------------------------------------------------------------------------ card numbers


def _luhn(digits: str) -> bool:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def has_card_number(value: Any) -> bool:
    """Whether anything in a JSON value reads like a card number: 13 to 19 digits, spaces or hyphens between them, that pass Luhn's check
    (ISO/IEC 7812-1). UUIDs are not looked into."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            waiting += one
        elif (isinstance(one, int) and not isinstance(one, bool)) or isinstance(one, str):
            for found in _DIGITS.finditer(UUID.sub(" x ", str(one))):
                if _luhn(re.sub(r"[ -]", "", found[0])):
                    return True
    return False


def refuse_card_numbers(body: bytes) -> None:
    """Raises `Refused` CARD_NUMBER_REFUSED, which says nothing of what was found. A body that does not parse is the decoder's business."""
    try:
        value = msgspec.json.decode(body) if body else None
    except (msgspec.DecodeError, RecursionError):
        return
    if has_card_number(value):
        raise Refused(
            "CARD_NUMBER_REFUSED", "the body has something like a card number in it; card data goes to the payment provider, never here"
        )
