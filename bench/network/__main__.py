"""`python -m bench.network OUT.zip [--date YYYY-MM-DD]` writes the feed; `python -m bench.network buses FEED.zip` lists its buses."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from bench.network.buses import bus_list
from bench.network.feed import TIMEZONE, write_feed


def main(argv: list[str]) -> int:
    if argv[:1] == ["buses"]:
        parser = argparse.ArgumentParser(prog="python -m bench.network buses", description="the buses that a feed needs, as a JSON list")
        parser.add_argument("feed", type=Path, metavar="FEED.zip")
        parser.add_argument("--date", type=date.fromisoformat, help="a day of the week to look at (default: today)")
        args = parser.parse_args(argv[1:])
        from ingest.gtfs import read_feed  # slow to import, and the other command does not need it

        timetable = read_feed(args.feed)
        print(json.dumps(bus_list(timetable, args.date or datetime.now(timetable.tz).date()), ensure_ascii=False))
        return 0
    parser = argparse.ArgumentParser(prog="python -m bench.network", description="write the demo network as GTFS")
    parser.add_argument("out", type=Path, metavar="OUT.zip")
    parser.add_argument("--date", type=date.fromisoformat, help="the day that counts as today (default: today in Algiers)")
    args = parser.parse_args(argv)
    write_feed(args.out, args.date or datetime.now(ZoneInfo(TIMEZONE)).date())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
