"""What a run says: a table for each group, and ``build/bench/report.json`` with one case for each bar."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from bench.figures import FIGURES, ratio_of
from bench.match import Line
from bench.rounds import Attempt
from bench.sides import ROOT
from bench.verdicts import FLOOR, OURS, Verdict

RESULTS = ROOT / "build" / "bench"
REPORT = RESULTS / "report.json"
QUICK = RESULTS / "quick.json"
NAME_WIDTH, CELL_WIDTH = 24, 30


def machine() -> dict[str, Any]:
    """Return what a reader needs to place the figures; the load is that of now."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_1min": os.getloadavg()[0],
    }


def heading(found: dict[str, Any]) -> str:
    """Return one line about the machine."""
    load = found["load_1min"]
    busy = "" if load < 0.3 else "  (not quiet: figures of a busy machine show little)"
    return (
        f"{found['date']}, {found['cpu']}, {found['cpus']} CPUs, {found['memory_gib']} GiB, kernel {found['kernel']}, "
        f"Python {found['python']}, load at start {load:.2f}{busy}"
    )


def save(start: dict[str, Any], verdicts: Sequence[Verdict], path: Path = REPORT) -> Path:
    """Write every case; returns where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": start, "cases": [verdict.fields() for verdict in verdicts]}
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(report, indent=1))
    draft.rename(path)
    return path


def save_group(group: str, results: dict[str, Any]) -> Path:
    """Write what a group without cases found, beside earlier runs of it; returns where."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{group}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps({"machine": machine(), **results}, indent=2))
    return path


# ------------------------------------------------------------------ tables
def table(line: Line, stream: TextIO) -> None:
    """Print one row of a group: ours, every peer, the floor, ours over each, and what became of the bars."""
    shown = line.row.figures
    titles = "".join(
        f"{FIGURES[figure].title + ' ' + FIGURES[figure].unit:>{CELL_WIDTH}}" for figure in shown
    )
    stream.write(f"\n{line.name}  [{line.first.rounds} rounds; median, and ours / it]\n")
    stream.write(f"{'':{NAME_WIDTH}}{titles}\n")
    labels = [OURS, *(peer.name for peer in line.row.peers), FLOOR]
    for label in labels:
        if label in line.first.values:
            cells = "".join(f"{cell(line.first, label, each):>{CELL_WIDTH}}" for each in shown)
            stream.write(f"{title(line, label):{NAME_WIDTH}}{cells}\n")
    for label in labels:
        if label in line.first.failed:
            stream.write(f"{title(line, label):{NAME_WIDTH}}missing: {brief(line, label)}\n")
    for verdict in line.verdicts:
        stream.write(f"  {sentence(verdict)}\n")
    stream.flush()


def title(line: Line, label: str) -> str:
    """Return how a line of the table is called."""
    if label == OURS:
        return line.row.ours.name
    if label == FLOOR:
        name: str = getattr(line.row.floor, "name", "given")
        return name if name.startswith(FLOOR) else f"{FLOOR} ({name})"
    return label


def brief(line: Line, label: str) -> str:
    """Return the last line of why a contender has no figures: of a traceback, the one that names the error."""
    lines = [each for each in line.first.failed[label].splitlines() if each.strip()]
    first = lines[0].strip()
    return first if len(lines) == 1 else f"{first[:60]} … {lines[-1].strip()[:100]}"


def cell(attempt: Attempt, label: str, figure: str) -> str:
    """Return one median, and the ratio of ours to it."""
    series, ours = attempt.series(label, figure), attempt.series(OURS, figure)
    if series is None:
        return "–"
    median = number(statistics.median(series))
    if label == OURS or ours is None or not all(series):
        return f"{median}        "
    return f"{median} {f'×{ratio_of(ours, series):.2f}':>7}"


def number(value: float) -> str:
    """Return three or four digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def sentence(verdict: Verdict) -> str:
    """Say what a bar asks, what was found, and whether it holds."""
    figure = FIGURES[verdict.bar.figure]
    sign = "≤" if figure.direction == "lower" else "≥"
    ratios = [verdict.ratio(attempt) for attempt in verdict.attempts]
    found = ", ".join("–" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
    lacking = sorted(set(verdict.bar.required) & set(verdict.missing))
    why = f"; missing: {', '.join(lacking)}" if lacking else ""
    best = verdict.against(verdict.deciding) if verdict.bar.against == "peer:best" else None
    named = f"{verdict.bar.against}{f' ({best})' if best else ''}"
    kept = "holds" if verdict.is_kept else "NOT HELD"
    return f"{kept}: {figure.title} {sign} {verdict.bar.number:g} × {named}: {found}{why}"
