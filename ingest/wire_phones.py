"""What phones and other tracking servers send: OsmAnd and Traccar Client, OwnTracks, Overland, Traccar's position forwarding.

Promises what `wire.py` promises. Units by protocol: OsmAnd query and form knots, the JSON of Traccar Client 9 m/s with -1 for "unknown",
OwnTracks km/h, Overland m/s, Traccar forwarding knots. Times: seconds, milliseconds or ISO 8601 (without a zone: UTC), none: the receipt.
Which bus: `Device.bus` of the id that the message carries.

Sources: traccar.org/osmand, traccar.org/forward (field names of its JSON), owntracks.org/booklet/tech/json,
github.com/aaronpk/Overland-iOS (README, "API").
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from engine.office.accounts import Device
from engine.tracking.fix import Fix
from ingest.wire import INT64_MAX, KMH, KNOT, Decoded, Unusable, WireError, loose_json, screened, take_each, trip_of, whole, within

FIELDS_MAX = 200  # of one query or form; Traccar Client sends about 15
SECONDS_BELOW = 1e11  # a number below it is seconds (to the year 5138), from it on milliseconds (from 1973)

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# --- values ---


def number(value: object) -> float | None:
    """A finite number, also written as text; None for anything else."""
    if isinstance(value, str):
        text = value.strip()
        if len(text) > 40 or not _NUMBER.fullmatch(text):
            return None
        value = float(text)
    elif isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:  # an integer of more than 308 digits
        return None
    return found if math.isfinite(found) else None


def flag(value: object) -> bool | None:
    if isinstance(value, bool):
        return value
    return {"true": True, "1": True, "false": False, "0": False}.get(value.lower()) if isinstance(value, str) else None


def text(value: object) -> str | None:
    """An id as text; phones write numeric ones as numbers."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= INT64_MAX else None


def moment(value: object, received_at_ms: int) -> int:
    """UTC ms. Raises `Unusable` for a time that cannot be read."""
    if value is None or value == "":
        return received_at_ms
    said = number(value)
    if said is not None:
        at_ms = said * 1000 if abs(said) < SECONDS_BELOW else said
        if abs(at_ms) >= INT64_MAX:
            raise Unusable("ABSURD_TIME", f"time {said}")
        return round(at_ms)
    if isinstance(value, str):
        try:
            at = datetime.fromisoformat(value.strip()[:40])
            return round(((at if at.tzinfo else at.replace(tzinfo=UTC)) - _EPOCH).total_seconds() * 1000)
        except (ValueError, OverflowError):
            pass
    raise Unusable("MALFORMED", f"time {str(value)[:60]!r} is neither a number nor ISO 8601")


def mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Unusable("MALFORMED", f"{what} is not an object")
    return value


def bus_of(device: Device, said: str | None, user: str | None = None) -> str:
    """Raises `Unusable`. `user`: the name of Basic credentials, which counts where it names a bus and the message names none."""
    if not said and user is not None and user in device.buses:
        return user
    bus_id = device.bus(said)
    if bus_id is None:
        named = f"id {said[:64]!r} is" if said else "no id was sent, and there is none"
        raise Unusable("NOT_YOUR_BUS", f"{named} among this device's buses and names")
    return bus_id


def place(lat: object, lon: object, bus_id: str) -> tuple[float, float]:
    where = number(lat), number(lon)
    if where[0] is None or where[1] is None:
        raise Unusable("MALFORMED", f"no position: latitude {str(lat)[:40]!r}, longitude {str(lon)[:40]!r}", bus_id)
    return where[0], where[1]


def known(value: object) -> float | None:
    """An optional reading; None for a negative one, which says "unknown"."""
    found = number(value)
    return found if found is not None and found >= 0 else None


def scaled(value: object, unit: float) -> float | None:
    found = known(value)
    return None if found is None else found * unit


