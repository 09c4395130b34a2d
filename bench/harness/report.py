"""The report of one or several runs as one HTML file: no script, no outside request, light and dark by the reader's own setting, readable on a phone.

On top stands whether the runs are evidence at all, what faulted and which thresholds were missed; below, plots, each with the same numbers as a
table behind it, so that nothing is told by colour or shape alone. Several results stand side by side: one curve each where they have a measure
of the same name. Times are printed in ms, CPU in microseconds a unit of the offered load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Final

from bench.harness import report_plots as plots
from bench.harness.histogram import decode
from bench.harness.report_plots import Line, number, seconds_text
from bench.harness.result import Latency, Peer, Result, Second

SHARES: Final = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999)
NINES: Final = 4  # the percentile axis ends at 99.99 %
ROWS_MOST: Final = 120  # of a table over time; beyond it every so many seconds are one row
PARTS_MOST: Final = 7  # processes told apart in the stack; the rest are one
STYLE: Final = (
    plots.PALETTE
    + """*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1240px;margin:0 auto;padding:20px 16px 48px}h1{font-size:1.5rem;margin:0 0 4px}h2{font-size:1.25rem;margin:36px 0 4px}
h3{font-size:1rem;margin:0 0 6px}h1,h2,h3{overflow-wrap:anywhere}p{margin:4px 0 8px;max-width:80ch;overflow-wrap:anywhere}
a{color:var(--c1)}.dim{color:var(--dim)}
.plots{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(min(100%,360px),1fr));align-items:start;margin:12px 0}
figure{margin:0;padding:12px;background:var(--card);border:1px solid var(--line);border-radius:8px;min-width:0}
figure>svg{width:100%;height:auto;display:block}
.key{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:.85rem;margin-bottom:6px}.key span{display:inline-flex;align-items:center;gap:6px}
.key svg{width:22px;height:12px;flex:none}
.cards{display:grid;gap:10px;grid-template-columns:repeat(auto-fill,minmax(145px,1fr));margin:14px 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:8px 12px;min-width:0}
.card b{display:block;font-size:1.3rem;line-height:1.25;overflow-wrap:anywhere}.card small{color:var(--dim);display:block}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:4px 8px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child{min-width:8.5em}th:first-child,td:first-child,.words td,.words th{text-align:left;white-space:normal;overflow-wrap:anywhere}
thead th{font-weight:600;color:var(--dim);vertical-align:bottom}tbody th{font-weight:400}caption{text-align:left;color:var(--dim);padding:2px 8px}
.few{width:auto;min-width:min(100%,480px)}details{margin-top:8px}summary{cursor:pointer;color:var(--dim);font-size:.9rem}
.good{color:var(--good);font-weight:600}.bad{color:var(--bad);font-weight:600}
.told{border:1px solid var(--line);border-left:6px solid var(--good);border-radius:8px;background:var(--card);padding:10px 14px;margin:14px 0}
.told.wrong{border-left-color:var(--bad)}.told ul{margin:4px 0;padding-left:20px}.told li{overflow-wrap:anywhere}
@media (max-width:480px){table{font-size:.82rem}th,td{padding:4px 5px}}@media print{figure,.card{break-inside:avoid}}
"""
    + plots.MARKS
).replace("\n", "")


def render(results: Sequence[Result]) -> str:
    """One document about one or several runs. Raises ValueError where there is none."""
    if not results:
        raise ValueError("a report needs a result")
    names = [name_of(results, i) for i in range(len(results))]
    title = "Load: " + (results[0].title if len(results) == 1 else f"{len(results)} runs")
    body = _side_by_side(results, names) if len(results) > 1 else ""
    body += "".join(_run(one, name, i, alone=len(results) == 1) for i, (one, name) in enumerate(zip(results, names, strict=True)))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{STYLE}</style></head><body><main><h1>{escape(title)}</h1>'
        '<p class="dim">Open loop: every latency counts from the moment at which its work was meant to begin, whether the product had answered the '
        f"last one or not.</p>{body}</main></body></html>\n"
    )


def name_of(results: Sequence[Result], i: int) -> str:
    """Short, and different for each: a letter and the scenario."""
    return results[i].scenario if len(results) == 1 else f"{chr(65 + i % 26)}{i // 26 or ''} {results[i].scenario}"


# -- what is said first ---------------------------------------------------------------------------------------------------------------------


def complaints(one: Result) -> list[str]:
    """What speaks against a run, worst first; empty: nothing does."""
    found = [f"This run is no evidence: {one.refused}"] if one.refused else []
    found += [f"Does not hold: {sentence}" for sentence in one.broken]
    found += [f"Missed: {t.text} ({_figure_text(t.figure)})" for t in one.thresholds if not t.held]
    return found + [f"Fault: {name}, {count:,} times" for name, count in sorted(one.faults.items()) if count]


def _told(one: Result) -> str:
    found = complaints(one)
    if not found:
        held = f" Thresholds held: {len(one.thresholds)} of {len(one.thresholds)}." if one.thresholds else ""
        return f'<div class="told" role="status">No fault, nothing broken.{held}</div>'
    lines = "".join(f"<li>{escape(sentence)}</li>" for sentence in found)
    return f'<div class="told wrong" role="alert"><b class="bad">{"No evidence" if one.refused else "Look here first"}</b><ul>{lines}</ul></div>'


def _cards(one: Result) -> str:
    cards = [("offered", f"{number(one.rate)}/s", f"{one.offered:,} {one.unit} in {one.seconds:.0f} s")]
    cards += [
        (name, seconds_text(m.p99_s), f"p99; p50 {seconds_text(m.p50_s)}, max {seconds_text(m.max_s)}") for name, m in one.measures.items()
    ]
    cards += [(name, f"{count / one.seconds if one.seconds else 0:,.0f}/s", f"{count:,} in all") for name, count in one.counts.items()]
    if one.server.cpu_s and one.offered:
        cpu = sum(one.server.cpu_s.values())
        cards += [("CPU of the product", f"{cpu / one.offered * 1e6:,.1f} us", f"a unit; {cpu / one.seconds:.2f} cores")]
    faults = sum(one.faults.values())
    cards += [("faults", f"{faults:,}", "of any kind")]
    return (
        '<div class="cards">'
        + "".join(f'<div class="card"><small>{escape(a)}</small><b>{escape(b)}</b><small>{escape(c)}</small></div>' for a, b, c in cards)
        + "</div>"
    )


# -- several runs -------------------------------------------------------------------------------------------------------------------------


def _side_by_side(results: Sequence[Result], names: Sequence[str]) -> str:
    rows: list[list[str]] = []

    def row(name: str, of: Callable[[Result], str | None]) -> None:
        cells = [of(one) for one in results]
        if any(cell is not None for cell in cells):
            rows.append([name, *(cell or "-" for cell in cells)])

    row("verdict", lambda one: _verdict(one))
    row("asked for", lambda one: f"{number(one.rate)} {one.unit}/s")
    for what in _names(one.counts for one in results):
        row(f"{what} /s", lambda one, what=what: f"{one.counts[what] / one.seconds:,.1f}" if what in one.counts and one.seconds else None)  # type: ignore[misc]
    for measure in _names(one.measures for one in results):
        for part in ("p50_s", "p99_s", "p999_s", "max_s"):
            label = f"{measure} {part.removesuffix('_s').replace('p999', 'p99.9')}"
            row(label, lambda one, m=measure, p=part: seconds_text(getattr(one.measures[m], p)) if m in one.measures else None)  # type: ignore[misc]
    for process in _names(one.server.cpu_s for one in results):
        row(f"CPU us a unit, {process}", lambda one, p=process: _each(one, one.server.cpu_s.get(p)))  # type: ignore[misc]
    row("faults", lambda one: f"{sum(one.faults.values()):,}")
    row("generators' own lag, p99", lambda one: seconds_text(one.generators.lag_p99_s))
    row("begun", lambda one: one.started_at)
    head = ["what", *(f'<a href="#r{i}">{escape(name)}</a>' for i, name in enumerate(names))]
    drawn = "".join(
        _latencies(f"{measure} by percentile", [(name, one.measures[measure]) for one, name in zip(results, names, strict=True) if measure in one.measures])
        for measure in _names(one.measures for one in results)
        if sum(measure in one.measures for one in results) > 1
    )  # fmt: skip
    return f'<h2>Side by side</h2>{_table(head, rows, raw_head=True)}<div class="plots">{drawn}</div>'


def _verdict(one: Result) -> str:
    if one.refused:
        return "no evidence"
    if one.broken:
        return "broken"
    if any(not t.held for t in one.thresholds):
        return "missed"
    return "held" if one.thresholds else "no threshold"


def _names(mappings: object) -> list[str]:
    found: dict[str, None] = {}
    for one in mappings:  # type: ignore[attr-defined]
        found.update(dict.fromkeys(one))
    return list(found)


# -- one run ------------------------------------------------------------------------------------------------------------------------------


def _run(one: Result, name: str, i: int, *, alone: bool) -> str:
    heading = "" if alone else f'<h2 id="r{i}">{escape(f"{name}: {one.title}")}</h2>'
    options = ", ".join(f"{key} {value}" for key, value in one.options.items()) or "as they are"
    product = ", ".join(f"{key} {value}" for key, value in one.product.items())
    facts = (
        f'<p class="dim">{escape(one.scenario)}, begun {escape(one.started_at)}; options: {escape(options)}; seed {one.seed}. '
        f"Product: {escape(product or 'unknown')}.</p>"
    )
    drawn = _latencies("Latency by percentile", list(one.measures.items())) if one.measures else ""
    drawn += _over_time(one) if one.series else ""
    return "".join(
        (
            heading, facts, _told(one), _cards(one), _thresholds(one), f'<div class="plots">{drawn}{_peers(one.peers)}</div>',
            _more("Latencies, counts and faults as tables", _latency_table(one) + _count_table(one)), _behind(one),
        )
    )  # fmt: skip


def _thresholds(one: Result) -> str:
    if not one.thresholds:
        return ""
    rows = [[escape(t.text), _figure_text(t.figure), _word(t.held)] for t in one.thresholds]
    return _table(["threshold", "measured", "verdict"], rows, raw=True, kind="few")


def _word(held: bool) -> str:
    return '<span class="good">held</span>' if held else '<span class="bad">missed</span>'


def _figure_text(figure: float | None) -> str:
    return "not measured" if figure is None else f"{figure:,.4g}"


def _latencies(title: str, measures: Sequence[tuple[str, Latency]]) -> str:
    """The curve of each measure on an axis on which the tail has room."""
    curves = [Line(name, _curve(measure)) for name, measure in measures]
    values = [value for curve in curves for _, value in curve.points if value is not None]
    drawn = plots.chart(title, curves, plots.percentile_axis(nines=NINES), plots.log(values, said=seconds_text))
    columns = [_at(measure, SHARES) for _, measure in measures]
    rows = [
        [f"{100 * share:g} %", *("-" if cell is None else seconds_text(cell) for cell in cells)]
        for share, *cells in zip(SHARES, *columns, strict=True)
    ]
    return _figure(title, [name for name, _ in measures], drawn, ["percentile", *(name for name, _ in measures)], rows)


def _curve(measure: Latency) -> list[tuple[float, float | None]]:
    """Points on `percentile_axis`; a share that fewer values than one stand for is left out."""
    shares: Sequence[float] = [1 - 10 ** (-k / 20) for k in range(20 * NINES + 1)] if measure.hdr else SHARES
    most = 1 - 1 / max(1, measure.count)
    shares = [share for share in shares if share <= most or share == 0.0]
    return [(1 / (1 - share), value) for share, value in zip(shares, _at(measure, shares), strict=True) if value is not None]


def _at(measure: Latency, shares: Sequence[float]) -> Sequence[float | None]:
    """Seconds; None where the histogram was not kept and the share has no field."""
    if measure.hdr:
        return decode(measure.hdr).percentiles(shares)
    kept = {0.5: measure.p50_s, 0.9: measure.p90_s, 0.95: measure.p95_s, 0.99: measure.p99_s, 0.999: measure.p999_s}
    return [kept.get(share) for share in shares]


def _over_time(one: Result) -> str:
    series = one.series
    x = plots.linear([second.at_s for second in series], "seconds from the start", most=6, tight=True)
    shades = _phases(series)
    head = ["second", "phase"]

    def plot(title: str, lines: list[Line], *, worst: bool, log: bool, said: Callable[[float], str]) -> str:
        lines = [Line(each.name, plots.thinned(each.points, worst=worst)) for each in lines]
        values = [value for each in lines for _, value in each.points if value is not None]
        y = plots.log(values, said=said) if log else plots.linear(values, said=said)
        drawn = plots.chart(title, lines, x, y, shades=shades)
        return _figure(title, [each.name for each in lines], drawn, *_timetable(head, series, one_of, said))

    counted = _names(second.counts for second in series)
    rates: dict[str, Callable[[Second], float | None]] = {"offered": lambda second: second.offered}
    rates |= {what: (lambda second, what=what: float(second.counts.get(what, 0))) for what in counted}  # type: ignore[misc]
    one_of: Mapping[str, Callable[[Second], float | None]] = rates
    found = plot(f"{one.unit} a second", _lines(series, rates), worst=False, log=False, said=number)
    one_of = {f"{what} p99": (lambda second, what=what: second.p99_s.get(what)) for what in _names(second.p99_s for second in series)}  # type: ignore[misc]
    if one_of:
        found += plot("p99 of each second", _lines(series, one_of), worst=True, log=True, said=seconds_text)
    one_of = {"generators, own lag": lambda second: second.lag_s}
    if any(second.loop_lag_s is not None for second in series):
        one_of["product's loop"] = lambda second: second.loop_lag_s
    found += plot("Lag", _lines(series, one_of), worst=True, log=False, said=seconds_text)
    return found + _processors(one, x, shades) + _memory(one, plot_memory=lambda lines, of: _memory_plot(one, lines, of, x, shades))


def _lines(series: Sequence[Second], of: Mapping[str, Callable[[Second], float | None]]) -> list[Line]:
    return [Line(name, [(second.at_s, value(second)) for second in series]) for name, value in of.items()]


def _timetable(
    head: Sequence[str], series: Sequence[Second], of: Mapping[str, Callable[[Second], float | None]], said: Callable[[float], str]
) -> tuple[list[str], list[list[str]]]:
    every = -(-len(series) // ROWS_MOST)
    rows = []
    for second in series[::every]:
        cells = [value(second) for value in of.values()]
        rows.append([f"{second.at_s:.0f}", second.phase, *("-" if cell is None else said(cell) for cell in cells)])
    return [*head, *of], rows


def _phases(series: Sequence[Second]) -> list[tuple[float, float, str]]:
    """All but the hold, which is what was measured."""
    found: list[tuple[float, float, str]] = []
    for second, after in zip(series, [*series[1:], None], strict=True):
        if second.phase == "hold":
            continue
        end = second.at_s if after is None else after.at_s
        if found and found[-1][2] == second.phase and found[-1][1] == second.at_s:
            found[-1] = (found[-1][0], end, second.phase)
        else:
            found.append((second.at_s, end, second.phase))
    return found


def _processors(one: Result, x: plots.Axis, shades: list[tuple[float, float, str]]) -> str:
    series = one.series
    used = {name: sum(second.cpu.get(name, 0.0) for second in series) for name in _names(second.cpu for second in series)}
    if not used:
        return ""
    order = sorted(used, key=lambda name: -used[name])
    shown, rest = order[:PARTS_MOST], order[PARTS_MOST:]
    of: dict[str, Callable[[Second], float | None]] = {
        name: (lambda second, name=name: second.cpu.get(name, 0.0))  # type: ignore[misc]
        for name in shown
    }
    if rest:
        of["others"] = lambda second: sum(second.cpu.get(name, 0.0) for name in rest)
    lines = [Line(each.name, plots.thinned(each.points, worst=False)) for each in _lines(series, of)]
    tops = [sum(each.points[i][1] or 0.0 for each in lines) for i in range(len(lines[0].points))]
    drawn = plots.stacked("CPU by process", lines, x, plots.linear(tops, said=number), shades=shades)
    return _figure(
        "CPU by process, cores",
        [each.name for each in lines],
        drawn,
        *_timetable(["second", "phase"], series, of, lambda v: f"{v:.2f}"),
        areas=True,
    )


def _memory(one: Result, *, plot_memory: Callable[[list[Line], Mapping[str, Callable[[Second], float | None]]], str]) -> str:
    names = _names(second.memory_kb for second in one.series)
    of: dict[str, Callable[[Second], float | None]] = {
        name: (lambda second, name=name: second.memory_kb[name] / 1024 if name in second.memory_kb else None)  # type: ignore[misc]
        for name in names
    }
    return plot_memory(_lines(one.series, of), of) if of else ""


def _memory_plot(
    one: Result,
    lines: list[Line],
    of: Mapping[str, Callable[[Second], float | None]],
    x: plots.Axis,
    shades: list[tuple[float, float, str]],
) -> str:
    lines = [Line(each.name, plots.thinned(each.points, worst=True)) for each in lines]
    values = [value for each in lines for _, value in each.points if value is not None]
    drawn = plots.chart("Memory by process", lines, x, plots.linear(values, said=number), shades=shades)
    table = _timetable(["second", "phase"], one.series, of, lambda v: f"{v:,.1f}")
    return _figure("Memory by process, MB", [each.name for each in lines], drawn, *table)


def _peers(peers: Sequence[Peer]) -> str:
    if not peers:
        return ""
    rows = [(f"{peer.name}: {peer.what}", peer.ratio, f"ours {peer.ours:.3g}, theirs {peer.figure:.3g} {peer.unit}") for peer in peers]
    table = [
        [peer.name, peer.version, peer.what, f"{peer.ours:.3g}", f"{peer.figure:.3g}", peer.unit, f"{peer.ratio:.2f}"] for peer in peers
    ]
    head = ["peer", "version", "what", "ours", "theirs", "unit", "ratio"]
    return _figure(
        "Ours in theirs, the same load in the same run (left of 1: we need less)", [], plots.ratios("ratios to peers", rows), head, table
    )


def _latency_table(one: Result) -> str:
    parts = ("mean_s", "p50_s", "p90_s", "p95_s", "p99_s", "p999_s", "max_s")
    rows = [[name, f"{m.count:,}", *(seconds_text(getattr(m, part)) for part in parts), m.meaning] for name, m in one.measures.items()]
    return _table(["measure", "count", "mean", "p50", "p90", "p95", "p99", "p99.9", "max", "from the intended moment"], rows)


def _count_table(one: Result) -> str:
    rows = [[name, f"{n:,}", f"{n / one.seconds if one.seconds else 0:,.1f}"] for name, n in (one.counts | one.faults).items()]
    return _table(["count or fault", "in all", "a second"], rows)


def _behind(one: Result) -> str:
    """What the servers and the generators spent, and on what machine."""
    server, generators = one.server, one.generators
    rows = [[name, f"{cpu:.2f}", f"{cpu / one.seconds if one.seconds else 0:.2f}", _each(one, cpu) or "-",
             *(f"{kb / 1024:,.1f}" for kb in server.memory_kb.get(name, [])[:2])] for name, cpu in server.cpu_s.items()]  # fmt: skip
    rows = [[*row, *["-"] * (6 - len(row))] for row in rows]
    inside = _table(["process", "CPU s", "cores", "us a unit", "MB first", "MB last"], rows) if rows else ""
    grown = [("product", server.metrics), ("Redis", server.redis), ("PostgreSQL", server.postgres)]
    facts = [[where, name, f"{value:,.6g}"] for where, those in grown for name, value in sorted(those.items()) if value]
    if server.loop_lag_p99_s is not None:
        facts.insert(0, ["product", "loop lag, p99", seconds_text(server.loop_lag_p99_s)])
    inside += _table(["where", "grew by", ""], facts) if facts else ""
    lag = f"{generators.processes} processes, {generators.cpu_s:.1f} CPU s, own lag p99 {seconds_text(generators.lag_p99_s)}"
    machine = [["generators", f"{lag}{'; ' + generators.why if generators.why else ''}"], *([k, v] for k, v in one.machine.items())]
    return _more("Servers, generators and machine", inside + _table(["", ""], machine, kind="words"))


def _each(one: Result, cpu_s: float | None) -> str | None:
    """Microseconds a unit of the offered load."""
    return None if cpu_s is None or not one.offered else f"{cpu_s / one.offered * 1e6:,.1f}"


# -- pieces -------------------------------------------------------------------------------------------------------------------------------


def _figure(
    title: str, names: Sequence[str], drawn: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, areas: bool = False
) -> str:
    shown = plots.key(names, areas=areas) if names else ""
    return f"<figure><h3>{escape(title)}</h3>{shown}{drawn}{_more('The same as a table', _table(head, rows))}</figure>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, raw: bool = False, raw_head: bool = False, kind: str = "") -> str:
    """`raw`, `raw_head`: cells are markup already; `kind`: a class of `STYLE`."""
    top = "".join(f'<th scope="col">{cell if raw_head else escape(cell)}</th>' for cell in head)
    lines = []
    for first, *others in rows:
        cells = "".join(f"<td>{cell if raw else escape(cell)}</td>" for cell in others)
        lines.append(f'<tr><th scope="row">{first if raw else escape(first)}</th>{cells}</tr>')
    of = f' class="{kind}"' if kind else ""
    top = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    return f'<div class="wide" tabindex="0"><table{of}>{top}<tbody>{"".join(lines)}</tbody></table></div>'


def _more(title: str, inside: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"
