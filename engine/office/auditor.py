"""The auditor: what must be true of the books at every commit, asked of the database itself. Pure: the list and the verdicts.

Each invariant is one statement of engine/store/auditor.sql, which answers the rows that break it; its line of purpose stands there. Nothing
of the product is trusted for it, neither its functions nor its constraints.
"""

from __future__ import annotations

from typing import Final

import msgspec

# What is asked, in this order: seats, bookings, events, tickets, money, the rest of the desk.
INVARIANTS: Final = (
    "seat_sold_once",
    "claim_is_of_its_booking",
    "booking_has_its_claims",
    "sold_means_paid",
    "claims_on_the_trips_map",
    "bookings_are_whole",
    "passengers_have_their_seats",
    "references_lead_home",
    "one_tenant_each",
    "moves_are_in_the_table",
    "every_version_is_audited",
    "every_version_has_its_event",
    "confirmed_once",
    "events_are_said_in_order",
    "held_back_means_dead",
    "answers_speak_of_bookings",
    "tickets_for_every_seat",
    "boarded_by_a_scan",
    "ledger_balances",
    "ledger_balances_in_all",
    "captured_is_the_ledgers",
    "refunds_within_what_was_paid",
    "paid_has_its_seat",
    "seat_is_paid_for",
    "settlements_add_up",
    "promo_codes_within_their_uses",
    "ancillaries_in_stock",
    "leases_belong_to_devices",
    "offline_sales_have_their_seats",
    "drawers_are_counted",
    "trips_have_stops_and_a_map",
)
SHOWN: Final = 20  # rows of each that are shown


class Broken(msgspec.Struct, frozen=True):
    """One row that breaks an invariant."""

    entity: str
    said: str


class Finding(msgspec.Struct, frozen=True):
    """What came of one invariant. `count`: rows that break it, of which the first are shown; None: it could not be asked (`fault` says why)."""

    name: str
    purpose: str
    count: int | None
    broken: list[Broken]
    fault: str | None = None
    took_ms: int = 0

    @property
    def holds(self) -> bool:
        return self.count == 0


class Report(msgspec.Struct, frozen=True, rename="camel"):
    """All findings, of one snapshot of the database."""

    at: str
    sound: bool
    findings: list[Finding]


def report(at: str, findings: list[Finding]) -> Report:
    """Sound only if every invariant was asked and holds."""
    return Report(at, all(one.holds for one in findings), findings)
