"""A small whole GTFS feed in text, for tests to break one piece of at a time."""

from __future__ import annotations

import zipfile
from pathlib import Path

# Route 1 runs east along a road of 4 km and back; service wk on weekdays, and on no holiday.
FILES: dict[str, str] = {
    "agency.txt": "agency_id,agency_name,agency_url,agency_timezone\nA,City Bus,https://bus.example,America/New_York\n",
    "stops.txt": (
        "stop_id,stop_name,stop_lat,stop_lon\n"
        "s1,West,36.0,3.0\n"
        "s2,Market,36.0,3.01\n"
        "s3,School,36.0,3.02\n"
        "s4,East,36.0,3.04\n"
    ),
    "routes.txt": "route_id,agency_id,route_short_name,route_long_name,route_type,route_color\n1,A,1,West - East,3,00aa11\n",
    "calendar.txt": (
        "service_id,monday,tuesday,wednesday,thursday,friday,saturday,sunday,start_date,end_date\n"
        "wk,1,1,1,1,1,0,0,20260101,20261231\n"
    ),
    "calendar_dates.txt": "service_id,date,exception_type\nwk,20260704,1\nwk,20261225,2\n",
    "shapes.txt": (
        "shape_id,shape_pt_lat,shape_pt_lon,shape_pt_sequence\n"
        "out,36.0,3.0,1\nout,36.0,3.02,2\nout,36.0,3.04,3\n"
        "back,36.0,3.04,1\nback,36.0,3.0,2\n"
    ),
    "trips.txt": (
        "route_id,service_id,trip_id,trip_headsign,direction_id,block_id,shape_id\n"
        "1,wk,t1,East,0,b1,out\n"
        "1,wk,t2,West,1,b1,back\n"
        "1,wk,t3,East,0,,out\n"
    ),
    "stop_times.txt": (
        "trip_id,arrival_time,departure_time,stop_id,stop_sequence\n"
        "t1,08:00:00,08:00:00,s1,1\nt1,08:03:00,08:04:00,s2,2\nt1,08:07:00,08:07:00,s3,3\nt1,08:15:00,08:15:00,s4,4\n"
        "t2,08:20:00,08:20:00,s4,1\nt2,08:30:00,08:30:00,s2,5\nt2,08:35:00,08:35:00,s1,9\n"
        "t3,25:10:00,25:10:00,s1,1\nt3,25:13:00,25:14:00,s2,2\nt3,25:17:00,25:17:00,s3,3\nt3,25:25:00,25:25:00,s4,4\n"
    ),
}  # fmt: skip


def write_feed(path: Path, changes: dict[str, str | bytes | None] | None = None, *, folder: str = "") -> Path:
    """The feed as a zip at `path`; `changes` replaces files by name, None leaves one out."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, text in {**FILES, **(changes or {})}.items():
            if text is not None:
                zipped.writestr(zipfile.ZipInfo(folder + name), text, zipfile.ZIP_DEFLATED)  # of no time: the same feed is the same bytes
    return path


def replaced(file: str, old: str, new: str) -> dict[str, str | bytes | None]:
    """One change inside one file; fails where there is nothing to change."""
    assert old in FILES[file], f"{old!r} does not stand in {file}"
    return {file: FILES[file].replace(old, new, 1)}
