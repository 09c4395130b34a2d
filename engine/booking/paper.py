"""Tickets on paper and on a screen: one A6 page each, as PDF, PNG or SVG, with the QR code in it.

A ticket is laid out once, as a list of marks in millimetres (`marks`); three small printers draw such lists. Times are in the trip's zone.

Names in any script that the font has are printed as written, Arabic joined and from right to left. The font is the first of FONTS that the
system has (DejaVu Sans: Latin, Greek, Cyrillic, Arabic); a letter that the font lacks is transliterated (accents dropped, Arabic by a small
table), else printed as "?". Without any of the fonts a built-in Latin one is used. SVG leaves fonts to its viewer.

Drawing takes tens of milliseconds of CPU: call `printed` off the loop.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal
from xml.sax.saxutils import escape
from zoneinfo import ZoneInfo

import msgspec
import segno
from arabic_reshaper import ArabicReshaper
from bidi import get_display
from fontTools.ttLib import TTFont
from fpdf import FPDF
from PIL import Image, ImageDraw, ImageFont

from engine.booking.issuing import Ticket

PDF, PNG, SVG = "application/pdf", "image/png", "image/svg+xml"
WIDTH, HEIGHT = 105.0, 148.0  # A6 upright, mm
DOTS: Final = 10  # of a PNG, per mm
QUIET: Final = 4  # modules of white around a QR code (ISO/IEC 18004)

FONTS: Final = tuple(
    (Path(folder) / regular, Path(folder) / bold)
    for folder, regular, bold in (
        ("/usr/share/fonts/truetype/dejavu", "DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
        ("/usr/share/fonts/dejavu-sans-fonts", "DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
        ("/usr/share/fonts/TTF", "DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
        ("/usr/share/fonts/ttf-dejavu", "DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
        ("/usr/share/fonts/truetype/noto", "NotoSans-Regular.ttf", "NotoSans-Bold.ttf"),
        ("/usr/share/fonts/truetype/liberation", "LiberationSans-Regular.ttf", "LiberationSans-Bold.ttf"),
    )
)
ARABIC: Final = dict(
    zip(
        "ءآأؤإئابةتثجحخدذرزسشصضطظعغفقكلمنهوىيپچژڤگ٠١٢٣٤٥٦٧٨٩",
        ("'", "a", "a", "u", "i", "i", "a", "b", "a", "t", "th", "j", "h", "kh", "d", "dh", "r", "z", "s", "sh", "s", "d", "t", "z", "a",
         "gh", "f", "q", "k", "l", "m", "n", "h", "u", "a", "i", "p", "ch", "zh", "v", "g", *"0123456789"),
        strict=True,
    )
)  # fmt: skip

INK, SOFT, BAND, ON_BAND, LINE, WASH = "#14202b", "#5b6b7a", "#0b5c86", "#ffffff", "#d5dde4", "#eef4f8"
Anchor = Literal["start", "middle", "end"]


class Text(msgspec.Struct, frozen=True):
    """`y` is the baseline, `size` the font's size, both mm. It is made smaller to keep within `most` mm, at last cut short."""

    x: float
    y: float
    text: str
    size: float
    bold: bool = False
    colour: str = INK
    anchor: Anchor = "start"
    most: float = WIDTH


class Box(msgspec.Struct, frozen=True):
    x: float
    y: float
    width: float
    height: float
    colour: str
    radius: float = 0.0


class Dot(msgspec.Struct, frozen=True):
    x: float
    y: float
    radius: float
    colour: str


class Code(msgspec.Struct, frozen=True):
    """A QR code with its quiet zone, `size` mm wide in all."""

    x: float
    y: float
    size: float
    text: str


Mark = Text | Box | Dot | Code


# ------------------------------------------------------------------------------------------------ what stands where


