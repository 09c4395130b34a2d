"""Redis: the nervous system. The only module that builds a key; its Lua stands beside it, one script a file, loaded by
name.

Promises: every wait has a limit; a server that is away, loading, full or read-only becomes `Unavailable` (the caller
answers 503), counted. What an area's owner and its readers need (lease, load, commit, streams) is in `area.py`, over
the keys of here.

Durability: an answered `append` survives what `appendfsync` promises (docs/decisions), and a killed worker always.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from functools import cache
from importlib import resources
from typing import Any, Final
from zlib import crc32

import msgspec
from redis import exceptions as fault

from engine.clock import Clock, SystemClock
from engine.errors import Unavailable
from engine.events import LiveBatch
from engine.meter import Meter
from engine.settings import Settings
from engine.store.ears import Ears
from engine.store.line import Command
from engine.store.nodes import Nodes

log = logging.getLogger(__name__)

# What says that the server is away, restarting, or loading its file.
FAULTS: Final = (OSError, TimeoutError, fault.ConnectionError, fault.TimeoutError, fault.RedisClusterException)

# What says that it takes no such calls now: a replica that only reads, memory or a disk that is full, too few replicas, a script that runs on, a
# cluster that is not whole. They pass. All other answers are our own fault.
REFUSES: Final = (fault.ReadOnlyError, fault.OutOfMemoryError, fault.ClusterDownError, fault.TryAgainError)
REFUSED: Final = ("MISCONF", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY ")

OLDEST: Final = 7  # major version: sharded pub/sub
HOPS_MAX: Final = 5  # times that a call follows a key which a cluster is moving
QUIET_S: Final = 10.0  # a listener that hears nothing asks whether its server is there: a peer that vanished without a FIN shows only so
TURN: Final = 16  # messages that a listener takes before others of the loop have their turn
LIVE = "live:"  # channel prefix of numbered live batches
AREAS, AREAS_CHANNEL = "areas", b"areas"  # the set of all areas, and the pub/sub channel that names a new one
ORDERED_SHARDS = (
    64  # pub/sub channels of all ordered channels together: who listens hears all, and a cluster of ten servers shares them evenly
)
NAMED = b"\x1f"  # between an ordered channel's name and its message on a shard
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


@cache
def shard_of(number: int) -> tuple[str, str]:
    """(hash tag, pub/sub channel) of a shard of ordered channels."""
    return f"{{o{number}}}", f"chan:{{o{number}}}"


def ordered_keys(channel: str, *kinds: str) -> tuple[list[str], str]:
    """The keys of those kinds (meta, log, seen, ...) of an ordered channel, all in one slot, and the pub/sub channel of its shard."""
    tag, shard = shard_of(crc32(channel.encode()) % ORDERED_SHARDS)
    return [f"{kind}:{tag}:{channel}" for kind in kinds], shard


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


class Script:
    """A Lua script of ours by its digest."""

    __slots__ = ("name", "sha", "text")

    def __init__(self, name: str) -> None:
        self.name, self.text = name, lua(name)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


@cache
def script_of(name: str) -> Script:
    return Script(name)


class Redis:
    """All calls of a process to Redis.

    Each goes one way. What is asked for every fix, batch, seat or request (`call`, `run`, `together`) goes over our own connection, pipelined,
    with all scripts and what must be of one instant; blocking reads (`entries`) and listeners have such connections of their own. What is asked
    about once a second or less (`rare`: areas, pings, dead letters, cursors only for trimming) goes through redis-py.
    """

    def __init__(self, settings: Settings, meter: Meter | None = None, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self.meter = meter or Meter()
        self.nodes = Nodes(settings.redis_url, cluster=settings.redis_cluster)
        self._areas: set[str] = set()
        self._faults = self.meter.counter("timepoint_redis_faults_total", "calls to Redis that failed", ("call",))
        self._full = self.meter.counter(
            "timepoint_stream_full_total", "batches refused because a stream is over its byte cap", ("area", "stream")
        )

    @classmethod
    async def connect(cls, settings: Settings, meter: Meter | None = None, clock: Clock | None = None) -> Redis:
        """Raises `Unavailable` where nobody answers, or who does is older than OLDEST."""
        redis = cls(settings, meter, clock)
        await redis.ping()
        told = await redis.rare("info", "INFO", "server")
        oldest = min(str(each["redis_version"]) for each in (told.values() if "redis_version" not in told else (told,)))
        if int(oldest.split(".")[0]) < OLDEST:
            raise Unavailable(f"Redis {OLDEST}.0 or newer is needed (sharded pub/sub); this is {oldest}")
        return redis

    async def close(self) -> None:
        await self.nodes.close()

    def call(self, label: str, command: str, key: str, *args: Any, attempts: int = 2) -> Coroutine[Any, Any, Any]:
        """The raw answer of one command on one key, tried `attempts` times at once (a connection may be from before a restart). Faults
        are counted as `label`. Raises `Unavailable`, or the ResponseError that Redis said."""
        return self._ask(label, key, (command, key, *args), attempts)

    async def run(self, name: str, keys: list[str], *args: Any, attempts: int = 2) -> Any:
        """What the Lua script of that name answers, loaded where the server does not know it. Keys lie in one slot. Raises as `call`."""
        script = script_of(name)
        command = ("EVALSHA", script.sha, len(keys), *keys, *args)
        try:
            return await self._ask(name, keys[0], command, attempts)
        except fault.NoScriptError:  # the server was restarted, or flushed: nothing was done
            await self._ask(name, keys[0], ("SCRIPT", "LOAD", script.text), 2)
            return await self._ask(name, keys[0], command, attempts)

    def together(self, label: str, key: str, *commands: Command) -> Coroutine[Any, Any, list[Any]]:
        """The answers of several commands on keys of one slot, of one instant (MULTI). Raises as `call`."""
        return self._ask(label, key, list(commands), 2)

    def wait(self, label: str, command: Command, key: str) -> Coroutine[Any, Any, Any]:
        """A command that may block, on a connection of its own. Raises as `call`."""
        return self._ask(label, key, command, 2, blocks=True)

    async def _ask(self, label: str, key: str, command: Command | list[Command], attempts: int, blocks: bool = False) -> Any:
        nodes, hops = self.nodes, 0
        asked: fault.AskError | None = None  # who has the key for this one call, while it is on its way there
        while True:
            try:
                if blocks and isinstance(command, tuple):
                    return await nodes.alone(key, command)
                line = nodes.ready(key) or await nodes.reach(key) if asked is None else await nodes.asking(asked)
                return await (line.ask(command) if isinstance(command, tuple) else line.together(command))
            except FAULTS as broken:
                self._faults.add(1, label)
                nodes.doubt()
                attempts -= 1
                if attempts <= 0:
                    raise self._away(label, broken) from broken
            except fault.AskError as told:
                hops += 1
                if hops > HOPS_MAX:
                    self._faults.add(1, label)
                    raise Unavailable(f"a key of Redis moves faster than we follow ({label})", retry_after_s=1) from told
                asked = None if isinstance(told, fault.MovedError) else told
                if isinstance(told, fault.MovedError):
                    await nodes.moved(told)
            except fault.ResponseError as refused:
                if isinstance(refused, fault.ReadOnlyError):
                    nodes.refused(key)
                raise self._said_no(label, refused) from refused
            except Unavailable:  # too many wait
                self._faults.add(1, label)
                raise

    async def rare(self, label: str, *command: Any) -> Any:
        """One command through redis-py, as it parses the answer; tried twice. For what is asked about once a second or less. Raises as `call`."""
        for attempt in range(2):
            try:
                return await self.nodes.client.execute_command(*command)
            except FAULTS as broken:
                self._faults.add(1, label)
                if attempt:
                    raise self._away(label, broken) from broken
            except fault.ResponseError as refused:
                raise self._said_no(label, refused) from refused
        raise AssertionError("answered or raised")

    @staticmethod
    def _away(label: str, broken: Exception) -> Unavailable:
        return Unavailable(f"Redis does not answer ({label}): {broken}", retry_after_s=1)

    def _said_no(self, label: str, refused: fault.ResponseError) -> Exception:
        """`Unavailable` where it passes, and counted; else what Redis said."""
        passes = isinstance(refused, REFUSES) or getattr(refused, "status_code", None) in REFUSED or str(refused).startswith(REFUSED)
        if not passes:
            return refused
        self._faults.add(1, label)
        return Unavailable(f"Redis takes no such calls now ({label}): {refused}", retry_after_s=2)

    async def ping(self) -> None:
        """Raises `Unavailable` where nobody answers."""
        await self.rare("ping", "PING")

    async def server_s(self, key: str) -> int:
        """The clock of the server that holds a key, seconds since 1970."""
        seconds, _ = await self._ask("time", key, ("TIME",), 2)
        return int(seconds)

    async def entries(self, label: str, stream: str, cursor: str, count: int, block_ms: int) -> list[Any]:
        """[id, [field, value, ...]] of a stream after `cursor`, oldest first; empty after `block_ms` (0: at once) without any."""
        if block_ms:
            found = await self.wait(label, ("XREAD", "COUNT", count, "BLOCK", block_ms, "STREAMS", stream, cursor), stream)
        else:
            found = await self._ask(label, stream, ("XREAD", "COUNT", count, "STREAMS", stream, cursor), 2)
        return list(found[0][1]) if found else []

    # --- areas ---

    async def areas(self) -> list[str]:
        """Ids of all areas that anyone has named, sorted."""
        found = await self.rare("areas", "SMEMBERS", AREAS)
        return sorted(name.decode() for name in found)

    async def add_area(self, area: str) -> None:
        """Make an area known, so that a worker comes to own it."""
        await self.run("enrol", [AREAS], area)
        self._areas.add(area)

    async def beat(self, worker: str, life_ms: int) -> int:
        """This worker is alive (`life_ms` 0: it leaves); how many workers are."""
        return int(await self.run("beat", ["workers"], worker, life_ms))

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
        said = await self.run("append", [keys.incoming, keys.bytes], payload, *caps, field)
        if said in (b"IN", b"OUT"):
            stream = said.decode().lower()
            self._full.add(1, area, stream)
            raise Unavailable(f"area {area}: its {stream} stream is over its byte cap", retry_after_s=5)
        return str(said.decode())

    async def nonce_is_new(self, device_id: str, nonce: str, ttl_s: int) -> bool:
        """True the first time within `ttl_s`. Asked once only: a second try after a lost answer would refuse an
        honest request.
        """
        return bool(await self.call("nonce", "SET", f"nonce:{device_id}:{nonce}", b"", "NX", "EX", ttl_s, attempts=1))

    async def quarantine(self, area: str, payload: bytes) -> None:
        """msgpack list[Quarantined] that the door refused at once; history carries it to its table. Bounded: the
        oldest go first.
        """
        await self.rare("quarantine", "XADD", keys_of(area).quarantine, "MAXLEN", "~", QUARANTINE_MAX, "*", "f", payload)

    # --- the live picture ---

    async def load_live(self, area: str) -> LiveBatch:
        """Epoch, number, all positions, forecasts and open incidents of one instant. An area without an owner yet: epoch "", number
        0, nothing in it.
        """
        keys = keys_of(area)
        values = (("HVALS", key) for key in (keys.pos, keys.eta, keys.open))
        found = await self.together("load_live", keys.ctl, ("HMGET", keys.ctl, "epoch", "n"), *values)
        (epoch, number), positions, forecasts, incidents = found
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
        """Every LiveBatch of every area as msgpack bytes, and None after each (re)connect and each new area: load again what was
        missed.
        """
        async with aclosing(self._listen([AREAS], areas=True)) as found:
            async for message in found:
                yield message and message[1]

    # --- ordered channels ---

    async def publish_ordered(self, channel: str, event_id: str, payload: bytes) -> int:
        """Offset, bounded log and PUBLISH in one step, once by `event_id` among the channel's newest 4,000.

        0: it was said before. Raises `Unavailable`; saying it again with the same id is harmless.
        """
        keys, shard = ordered_keys(channel, "meta", "log", "seen")
        args = [shard, channel, self.clock.token(6), ORDERED_LOG, ORDERED_LIFE_S, event_id, payload]
        return int((await self.run("say", keys, *args))[0])

    async def channel_log(self, channel: str, since: int) -> ChannelLog:
        """Messages after offset `since`. Whether `since` is of this epoch is the caller's to compare."""
        (meta, log_key), _ = ordered_keys(channel, "meta", "log")
        asked = ("HMGET", meta, "epoch", "offset"), ("XRANGE", log_key, f"{since + 1}-0", "+")
        (epoch, newest), entries = await self.together("channel_log", meta, *asked)
        name, offset = (epoch or b"").decode(), int(newest or 0)
        messages = [ChannelMessage(channel, name, int(at.split(b"-")[0]), fields[1]) for at, fields in entries]
        return ChannelLog(name, offset, since + len(messages) == offset, messages)

    async def listen_ordered(self) -> AsyncIterator[ChannelMessage | None]:
        """Every message of every ordered channel, and None after each (re)connect: fill the holes from
        `channel_log`.
        """
        async with aclosing(self._listen([shard_of(number)[1] for number in range(ORDERED_SHARDS)])) as found:
            async for message in found:
                if message is None:
                    yield None
                    continue
                channel, _, data = message[1].partition(NAMED)
                epoch, offset, payloads = data.split(b" ", 2)
                name, era, first = channel.decode(), epoch.decode(), int(offset)
                for place, payload in enumerate(payloads.split(BETWEEN)):
                    yield ChannelMessage(name, era, first + place, payload)

    def listen(self, channel: str) -> AsyncGenerator[tuple[bytes, bytes] | None]:
        """Whatever is published on a channel (`publish`), and None after each (re)connect; at most once."""
        return self._listen([channel])

    async def publish(self, label: str, channel: str, message: bytes) -> None:
        """To whoever listens now. Asked once. Raises `Unavailable`."""
        await self.call(label, "SPUBLISH", channel, message, attempts=1)

    async def _listen(self, channels: Sequence[str], areas: bool = False) -> AsyncGenerator[tuple[bytes, bytes] | None]:
        """(channel, message), and None after each (re)connect. At most once, in order per channel. `areas`: the live channels of all areas
        too, new ones as they come, each with a None.

        Never ends: a lost server is waited for, with growing pauses up to 2 s.
        """
        pause_s = 0.05
        while True:
            ears = Ears(self.nodes)
            try:
                await ears.hear(channels)
                if areas:
                    await ears.hear([keys_of(area).live for area in await self.areas()])
                yield None
                pause_s = 0.05
                while True:
                    while heard := ears.take(TURN):
                        for channel, message in heard:
                            if areas and channel == AREAS_CHANNEL:
                                await ears.hear([keys_of(message.decode()).live])
                                yield None
                            else:
                                yield channel, message
                        await asyncio.sleep(0)
                    await ears.wait(QUIET_S)
            except (*FAULTS, fault.ResponseError, Unavailable) as broken:
                self._faults.add(1, "listen")
                self.nodes.doubt()
                log.warning("redis listener %s: %s; again in %.2f s", channels[0], broken, pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(2.0, pause_s * 2)
            finally:
                ears.close()
