"""What a result is written as: JSON (the whole of it), Markdown, text for a terminal, JUnit for a build server, HDR logs for HdrHistogram's tools."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, tostring

import msgspec

from bench.harness import report
from bench.harness.compare import Comparison
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
    lines += [f"  {name:<14} {value:,.4g}" for name, value in result.figures.items()]
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


def comparison_text(found: Comparison) -> str:
    lines = [
        f"{'':<24}{'before':>12}{'after':>12}{'change':>9}       p  verdict ({'a run' if found.by == 'runs' else 'a block of seconds'} is a sample)"
    ]
    for line in found.lines:
        shown = (
            (f"{line.before:,.1f}", f"{line.after:,.1f}") if line.what.startswith("rate.") else (seconds(line.before), seconds(line.after))
        )
        lines.append(f"{line.what:<24}{shown[0]:>12}{shown[1]:>12}{line.change:>+9.1%}  {line.p:6.4f}  {line.verdict}")
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:,.4g}"


def as_markdown(result: Result) -> str:
    """For a pull request or a wiki: what was asked, evidence or not, figures, thresholds, costs."""
    lines = [f"# {result.scenario}: {result.title}", ""]
    if result.refused:
        lines += [f"**Refused as evidence:** {result.refused}", ""]
    lines += [f"- **broken:** {sentence}" for sentence in result.broken] + ([""] if result.broken else [])
    options = ", ".join(f"{name} {value}" for name, value in result.options.items())
    lines += [
        f"{result.rate:g} {result.unit} a second for {result.seconds:.0f} s ({result.offered:,} offered), seed {result.seed}, {options or 'no options'}; "
        f"{result.started_at}, product {result.product.get('version', 'of unknown version')}, {_said(result.machine)}.", "",
        "| latency | p50 | p90 | p95 | p99 | p99.9 | max | count |", "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, one in result.measures.items():
        times = " | ".join(map(seconds, (one.p50_s, one.p90_s, one.p95_s, one.p99_s, one.p999_s, one.max_s)))
        lines.append(f"| {name}: {one.meaning} | {times} | {one.count:,} |")
    lines += ["", "| counted | how many | a second | CPU of the product each |", "|---|---|---|---|"]
    for name, count in result.counts.items():
        spent = cost(result, name)
        lines.append(f"| {name} | {count:,} | {count / result.seconds:,.1f} | {'' if spent is None else f'{spent * 1e6:,.1f} us'} |")
    lines += [f"| {name} | {value:,.4g} | | |" for name, value in result.figures.items()]
    faults = ", ".join(f"{name} {n:,}" for name, n in result.faults.items()) or "none"
    lines += ["", f"Faults: {faults}. Generators: {result.generators.processes}, own lag p99 {seconds(result.generators.lag_p99_s)}.", ""]
    if result.thresholds:
        lines += ["| threshold | figure | |", "|---|---|---|"]
        lines += [f"| `{one.text}` | {figure(one.figure)} | {'held' if one.held else '**missed**'} |" for one in result.thresholds] + [""]
    if result.server.cpu_s:
        lines += ["| process | cores | memory, first to last |", "|---|---|---|"]
        for name, cpu in result.server.cpu_s.items():
            memory = " to ".join(f"{kb / 1024:.0f}" for kb in result.server.memory_kb.get(name, ()))
            lines.append(f"| {name} | {cpu / result.seconds:.2f} | {memory} MB |")
        lines.append("")
    if result.peers:
        lines += ["| peer | theirs | ours | ratio |", "|---|---|---|---|"]
        lines += [
            f"| {p.name} {p.version}: {p.what} | {p.figure:.4g} {p.unit} | {p.ours:.4g} {p.unit} | {p.ratio:.2f} |" for p in result.peers
        ]
        lines.append("")
    return "\n".join(lines)


def _said(facts: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def as_junit(results: Sequence[Result]) -> bytes:
    """One suite a run; its cases: that it is evidence, that nothing is broken, and each threshold."""
    root = Element("testsuites", name="timepoint bench")
    for result in results:
        cases: list[tuple[str, str, str]] = [("evidence", "error", result.refused), ("verify", "failure", "; ".join(result.broken))]
        cases += [(one.text, "failure", "" if one.held else f"it was {figure(one.figure)}") for one in result.thresholds]
        wrong = {kind: sum(bool(text) for _, one, text in cases if one == kind) for kind in ("failure", "error")}
        suite = SubElement(
            root, "testsuite", name=result.scenario, tests=str(len(cases)), failures=str(wrong["failure"]), errors=str(wrong["error"]),
            time=f"{result.seconds:.0f}", timestamp=result.started_at,
        )  # fmt: skip
        for name, kind, text in cases:
            case = SubElement(suite, "testcase", classname=f"bench.{result.scenario}", name=name, time="0")
            if text:
                SubElement(case, kind, message=text)
        SubElement(suite, "system-out").text = as_text(result)
    written: bytes = tostring(root, encoding="utf-8", xml_declaration=True)
    return written + b"\n"


def as_hlog(result: Result, measure: str) -> str:
    """An HdrHistogram interval log of the hold: one line of the whole of it. Values are nanoseconds, the maximum is printed in ms."""
    latency = result.measures[measure]
    start_s = datetime.fromisoformat(result.started_at.replace("Z", "+00:00")).timestamp()
    start_s += next((second.at_s for second in result.series if second.phase == "hold"), 0.0)
    return (
        f"#[{result.scenario} {measure}: {latency.meaning}]\n#[Histogram log format version 1.3]\n"
        f"#[StartTime: {start_s:.3f} (seconds since epoch), {result.started_at}]\n"
        '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"\n'
        f"0.000,{result.seconds:.3f},{latency.max_s * 1000:.3f},{latency.hdr}\n"
    )


def write(folder: Path, result: Result) -> list[Path]:
    """All of them, and the HTML report. Answers what was written."""
    files = {
        "result.json": as_json(result), "result.md": as_markdown(result).encode(), "junit.xml": as_junit([result]),
        "report.html": report.render([result]).encode(),
    }  # fmt: skip
    files |= {f"{name}.hlog": as_hlog(result, name).encode() for name in result.measures}
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in files]
