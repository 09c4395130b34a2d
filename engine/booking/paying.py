"""Payments in motion: a provider is asked between two transactions, and whoever dies between them is finished by the reconciler.

    initiate   money.initiate (and for who asks the customer first: -> provider.create -> money.prepared)
    confirm    money.begin_confirm -> provider.capture -> money.settle (booking, claims, tickets, ledger, events: one transaction)
    refund     money.ask_refund or money.plan_refund -> provider.refund -> money.settle
    webhook    signature -> money.settle; a payment that nobody knows: kept (money.hear)

Promises: every step may be asked again with the same key and does its work once; money that came is a seat or is on its way back; a fault of
a provider never undoes what is known. Money that comes after a booking has expired gets its seats again where they are free, else the
customer is offered others until a deadline, else it goes back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from typing import Any, Final, TypeVar

from engine.booking import payments
from engine.booking.callers import DESK_ROLES, Caller
from engine.booking.catalogue import Catalogue, SoldTrip
from engine.booking.money import Money
from engine.booking.payments import AUTHORIZED, CREATED, PENDING, Charge, Fact, Provider, ProviderRefused, ProviderSilent
from engine.booking.refusals import Refused
from engine.clock import Clock
from engine.errors import EngineError, Invalid, NotFound
from engine.meter import Meter
from engine.settings import Settings
from engine.store.desk import Answer, Key, in_progress, key_reused
from engine.store.payments import DuePayment, Payments

log = logging.getLogger(__name__)

T = TypeVar("T")
SYSTEM: Final = "system"
PREPARED: Final = frozenset({CREATED, PENDING, AUTHORIZED})  # facts that are not about money yet
EVERYBODY: Final = {"all": True}  # whose bookings the system may open
DUE_MOST: Final = 50  # payments or refunds that one round of the reconciler looks at


class Paying:
    """One of a worker. `providers` by name."""

    def __init__(
        self,
        store: Payments,
        providers: Mapping[str, Provider],
        catalogue: Catalogue,
        *,
        clock: Clock,
        settings: Settings,
        meter: Meter | None = None,
    ) -> None:
        self.store, self.providers, self._catalogue = store, providers, catalogue
        self._clock, self._settings = clock, settings
        meter = meter or Meter()
        self._ended = meter.counter("timepoint_payments_total", "payments by what became of a request about them", ("provider", "outcome"))
        self._refunds = meter.counter("timepoint_refunds_total", "tries of refunds by what became of them", ("provider", "outcome"))
        self._facts = meter.counter(
            "timepoint_payment_webhooks_total", "webhooks of providers by what became of them", ("provider", "outcome")
        )

    # --- initiate and confirm ---

    async def initiate(self, caller: Caller, key: Key | None, reference: str, provider: str, scenario: tuple[str, ...] = ()) -> Answer:
        """A payment for what is due: 201 and the payment. Raises `Refused` PAYMENT_IN_PROGRESS, HOLD_EXPIRED, WRONG_STATE, PROVIDER_SILENT;
        `NotFound`, `Invalid`."""
        if provider not in self.providers:
            raise Invalid(
                f"no payment provider {provider[:40]!r}; there are {', '.join(sorted(self.providers))}",
                errors=[{"pointer": "/provider", "code": "UNKNOWN_PROVIDER", "detail": "see the list"}],
            )
        run_s = self._settings.payment_run_s if self.providers[provider].prepares else None
        began = await self.store.initiate(
            key, run_s, self._clock.uuid7(), reference, provider, scenario, self._settings.payment_limit_s, self._settings.hold_most_s,
            _who(caller), caller.actor, caller.request_id,
        )  # fmt: skip
        known = _known(began, f"no booking {reference!r}, or not one of yours")
        if known is not None:
            if run_s is None and not known.replayed:
                self._ended.add(1, provider, known.body["status"])
            return known
        facts = await self._ask(key, provider, self.providers[provider].create(_charge(began)))
        if all(fact.kind in PREPARED for fact in facts):
            return self._answer(await self.store.prepared(began["payment"], facts, began["ref"]), 201)
        settled = await self._settle(began["payment"], facts, caller.actor, caller.request_id, key=key)
        return self._answer(settled, 201)

    async def confirm(self, caller: Caller, key: Key | None, payment_id: str) -> Answer:
        """The money is taken and the booking confirmed: 200; 202 while the customer has not answered yet. Raises `Refused` PAYMENT_FAILED,
        OFFER_OTHER_SEATS, PAYMENT_REFUNDED, PROVIDER_SILENT; `NotFound`."""
        began = await self.store.begin_confirm(key, self._settings.payment_run_s, payment_id, _who(caller), caller.actor, caller.request_id)
        known = _known(began, f"no payment {payment_id!r}, or not one of yours")
        if known is not None:
            return known
        provider = self.providers[began["provider"]]
        facts = await self._ask(key, provider.name, provider.capture(payment_id, _charge(began)))
        settled = await self._settle(payment_id, facts, caller.actor, caller.request_id, key=key)
        return self._answer(settled, 200)

    async def status(self, caller: Caller, payment_id: str) -> Any:
        """Raises `NotFound`."""
        shown = await self.store.shown(payment_id, _who(caller))
        if shown is None:
            raise NotFound(f"no payment {payment_id!r}, or not one of yours")
        return shown

    def _answer(self, settled: Any, status: int) -> Answer:
        body = settled["body"]
        self._ended.add(1, body["provider"], body["status"])
        if body["status"] == "CONFIRMED" or (status == 201 and body["status"] == "INITIATED"):
            return Answer(status, body)
        if body["status"] in ("INITIATED", "IN_PROGRESS"):
            return Answer(202 if status == 200 else status, body)
        raise _refusal(body["status"], body["reason"], body["id"])

    async def _ask(self, key: Key | None, provider: str, question: Awaitable[T]) -> T:
        """A provider's answer within its time. Raises `Refused` PROVIDER_SILENT, and lets go of the key: the next request goes on."""
        try:
            return await self._in_time(question)
        except (ProviderSilent, ProviderRefused) as fault:
            await self.store.let_go(key)
            self._ended.add(1, provider, fault.code)
            raise Refused(
                "PROVIDER_SILENT", f"{provider} has not answered; send the same request again, nothing is charged twice", retry_after_s=2
            ) from fault

    async def _in_time(self, question: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._settings.payment_provider_timeout_s):
                return await question
        except TimeoutError as fault:
            raise ProviderSilent("the provider did not answer in time") from fault

    async def _settle(
        self,
        payment_id: str,
        facts: list[Fact],
        actor: str,
        request_id: str,
        *,
        provider: str | None = None,
        give_up: bool = False,
        key: Key | None = None,
    ) -> Any:
        """What is known is folded and acted upon; refunds that follow are sent."""
        settled = await self.store.settle(
            payment_id, facts, self._settings.late_payment_offer_s, actor, request_id, provider=provider, give_up=give_up, key=key
        )
        for refund_id in settled.get("refunds", ()):
            await self.run_refund(refund_id)
        return settled

    # --- webhooks ---

    async def webhook(self, provider: str, headers: Mapping[str, str], body: bytes, request_id: str) -> int:
        """How many facts it had. Raises `Unauthenticated` (nothing is stored), `MalformedBody`, `Invalid`, `NotFound`."""
        who = self.providers.get(provider)
        if who is None:
            raise NotFound(f"no payment provider {provider[:40]!r}")
        facts = who.parse_webhook(headers, body, self._clock.now_ms())
        by_payment: dict[str, list[Fact]] = {}
        for fact in facts:
            by_payment.setdefault(fact.reference, []).append(fact)
        for reference, some in by_payment.items():
            known = _is_uuid(reference)
            if known:
                settled = await self._settle(reference, some, f"provider:{provider}", request_id, provider=provider)
                known = settled["status"] != "NOT_FOUND"
            if not known:
                await self.store.hear(provider, reference, some)
            self._facts.add(1, provider, "SETTLED" if known else "UNKNOWN_PAYMENT")
        return len(facts)

    async def posted(self, provider: str, headers: dict[str, str], body: bytes) -> bool:
        """The way in for webhooks of simulated providers in this process; False: not accepted, to be posted again."""
        try:
            await self.webhook(provider, headers, body, f"webhook-{self._clock.uuid7()}")
        except EngineError as fault:
            log.warning("a webhook of %s was not taken: %s", provider, fault.detail)
            return False
        return True

    # --- other seats ---

    async def choose_seats(self, caller: Caller, key: Key | None, payment_id: str, wanted: Mapping[str, list[str]]) -> Answer:
        """Other seats for money that came too late: trip id -> labels. Raises `Refused` SEAT_TAKEN, SEATS_DO_NOT_FIT, NOTHING_OFFERED."""
        seats = []
        for booking_id, trip_no, map_version, old in await self.store.offered(payment_id, _who(caller)):
            trip = await self._catalogue.by_no(trip_no)
            if trip.trip_id in wanted:
                numbers = [trip.number_of(label, "/trips") for label in wanted[trip.trip_id]]
                if map_version == trip.map_version:
                    _of_the_same_kind(trip, old, numbers)
                seats.append({"booking": booking_id, "seats": numbers})
        said = await self.store.accept_seats(key, payment_id, _who(caller), seats, caller.actor, caller.request_id)
        done = _known(said, f"no payment {payment_id!r}, or not one of yours")
        assert done is not None
        return done

    async def decline_seats(self, caller: Caller, payment_id: str) -> Any:
        """The money goes back; the payment. Raises `NotFound`."""
        said = await self.store.decline_seats(payment_id, _who(caller), caller.actor, caller.request_id)
        _known(said, f"no payment {payment_id!r}, or not one of yours")
        for refund_id in said["refunds"]:
            await self.run_refund(refund_id)
        return said["body"]

    # --- refunds ---

    async def refund(
        self, caller: Caller, key: Key | None, payment_id: str | None, reference: str | None, amount: Money, reason: str
    ) -> Answer:
        """One refund by the operator's people: 201 and the refund, DONE or (the provider cannot just now) PENDING. Raises `Refused`
        REFUND_TOO_MUCH, WRONG_CURRENCY; `NotFound`."""
        who = _who(caller) | {"actor": None, "opened": None, "guest": None}
        began = await self.store.ask_refund(
            key, self._settings.payment_run_s, payment_id, reference, self._clock.uuid7(), amount.amount, amount.currency, reason, who,
            caller.actor, caller.request_id,
        )  # fmt: skip
        known = _known(began, f"no payment {payment_id or reference!r}, or not one of yours")
        if known is not None:
            return known
        await self.run_refund(began["refund"])
        return Answer(201, await self.store.shown_refund(began["refund"]))

    async def plan_refund(self, connection: Any, lead_id: str, amount: int | None, reason: str, actor: str, request_id: str) -> list[str]:
        """Refunds of a booking in the caller's transaction, its rows locked; None: all that is left. To be sent after the commit
        (`run_refund`), or by the reconciler. Raises `Refused` REFUND_TOO_MUCH."""
        return await self.store.plan_refund(connection, lead_id, amount, reason, actor, request_id)

    async def run_refund(self, refund_id: str) -> None:
        """A try to send it, if it is time for one. A fault of the provider's puts it off; after `refund_tries_max` people have to look."""
        began = await self.store.start_refund(refund_id, self._settings.payment_run_s)
        if began is None:
            return
        name, request_id = began["provider"], f"refund-{refund_id}"
        wait_s: float | None = payments.retry_after_s(began["tries"] - 1)
        if began["tries"] >= self._settings.refund_tries_max:
            wait_s = None
        try:
            provider = self.providers.get(name)
            if provider is None:
                raise ProviderRefused(f"the provider {name} is not set up any more", again=True)
            facts = await self._in_time(provider.refund(began["payment"], refund_id, Money(began["amount"], began["currency"])))
        except ProviderSilent as fault:
            self._refunds.add(1, name, fault.code)
            await self.store.refund_failed(refund_id, wait_s, fault.detail, SYSTEM, request_id)
            return
        except ProviderRefused as fault:
            self._refunds.add(1, name, "COVERED" if fault.covered else fault.code)
            if wait_s is None or not (fault.again or fault.covered):
                log.error("refund %s of payment %s cannot be sent: %s", refund_id, began["payment"], fault.detail)
            wait_s = wait_s if fault.again else None
            await self.store.refund_failed(refund_id, wait_s, fault.detail, SYSTEM, request_id, covered=fault.covered)
            return
        self._refunds.add(1, name, "DONE")
        mine = [fact for fact in facts if fact.part == refund_id]
        await self.store.settle(began["payment"], mine, self._settings.late_payment_offer_s, SYSTEM, request_id)

    # --- the reconciler ---

    async def reconcile(self) -> int:
        """One round: facts that came before their payment, payments that were left, refunds to be sent. How many it looked at."""
        count = 0
        for payment_id in await self.store.attach():
            count += 1
            await self._try(payment_id, self._settle(payment_id, [], SYSTEM, f"reconcile-{payment_id}"))
        for due in await self.store.due_payments(DUE_MOST):
            count += 1
            await self._try(due.payment_id, self._look_after(due))
        for refund_id in await self.store.due_refunds(DUE_MOST):
            count += 1
            await self._try(refund_id, self.run_refund(refund_id))
        return count

    async def run(self) -> None:
        """For ever; one worker at a time (a lease), though two would do no harm."""
        while True:
            count = 0
            try:
                count = await self.reconcile()
            except EngineError as fault:
                log.warning("the reconciler goes on later: %s", fault.detail)
            await asyncio.sleep(0 if count >= DUE_MOST else self._settings.payment_reconcile_s)

    async def _look_after(self, due: DuePayment) -> None:
        request_id = f"reconcile-{due.payment_id}"
        if due.state == "OFFER_OTHER_SEATS":
            said = await self.store.decline_seats(due.payment_id, EVERYBODY, SYSTEM, request_id)
            for refund_id in said["refunds"]:
                await self.run_refund(refund_id)
            return
        provider = self.providers.get(due.provider)
        facts: list[Fact] = []
        if provider is not None:
            try:
                going_on = due.state == "IN_PROGRESS" and not due.over  # its customer has asked for it
                facts = await self._in_time(provider.capture(due.payment_id, _due(due)) if going_on else provider.fetch(due.payment_id))
            except ProviderRefused:
                pass  # it has never heard of it: nothing was charged
            except ProviderSilent:
                if not due.over:
                    return
                raise
        await self._settle(due.payment_id, facts, SYSTEM, request_id, give_up=due.over)

    async def _try(self, what: str, work: Awaitable[Any]) -> None:
        try:
            await work
        except EngineError as fault:
            log.warning("%s is looked after later: %s", what, fault.detail)


