"""The door: who is sending, may they, and the append after which a device is answered.

Promises: `accept` returns only after the fixes are in the ingest stream of their area (an accepted fix survives a killed worker), or raises
`Unavailable`; no wait is longer than `ingest_answer_timeout_s`; the queue of an area is bounded (`ingest_queue_max`); what is refused is
counted and kept in `quar:{area}`. Order: the fixes of one area are appended in the order in which they came. At least once: a device that
saw 503 sends again, and the tracker calls the second copy DUPLICATE.

One XADD an area carries all fixes that gathered while the previous one was in flight; where the last append was less than 10 ms ago, the
next waits a few ms more (`ingest_gather_max_ms`), so the first fix of a quiet moment waits for nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import msgspec

from engine.clock import Clock
from engine.errors import TooMany, Unauthenticated, Unavailable
from engine.events import Refusal
from engine.meter import SIZES, Meter
from engine.office.accounts import Device, Devices
from engine.settings import Settings
from engine.tracking.fix import Fix
from ingest.wire import Refused

log = logging.getLogger(__name__)

ENTRY_FIXES_MAX = 500  # fixes of one stream entry: a third of what an area's owner folds between two commits
BUSY_S = 0.010  # appends closer together than this gather
REFUSALS_KEPT = 32  # of one request; the rest is counted only, so that one bad batch cannot flood the quarantine
REFUSALS_WAITING_MAX = 2000  # not yet written; past it they are counted only
NO_AREA = "-"  # where refusals of a device without any bus go
NONCE_MAX = 128
DEMO_WIDER = 50  # the demo's rates: a load test sends for many buses from few tokens


class Streams(Protocol):
    """What the door needs of `engine.store.redis.Redis`."""

    async def append(self, area: str, payload: bytes) -> str:
        """msgpack list[Fix] into `in:{area}`; durable on return. Raises `Unavailable`."""
        ...

    async def quarantine(self, area: str, payload: bytes) -> None:
        """msgpack list[Refusal] into `quar:{area}`. Raises `Unavailable`."""
        ...

    async def nonce_is_new(self, device_id: str, nonce: str, ttl_s: int) -> bool:
        """True once within `ttl_s`. Raises `Unavailable`."""
        ...


Done = Callable[[Unavailable | None], None]  # called on the loop, once; what it raises is logged


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """What became of a request: `accepted` fixes are appended, the others refused."""

    accepted: int
    refused: Sequence[Refused] = ()


class Lane:
    """The one writer of an area: gathers while an append is in flight. Futures resolve in order, after their last entry is appended."""

    def __init__(
        self, area: str, append: Callable[[str, bytes], Awaitable[object]], settings: Settings, clock: Clock, meter: Meter
    ) -> None:
        self.area, self._append, self._clock = area, append, clock
        self._queue_max = settings.ingest_queue_max
        self._limit_s = settings.ingest_answer_timeout_s / 2  # one append may be ahead of ours
        self._gather_s = settings.ingest_gather_max_ms / 1000
        self._waiting: list[tuple[list[Fix], Done]] = []
        self._held = 0  # fixes waiting or in flight
        self._task: asyncio.Task[None] | None = None
        self._last_s = float("-inf")
        self._loop = asyncio.get_running_loop()
        self._encode = msgspec.msgpack.Encoder().encode
        self._accepted = meter.counter("timepoint_ingest_fixes_total", "fixes appended, by protocol", ("source",))
        self._sizes = meter.histogram("timepoint_ingest_append_fixes", "fixes of one append", bounds=SIZES)
        self._full = meter.counter("timepoint_ingest_queue_full_total", "requests refused because an area's queue is full", ("area",))
        self._failed = meter.counter("timepoint_ingest_append_faults_total", "appends that failed; their devices saw 503", ("area",))

    def put(self, fixes: list[Fix], done: Done) -> None:
        """`done(None)` is called once they are appended, `done(fault)` where that failed. Raises `Unavailable` where the queue is full."""
        count = len(fixes)
        if self._held + count > self._queue_max:
            self.check(count)
        self._waiting.append((fixes, done))
        self._held += count
        if self._task is None:
            self._task = self._loop.create_task(self._run())

    def check(self, count: int) -> None:
        """Raises `Unavailable` where so many fixes more are too many. An empty queue takes any request."""
        if self._held and self._held + count > self._queue_max:
            self._full.add(1, self.area)
            raise Unavailable(f"area {self.area}: {self._held} fixes are waiting for Redis", retry_after_s=2)

    async def _run(self) -> None:
        try:
            while self._waiting:
                if self._gather_s and self._clock.steady_s() - self._last_s < BUSY_S:
                    await asyncio.sleep(self._gather_s)
                batch, self._waiting = self._waiting, []
                fixes = [fix for some, _ in batch for fix in some]
                fault = await self._write(fixes)
                self._last_s = self._clock.steady_s()
                self._held -= len(fixes)
                if fault is None:
                    for source, count in Counter([fix.source for fix in fixes]).items():
                        self._accepted.add(count, source)
                for _, done in batch:
                    try:
                        done(fault)
                    except Exception:  # of one sender: the others are waiting
                        log.exception("area %s: a sender could not be told", self.area)
        finally:
            self._task = None

    async def _write(self, fixes: list[Fix]) -> Unavailable | None:
        """All of them, in entries of at most 500, or the fault. What a failed batch had appended comes again: a DUPLICATE then."""
        try:
            async with asyncio.timeout(self._limit_s):
                for start in range(0, len(fixes), ENTRY_FIXES_MAX):
                    await self._append(self.area, self._encode(fixes[start : start + ENTRY_FIXES_MAX]))
        except Unavailable as fault:
            self._failed.add(1, self.area)
            return fault
        except TimeoutError:
            self._failed.add(1, self.area)
            return Unavailable(f"area {self.area}: Redis did not answer within {self._limit_s} s", retry_after_s=2)
        except Exception:  # a fault of our own must not leave devices waiting for an answer that never comes
            self._failed.add(1, self.area)
            log.exception("append of area %s", self.area)
            return Unavailable(f"area {self.area}: the append failed", retry_after_s=5)
        self._sizes.observe(len(fixes))
        return None

    async def drained(self) -> None:
        """Returns when nothing waits any more."""
        while self._task is not None:
            await asyncio.wait([self._task])


class _Joint:
    """Several areas' appends that are one request."""

    __slots__ = ("done", "fault", "left")

    def __init__(self, left: int, done: Done) -> None:
        self.left, self.done = left, done
        self.fault: Unavailable | None = None

    def __call__(self, fault: Unavailable | None) -> None:
        self.left -= 1
        self.fault = self.fault or fault
        if not self.left:
            self.done(self.fault)


