"""``python -m bench.readme``: put the tables of ``build/bench/report.json`` into the README and pages of measurements.

The README gets, between its two marks, a folded table for each group, a line for each bar; a page for each group has
every peer's figure, too. What groups that the report lacks had stays.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from typing import Any

from bench.report import REPORT, number
from bench.sides import ROOT

README = ROOT / "README.md"
PAGES = ROOT / "docs" / "measurements"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
BLOCK = re.compile(r"<details><summary>(\w+): .*?</details>\n", re.DOTALL)
ORDER = ("latency", "rate", "bulk", "tcp", "growth", "paths")
HEAD = "| case | unit | fabric | best peer | floor | bar | found | |\n|---|---|---|---|---|---|---|---|\n"

Case = dict[str, Any]


def main() -> int:
    """Write both; 1 where there is no report."""
    if not REPORT.exists():
        print(f"there is no {REPORT.relative_to(ROOT)}: run `make bench` first", file=sys.stderr)
        return 1
    report = json.loads(REPORT.read_text())
    text = README.read_text()
    blocks = kept_blocks(text)
    for group, rows in groups(report["cases"]):
        page = f"{report['machine']['date'][:10]}-bench-{group}.md"
        (PAGES / page).write_text(group_page(report["machine"], group, rows))
        blocks[group] = group_block(report["machine"], group, rows, page)
    ordered = sorted(blocks, key=lambda group: ORDER.index(group) if group in ORDER else len(ORDER))
    README.write_text(between_marks(text, "\n".join(blocks[group] for group in ordered)))
    return 0


def between_marks(text: str, block: str) -> str:
    """Return the text with `block` between its marks.

    Raises
    ------
    ValueError
        The text has not both marks.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"the README lacks the marks {BEGIN} and {END}")
    before, rest = text.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    return f"{before}{BEGIN}\n\n{block}\n{END}{after}"


def place(machine: dict[str, Any]) -> str:
    """Return one line about machine and date."""
    return (
        f"{machine['date'][:16]}, {machine['cpu']}, {machine['cpus']} CPUs, {machine['memory_gib']} GiB, kernel "
        f"{machine['kernel']}, Python {machine['python']}, load at start {machine['load_1min']:.2f}"
    )


def kept_blocks(text: str) -> dict[str, str]:
    """Return the folded tables that stand between the marks, by group."""
    _, rest = text.split(BEGIN, 1) if BEGIN in text else ("", "")
    return {found[1]: found[0] for found in BLOCK.finditer(rest.split(END, 1)[0])}


def group_block(machine: dict[str, Any], group: str, rows: list[Case], page: str) -> str:
    """Return a folded table: what holds, where and when, a line for each bar."""
    holding = sum(case["holds"] for case in rows)
    told = f"{place(machine)}. [Every peer's figure](docs/measurements/{page})."
    summary = f"<summary>{group}: {holding} of {len(rows)} bars hold</summary>"
    return f"<details>{summary}\n\n{told}\n\n{table(rows)}\n</details>\n"


def group_page(machine: dict[str, Any], group: str, rows: list[Case]) -> str:
    """Return a group's table, and below it all peers."""
    head = (
        f"# The bench: {group}\n\n{place(machine)}. How it is measured: [bench.md](../bench.md).\n"
    )
    peers = "\n".join(peers_of(case) for case in rows if case["peers"])
    return f"{head}\n{table(rows)}\n{peers}\n"


def groups(cases: Iterable[Case]) -> list[tuple[str, list[Case]]]:
    """Return the cases by group, in their order."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(case["group"], []).append(case)
    return list(found.items())


def table(rows: Iterable[Case]) -> str:
    """Return one line for each bar."""
    return HEAD + "".join(line(case) for case in rows)


def line(case: Case) -> str:
    """Return what a bar asks and what was found."""
    name, best = best_peer(case)
    sign = "≤" if case["direction"] == "lower" else "≥"
    ratios = [attempt["ratio"] for attempt in case["attempts"]]
    found = ", ".join("–" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
    against = case["against"].removeprefix("peer:").replace("best", "best peer")
    cells = (
        case["name"],
        case["unit"],
        shown(case["ours"]),
        f"{shown(best)} ({name})" if name else "–",
        shown(case["floor"]),
        f"{sign} {case['bar']:g} × {against}",
        found,
        "holds" if case["holds"] else "**not held**",
    )
    return f"| {' | '.join(cells)} |\n"


def best_peer(case: Case) -> tuple[str, float | None]:
    """Return the peer with the best median, and that."""
    peers = {name: value for name, value in case["peers"].items() if value is not None}
    if not peers:
        return "", None
    pick = min if case["direction"] == "lower" else max
    name = pick(peers, key=peers.__getitem__)
    return name, peers[name]


def peers_of(case: Case) -> str:
    """Return every peer's median."""
    ordered = sorted(
        ((value, name) for name, value in case["peers"].items() if value is not None),
        reverse=case["direction"] == "higher",
    )
    return f"- {case['name']}, {case['unit']}: " + ", ".join(
        f"{name} {number(value)}" for value, name in ordered
    )


def shown(value: float | None) -> str:
    """Return three or four digits, or a dash."""
    return "–" if value is None else number(value)


if __name__ == "__main__":
    sys.exit(main())