def marks(ticket: Ticket) -> list[Mark]:
    """One ticket, from the top."""
    zone = ZoneInfo(ticket.trip.timezone)
    leaves, arrives = _local(ticket.start.departs_at_ms, zone), _local(ticket.end.arrives_at_ms, zone)
    next_day = (arrives.date() - leaves.date()).days
    until = _local(ticket.valid_to_ms, zone)
    return [
        Box(0, 0, WIDTH, HEIGHT, "#ffffff"),
        Box(0, 0, WIDTH, 19, BAND),
        Text(8, 11.8, ticket.operator, 6.2, bold=True, colour=ON_BAND, most=58),
        Text(97, 8.4, "BOOKING", 2.5, colour=ON_BAND, anchor="end"),
        Text(97, 14.4, ticket.reference, 5.6, bold=True, colour=ON_BAND, anchor="end"),
        Text(8, 27, f"{leaves:%A} {leaves.day} {leaves:%B %Y}", 3.9, bold=True, most=60),
        Text(97, 27, f"times: {ticket.trip.timezone}", 2.6, colour=SOFT, anchor="end", most=34),
        Box(9.6, 36, 0.8, 15, BAND),
        Dot(10, 35, 1.7, BAND),
        Dot(10, 52, 1.7, BAND),
        Dot(10, 52, 0.9, "#ffffff"),
        Text(15, 36.6, ticket.start.name, 5.0, bold=True, most=58),
        Text(97, 36.8, f"{leaves:%H:%M}", 6.4, bold=True, anchor="end"),
        Text(15, 44.4, f"{ticket.trip.route_id.partition(':')[2]}  {ticket.trip.headsign or ''}".strip(), 2.9, colour=SOFT, most=70),
        Text(15, 53.6, ticket.end.name, 5.0, bold=True, most=58),
        Text(97, 53.8, f"{arrives:%H:%M}", 6.4, bold=True, anchor="end"),
        *([Text(97, 57.6, f"+{next_day} day" + "s" * (next_day > 1), 2.5, colour=SOFT, anchor="end")] if next_day else []),
        Box(8, 61, 89, 0.3, LINE),
        Text(8, 67.2, "PASSENGER", 2.5, colour=SOFT),
        Text(8, 73.2, ticket.passenger, 4.8, bold=True, most=58),
        Text(8, 77.6, ticket.type.capitalize().replace("_", " "), 2.9, colour=SOFT, most=58),
        Box(72, 63.6, 25, 15.6, WASH, 2),
        Text(84.5, 68, "SEAT", 2.5, colour=SOFT, anchor="middle"),
        Text(84.5, 76, ticket.seat, 7.2, bold=True, colour=BAND, anchor="middle", most=23),
        Code(5, 82, 60, ticket.qr),
        Text(69, 90, "VALID UNTIL", 2.5, colour=SOFT),
        Text(69, 94.4, f"{until.day} {until:%b %Y}, {until:%H:%M}", 3.2, most=29),
        Text(69, 103, "BUS", 2.5, colour=SOFT),
        Text(69, 107.4, ticket.trip.bus_id or "told at departure", 3.2, most=29),
        Text(69, 116, "TRIP", 2.5, colour=SOFT),
        Text(69, 120.4, ticket.trip.trip_id, 3.2, most=29),
        Text(69, 129, "TICKET", 2.5, colour=SOFT),
        Text(69, 133.4, f"{ticket.ticket_id[-12:]} / {ticket.version}", 3.2, most=29),
        Text(WIDTH / 2, 144.6, "Show this code when you board. It is good for one passenger, once.", 2.6, colour=SOFT, anchor="middle", most=95),
    ]  # fmt: skip


def _local(at_ms: int, zone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(zone)


# ------------------------------------------------------------------------------------------------ letters


@cache
def fonts() -> tuple[Path, Path] | None:
    """(regular, bold), or None: the system has none of FONTS."""
    return next((pair for pair in FONTS if all(path.is_file() for path in pair)), None)


@cache
def _letters(path: Path) -> frozenset[int]:
    with TTFont(path, lazy=True) as font:
        return frozenset(font.getBestCmap())


_JOIN: Final = ArabicReshaper({"delete_harakat": True, "support_ligatures": True})


def drawable(text: str, pair: tuple[Path, Path] | None) -> str:
    """`text` as it is to be drawn from left to right with these fonts: joined, turned, and without letters that they lack."""
    clean = "".join(" " if letter.isspace() else letter for letter in text if not unicodedata.category(letter).startswith("C"))
    has = (_letters(pair[0]) & _letters(pair[1])) if pair is not None else frozenset(range(32, 127)) | frozenset(range(160, 256))
    if any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in clean):
        turned = str(get_display(_JOIN.reshape(clean)))
        if all(ord(letter) in has for letter in turned):
            return turned
        clean = " ".join(word[:1].upper() + word[1:] for word in "".join(ARABIC.get(letter, letter) for letter in clean).split(" "))
    return "".join(letter if ord(letter) in has else _plain(letter) for letter in clean)


