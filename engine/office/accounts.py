"""Who may send for which bus: devices, their credentials, and the registry of them that every worker keeps in memory.

Promises: a token is known by its SHA-256 only and is shown in clear once, when it is made; a rotated one stays good for a grace
period, so that no fix is lost while a phone is told; a retired device is refused on every worker within 5 s (`Devices` reads what
changed every 2 s); the registry answers on from memory while PostgreSQL is down. Refuses: to keep an HMAC secret anywhere. It is
derived from the product's secret key, the device and a generation number, so a copy of the database opens no door.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
from collections.abc import Sequence
from typing import Protocol

import msgspec

from engine.clock import Clock
from engine.errors import Conflict, Invalid, NotFound, Unavailable
from engine.meter import Meter

log = logging.getLogger(__name__)

TOKEN, HMAC, GATEWAY = "TOKEN", "HMAC", "GATEWAY"  # one bus by token; own firmware that signs; a server that sends for many buses
KINDS = (TOKEN, HMAC, GATEWAY)
REFRESH_S = 2.0  # twice that and a slow query still keep the 5 s promised for a revocation
SEEN_S = 10.0  # how often "last seen" goes to the database
GRACE_S = 86_400  # default life of the credentials before a rotation: a day to reach every phone
BUSES_MAX = 5000  # of one gateway
MQTT_ITERATIONS = 101
NEVER_MS = 2**62


class Device(msgspec.Struct, frozen=True, gc=False):
    """A sender as the door sees it. `buses`: bus id -> area (feed id) of every bus it may speak for."""

    device_id: str
    partner_id: str
    kind: str
    buses: dict[str, str]
    unique_id: str | None = None  # what the phone calls itself (Traccar's identifier), where the registry was told
    generation: int = 1  # of the credentials that it came with
    until_ms: int = NEVER_MS  # until when they are good

    def bus(self, said: str | None) -> str | None:
        """The bus meant by an id that a phone sent: a bus id, the device's own ids, or no id where there is one bus only.
        None: not among them.
        """
        if said is None or said == "" or said == self.unique_id or said == self.device_id:
            return next(iter(self.buses)) if len(self.buses) == 1 else None
        return said if said in self.buses else None


class DeviceRow(msgspec.Struct, frozen=True):
    """A device as the database has it. Times UTC ms."""

    device_id: str
    partner_id: str
    kind: str
    name: str
    bus_ids: list[str]
    unique_id: str | None
    token_sha256: bytes | None  # None: an HMAC device
    previous_sha256: bytes | None
    generation: int  # 1 + rotations; an HMAC secret is derived from it
    previous_until_ms: int | None  # until when what was good before the rotation stays good
    created_at_ms: int
    rotated_at_ms: int | None
    retired_at_ms: int | None
    seen_at_ms: int | None = None
    mqtt_hash: str | None = None  # the broker's own hash of the token, or of the HMAC secret
    previous_mqtt_hash: str | None = None


class BusRow(msgspec.Struct, frozen=True):
    bus_id: str
    partner_id: str
    area: str  # feed id
    label: str
    plate: str | None
    retired_at_ms: int | None = None


class Change(msgspec.Struct):
    """What changed since a mark, and the next mark."""

    devices: list[DeviceRow]
    buses: list[BusRow]
    mark: int


class FleetStore(Protocol):
    """What the registry needs of `engine.store.fleet.Fleet`."""

    async def changed(self, since: int) -> Change:
        """Rows of every transaction that could not be seen at `since` (0: all), and the mark for the next call. Raises `Unavailable`."""
        ...

    async def seen(self, at_ms: dict[str, int]) -> None:
        """Keep when each device was last heard."""
        ...


def token_hash(token: str | bytes) -> bytes:
    return hashlib.sha256(token.encode() if isinstance(token, str) else token).digest()


def hmac_secret(secret_key: str, device_id: str, generation: int) -> str:
    """The device's signing secret, 64 hex digits: HMAC-SHA256 of the product's key over the device and the generation."""
    return hmac.new(secret_key.encode(), f"timepoint device hmac\n{device_id}\n{generation}".encode(), hashlib.sha256).hexdigest()


def mosquitto_hash(password: str, clock: Clock) -> str:
    """As mosquitto_passwd writes it: `$7$iterations$salt$hash`, PBKDF2-HMAC-SHA512. 101 iterations, its default, are enough for a password
    of 192 random bits; ten thousand devices take a second.
    """
    salt = hashlib.sha256(clock.token(16).encode()).digest()[:12]
    known = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, MQTT_ITERATIONS)
    return f"$7${MQTT_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(known).decode()}"


class Devices:
    """The registry of one worker. One task (`run`) keeps it fresh; lookups are dictionary reads."""

    def __init__(self, store: FleetStore, clock: Clock, *, secret_key: str, meter: Meter | None = None) -> None:
        self.store, self.clock, self._key = store, clock, secret_key
        meter = meter or Meter()
        self._faults = meter.counter("timepoint_registry_faults_total", "refreshes of the device registry that failed")
        self._size = meter.gauge("timepoint_registry_devices", "devices that may send")
        self.rows: dict[str, DeviceRow] = {}
        self.buses: dict[str, BusRow] = {}
        self._devices: dict[str, Device] = {}
        self._rotated: dict[str, Device] = {}  # the same, by the credentials of before the last rotation
        self._by_hash: dict[bytes, Device] = {}
        self._by_bus: dict[str, set[str]] = {}  # ids of the devices that may speak for it
        self._heard: dict[str, int] = {}
        self._mark = 0
        self._loading = asyncio.Lock()
        self.version = 0  # grows with every change: who writes the broker's files looks at it

    # --- lookups: the hot path ---

    def by_token(self, token: str | bytes) -> Device | None:
        found = self._by_hash.get(token_hash(token))
        if found is None or (found.until_ms != NEVER_MS and found.until_ms < self.clock.now_ms()):
            return None
        return found

    def renewed(self, device: Device) -> Device | None:
        """The device as it is now, for who was let in a while ago; None: its credentials are no longer good."""
        now = self._devices.get(device.device_id)
        if now is device or now is None or now.generation == device.generation:
            return now
        rotated = self._rotated.get(device.device_id)
        if rotated is None or rotated.generation != device.generation or rotated.until_ms < self.clock.now_ms():
            return None
        return rotated

    def by_id(self, device_id: str) -> Device | None:
        return self._devices.get(device_id)

    def of_bus(self, bus_id: str) -> Device | None:
        """The youngest device of that bus alone, else a gateway that may speak for it: who an MQTT topic means."""
        found = [self._devices[device_id] for device_id in self._by_bus.get(bus_id, ())]
        return max(found, key=lambda device: (device.kind != GATEWAY, device.device_id)) if found else None

    def secrets(self, device_id: str) -> list[str]:
        """The signing secrets that are good now, newest first; empty for one that does not sign."""
        row = self.rows.get(device_id)
        if row is None or row.kind != HMAC:
            return []
        generations = [row.generation]
        if row.generation > 1 and row.previous_until_ms is not None and row.previous_until_ms >= self.clock.now_ms():
            generations.append(row.generation - 1)
        return [hmac_secret(self._key, device_id, generation) for generation in generations]

    def heard(self, device_id: str, at_ms: int) -> None:
        self._heard[device_id] = at_ms

    # --- keeping fresh ---

    async def load(self) -> None:
        """All of it, or what changed since the last call. Raises `Unavailable`; what was known stays known."""
        async with self._loading:  # an answer overtaken by a later one would bring back a device that was retired between
            change = await self.store.changed(self._mark)
            self._mark = change.mark
            if change.devices or change.buses:
                self._take(change)

    def _take(self, change: Change) -> None:
        moved = set()
        for bus in change.buses:
            self.buses[bus.bus_id] = bus
            moved.add(bus.bus_id)
        touched = {row.device_id for row in change.devices}
        if moved and self._devices:
            touched |= {row.device_id for row in self.rows.values() if not moved.isdisjoint(row.bus_ids)}
        for row in change.devices:
            self._forget(row.device_id)
            self.rows[row.device_id] = row
        for device_id in touched:
            self._place(self.rows[device_id])
        self.version += 1
        self._size.set(len(self._devices))

    def _forget(self, device_id: str) -> None:
        row = self.rows.pop(device_id, None)
        self._devices.pop(device_id, None)
        self._rotated.pop(device_id, None)
        if row is not None:
            for bus_id in row.bus_ids:
                self._by_bus.get(bus_id, set()).discard(device_id)
            for digest in (row.token_sha256, row.previous_sha256):
                if digest is not None:
                    self._by_hash.pop(digest, None)

    def _place(self, row: DeviceRow) -> None:
        """Make the row's credentials good, or, of a retired one, keep nothing."""
        if row.retired_at_ms is not None:
            self._forget(row.device_id)
            return
        buses = {}
        for bus_id in row.bus_ids:
            bus = self.buses.get(bus_id)
            if bus is not None and bus.retired_at_ms is None and bus.partner_id == row.partner_id:
                buses[bus_id] = bus.area
        device = Device(row.device_id, row.partner_id, row.kind, buses, row.unique_id, row.generation)
        self._devices[row.device_id] = device
        for bus_id in row.bus_ids:
            among = self._by_bus.setdefault(bus_id, set())
            among.add(row.device_id) if bus_id in buses else among.discard(row.device_id)
        if row.token_sha256 is not None:
            self._by_hash[row.token_sha256] = device
        if row.previous_until_ms is not None:
            rotated = msgspec.structs.replace(device, generation=row.generation - 1, until_ms=row.previous_until_ms)
            self._rotated[row.device_id] = rotated
            if row.previous_sha256 is not None:
                self._by_hash[row.previous_sha256] = rotated

    async def flush_seen(self) -> None:
        """What was heard since the last flush. Raises `Unavailable`; nothing is forgotten then."""
        heard, self._heard = self._heard, {}
        if heard:
            try:
                await self.store.seen(heard)
            except BaseException:
                self._heard = heard | self._heard
                raise

    async def run(self) -> None:
        """Until cancelled: refresh every 2 s. A database that is away is counted, and the registry works on from memory."""
        flushed_s = self.clock.steady_s()
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                await self.load()
                if self.clock.steady_s() - flushed_s >= SEEN_S:
                    flushed_s = self.clock.steady_s()
                    await self.flush_seen()
            except Unavailable as fault:
                self._faults.add()
                log.warning("device registry: %s; going on with %d devices from memory", fault.detail, len(self._devices))


