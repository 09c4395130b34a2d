"""What the web framework cannot know of our calls: who may make them, with what errors they answer, and an example of each.

`described` adds it to the schema that the framework makes; it is served at /schema and kept as docs/openapi.json. A test sends every example
to a running product and holds the answers against what stands here.
"""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final

import msgspec
from litestar import Request
from litestar.openapi.plugins import JsonRenderPlugin

from api.auth import AGENT, DRIVER, PARTNER_ADMIN, ROLES, SUPER_ADMIN
from api.headers import add_headers
from api.problems import MEDIA_TYPE, Problem
from engine import errors
from engine.booking.refusals import REFUSALS

MANAGERS: Final = (PARTNER_ADMIN, SUPER_ADMIN)
# "method path", or what the path begins with -> roles; what stands nowhere here is for everybody
WHO: Final[dict[str, tuple[str, ...]]] = {
    "/v1/admin/alerts": (PARTNER_ADMIN, AGENT, SUPER_ADMIN),
    "/v1/admin/": MANAGERS,
    "/v1/devices/": MANAGERS,
    "/v1/buses/{bus_id}/history": MANAGERS,
    "/v1/buses/{bus_id}/playback": MANAGERS,
    "/v1/incidents": (PARTNER_ADMIN, AGENT, SUPER_ADMIN),
    "/v1/notifications/incidents": (PARTNER_ADMIN, AGENT, SUPER_ADMIN),
    "/v1/geofences": MANAGERS,
    "/v1/analytics/": (PARTNER_ADMIN, AGENT, SUPER_ADMIN),
    "/v1/dashboard": (PARTNER_ADMIN, AGENT, SUPER_ADMIN),
    "/v1/playback": (PARTNER_ADMIN, AGENT, SUPER_ADMIN),
    "/v1/pos/devices": (PARTNER_ADMIN,),
    "/v1/pos/policy": (PARTNER_ADMIN,),
    "/v1/pos/": (AGENT, PARTNER_ADMIN),
    "get /v1/trips/{trip_id}/waiting-room": (PARTNER_ADMIN, AGENT, SUPER_ADMIN),
    "put /v1/trips/{trip_id}/waiting-room": MANAGERS,
    "get /v1/bookings": (PARTNER_ADMIN, AGENT, SUPER_ADMIN),
    "get /v1/users/me/bookings": ROLES,
    "post /v1/payments/refund": (AGENT, PARTNER_ADMIN, SUPER_ADMIN),
    "get /v1/settlements": MANAGERS,
    "post /v1/settlements": (SUPER_ADMIN,),
    "/v1/events/publish": MANAGERS,
    "/v1/events/dead-letters": MANAGERS,
    "/v1/audit": MANAGERS,
    "post /v1/tickets/scans": (DRIVER, AGENT, PARTNER_ADMIN, SUPER_ADMIN),
    "get /v1/trips/{trip_id}/manifest": (DRIVER, AGENT, PARTNER_ADMIN, SUPER_ADMIN),
    "post /v1/trips/{trip_id}/start": (DRIVER, PARTNER_ADMIN, SUPER_ADMIN),
    "post /v1/trips/{trip_id}/end": (DRIVER, PARTNER_ADMIN, SUPER_ADMIN),
    "/v1/trips/{trip_id}/assignment": (DRIVER, AGENT, PARTNER_ADMIN, SUPER_ADMIN),
    "post /v1/trips/{trip_id}/swap-bus": MANAGERS,
    "post /v1/trips/{trip_id}/cancel": MANAGERS,
    "get /v1/trips/{trip_id}/cancellation": MANAGERS,
    "post /v1/trips/{trip_id}/sales": MANAGERS,
}
KEYED: Final = ("IDEMPOTENCY_KEY_REQUIRED", "IDEMPOTENCY_KEY_REUSED", "IDEMPOTENCY_IN_PROGRESS")
# "method path" -> what the desk may refuse it with (engine/booking/refusals.py), besides what every call of the desk may answer (DESK)
CODES: Final[dict[str, tuple[str, ...]]] = {
    "post /v1/trips/{trip_id}/holds": (
        *KEYED, "SEAT_TAKEN", "SEAT_PICKED", "SALES_CLOSED", "HOLD_LIMIT", "TOO_FEW_SEATS", "QUOTE_EXPIRED", "NO_FARE", "WAITING_ROOM",
        "PROMO_NOT_VALID", "PROMO_MIN_AMOUNT", "PROMO_USED_UP", "TOO_MANY_REQUESTS",
    ),
    "post /v1/events/publish": KEYED,
    "get /v1/events/dead-letters": (),
    "post /v1/events/dead-letters/{dead_letter_id}/replay": ("EVENT_DELIVERED",),
    "get /v1/audit": (),
    "post /v1/geofences": ("IDEMPOTENCY_KEY_REUSED", "IDEMPOTENCY_IN_PROGRESS"),
    "patch /v1/geofences/{fence_id}": ("PRECONDITION_FAILED", "CONFLICT"),
    "delete /v1/geofences/{fence_id}": ("PRECONDITION_FAILED",),
    "delete /v1/holds/{hold_id}": ("IDEMPOTENCY_KEY_REUSED", "IDEMPOTENCY_IN_PROGRESS", "WRONG_STATE", "PAYMENT_IN_PROGRESS"),
    "post /v1/holds/{hold_id}/extend": ("HOLD_EXPIRED", "WRONG_STATE"),
    "post /v1/bookings": (
        *KEYED, "HOLD_EXPIRED", "HOLD_USED", "WRONG_CURRENCY", "SEAT_WOMEN_ONLY", "SEAT_ACCESSIBLE_ONLY", "PROMO_NOT_VALID",
        "PROMO_MIN_AMOUNT", "PROMO_USED_UP", "ANCILLARY_SOLD_OUT", "TOO_MANY_REQUESTS",
    ),
    "post /v1/bookings/lookup": ("TOO_MANY_REQUESTS",),
    "post /v1/payments/initiate": (
        *KEYED, "CARD_NUMBER_REFUSED", "HOLD_EXPIRED", "NOTHING_DUE", "PAYMENT_FAILED", "PAYMENT_IN_PROGRESS", "PROVIDER_SILENT", "WRONG_STATE",
    ),
    "post /v1/payments/confirm": (
        *KEYED, "CARD_NUMBER_REFUSED", "OFFER_OTHER_SEATS", "PAYMENT_FAILED", "PAYMENT_REFUNDED", "PROVIDER_SILENT",
    ),
    "post /v1/payments/{payment_id}/seats": (*KEYED, "NOTHING_OFFERED", "SEATS_DO_NOT_FIT", "SEAT_TAKEN"),
    "post /v1/payments/refund": (*KEYED, "CARD_NUMBER_REFUSED", "REFUND_TOO_MUCH", "WRONG_CURRENCY"),
    "get /v1/settlements": (errors.TooLarge.code,),
    "post /v1/settlements": (*KEYED, "NOTHING_TO_SETTLE"),
    "get /v1/bookings/{ref}/ticket": ("NOT_CONFIRMED", "TICKETS_REVOKED"),
    "post /v1/bookings/{ref}/check-in": ("NOT_CONFIRMED", "CHECK_IN_CLOSED", "WRONG_STATE"),
    "patch /v1/bookings/{ref}/cancel": (
        *KEYED[1:], "OFFER_EXPIRED", "OFFER_STALE", "PAYMENT_IN_PROGRESS", "PRECONDITION_FAILED", "REFUND_TOO_MUCH", "TOO_LATE", "WRONG_STATE",
    ),
    "post /v1/bookings/{ref}/modify": (
        *KEYED[1:], "ANCILLARY_SOLD_OUT", "HOLD_LIMIT", "NO_FARE", "OTHER_CLASS", "PAYMENT_IN_PROGRESS", "PRECONDITION_FAILED", "SALES_CLOSED",
        "SEAT_ACCESSIBLE_ONLY", "SEAT_TAKEN", "SEAT_WOMEN_ONLY", "TOO_LATE", "WRONG_CURRENCY", "WRONG_STATE",
    ),
    "post /v1/trips/{trip_id}/swap-bus": (*KEYED[1:], "OVERFLOW_UNDECIDED", "PLAN_STALE", "TRIP_OVER"),
    "post /v1/trips/{trip_id}/cancel": (*KEYED, "TRIP_OVER"),
    "get /v1/trips/{trip_id}/cancellation": (),
    "post /v1/trips/{trip_id}/sales": (*KEYED[1:], "SALES_CLOSED"),
    **{f"get /v1/analytics/{name}": () for name in ("eta-accuracy", "on-time", "headways", "ladder", "heatmap", "deviation")},
    "get /v1/dashboard": (),
    "get /v1/playback": (),
    "get /v1/tickets/keys": (),
    "post /v1/tickets/verify": ("TOO_MANY_REQUESTS",),
    "post /v1/tickets/scans": (),
    "put /v1/trips/{trip_id}/assignment": ("CONFLICT",),
    "delete /v1/trips/{trip_id}/assignment": ("CONFLICT",),
    "get /v1/trips/{trip_id}/assignment": (),
    "get /v1/trips/{trip_id}/assignment/history": (),
    "get /v1/trips/{trip_id}/manifest": (),
    "post /v1/trips/{trip_id}/start": ("WRONG_STATE",),
    "post /v1/trips/{trip_id}/end": ("WRONG_STATE",),
    "post /v1/trips/{trip_id}/quotes": (
        "IDEMPOTENCY_KEY_REUSED", "IDEMPOTENCY_IN_PROGRESS", "SALES_CLOSED", "NO_FARE", "PROMO_NOT_VALID", "PROMO_MIN_AMOUNT",
        "TOO_MANY_REQUESTS",
    ),
    "get /v1/trips/{trip_id}/ancillaries": ("NO_FARE",),
    "post /v1/pos/leases": (*KEYED, "SEAT_TAKEN", "TOO_FEW_SEATS", "SALES_CLOSED", "NO_FARE"),
    "delete /v1/pos/leases/{lease_id}": ("IDEMPOTENCY_KEY_REUSED", "IDEMPOTENCY_IN_PROGRESS"),
    "post /v1/pos/leases/{lease_id}/extend": ("IDEMPOTENCY_KEY_REUSED", "IDEMPOTENCY_IN_PROGRESS", "LEASE_OVER"),
    "post /v1/pos/sync": KEYED,
    "post /v1/pos/sales/{seq}/seat": ("IDEMPOTENCY_KEY_REUSED", "IDEMPOTENCY_IN_PROGRESS", "SEAT_TAKEN", "SALE_SETTLED", "SALES_CLOSED"),
    "post /v1/pos/sessions": ("IDEMPOTENCY_KEY_REUSED", "IDEMPOTENCY_IN_PROGRESS", "SESSION_OPEN"),
    "post /v1/pos/sessions/{session_id}/close": ("IDEMPOTENCY_KEY_REUSED", "IDEMPOTENCY_IN_PROGRESS", "SESSION_CLOSED"),
    "post /v1/trips/{trip_id}/waitlist": (*KEYED, "ALREADY_WAITING", "SALES_CLOSED", "TOO_MANY_REQUESTS"),
    "post /v1/trips/{trip_id}/queue": ("TOO_MANY_REQUESTS",),
    "get /v1/trips/{trip_id}/waiting-room": (),
    "put /v1/trips/{trip_id}/waiting-room": (),
    "get /v1/trips/{trip_id}/seats": (),
    "post /v1/trips/{trip_id}/picks": ("SEAT_PICKED", "SALES_CLOSED", "TOO_MANY_REQUESTS"),
    "delete /v1/trips/{trip_id}/picks/{pick_id}": (),
    "delete /v1/trips/{trip_id}/picks": (),
    "post /v1/trips/{trip_id}/share": ("TOO_MANY_REQUESTS",),
    "post /v1/sos": ("TOO_MANY_REQUESTS", "FORBIDDEN"),
    "get /v1/share/{token}": (errors.Gone.code,),
    "delete /v1/share/{token}": (),
    "get /v1/routes": (),
    "get /v1/routes/popular": (),
    "get /v1/places": (),
    **{
        f"post /v1/admin/{kind}": ("IDEMPOTENCY_KEY_REUSED", "IDEMPOTENCY_IN_PROGRESS")
        for kind in ("fare-plans", "promo-codes", "offers", "seat-maps", "alerts")
    },
    **{
        f"{method} /v1/admin/{thing}": ("PRECONDITION_FAILED", "CONFLICT")
        for method in ("patch", "delete")
        for thing in (
            "fare-plans/{plan_id}", "promo-codes/{code}", "offers/{route_id}", "seat-maps/{layout_id}", "alerts/{alert_id}",
        )
    },
    "patch /v1/admin/feeds/{feed_id}/rules": ("PRECONDITION_FAILED",),
}  # fmt: skip
DESK: Final = ("INVALID", "UNAUTHENTICATED", "NOT_FOUND", "BUSY", "UNAVAILABLE")
# what the path of a call of the desk begins with, or "method path"
OF_DESK: Final = (
    "/v1/pos/", "/v1/waitlist/", "/v1/geofences",
    "/v1/admin/fare-plans", "/v1/admin/promo-codes", "/v1/admin/offers", "/v1/admin/seat-maps", "/v1/admin/alerts",
    "/v1/notifications/",
    "/v1/holds", "/v1/bookings", "/v1/users/me/bookings", "/v1/payments",
    "/v1/settlements",
)  # fmt: skip
# path begins with -> it asks the database, and says 503 while that is away
RECORD: Final = ("/v1/admin/", "/v1/devices/", "/v1/buses/{bus_id}/", "/v1/incidents", "/v1/events/publish", "/v1/events/dead", "/v1/audit")
LEAVES: Final = (
    errors.Invalid, errors.Unauthenticated, errors.Forbidden, errors.NotFound, errors.Gone, errors.Conflict, errors.TooLarge, errors.FeedRejected,
    errors.Unavailable,
)  # fmt: skip
STATUS_OF: Final = {leaf.code: leaf.status for leaf in (*LEAVES, errors.TooMany)} | {
    code: meaning.status for code, meaning in REFUSALS.items() if code != errors.Invalid.code
}

