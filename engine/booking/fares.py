"""Fares: an operator's plan read and judged, and what a seat costs under it, with the reasons. Pure; integers only.

price = base x class of the seat x passenger type x multiplier, kept exact and rounded once, half to even, to the plan's `step`. The base is
so much a kilometre (with a start and a least amount) or a price for each pair of stops or zones; the multiplier is demand x lead time within
the operator's bounds (0.7 to 1.8 unless the plan says otherwise). Permille everywhere: 1150 is fifteen per cent more.

Base of A->C against A->B and B->C: per kilometre without start and least they are the same; with them, the way through is never dearer.
Pairs: the pair's own price, else the sum over its legs (`NO_FARE` where one of them has none).
A quote carries all that a price needs, the terms of cancelling too: what is sold stays what it was when the plan changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Final, Literal

import msgspec

from engine.booking import money
from engine.booking.promos import PromoTerms, discount
from engine.booking.refusals import Refused
from engine.errors import Invalid

HOUR_MS: Final = 3_600_000
ADULT: Final = "ADULT"

Amount = Annotated[int, msgspec.Meta(ge=0, le=10**9)]  # minor units
Permille = Annotated[int, msgspec.Meta(ge=0, le=1000)]
Factor = Annotated[int, msgspec.Meta(ge=100, le=5000)]  # permille
Hours = Annotated[int, msgspec.Meta(ge=0, le=8760)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=120)]
PassengerType = Literal["ADULT", "CHILD", "INFANT", "SENIOR", "STUDENT"]


class _Wire(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    """Part of a plan as the operator wrote it."""


class PerKm(_Wire, frozen=True, tag_field="kind", tag="PER_KM"):
    per_km: Amount
    start: Amount = 0  # once a journey
    least: Amount = 0  # of the base, before any factor


class Pair(_Wire, frozen=True):
    from_: str = msgspec.field(name="from")  # a stop id, or a zone where the plan has zones
    to: str
    amount: Amount


class Pairs(_Wire, frozen=True, tag_field="kind", tag="PAIRS"):
    pairs: Annotated[list[Pair], msgspec.Meta(min_length=1, max_length=4000)]
    zones: dict[str, str] = {}  # stop id -> zone; a stop that is not named is its own
    both_ways: bool = True


class DemandStep(_Wire, frozen=True):
    """From this occupancy on. Less than the least of them: 1000."""

    from_permille: Permille
    permille: Factor


class LeadStep(_Wire, frozen=True):
    """From this many hours before departure on (and earlier). Less than the least of them: 1000."""

    from_hours: Hours
    permille: Factor


class FeeStep(_Wire, frozen=True):
    """What a cancellation keeps, from this many hours before departure on (and earlier). Less than the least of them: everything."""

    from_hours: Hours
    fee_permille: Permille


class Bounds(_Wire, frozen=True):
    low: Annotated[int, msgspec.Meta(ge=100, le=1000)] = 700
    high: Annotated[int, msgspec.Meta(ge=1000, le=5000)] = 1800


class Ancillary(_Wire, frozen=True):
    code: Annotated[str, msgspec.Meta(pattern=r"^[A-Z0-9_]{1,24}$(?!\n)")]
    kind: Literal["BAGGAGE", "MEAL", "PARCEL", "OTHER"]
    name: Name
    price: Amount
    stock: Annotated[int, msgspec.Meta(ge=0, le=10_000)] | None = None  # of each trip instance; None: as many as are asked for
    max_per_passenger: Annotated[int, msgspec.Meta(ge=1, le=20)] = 1


class PlanBody(_Wire, frozen=True):
    """A fare plan as the operator writes it (`/v1/admin/fare-plans`)."""

    currency: str
    base: PerKm | Pairs
    step: Annotated[int, msgspec.Meta(ge=1, le=10**6)] = 1  # prices are multiples of it, minor units
    classes: dict[str, Factor] = {}  # kind of seat -> permille; not named: 1000
    types: dict[PassengerType, Annotated[int, msgspec.Meta(ge=0, le=2000)]] = msgspec.field(default_factory=lambda: {"ADULT": 1000})
    demand: Annotated[list[DemandStep], msgspec.Meta(max_length=20)] = []
    lead: Annotated[list[LeadStep], msgspec.Meta(max_length=20)] = []
    bounds: Bounds = msgspec.field(default_factory=Bounds)
    refundable: bool = True
    cancellation: Annotated[list[FeeStep], msgspec.Meta(max_length=20)] = msgspec.field(
        default_factory=lambda: [FeeStep(0, 500), FeeStep(24, 100)]
    )
    modify_fee: Amount = 0
    booking_fee: Amount = 0  # once a booking, also of a return trip
    ancillaries: Annotated[list[Ancillary], msgspec.Meta(max_length=50)] = []


class FarePlan(msgspec.Struct, frozen=True):
    """A plan that was judged; made by `plan_of`."""

    plan_id: str
    version: int
    body: PlanBody
    pairs: dict[tuple[str, str], int]  # of zones (or stops); empty: per kilometre
    ancillaries: dict[str, Ancillary]
    currency: str


class Reason(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step of how a price came about."""

    code: str  # BASE | SEAT_CLASS | DEMAND | LEAD_TIME | BOUND | PROMO | BOOKING_FEE
    detail: str
    permille: int | None = None
    amount: int | None = None


