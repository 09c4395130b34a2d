"""The HTTP side of the desk in one process, over the small operator of booking_world: no sockets, real PostgreSQL and Redis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx
from litestar.types import ControllerRouterHandler

from api.app import make_app
from api.auth import Tokens
from api.compose import open_desk
from api.parts import BookingParts, Parts
from engine.live.hub import Hub
from engine.live.table import LiveTable
from engine.meter import Meter
from engine.settings import Settings
from tests.booking_world import SECRET, World


class SeatHouse:
    """`http` speaks to the application; `world` is what it sells."""

    world: World
    http: httpx.AsyncClient
    desk: BookingParts
    tokens: Tokens
    parts: Parts

    @classmethod
    async def make(cls, database_url: str, redis_url: str, routers: Sequence[ControllerRouterHandler], **more: Any) -> SeatHouse:
        house = cls()
        world = house.world = await World.make(database_url, redis_url)
        settings = Settings(database_url=database_url, redis_url=redis_url, secret_key=SECRET, **more)
        table, meter = LiveTable(), Meter()
        house.tokens = Tokens(settings, world.clock)
        house.desk = await open_desk(settings, world.clock, world.redis, meter, house.tokens.key)
        house.parts = Parts(
            settings=settings,
            clock=world.clock,
            meter=meter,
            table=table,
            hub=Hub(table, settings, world.clock),
            redis=world.redis,
            tokens=house.tokens,
            booking=house.desk,
        )
        app: Any = make_app(house.parts, routers)
        house.http = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://desk")
        return house

    async def close(self) -> None:
        await self.http.aclose()
        await self.desk.pricing.settled()
        await self.desk.pool.close()
        await self.world.close()

    def as_(self, role: str, partner: str | None = None) -> dict[str, str]:
        """Headers of somebody with that role."""
        return {"Authorization": "Bearer " + self.tokens.mint("tester", role, partner_id=partner)}

    async def get(self, path: str, **params: Any) -> Any:
        answer = await self.http.get(path, params=params or None)
        assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
        return answer.json()

    async def pick(self, *seats: str, frm: str = "demo:A", to: str = "demo:F", **more: Any) -> httpx.Response:
        body = {"seats": list(seats), "from": frm, "to": to, **more}
        return await self.http.post(f"/v1/trips/{self.world.trip_id}/picks", json=body)

    async def states(self, **params: Any) -> dict[str, str]:
        """label -> state of the trip's seat map."""
        shown = await self.get(f"/v1/trips/{self.world.trip_id}/seats", **params)
        return {seat["seat"]: seat["state"] for seat in shown["seats"]}


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document of a refusal."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    body: dict[str, Any] = answer.json()
    assert body["code"] == code, body
    return body
