"""Tickets on paper: everything a passenger needs is on it, in their own letters, and the code on it is the ticket."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from PIL import Image

from engine.booking import paper, tickets
from engine.booking.issuing import Ticket

QR = tickets.base45(bytes([1, 0, 1, *range(101)]))
LEAVES = 1_795_248_000_000  # 2026-11-21T08:00:00Z
TICKET = Ticket(
    ticket_id="0195c0de-0001-7000-8000-000000000001",
    reference="K7M2PX",
    operator="Sahel Coaches",
    trip=SimpleNamespace(timezone="Africa/Algiers", route_id="demo:C1", headsign="Oran", bus_id="BUS-17", trip_id="demo:C1-0900:20261121"),  # type: ignore[arg-type]
    seat="12A",
    first_name="Amal",
    last_name="Benaïssa",
    type="ADULT",
    start=SimpleNamespace(name="Alger", departs_at_ms=LEAVES),  # type: ignore[arg-type]
    end=SimpleNamespace(name="Oran", arrives_at_ms=LEAVES + 16 * 3_600_000),  # type: ignore[arg-type]
    qr=QR,
    version=1,
    state="ISSUED",
    valid_from_ms=LEAVES,
    valid_to_ms=LEAVES + 40 * 3_600_000,
    boarded_at_ms=None,
)


def changed(**facts: Any) -> Ticket:
    return msgspec.structs.replace(TICKET, **facts)


def texts(ticket: Ticket) -> list[str]:
    root = ElementTree.fromstring(paper.as_svg([ticket]))
    return [node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_a_ticket_says_who_where_when_and_which_seat_in_the_trips_zone() -> None:
    said = texts(TICKET)
    assert {"Sahel Coaches", "K7M2PX", "Alger", "Oran", "Amal Benaïssa", "12A", "BUS-17", "Saturday 21 November 2026"} <= set(said)
    assert {"09:00", "01:00", "+1 day"} <= set(said), "Algiers is an hour ahead of UTC, and the bus arrives the next day"


def test_the_code_in_the_picture_is_the_ticket() -> None:
    image = Image.open(io.BytesIO(paper.as_png([TICKET, TICKET]))).convert("L")
    assert image.size == (1050, 2960)
    matrix = paper.code_of(QR).matrix
    side = len(matrix)
    box = next(mark for mark in paper.marks(TICKET) if isinstance(mark, paper.Code))
    step = int(box.size * paper.DOTS // (side + 2 * paper.QUIET))
    left = round(box.x * paper.DOTS + (box.size * paper.DOTS - side * step) / 2)
    top = round(box.y * paper.DOTS + (box.size * paper.DOTS - side * step) / 2)
    for down in (0, 1480):
        read = [
            [image.getpixel((left + c * step + step // 2, down + top + r * step + step // 2)) < 128 for c in range(side)]
            for r in range(side)
        ]
        assert read == [[bool(module) for module in row] for row in matrix]
    quiet = [image.getpixel((left - 2 * step, top + r * step)) for r in range(side)]
    assert min(quiet) == 255


def test_a_pdf_has_one_page_for_each_ticket() -> None:
    raw = paper.printed(paper.PDF, [TICKET, changed(seat="12B"), changed(first_name="محمد", last_name="بن عيسى")])
    assert raw.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type /Page\b", raw)) == 3


def test_every_form_is_made_also_where_the_system_has_no_font(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "fonts", lambda: None)
    paper._face.cache_clear()
    try:
        strange = changed(first_name="محمد الأمين", last_name="李 Łukasz" * 9, operator="Ω" * 80)
        for kind, start in ((paper.PDF, b"%PDF"), (paper.PNG, b"\x89PNG"), (paper.SVG, b"<svg")):
            assert paper.printed(kind, [strange]).startswith(start)
    finally:
        paper._face.cache_clear()


def test_arabic_is_joined_and_turned_where_the_font_has_it_and_transliterated_where_not() -> None:
    assert paper.drawable("محمد", None) == "Mhmd"
    assert paper.drawable("بن عيسى", None) == "Bn Aisa"
    assert paper.drawable("Benaïssa", None) == "Benaïssa"
    assert paper.drawable("Dvořák 李", None) == "Dvorák ?"
    pair = paper.fonts()
    if pair is None or 0xFEE3 not in paper._letters(pair[0]):
        pytest.skip("no font with Arabic on this system")
    assert paper.drawable("محمد", pair) == "\ufeaa\ufee4\ufea4\ufee3", "presentation forms, last letter first"


def test_a_long_name_is_made_smaller_then_shorter_and_stays_in_its_place() -> None:
    for name in ("Wilhelmina", "Maximiliana Wilhelmina Johanna", "x" * 300):
        mark = paper.Text(8, 70, name, 4.8, True, most=58)
        text, size = paper.fitted(mark, paper.drawable(name, paper.fonts()))
        assert size >= 4.8 * 0.6 - 1e-9
        assert paper._width(text, size, True) <= 58.01
        assert text == name or text.endswith("…")


def test_what_people_write_cannot_leave_its_text() -> None:
    nasty = changed(first_name="<script>alert(1)</script>", last_name="\x00\u202e&", operator='"]]>')
    raw = paper.as_svg([nasty])
    assert b"<script>" not in raw
    assert any("<script>alert" in one for one in texts(nasty))
