"""Redis: the nervous system. The only module that builds a key; its Lua stands beside it, one script a file, loaded by
name.

Promises: every wait has a limit; a server that is away, loading, full or read-only becomes `Unavailable` (the caller
answers 503), counted. What an area's owner and its readers need (lease, load, commit, streams) is in `area.py`, over
the keys of here.

Durability: an answered `append` survives what `appendfsync` promises (docs/decisions), and a killed worker always.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import cache
from importlib import resources
from typing import Any

import msgspec
from redis import asyncio as client
from redis import exceptions as fault
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from engine.clock import Clock, SystemClock
from engine.errors import Unavailable
from engine.events import LiveBatch
from engine.meter import Meter
from engine.settings import Settings

log = logging.getLogger(__name__)

# What the client raises when the server is away, restarting, loading its file, a read-only replica, or at maxmemory.
FAULTS = (OSError, TimeoutError, fault.ConnectionError, fault.TimeoutError, fault.ReadOnlyError, fault.OutOfMemoryError)

# Errors that the client knows no class for: a disk that is full, too few replicas, a cluster that is not whole. They pass.
REFUSES = ("MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN")

CALL_TIMEOUT_S = 5.0  # longest answer to a call that does not block; a LOAD of 20,000 states took 60 ms
POOL_MAX = 32  # connections for short calls of one process: the door, the hub and the REST side share them
READERS_MAX = 512  # connections that may block (one XREAD an owned area, one pub/sub a listener)
LIVE = "live:"  # channel prefix of numbered live batches
ORDERED = "chan:"  # channel prefix of ordered channels
BETWEEN = b"\x1e"  # between messages published together; no JSON text has it. Hearing one costs 40 us, splitting it off 1
ORDERED_LOG = 1_000  # messages an ordered channel keeps for those who come back
ORDERED_LIFE_S = 3 * 86_400  # a channel that says nothing for three days is forgotten; its next message begins a new epoch
QUARANTINE_MAX = 10_000  # batches of door quarantines an area keeps for history; the oldest go first, for they are only advice


class Keys:
    """The names of one area's keys. The braces are a hash tag: all keys of an area lie in one slot of a cluster."""

    __slots__ = (
        "bytes",
        "ctl",
        "cursors",
        "dead",
        "eta",
        "fence",
        "geo",
        "incoming",
        "lease",
        "live",
        "open",
        "out",
        "pos",
        "quarantine",
        "states",
    )

    def __init__(self, area: str) -> None:
        tag = f"{{{area}}}"
        self.incoming, self.out, self.dead, self.quarantine = f"in:{tag}", f"out:{tag}", f"dead:{tag}", f"quar:{tag}"
        self.states, self.pos, self.eta, self.geo = f"st:{tag}", f"pos:{tag}", f"eta:{tag}", f"geo:{tag}"
        self.ctl, self.lease, self.fence, self.cursors = f"ctl:{tag}", f"lease:{tag}", f"fence:{tag}", f"cur:{tag}"
        self.bytes, self.live, self.open = f"bytes:{tag}", f"{LIVE}{tag}", f"open:{tag}"


@cache
def keys_of(area: str) -> Keys:
    return Keys(area)


class ChannelMessage(msgspec.Struct, frozen=True, gc=False):
    """One message of an ordered channel. Offsets rise by one within an epoch; a hole means: read `channel_log`."""

    channel: str
    epoch: str
    offset: int
    payload: bytes


class ChannelLog(msgspec.Struct, frozen=True):
    """What an ordered channel still keeps after an offset, of one instant."""

    epoch: str  # "" where nothing was ever said
    offset: int  # of its newest message; 0 where nothing was ever said
    complete: bool  # False: messages after `since` are gone from the log, or `since` lies ahead of it: take a snapshot instead
    messages: list[ChannelMessage]  # in order


@cache
def lua(name: str) -> str:
    """The text of `engine/store/{name}.lua`."""
    return resources.files("engine.store").joinpath(f"{name}.lua").read_text(encoding="utf-8")