def settle(future: asyncio.Future[None], fault: Unavailable | None) -> None:
    """A `Done` for who awaits; nothing where its sender hung up meanwhile."""
    if future.done():
        return
    if fault is None:
        future.set_result(None)
    else:
        future.set_exception(fault)


class Door:
    """Authentication, and one `Lane` per area. Made once per worker."""

    def __init__(self, devices: Devices, streams: Streams, settings: Settings, clock: Clock, meter: Meter | None = None) -> None:
        self.devices, self.streams, self.settings, self.clock = devices, streams, settings, clock
        self.meter = meter = meter or Meter()
        self._lanes: dict[str, Lane] = {}
        self._refusals: dict[str, list[Refusal]] = {}  # by area, not written yet
        self._keeping = 0
        wide = DEMO_WIDER if settings.demo else 1
        self._rate, self._burst = settings.ingest_device_rate * wide, settings.ingest_device_burst * wide
        self._ahead_s: dict[str, float] = {}  # by device: where its virtual clock stands
        self._metered = meter.counter("timepoint_ingest_too_many_total", "requests of devices over their rate")
        self._keeper: asyncio.Task[None] | None = None
        self._encode = msgspec.msgpack.Encoder().encode
        self._refused = meter.counter("timepoint_ingest_refused_total", "fixes refused at the door, by reason", ("reason",))
        self._unkept = meter.counter("timepoint_ingest_refusals_unkept_total", "refusals that could not be written to the quarantine")
        self._strangers = meter.counter("timepoint_ingest_unauthenticated_total", "requests without good credentials, by fault", ("code",))

    # --- who ---

    def by_token(self, token: str | bytes) -> Device:
        """Raises `Unauthenticated`."""
        device = self.devices.by_token(token)
        if device is None:
            raise self.stranger("UNKNOWN_TOKEN", "this token is not known, has been rotated out, or its device is retired")
        return device

    def stranger(self, code: str, detail: str) -> Unauthenticated:
        self._strangers.add(1, code)
        return Unauthenticated(detail, reason=code)

    async def by_signature(self, method: str, path: str, headers: Mapping[bytes, bytes], body: bytes) -> Device:
        """HMAC-SHA256 over method, path (with its query), timestamp, nonce and hex SHA-256 of the body as sent, joined by newlines
        (docs/devices.md).

        The clock of the device must be within `hmac_window_s` of ours, and a nonce is good once. Raises `Unauthenticated`, `Unavailable`.
        """
        device_id = headers.get(b"x-device-id", b"").decode("latin-1")
        stamp, nonce = headers.get(b"x-timestamp", b""), headers.get(b"x-nonce", b"")
        given = headers.get(b"x-signature", b"").lower()
        device = self.devices.by_id(device_id)
        secrets = self.devices.secrets(device_id)
        said = b"\n".join(
            (method.encode("latin-1"), path.encode("latin-1", "replace"), stamp, nonce, hashlib.sha256(body).hexdigest().encode())
        )
        good = False
        for secret in secrets:
            good |= hmac.compare_digest(hmac.new(secret.encode(), said, hashlib.sha256).hexdigest().encode(), given)
        if device is None or not good:
            raise self.stranger("BAD_SIGNATURE", "X-Signature is not the HMAC-SHA256 of this request under the secret of X-Device-Id")
        if not (stamp.isdigit() and len(stamp) <= 15 and abs(self.clock.now_ms() - int(stamp)) <= self.settings.hmac_window_s * 1000):
            raise self.stranger("STALE_TIMESTAMP", f"X-Timestamp must be UTC ms within {self.settings.hmac_window_s} s of serverTimeMs")
        if not (8 <= len(nonce) <= NONCE_MAX and nonce.replace(b"-", b"").replace(b"_", b"").isalnum()):
            raise self.stranger("BAD_NONCE", f"X-Nonce: 8 to {NONCE_MAX} letters, digits, - or _")
        if not await self.streams.nonce_is_new(device_id, nonce.decode("latin-1"), 2 * self.settings.hmac_window_s):
            raise self.stranger("REPLAYED_NONCE", "this X-Nonce was used already: every request needs its own")
        return device

    # --- in ---

    def lane(self, area: str) -> Lane:
        lane = self._lanes.get(area)
        if lane is None:
            lane = self._lanes[area] = Lane(area, self.streams.append, self.settings, self.clock, self.meter)
        return lane

    async def accept(self, device: Device, fixes: list[Fix], refused: Sequence[Refused] = (), *, source: str = "") -> Receipt:
        """Append, keep what was refused, and answer. Every fix's bus must be among `device.buses` (the decoders see to it).

        Raises `TooMany` for a device over its rate (nothing is taken then), and `Unavailable`: some of the fixes may be appended then, and
        come again.
        """
        appended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.begin(device, fixes, refused, partial(settle, appended), source=source):
            await appended
        return Receipt(len(fixes), refused)

    def begin(self, device: Device, fixes: list[Fix], refused: Sequence[Refused], done: Done, *, source: str) -> bool:
        """`accept` without its wait: `done` is called when all fixes are appended, or with the fault. False: there is none, so it is not."""
        self.meter_out(device, len(fixes) + len(refused) if refused else len(fixes))
        if refused:
            self.keep(device, refused, source)
        if fixes:
            self.submit(device, fixes, done)
        return bool(fixes)

    def meter_out(self, device: Device, count: int) -> None:
        """Let so many fixes of the device pass, or raise `TooMany`. A virtual clock per device (GCRA, ITU-T I.371): it runs ahead of ours by
        what was sent, and may be ahead by the burst. Per worker.
        """
        now_s, ident = self.clock.steady_s(), device.device_id
        rate = self._rate * (len(device.buses) or 1)
        began_s = self._ahead_s.get(ident, 0.0)
        if began_s > now_s:
            burst_s = self._burst / self._rate
            over_s = began_s - now_s + count / rate - burst_s
            if over_s > 0:
                self._metered.add()
                raise TooMany(
                    f"more than {rate:g} fixes a second for a while", retry_after_s=over_s, quota=round(rate * burst_s), window_s=burst_s
                )
            now_s = began_s
        self._ahead_s[ident] = now_s + count / rate

    def submit(self, device: Device, fixes: list[Fix], done: Done) -> None:
        """`done` is called when all of them are appended, or with the fault. Raises `Unavailable` at once where a queue is full."""
        self.devices.heard(device.device_id, fixes[0].received_at_ms)
        if len(fixes) == 1 or len(device.buses) == 1:
            self.lane(device.buses[fixes[0].bus_id]).put(fixes, done)
            return
        by_area: dict[str, list[Fix]] = {}
        for fix in fixes:
            by_area.setdefault(device.buses[fix.bus_id], []).append(fix)
        lanes = [(self.lane(area), some) for area, some in by_area.items()]
        for lane, some in lanes:
            lane.check(len(some))
        joint = done if len(lanes) == 1 else _Joint(len(lanes), done)
        for lane, some in lanes:
            lane.put(some, joint)

    def appended(self, device: Device, fixes: list[Fix]) -> asyncio.Future[None]:
        """`submit` for who awaits: fails with `Unavailable`. Raises it at once where a queue is full."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.submit(device, fixes, partial(settle, future))
        return future

    def keep(self, device: Device, refused: Sequence[Refused], source: str) -> None:
        """Count them all; the first 32 go to the quarantine soon. One that cannot be written is counted and holds nothing up."""
        now_ms = self.clock.now_ms()
        home = next(iter(device.buses.values()), NO_AREA)
        for one in refused:
            self._refused.add(1, one.reason)
        for one in refused[:REFUSALS_KEPT]:
            if self._keeping >= REFUSALS_WAITING_MAX:
                self._unkept.add(1)
                continue
            area = device.buses.get(one.bus_id, home) if one.bus_id is not None else home
            refusal = Refusal(now_ms, device.device_id, one.bus_id, source, one.reason, one.index, one.detail)
            self._refusals.setdefault(area, []).append(refusal)
            self._keeping += 1
        if self._refusals and self._keeper is None:
            self._keeper = asyncio.get_running_loop().create_task(self._write_refusals())

    async def _write_refusals(self) -> None:
        try:
            while self._refusals:
                area, some = self._refusals.popitem()
                try:
                    async with asyncio.timeout(self.settings.ingest_answer_timeout_s):
                        await self.streams.quarantine(area, self._encode(some))
                except (Unavailable, TimeoutError) as fault:
                    self._unkept.add(len(some))
                    log.warning("quarantine of area %s: %s", area, fault)
                finally:
                    self._keeping -= len(some)
        finally:
            self._keeper = None

    async def drain(self) -> None:
        """Returns when all that was taken is appended or answered."""
        for lane in list(self._lanes.values()):
            await lane.drained()
        if self._keeper is not None:
            await asyncio.wait([self._keeper])
