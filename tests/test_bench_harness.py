"""The load harness without its processes: schedules, histograms, thresholds, searches, comparisons and what is written, for any input."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import fromstring

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.harness import command, compare, doctor, outputs, servers, thresholds
from bench.harness.beat import Beat
from bench.harness.find_max import rules_of
from bench.harness.histogram import HIGHEST_NS, Histogram, decode
from bench.harness.processes import look
from bench.harness.result import Generators, Latency, Result, Second, Server, read
from bench.harness.schedule import Schedule
from bench.harness.search import Search
from bench.harness.tally import SETTLED_S, Tally
from bench.harness.target import Deployment

SECONDS = st.floats(0, 3600, allow_nan=False)
SCHEDULES = st.builds(
    Schedule,
    rate=st.floats(0.5, 100),
    hold_s=st.integers(1, 8).map(float),
    warm_up_s=st.integers(0, 4).map(float),
    ramp_s=st.integers(0, 4).map(float),
)
# HdrHistogram 0.10.8 of the values in the test, three digits, up to an hour
REFERENCE = "HISTFAAAADN4nJNpmSzMwMAgyAABzFCaEch0M9ixgMH+A0SAiemnPBNT62ZGluX1TI+3MzIBAMVrCX4="


# ------------------------------------------------------------------------------------------------ schedules


@settings(max_examples=40)
@given(SCHEDULES, st.integers(1, 5))
def test_shares_cut_one_schedule_into_parts_and_leave_nothing(schedule: Schedule, of: int) -> None:
    whole = list(schedule.moments())
    parts = [list(schedule.moments(number, of)) for number in range(of)]
    assert sorted(moment for part in parts for moment in part) == whole
    assert all(part == sorted(part) for part in parts)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@settings(max_examples=40)
@given(SCHEDULES, st.floats(0, 1), st.floats(0, 1))
def test_in_any_stretch_as_much_begins_as_the_rate_asks(schedule: Schedule, one: float, other: float) -> None:
    begin, end = sorted((one * schedule.end_s, other * schedule.end_s))
    begun = sum(begin <= moment < end for moment in schedule.moments())
    assert abs(begun - schedule.offered(begin, end)) <= 1 + 1e-6
    assert all(0 <= moment < schedule.end_s for moment in schedule.moments())


@given(SCHEDULES, st.floats(0, 1))
def test_a_moment_is_when_so_many_are_due(schedule: Schedule, share: float) -> None:
    units = share * schedule.due(schedule.end_s)
    assert math.isclose(schedule.due(schedule.at(units)), units, rel_tol=1e-6, abs_tol=1e-6)


def test_a_ramp_climbs_from_a_tenth_and_the_hold_keeps_the_rate() -> None:
    schedule = Schedule(rate=100, hold_s=10, warm_up_s=2, ramp_s=4)
    assert [round(schedule.offered(at, at + 1)) for at in range(16)] == [10, 10, 21, 44, 66, 89] + [100] * 10
    assert [schedule.phase(at) for at in (1.9, 2, 6, 15.9, 16)] == ["warm-up", "ramp", "hold", "hold", "drain"]


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_strangers_come_by_the_same_rate_and_the_same_seed_brings_the_same(seed: int, of: int) -> None:
    schedule = Schedule(rate=200, hold_s=5, arrivals="poisson")
    come = [moment for number in range(of) for moment in schedule.moments(number, of, seed)]
    assert abs(len(come) - 1000) < 6 * math.sqrt(1000)
    assert come == [moment for number in range(of) for moment in schedule.moments(number, of, seed)]
    assert len(set(come)) == len(come)


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"rate": math.nan}, {"hold_s": 0}, {"warm_up_s": -1}, {"ramp_s": math.inf}])
def test_a_schedule_that_holds_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Schedule(**{"rate": 1.0, "hold_s": 1.0, **wrong})


# ------------------------------------------------------------------------------------------------ histograms


def recorded(values: Sequence[float]) -> Histogram:
    found = Histogram()
    for value in values:
        found.record(value)
    return found


@given(st.lists(SECONDS, min_size=1), st.lists(st.floats(0.001, 1), min_size=1))
def test_a_percentile_is_never_below_the_true_one_and_at_most_a_thousandth_above(values: list[float], shares: list[float]) -> None:
    ordered = sorted(int(value * 1e9) for value in values)
    for share, told in zip(sorted(shares), recorded(values).percentiles(sorted(shares)), strict=True):
        true = ordered[max(1, math.ceil(share * len(ordered) - 1e-9)) - 1]
        assert true <= round(told * 1e9) <= true * (1 + 1 / 1024) + 1


@given(st.lists(SECONDS), st.lists(SECONDS))
def test_histograms_add_up_and_come_back_from_their_text(one: list[float], other: list[float]) -> None:
    both = recorded(one)
    both.add(recorded(other).counts)
    assert both.counts == recorded(one + other).counts
    assert decode(both.encode()).counts == both.counts
    assert both.count == len(one) + len(other)


def test_the_text_is_that_of_hdrhistogram() -> None:
    found = recorded([ns / 1e9 for ns in (0, 1, 2047, 2048, 5_000_000, 5_000_000, 1_234_567_890)])
    found.record(3599.999999999999)
    assert decode(REFERENCE).counts == found.counts


def test_what_is_out_of_range_counts_at_the_edge_and_foreign_text_is_refused() -> None:
    assert recorded([-1.0]).counts == {0: 1} and recorded([1e9]).max_s >= HIGHEST_NS / 1e9
    assert recorded([0.001, 0.2, 0.3]).above(0.1) == 2
    for text in ("", "AAAA", REFERENCE[:-12], "not base64!"):
        with pytest.raises(ValueError, match="HDR"):
            decode(text)


@given(st.lists(st.tuples(st.integers(0, 400), st.floats(0.001, 5)), min_size=1, max_size=60))
def test_a_long_run_forgets_the_histograms_of_old_seconds_and_no_latency(noted: list[tuple[int, float]]) -> None:
    tally = Tally(Schedule(rate=1, hold_s=300, warm_up_s=10))
    for second, latency in noted:
        tally.add(0, Beat({"age": {second: recorded([latency]).counts}}, {}, {}, {}, 0.0))
    held = recorded([latency for second, latency in noted if 10 <= second < 310])
    assert tally.latency("age").counts == held.counts
    newest = max(second for second, _ in noted)
    assert len(tally.by_second["age"]) <= 2 * SETTLED_S + 1 or newest < SETTLED_S
    assert all("age" in tally.second(second).p50_s for second, _ in noted)


# ------------------------------------------------------------------------------------------------ thresholds


def result(**more: object) -> Result:
    """A run of 10 s at 100/s: 1 .. 1,000 ms evenly, one worker at half a core."""
    latency = recorded([ms / 1000 for ms in range(1, 1001)])
    p50, p90, p95, p99, p999 = latency.percentiles((0.5, 0.9, 0.95, 0.99, 0.999))
    measure = Latency(
        meaning="m", count=1000, mean_s=latency.mean_s, p50_s=p50, p90_s=p90, p95_s=p95, p99_s=p99, p999_s=p999, max_s=latency.max_s,
        hdr=latency.encode(),
    )  # fmt: skip
    found = Result(
        scenario="one", title="t", unit="requests", started_at="2026-01-02T03:04:05Z", seconds=10.0, seed=1, rate=100.0, offered=1000, options={},
        machine={}, product={}, measures={"answer": measure}, counts={"accepted": 990}, faults={"503": 7, "p99.5": 3}, broken=[], series=[],
        server=Server(cpu_s={"worker-0": 4.0, "worker-1": 1.0, "redis": 0.99}, memory_kb={"worker-0": [1000, 1100]}, loop_lag_p99_s=0.025),
        generators=Generators(processes=1, cpu_s=1.0, lag_p99_s=0.004, lagged=False), figures={"slope": 1.5},
    )  # fmt: skip
    for name, value in more.items():
        setattr(found, name, value)
    return found


@pytest.mark.parametrize(
    ("text", "held", "figure"),
    [
        ("answer.p99<1s", True, 0.99), ("answer.p50<=400ms", False, 500), ("answer.p99.9>990ms", True, 999), ("answer.max<0.5s", False, 1.0),
        ("answer.mean<501ms", True, 500.5), ("answer.count==1000", True, 1000), ("rate.accepted>=99", True, 99), ("count.accepted>990", False, 990),
        ("faults<1%", False, 1.0), ("faults<=10", True, 10), ("fault.503<1", False, 7), ("fault.timeout<1", True, 0), ("fault.p99.5<4", True, 3),
        ("cost.accepted<6ms", True, 5.05), ("cost.accepted.redis<=1000us", True, 1000), ("cores.worker-0<0.4", False, 0.4),
        ("memory.worker-0<2MB", True, 1.074), ("growth.worker-0<2%", False, 10), ("looplag.p99<50ms", True, 25), ("lag.p99 < 5ms", True, 4),
        ("figure.slope<2", True, 1.5), ("nobody.p99<1s", False, None), ("rate.nobody>=0", False, None), ("cost.accepted.moon<1s", False, None),
    ],
)  # fmt: skip
def test_a_threshold_is_judged_in_the_unit_it_is_written_in(text: str, held: bool, figure: float | None) -> None:
    (judged,) = thresholds.judge([thresholds.parse(text)], result())
    assert judged.held is held
    assert judged.figure == (None if figure is None else pytest.approx(figure, rel=0.002))


@given(st.text(max_size=40))
def test_any_text_is_a_rule_or_a_word_on_what_is_wrong_with_it(text: str) -> None:
    try:
        rule = thresholds.parse(text)
    except ValueError as fault:
        rule, said = None, str(fault)
    if rule is None:
        assert "threshold" in said
    else:
        assert rule.text == text.strip() and rule.sign in thresholds.COMPARISONS


NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,12}", fullmatch=True).filter(lambda name: name not in thresholds.KINDS)
STATS = st.one_of(st.sampled_from(["max", "mean"]), st.integers(1, 99).map("p{}".format), st.just("p99.9"))


@given(NAMES, STATS, st.sampled_from(list(thresholds.COMPARISONS)), st.integers(0, 10**6), st.sampled_from(["s", "ms", "us"]))
def test_a_threshold_on_a_latency_reads_back_as_written(name: str, stat: str, sign: str, bound: int, unit: str) -> None:
    rule = thresholds.parse(f" {name}.{stat} {sign} {bound}{unit}")
    assert rule.what == (name, stat) and rule.sign == sign and rule.bound == bound * {"s": 1, "ms": 1e-3, "us": 1e-6}[unit]
    assert rule.holds(rule.bound) is (sign in ("<=", ">=", "=="))


@pytest.mark.parametrize(
    "text", ["answer<1s", "answer.p99<1", "answer.p99<1MB", "answer.p100<1s", "rate<5", "looplag.p50<1s", "growth.x<5", "a.p99=1s"]
)
def test_what_cannot_be_asked_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="threshold"):
        thresholds.parse(text)


# ------------------------------------------------------------------------------------------------ searches


@settings(max_examples=50)
@given(st.floats(1, 1e4), st.floats(1e-4, 1e4), st.sampled_from([0.01, 0.05, 0.3]))
def test_a_search_ends_just_below_the_rate_at_which_it_breaks(first: float, times: float, within: float) -> None:
    true_most = first * times
    search, tried = Search(first, within), 0
    while (rate := search.next_rate()) is not None:
        search.tell(rate, rate <= true_most)
        tried += 1
    assert tried < 60
    if search.held is None:
        assert true_most < first / 2**9
    else:
        assert search.held <= true_most < search.held * (1 + within) * (1 + 1e-9)


def test_a_search_does_not_pass_its_most_and_needs_something_that_can_break() -> None:
    search = Search(100, most=350)
    while (rate := search.next_rate()) is not None:
        assert rate <= 350
        search.tell(rate, True)
    assert search.held == 350 and search.failed is None
    with pytest.raises(ValueError, match="threshold"):
        rules_of([])
    assert [rule.text for rule in rules_of(["answer.p99<1s"])] == ["answer.p99<1s", "faults<0.1%"]
    assert len(rules_of(["faults<1"])) == 1


# ------------------------------------------------------------------------------------------------ comparisons


def run_of(p50_ms: Sequence[float]) -> Result:
    series = [
        Second(
            at_s=at,
            phase="hold",
            offered=100,
            counts={"accepted": 99},
            p50_s={"answer": ms / 1000},
            p99_s={},
            lag_s=0,
            cpu={"worker-0": ms / 100},
        )
        for at, ms in enumerate(p50_ms)
    ]
    found = result(series=series)
    middle = sorted(p50_ms)[len(p50_ms) // 2] / 1000
    found.measures["answer"].p50_s = middle
    found.server.cpu_s = {"worker-0": middle * 100}
    return found


def verdicts(found: compare.Comparison) -> dict[str, str]:
    return {line.what: line.verdict for line in found.lines}


def test_a_run_against_itself_is_no_different_and_half_the_time_is_better() -> None:
    noisy = [10 + (at * 7919 % 13) for at in range(40)]
    same = verdicts(compare.compare([run_of(noisy)], [run_of(noisy)]))
    assert same["answer.p50"] == same["cost.accepted"] == "no difference beyond noise"
    assert same["answer.p99"] == "too few samples"
    half = verdicts(compare.compare([run_of(noisy)], [run_of([ms / 2 for ms in noisy])]))
    assert half["answer.p50"] == half["cost.accepted"] == "better" and half["rate.accepted"] == "no difference beyond noise"
    assert verdicts(compare.compare([run_of([ms / 2 for ms in noisy])], [run_of(noisy)]))["answer.p50"] == "worse"
    assert verdicts(compare.compare([run_of(noisy)], [run_of([ms * 1.03 for ms in noisy])]))["answer.p50"] == "no difference beyond noise"


def test_four_runs_a_side_are_samples_themselves() -> None:
    before, after = [run_of([10 + n] * 20) for n in range(4)], [run_of([20 + n] * 20) for n in range(4)]
    found = compare.compare(before, after)
    assert found.by == "runs" and verdicts(found)["answer.p50"] == "worse"
    assert compare.compare(before[:3], after).by == "blocks"
    other = result(scenario="other")
    with pytest.raises(ValueError, match="one scenario"):
        compare.compare(before, [other])
    assert any("seed" in note for note in compare.compare([run_of([1] * 9)], [result(seed=2, series=run_of([1] * 9).series)]).notes)


def test_a_comparison_with_a_refused_run_is_no_evidence_either(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noisy = [10 + (at * 7919 % 13) for at in range(40)]
    for name, run in (("a", run_of(noisy)), ("b", run_of([ms * 2 for ms in noisy])), ("c", run_of(noisy))):
        run.refused = "it lagged" if name == "c" else ""
        (tmp_path / f"{name}.json").write_bytes(outputs.as_json(run))
    codes = [command.main(["compare", str(tmp_path / "a.json"), str(tmp_path / f"{other}.json")]) for other in "abc"]
    assert codes == [0, 1, 3] and "it lagged" in capsys.readouterr().out


def test_the_rank_sum_test_is_exact() -> None:
    assert compare.rank_sum_p([1, 2, 3], [4, 5, 6]) == pytest.approx(0.1)
    assert compare.rank_sum_p(range(10), range(10, 20)) == pytest.approx(2 / math.comb(20, 10))
    assert compare.rank_sum_p([1, 1, 1], [1, 1, 1]) == 1.0
    assert compare.rank_sum_p([1, 3], [2, 4]) == pytest.approx(4 / 6)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=7), st.lists(st.integers(0, 5), min_size=1, max_size=7))
def test_neither_side_is_the_first(a: list[int], b: list[int]) -> None:
    assert compare.rank_sum_p(a, b) == pytest.approx(compare.rank_sum_p(b, a))
    assert 0 < compare.rank_sum_p(a, b) <= 1


# ------------------------------------------------------------------------------------------------ what servers say, what is written


def test_counters_of_several_workers_are_told_apart_and_buckets_bound_the_lag() -> None:
    text = (
        '# TYPE a counter\na{worker="1",kind="x"} 4\na{worker="2",kind="x"} 5\ntimepoint_loop_lag_seconds_bucket{worker="1",le="0.01"} 98\n'
    )
    text += 'timepoint_loop_lag_seconds_bucket{worker="1",le="0.05"} 100\ntimepoint_loop_lag_seconds_bucket{worker="1",le="+Inf"} 100\nodd line\n'
    found = servers.parsed(text)
    assert found["1"]['a{kind="x"}'] == 4 and found["2"] == {'a{kind="x"}': 5}
    assert servers.lag_bound(found["1"], 0.98) == 0.01 and servers.lag_bound(found["1"], 0.99) == 0.05
    assert servers.lag_bound({}, 0.99) is None and servers.grown({}, {"a": 1.0}) == {}


def test_a_result_is_written_for_machines_and_for_people() -> None:
    one = result(broken=["12 messages were lost"], refused="the generators began work late")
    one.thresholds = thresholds.judge([thresholds.parse("answer.p99<10ms"), thresholds.parse("faults<20")], one)
    assert read(outputs.as_json(one)) == one
    suite = fromstring(outputs.as_junit([one, result()]))[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("4", "2", "1")
    assert [case.get("name") for case in suite.iter("testcase") if len(case)] == ["evidence", "verify", "answer.p99<10ms"]
    for text in (outputs.as_text(one), outputs.as_markdown(one)):
        assert "12 messages were lost" in text and "answer.p99<10ms" in text and "503 7" in text and "generators began" in text
    line = outputs.as_hlog(one, "answer").splitlines()[-1].split(",")
    assert decode(line[3]).count == 1000 and line[2] == "1000.342"


def test_the_doctor_says_what_to_do_where_nothing_answers() -> None:
    nowhere = Deployment("http://127.0.0.1:9", where="given", info={"redisUrl": "redis://127.0.0.1:9"})
    found = [doctor.answers(nowhere), doctor.its_redis(nowhere), doctor.its_database(nowhere), doctor.credentials(nowhere)]
    assert [finding.state for finding in found] == ["bad", "bad", "note", "note"] and all(finding.do for finding in found)
    assert doctor.clocks(Deployment("http://127.0.0.1:9", where="own", info={"pids": {"worker-0": 1}})).state == "ok"


SHARING = """
import mmap, os, sys
shared = mmap.mmap(-1, 40 << 20)
shared.write(b"x" * (40 << 20))
for _ in range(2):
    if os.fork() == 0:
        shared[:]
        break
sys.stdout.write("ready\\n")
sys.stdout.flush()
sys.stdin.read()
"""


def test_memory_that_a_servers_processes_share_is_counted_once() -> None:
    with subprocess.Popen([sys.executable, "-c", SHARING], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None and [parent.stdout.readline() for _ in range(3)] == [b"ready\n"] * 3
        assert 40 << 10 < look({"one": parent.pid}).memory_kb["one"] < 90 << 10, "the buffer once, and three interpreters"
        parent.communicate()
