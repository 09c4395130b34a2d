"""The manifest as a page to print or to hold in the hand at the door: plain HTML, no script, our own style sheet."""

from __future__ import annotations

from datetime import datetime
from html import escape
from typing import Final
from zoneinfo import ZoneInfo

from engine.booking.manifest import LookAt, Manifest, Travels

STATES: Final = {"BOOKED": "booked", "CHECKED_IN": "checked in", "BOARDED": "aboard", "NO_SHOW": "no-show"}


def page(manifest: Manifest) -> str:
    """The whole document. Times in the trip's zone."""
    zone = ZoneInfo(manifest.timezone)
    title = f"Manifest {manifest.trip_id}"
    counts = manifest.counts
    tiles = [
        ("passengers", counts["passengers"]),
        ("aboard", counts["BOARDED"]),
        ("checked in", counts["CHECKED_IN"]),
        ("booked", counts["BOOKED"]),
    ]
    tiles += [("no-shows", counts["NO_SHOW"])] if counts["NO_SHOW"] else []
    tiles += [("seats", counts["seats"])]
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            '<link rel="icon" href="/assets/icon.svg"><link rel="stylesheet" href="/assets/style.css">',
            '<link rel="stylesheet" href="/assets/manifest.css"></head><body class="manifest"><main>',
            f'<header><p class="soft">{escape(manifest.operator)}</p><h1>{escape(manifest.headsign or manifest.trip_id)}</h1>',
            f'<p><strong class="mono">{_time(manifest.departs_at, zone, "%a %d %b %Y, %H:%M")}</strong> to ',
            f'<strong class="mono">{_time(manifest.arrives_at, zone)}</strong> <span class="soft">{escape(manifest.timezone)}</span></p>',
            f'<p class="soft">{escape(manifest.trip_id)}, bus {escape(manifest.bus_id or "not assigned")}, {manifest.status.lower()}</p></header>',
            '<ul class="tally">',
            *[f'<li><strong class="mono">{number}</strong> {word}</li>' for word, number in tiles],
            "</ul>",
            _look_at(manifest.look_at, zone),
            _passengers(manifest.passengers, zone),
            f'<footer class="soft">As of {_time(manifest.made_at, zone, "%d %b %Y, %H:%M:%S")}, seat map {manifest.map_version}. ',
            "Personal data: keep it to those who need it, and destroy the paper after the trip.</footer></main></body></html>",
        ]
    )


def _time(at: str | None, zone: ZoneInfo, form: str = "%H:%M") -> str:
    return "" if at is None else datetime.fromisoformat(at).astimezone(zone).strftime(form)


def _passengers(passengers: list[Travels], zone: ZoneInfo) -> str:
    if not passengers:
        return '<p class="notice">Nobody has booked yet.</p>'
    heads = "".join(f'<th scope="col">{word}</th>' for word in ("Seat", "Passenger", "From", "To", "State", "Booking", "Phone"))
    return f'<div class="sheet"><table><caption>Passengers by seat</caption><thead><tr>{heads}</tr></thead><tbody>' + "".join(
        f'<tr data-state="{one.state}"><th scope="row" class="mono">{escape(one.seat)}</th>'
        f'<td class="who"><bdi>{escape(one.passenger)}</bdi> <span class="soft">{escape(one.type.lower())}</span></td>'
        f'<td data-label="from"><bdi>{escape(one.from_)}</bdi></td><td data-label="to"><bdi>{escape(one.to)}</bdi></td>'
        f'<td class="standing">{STATES.get(one.state, one.state.lower())} <span class="mono">{_time(one.boarded_at, zone)}</span></td>'
        f'<td class="mono">{escape(one.reference or "")}</td><td class="mono">{escape(one.phone or "")}</td></tr>'
        for one in passengers
    ) + "</tbody></table></div>"  # fmt: skip


def _look_at(odd: list[LookAt], zone: ZoneInfo) -> str:
    if not odd:
        return ""
    rows = "".join(
        f"<li><strong>{escape(one.result.replace('_', ' ').lower())}</strong>: seat {escape(one.seat)}, {escape(one.reference or '')}, "
        f"scanned {_time(one.scanned_at, zone, '%H:%M:%S')} by {escape(one.device)}; {escape(one.meaning)}</li>"
        for one in odd
    )
    return f'<section class="notice" aria-label="Scans to look at"><h2>Look at these scans</h2><ul>{rows}</ul></section>'
