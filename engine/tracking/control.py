"""The owner of one area: reads fixes in order, folds them through the pure tracker, and makes each batch true in one
numbered commit.

Promises: every accepted fix is folded in order and its outcome committed once, whoever is killed, frozen or cut off in
between: Redis is the judge, this memory is a guess that Redis confirms. A fix whose folding raises goes to the dead
letters and the area goes on.

The loop, once it has the lease:

    load number, cursor and states of one instant
    read on from the cursor -> fold -> commit number n + 1 -> rest, and again
    once a second: tick, adopt a newer timetable; trim

Time inside the area follows the stream: while entries wait, it ticks by their ids (when they were received), so that fixes which waited for
a takeover or a restart are judged as they would have been then; caught up, it ticks by the clock.

What a commit answers says what follows: OK and DONE go on, STALE loads again, LEASE forgets everything. A lost answer
is sent again, the same bytes. Which areas this worker owns is decided in `shares.py`.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections import Counter
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from engine.clock import Clock
from engine.errors import Unavailable
from engine.events import STALE, LiveBatch, OutBatch, Word
from engine.meter import SECONDS, SIZES, Meter
from engine.settings import Settings
from engine.store.area import START, AreaStore, Change, Incoming, id_order
from engine.tracking.fix import Fix

if TYPE_CHECKING:
    from engine.tracking.plans import Plan
    from engine.tracking.rules import Rules
from engine.tracking.tracker import Outcome, Tracker

log = logging.getLogger(__name__)

TICK_MS: Final = 1_000
TRIM_S: Final = 1.0
READ_COUNT: Final = 64  # stream entries a read: larger ones made no batch cheaper and every batch older
SLICE_S: Final = 0.001  # folded between two yields to the loop: with 100 fixes, devices waited 70 ms at 2,000 fixes/s
SLICE_MOST_S: Final = 0.010  # but as long as the loop was away with other work: a full worker takes no more in than it folds
FULL_PAUSE_RATE: Final = 500.0  # fixes/s at which the pause after a commit is whole: 1,000/s cost 276 us a fix without it, 125 with it
AWAY_PAUSE_S: Final = 0.2  # between two reads of a Redis that is away
PAUSE_MOST_S: Final = 1.0  # between two tries at a Redis that is away
TRACE_MAX: Final = 4_000  # characters of a dead letter's trace


class PlanSource(Protocol):
    """Where the owner finds its area's timetable: `plans.Plans`."""

    def get(self, feed_id: str) -> Plan | None: ...


class RuleSource(Protocol):
    """Where the owner finds what people have set: `rulebooks.Rulebooks`."""

    def get(self, feed_id: str) -> Rules: ...


class Counts:
    """What the owners of one process count."""

    def __init__(self, meter: Meter) -> None:
        self.rows = meter.counter("timepoint_fixes_total", "fixes settled and committed, by verdict", ("area", "verdict"))
        self.tracked = meter.counter("timepoint_tracker_total", "what the tracker counts by name: verdicts, all unusual", ("area", "what"))
        self.dead = meter.counter("timepoint_dead_letters_total", "fixes or entries whose folding raised", ("area",))
        self.commits = meter.counter("timepoint_commits_total", "what commits answered", ("area", "answer"))
        self.again = meter.counter("timepoint_commits_sent_again_total", "commits whose answer was lost", ("area",))
        self.took = meter.histogram("timepoint_commit_seconds", "one commit, from asking to its answer", bounds=SECONDS)
        self.sizes = meter.histogram("timepoint_commit_fixes", "fixes folded into one commit", bounds=SIZES)
        self.age = meter.histogram("timepoint_fix_age_seconds", "from receipt of the newest position told to its commit", bounds=SECONDS)
        self.ahead = meter.counter("timepoint_cursor_ahead_total", "cursors that lay ahead of the server's clock", ("area", "reader"))
        self.held = meter.gauge("timepoint_stream_bytes", "bytes that a stream holds", ("area", "stream"))
        self.epoch = meter.counter("timepoint_loads_total", "times an area's states were read back from Redis", ("area",))


