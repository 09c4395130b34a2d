"""When something holds: hours of service days in a time zone, between two dates. Pure. `Calendar` is how people write it, `Hours` what is asked.

A service day may run past midnight: "25:00 on a Friday" is one o'clock on Saturday. Hours are what the clock on the wall shows. On the two
days of the year on which clocks are set, an hour that comes twice counts both times, and a time that does not come is the one an hour later,
so days join without a gap, and a window of the morning begins and ends by the clock as on any other day.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Final, Literal
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta

from engine.errors import Invalid

DAY_MS: Final = 86_400_000
DAYS: Final = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
FOR_EVER_MS: Final = 253_402_300_799_000  # the end of the year 9999


class Window(msgspec.Struct, frozen=True, array_like=True):
    """From `from_s` up to, not including, `to_s` seconds of the service days named; 0 <= from_s < to_s <= 48 h."""

    days: tuple[int, ...]  # 0 Monday .. 6 Sunday
    from_s: int
    to_s: int


class Hours(msgspec.Struct, frozen=True, array_like=True):
    """No window: all the time. `valid_from_ms` and `valid_to_ms` (exclusive) bound the whole."""

    tz: str = "UTC"
    windows: tuple[Window, ...] = ()
    valid_from_ms: int = 0
    valid_to_ms: int = FOR_EVER_MS

    def holds(self, at_ms: int) -> bool:
        if not self.valid_from_ms <= at_ms < self.valid_to_ms:
            return False
        return not self.windows or any(begin <= at_ms < end for begin, end in _spans(self, at_ms // DAY_MS))

    def ended_ms(self, held_ms: int, at_ms: int) -> int:
        """When it ceased to hold, for a time at which it held and a later one at which it does not; at most `at_ms`."""
        ends = [self.valid_to_ms]
        ends += [end for begin, end in _spans(self, held_ms // DAY_MS) if begin <= held_ms < end] if self.windows else []
        return max(held_ms, min(at_ms, *ends))


@lru_cache(maxsize=4096)
def _spans(hours: Hours, day: int) -> Sequence[tuple[int, int]]:
    """The windows that touch a day of UTC (since 1970), as times; what joins is one."""
    tz, middle = ZoneInfo(hours.tz), date(1970, 1, 1) + timedelta(days=day)
    found = []
    for back in range(-1, 4):  # time zones reach 14 h, windows 48 h
        service = middle - timedelta(days=back)
        midnight = datetime(service.year, service.month, service.day)
        for window in hours.windows:
            if service.weekday() in window.days:
                opens, ends = (midnight + timedelta(seconds=at_s) for at_s in (window.from_s, window.to_s))
                last = max(ends.replace(tzinfo=tz, fold=fold).timestamp() for fold in (0, 1))
                found.append((round(opens.replace(tzinfo=tz).timestamp()) * 1000, round(last) * 1000))
    spans: list[tuple[int, int]] = []
    for begin, end in sorted(found):
        if spans and begin <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], end))
        else:
            spans.append((begin, end))
    return tuple(spans)


# ------------------------------------------------------------------------------------------------ as people write it

Clock = Annotated[str, Meta(pattern=r"^(?:[0-3]\d|4[0-7]):[0-5]\d$(?!\n)|^48:00$(?!\n)", description="HH:MM of the service day, to 48:00")]
Day = Literal["MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN"]


class CalendarWindow(msgspec.Struct, frozen=True, rename="camel"):
    """`to` is later than `from`: two o'clock in the night after is 26:00."""

    days: Annotated[tuple[Day, ...], Meta(min_length=1, max_length=7)]
    from_: Clock = msgspec.field(name="from")
    to: Clock


class Calendar(msgspec.Struct, frozen=True, rename="camel"):
    """When something holds. No windows: at all hours. `validFrom` and `validTo` (exclusive) are RFC 3339."""

    time_zone: Annotated[str, Meta(min_length=1, max_length=64)] | None = None  # None: the feed's
    windows: Annotated[tuple[CalendarWindow, ...], Meta(max_length=28)] = ()
    valid_from: Annotated[str, Meta(max_length=40)] | None = None
    valid_to: Annotated[str, Meta(max_length=40)] | None = None


def hours_of(calendar: Calendar, tz: str, at: str = "/calendar") -> Hours:
    """The hours of a calendar; `tz`: where it names no time zone. Raises `Invalid` with pointers below `at`."""
    tz = calendar.time_zone or tz
    try:
        ZoneInfo(tz)
    except (KeyError, ValueError, OSError) as fault:
        raise _wrong(f"{at}/timeZone", "UNKNOWN_TIME_ZONE", f"no time zone {tz!r}: names are those of IANA, as Africa/Algiers") from fault
    windows = []
    for number, window in enumerate(calendar.windows):
        from_s, to_s = _seconds(window.from_), _seconds(window.to)
        if to_s <= from_s:
            raise _wrong(f"{at}/windows/{number}/to", "EMPTY", "it is not later than `from`; two o'clock in the night after is 26:00")
        windows.append(Window(tuple(sorted({DAYS.index(day) for day in window.days})), from_s, to_s))
    begin, end = _instant(calendar.valid_from, f"{at}/validFrom", 0), _instant(calendar.valid_to, f"{at}/validTo", FOR_EVER_MS)
    if end <= begin:
        raise _wrong(f"{at}/validTo", "EMPTY", "it is not later than validFrom")
    return Hours(tz, tuple(windows), begin, end)


def _seconds(clock: str) -> int:
    hours, minutes = clock.split(":")
    return int(hours) * 3600 + int(minutes) * 60


def _instant(text: str | None, at: str, default: int) -> int:
    if text is None:
        return default
    try:
        when = datetime.fromisoformat(text)
        if when.tzinfo is None or not 1970 < when.year < 9999:
            raise ValueError
    except ValueError as fault:
        raise _wrong(at, "INVALID_VALUE", "a time is RFC 3339 with its offset, as 2026-11-21T06:00:00Z") from fault
    return round(when.timestamp() * 1000)


def _wrong(pointer: str, code: str, detail: str) -> Invalid:
    return Invalid(f"{pointer}: {detail}", errors=[{"pointer": pointer, "code": code, "detail": detail}])
