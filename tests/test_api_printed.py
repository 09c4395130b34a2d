"""What reads keep of a timetable, and of a position, says what would be said without keeping it."""

from __future__ import annotations

import gc
import weakref

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from api import printed as kept_
from api.departures import HORIZON_MOST_S, OVER_S, SHARED_MS, _Calls
from api.network import metres
from api.printed import following, printed
from api.tracking import Located, _told
from engine.events import LiveBatch
from engine.live.frames import pos
from engine.live.table import LiveTable
from tests.live_house import AT_MS, batch, position
from tests.small_world import feed

CALLS = feed(trips=30, headway_s=600)


@given(st.sets(st.text("ab:-", min_size=1, max_size=3), max_size=12), st.none() | st.text("ab:-", max_size=3), st.integers(1, 5))
def test_a_page_begins_after_its_cursor(ids: set[str], cursor: str | None, count: int) -> None:
    rows = sorted((name, name) for name in ids)
    assert list(following(rows, cursor, count)) == [row for row in rows if cursor is None or row[0] > cursor][:count]


def test_what_is_kept_is_made_once_and_not_for_ever() -> None:
    timetable = feed()
    kept, pattern, asked = printed(timetable), timetable.patterns["P"], []
    for _ in range(2):
        said = kept.json("line", pattern, lambda one: asked.append(one.pattern_id) or {"of": one.route_id})
        assert msgspec.json.encode([said]) == b'[{"of":"R"}]'
    assert asked == ["P"]
    assert printed(timetable) is kept and kept.stops[0][0] == "demo:S0" and kept.routes == [("demo:R", "R")]
    kept.json("pattern", pattern, lambda one: "x" * (kept_.KEPT_MAX_BYTES - 5))
    assert list(kept._kept) == [("pattern", "P")], "the bytes of a feed are limited"
    gone = weakref.ref(timetable)
    del kept, pattern, timetable
    gc.collect()
    assert gone() is None, "what is kept goes with its timetable"


@given(st.integers(0, 3 * 86_400_000), st.integers(60, HORIZON_MOST_S))
def test_boards_that_share_a_look_at_the_timetable_miss_no_trip(later_ms: int, horizon_s: int) -> None:
    calls, now_ms = _Calls(CALLS), 1_772_400_000_000 + later_ms
    calls.running(CALLS, now_ms - now_ms % SHARED_MS, horizon_s)  # whoever came first in these seconds
    found = calls.running(CALLS, now_ms, horizon_s)
    wanted = {(one.trip.trip_id, one.start_date) for one in CALLS.instances_around(now_ms, horizon_s, OVER_S)}
    assert wanted <= found.get("P", {}).keys()


@given(st.none() | st.floats(0, 1e6), st.none() | st.floats(0, 1e6), st.integers(-5_000, 5_000))
def test_a_position_is_told_as_its_struct_would_be(driven_m: float | None, remaining_m: float | None, age_ms: int) -> None:
    where, table = position("b1", driven_m=driven_m, remaining_m=remaining_m), LiveTable()
    table.learn(LiveBatch("demo", "E", 0, [], [], []))
    table.hear(batch(1, where, epoch="E", area="demo"))
    struct = Located(
        **msgspec.structs.asdict(pos(where)),
        age_ms=max(0, age_ms),
        from_record=False,
        driven_m=metres(driven_m),
        remaining_m=metres(remaining_m),
    )
    assert _told(table.buses["b1"], AT_MS + age_ms) == msgspec.json.encode(struct)
