"""The world of the desk with payments in it: the simulated providers with their own clock, which a test may put ahead by days."""

from __future__ import annotations

from typing import Any

from engine.booking.money import Money
from engine.booking.paying import Paying
from engine.booking.payments import SIGNATURE, Charge, Fact, signature, webhook_body, webhook_secret
from engine.booking.providers import CARD, MOBILE_MONEY, Simulated, scenario_of
from engine.clock import SystemClock
from engine.errors import EngineError
from engine.store.desk import Answer, Key
from engine.store.payments import Payments
from engine.store.simulator import SimulatorStore
from tests.booking_world import SECRET, World


class AheadClock(SystemClock):
    """The real time and `ahead_ms` more."""

    ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms


class PayingWorld(World):
    paying: Paying
    store: Payments
    simulated: dict[str, Simulated]
    their_clock: AheadClock

    @classmethod
    async def make(cls, database_url: str, redis_url: str = "", **settings: Any) -> PayingWorld:
        world = await super().make(database_url, redis_url, **{"simulator_answer_ms": 1, "payment_run_s": 0.05} | settings)
        assert isinstance(world, PayingWorld)
        world.their_clock = AheadClock()
        world.store = Payments(world.pool)
        world.simulated = {name: world.provider(name) for name in (CARD, MOBILE_MONEY)}
        world.paying = world.worker()
        return world

    def provider(self, name: str) -> Simulated:
        secret = webhook_secret(SECRET, name)
        return Simulated(name, SimulatorStore(self.pool), self.their_clock, secret, self.settings.simulator_answer_ms)

    def worker(self, **providers: Any) -> Paying:
        """Another worker on the same database; a provider may be another one."""
        return Paying(self.store, self.simulated | providers, self.catalogue, clock=self.their_clock, settings=self.settings)

    # --- what people do ---

    async def begun(self, *labels: str, provider: str = CARD, scenario: Any = None, **more: Any) -> tuple[Any, str]:
        """(booking, payment id) of a booking whose payment has begun."""
        shown = await self.booked(*labels, **more)
        return shown, await self.begin(shown, provider, scenario)

    async def begin(self, shown: Any, provider: str = CARD, scenario: Any = None) -> str:
        answer = await self.paying.initiate(self.payer(shown), self.key(), shown["ref"], provider, scenario_of(scenario))
        return str(answer.body["id"])

    async def paid(self, *labels: str, provider: str = CARD, scenario: Any = None, **more: Any) -> tuple[Any, str]:
        shown, payment_id = await self.begun(*labels, provider=provider, scenario=scenario, **more)
        await self.confirm(shown, payment_id)
        return shown, payment_id

    async def confirm(self, shown: Any, payment_id: str, key: Key | None = None) -> Answer:
        return await self.paying.confirm(self.payer(shown), key or self.key(), payment_id)

    async def refund(self, shown: Any, amount: int, currency: str = "DZD", key: Key | None = None, worker: Paying | None = None) -> Answer:
        return await (worker or self.paying).refund(
            self.agent(), key or self.key(), None, shown["ref"], Money(amount, currency), "asked for"
        )

    def payer(self, shown: Any) -> Any:
        return self.guest(self.tokens.mint(shown["lead"]))

    async def expire(self, shown: Any) -> None:
        """The booking's time is over, and the sweep has come by; its payment, if one has begun, has been given up."""
        await self.run(
            "update money.payment set deadline_at = clock_timestamp(), next_try_at = clock_timestamp() where lead_id = $1", shown["lead"]
        )
        await self.paying.reconcile()
        await self.age(shown["lead"], 10_000)
        await self.run("select booking.expire(array[$1::uuid], 'sweep')", shown["lead"])

    async def due(self) -> None:
        """Whatever the reconciler waits for is due now; it comes by."""
        await self.run("update money.payment set next_try_at = clock_timestamp() where next_try_at is not null")
        await self.run("update money.refund set next_try_at = clock_timestamp() where next_try_at is not null")
        await self.paying.reconcile()

    # --- what providers do ---

    async def deliver(self, provider: str = MOBILE_MONEY) -> list[int]:
        """Posts the webhooks that are due by the providers' clock; how many facts each had."""
        heard: list[int] = []

        async def post(name: str, headers: dict[str, str], body: bytes) -> bool:
            try:
                heard.append(await self.paying.webhook(name, headers, body, "webhook"))
            except EngineError:
                return False
            return True

        await self.simulated[provider].deliver(post)
        return heard

    async def says(self, facts: list[Fact], provider: str = CARD) -> int:
        """A webhook with these facts, well signed."""
        body, now_ms = webhook_body(facts), self.their_clock.now_ms()
        return await self.paying.webhook(provider, {SIGNATURE: signature(webhook_secret(SECRET, provider), body, now_ms)}, body, "webhook")

    async def takes(self, payment_id: str) -> list[Fact]:
        """The card's money is taken, whoever asked for it; what the provider says of it."""
        row = await self.payment(payment_id)
        charge = Charge(payment_id=payment_id, reference="", amount=Money(row["amount"], row["currency"]))
        return await self.simulated[CARD].capture(payment_id, charge)

    # --- what there is ---

    async def state(self, shown: Any) -> str:
        return str(await self.value("select min(state) from booking.booking where lead_id = $1", shown["lead"]))

    async def payment(self, payment_id: str) -> Any:
        [row] = await self.run("select * from money.payment where payment_id = $1", payment_id)
        return row

    async def accounts(self) -> dict[str, int]:
        """What stands on each account: credits less debits; accounts at zero are left out."""
        rows = await self.run(
            "select account, sum(credit - debit)::bigint as net from money.ledger group by account having sum(credit - debit) <> 0"
        )
        return {row["account"]: row["net"] for row in rows}

    async def events(self, payment_id: str) -> list[str]:
        rows = await self.run("select kind from office.outbox where topic = 'payment' and aggregate = $1 order by version", payment_id)
        return [row["kind"] for row in rows]

    async def sound(self) -> None:
        """Every invariant of money holds, and no seat is sold twice."""
        assert await self.store.unsound() == []
        assert await self.overlaps() == 0
