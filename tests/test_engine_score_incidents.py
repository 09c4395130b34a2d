"""Incidents of two replays: whose episodes are the same, and what a threshold that is tried gains and loses."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from api.cli import main
from engine.errors import Invalid
from engine.tracking.incident_diff import Episode, IncidentReport, incident_report, matched
from engine.tracking.incident_diff_show import page
from engine.tracking.replay import replay
from ingest.gtfs import read_feed
from tests.gtfs_feed import write_feed
from tests.test_engine_replay import DATE, EIGHT_MS, recorded


def episode(
    opened_s: int, closed_s: int | None, *, kind: str = "OFF_ROUTE", severity: str = "MINOR", bus: str = "7", detail: str = "{}"
) -> Episode:
    closed_ms = None if closed_s is None else closed_s * 1000
    return Episode(opened_s * 1000, bus, kind, severity, "t1", DATE, closed_ms, detail)


def test_episodes_of_one_bus_and_kind_that_overlap_are_one() -> None:
    ours = [episode(100, 300), episode(1_000, 1_100)]
    theirs = [episode(250, 500), episode(2_000, 2_100), episode(100, 300, bus="8")]
    pairs, gained, lost = matched(ours, theirs)
    assert pairs == [(ours[0], theirs[0])]
    assert gained == [ours[1]]
    assert lost == [theirs[2], theirs[1]]


def test_of_two_that_overlap_the_longer_overlap_is_the_partner() -> None:
    ours = [episode(0, 1_000)]
    theirs = [episode(0, 100), episode(200, 900)]
    pairs, gained, lost = matched(ours, theirs)
    assert (pairs, gained, lost) == ([(ours[0], theirs[1])], [], [theirs[0]])


def test_missed_stops_are_told_apart_by_their_stop() -> None:
    first, second = (episode(100, 100, kind="MISSED_STOP", detail=f'{{"stopSequence":{n}}}') for n in (3, 4))
    moved = msgspec.structs.replace(first, opened_at_ms=130_000, closed_at_ms=130_000)
    assert matched([first], [second, moved]) == ([(first, moved)], [], [second])


def test_one_that_never_ended_overlaps_whatever_came_after_its_beginning() -> None:
    assert len(matched([episode(100, None)], [episode(900, 950)])[0]) == 1
    assert len(matched([episode(900, 950)], [episode(100, None)])[0]) == 1
    assert len(matched([episode(900, None)], [episode(100, 200)])[0]) == 0


times = st.tuples(st.integers(0, 500), st.one_of(st.none(), st.integers(0, 500)), st.sampled_from("AB"))
sides = st.lists(times.map(lambda t: episode(t[0], None if t[1] is None else t[0] + t[1], kind=t[2])), max_size=8, unique=True)


@examples(max_examples=150, deadline=None)
@given(sides, sides)
def test_every_episode_is_told_once_and_the_other_way_round_is_the_mirror(one: list[Episode], other: list[Episode]) -> None:
    pairs, gained, lost = matched(one, other)
    assert Counter([mine for mine, _ in pairs] + gained) == Counter(one)
    assert Counter([theirs for _, theirs in pairs] + lost) == Counter(other)
    back = matched(other, one)
    assert Counter(back[0]) == Counter((theirs, mine) for mine, theirs in pairs)
    assert (back[1], back[2]) == (lost, gained)
    assert all(mine == theirs for mine, theirs in matched(one, one)[0])
    assert matched(one, one)[1:] == ([], [])


# ---------------------------------------------------------------------------------------------------------------- a threshold is tried


def detour(bus: str = "7", away_deg: float = 0.0009) -> list[str]:
    """Trip t1 with a bow of about 100 m to the north between 300 s and 540 s."""
    rows = []
    for second in range(-60, 901, 10):
        lat = 36.0 + (away_deg if 300 <= second <= 540 else 0.0)
        rows.append(f"{bus},{EIGHT_MS + second * 1000},{lat},{3.0 + 0.04 * max(second, 0) / 900:.6f},t1,{DATE}")
    return rows


@pytest.fixture
def tried(tmp_path: Path) -> Path:
    """A detour with the thresholds of the house in `before`, and with others in `after`."""
    feed = write_feed(tmp_path / "feed.zip")
    fixes = recorded(tmp_path / "fixes.csv", detour())
    replay(feed, fixes, tmp_path / "before", read_feed=read_feed)
    replay(feed, fixes, tmp_path / "after", read_feed=read_feed, overrides={"watch.off_m": "140"})
    replay(feed, fixes, tmp_path / "graver", read_feed=read_feed, overrides={"watch.major_m": "80"})
    return tmp_path


def test_a_wider_threshold_loses_the_episode_and_the_manifest_names_it(tried: Path) -> None:
    report = incident_report(tried / "after", tried / "before")
    assert [one.kind for one in report.lost if one.kind == "OFF_ROUTE"] == ["OFF_ROUTE"]
    assert not [one for one in report.gained if one.kind == "OFF_ROUTE"]
    manifest = msgspec.json.decode((tried / "after/manifest.json").read_bytes())
    assert manifest["changed"] == {"watch.off_m": "140"} == report.here.changed
    assert manifest["settings"]["watch"]["off_m"] == 140
    other_way = incident_report(tried / "before", tried / "after")
    assert (other_way.gained, other_way.lost) == (report.lost, report.gained)


def test_an_episode_that_became_graver_is_changed(tried: Path) -> None:
    report = incident_report(tried / "graver", tried / "before")
    assert (report.gained, report.lost) == ([], [])
    assert [(one.here.kind, one.what[0]) for one in report.changed] == [("OFF_ROUTE", "MINOR -> MAJOR")]


def test_rates_are_of_fixes_and_hours_on_the_trip(tried: Path) -> None:
    report = incident_report(tried / "before")
    (count,) = [each for each in report.counts if each.kind == "OFF_ROUTE"]
    assert count.episodes == 1
    assert report.here.hours == pytest.approx(0.25, abs=0.02)
    assert count.per_1000_hours == pytest.approx(1000 / report.here.hours, rel=0.01)
    assert count.per_1000_fixes == pytest.approx(1000 / report.here.fixes, rel=0.01)


def test_the_command_says_it_in_the_terminal_and_on_a_page(tried: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(tried / "after"), "--against", str(tried / "before")]
    assert main(["incidents", *folders, "--html", str(tried / "page.html")]) == 0
    said = capsys.readouterr().out
    assert "watch.off_m=140" in said and "lost: " in said and "OFF_ROUTE" in said
    text = (tried / "page.html").read_text(encoding="utf-8")
    assert not re.findall(r"<script|src=|url\(|@import", text)
    assert "OFF_ROUTE" in text
    assert main(["incidents", *folders, "--json"]) == 0
    assert msgspec.json.decode(capsys.readouterr().out, type=IncidentReport) == incident_report(tried / "after", tried / "before")
    odd = msgspec.structs.replace(incident_report(tried / "before").here.episodes[0], vehicle_id="<script>")
    report = incident_report(tried / "before")
    assert "<script>" not in page(msgspec.structs.replace(report, here=msgspec.structs.replace(report.here, episodes=[odd])))


def test_replays_of_different_fixes_are_not_compared(tried: Path) -> None:
    fixes = recorded(tried / "others.csv", detour("8"))
    replay(tried / "feed.zip", fixes, tried / "others", read_feed=read_feed)
    with pytest.raises(Invalid, match="different fixes"):
        incident_report(tried / "others", tried / "before")
    with pytest.raises(Invalid, match=r"manifest\.json"):
        incident_report(tried)


def test_a_setting_that_is_none_is_refused_before_anything_is_written(tried: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["replay", "--feed", str(tried / "feed.zip"), "--fixes", str(tried / "fixes.csv"), "--out", str(tried / "bad")]
    assert main([*argv, "--set", "watch.off_m=2"]) == 1
    assert "watch.off_m" in capsys.readouterr().err
    assert main([*argv, "--set", "watch.off_m"]) == 1
    assert not (tried / "bad").exists()
