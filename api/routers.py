"""All REST calls of the product: what stands under /v1, and what stands at the root beside the pages. One list, for worker and documents."""

from __future__ import annotations

from typing import Final

from litestar.types import ControllerRouterHandler

from api import (
    alerts,
    analytics,
    analytics_eta,
    booking,
    changes,
    dashboard,
    fares,
    feeds,
    fleet,
    geofences,
    incidents,
    ladder,
    network,
    notices,
    office,
    ops,
    payments,
    playback,
    pos,
    promos,
    quotes,
    rules,
    search,
    seat_maps,
    seats,
    settlements,
    shares,
    sos,
    tickets,
    tracking,
    waiting,
)

ROUTERS: Final[tuple[ControllerRouterHandler, ...]] = (
    *network.ROUTERS,
    *tracking.ROUTERS,
    *playback.ROUTERS,
    *shares.ROUTERS,
    *sos.ROUTERS,
    *incidents.ROUTERS,
    *geofences.ROUTERS,
    *analytics.ROUTERS,
    *ladder.ROUTERS,
    *dashboard.ROUTERS,
    *alerts.ROUTERS,
    *notices.ROUTERS,
    *analytics_eta.ROUTERS,
    *fleet.ROUTERS,
    *rules.ROUTERS,
    *booking.ROUTERS,
    *changes.ROUTERS,
    *seats.ROUTERS,
    *search.ROUTERS,
    *tickets.ROUTERS,
    *office.ROUTERS,
    *quotes.ROUTERS,
    *fares.ROUTERS,
    *promos.ROUTERS,
    *pos.ROUTERS,
    *waiting.ROUTERS,
    *seat_maps.ROUTERS,
    *payments.ROUTERS,
    *settlements.ROUTERS,
)
ROOTS: Final[tuple[ControllerRouterHandler, ...]] = (*ops.ROOTS, *feeds.ROOTS)
