"""What a result is written as: JSON (the whole of it), Markdown, text for a terminal, JUnit for a build server, HDR logs for HdrHistogram's tools."""

from __future__ import annotations

from pathlib import Path

import msgspec

from bench.harness.result import Result
from bench.harness.thresholds import cost
from bench.harness.view import seconds


def as_json(result: Result) -> bytes:
    return msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n"


def as_text(result: Result) -> str:
    """What a terminal shows at the end."""
    lines = [f"{result.scenario}: {result.offered:,} {result.unit} offered in {result.seconds:.0f} s at {result.rate:g}/s", ""]
    for name, latency in result.measures.items():
        shown = "  ".join(
            f"{stat} {seconds(value)}"
            for stat, value in (
                ("p50", latency.p50_s), ("p90", latency.p90_s), ("p99", latency.p99_s), ("p99.9", latency.p999_s), ("max", latency.max_s),
            )
        )  # fmt: skip
        lines.append(f"  {name:<14} {shown}  ({latency.count:,})")
    for name, count in result.counts.items():
        spent = cost(result, name)
        lines.append(f"  {name:<14} {count:,}  {count / result.seconds:,.1f}/s" + (f"  {spent * 1e6:,.1f} us CPU each" if spent else ""))
    lines.append("  faults         " + (", ".join(f"{name} {n:,}" for name, n in result.faults.items()) or "none"))
    if result.server.cpu_s:
        lines.append("  cores          " + "  ".join(f"{name} {cpu / result.seconds:.2f}" for name, cpu in result.server.cpu_s.items()))
    if result.server.loop_lag_p99_s is not None:
        lines.append(f"  its loop       woke at most {seconds(result.server.loop_lag_p99_s)} late (p99)")
    own = result.generators
    lines.append(f"  generators     {own.processes}, own lag p99 {seconds(own.lag_p99_s)}, {own.cpu_s:.1f} s CPU")
    lines += [f"  {'held  ' if one.held else 'MISSED'}  {one.text}  ({figure(one.figure)})" for one in result.thresholds]
    lines += [f"  BROKEN  {sentence}" for sentence in result.broken]
    if result.refused:
        lines.append(f"  REFUSED AS EVIDENCE  {result.refused}")
    return "\n".join(lines)


def figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:,.4g}"


def write(folder: Path, result: Result) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_bytes(as_json(result))
