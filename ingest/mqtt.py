"""MQTT in: one reader with a fixed client id and a persistent session, which acknowledges a message to the broker after its append only.

Promises: a message of QoS 1 that the broker has taken is in the stream, or comes again: a reader that is killed, frozen or cut off leaves it
with the broker, and the next one (on any worker, under the lease "mqtt") is given it. Messages of one bus are appended in the order in which
they came, also when Redis was away between. A poison message is acknowledged, counted and quarantined, so that it comes once; so is one of a
device over its rate (reason RATE), as no answer can ask a device of MQTT to wait. Refuses: to hold more than `RECEIVE_MAX` unacknowledged
messages (the broker keeps the rest), and QoS 0 beyond the queue's bound (dropped, counted).

Topics: `timepoint/v1/telemetry/{busId}` with telemetry objects, `owntracks/{user}/{device}` with OwnTracks JSON (user: bus or device id; what
is both is the device's, as in `broker.py`).
That a device publishes for its own bus only is the broker's ACL (`broker.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import msgspec
from gmqtt import Client, Subscription
from gmqtt.mqtt.handler import MQTTError

from engine.errors import Invalid, TooMany, Unavailable
from engine.meter import Meter
from engine.office.accounts import Device
from engine.tracking.fix import Fix
from ingest.broker import OWNTRACKS, TELEMETRY
from ingest.door import Door
from ingest.wire import Decoded, Refused, WireError, telemetry
from ingest.wire_phones import owntracks

log = logging.getLogger(__name__)

CLIENT_ID = "timepoint-ingest"
SESSION_S = 7 * 86_400  # the broker keeps our session, and what is queued for it, that long
RECEIVE_MAX = 1000  # unacknowledged messages: one second of a large fleet
CONNECT_S = 10.0
PAUSE_MAX_S = 15.0  # between two tries to connect
RETRY_MAX_S = 2.0  # between two tries to append
NO_RECONNECT = -2  # gmqtt's own reconnecting is off: ours makes a new client, with growing pauses


class BrokerAddress(NamedTuple):
    host: str
    port: int
    tls: bool
    user: str
    password: str


def broker_address(url: str) -> BrokerAddress:
    """`mqtt://user:password@host:1883` or `mqtts://...:8883`. Raises `Invalid`."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as fault:
        raise Invalid(f"MQTT_URL: {fault}") from fault
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
        raise Invalid("MQTT_URL must read mqtt://user:password@host:port, or mqtts:// for TLS")
    tls = parts.scheme == "mqtts"
    return BrokerAddress(parts.hostname, port or (8883 if tls else 1883), tls, unquote(parts.username or ""), unquote(parts.password or ""))


class _Message(msgspec.Struct, gc=False):
    """Fixes on their way in. `stored` is done when they are appended: the acknowledgement waits for it."""

    device: Device
    fixes: list[Fix]
    stored: asyncio.Future[None]


