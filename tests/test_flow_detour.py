"""A bus drives a detour: managers, the passengers of its trip and the GTFS-Realtime feed hear of it within a minute, and when it is over."""

from __future__ import annotations

import pytest

from tests.detour_drive import BUS, DetourDrive
from tests.product import Product

WITHIN_S = 60.0  # from when it was truly away from its line


@pytest.fixture(scope="module")
def drive(product: Product) -> DetourDrive:
    """It began with the product and ran beside the tests before this one."""
    found = product.detour
    assert found is not None
    found.join(150)
    assert not found.is_alive()
    if found.fault is not None:
        raise found.fault
    return found


def test_managers_hear_of_it_within_a_minute_and_again_when_the_bus_is_back(drive: DetourDrive) -> None:
    heard = drive.of(drive.managers)
    opened_s, opened = heard[0]
    assert opened_s - drive.away_s <= WITHIN_S
    assert (opened["busId"], opened["closedAt"], opened["severity"]) == (BUS, None, "MINOR")
    closed_s, closed = heard[-1]
    assert closed["closedAt"] and closed_s > drive.back_s and closed["incidentId"] == opened["incidentId"]
    assert closed["detail"]["maxOffsetM"] == pytest.approx(drive.worst_m, abs=20)  # between two fixes it may have come further
    assert len({body["incidentId"] for _, body in heard}) == 1, "one episode, one incident"


def test_the_passengers_of_the_trip_hear_of_it_on_their_channel_in_words(drive: DetourDrive) -> None:
    heard = drive.of(drive.passengers)
    opened_s, opened = heard[0]
    assert opened_s - drive.away_s <= WITHIN_S and opened["code"] == "DETOUR" and "detour" in opened["text"]
    assert heard[-1][1]["code"] == "DETOUR_OVER" and heard[-1][0] > drive.back_s


def test_the_alert_is_in_gtfs_realtime_while_it_lasts_and_no_longer(drive: DetourDrive) -> None:
    first_s = next(at_s for at_s, found in drive.alerts if found)
    assert first_s - drive.away_s <= WITHIN_S
    alert = next(found for _, found in drive.alerts if found)[0]["alert"]
    assert alert["effect"] == "DETOUR"
    assert not drive.alerts[-1][1], "it ends with the detour"
    assert not [at_s for at_s, found in drive.alerts if found and at_s < drive.away_s], "and does not come before it"