PARAMETERS: Final[dict[str, str | int]] = {
    "bus_id": "BUS-17",
    "feed_id": "demo",
    "device_id": "0195c0de-0001-7000-8000-000000000001",
    "incident_id": "5d0f2c7a9b1e4c3d",
    "fence_id": "0195c0de-0001-7000-8000-000000000008",
    "hold_id": "0195c0de-0001-7000-8000-000000000003",
    "lease_id": "0195c0de-0001-7000-8000-000000000005",
    "session_id": "0195c0de-0001-7000-8000-000000000006",
    "entry_id": "0195c0de-0001-7000-8000-000000000007",
    "dead_letter_id": "0195c0de-0001-7000-8000-000000000002",
    "route_id": "demo:104",
    "stop_id": "demo:END",
    "trip_id": "demo:104-END-0-031:20261121",
    "plan_id": "coach",
    "alert_id": "0195c0de-0001-7000-8000-00000000000a",
    "layout_id": "small",
    "pick_id": "rQ8tVfN2c0Zk4yXw",
    "pickId": "rQ8tVfN2c0Zk4yXw",
    "q": "alger",
    "code": "SPRING",
    "ref": "K7MWXQ",
    "seq": 12,
    "Idempotency-Key": "0f6ebd45-fb7f-47a1-a1ed-35e0d4ad8a0d",
    "payment_id": "0195c0de-0001-7000-8000-000000000004",
    "token": "w4Jq0o3rXn8sVb2kLmTz9pQe",
    "provider": "SIMULATED_CARD",
    "feed": "demo",
    "near": "36.7538,3.0588",
    "bbox": "2.9,36.6,3.2,36.9",
    "route": "demo:104",
    "from": "2026-11-21T06:00:00Z",
    "to": "2026-11-21T09:00:00Z",
}
BODIES: Final[dict[str, Any]] = {
    "post /v1/admin/buses": {"busId": "BUS-17", "feedId": "demo", "label": "17", "plate": "00123-116-16"},
    "post /v1/admin/devices": {"busId": "BUS-17", "feedId": "demo", "name": "phone of the driver"},
    "post /v1/admin/devices/bulk": {
        "feedId": "demo",
        "devices": [{"busId": "BUS-18"}, {"busIds": ["BUS-18", "BUS-19"], "kind": "GATEWAY"}],
    },
    "post /v1/admin/devices/{device_id}/rotate": {"graceS": 3600},
    "post /v1/admin/fare-plans": {
        "id": "coach",
        "name": "Coaches",
        "plan": {
            "currency": "DZD",
            "base": {"kind": "PER_KM", "perKm": 300, "start": 10000},
            "step": 1000,
            "classes": {"PREMIUM": 1350},
            "types": {"ADULT": 1000, "CHILD": 500, "SENIOR": 800, "STUDENT": 850},
            "demand": [{"fromPermille": 500, "permille": 1100}, {"fromPermille": 800, "permille": 1300}],
            "lead": [{"fromHours": 0, "permille": 1100}, {"fromHours": 24, "permille": 1000}, {"fromHours": 168, "permille": 900}],
            "ancillaries": [{"code": "BAG", "kind": "BAGGAGE", "name": "Second bag", "price": 30000, "stock": 20, "maxPerPassenger": 2}],
        },
    },
    "patch /v1/admin/feeds/{feed_id}/rules": {"watch": {"offM": 80, "offS": None}, "onTimeLateS": 240},
    "patch /v1/admin/fare-plans/{plan_id}": {"name": "Coaches of the coast"},
    "post /v1/admin/promo-codes": {"code": "SPRING", "kind": "PERCENT", "value": 100, "maxUses": 500, "maxUsesEach": 1},
    "patch /v1/admin/promo-codes/{code}": {"maxUses": 1000, "validTo": None},
    "post /v1/admin/offers": {"routeId": "demo:W1", "layoutId": "coach-49", "farePlanId": "coach", "openDays": 14, "closeS": 300},
    "post /v1/admin/seat-maps": {
        "id": "small",
        "name": "Small bus",
        "layout": {
            "decks": [{"rows": 3, "columns": 4, "aisles": [2], "driver": {"row": 0, "column": 0}, "doors": [{"row": 0, "column": 3}]}],
            "seats": [
                {"label": "1A", "row": 1, "column": 0},
                {"label": "1B", "row": 1, "column": 1},
                {"label": "1C", "row": 1, "column": 3, "features": ["ACCESSIBLE"]},
                {"label": "2A", "row": 2, "column": 0, "kind": "PREMIUM"},
            ],
        },
    },
    "patch /v1/admin/seat-maps/{layout_id}": {"name": "Small bus with a ramp"},
    "post /v1/admin/alerts": {
        "header": {"en": "Stop Garden closed", "fr": "Arrêt Jardin fermé"},
        "description": {"en": "Works until Friday; use stop END."},
        "cause": "CONSTRUCTION",
        "effect": "MODIFIED_SERVICE",
        "periods": [{"from": "2026-11-21T06:00:00Z", "to": "2026-11-27T22:00:00Z"}],
        "informed": [{"routeId": "demo:104"}, {"stopId": "demo:END"}],
    },
    "put /v1/notifications/incidents": {"severity": "MAJOR", "kinds": ["OFF_ROUTE", "SOS"]},
    "patch /v1/admin/alerts/{alert_id}": {"level": "SEVERE", "url": None},
    "patch /v1/admin/offers/{route_id}": {"openDays": 30, "womenOnlySeats": ["1A", "1B"]},
    "post /v1/trips/{trip_id}/share": {"expiresInS": 7200, "from": "demo:ALG", "to": "demo:ORN"},
    "post /v1/trips/{trip_id}/quotes": {"count": 2, "from": "demo:ALG", "to": "demo:ORN", "passengers": ["ADULT", "CHILD"]},
    "post /v1/events/publish": {"topic": "system", "type": "ALERT", "data": {"alert": "ROAD_CLOSED", "road": "N5"}, "partnerId": "demo"},
    "post /v1/trips/{trip_id}/holds": {"seats": ["1A", "1B"], "from": "demo:ALG", "to": "demo:ORN"},
    "post /v1/trips/{trip_id}/picks": {"seats": ["1A", "1B", "2A"], "from": "demo:ALG", "to": "demo:ORN"},
    "post /v1/bookings": {
        "holdId": "0195c0de-0001-7000-8000-000000000003",
        "passengers": [
            {"seat": "1A", "firstName": "Amal", "lastName": "Benaïssa"},
            {"seat": "1B", "firstName": "Ilyes", "lastName": "Kaci"},
        ],
        "contact": {"email": "amal@example.org"},
    },
    "post /v1/tickets/verify": {"qr": "V50H0C0A1", "tripId": "demo:104-END-0-031:20261121"},
    "post /v1/tickets/scans": {
        "deviceId": "door-7",
        "deviceTimeMs": 1795248060000,
        "scans": [{"seq": 41, "qr": "V50H0C0A1", "tripId": "demo:104-END-0-031:20261121", "scannedAtMs": 1795248000000}],
    },
    "post /v1/bookings/{ref}/check-in": {"tripId": "demo:104-END-0-031:20261121"},
    "post /v1/pos/devices": {"deviceId": "till-7", "name": "the counter at the north gate"},
    "put /v1/pos/policy": {"onConflict": "OFFER"},
    "post /v1/pos/leases": {"deviceId": "till-7", "tripId": "demo:104-END-0-031:20261121", "seats": ["3A", "3B"], "ttlS": 14400},
    "post /v1/pos/leases/{lease_id}/extend": {"ttlS": 3600},
    "post /v1/pos/sync": {
        "deviceId": "till-7",
        "deviceTimeMs": 1795248060000,
        "sales": [
            {
                "seq": 12,
                "tripId": "demo:104-END-0-031:20261121",
                "seat": "3A",
                "from": "demo:ALG",
                "to": "demo:ORN",
                "soldAtMs": 1795248000000,
                "amount": 150000,
                "currency": "DZD",
                "method": "CASH",
                "passenger": {"firstName": "Amal", "lastName": "Benaïssa", "type": "ADULT"},
            }
        ],
    },
    "post /v1/pos/sales/{seq}/seat": {"deviceId": "till-7", "seat": "4A"},
    "post /v1/pos/sessions": {"deviceId": "till-7", "currency": "DZD", "float": 500000},
    "post /v1/pos/sessions/{session_id}/close": {"counted": 650000},
    "post /v1/trips/{trip_id}/waitlist": {"count": 2, "from": "demo:ALG", "to": "demo:ORN", "contact": {"email": "amal@example.org"}},
    "put /v1/trips/{trip_id}/waiting-room": {"mode": "ON", "admitPerS": 10},
    "post /v1/payments/initiate": {"bookingRef": "K7MWXQ", "provider": "SIMULATED_CARD"},
    "post /v1/payments/confirm": {"paymentId": "0195c0de-0001-7000-8000-000000000004"},
    "post /v1/payments/{payment_id}/seats": {"trips": [{"tripId": "demo:104-END-0-031:20261121", "seats": ["2A", "2B"]}]},
    "post /v1/payments/refund": {"bookingRef": "K7MWXQ", "amount": {"amount": 5000, "currency": "DZD"}, "reason": "the bus was late"},
    "post /v1/settlements": {"partnerId": "demo", "currency": "DZD", "to": "2026-11-01T00:00:00Z"},
    "patch /v1/bookings/{ref}/cancel": {"seats": ["1B"]},
    "post /v1/bookings/{ref}/modify": {"seats": {"1A": "2A"}},
    "put /v1/trips/{trip_id}/assignment": {"busId": "BUS-17", "driverId": "driver-7", "reason": "BUS-12 broke down"},
    "post /v1/trips/{trip_id}/swap-bus": {"layoutId": "minibus-19", "busId": "BUS-17", "plan": True},
    "post /v1/trips/{trip_id}/cancel": {"reason": "the road is closed by snow"},
    "post /v1/trips/{trip_id}/sales": {"open": False},
    "post /v1/bookings/lookup": {"ref": "K7MWXQ", "lastName": "Benaïssa"},
    "post /v1/geofences": {
        "name": "Yard of El Harrach",
        "kind": "RESTRICTED",
        "geometry": {
            "type": "Polygon",
            "coordinates": [[[3.128, 36.721], [3.133, 36.721], [3.133, 36.725], [3.128, 36.725], [3.128, 36.721]]],
        },
        "severity": "CRITICAL",
        "calendar": {"windows": [{"days": ["MON", "TUE", "WED", "THU", "SUN"], "from": "22:00", "to": "29:30"}]},
        "feedId": "demo",
    },
    "patch /v1/geofences/{fence_id}": {"geometry": {"type": "Circle", "coordinates": [3.0588, 36.7538], "radiusM": 150}, "calendar": None},
    "post /v1/geofences/check": {"lat": 36.7538, "lon": 3.0588},
    "patch /v1/incidents/{incident_id}": {"state": "ASSIGNED", "assignedTo": "night desk", "note": "calls the driver"},
    "post /v1/sos": {"tripId": "demo:104-END-0-031:20261121", "lat": 36.7538, "lon": 3.0588, "note": "the driver is unwell"},
}
# "method path" -> what it answers besides JSON, by Accept
MEDIA: Final[dict[str, tuple[str, ...]]] = {
    "get /v1/playback": ("application/msgpack",),
    "get /v1/buses/{bus_id}/playback": ("application/msgpack",),
    "get /v1/bookings/{ref}/ticket": ("application/pdf", "image/png", "image/svg+xml"),
    "get /v1/trips/{trip_id}/manifest": ("text/csv", "text/html"),
    "get /v1/settlements": ("text/csv",),
}
BODY_OPTIONAL: Final = (
    "post /v1/bookings/{ref}/check-in",
    "post /v1/trips/{trip_id}/share",
)
ZIP: Final = {"required": True, "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}


def roles_of(method: str, path: str) -> tuple[str, ...]:
    """Who may make a call; empty: everybody."""
    exact = WHO.get(f"{method} {path}")
    return exact if exact is not None else next((roles for start, roles in WHO.items() if path.startswith(start)), ())


def codes_of(method: str, path: str, call: dict[str, Any]) -> Iterator[str]:
    """The codes of the problems that a call may answer with, besides those of every call (METHOD_NOT_ALLOWED, INTERNAL)."""
    call_of_desk = f"{method} {path}" in CODES or path.startswith(OF_DESK) or f"{method} {path}" in OF_DESK
    if call_of_desk:
        yield from DESK
        yield from CODES.get(f"{method} {path}", ())
    writes = method != "get"
    if call.get("parameters") or writes:
        yield errors.Invalid.code
    if roles_of(method, path):
        yield errors.Unauthenticated.code
        yield errors.Forbidden.code
    if "{" in path or path.startswith("/gtfs-rt/"):
        yield errors.NotFound.code
    if method == "post" or (method == "patch" and path.startswith("/v1/incidents")):
        yield errors.Conflict.code
    if method in ("post", "put", "patch"):
        yield errors.TooLarge.code
    if path == "/v1/admin/feeds":
        yield errors.FeedRejected.code
    if path.startswith(RECORD):
        yield errors.Unavailable.code


def described(schema: dict[str, Any]) -> dict[str, Any]:
    """The same schema (changed in place) with callers, errors and examples."""
    _, components = msgspec.json.schema_components([Problem], ref_template="#/components/schemas/{name}")
    schema["components"].setdefault("schemas", {}).update(components)
    schema["components"]["securitySchemes"] = {"accessToken": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}}
    for path, calls in schema["paths"].items():
        for method, call in calls.items():
            _describe(method, path, call)
    _undo_ellipses(schema["components"]["schemas"])
    return schema