# ------------------------------------------------------------------------------------------------ small things


def _of_the_same_kind(trip: SoldTrip, old: list[int], new: list[int]) -> None:
    """Raises `Refused` for seats of a class that was not paid for, and for those that are kept for others."""
    paid_for = {trip.layout.seat(number).kind for number in old}
    for number in new:
        seat = trip.layout.seat(number)
        kept = seat.has("WOMEN_ONLY") or (trip.layout.accessible_only and seat.has("ACCESSIBLE"))
        if number not in old and (kept or seat.kind not in paid_for):
            what = "kept for those who ask for it" if kept else f"{seat.kind}, which was not paid for"
            raise Refused("SEATS_DO_NOT_FIT", f"seat {seat.label} is {what}; choose others")


def _who(caller: Caller) -> dict[str, Any]:
    """Whose bookings these are to open, as `money.may_open` reads it."""
    return {
        "all": caller.role == "SUPER_ADMIN",
        "partner": caller.partner_id if caller.role in DESK_ROLES else None,
        "actor": caller.actor if caller.role is not None else None,
        "opened": caller.opened.booking_id if caller.opened is not None else None,
        "guest": f"guest:{caller.opened.root}" if caller.opened is not None and not caller.opened.until_ms else None,
    }


def _charge(began: Any) -> Charge:
    return Charge(
        payment_id=began["payment"],
        reference=began["ref"],
        amount=Money(began["amount"], began["currency"]),
        scenario=tuple(began["scenario"]),
    )