class Owner:
    """One area while this worker holds its lease. `run` ends when the lease is lost or `stop` was called."""

    def __init__(
        self,
        store: AreaStore,
        token: str,
        plans: PlanSource,
        *,
        clock: Clock,
        settings: Settings,
        counts: Counts,
        rules: RuleSource | None = None,
    ) -> None:
        self.store, self.area, self.token = store, store.area, token
        self._rules, self._ruled = rules, -1  # the number of the rules that the tracker has
        self._plans, self._clock, self._settings, self._counts = plans, clock, settings, counts
        self._decode = msgspec.msgpack.Decoder(list[Fix]).decode
        self._decode_word = msgspec.msgpack.Decoder(Word).decode
        self._encode = msgspec.msgpack.Encoder().encode
        self._tracker: Tracker
        self._plan: Plan | None = None
        self._n, self._cursor, self._epoch = 0, START, ""
        self._caught_up = False  # nothing waited at the last read
        self._unfolded: list[Incoming] = []  # of the last read: the batch was full
        self._ticked_ms = 0
        self._folded = 0  # fixes since the last commit
        self._stopping = False
        self._lost = False
        self._trimmed_s = float("-inf")
        self._rate = 0.0  # fixes/s, over about a second
        self._committed_s = clock.steady_s()

    def stop(self) -> None:
        """End after the batch in hand."""
        self._stopping = True

    def lose(self) -> None:
        """The lease is known to be lost: commit nothing more."""
        self._lost = True

    async def run(self) -> None:
        """Own the area. Gives the lease back where it is still ours."""
        try:
            if await self._load():
                await self._turn()
        finally:
            if not self._lost:
                try:
                    await self.store.lease.release(self.token)
                except Unavailable as away:
                    log.warning("area %s: its lease ends by itself: %s", self.area, away)

    async def _turn(self) -> None:
        """Read or tick, commit, rest, and again."""
        while not (self._stopping or self._lost):
            now_ms = self._clock.now_ms()
            wait_ms = self._ticked_ms + TICK_MS - now_ms
            if wait_ms > 2 * TICK_MS:  # the clock was set back
                self._ticked_ms, wait_ms = now_ms - TICK_MS, 0
            cursor = self._cursor
            if wait_ms > 0 or not self._caught_up:
                is_rest = bool(self._unfolded)  # of an earlier read: more may wait behind it
                try:
                    entries = self._unfolded or await self.store.read_incoming(
                        cursor, READ_COUNT, max(1, wait_ms) if self._caught_up else 1
                    )
                except Unavailable:
                    self._caught_up = False
                    await asyncio.sleep(AWAY_PAUSE_S)
                    continue
                cursor = await self._fold(entries)
                self._caught_up = not is_rest and len(entries) < READ_COUNT and not self._unfolded
            else:
                self._tick(now_ms)
            outcome = self._tracker.take()
            self._count_tracked()
            if cursor != self._cursor or _says_something(outcome):
                await self._make_true(outcome, cursor)
            now_s = self._clock.steady_s()
            if now_s - self._trimmed_s >= TRIM_S:  # behind or not: what is committed must not count against the stream's byte cap
                self._trimmed_s = now_s
                await self._trim()

    def _tick(self, now_ms: int) -> None:
        self._ticked_ms = now_ms
        self._adopt_plan()
        self._adopt_rules()
        self._tracker.tick(now_ms)

    async def _load(self) -> bool:
        """Begin again from what Redis holds. False: the lease is gone."""
        pause_s = 0.05
        while not (self._stopping or self._lost):
            try:
                loaded = await self.store.load(self.token)
                if loaded is None:
                    self._lost = True
                    break
                cursor = loaded.cursor
                if await self.store.is_ahead(cursor):  # not waited for: read from the start, the tracker knows what it has seen
                    self._counts.ahead.add(1, self.area, "control")
                    log.error("area %s: cursor %s lies ahead of the server's clock; reading from the start", self.area, cursor)
                    cursor = START
            except Unavailable as away:
                log.warning("area %s: %s", self.area, away)
                await asyncio.sleep(pause_s)
                pause_s = min(PAUSE_MOST_S, pause_s * 2)
                continue
            self._plan = self._plans.get(self.area)
            self._tracker = Tracker(
                self._plan.timetable if self._plan else None,
                feed_id=self.area,
                partner_id=self._plan.partner_id if self._plan else "",
            )
            self._ruled = -1
            self._adopt_rules()
            self._tracker.restore(loaded.states, loaded.open_incidents)
            self._n, self._cursor, self._epoch = loaded.n, cursor, loaded.epoch
            self._caught_up, self._ticked_ms, self._folded, self._unfolded = False, 0, 0, []
            self._counts.epoch.add(1, self.area)
            log.info("area %s: own it from number %d, cursor %s, %d states", self.area, self._n, cursor, len(loaded.states))
            return True
        return False

    def _adopt_plan(self) -> None:
        """A newer feed version, if there is one; a plan that appears late brings its partner with it."""
        plan = self._plans.get(self.area)
        if plan is None or plan is self._plan:
            return
        self._plan = plan
        self._tracker.partner_id = plan.partner_id
        self._tracker.swap(plan.timetable)
        log.info("area %s: timetable version %s", self.area, plan.timetable.version)

    def _adopt_rules(self) -> None:
        """What people have set since."""
        rules = self._rules.get(self.area) if self._rules is not None else None
        if rules is not None and rules.number != self._ruled:
            self._ruled = rules.number
            self._tracker.rule(rules)

    async def _fold(self, entries: list[Incoming]) -> str:
        """Whole entries, in order, until the batch is full; the cursor after the last one folded."""
        cursor, folded = self._cursor, 0
        steady_s = self._clock.steady_s
        until_s = steady_s() + SLICE_S
        self._unfolded = []
        for at, (entry_id, payload, is_word) in enumerate(entries, 1):
            received_ms = id_order(entry_id)[0]
            if received_ms >= self._ticked_ms + TICK_MS:
                self._tick(received_ms)
            fixes: list[Fix] = []
            try:
                if is_word:
                    self._tracker.hear(self._decode_word(payload))
                else:
                    fixes = self._decode(payload)
            except Exception:  # whatever it is, the area goes on
                await self._bury(payload)
            for fix in fixes:
                try:
                    self._tracker.fold(fix)
                except Exception:  # whatever it is, the other buses go on
                    await self._bury(self._encode([fix]))
                folded += 1
                now_s = steady_s()
                if now_s >= until_s:
                    await asyncio.sleep(0)
                    back_s = steady_s()
                    until_s = back_s + min(SLICE_MOST_S, max(SLICE_S, back_s - now_s))
            cursor = entry_id
            if folded >= self._settings.batch_fixes_max:
                self._unfolded = entries[at:]
                break
        self._folded = folded
        return cursor

    async def _bury(self, payload: bytes) -> None:
        """Called where an exception is being handled: its trace goes along."""
        trace = traceback.format_exc()[-TRACE_MAX:]
        self._counts.dead.add(1, self.area)
        log.error("area %s: dead letter: %s", self.area, trace.strip().rsplit("\n", 1)[-1])
        try:
            await self.store.bury(payload, trace)
        except Unavailable as away:
            log.error("area %s: a dead letter could not be kept: %s", self.area, away)

    async def _make_true(self, outcome: Outcome, cursor: str) -> None:
        """One commit, sent until it is answered, and what its answer asks for."""
        change = self._change(outcome, cursor)
        began_s = self._clock.steady_s()
        answer = await self._send(change)
        if answer is None:
            return
        self._counts.took.observe(self._clock.steady_s() - began_s)
        self._counts.commits.add(1, self.area, answer)
        if answer == "LEASE":
            self._lost = True
        elif answer == "STALE":
            log.warning("area %s: number %d is not Redis's; load again", self.area, change.n)
            await self._load()
        else:
            self._n, self._cursor = change.n, cursor
            self._count(outcome)
            folded, self._folded = self._folded, 0
            await self._rest(folded)

    def _change(self, outcome: Outcome, cursor: str) -> Change:
        encode, n = self._encode, self._n + 1
        positions = [(position, encode(position)) for position in outcome.positions]
        forecasts = {forecast.bus_id: encode(forecast) for forecast in outcome.forecasts}
        said = LiveBatch(
            area=self.area,
            epoch=self._epoch,
            n=n,
            positions=[msgspec.Raw(blob) for _, blob in positions],
            forecasts=[msgspec.Raw(blob) for blob in forecasts.values()],
            events=outcome.events,
            gone=outcome.gone,
        )
        ended = {forecast.bus_id: b"" for forecast in outcome.forecasts if not forecast.stops}
        out = OutBatch(n, self.token, outcome.rows, outcome.events, outcome.sampled)
        return Change(
            n=n,
            cursor=cursor,
            out=encode(out) if outcome.rows or outcome.events or outcome.sampled else b"",
            live=encode(said),
            states=outcome.states,
            positions=positions,
            forecasts=forecasts | ended,
            gone=outcome.gone,
            open_incidents=outcome.open_incidents,
        )

    async def _send(self, change: Change) -> str | None:
        """The answer; the same bytes again while there is none. None: we were stopped or lost the lease meanwhile."""
        pause_s = 0.02
        while not self._lost:
            try:
                return await self.store.commit(self.token, change)
            except Unavailable as away:
                self._counts.again.add(1, self.area)
                log.warning("area %s: number %d goes again: %s", self.area, change.n, away)
                if self._stopping:
                    return None
                await asyncio.sleep(pause_s)
                pause_s = min(PAUSE_MOST_S, pause_s * 2)
        return None

    def _count(self, outcome: Outcome) -> None:
        """What is told, and how old, by the positions: rows and events settle three seconds later."""
        for verdict, rows in Counter(row.verdict for row in outcome.rows).items():
            self._counts.rows.add(rows, self.area, verdict)
        if not self._folded:
            return
        self._counts.sizes.observe(self._folded)
        newest_ms = max((at.received_at_ms for at in outcome.positions if at.state != STALE), default=None)  # STALE: told for its silence
        if newest_ms is not None:
            self._counts.age.observe(max(0.0, (self._clock.now_ms() - newest_ms) / 1000))

    def _count_tracked(self) -> None:
        """What the tracker counted since the last time, committed or not."""
        counts = self._tracker.counts
        for what, times in counts.items():
            self._counts.tracked.add(times, self.area, what)
        counts.clear()

    async def _rest(self, fixes: int) -> None:
        """A pause after a commit that grows with load: the first fix of a quiet moment waits for nothing, a flood
        is gathered, and an area that is behind does not rest.
        """
        now_s = self._clock.steady_s()
        passed_s = max(1e-4, now_s - self._committed_s)
        self._committed_s = now_s
        weight = min(1.0, passed_s)
        self._rate += weight * (fixes / passed_s - self._rate)
        most_s = self._settings.gather_max_ms / 1000
        if fixes and self._caught_up:
            await asyncio.sleep(most_s * min(1.0, self._rate / FULL_PAUSE_RATE))

    async def _trim(self) -> None:
        """The in stream by our own committed cursor, the out stream by its slowest reader's."""
        try:
            held = await self.store.trim_incoming(self._cursor)
            self._counts.held.set(held, self.area, "in")
            out = await self.store.trim_out()
            if out is not None:
                self._counts.held.set(out, self.area, "out")
        except Unavailable as away:
            log.debug("area %s: not trimmed: %s", self.area, away)


def _says_something(outcome: Outcome) -> bool:
    return any((outcome.states, outcome.gone, outcome.positions, outcome.forecasts, outcome.rows, outcome.events, outcome.open_incidents))
