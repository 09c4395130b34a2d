"""The accuracy report as one HTML file: no script, no outside request, light and dark by the reader's own setting, readable on a phone.

Plots stand beside tables of the same numbers, so nothing is told by colour or shape alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from engine.tracking.accuracy import WINDOWS
from engine.tracking.eta_report import PASS, SHORT, Bar, Comparison, EtaReport, Interval, Part, span_text
from engine.tracking.plots import Series, bars, lines, number_text, ranks
from engine.tracking.score import DELAY, SCHEDULE, SPEED, TIMEPOINT, Result

ORDER: Final = (TIMEPOINT, DELAY, SCHEDULE, SPEED)  # so a predictor has one colour in all plots
ROUTES_SHOWN: Final = 20  # in the plot; the table has them all
STYLE: Final = """
:root{color-scheme:light dark;--bg:#fff;--card:#f6f7f8;--ink:#1b1f23;--dim:#59636e;--line:#d7dce1;--good:#0a6b47;--bad:#b3261e;
--s0:#0b6e4f;--s1:#8a6500;--s2:#6f4a9b;--s3:#b0413e;--band:#0b6e4f22}
@media (prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1d2126;--ink:#e8ebee;--dim:#a2abb5;--line:#363d45;--good:#62d2a2;--bad:#ff8f87;
--s0:#4cc79a;--s1:#e0b341;--s2:#b799e6;--s3:#f08c86;--band:#4cc79a26}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:0 auto;padding:20px 16px 48px}a{color:var(--s0)}h1{font-size:1.5rem;margin:0 0 4px}h2{font-size:1.2rem;margin:32px 0 8px}
h3{font-size:1rem;margin:0 0 4px}p{margin:4px 0 8px;max-width:75ch;overflow-wrap:anywhere}
.words th,.words td{text-align:left}.dim{color:var(--dim)}code{overflow-wrap:anywhere}
.grid2{display:grid;gap:16px;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr))}
figure{margin:0;padding:12px;background:var(--card);border:1px solid var(--line);border-radius:8px;min-width:0}figure svg{width:100%;height:auto;display:block}
.key{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:.85rem;margin-bottom:4px}.key span{white-space:nowrap}
.key i{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:5px;vertical-align:-1px}
.cards{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));margin:16px 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px}.card b{display:block;font-size:1.4rem;line-height:1.2}
.card small{color:var(--dim);display:block}.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:5px 8px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}th:first-child,td:first-child{text-align:left;white-space:normal}
th{font-weight:600;color:var(--dim);vertical-align:bottom}details{margin-top:8px}summary{cursor:pointer;color:var(--dim);font-size:.9rem}
.pass{color:var(--good);font-weight:600}.short{color:var(--bad);font-weight:600}
svg text{font:12px system-ui,sans-serif;fill:var(--ink)}svg .tick{fill:var(--dim);font-size:11px}.grid{stroke:var(--line)}.axis{stroke:var(--dim)}
.band{fill:var(--band)}.line{fill:none;stroke-width:2.2}.whisker{stroke:var(--ink);stroke-width:1.5;opacity:.7}.mark{stroke:var(--s1);stroke-width:3}
.limit{stroke:var(--dim);stroke-dasharray:4 4;fill:none}
.line.s0{stroke:var(--s0)}.line.s1{stroke:var(--s1)}.line.s2{stroke:var(--s2)}.line.s3{stroke:var(--s3)}
.bar.s0,.dot.s0{fill:var(--s0)}.bar.s1,.dot.s1{fill:var(--s1)}.bar.s2,.dot.s2{fill:var(--s2)}.bar.s3,.dot.s3{fill:var(--s3)}
.whisker.s0{stroke:var(--s0)}.whisker.s1{stroke:var(--s1)}
@media (max-width:480px){table{font-size:.82rem}th,td{padding:4px 5px}}@media print{figure,.card{break-inside:avoid}}
""".replace("\n", "")


def page(reports: Sequence[EtaReport]) -> str:
    """One document about one or several replays."""
    title = "How good the arrivals were"
    body = "".join(_replay(report, number) for number, report in enumerate(reports))
    several = _several(reports) if len(reports) > 1 else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<title>{title}</title><link rel="icon" href="data:,"><style>{STYLE}</style></head><body><main><h1>{title}</h1>'
        '<p class="dim">Error = actual arrival minus foretold arrival: positive, the bus came later than we said. A sample is one stop ahead '
        "every 30 s. Ranges in brackets hold the figure in 95 % of 2,000 draws of whole rides.</p>"
        f"{several}{body}</main></body></html>\n"
    )


def _several(reports: Sequence[EtaReport]) -> str:
    rows = [
        [
            f'<a href="#r{number}">{escape(_name(one))}</a>',
            f"{one.report.samples:,}",
            _ranged(one.mae.get(one.ours.name)),
            _text(one.mae[DELAY].value if DELAY in one.mae else None),
            f"{one.ours.score:.1f}",
            _share(one.ours.missing_share),
            _verdicts(one.bars),
        ]
        for number, one in enumerate(reports)
    ]
    head = ["replay", "samples", "MAE s", DELAY + " MAE s", "score", "without a value", "bars"]
    return "<h2>All replays</h2>" + _table(head, rows, raw=True)


def _replay(one: EtaReport, number: int) -> str:
    ours = one.ours
    heading = f'<h2 id="r{number}">{escape(_name(one))}</h2>'
    truth = escape(one.report.truth)
    facts = (
        f'<p class="dim">{one.report.rides:,} rides, {one.report.crossings:,} stops passed (truth: {truth}), {one.report.samples:,} samples to '
        f"15 min ahead. Program version {escape(str(one.manifest.get('version', '?')))}, feed {escape(str(one.manifest['feed'].get('feedVersion', '?')))}.</p>"
    )
    cards = "".join(
        f'<div class="card"><small>{label}</small><b>{value}</b><small>{more}</small></div>'
        for label, value, more in (
            ("mean error without sign", f"{_text(ours.mae_s)} s", _range(one.mae.get(ours.name))),
            ("90 % of errors below", f"{_text(ours.p90_s)} s", f"schedule + delay {_text(_of(one, DELAY).p90_s)} s"),
            ("score of the benchmark", f"{ours.score:.1f}", f"schedule + delay {_of(one, DELAY).score:.1f}"),
            ("median error", f"{_text(ours.bias_median_s)} s", f"mean {_text(ours.bias_mean_s)} s"),
            ("came &gt; 60 s before said", _share(ours.early_share), "of samples to 15 min"),
            ("without a value", _share(ours.missing_share), "counted against us"),
        )
    )
    parts = [heading, facts, f'<div class="cards">{cards}</div>', _bar_table(one)]
    if one.comparison is not None:
        parts.append(_comparison(one.comparison))
    parts += [_horizons(one), _parts("By hour of the day", "Hour of the forecast, local time.", one.hours, plot=_hour_plot(one.hours))]
    shown = one.routes[:ROUTES_SHOWN]
    parts.append(_parts("By route, worst first", "The mark is schedule + delay on the same samples.", one.routes, plot=_route_plot(shown)))
    return "".join(parts)


def _name(one: EtaReport) -> str:
    return one.name.rstrip("/").rsplit("/", 1)[-1]


def _of(one: EtaReport, name: str) -> Result:
    return next(each for each in one.report.results if each.name == name)


def _bar_table(one: EtaReport) -> str:
    rows = [[escape(bar.what), bar.figure, escape(bar.bar), _verdict(bar.verdict)] for bar in one.bars]
    of = f" of {escape(one.day)}" if one.day else ""
    return f"<h3>Bars{of}: {_verdicts(one.bars)}</h3>" + _table(["bar", "figure", "must be", ""], rows, raw=True)


def _verdict(verdict: str | None) -> str:
    if verdict is None:
        return '<span class="dim">too few</span>'
    return f'<span class="{verdict.lower()}">{verdict}</span>'


def _verdicts(found: Sequence[Bar]) -> str:
    passed, fell = (sum(bar.verdict == word for bar in found) for word in (PASS, SHORT))
    return f'<span class="pass">{passed} pass</span>' + (f', <span class="short">{fell} SHORT</span>' if fell else "")


def _horizons(one: EtaReport) -> str:
    results, ours = sorted(one.report.results, key=lambda each: ORDER.index(each.name)), one.ours
    names = [each.name for each in results]
    summary = [
        [
            each.name,
            _ranged(one.mae.get(each.name)),
            _text(each.p90_s),
            f"{each.score:.1f}",
            "/".join(f"{share:.0f}" for share in each.in_window),
            _text(each.bias_median_s),
            _share(each.early_share),
            _share(each.missing_share),
        ]
        for each in results
    ]
    rivals = [
        [span_text(b), f"{b.samples:,}", *(_text(r.by_actual[i].mae_s) for r in results), *(_text(r.by_actual[i].p90_s) for r in results)]
        for i, b in enumerate(ours.by_actual)
    ]
    foretold = [
        [
            span_text(b),
            f"{b.samples:,}",
            *map(_text, (b.mae_s, b.p90_s, b.bias_median_s, b.bias_mean_s)),
            _share(b.coverage),
            _share(b.coverage_late),
        ]
        for b in ours.by_predicted
    ]
    head = [
        "to 15 min ahead",
        "MAE s",
        "p90 s",
        "score",
        "in window 0-3/3-6/6-10/10-15",
        "median error s",
        "> 60 s early",
        "without a value",
    ]
    rival_head = ["to the arrival", "samples", *(f"{name}: MAE s" for name in names), *(f"{name}: p90 s" for name in names)]
    told_head = ["foretold", "samples", "MAE s", "p90 s", "median error s", "mean error s", "p10-p90 holds", "2nd half"]
    tables = _table(rival_head, rivals) + _table(told_head, foretold)
    return (
        f"<h3>Beside plain predictors, on the same samples</h3>{_table(head, summary)}"
        f'<h3 style="margin-top:16px">By minutes ahead</h3><div class="grid2">{_horizon_plots(results, ours)}</div>'
        + _more("The same as tables", tables)
    )


def _horizon_plots(results: Sequence[Result], ours: Result) -> str:
    names = [each.name for each in results]
    ahead = [_minutes(bucket.from_s, bucket.to_s) for bucket in ours.by_actual]
    windows = [_minutes(low, high) for low, high, _, _ in WINDOWS]
    actual, foretold = "minutes to the actual arrival", "minutes foretold"
    mae = _cut([Series(each.name, [bucket.mae_s for bucket in each.by_actual]) for each in results])
    p90 = _cut([Series(each.name, [bucket.p90_s for bucket in each.by_actual]) for each in results])
    shares = [Series(each.name, each.in_window) for each in results]
    bias = [
        Series("median", [bucket.bias_median_s for bucket in ours.by_predicted]),
        Series("mean", [bucket.bias_mean_s for bucket in ours.by_predicted]),
    ]
    cover = [
        Series("all", [_percent(bucket.coverage) for bucket in ours.by_predicted]),
        Series("2nd half of the time", [_percent(bucket.coverage_late) for bucket in ours.by_predicted]),
    ]
    drawn = (
        ("Mean error without sign, s", names, lines("mean absolute error by minutes ahead", ahead, mae, below=actual)),
        ("90 % of errors lie below, s", names, lines("90th percentile of the error", ahead, p90, below=actual)),
        ("Score by bucket: in the window, %", names, bars("share in the benchmark's window", windows, shares, below=actual, unit="%")),
        (
            "Bias by what was foretold",
            [each.name for each in bias],
            bars("error by minutes foretold", ahead, bias, below=foretold, limit=10),
        ),
        (
            "The p10-p90 range holds the arrival, %",
            [each.name for each in cover],
            lines("coverage of the range", ahead, cover, below=f"{foretold}; 76-84 % is wanted", unit="%", band=(76, 84)),
        ),
    )
    return "".join(_figure(*each) for each in drawn)


def _cut(series: list[Series]) -> list[Series]:
    """Without what lies far above all others: speed held for an hour would flatten the rest."""
    top = 1.5 * max((value for one in series if one.name != SPEED for value in one.values if value is not None), default=0.0)
    return [one._replace(values=[None if value is None or value > top else value for value in one.values]) for one in series]


def _parts(title: str, note: str, parts: Sequence[Part], *, plot: str) -> str:
    rivals = list(parts[0].rivals_s) if parts else []
    head = [
        "",
        "rides",
        "samples",
        "MAE s",
        "p90 s",
        "median error s",
        "> 60 s early",
        "score",
        "without a value",
        *(f"{name}: MAE s" for name in rivals),
    ]
    rows = [
        [
            p.name,
            f"{p.rides:,}",
            f"{p.samples:,}",
            _ranged(p.mae),
            _text(p.p90_s),
            _text(p.bias_s),
            _share(p.early),
            f"{p.score:.1f}",
            _share(p.missing),
            *map(_text, p.rivals_s.values()),
        ]
        for p in parts
    ]
    return f'<h3 style="margin-top:24px">{title}</h3><p class="dim">{note}</p>{plot}' + _more("The same as a table", _table(head, rows))


def _hour_plot(hours: Sequence[Part]) -> str:
    ours = Series(TIMEPOINT, *_columns([part.mae for part in hours]))
    delay = Series(DELAY, [part.rivals_s.get(DELAY) for part in hours])
    drawn = lines("mean absolute error by hour", [part.name for part in hours], [ours, delay], below="hour of the day")
    counts = [Series("samples", [float(part.samples) for part in hours])]
    counted = bars("samples by hour", [part.name for part in hours], counts, below="hour of the day", unit="")
    both = _figure("Mean error without sign, s", [TIMEPOINT, DELAY], drawn) + _figure("Samples", ["samples"], counted)
    return f'<div class="grid2">{both}</div>'


def _route_plot(routes: Sequence[Part]) -> str:
    ours = Series(TIMEPOINT, *_columns([part.mae for part in routes]))
    drawn = ranks(
        "mean absolute error by route", [part.name for part in routes], ours, Series(DELAY, [part.rivals_s.get(DELAY) for part in routes])
    )
    return f'<div class="grid2">{_figure("Mean error without sign, s", [TIMEPOINT, DELAY], drawn)}</div>'


def _columns(found: Sequence[Interval | None]) -> tuple[list[float | None], list[float | None], list[float | None]]:
    kept = [one or Interval(0.0, None, None, 0) for one in found]
    values = [None if one is None else one.value for one in found]
    return values, [one.low for one in kept], [one.high for one in kept]


def _comparison(found: Comparison) -> str:
    better = found.difference
    word = "no difference that the rides could show"
    if better.low is not None and better.high is not None and (better.high < 0 or better.low > 0):
        word = "better than the other" if better.value < 0 else "worse than the other"
    labels = [_minutes(gain.from_s, gain.to_s) for gain in found.by_actual]
    series = Series("difference", *_columns([gain.difference for gain in found.by_actual]))
    drawn = lines("difference of the mean absolute error", labels, [series], below="minutes to the actual arrival")
    rows = [[span_text(g), f"{g.samples:,}", _text(g.here_s), _text(g.there_s), _ranged(g.difference)] for g in found.by_actual]
    routes = [[name, f"{n:,}", _text(here), _text(there), f"{here - there:+.1f}"] for name, n, here, there in found.routes]
    return (
        f"<h3 style=\"margin-top:24px\">Against <code>{escape(found.name)}</code></h3>"
        f"<p>On {found.common:,} samples that have a value in both, the mean error is <b>{better.value:+.1f} s</b> {_range(better)}: {word}. "
        f"Score {found.score:.1f} against {found.score_there:.1f}. {found.only_here:,} samples have a value here alone, {found.only_there:,} there alone.</p>"
        f'<div class="grid2">{_figure("Difference of the mean error, s (below zero: better)", [], drawn)}'
        f'<div>{_table(["to the arrival", "samples", "here s", "there s", "difference s"], rows)}</div></div>'
        + _more("By route, most lost first", _table(["route", "samples", "here s", "there s", "difference s"], routes))
    )  # fmt: skip


# -- pieces -----------------------------------------------------------------------------------------------------------------------------


def _figure(title: str, names: Sequence[str], drawn: str) -> str:
    key = "".join(f'<span><i style="background:var(--s{i})"></i>{escape(name)}</span>' for i, name in enumerate(names))
    return f'<figure><h3>{escape(title)}</h3><div class="key">{key}</div>{drawn}</figure>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, raw: bool = False) -> str:
    """`raw`: cells are markup already."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell if raw else escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _more(title: str, inside: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{inside}</details>"


def _minutes(low: float, high: float) -> str:
    return f"{low / 60:.0f}-{high / 60:.0f}"


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _ranged(found: Interval | None) -> str:
    return "-" if found is None else f"{number_text(found.value)} {_range(found)}".strip()


def _range(found: Interval | None) -> str:
    return "" if found is None or found.low is None or found.high is None else f"({number_text(found.low)} to {number_text(found.high)})"
