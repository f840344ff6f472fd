"""One SVG for each group: every contender of a row as a dot on a logarithmic axis, its rounds as a whisker.

Dots, not bars: a bar on a logarithmic axis has no honest length. What a bar of the table asks for is a dashed line.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from bench.figures import FIGURES
from bench.match import Line
from bench.report import number, title
from bench.verdicts import FLOOR, OURS

NAMES, PLOT, VALUES = 250, 560, 130  # widths, px
STEP, HEAD, GAP, MARGIN = 17, 40, 22, 16
COLOURS = {OURS: "#c0392b", FLOOR: "#7f8c8d"}
PEER_COLOUR = "#2c5f8a"
STYLE = "text{font:12px sans-serif;fill:#222}.t{font-weight:bold}.s{fill:#777;font-size:10px}"


@dataclass(frozen=True)
class Dot:
    """One contender: its median and the extremes of its rounds."""

    name: str
    colour: str
    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis over whole decades, or a part of one where all dots are close."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float]) -> Axis:
        """Return the axis that shows all values."""
        return cls(math.log10(min(values)) - 0.1, math.log10(max(values)) + 0.1)

    def x(self, value: float) -> float:
        """Return where a value lies."""
        return NAMES + PLOT * (math.log10(value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Return 1, 2 and 5 of every decade, or only 1 where there are many."""
        parts = (1, 2, 5) if self.high - self.low < 3 else (1,)
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        found = [part * 10.0**decade for decade in decades for part in parts]
        return [value for value in found if self.low <= math.log10(value) <= self.high]


def save(group: str, lines: Sequence[Line], folder: Path) -> Path:
    """Draw a group; returns where."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{group}.svg"
    path.write_text(draw(lines))
    return path


def draw(lines: Sequence[Line]) -> str:
    """Return the SVG of some lines, one chart below the other."""
    parts, top = [], MARGIN
    for line in lines:
        found = dots(line)
        if found:
            parts.append(chart(line, found, top))
            top += HEAD + STEP * len(found) + GAP
    width = NAMES + PLOT + VALUES
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top + MARGIN}" '
        f'viewBox="0 0 {width} {top + MARGIN}"><style>{STYLE}</style>'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def dots(line: Line) -> list[Dot]:
    """Return the contenders of a line, best first, by the first of its figures."""
    figure = line.row.figures[0]
    found = []
    for label in (OURS, *(peer.name for peer in line.row.peers), FLOOR):
        series = line.first.series(label, figure)
        if series and min(series) > 0:
            colour = COLOURS.get(label, PEER_COLOUR)
            median = statistics.median(series)
            found.append(Dot(title(line, label), colour, min(series), median, max(series)))
    is_lower = FIGURES[figure].direction == "lower"
    return sorted(found, key=lambda dot: dot.median if is_lower else -dot.median)


def wanted(line: Line) -> list[float]:
    """Return the values that the bars of a line ask for."""
    found = []
    for verdict in line.verdicts:
        label = verdict.against(line.first)
        series = line.first.series(label, verdict.bar.figure) if label else None
        if series and verdict.bar.figure == line.row.figures[0]:
            found.append(statistics.median(series) * verdict.bar.number)
    return [value for value in found if value > 0]


def chart(line: Line, found: Sequence[Dot], top: int) -> str:
    """Return one chart."""
    figure = FIGURES[line.row.figures[0]]
    asked = wanted(line)
    axis = Axis.over([value for dot in found for value in (dot.low, dot.high)] + asked)
    bottom = top + HEAD + STEP * len(found)
    better = "less is better" if figure.direction == "lower" else "more is better"
    parts = [text(4, top + 12, f"{line.name}: {figure.title}, {figure.unit} ({better})", "t")]
    for value in axis.ticks():
        x = axis.x(value)
        parts.append(rule(x, top + HEAD - 10, bottom, "#ddd"))
        parts.append(text(x, top + HEAD - 14, f"{value:g}", "s", "middle"))
    parts += [rule(axis.x(value), top + HEAD - 10, bottom, "#c0392b", "4 3") for value in asked]
    for index, dot in enumerate(found):
        y = top + HEAD + STEP * index + STEP // 2
        parts.append(text(NAMES - 8, y + 4, dot.name, "", "end"))
        parts.append(
            f'<path d="M{axis.x(dot.low):.1f} {y}H{axis.x(dot.high):.1f}" stroke="{dot.colour}" opacity=".45"/>'
            f'<circle cx="{axis.x(dot.median):.1f}" cy="{y}" r="4.5" fill="{dot.colour}"/>'
        )
        parts.append(text(NAMES + PLOT + 8, y + 4, number(dot.median)))
    return "".join(parts)


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """Return some words."""
    name = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}"{name}>{escape(words)}</text>'


def rule(x: float, top: float, bottom: float, colour: str, dashes: str = "none") -> str:
    """Return a vertical line."""
    return f'<path d="M{x:.1f} {top}V{bottom}" stroke="{colour}" stroke-dasharray="{dashes}"/>'