class MqttReader:
    """`run` under the lease. One client at a time."""

    def __init__(self, door: Door, url: str, meter: Meter | None = None, *, client_id: str = CLIENT_ID) -> None:
        self.door, self.address, self.client_id = door, broker_address(url), client_id
        meter = meter or door.meter
        self._connected = meter.gauge("timepoint_mqtt_connected", "1 while this worker reads the broker")
        self._taken = meter.counter("timepoint_mqtt_messages_total", "messages taken, by what became of them", ("outcome",))
        self._faults = meter.counter("timepoint_mqtt_faults_total", "connections to the broker that failed or were lost")
        self._queue: deque[_Message] = deque()
        self._some = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled: connect, read, and connect again with growing pauses. A fault of ours, in reading or in appending, ends both and is
        raised in an `ExceptionGroup`: what was not acknowledged is the broker's still."""
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump())
                both.create_task(self._read_on())
        finally:
            self._queue.clear()

    async def _read_on(self) -> None:
        pause_s = 0.5
        while True:
            try:
                await self._read()
                pause_s = 0.5
            except (OSError, TimeoutError, MQTTError) as fault:
                log.warning("MQTT broker %s:%d: %s; again in %.1f s", self.address.host, self.address.port, fault or type(fault), pause_s)
            self._faults.add()
            await asyncio.sleep(pause_s)
            pause_s = min(PAUSE_MAX_S, pause_s * 2)

    async def _read(self) -> None:
        """One connection, until it is lost. Raises what refused it."""
        lost = asyncio.Event()
        client = Client(
            self.client_id, clean_session=False, optimistic_acknowledgement=False, session_expiry_interval=SESSION_S,
            receive_maximum=RECEIVE_MAX, logger=log,
        )  # fmt: skip
        client.set_config({"reconnect_retries": NO_RECONNECT})
        client.set_auth_credentials(self.address.user, self.address.password)
        client.on_message = self._on_message
        client.on_disconnect = lambda *_: lost.set()
        try:
            async with asyncio.timeout(CONNECT_S):
                await client.connect(self.address.host, self.address.port, ssl=self.address.tls, keepalive=20)
            # retained messages come with a new subscription only, not at every reconnect
            topics = (f"{TELEMETRY}/+", f"{OWNTRACKS}/+/+")
            client.subscribe([Subscription(topic, qos=1, retain_handling_options=1) for topic in topics])
            self._connected.set(1)
            log.info("reading MQTT broker %s:%d", self.address.host, self.address.port)
            await lost.wait()
        finally:
            self._connected.set(0)
            await self._leave(client)

    async def _leave(self, client: Any) -> None:
        """A clean goodbye where it can be had: the session stays with the broker either way."""
        try:
            async with asyncio.timeout(2):
                await client.disconnect()
        except (OSError, TimeoutError, AttributeError) as fault:  # AttributeError: it never had a connection
            log.debug("leaving the broker: %s", fault)

    async def _on_message(self, client: Any, topic: str, payload: bytes, qos: int, properties: Any) -> int:
        """Returns when the message may be acknowledged; 0 is its reason code. Until its first await it keeps the order of arrival."""
        now_ms = self.door.clock.now_ms()
        device, bus_id = self._sender(topic)
        if device is None:
            self._taken.add(1, "unknown")
            return 0
        try:
            if topic.startswith(TELEMETRY):
                decoded = telemetry(bytes(payload), "", device, "mqtt", now_ms, only_bus=bus_id)
            else:
                decoded = owntracks(bytes(payload), device, now_ms, bus_id, source="mqtt")
        except WireError as fault:
            decoded = Decoded([], [Refused(0, "MALFORMED", fault.detail, bus_id)])
        except Exception:  # a fault of ours must not make the broker send it for ever
            log.exception("message on %s", topic)
            decoded = Decoded([], [Refused(0, "MALFORMED", "unexpected", bus_id)])
        try:
            self.door.meter_out(device, len(decoded.fixes) + len(decoded.refused))
        except TooMany as over:
            said = [(fix.bus_id, fix.seq) for fix in decoded.fixes] + [(one.bus_id, one.seq) for one in decoded.refused]
            decoded = Decoded([], [Refused(index, "RATE", str(over), bus, seq) for index, (bus, seq) in enumerate(said)])
        if decoded.refused:
            self._taken.add(1, "quarantined")
            self.door.keep(device, decoded.refused, "mqtt")
        if not decoded.fixes:
            return 0
        if qos == 0 and len(self._queue) >= self.door.settings.ingest_queue_max:
            self._taken.add(1, "dropped")
            return 0
        message = _Message(device, decoded.fixes, asyncio.get_running_loop().create_future())
        self._queue.append(message)
        self._some.set()
        await message.stored
        self._taken.add(1, "stored")
        return 0

    def _sender(self, topic: str) -> tuple[Device | None, str | None]:
        """Device and bus that a topic speaks for; the last part of an OwnTracks user may be the generation of its login. An id that is a
        device's and a bus's is the device's: so are the logins."""
        levels = topic.split("/")
        devices = self.door.devices
        if topic.startswith(TELEMETRY + "/") and len(levels) == 4:
            return devices.of_bus(levels[3]), levels[3]
        if levels[0] == OWNTRACKS and len(levels) == 3:
            user = levels[1]
            device_id, _, generation = user.rpartition(".")
            device, rotated = devices.by_id(user), devices.by_id(device_id)
            if device is None and rotated is not None and rotated.generation > 1 and generation == str(rotated.generation):
                device = rotated
            if device is None and (of_bus := devices.of_bus(user)) is not None:
                return of_bus, user
            device = device or rotated
            return device, None if device is None else device.bus(None)
        return None, None

    async def _pump(self) -> None:
        """Append all that waits, in order, and again what could not be appended: the order of a bus survives an outage."""
        pause_s = 0.05
        while True:
            await self._some.wait()
            self._some.clear()
            batch = list(self._queue)
            self._queue.clear()
            waits: list[tuple[_Message, asyncio.Future[Any]]] = []
            left: list[_Message] = []
            for message in batch:
                try:
                    waits.append((message, self.door.appended(message.device, message.fixes)))
                except Unavailable:
                    left.append(message)
            for message, future in waits:
                try:
                    await future
                except Unavailable:
                    left.append(message)
                else:
                    if not message.stored.done():
                        message.stored.set_result(None)
            if not left:
                pause_s = 0.05
                continue
            failed = {id(message) for message in left}
            self._queue.extendleft(reversed([message for message in batch if id(message) in failed]))
            self._some.set()
            await asyncio.sleep(pause_s)
            pause_s = min(RETRY_MAX_S, pause_s * 2)
