"""Buses, devices and their credentials, in a real PostgreSQL and in the registry of a worker."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest

from deploy.servers import PostgresServer
from engine.clock import ManualClock
from engine.errors import Conflict, Invalid, NotFound, Unavailable
from engine.office.accounts import BusRow, Devices, NewDevice, create_devices, hmac_secret, rotate_device, token_hash
from engine.settings import Settings
from engine.store.fleet import Fleet
from engine.store.postgres import Postgres

KEY = "a key of the tests"
NOW_MS = 1_795_262_400_000


class Town:
    """Two partners with two buses each, and a worker's registry."""

    def __init__(self, postgres: Postgres) -> None:
        self.postgres, self.fleet, self.clock = postgres, Fleet(postgres), ManualClock(NOW_MS)
        self.devices = Devices(self.fleet, self.clock, secret_key=KEY)

    async def make(self, *wanted: NewDevice, partner_id: str = "p1"):  # type: ignore[no-untyped-def]
        return await create_devices(self.fleet, self.clock, KEY, partner_id, wanted)


async def settle(postgres: Postgres) -> Town:
    for partner_id in ("p1", "p2"):
        await postgres.execute("insert into partner (partner_id, name) values ($1, $1)", partner_id)
    town = Town(postgres)
    await town.fleet.put_buses([BusRow(bus_id, "p1", "demo", bus_id, None) for bus_id in ("B1", "B2")])
    await town.fleet.put_buses([BusRow(bus_id, "p2", "other", bus_id, None) for bus_id in ("C1", "C2")])
    await town.devices.load()
    return town


@pytest.fixture
async def town(database_url: str) -> AsyncIterator[Town]:
    postgres = await Postgres.connect(Settings(database_url=database_url))
    yield await settle(postgres)
    await postgres.close()


async def test_a_token_is_shown_once_and_only_its_hash_is_kept(town: Town) -> None:
    [issued] = await town.make(NewDevice(["B1"], name="front"))
    assert issued.token is not None and issued.secret is None
    await town.devices.load()
    device = town.devices.by_token(issued.token)
    assert device is not None and (device.device_id, device.buses) == (issued.device_id, {"B1": "demo"})
    row = await town.fleet.device("p1", issued.device_id)
    assert row is not None and row.token_sha256 == token_hash(issued.token)
    assert issued.token not in str(msgspec.to_builtins(row, builtin_types=(bytes,)))


async def test_a_rotated_token_and_its_successor_are_both_good_until_the_grace_ends(town: Town) -> None:
    [old] = await town.make(NewDevice(["B1"]))
    new = await rotate_device(town.fleet, town.clock, KEY, "p1", old.device_id, grace_s=60)
    await town.devices.load()
    assert old.token and new.token and old.token != new.token
    town.clock.advance(59_000)
    assert town.devices.by_token(old.token) is not None
    town.clock.advance(2_000)
    assert town.devices.by_token(old.token) is None
    assert town.devices.by_token(new.token) is not None
    assert new.mqtt_user == f"{old.device_id}.2"


async def test_who_was_let_in_by_an_old_token_stays_until_its_grace_ends(town: Town) -> None:
    [old] = await town.make(NewDevice(["B1"]))
    await town.devices.load()
    before = town.devices.by_token(old.token or "")
    assert before is not None and town.devices.renewed(before) is before
    new = await rotate_device(town.fleet, town.clock, KEY, "p1", old.device_id, grace_s=60)
    await town.devices.load()
    after = town.devices.by_token(new.token or "")
    assert after is not None
    assert town.devices.renewed(before) is not None and town.devices.renewed(after) is after
    town.clock.advance(61_000)
    assert town.devices.renewed(before) is None and town.devices.renewed(after) is after
    await town.fleet.retire_device("p1", old.device_id, NOW_MS)
    await town.devices.load()
    assert town.devices.renewed(after) is None


async def test_a_second_rotation_ends_the_first_token(town: Town) -> None:
    [first] = await town.make(NewDevice(["B1"]))
    await town.devices.load()
    second = await rotate_device(town.fleet, town.clock, KEY, "p1", first.device_id)
    third = await rotate_device(town.fleet, town.clock, KEY, "p1", first.device_id)
    await town.devices.load()
    good = [town.devices.by_token(one.token or "") is not None for one in (first, second, third)]
    assert good == [False, True, True]


async def test_a_signing_devices_secret_follows_its_generation_and_is_kept_nowhere(town: Town) -> None:
    [issued] = await town.make(NewDevice(["B1"], "HMAC"))
    assert issued.token is None and issued.secret == hmac_secret(KEY, issued.device_id, 1)
    rotated = await rotate_device(town.fleet, town.clock, KEY, "p1", issued.device_id, grace_s=60)
    await town.devices.load()
    assert town.devices.secrets(issued.device_id) == [rotated.secret, issued.secret]
    town.clock.advance(61_000)
    assert town.devices.secrets(issued.device_id) == [rotated.secret]