def _due(due: DuePayment) -> Charge:
    return Charge(
        payment_id=due.payment_id, reference=due.reference or "", amount=Money(due.amount, due.currency), scenario=tuple(due.scenario)
    )


def _known(said: Any, unknown: str) -> Answer | None:
    """The answer of an earlier request with this key, or None: go on. Raises what the database refused."""
    if said["status"] == "DONE":
        return Answer(said["http"], said["body"], bool(said.get("replayed")))
    if said["status"] != "REFUSED":
        return None
    code = said["code"]
    if code == "NOT_FOUND":
        raise NotFound(unknown)
    if code == "IDEMPOTENCY_IN_PROGRESS":
        raise in_progress()
    if code == "IDEMPOTENCY_KEY_REUSED":
        raise key_reused()
    if code == "HOLD_EXPIRED":
        raise Refused(code, "the booking was not paid in time and its seats are free again; hold seats anew")
    if code == "WRONG_STATE":
        raise Refused(code, f"the booking is {said['state']}: there is nothing to pay")
    if code == "REFUND_TOO_MUCH":
        raise Refused(code, f"of this payment {said['left']} is left to refund, in minor units")
    if code == "WRONG_CURRENCY":
        raise Refused(code, f"it was paid in {said['currency']}")
    if code == "NOTHING_OFFERED":
        raise Refused(code, f"the payment is {said['state']}: no other seats are offered (any more)")
    if code == "PAYMENT_IN_PROGRESS":
        raise Refused(code, "a payment for this booking has begun; confirm it, or wait until it has failed")
    if code == "NOTHING_DUE":
        raise Refused(code, "more is paid than the booking costs")
    raise _refusal(code, said.get("reason"), "")


def _refusal(code: str, reason: str | None, payment_id: str) -> Refused:
    if code in ("FAILED", "PAYMENT_FAILED"):
        return Refused("PAYMENT_FAILED", f"the payment failed ({reason or 'no reason given'}); nothing was taken, begin another one")
    if code == "OFFER_OTHER_SEATS":
        where = f"POST /v1/payments/{payment_id or '{id}'}/seats"
        return Refused("OFFER_OTHER_SEATS", f"the money came too late and the seats are gone: choose others or have it back ({where})")
    return Refused("PAYMENT_REFUNDED", f"the booking could not be kept ({reason or 'refunded'}): the money goes back")


def _is_uuid(text: str) -> bool:
    return payments.UUID.fullmatch(text) is not None