def _undo_ellipses(part: Any) -> None:
    """The framework takes `tuple[X, ...]` for items that are "X or anything", which no X is: they are X."""
    if isinstance(part, dict):
        if isinstance(part.get("items"), dict) and {} in (either := part["items"].get("oneOf", [])) and len(either) == 2:
            part["items"] = next(one for one in either if one)
        for inner in part.values():
            _undo_ellipses(inner)
    elif isinstance(part, list):
        for inner in part:
            _undo_ellipses(inner)


def _describe(method: str, path: str, call: dict[str, Any]) -> None:
    roles = roles_of(method, path)
    call["x-roles"] = list(roles) or ["everybody"]
    if roles:
        call["security"] = [{"accessToken": []}]
    call["responses"] = {status: said for status, said in call["responses"].items() if not status.startswith("4")}
    by_status: dict[int, list[str]] = {}
    refused_with = dict.fromkeys(codes_of(method, path, call))
    for code in refused_with:
        by_status.setdefault(STATUS_OF[code], []).append(code)
    for status, codes in by_status.items():
        problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
        call["responses"][str(status)] = {
            "description": f"{HTTPStatus(status).phrase}: {', '.join(codes)}", "x-codes": codes, "content": {MEDIA_TYPE: problem}
        }  # fmt: skip
    add_headers(method, path, call, refused_with)
    for parameter in call.get("parameters", []):
        if parameter["name"] in PARAMETERS and (parameter["required"] or (parameter["name"] == "near" and "locations" in path)):
            parameter["example"] = PARAMETERS[parameter["name"]]
    if path == "/v1/admin/feeds":
        call["requestBody"] = ZIP
    elif f"{method} {path}" in BODIES:
        for content in call["requestBody"]["content"].values():
            content["example"] = BODIES[f"{method} {path}"]
    if f"{method} {path}" in BODY_OPTIONAL:
        call["requestBody"]["required"] = False
    for kind in MEDIA.get(f"{method} {path}", ()):
        form = {} if kind.startswith("text/") or kind.endswith("+xml") else {"format": "binary"}
        call["responses"]["200"]["content"][kind] = {"schema": {"type": "string"} | form}


class Schema(JsonRenderPlugin):
    """/schema: the framework's schema, described once."""

    def __init__(self) -> None:
        super().__init__(path="/")
        self._made: bytes | None = None

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        if self._made is None:  # described() changes the schema, and the framework hands out the same one each time
            self._made = super().render(request, described(openapi_schema))
        return self._made