class Redis:
    """Two bounded pools over one server: `calls` for what answers at once, `readers` for what may block."""

    def __init__(self, settings: Settings, meter: Meter | None = None, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self.meter = meter or Meter()
        common: dict[str, Any] = {
            "socket_connect_timeout": 2.0,
            "retry": Retry(NoBackoff(), 0),
            "health_check_interval": 0,
        }
        self.calls: Any = client.Redis(
            connection_pool=client.BlockingConnectionPool.from_url(
                settings.redis_url,
                max_connections=POOL_MAX,
                timeout=CALL_TIMEOUT_S,
                socket_timeout=CALL_TIMEOUT_S,
                **common,
            )
        )
        self.readers: Any = client.Redis(
            connection_pool=client.BlockingConnectionPool.from_url(
                settings.redis_url,
                max_connections=READERS_MAX,
                timeout=CALL_TIMEOUT_S,
                socket_timeout=CALL_TIMEOUT_S,
                **common,
            )
        )
        self.closing: list[Callable[[], None]] = []  # what else ends with us: connections beside the pools
        self._scripts: dict[str, Any] = {}
        self._areas: set[str] = set()
        self._faults = self.meter.counter("timepoint_redis_faults_total", "calls to Redis that failed", ("call",))
        self._full = self.meter.counter(
            "timepoint_stream_full_total", "batches refused because a stream is over its byte cap", ("area", "stream")
        )

    @classmethod
    async def connect(cls, settings: Settings, meter: Meter | None = None, clock: Clock | None = None) -> Redis:
        """Raises `Unavailable` where nobody answers."""
        redis = cls(settings, meter, clock)
        await redis.ping()
        return redis

    async def close(self) -> None:
        for close in self.closing:
            close()
        await self.calls.aclose()
        await self.calls.connection_pool.disconnect()
        await self.readers.aclose()
        await self.readers.connection_pool.disconnect()

    async def ask(self, call: str, make: Callable[[], Awaitable[Any]], attempts: int = 2) -> Any:
        """The answer of `make()`, tried `attempts` times at once (a pooled connection may be from before a
        restart). Raises `Unavailable`.
        """
        for attempt in range(attempts):
            try:
                return await make()
            except FAULTS as broken:
                self._faults.add(1, call)
                if attempt + 1 == attempts:
                    raise Unavailable(f"Redis does not answer ({call}): {broken}", retry_after_s=1) from broken
            except fault.ResponseError as refused:
                if not (getattr(refused, "status_code", None) in REFUSES or str(refused).startswith(REFUSES)):
                    raise
                self._faults.add(1, call)
                raise Unavailable(f"Redis takes no writes ({call}): {refused}", retry_after_s=2) from refused
        raise AssertionError("attempts must be at least 1")

    def script(self, name: str) -> Any:
        """The Lua script of that name; called as `script(keys=[...], args=[...])`, it loads itself where the server
        forgot it.
        """
        found = self._scripts.get(name)
        if found is None:
            found = self._scripts[name] = self.calls.register_script(lua(name))
        return found

    # --- the server ---

    async def ping(self) -> None:
        """Raises `Unavailable` where nobody answers."""
        await self.ask("ping", lambda: self.calls.ping())

    async def info(self, section: str = "default") -> dict[str, Any]:
        """INFO, parsed. `info("server")["run_id"]` is new after every start."""
        answer: dict[str, Any] = await self.ask("info", lambda: self.calls.info(section))
        return answer

    # --- areas ---

    async def areas(self) -> list[str]:
        """Ids of all areas that anyone has named, sorted."""
        found = await self.ask("areas", lambda: self.calls.smembers("areas"))
        return sorted(name.decode() for name in found)

    async def add_area(self, area: str) -> None:
        """Make an area known, so that a worker comes to own it."""
        await self.ask("areas", lambda: self.calls.sadd("areas", area))
        self._areas.add(area)

    async def beat(self, worker: str, life_ms: int) -> int:
        """This worker is alive (`life_ms` 0: it leaves); how many workers are."""
        return int(await self.ask("beat", lambda: self.script("beat")(keys=["workers"], args=[worker, life_ms])))

    # --- the door ---

    async def append(self, area: str, payload: bytes, field: str = "f") -> str:
        """One XADD of msgpack list[Fix] (field `w`: of a person's Word); the entry's id. Durable once this returns.

        At least once: a lost answer is tried again, and the tracker calls the second copy DUPLICATE. Raises
        `Unavailable` where Redis is away, and past the byte cap of the area's in or out stream (tracking or history
        too far behind).
        """
        if area not in self._areas:
            await self.add_area(area)
        keys, settings = keys_of(area), self.settings
        caps = settings.ingest_stream_max_bytes, settings.out_stream_max_bytes
        said = await self.ask("append", lambda: self.script("append")(keys=[keys.incoming, keys.bytes], args=[payload, *caps, field]))
        if said in (b"IN", b"OUT"):
            stream = said.decode().lower()
            self._full.add(1, area, stream)
            raise Unavailable(f"area {area}: its {stream} stream is over its byte cap", retry_after_s=5)
        return str(said.decode())

    async def nonce_is_new(self, device_id: str, nonce: str, ttl_s: int) -> bool:
        """True the first time within `ttl_s`. Asked once only: a second try after a lost answer would refuse an
        honest request.
        """
        answer = await self.ask("nonce", lambda: self.calls.set(f"nonce:{device_id}:{nonce}", b"", nx=True, ex=ttl_s), attempts=1)
        return bool(answer)

    async def quarantine(self, area: str, payload: bytes) -> None:
        """msgpack list[Quarantined] that the door refused at once; history carries it to its table. Bounded: the
        oldest go first.
        """
        keys = keys_of(area)
        await self.ask(
            "quarantine",
            lambda: self.calls.xadd(keys.quarantine, {"f": payload}, maxlen=QUARANTINE_MAX, approximate=True),
        )

    # --- the live picture ---

    async def load_live(self, area: str) -> LiveBatch:
        """Epoch, number, all positions, forecasts and open incidents of one instant. An area without an owner yet: epoch "", number
        0, nothing in it.
        """
        keys = keys_of(area)

        async def read() -> Any:
            async with self.calls.pipeline(transaction=True) as pipe:
                pipe.hmget(keys.ctl, "epoch", "n")
                pipe.hvals(keys.pos)
                pipe.hvals(keys.eta)
                pipe.hvals(keys.open)
                return await pipe.execute()

        (epoch, number), positions, forecasts, incidents = await self.ask("load_live", read)
        return LiveBatch(
            area=area,
            epoch=(epoch or b"").decode(),
            n=int(number or 0),
            positions=[msgspec.Raw(blob) for blob in positions],
            forecasts=[msgspec.Raw(blob) for blob in forecasts],
            events=[],
            incidents=[msgspec.Raw(blob) for blob in incidents],
        )

    async def listen_live(self) -> AsyncIterator[bytes | None]:
        """Every LiveBatch of every area as msgpack bytes, and None after each (re)connect: load again what was
        missed.
        """
        async with aclosing(self._listen(LIVE + "*")) as found:
            async for message in found:
                yield message and message[1]

    # --- ordered channels ---

    async def publish_ordered(self, channel: str, event_id: str, payload: bytes) -> int:
        """Offset, bounded log and PUBLISH in one step, once by `event_id` among the channel's newest 4,000.

        0: it was said before. Raises `Unavailable`; saying it again with the same id is harmless.
        """
        tag = f"{{{channel}}}"
        keys = [f"meta:{tag}", f"log:{tag}", f"seen:{tag}"]
        args = [ORDERED + channel, self.clock.token(6), ORDERED_LOG, ORDERED_LIFE_S, event_id, payload]
        return int((await self.ask("publish_ordered", lambda: self.script("say")(keys=keys, args=args)))[0])

    async def channel_log(self, channel: str, since: int) -> ChannelLog:
        """Messages after offset `since`. Whether `since` is of this epoch is the caller's to compare."""
        tag = f"{{{channel}}}"

        async def read() -> Any:
            async with self.calls.pipeline(transaction=True) as pipe:
                pipe.hmget(f"meta:{tag}", "epoch", "offset")
                pipe.xrange(f"log:{tag}", min=f"{since + 1}-0")
                return await pipe.execute()

        (epoch, newest), entries = await self.ask("channel_log", read)
        name, offset = (epoch or b"").decode(), int(newest or 0)
        messages = [ChannelMessage(channel, name, int(at.split(b"-")[0]), fields[b"d"]) for at, fields in entries]
        return ChannelLog(name, offset, since + len(messages) == offset, messages)

    async def listen_ordered(self) -> AsyncIterator[ChannelMessage | None]:
        """Every message of every ordered channel, and None after each (re)connect: fill the holes from
        `channel_log`.
        """
        async with aclosing(self._listen(ORDERED + "*")) as found:
            async for message in found:
                if message is None:
                    yield None
                    continue
                channel, data = message
                epoch, offset, payloads = data.split(b" ", 2)
                name, era, first = channel.removeprefix(ORDERED), epoch.decode(), int(offset)
                for place, payload in enumerate(payloads.split(BETWEEN)):
                    yield ChannelMessage(name, era, first + place, payload)

    def listen(self, pattern: str) -> AsyncGenerator[tuple[str, bytes] | None]:
        """Whatever is published on channels of that pattern, and None after each (re)connect; at most once."""
        return self._listen(pattern)

    async def _listen(self, pattern: str) -> AsyncGenerator[tuple[str, bytes] | None]:
        """(channel, message), and None after each (re)connect. At most once, in order per channel.

        Never ends: a lost server is waited for, with growing pauses up to 2 s.
        """
        pause_s = 0.05
        while True:
            sub = self.readers.pubsub(ignore_subscribe_messages=True)
            try:
                await sub.psubscribe(pattern)
                yield None
                pause_s, quiet = 0.05, 0
                while True:
                    message = await sub.get_message(timeout=5.0)
                    if message is None:
                        quiet += 1
                        if quiet % 2 == 0:  # a peer that vanished without a FIN shows only when we write to it
                            await sub.ping()
                        continue
                    if message["type"] == "pmessage":
                        yield message["channel"].decode(), message["data"]
            except FAULTS as broken:
                self._faults.add(1, "listen")
                log.warning("redis listener %s: %s; again in %.2f s", pattern, broken, pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(2.0, pause_s * 2)
            finally:
                try:
                    await sub.aclose()
                except FAULTS as broken:
                    log.debug("closing a listener that was lost: %s", broken)