def _plain(letter: str) -> str:
    base = "".join(part for part in unicodedata.normalize("NFKD", letter) if part.isascii())
    return base or ("" if unicodedata.combining(letter) else "?")


@cache
def _face(bold: bool, dots: int) -> Any:
    pair = fonts()
    if pair is None:
        return ImageFont.load_default(dots)
    return ImageFont.truetype(str(pair[bold]), dots, layout_engine=ImageFont.Layout.BASIC)  # what it draws is turned already


def _width(text: str, size: float, bold: bool) -> float:
    """Of drawable text, mm."""
    return float(_face(bold, 100).getlength(text)) * size / 100


def fitted(mark: Text, text: str) -> tuple[str, float]:
    """(text, size) within `most`: smaller down to three fifths, then shorter. `text` is what is drawn."""
    wide = _width(text, mark.size, mark.bold)
    size = mark.size * min(1.0, max(mark.most / max(wide, 0.001), 0.6))
    if wide * size / mark.size <= mark.most + 0.01:
        return text, size
    while len(text) > 1 and _width(text + "…", size, mark.bold) > mark.most:
        text = text[:-1]
    return text.rstrip() + "…", size


# ------------------------------------------------------------------------------------------------ three printers


def code_of(text: str) -> segno.QRCode:
    """The QR code of a ticket: alphanumeric, level M (15 % of it may be dirt)."""
    return segno.make_qr(text, error="m", mode="alphanumeric")


def _runs(mark: Code) -> list[tuple[float, float, float, float]]:
    """(x, y, width, height) of the dark runs of a code's rows."""
    matrix = code_of(mark.text).matrix
    step = mark.size / (len(matrix) + 2 * QUIET)
    found = []
    for row, modules in enumerate(matrix):
        at = 0
        while at < len(modules):
            end = at
            while end < len(modules) and modules[end]:
                end += 1
            if end > at:
                found.append((mark.x + (at + QUIET) * step, mark.y + (row + QUIET) * step, (end - at) * step, step))
            at = max(end, at + 1)
    return found


def as_pdf(tickets: Sequence[Ticket]) -> bytes:
    """One page for each ticket; the letters that are used go into the file."""
    pair = fonts()
    pdf = FPDF(unit="mm", format=(WIDTH, HEIGHT))
    pdf.set_auto_page_break(False)
    pdf.set_title(f"Tickets {tickets[0].reference}")
    pdf.set_creator("Timepoint")
    if pair is not None:
        pdf.add_font("paper", "", str(pair[0]))
        pdf.add_font("paper", "B", str(pair[1]))
    for ticket in tickets:
        pdf.add_page()
        for mark in marks(ticket):
            _on_pdf(pdf, mark, pair)
    return bytes(pdf.output())


def _on_pdf(pdf: FPDF, mark: Mark, pair: tuple[Path, Path] | None) -> None:
    if isinstance(mark, Text):
        text, size = fitted(mark, drawable(mark.text, pair))
        if pair is None:
            text = text.replace("…", "...")
        pdf.set_font("paper" if pair is not None else "helvetica", "B" if mark.bold else "", size / 25.4 * 72)
        pdf.set_text_color(mark.colour)
        pdf.text(mark.x - pdf.get_string_width(text) * {"start": 0.0, "middle": 0.5, "end": 1.0}[mark.anchor], mark.y, text)
        return
    if isinstance(mark, Code):
        pdf.set_fill_color("#000000")
        for x, y, width, height in _runs(mark):
            pdf.rect(x, y, width, height + 0.01, style="F")  # a hair: no white between rows
        return
    pdf.set_fill_color(mark.colour)
    if isinstance(mark, Dot):
        pdf.circle(mark.x, mark.y, mark.radius, style="F")
    elif mark.radius:
        pdf.rect(mark.x, mark.y, mark.width, mark.height, style="F", round_corners=True, corner_radius=mark.radius)
    else:
        pdf.rect(mark.x, mark.y, mark.width, mark.height, style="F")


