"""Which areas this worker owns: a fair share of all there are, taken when free, given back when others are short.

Promises: each area has one owner at a time (its lease); while n workers live, none keeps more than ceil(areas / n) of
them; the areas of a worker that died, froze or was cut off are taken over within a lease (3 s) and one beat. No worker
knows another: they count each other by their beats in Redis.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

from engine.clock import Clock
from engine.errors import Unavailable
from engine.meter import Meter
from engine.settings import Settings
from engine.store.area import AreaStore
from engine.store.redis import Redis
from engine.tracking.control import Counts, Owner, RuleSource

if TYPE_CHECKING:
    from engine.tracking.plans import Plan

log = logging.getLogger(__name__)


class AllPlans(Protocol):
    """Every feed in force: each is an area (`plans.Plans`). `loaded`: the database has been asked at least once."""

    loaded: bool

    def get(self, feed_id: str) -> Plan | None: ...

    def all(self) -> list[Plan]: ...


class Shares:
    """The areas of one worker. `run` until cancelled; `drain` first to hand them over without a pause."""

    def __init__(
        self, redis: Redis, plans: AllPlans, *, clock: Clock, settings: Settings, meter: Meter, rules: RuleSource | None = None
    ) -> None:
        self._rules = rules
        self._redis, self._plans, self._clock, self._settings = redis, plans, clock, settings
        self._counts = Counts(meter)
        self._owned = meter.gauge("timepoint_areas_owned", "areas that this worker owns")
        self._taken = meter.counter("timepoint_areas_taken_total", "leases taken", ("area",))
        self._given = meter.counter("timepoint_areas_given_total", "areas given back because others were short", ("area",))
        self._broken = meter.counter("timepoint_owner_faults_total", "owners that ended with an error", ("area",))
        self._owners: dict[str, tuple[Owner, asyncio.Task[None]]] = {}
        self._me = clock.token(8)
        self._draining = False

    @property
    def owned(self) -> list[str]:
        """Ids of the areas owned now, sorted."""
        return sorted(self._owners)

    async def run(self) -> None:
        """Beat, renew, take and give, four times a lease. Ends only by being cancelled or drained."""
        beat_s = self._settings.lease_renew_ms / 1000
        try:
            while not self._draining:
                began_s = self._clock.steady_s()
                try:
                    await self._beat()
                except Unavailable as away:
                    log.warning("areas: %s", away)
                await asyncio.sleep(max(0.05, beat_s - (self._clock.steady_s() - began_s)))
        finally:
            for _, task in self._owners.values():
                task.cancel()

    async def drain(self) -> None:
        """End every owner after the batch in hand, give the leases back and leave the count, so that others go on
        at once.
        """
        self._draining = True
        for owner, _ in self._owners.values():
            owner.stop()
        await asyncio.gather(*(task for _, task in self._owners.values()), return_exceptions=True)
        self._reap()
        try:
            await self._redis.beat(self._me, 0)
        except Unavailable as away:
            log.warning("areas: left without saying so: %s", away)

    async def _beat(self) -> None:
        if not self._plans.loaded:  # without timetables we would take trips from their buses: leave the areas to others
            return
        lease_ms = self._settings.lease_ms
        workers = await self._redis.beat(self._me, lease_ms)
        await asyncio.gather(*(self._renew(owner) for owner, _ in self._owners.values()))
        self._reap()
        areas = sorted({plan.feed_id for plan in self._plans.all()} | set(await self._redis.areas()))
        fair = -(-len(areas) // max(1, workers))
        for area in self.owned[fair:]:
            self._owners[area][0].stop()
            self._given.add(1, area)
        for area in areas:
            if len(self._owners) >= fair or self._draining:
                break
            if area not in self._owners:
                await self._take(area)
        self._owned.set(len(self._owners))

    async def _take(self, area: str) -> None:
        store = AreaStore(self._redis, area)
        token = await store.lease.acquire(self._settings.lease_ms)
        if token is None:
            return
        self._taken.add(1, area)
        owner = Owner(store, token, self._plans, clock=self._clock, settings=self._settings, counts=self._counts, rules=self._rules)
        self._owners[area] = (owner, asyncio.create_task(owner.run(), name=f"area {area}"))

    async def _renew(self, owner: Owner) -> None:
        """Over a pooled connection, never the one that waits in XREAD. A renewal that fails says nothing; one that
        is refused does.
        """
        try:
            if not await owner.store.lease.renew(owner.token, self._settings.lease_ms):
                owner.lose()
        except Unavailable as away:
            log.warning("area %s: not renewed: %s", owner.area, away)

    def _reap(self) -> None:
        for area, (_, task) in list(self._owners.items()):
            if not task.done():
                continue
            del self._owners[area]
            if not task.cancelled() and (broken := task.exception()):
                self._broken.add(1, area)
                log.error("area %s: its owner ended", area, exc_info=broken)
