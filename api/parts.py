"""What the handlers of one worker are made of: built once by `run_worker` in api/compose.py, found again by every handler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Request

from engine.clock import Clock
from engine.live.hub import Hub
from engine.live.table import LiveTable
from engine.settings import Settings

if TYPE_CHECKING:
    from api.auth import Tokens
    from api.lag import LoopLag
    from api.live import Sockets
    from api.realtime import RealtimeFeed
    from engine.booking.boarding import Boarding
    from engine.booking.callers import HoldTokens
    from engine.booking.cancelled_trips import CancelledTrips
    from engine.booking.catalogue import Catalogue
    from engine.booking.changes import Changes
    from engine.booking.desk import Desk
    from engine.booking.drawers import Drawers
    from engine.booking.exchanges import Exchanges
    from engine.booking.leases import Leases
    from engine.booking.paying import Paying
    from engine.booking.pricing import Pricing
    from engine.booking.rates import Rates
    from engine.booking.room import Room
    from engine.booking.search import Search
    from engine.booking.seatmaps import SeatMaps
    from engine.booking.swaps import Swaps
    from engine.booking.till import Till
    from engine.booking.waitlist import Waitlist
    from engine.live.board import Board
    from engine.meter import Meter
    from engine.office.accounts import Devices
    from engine.store.desk import DeskPool
    from engine.store.loads import Loads
    from engine.store.picks import Picks
    from engine.store.postgres import Postgres
    from engine.store.redis import Redis
    from engine.store.timescale import HistoryReader
    from engine.tracking.plans import Plans
    from engine.tracking.rulebooks import Rulebooks


class BookingParts(msgspec.Struct, kw_only=True):
    """The shells of the booking desk, one field each."""

    pool: DeskPool
    catalogue: Catalogue
    pricing: Pricing
    picks: Picks
    desk: Desk
    paying: Paying
    tokens: HoldTokens
    rates: Rates
    maps: SeatMaps
    search: Search
    changes: Changes
    exchanges: Exchanges
    swaps: Swaps
    cancelled_trips: CancelledTrips
    boarding: Boarding | None = None
    till: Till | None = None  # offline sales come in
    leases: Leases | None = None
    drawers: Drawers | None = None
    waitlist: Waitlist | None = None
    room: Room | None = None  # waiting rooms of a rush


class Parts(msgspec.Struct, kw_only=True):
    """None where a process runs without that part."""

    settings: Settings
    clock: Clock
    table: LiveTable
    hub: Hub
    redis: Redis | None = None
    postgres: Postgres | None = None
    devices: Callable[[Any, Any, Any], Awaitable[None]] | None = None  # the devices' ASGI application, at /ingest
    meter: Meter | None = None
    principal_of: Callable[[str], Any] | None = None  # access token -> principal; raises Unauthenticated
    plans: Plans | None = None  # the timetables in force
    rules: Rulebooks | None = None  # what people have set for each area
    registry: Devices | None = None  # who may send
    history: HistoryReader | None = None  # range reads of the record
    tokens: Tokens | None = None  # who people are
    realtime: dict[str, RealtimeFeed] = {}  # GTFS-Realtime of each feed, as last built
    board: Board | None = None  # the operators' alerts
    loads: Loads | None = None  # seats and boardings of trips under way
    lag: LoopLag | None = None
    booking: BookingParts | None = None  # the desk
    sockets: Sockets | None = None  # who is connected
    importing: bool = False  # a feed is being uploaded: one at a time, each takes a child process and its size on disk
    draining: bool = False


def parts_of(request: Request[Any, Any, Any]) -> Parts:
    """What a handler of ours is made of."""
    parts: Parts = request.app.state.parts
    return parts
