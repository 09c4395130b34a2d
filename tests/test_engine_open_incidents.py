"""Open incidents of an area: what is shown, what people do with it, and what comes back after a restart."""

from __future__ import annotations

import msgspec

from engine.events import Handled, IncidentEvent, Sos
from engine.tracking.open_incidents import OPEN_MAX, OpenIncidents


def incident(
    name: str, *, closed_at_ms: int | None = None, severity: str = "MINOR", opened_at_ms: int = 1, late: bool = False
) -> IncidentEvent:
    saying = f"{name}-{severity}-{closed_at_ms}"
    return IncidentEvent(saying, name, "OFF_ROUTE", severity, "b", "t", "20261121", "r", opened_at_ms, closed_at_ms, 1.0, 2.0, "{}", late)


def sos(name: str = "help", at_ms: int = 5) -> Sos:
    return Sos(name, "b", "t", "20261121", "r", 1.0, 2.0, at_ms, '{"calledBy":"DRIVER"}')


def shown(held: OpenIncidents) -> dict[str, IncidentEvent]:
    again = OpenIncidents()
    assert again.restore(blob for blob in held.changed().values() if blob) == 0
    return again._open


def test_an_episode_is_open_until_its_table_closes_it() -> None:
    held = OpenIncidents()
    assert held.said(incident("i")) == incident("i")
    assert set(held.changed()) == {"i"}
    assert held.said(incident("i", closed_at_ms=9)) == incident("i", closed_at_ms=9)
    assert held.changed() == {"i": b""}
    assert held.changed() == {}


def test_an_incident_that_opens_and_closes_at_once_is_never_open() -> None:
    held = OpenIncidents()
    assert held.said(incident("i", closed_at_ms=1)) is not None
    assert held.changed() == {}


def test_late_incidents_leave_the_picture_alone() -> None:
    held = OpenIncidents()
    assert held.said(incident("i", late=True)) is not None
    assert held.changed() == {}


def test_what_a_person_closed_is_not_said_again_until_a_new_episode() -> None:
    held = OpenIncidents()
    held.said(incident("i"))
    (closed,) = held.handled(Handled("i", "CLOSED", 7, '{"note":"known roadworks"}'))
    assert closed.handled == "CLOSED" and closed.closed_at_ms is None  # the bus is still off its route
    assert held.said(incident("i", severity="MAJOR")) is None
    assert held.handled(Handled("i", "CLOSED", 8)) == []
    assert held.said(incident("i", closed_at_ms=9)) is None
    assert held.said(incident("j")) is not None
    assert set(shown(held)) == {"j"}


def test_an_acknowledgement_stays_with_the_episode() -> None:
    held = OpenIncidents()
    held.said(incident("i"))
    assert held.handled(Handled("i", "ACKNOWLEDGED", 7))[0].handled == "ACKNOWLEDGED"
    raised = held.said(incident("i", severity="MAJOR"))
    assert raised is not None and raised.handled == "ACKNOWLEDGED" and raised.severity == "MAJOR"


def test_a_call_for_help_is_said_once_and_only_a_person_closes_it() -> None:
    held = OpenIncidents()
    (event,) = held.sos(sos())
    assert (event.kind, event.severity, event.closed_at_ms) == ("SOS", "CRITICAL", None)
    assert held.sos(sos()) == []
    (closed,) = held.handled(Handled("help", "CLOSED", 9, '{"note":"ambulance there"}'))
    assert closed.closed_at_ms == 9
    assert msgspec.json.decode(closed.detail) == {"calledBy": "DRIVER", "note": "ambulance there"}
    assert held.changed() == {"help": b""}


def test_they_are_taken_up_after_a_restart_oldest_first_and_what_cannot_be_read_is_counted() -> None:
    held = OpenIncidents()
    for name, at_ms in (("b", 2), ("a", 1), ("c", 3)):
        held.said(incident(name, opened_at_ms=at_ms))
    again = OpenIncidents()
    assert again.restore([*held.changed().values(), b"\x00nonsense"]) == 1
    assert list(again._open) == ["a", "b", "c"]
    assert again.changed() == {}


def test_the_picture_is_bounded_and_the_oldest_goes() -> None:
    held = OpenIncidents()
    for number in range(OPEN_MAX + 1):
        held.said(incident(f"i{number}", opened_at_ms=number))
    found = held.changed()
    assert found["i0"] == b"" and sum(bool(blob) for blob in found.values()) == OPEN_MAX
