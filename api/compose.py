"""Where a worker is put together: the one composition root of the product.

`run_worker` builds every part in the order in which it depends on the others, starts what runs for ever, and drains it all; `open_desk` does
the same for the booking desk, `office_work` names what the office does. Nothing else knows all the parts.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from engine.clock import Clock, SystemClock
from engine.errors import EngineError, Invalid
from engine.settings import Settings

if TYPE_CHECKING:
    from api.parts import BookingParts
    from engine.meter import Meter
    from engine.store.outlet import Bell
    from engine.store.redis import Redis
    from engine.tracking.plans import Plans

log = logging.getLogger("timepoint")

DRAIN_STEP_S: Final = 15.0  # longest wait for one step of a drain


async def run_worker(settings: Settings, sock: socket.socket, share: tuple[str, int] | None = None) -> int:
    """One worker: every part in the order in which it depends on the others, until SIGTERM or SIGINT; then the drain. The exit code.

    `share`: of several workers on the socket, what they share (`api/share.py`) and which of them this is.
    """
    from api import asyncapi, pages
    from api.app import make_app
    from api.auth import Tokens, may_listen
    from api.feeds import build_ahead
    from api.following import Followers, guests
    from api.lag import LoopLag
    from api.live import Sockets
    from api.parts import Parts
    from api.routers import ROOTS, ROUTERS
    from api.server import Worker
    from api.share import Share
    from api.sse import Streams
    from engine.booking.sales import Opener
    from engine.live.advice import trip_incident
    from engine.live.board import Board
    from engine.live.hub import Hub
    from engine.live.ordered import OrderedChannels
    from engine.live.table import LiveTable
    from engine.meter import Meter
    from engine.office.accounts import Devices
    from engine.store.accuracy import AccuracyStore
    from engine.store.alerts import changed_alerts
    from engine.store.analytics import Analytics
    from engine.store.fleet import Fleet
    from engine.store.lease import hold
    from engine.store.loads import Loads
    from engine.store.office import Office
    from engine.store.outlet import Bell
    from engine.store.postgres import Postgres
    from engine.store.redis import Redis
    from engine.store.timescale import HistoryReader
    from engine.tracking.history import History
    from engine.tracking.nights import Nights
    from engine.tracking.plans import Plans
    from engine.tracking.relay import Relay
    from engine.tracking.repair import Repairs
    from engine.tracking.rulebooks import Rulebooks
    from engine.tracking.shares import Shares
    from engine.tracking.summaries import Summaries
    from ingest.broker import BrokerFiles, hang_up
    from ingest.door import Door
    from ingest.http import DeviceApp, DevicePaths
    from ingest.mqtt import MqttReader, broker_address
    from ingest.realtime import RealtimeReader, read_sources

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    roles = _roles(settings)
    clock, meter = SystemClock(), Meter()
    tokens = Tokens(settings, clock)

    # the record and the nervous system
    postgres = await Postgres.connect(settings)
    redis = await Redis.connect(settings, meter, clock)
    plans = Plans(postgres, meter)
    await plans.refresh()
    rulebooks = Rulebooks(postgres, meter)
    await rulebooks.refresh()

    # the way in
    registry = Devices(Fleet(postgres), clock, secret_key=tokens.key, meter=meter)
    await registry.load()
    door = Door(registry, redis, settings, clock, meter)
    device_paths = DevicePaths(door)

    # the desk
    desk = await open_desk(settings, clock, redis, meter, tokens.key)
    bell = Bell(redis)
    desk.pool.changed = bell.ring
    assert desk.room is not None

    # the way out
    table = LiveTable(meter)
    hub = Hub(
        table, settings, clock, meter, may_listen, lambda area, event: trip_incident(area, event, plans.timetable(area), clock.now_ms())
    )
    board = Board(partial(changed_alerts, desk.pool), plans, hub, clock=clock, meter=meter)
    hub.alerts = board.on_channel
    ordered = OrderedChannels(hub, redis, meter, desk.maps.picture, Followers(Office(desk.pool)).admit)
    lag = LoopLag(clock, meter)
    parts = Parts(
        settings=settings,
        clock=clock,
        meter=meter,
        table=table,
        hub=hub,
        redis=redis,
        postgres=postgres,
        devices=DeviceApp(device_paths),
        principal_of=tokens.principal,
        plans=plans,
        rules=rulebooks,
        registry=registry,
        history=HistoryReader(postgres),
        tokens=tokens,
        lag=lag,
        booking=desk,
        board=board,
        loads=Loads(desk.pool, meter),
    )
    guest_of = guests(desk.tokens, clock)
    streams = Streams(hub, settings.socket_buffer_max_bytes, tokens.principal, guest_of)
    app = make_app(parts, ROUTERS, roots=(*ROOTS, *pages.ROOTS, asyncapi.asyncapi, streams.handler))

    sockets = parts.sockets = Sockets(hub, settings, clock, tokens.principal, meter, device_paths, guest_of)
    worker = Worker(app, sockets, parts, streams, device_paths, Share(*share, clock.steady_s) if share is not None else None)

    # what runs for ever
    shares = Shares(redis, plans, clock=clock, settings=settings, meter=meter, rules=rulebooks)
    running: dict[str, Coroutine[Any, Any, None]] = {
        "plans": plans.run(),
        "rules": rulebooks.run(),
        "registry": registry.run(),
        "live table": table.follow(redis, hub.tell),
        "hub": hub.run(),
        "ordered channels": ordered.run(),
        "alerts": board.run(),
        "feeds": build_ahead(parts),
        "loop lag": lag.run(),
        "waiting rooms": desk.room.run(),
    }
    if "track" in roles:
        running["areas"] = shares.run()
    if "history" in roles:
        running["history"] = History(redis, clock=clock, settings=settings, meter=meter).run()
        running["repairs"] = Repairs(redis, postgres, plans, clock=clock, settings=settings, meter=meter).run()
        nights = Nights(AccuracyStore(postgres), plans, clock=clock, settings=settings, meter=meter)
        running["accuracy"] = hold(redis, "accuracy", settings, nights.run)
        summaries = Summaries(Analytics(postgres), clock=clock, settings=settings, meter=meter)
        running["summaries"] = hold(redis, "summaries", settings, summaries.run)
        running["relay"] = Relay(redis, plans, clock=clock, settings=settings, meter=meter).run()
    if "office" in roles:
        running |= office_work(desk, redis, bell, plans, clock, settings, meter)
        opener = Opener(desk.pool, plans, clock=clock, settings=settings, meter=meter)
        running["sales"] = hold(redis, "sales", settings, opener.run)
    if "mqtt" in roles and settings.realtime_sources:
        others = RealtimeReader(read_sources(settings.realtime_sources), door, registry, Fleet(postgres), plans, clock, meter)
        running["gtfs-rt in"] = hold(redis, "gtfs-rt", settings, others.run)
    if "mqtt" in roles and settings.mqtt_url:
        reader = MqttReader(door, settings.mqtt_url, meter)
        running["mqtt"] = hold(redis, "mqtt", settings, reader.run)
        if settings.mqtt_broker_dir:
            folder, address = Path(settings.mqtt_broker_dir), broker_address(settings.mqtt_url)
            files = BrokerFiles(registry, folder, lambda: hang_up(folder / "server.pid"), clock, (address.user, address.password), meter)
            running["broker logins"] = hold(redis, "broker-files", settings, files.run)

    tasks = [asyncio.create_task(work, name=name) for name, work in running.items()]
    serving = asyncio.create_task(worker.run_on(sock), name="server")
    stopping = asyncio.Event()
    for sig in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(sig, stopping.set)
    stop = asyncio.create_task(stopping.wait(), name="signal")
    ended, _ = await asyncio.wait({serving, stop, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    broken = [task for task in ended if task is not stop]
    for task in broken:  # none of them may end by itself: say which did, drain what still works, let the supervisor start a new worker
        log.error("%s ended: %r", task.get_name(), None if task.cancelled() else task.exception())

    # the drain: sockets and requests first, then what was taken in, then the areas, then the pools
    await worker.stop()
    for name, step in (
        ("server", serving),
        ("door", door.drain()),
        ("last seen", registry.flush_seen()),
        ("areas", shares.drain()),
        ("prices", desk.pricing.settled()),
    ):
        try:
            await asyncio.wait_for(step, DRAIN_STEP_S)
        except (TimeoutError, EngineError) as fault:
            log.warning("drain: %s: %s", name, fault or f"not done in {DRAIN_STEP_S:.0f} s")
    for task in (stop, *tasks):
        task.cancel()
    await asyncio.wait({stop, *tasks}, timeout=DRAIN_STEP_S)
    await redis.close()
    await desk.pool.close()
    await postgres.close()
    return 1 if broken else 0


async def open_desk(settings: Settings, clock: Clock, redis: Redis, meter: Meter, secret: str) -> BookingParts:
    """The booking desk's shells, in the order in which they depend on each other."""
    from api.parts import BookingParts
    from engine.booking.boarding import Boarding
    from engine.booking.callers import HoldTokens
    from engine.booking.cancelled_trips import CancelledTrips
    from engine.booking.catalogue import Catalogue
    from engine.booking.changes import Changes
    from engine.booking.desk import Desk
    from engine.booking.drawers import Drawers
    from engine.booking.exchanges import Exchanges
    from engine.booking.issuing import Issuer
    from engine.booking.leases import Leases
    from engine.booking.paying import Paying
    from engine.booking.pricing import Pricing
    from engine.booking.providers import providers_of
    from engine.booking.rates import Rate, Rates
    from engine.booking.room import Room
    from engine.booking.search import Search
    from engine.booking.seatmaps import SeatMaps
    from engine.booking.swaps import Swaps
    from engine.booking.till import Till
    from engine.booking.waitlist import Waitlist
    from engine.store.bookings import Bookings
    from engine.store.desk import DeskPool
    from engine.store.payments import Payments
    from engine.store.picks import Picks
    from engine.store.queue import Queue
    from engine.store.simulator import SimulatorStore
    from engine.store.waiting import Rooms

    pool = await DeskPool.open(settings, clock)
    catalogue = Catalogue(pool, settings.sold_trips_max, meter)
    tokens, pricing = HoldTokens(secret), Pricing(pool, clock, trips_max=settings.sold_trips_max, meter=meter)
    picks = Picks(redis, clock, ttl_s=settings.pick_ttl_s, meter=meter)
    maps = SeatMaps(pool, catalogue, picks, pricing)
    room = Room(Queue(redis), Rooms(pool), secret, clock=clock, settings=settings, meter=meter)
    bookings = Bookings(pool, meter)
    desk = Desk(bookings, catalogue, pricing, tokens, clock=clock, settings=settings, meter=meter, picks=picks, maps=maps, room=room)
    limits = (
        {}
        if settings.demo
        else {
            "hold": Rate(settings.address_holds_burst, 0.5),
            "lookup": Rate(10, 0.1),
            "pick": Rate(120, 4),
            "quote": Rate(60, 1),
            "queue": Rate(30, 1),
            "share": Rate(20, 0.1),
            "sos": Rate(5, 1 / 60),
            "verify": Rate(120, 4),
            "waitlist": Rate(10, 0.2),
        }
    )
    issuer = Issuer(pool, catalogue, secret_key=secret, alg=settings.ticket_alg, clock=clock)
    await issuer.keys()
    providers = providers_of(settings, secret, SimulatorStore(pool), clock)
    paying = Paying(Payments(pool), providers, catalogue, clock=clock, settings=settings, meter=meter)
    return BookingParts(
        pool=pool,
        boarding=Boarding(pool, catalogue, issuer, clock=clock, settings=settings, meter=meter),
        catalogue=catalogue,
        pricing=pricing,
        picks=picks,
        maps=maps,
        search=Search(pool, pricing),
        changes=Changes(pool, desk, clock),
        exchanges=Exchanges(pool, desk, pricing, clock, settings),
        swaps=Swaps(pool, catalogue, clock, settings, picks),
        cancelled_trips=CancelledTrips(pool, catalogue, meter),
        desk=desk,
        paying=paying,
        tokens=tokens,
        rates=Rates(limits, clock, meter),
        till=Till(pool, catalogue, clock, meter),
        leases=Leases(pool, catalogue, pricing, clock=clock, settings=settings),
        drawers=Drawers(pool, clock),
        waitlist=Waitlist(pool, catalogue, pricing, tokens, secret, clock=clock, settings=settings, meter=meter),
        room=room,
    )


