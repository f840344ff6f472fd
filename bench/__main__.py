"""``python -m bench [GROUP]``: run groups of measurements; the exit status is whether every bar held."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from dataclasses import replace
from typing import Any

from bench import iperf, isolation, plot, report
from bench.cases import GROUPS
from bench.match import Line, play
from bench.paths.play import play as play_paths
from bench.rounds import Amount
from bench.rows import Row
from bench.verdicts import Verdict

DEFAULT = "latency rate bulk tcp growth"
ISOLATION = "isolation"
QUICK_S, QUICK_LEAST = 0.05, 200


def main(arguments: list[str]) -> int:
    """Run the groups that are named, or the default ones."""
    given = parse(arguments)
    words = " ".join(given.groups).split() or DEFAULT.split()
    names = [*GROUPS, ISOLATION] if words == ["all"] else words
    unknown = [name for name in names if name not in (*GROUPS, ISOLATION)]
    if unknown:
        known = " ".join((*GROUPS, ISOLATION))
        sys.stderr.write(f"no group {unknown[0]}; there are {known}, and all\n")
        return 2
    signal.signal(signal.SIGTERM, leave)
    status = 0
    if [name for name in names if name != ISOLATION]:
        status |= measure(chosen(names, given.row, given.quick), given.quick)
    if ISOLATION in names:
        status |= isolation.run()
    return status


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("groups", nargs="*", help=f"of {' '.join((*GROUPS, ISOLATION))}, or all")
    parser.add_argument("--row", default="", help="only rows whose name has this in it")
    parser.add_argument(
        "--quick", action="store_true", help="one short round: shows that it runs, and no more"
    )
    return parser.parse_args(arguments)


def chosen(names: list[str], part: str, is_quick: bool) -> dict[str, list[Row]]:
    """Return the rows of the groups."""
    found = {
        name: [row for row in GROUPS[name] if part in row.name]
        for name in names
        if name != ISOLATION
    }
    if is_quick:
        return {name: [quick(row) for row in rows] for name, rows in found.items()}
    return found


def quick(row: Row) -> Row:
    """Return a row cut short."""
    amount = row.amount and Amount(QUICK_S, min(row.amount.least, QUICK_LEAST), row.amount.most)
    return replace(row, rounds=1, amount=amount)


def measure(groups: dict[str, list[Row]], is_quick: bool) -> int:
    """Run groups of rows; 1 when a bar does not hold."""
    start = report.machine()
    print(report.heading(start), flush=True)
    verdicts: list[Verdict] = []
    first = time.monotonic()
    for name, rows in groups.items():
        began = time.monotonic()
        print(f"\n== {name}: {len(rows)} rows ==", flush=True)
        lines = play_all(rows, again=not is_quick)
        if name == "tcp":
            print(f"\n{iperf.sentence()}")
        verdicts += [verdict for line in lines for verdict in line.verdicts]
        drawn = plot.save(name, lines, report.RESULTS)
        print(f"\n{name}: {time.monotonic() - began:.0f} s; drawn in {drawn}", flush=True)
    path = report.save(start, verdicts, report.QUICK if is_quick else report.REPORT)
    print(f"\n{(time.monotonic() - first) / 60:.1f} minutes in all", flush=True)
    missed = [verdict for verdict in verdicts if not verdict.is_kept]
    print(f"\n{len(verdicts) - len(missed)} of {len(verdicts)} bars hold; saved {path}")
    for verdict in missed:
        print(f"{verdict.group}: {verdict.name}: {report.sentence(verdict)}")
    return 1 if missed else 0


def play_all(rows: list[Row], again: bool) -> list[Line]:
    """Measure rows, those that say how their network is laid in namespaces."""
    laid = [row for row in rows if "layout" in row.order]
    others = [row for row in rows if "layout" not in row.order]
    found = play(others, progress, show, again=again) if others else []
    return found + (play_paths(laid, progress, show, again=again) if laid else [])


def show(line: Line) -> None:
    """Print one line as soon as it is there."""
    progress("")
    report.table(line, sys.stdout)


def progress(text: str) -> None:
    """Keep one line of progress on a terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def leave(*_: Any) -> None:
    """End at SIGTERM through every ``finally``: no half stays behind."""
    raise SystemExit(143)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
