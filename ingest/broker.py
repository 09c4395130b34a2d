"""The broker's logins: Mosquitto's password file and ACL, made from the device registry.

Promises: every device that may send has a login of its own, user = its device id or its bus id, password = its token, and may publish for
its own buses only; both files are replaced whole and the broker reads them again (SIGHUP), within 5 s of a change. While a rotated token
has its grace, those two users keep the old password, and `{deviceId}.{generation}` has the new one, so that a device can change over at any
moment; afterwards all have the new one. Refuses: to know a password. The registry keeps the broker's own hash of it, made when the token was.

Sources: mosquitto.conf(5) "Authentication", "acl_file"; mosquitto_passwd's `$7$` form is PBKDF2-HMAC-SHA512, 12 bytes of salt, 64 of hash.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

from engine.clock import Clock
from engine.meter import Meter
from engine.office.accounts import GATEWAY, DeviceRow, Devices, mosquitto_hash

log = logging.getLogger(__name__)

TELEMETRY, OWNTRACKS = "timepoint/v1/telemetry", "owntracks"
LOOK_S = 1.0


def logins(rows: list[DeviceRow], now_ms: int) -> dict[str, tuple[str, list[str]]]:
    """user -> (password hash, bus ids it may publish for). Where two devices have one bus, its id is the login of the
    younger; a bus id that is also a device's id is that device's login, whosever bus it is."""
    found: dict[str, tuple[str, list[str]]] = {}
    aliases: dict[str, tuple[str, list[str]]] = {}
    device_ids = {row.device_id for row in rows if row.retired_at_ms is None}
    for row in sorted(rows, key=lambda row: row.device_id):
        if row.retired_at_ms is not None or row.mqtt_hash is None:
            continue
        in_grace = row.previous_mqtt_hash is not None and row.previous_until_ms is not None and row.previous_until_ms > now_ms
        known = row.previous_mqtt_hash if in_grace and row.previous_mqtt_hash is not None else row.mqtt_hash
        found[row.device_id] = known, row.bus_ids
        if row.kind != GATEWAY and len(row.bus_ids) == 1 and row.bus_ids[0] not in device_ids:
            aliases[row.bus_ids[0]] = known, row.bus_ids
        if row.generation > 1:
            found[f"{row.device_id}.{row.generation}"] = row.mqtt_hash, row.bus_ids
    return aliases | found


def files(rows: list[DeviceRow], now_ms: int, reader: tuple[str, str]) -> tuple[str, str]:
    """(password file, ACL file). `reader`: the engine's own login as (user, password hash); it may read all and publish nothing."""
    users = logins(rows, now_ms)
    passwords = [f"{reader[0]}:{reader[1]}"] + [f"{user}:{known}" for user, (known, _) in users.items() if user != reader[0]]
    acl = [f"user {reader[0]}", f"topic read {TELEMETRY}/+", f"topic read {OWNTRACKS}/+/+", ""]
    for user, (_, bus_ids) in users.items():
        if user != reader[0]:
            acl += [f"user {user}", *(f"topic write {TELEMETRY}/{bus_id}" for bus_id in bus_ids), f"topic write {OWNTRACKS}/{user}/+", ""]
    return "\n".join(passwords) + "\n", "\n".join(acl) + "\n"


def write(folder: Path, passwords: str, acl: str) -> None:
    """Both, each whole or not at all, readable by the folder's owner only. Raises `OSError`."""
    for name, text in (("passwords", passwords), ("acl", acl)):
        draft = folder / f".{name}.new"
        draft.unlink(missing_ok=True)  # of a writer that was killed: its mode would stand
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        if os.geteuid() == 0:  # an engine of root's, a broker that is not: the folder's owner has to read them
            os.chown(draft, folder.stat().st_uid, folder.stat().st_gid)
        draft.replace(folder / name)


def hang_up(pid_file: Path) -> None:
    """SIGHUP to the process that the file names: Mosquitto reads its files again. Raises `OSError`, `ValueError`."""
    os.kill(int(pid_file.read_text(encoding="utf-8").split()[0]), signal.SIGHUP)


class BrokerFiles:
    """Keeps a folder's `passwords` and `acl` as the registry says. For one worker at a time."""

    def __init__(
        self, devices: Devices, folder: Path, reload: Callable[[], None], clock: Clock, reader: tuple[str, str], meter: Meter | None = None
    ) -> None:
        """`reader`: user and password of the engine's own login. `reload` makes the broker read the files again."""
        self.devices, self.folder, self._reload, self.clock = devices, folder, reload, clock
        self._reader = reader[0], mosquitto_hash(reader[1], clock)
        self._faults = (meter or Meter()).counter(
            "timepoint_broker_files_faults_total", "broker files that could not be written or read again"
        )
        self._version: int | None = None
        self._grace_ends_ms: int | None = None

    def refresh(self) -> bool:
        """Write the files if a device changed or a grace ended since the last time; whether it did. Raises `OSError`, `ValueError`."""
        now_ms = self.clock.now_ms()
        if self.devices.version == self._version and (self._grace_ends_ms is None or now_ms < self._grace_ends_ms):
            return False
        rows = list(self.devices.rows.values())
        write(self.folder, *files(rows, now_ms, self._reader))
        self._reload()
        ends = [row.previous_until_ms for row in rows if row.previous_until_ms is not None and row.previous_until_ms > now_ms]
        self._version, self._grace_ends_ms = self.devices.version, min(ends, default=None)
        return True

    async def run(self) -> None:
        """Until cancelled. A folder that cannot be written is counted and tried again."""
        while True:
            try:
                if self.refresh():
                    log.info("broker logins written: %d devices", len(self.devices.rows))
            except (OSError, ValueError) as fault:
                self._faults.add()
                log.warning("broker files in %s: %s", self.folder, fault)
            await asyncio.sleep(LOOK_S)