def office_work(
    desk: BookingParts, redis: Redis, bell: Bell, plans: Plans, clock: Clock, settings: Settings, meter: Meter
) -> dict[str, Coroutine[Any, Any, None]]:
    """What the office does for ever: the relay of the outbox and the sweeps, each on whichever worker has its lease."""
    from engine.booking.providers import Simulated, deliver_for_ever
    from engine.office.notices import Notices
    from engine.office.outbox import Relay
    from engine.office.sweeps import Expiry, Retention
    from engine.store.heard import IncidentStream
    from engine.store.lease import hold
    from engine.store.office import Office

    office = Office(desk.pool)
    notices = Notices(IncidentStream(redis), desk.pool, plans, clock=clock, settings=settings, meter=meter)
    simulated = [one for one in desk.paying.providers.values() if isinstance(one, Simulated)]
    expiry = Expiry(office, clock=clock, settings=settings, meter=meter)
    retention = Retention(office, settings=settings, meter=meter)
    assert desk.boarding is not None
    assert desk.waitlist is not None
    return {
        "boarding": hold(redis, "boarding", settings, desk.boarding.run),
        "cancelled trips": hold(redis, "cancelled-trips", settings, desk.cancelled_trips.run),
        "outbox": Relay(redis, office, desk.catalogue, bell, clock=clock, settings=settings, meter=meter, keep=[desk.waitlist.keep]).run(),
        "notices": hold(redis, "notices", settings, notices.run),
        "waitlist": desk.waitlist.run(),
        "expiry": hold(redis, "expiry", settings, expiry.run),
        "retention": hold(redis, "retention", settings, retention.run),
        "payments": hold(redis, "payments", settings, desk.paying.run),
        "webhooks": hold(redis, "webhooks", settings, lambda: deliver_for_ever(simulated, desk.paying.posted)),
    }


def _roles(settings: Settings) -> frozenset[str]:
    roles = frozenset(part.strip() for part in settings.roles.split(",") if part.strip())
    unknown = roles - {"api", "track", "history", "mqtt", "office"}
    if unknown or not roles:
        raise Invalid(f"ROLES: {', '.join(sorted(unknown)) or 'none given'}; there are api, track, history, mqtt, office")
    return roles
