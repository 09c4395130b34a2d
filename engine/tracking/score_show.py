"""A score as tables in the terminal and as one SVG chart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.tracking.score import Bucket, Report, Result


def show(report: Report) -> None:
    """The report as tables on stdout."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=110)
    console.print(f"{report.rides:,} rides, {report.crossings:,} crossings ({report.truth}), {report.samples:,} samples to 15 min ahead")
    console.print("error = actual - predicted: positive, the bus came later than said", style="dim")
    first = Table("to 15 min ahead", *(_right(each.name) for each in report.results))
    for label, value in _SUMMARY:
        first.add_row(label, *(value(each) for each in report.results))
    console.print(first)
    second = Table("MAE s by time to actual arrival", *(_right(each.name) for each in report.results))
    for i, bucket in enumerate(report.results[0].by_actual):
        second.add_row(_span(bucket), *(_text(each.by_actual[i].mae_s) for each in report.results))
    console.print(second)
    third = Table("timepoint by predicted horizon", *map(_right, ("samples", "MAE s", "bias mean", "median", "p10-p90 covers", "2nd half")))
    for bucket in report.results[0].by_predicted:
        shares = (_share(bucket.coverage), _share(bucket.coverage_late))
        third.add_row(
            _span(bucket), f"{bucket.samples:,}", _text(bucket.mae_s), _text(bucket.bias_mean_s), _text(bucket.bias_median_s), *shares
        )
    console.print(third)


def _right(name: str) -> Any:
    from rich.table import Column

    return Column(name, justify="right")


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _span(bucket: Bucket) -> str:
    return f"{bucket.from_s / 60:.0f}-{bucket.to_s / 60:.0f} min"


_SUMMARY: tuple[tuple[str, Callable[[Result], str]], ...] = (
    ("score (benchmark)", lambda r: f"{r.score:.1f}"),
    ("in window 0-3/3-6/6-10/10-15", lambda r: "/".join(f"{share:.0f}" for share in r.in_window)),
    ("MAE s", lambda r: _text(r.mae_s)),
    ("p90 of |error| s", lambda r: _text(r.p90_s)),
    ("bias mean s", lambda r: _text(r.bias_mean_s)),
    ("bias median s", lambda r: _text(r.bias_median_s)),
    ("bus came > 60 s before said", lambda r: _share(r.early_share)),
    ("samples without a value", lambda r: _share(r.missing_share)),
)

_COLOURS = ("#0b6e4f", "#b8860b", "#7a5195", "#c0392b")


def chart(report: Report) -> str:
    """MAE by time to the actual arrival, one line a predictor: an SVG document."""
    width, height, left, bottom, top = 720, 400, 56, 48, 28
    highest = max((b.mae_s or 0.0) for each in report.results for b in each.by_actual) or 1.0
    step = next(s for s in (10, 20, 50, 100, 200, 500, 1000, 10_000) if highest / s <= 8 or s == 10_000)
    most = step * (int(highest / step) + 1)
    columns = len(report.results[0].by_actual)

    def x(i: int) -> float:
        return left + (i + 0.5) * (width - left - 150) / columns

    def y(value: float) -> float:
        return height - bottom - value / most * (height - bottom - top)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12" role="img">',
        "<title>Mean absolute error of predicted arrivals by minutes ahead</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for value in range(0, most + 1, step):
        parts.append(f'<path d="M{left} {y(value):.1f}H{width - 150}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end" fill="#444">{value}</text>')
    for i, bucket in enumerate(report.results[0].by_actual):
        label = f"{bucket.from_s / 60:.0f}-{bucket.to_s / 60:.0f}"
        parts.append(f'<text x="{x(i):.1f}" y="{height - bottom + 18}" text-anchor="middle" fill="#444">{label}</text>')
    parts.append(f'<text x="{left}" y="{top - 10}" fill="#444">mean absolute error, s</text>')
    parts.append(f'<text x="{(left + width - 150) / 2}" y="{height - 10}" text-anchor="middle" fill="#444">minutes to the arrival</text>')
    for place, (each, colour) in enumerate(zip(report.results, _COLOURS, strict=False)):
        points = [(x(i), y(bucket.mae_s)) for i, bucket in enumerate(each.by_actual) if bucket.mae_s is not None]
        line = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{width - 142}" y="{top + 18 * place + 4}" fill="{colour}">{each.name}</text>')
    return "\n".join([*parts, "</svg>", ""])