# --- issuing: what the admin paths and the command line call ---


class NewDevice(msgspec.Struct, frozen=True, rename="camel"):
    """What a device is made from. TOKEN: exactly one bus."""

    bus_ids: list[str]
    kind: str = TOKEN
    name: str = ""
    unique_id: str | None = None


class Issued(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Fresh credentials, in clear this one time: a token, or the secret of a device that signs."""

    device_id: str
    kind: str
    bus_ids: list[str]
    name: str = ""
    token: str | None = None
    secret: str | None = None
    previous_until_ms: int | None = None  # after a rotation: until when the last credentials stay good
    mqtt_user: str | None = None  # after a rotation: the broker's user that has the new password at once


class FleetRecords(Protocol):
    """What issuing needs of `engine.store.fleet.Fleet`; its methods are documented there."""

    async def buses_missing(self, partner_id: str, bus_ids: Sequence[str]) -> list[str]: ...

    async def insert_devices(self, devices: Sequence[DeviceRow]) -> None: ...

    async def device(self, partner_id: str, device_id: str) -> DeviceRow | None: ...

    async def rotate_device(self, row: DeviceRow, token_sha256: bytes | None, mqtt_hash: str, at_ms: int, until_ms: int) -> bool: ...


async def create_devices(fleet: FleetRecords, clock: Clock, secret_key: str, partner_id: str, wanted: Sequence[NewDevice]) -> list[Issued]:
    """One device or thousands, all or none. Raises `Invalid` that names every bad one, `Conflict` where a unique id is taken.

    They are good on every worker within 5 s.
    """
    await _check(fleet, partner_id, wanted)
    now_ms = clock.now_ms()
    rows, issued = [], []
    for one in wanted:
        device_id = clock.uuid7()
        token = None if one.kind == HMAC else "tpd_" + clock.token(24)
        secret = hmac_secret(secret_key, device_id, 1) if one.kind == HMAC else None
        digest = None if token is None else token_hash(token)
        known = mosquitto_hash(token or secret or "", clock)
        rows.append(
            DeviceRow(
                device_id, partner_id, one.kind, one.name, one.bus_ids, one.unique_id, digest, None, 1, None, now_ms, None, None, None, known
            )
        )  # fmt: skip
        issued.append(Issued(device_id, one.kind, one.bus_ids, one.name, token, secret))
    await fleet.insert_devices(rows)
    return issued


async def _check(fleet: FleetRecords, partner_id: str, wanted: Sequence[NewDevice]) -> None:
    missing = set(await fleet.buses_missing(partner_id, sorted({bus_id for one in wanted for bus_id in one.bus_ids})))
    errors = []
    for index, one in enumerate(wanted):
        fault = None
        if one.kind not in KINDS:
            fault = "BAD_KIND", f"kind is one of {', '.join(KINDS)}"
        elif not one.bus_ids or (one.kind == TOKEN and len(one.bus_ids) != 1) or len(one.bus_ids) > BUSES_MAX:
            fault = "BAD_BUSES", f"a TOKEN device has one bus, others 1 to {BUSES_MAX}"
        elif not missing.isdisjoint(one.bus_ids):
            fault = "UNKNOWN_BUS", f"no such bus: {', '.join(sorted(missing & set(one.bus_ids))[:10])}"
        elif len(one.name) > 100 or (one.unique_id is not None and not 1 <= len(one.unique_id) <= 100):
            fault = "TOO_LONG", "name: at most 100 characters; uniqueId: 1 to 100"
        if fault is not None:
            errors.append({"pointer": f"/{index}", "code": fault[0], "detail": fault[1]})
    if errors:
        raise Invalid(f"{len(errors)} of {len(wanted)} devices cannot be made", errors=errors[:100])


async def rotate_device(
    fleet: FleetRecords, clock: Clock, secret_key: str, partner_id: str, device_id: str, *, grace_s: int = GRACE_S
) -> Issued:
    """New credentials; the last ones stay good for `grace_s` (0: end now, for a stolen phone).

    Raises `NotFound`, and `Conflict` where another rotation came between.
    """
    row = await fleet.device(partner_id, device_id)
    if row is None or row.retired_at_ms is not None:
        raise NotFound("there is no such device")
    now_ms, generation = clock.now_ms(), row.generation + 1
    until_ms = now_ms + grace_s * 1000
    token = None if row.kind == HMAC else "tpd_" + clock.token(24)
    secret = hmac_secret(secret_key, device_id, generation) if row.kind == HMAC else None
    digest = None if token is None else token_hash(token)
    if not await fleet.rotate_device(row, digest, mosquitto_hash(token or secret or "", clock), now_ms, until_ms):
        raise Conflict("this device was changed at the same moment; look again")
    user = f"{device_id}.{generation}"
    return Issued(device_id, row.kind, row.bus_ids, row.name, token, secret, until_ms, user)