async def test_a_retired_device_is_refused_at_the_next_refresh(town: Town) -> None:
    [issued] = await town.make(NewDevice(["B1"]))
    await town.devices.load()
    assert town.devices.by_token(issued.token or "") is not None
    assert await town.fleet.retire_device("p1", issued.device_id, NOW_MS)
    await town.devices.load()
    assert town.devices.by_token(issued.token or "") is None
    assert town.devices.by_id(issued.device_id) is None
    with pytest.raises(NotFound):
        await rotate_device(town.fleet, town.clock, KEY, "p1", issued.device_id)


async def test_what_a_long_transaction_commits_late_is_not_missed(town: Town) -> None:
    """A time would be: the long transaction's rows are older than what was read since."""
    async with town.postgres.connection() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await Fleet(connection).put_buses([BusRow("B9", "p1", "late", "", None)])
        await town.fleet.put_buses([BusRow("B8", "p1", "demo", "", None)])
        await town.devices.load()
        assert "B8" in town.devices.buses and "B9" not in town.devices.buses
        await transaction.commit()
    await town.devices.load()
    assert town.devices.buses["B9"].area == "late"


async def test_a_bus_that_moves_or_retires_changes_what_its_devices_may_send(town: Town) -> None:
    [issued] = await town.make(NewDevice(["B1", "B2"], "GATEWAY"))
    await town.devices.load()
    await town.fleet.put_buses([BusRow("B1", "p1", "north", "", None)])
    await town.fleet.retire_bus("p1", "B2", NOW_MS)
    await town.devices.load()
    device = town.devices.by_token(issued.token or "")
    assert device is not None and device.buses == {"B1": "north"}


async def test_no_partner_reaches_anothers_buses_or_devices(town: Town) -> None:
    [issued] = await town.make(NewDevice(["B1"]))
    with pytest.raises(Invalid) as refusal:
        await town.make(NewDevice(["B1"]), partner_id="p2")
    assert refusal.value.errors[0]["code"] == "UNKNOWN_BUS"
    assert await town.fleet.put_buses([BusRow("B1", "p2", "stolen", "", None)]) == []
    assert await town.fleet.device("p2", issued.device_id) is None
    assert not await town.fleet.retire_device("p2", issued.device_id, NOW_MS)
    assert await town.fleet.retire_bus("p2", "B1", NOW_MS) is None
    with pytest.raises(NotFound):
        await rotate_device(town.fleet, town.clock, KEY, "p2", issued.device_id)


async def test_bad_devices_are_all_named_and_none_is_made(town: Town) -> None:
    wanted = [NewDevice(["B1"]), NewDevice(["nowhere"]), NewDevice(["B1", "B2"]), NewDevice([]), NewDevice(["B1"], "PHONE")]
    with pytest.raises(Invalid) as refusal:
        await town.make(*wanted)
    assert [(one["pointer"], one["code"]) for one in refusal.value.errors] == [
        ("/1", "UNKNOWN_BUS"), ("/2", "BAD_BUSES"), ("/3", "BAD_BUSES"), ("/4", "BAD_KIND"),
    ]  # fmt: skip
    assert await town.fleet.devices("p1") == []


async def test_a_unique_id_is_one_devices(town: Town) -> None:
    await town.make(NewDevice(["B1"], unique_id="123456"))
    with pytest.raises(Conflict):
        await town.make(NewDevice(["B2"], unique_id="123456"))


async def test_ten_thousand_devices_are_made_in_one_go_and_listed_by_cursor(town: Town) -> None:
    buses = [f"V{n:05}" for n in range(10_000)]
    await town.fleet.put_buses([BusRow(bus_id, "p1", "demo", "", None) for bus_id in buses])
    issued = await town.make(*(NewDevice([bus_id]) for bus_id in buses))
    await town.devices.load()
    assert len({one.token for one in issued}) == 10_000
    assert all(town.devices.by_token(one.token or "") for one in issued[::997])
    first = await town.fleet.devices("p1", limit=3)
    second = await town.fleet.devices("p1", after=first[-1].device_id, limit=3)
    assert [row.bus_ids[0] for row in (*first, *second)] == buses[:6]
    assert [row.device_id for row in await town.fleet.devices("p1", bus_id=buses[77])] == [issued[77].device_id]


async def test_last_heard_never_goes_back(town: Town) -> None:
    [issued] = await town.make(NewDevice(["B1"]))
    for at_ms in (NOW_MS, NOW_MS - 5000):
        town.devices.heard(issued.device_id, at_ms)
        await town.devices.flush_seen()
    row = await town.fleet.device("p1", issued.device_id)
    assert row is not None and row.seen_at_ms == NOW_MS


async def test_the_registry_works_on_while_postgres_is_down(own_postgres: PostgresServer) -> None:
    postgres = await Postgres.connect(Settings(database_url=own_postgres.url))
    town = await settle(postgres)
    [issued] = await town.make(NewDevice(["B1"]))
    await town.devices.load()
    own_postgres.stop()
    town.devices.heard(issued.device_id, NOW_MS)
    for attempt in (town.devices.load, town.devices.flush_seen):
        with pytest.raises(Unavailable):
            await attempt()
    assert town.devices.by_token(issued.token or "") is not None
    own_postgres.start()
    await town.fleet.retire_device("p1", issued.device_id, NOW_MS)
    await town.devices.load()
    await town.devices.flush_seen()
    assert town.devices.by_token(issued.token or "") is None
    await postgres.close()