class Quote(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What some seats of one trip cost, whoever sits in them. Kept on the booking (`body()`, `quote_from`)."""

    currency: str
    plan_id: str
    plan_version: int
    made_at_ms: int
    multiplier: int  # permille, within the bounds
    base_milli: int  # thousandths of a minor unit, exact
    step: int
    classes: tuple[int, ...]  # permille of each seat, in the order of the seats
    adult: tuple[int, ...]  # price of each seat for an adult, without the promo code
    types: dict[str, int]  # passenger type -> permille
    fees: tuple[FeeStep, ...]  # of a cancellation; empty: nothing is given back
    modify_fee: int = 0
    booking_fee: int = 0
    promo: PromoTerms | None = None
    reasons: tuple[Reason, ...] = ()
    quote_id: str | None = None  # of the price log, where it was asked for by POST /trips/{id}/quotes

    def price(self, index: int, passenger_type: str = ADULT) -> int:
        """Of one seat, without the promo code. Raises `Invalid` for a type that the plan does not sell."""
        permille = self.types.get(passenger_type)
        if permille is None:
            detail = f"this trip has fares for {', '.join(self.types)}, none for {passenger_type[:40]!r}"
            raise Invalid(detail, errors=[{"pointer": f"/passengers/{index}/type", "code": "UNKNOWN_TYPE", "detail": detail}])
        return money.scaled(self.base_milli, self.classes[index] * permille * self.multiplier, 10**12, self.step)

    def gross(self, types: Sequence[str]) -> list[int]:
        """Of all seats (one type for each, in the order of the seats), without the promo code."""
        if len(types) != len(self.classes):
            raise Invalid(
                f"{len(self.classes)} seats, {len(types)} passengers",
                errors=[{"pointer": "/passengers", "code": "COUNT", "detail": "one each"}],
            )
        return [self.price(index, name) for index, name in enumerate(types)]

    def prices(self, types: Sequence[str] | None = None) -> list[int]:
        """What is paid for each seat, the promo code taken off (shared by largest remainder). No types: adults all."""
        return net_prices([self], [[ADULT] * len(self.classes) if types is None else types])[0]

    def body(self) -> dict[str, Any]:
        """As the booking's row keeps it."""
        return msgspec.to_builtins(self)  # type: ignore[no-any-return]


def fee_permille(fees: Sequence[FeeStep], departs_at_ms: int, now_ms: int) -> int:
    """What a cancellation keeps of the price: all of it where no step covers the time that is left."""
    reached = [step for step in fees if departs_at_ms - now_ms >= step.from_hours * HOUR_MS]
    return max(reached, key=lambda step: step.from_hours).fee_permille if reached else 1000


def quote_from(body: Any) -> Quote:
    """A quote that `Quote.body` wrote."""
    return msgspec.convert(body, Quote)


def net_prices(quotes: Sequence[Quote], types: Sequence[Sequence[str]]) -> list[list[int]]:
    """What is paid for each seat of each trip of one booking: a promo code is taken off the fares of all of them together, once."""
    gross = [quote.gross(names) for quote, names in zip(quotes, types, strict=True)]
    terms = next((quote.promo for quote in quotes if quote.promo is not None), None)
    flat = [price for prices in gross for price in prices]
    off = 0 if terms is None else discount(terms, sum(flat))
    if not off:
        return gross
    shares = iter(money.split(off, flat))
    return [[price - next(shares) for price in prices] for prices in gross]


def plan_of(body: Any, plan_id: str = "", version: int = 1) -> FarePlan:
    """A plan from its JSON body. Raises `Invalid` with a pointer to each thing that is wrong."""
    try:
        plan = body if isinstance(body, PlanBody) else msgspec.convert(body, PlanBody)
    except msgspec.ValidationError as error:
        detail, _, path = str(error).partition(" - at `$")
        pointer = path.rstrip("`").replace(".", "/").replace("[", "/").replace("]", "")
        raise Invalid("the fare plan cannot be read", errors=[{"pointer": pointer, "code": "INVALID", "detail": detail}]) from None
    wrong = list(_wrong(plan))
    if wrong:
        raise Invalid("the fare plan contradicts itself", errors=[{"pointer": at, "code": code, "detail": why} for at, code, why in wrong])
    pairs: dict[tuple[str, str], int] = {}
    if isinstance(plan.base, Pairs):
        for pair in plan.base.pairs:
            pairs[pair.from_, pair.to] = pair.amount
            if plan.base.both_ways:
                pairs.setdefault((pair.to, pair.from_), pair.amount)
    return FarePlan(plan_id, version, plan, pairs, {item.code: item for item in plan.ancillaries}, plan.currency)


def _wrong(plan: PlanBody) -> Any:
    try:
        money.exponent(plan.currency)
    except Invalid as error:
        yield "/currency", "INVALID", error.detail
    if ADULT not in plan.types:
        yield "/types", "MISSING_FIELD", "a plan has a fare for ADULT"
    steps: dict[str, list[int]] = {
        "demand": [step.from_permille for step in plan.demand],
        "lead": [step.from_hours for step in plan.lead],
        "cancellation": [step.from_hours for step in plan.cancellation],
    }
    for name, starts in steps.items():
        for place, (before, after) in enumerate(pairwise(starts), 1):
            if after <= before:
                yield f"/{name}/{place}", "ORDER", "steps stand in rising order"
    for place, (lower, higher) in enumerate(pairwise(plan.demand), 1):
        if higher.permille < lower.permille:
            yield f"/demand/{place}/permille", "ORDER", "a fuller bus is never cheaper"
    if plan.demand and plan.demand[0].from_permille > 0 and plan.demand[0].permille < 1000:
        yield "/demand/0/permille", "ORDER", "an emptier bus costs 1000; a first step below that begins at 0"
    seen: set[str] = set()
    for place, item in enumerate(plan.ancillaries):
        if item.code in seen:
            yield f"/ancillaries/{place}/code", "DUPLICATE", f"{item.code} stands there twice"
        seen.add(item.code)
    if isinstance(plan.base, Pairs):
        found: set[tuple[str, str]] = set()
        for place, pair in enumerate(plan.base.pairs):
            if (pair.from_, pair.to) in found:
                yield f"/base/pairs/{place}", "DUPLICATE", "this pair stands there twice"
            found.add((pair.from_, pair.to))


# ------------------------------------------------------------------------------------------------ a price


def base_milli(plan: FarePlan, stops: Sequence[str], metres: Sequence[int], frm: int, to: int) -> int:
    """The base from one place to another, thousandths of a minor unit. `metres[n]` is the leg from place n to n + 1.
    Raises `Refused` NO_FARE where a plan by pairs has no price for it."""
    base = plan.body.base
    if isinstance(base, PerKm):
        return max(base.start * 1000 + base.per_km * sum(metres[frm:to]), base.least * 1000)
    zone = [base.zones.get(stop, stop) for stop in stops[frm : to + 1]]
    whole = plan.pairs.get((zone[0], zone[-1]))
    if whole is not None:
        return whole * 1000
    legs = [plan.pairs.get((here, there)) for here, there in pairwise(zone)]
    if any(amount is None for amount in legs):
        raise Refused("NO_FARE", f"the operator has no fare from {stops[frm]!r} to {stops[to]!r}: choose other stops")
    return sum(amount for amount in legs if amount is not None) * 1000


def multiplier(plan: FarePlan, hours_ms: int, occupancy: int) -> tuple[int, list[Reason]]:
    """Demand x lead time within the bounds, permille, and why. `hours_ms`: until departure; `occupancy`: permille of the seats."""
    demand = lead = 1000
    reasons = []
    for rise in plan.body.demand:
        if occupancy >= rise.from_permille:
            demand = rise.permille
    for step in plan.body.lead:
        if hours_ms >= step.from_hours * HOUR_MS:
            lead = step.permille
    if demand != 1000:
        reasons.append(Reason("DEMAND", f"{occupancy // 10} % of the seats are taken", demand))
    if lead != 1000:
        reasons.append(Reason("LEAD_TIME", f"{max(hours_ms, 0) // HOUR_MS} h before departure", lead))
    product = money.scaled(demand, lead)
    bounded = min(max(product, plan.body.bounds.low), plan.body.bounds.high)
    if bounded != product:
        reasons.append(Reason("BOUND", "the operator lets prices go no further", bounded))
    return bounded, reasons


def quote(
    plan: FarePlan,
    *,
    stops: Sequence[str],
    metres: Sequence[int],
    frm: int,
    to: int,
    kinds: Sequence[str],
    departs_at_ms: int,
    now_ms: int,
    occupancy: int,
    promo: PromoTerms | None = None,
    quote_id: str | None = None,
) -> Quote:
    """What seats of these kinds cost from place `frm` to place `to`. `stops`: ids of all stops of the trip; `metres`: its legs; `kinds`: one
    for each seat; `departs_at_ms`: from `frm`; `occupancy`: permille of the seats that are taken. Raises `Refused` NO_FARE."""
    base = base_milli(plan, stops, metres, frm, to)
    factor, why = multiplier(plan, departs_at_ms - now_ms, occupancy)
    body = plan.body
    classes = tuple(body.classes.get(kind, 1000) for kind in kinds)
    way = f"{sum(metres[frm:to]) // 1000} km" if isinstance(body.base, PerKm) else f"{stops[frm]} - {stops[to]}"
    reasons = [Reason("BASE", way, amount=money.scaled(base, 1))]
    reasons += [Reason("SEAT_CLASS", kind, body.classes[kind]) for kind in dict.fromkeys(kinds) if body.classes.get(kind, 1000) != 1000]
    reasons += why
    if promo is not None:
        reasons.append(_promo_reason(promo))
    if body.booking_fee:
        reasons.append(Reason("BOOKING_FEE", "once a booking", amount=body.booking_fee))
    adult = body.types[ADULT]
    return Quote(
        currency=plan.currency,
        plan_id=plan.plan_id,
        plan_version=plan.version,
        made_at_ms=now_ms,
        multiplier=factor,
        base_milli=base,
        step=body.step,
        classes=classes,
        adult=tuple(money.scaled(base, each * adult * factor, 10**12, body.step) for each in classes),
        types={str(name): permille for name, permille in body.types.items()},
        fees=tuple(body.cancellation) if body.refundable else (),
        modify_fee=body.modify_fee,
        booking_fee=body.booking_fee,
        promo=promo,
        reasons=tuple(reasons),
        quote_id=quote_id,
    )


def with_promo(given: Quote, promo: PromoTerms) -> Quote:
    """The same quote with a promo code instead of the one it had."""
    reasons = [reason for reason in given.reasons if reason.code != "PROMO"]
    return msgspec.structs.replace(given, promo=promo, reasons=(*reasons, _promo_reason(promo)))


def _promo_reason(promo: PromoTerms) -> Reason:
    if promo.kind == "PERCENT":
        return Reason("PROMO", promo.code, permille=-promo.value)
    return Reason("PROMO", promo.code, amount=-promo.value)
