"""Fix: one GPS reading in the product's one normal form, and `screen`, which accepts it or says the one reason why not.

Units: UTC milliseconds, degrees (WGS 84), metres, metres a second, degrees clockwise from north. A device's own units end in `ingest/wire.py`.
"""

from __future__ import annotations

import msgspec


class Fix(msgspec.Struct, frozen=True, array_like=True, gc=False, omit_defaults=False):
    """As it stands in the ingest stream `in:{area}`: msgpack, fields by position, so only append at the end."""

    bus_id: str
    fixed_at_ms: int  # when the receiver says it was there
    lat: float
    lon: float
    received_at_ms: int  # when we had it
    device_id: str
    source: str  # telemetry | osmand | owntracks | overland | traccar | socket | mqtt | replay
    accuracy_m: float | None = None  # None: the device did not say
    speed_mps: float | None = None
    bearing_deg: float | None = None
    seq: int | None = None  # the device's own counter
    trip_id: str | None = None  # GTFS trip_id inside the area's feed; None: the engine assigns
    start_date: str | None = None  # yyyymmdd service date; None: the engine finds it
    altitude_m: float | None = None
    ignition: bool | None = None
    door_open: bool | None = None
    passengers: int | None = None
    fuel_pct: float | None = None