def any_json(body: bytes) -> Any:
    """Raises `WireError`."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return loose_json(body)


# --- OsmAnd and Traccar Client ---


def osmand(query: bytes, body: bytes, content_type: str, device: Device, received_at_ms: int, user: str | None = None) -> Decoded:
    """A query, a form, or JSON (one message, several in `location`, or an array of either). Raises `WireError`."""
    asked = pairs(query)
    if not body.strip():
        said: list[Any] = [asked]
    elif "json" in content_type or body.lstrip()[:1] in (b"{", b"["):
        said = _messages(any_json(body))
    else:
        said = [asked | pairs(body)]
    named = asked.get("id") or asked.get("deviceid")

    def read(one: Any) -> Fix:
        message = mapping(one, "the message")
        if "location" in message and not isinstance(message["location"], str):
            return _traccar_client(message, device, received_at_ms, named, user)
        return _osmand(message, device, received_at_ms, named, user)

    return take_each(said, read)


def pairs(encoded: bytes) -> dict[str, str]:
    """Query or form fields; of a name that stands twice the last. Raises `WireError` for more than 200."""
    try:
        return dict(parse_qsl(encoded.decode("latin-1"), keep_blank_values=True, errors="replace", max_num_fields=FIELDS_MAX))
    except ValueError as fault:
        raise WireError(f"query or form: {fault}") from fault


def _messages(said: Any) -> list[Any]:
    """One message per location: `{"location": [a, b], "device_id"}` is two."""
    out = []
    for one in said if isinstance(said, list) else [said]:
        several = one.get("location") if isinstance(one, dict) else None
        out += [{**one, "location": each} for each in several] if isinstance(several, list) else [one]
    return out


def _traccar_client(message: Mapping[str, Any], device: Device, received_at_ms: int, named: str | None, user: str | None) -> Fix:
    """The JSON of Traccar Client 9: speeds in m/s, -1 where unknown."""
    bus_id = bus_of(device, text(message.get("device_id")) or named, user)
    location = mapping(message["location"], "location")
    coords = mapping(location.get("coords"), "location.coords")
    lat, lon = place(coords.get("latitude"), coords.get("longitude"), bus_id)
    return screened(
        Fix(
            bus_id, moment(location.get("timestamp"), received_at_ms), lat, lon, received_at_ms, device.device_id, "osmand",
            accuracy_m=known(coords.get("accuracy")), speed_mps=known(coords.get("speed")), bearing_deg=known(coords.get("heading")),
            altitude_m=within(number(coords.get("altitude")), -1000, 20_000),
        )
    )  # fmt: skip


def _osmand(said: Mapping[str, Any], device: Device, received_at_ms: int, named: str | None, user: str | None) -> Fix:
    """Query and form: knots. `hdop` is no length and is left aside."""
    bus_id = bus_of(device, text(said.get("id")) or text(said.get("deviceid")) or named, user)
    lat, lon = said.get("lat"), said.get("lon")
    both = said.get("location")
    if lat is None and lon is None and isinstance(both, str):
        lat, _, lon = both.partition(",")
    at_lat, at_lon = place(lat, lon, bus_id)
    trip_id, start_date = trip_of(device.buses[bus_id], text(said.get("tripId")), text(said.get("startDate")))
    heading = said.get("bearing") if said.get("bearing") is not None else said.get("heading")
    return screened(
        Fix(
            bus_id, moment(said.get("timestamp"), received_at_ms), at_lat, at_lon, received_at_ms, device.device_id, "osmand",
            accuracy_m=known(said.get("accuracy") if said.get("accuracy") is not None else said.get("hacc")),
            speed_mps=scaled(said.get("speed"), KNOT), bearing_deg=known(heading), trip_id=trip_id, start_date=start_date,
            altitude_m=within(number(said.get("altitude")), -1000, 20_000), ignition=flag(said.get("ignition")),
            passengers=whole(number(said.get("passengers")), 0, 1000), fuel_pct=within(number(said.get("fuel")), 0, 100),
        )
    )  # fmt: skip


# --- OwnTracks ---


def owntracks(body: bytes, device: Device, received_at_ms: int, user: str | None, source: str = "owntracks") -> Decoded:
    """`_type` location; the other types are no fixes. `user`: the name of the credentials, which is the bus. Raises `WireError`."""
    said = any_json(body)

    def read(one: Any) -> Fix | None:
        message = mapping(one, "the message")
        if message.get("_type") != "location":
            return None
        bus_id = bus_of(device, user)
        lat, lon = place(message.get("lat"), message.get("lon"), bus_id)
        return screened(
            Fix(
                bus_id, moment(message.get("tst"), received_at_ms), lat, lon, received_at_ms, device.device_id, source,
                accuracy_m=known(message.get("acc")), speed_mps=scaled(message.get("vel"), KMH), bearing_deg=known(message.get("cog")),
                altitude_m=within(number(message.get("alt")), -1000, 20_000),
            )
        )  # fmt: skip

    return take_each(said if isinstance(said, list) else [said], read)


# --- Overland ---


def overland(body: bytes, device: Device, received_at_ms: int, user: str | None = None) -> Decoded:
    """GeoJSON features in `locations`; visits and trip marks are no fixes. Raises `WireError`."""
    said = any_json(body)
    locations = said.get("locations") if isinstance(said, dict) else None
    if not isinstance(locations, list):
        raise WireError("locations: an array of GeoJSON features is expected")

    def read(one: Any) -> Fix | None:
        feature = mapping(one, "the feature")
        about = mapping(feature.get("properties"), "properties")
        if about.get("action") == "visit" or about.get("type") == "trip":
            return None
        bus_id = bus_of(device, text(about.get("device_id")), user)
        point = mapping(feature.get("geometry"), "geometry").get("coordinates")
        if not isinstance(point, list) or len(point) < 2:
            raise Unusable("MALFORMED", "geometry.coordinates: [longitude, latitude] is expected", bus_id)
        lat, lon = place(point[1], point[0], bus_id)
        return screened(
            Fix(
                bus_id, moment(about.get("timestamp"), received_at_ms), lat, lon, received_at_ms, device.device_id, "overland",
                accuracy_m=known(about.get("horizontal_accuracy")), speed_mps=known(about.get("speed")),
                bearing_deg=known(about.get("course")), altitude_m=within(number(about.get("altitude")), -1000, 20_000),
            )
        )  # fmt: skip

    return take_each(locations, read)


# --- Traccar's position forwarding ---


def traccar(body: bytes, device: Device, received_at_ms: int, user: str | None = None) -> Decoded:
    """`{"position", "device"}` or an array of them; `device.uniqueId` is the bus. Raises `WireError`."""
    said = any_json(body)

    def read(one: Any) -> Fix | None:
        message = mapping(one, "the message")
        position = mapping(message.get("position"), "position")
        whose = message.get("device")
        bus_id = bus_of(device, text(whose.get("uniqueId")) if isinstance(whose, dict) else None, user)
        if position.get("outdated") is True:  # Traccar repeats the last known place where a message had none
            return None
        lat, lon = place(position.get("latitude"), position.get("longitude"), bus_id)
        more = position.get("attributes")
        status: Mapping[str, Any] = more if isinstance(more, dict) else {}
        return screened(
            Fix(
                bus_id, moment(position.get("fixTime") or position.get("deviceTime"), received_at_ms), lat, lon, received_at_ms,
                device.device_id, "traccar", accuracy_m=known(position.get("accuracy")) or None,  # 0: Traccar was not told
                speed_mps=scaled(position.get("speed"), KNOT), bearing_deg=known(position.get("course")),
                altitude_m=within(number(position.get("altitude")), -1000, 20_000), ignition=flag(status.get("ignition")),
                door_open=flag(status.get("door")), fuel_pct=within(number(status.get("fuelLevel")), 0, 100),
            )
        )  # fmt: skip

    return take_each(said if isinstance(said, list) else [said], read)