def as_png(tickets: Sequence[Ticket]) -> bytes:
    """The tickets one below the other."""
    pair = fonts()
    image = Image.new("RGB", (round(WIDTH * DOTS), round(HEIGHT * DOTS) * len(tickets)), "#ffffff")
    draw = ImageDraw.Draw(image)
    for number, ticket in enumerate(tickets):
        for mark in marks(ticket):
            _on_png(image, draw, mark, pair, number * HEIGHT)
    out = io.BytesIO()
    image.quantize(32, dither=Image.Dither.NONE).save(out, "PNG", optimize=False)
    return out.getvalue()


def _on_png(image: Image.Image, draw: ImageDraw.ImageDraw, mark: Mark, pair: tuple[Path, Path] | None, down: float) -> None:
    x, y = mark.x * DOTS, (mark.y + down) * DOTS
    if isinstance(mark, Text):
        text, size = fitted(mark, drawable(mark.text, pair))
        draw.text(
            (x, y),
            text,
            fill=mark.colour,
            font=_face(mark.bold, round(size * DOTS)),
            anchor={"start": "ls", "middle": "ms", "end": "rs"}[mark.anchor],
        )
    elif isinstance(mark, Code):
        matrix = code_of(mark.text).matrix
        step = int(mark.size * DOTS // (len(matrix) + 2 * QUIET))  # whole dots: sharp edges
        drawn = Image.new("1", (len(matrix), len(matrix)), 1)
        drawn.putdata([0 if module else 1 for row in matrix for module in row])
        side = len(matrix) * step
        margin = (mark.size * DOTS - side) / 2
        image.paste(drawn.resize((side, side), Image.Resampling.NEAREST), (round(x + margin), round(y + margin)))
    elif isinstance(mark, Dot):
        reach = mark.radius * DOTS
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=mark.colour)
    else:
        edge = (x, y, x + mark.width * DOTS - 1, y + max(mark.height * DOTS - 1, 0))
        draw.rounded_rectangle(edge, mark.radius * DOTS, fill=mark.colour)


def as_svg(tickets: Sequence[Ticket]) -> bytes:
    """The tickets one below the other; text stays text."""
    high = HEIGHT * len(tickets)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH:g}mm" height="{high:g}mm" viewBox="0 0 {WIDTH:g} {high:g}" '
        'font-family="DejaVu Sans, Noto Sans, Helvetica, Arial, sans-serif">'
    ]
    for number, ticket in enumerate(tickets):
        title = f"Ticket {ticket.reference}, seat {ticket.seat}"
        out.append(f'<g transform="translate(0 {number * HEIGHT:g})" role="img"><title>{escape(title)}</title>')
        out += [_in_svg(mark) for mark in marks(ticket)]
        out.append("</g>")
    return "".join([*out, "</svg>"]).encode()


def _in_svg(mark: Mark) -> str:
    if isinstance(mark, Text):
        text = "".join(letter for letter in mark.text if not unicodedata.category(letter).startswith("C"))
        shown, size = fitted(mark, drawable(text, fonts()))
        if shown.endswith("…") and not text.endswith("…"):  # cut short: as many letters, in the order in which they are written
            text = text[: max(len(shown) - 1, 1)].rstrip() + "…"
        bold = ' font-weight="bold"' if mark.bold else ""
        anchor = "" if mark.anchor == "start" else f' text-anchor="{mark.anchor}"'
        return f'<text x="{mark.x:g}" y="{mark.y:g}" font-size="{size:.2f}" fill="{mark.colour}"{bold}{anchor}>{escape(text)}</text>'
    if isinstance(mark, Code):
        path = "".join(f"M{x:.3f} {y:.3f}h{width:.3f}v{height:.3f}h-{width:.3f}z" for x, y, width, height in _runs(mark))
        return f'<path shape-rendering="crispEdges" d="{path}"/>'
    if isinstance(mark, Dot):
        return f'<circle cx="{mark.x:g}" cy="{mark.y:g}" r="{mark.radius:g}" fill="{mark.colour}"/>'
    radius = f' rx="{mark.radius:g}"' if mark.radius else ""
    return f'<rect x="{mark.x:g}" y="{mark.y:g}" width="{mark.width:g}" height="{mark.height:g}"{radius} fill="{mark.colour}"/>'


PRINTERS: Final[dict[str, Callable[[Sequence[Ticket]], bytes]]] = {PDF: as_pdf, PNG: as_png, SVG: as_svg}


def printed(kind: str, tickets: Sequence[Ticket]) -> bytes:
    """The tickets as a file of that media type; at least one. CPU-bound: off the loop."""
    return PRINTERS[kind](tickets)
