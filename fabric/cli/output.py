"""Print answers as a table for people, or as json or yaml for machines.

On a terminal tables have colour and fit its width; elsewhere they are plain and never cut, so that
grep, diff and tests see whole words.
"""

from __future__ import annotations

import contextvars
import enum
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fabric import units

PLAIN_WIDTH = 10_000  # columns of a table that is not shown on a terminal
ABSENT = "-"
_is_wide = contextvars.ContextVar(
    "is_wide", default=False
)  # what is printed now keeps every column


class Format(enum.StrEnum):
    """What `-o` takes."""

    table = "table"
    wide = "wide"
    json = "json"
    yaml = "yaml"


class Column(NamedTuple):
    """A column: its title, and the row's key or a function of the row."""

    title: str
    value: str | Callable[[Mapping[str, Any]], Any]
    is_number: bool = False
    may_go: bool = False  #: left out, the last such first, where a terminal is too narrow


def cell(value: Any) -> str:
    """Return a value as it stands in a table."""
    if value is None or value == "" or value == [] or value == {}:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={cell(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(cell(item) for item in value)
    return str(value)


def size_of(key: str) -> Callable[[Mapping[str, Any]], str | None]:
    """Return a column's value: the row's `key`, a number of bytes, in words."""
    return lambda row: None if row.get(key) is None else units.format_bytes(row[key])


def emit(values: Any, form: Format, table: Callable[[], str]) -> None:
    """Print values in a format; `table` is only called for tables, `wide` ones among them: those are never cut."""
    _is_wide.set(form is Format.wide)
    if form is Format.json:
        text = json.dumps(values, indent=2, ensure_ascii=False)
    elif form is Format.yaml:
        import yaml

        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip("\n")
    else:
        text = table()
    sys.stdout.write(text + "\n")


def table(
    columns: Sequence[Column], rows: Iterable[Mapping[str, Any]], empty: str, title: str = ""
) -> str:
    """Return rows as a table, or the text `empty` when there are none."""
    from rich.table import Table

    rows = list(rows)
    columns, hidden = _fitting(columns, rows)
    drawn = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        drawn.add_column(
            column.title.upper(), justify="right" if column.is_number else "left", overflow="fold"
        )
    for row in rows:
        drawn.add_row(*(_cell_text(column, row) for column in columns))
    heading = f"{title}\n" if title else ""
    rest = f"\n(too narrow for {', '.join(hidden)}: see -o wide)" if rows and hidden else ""
    return heading + (_draw(drawn) if rows else empty) + rest


def _fitting(
    columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]
) -> tuple[list[Column], list[str]]:
    """Return the columns that a terminal has room for without folding, and the titles of those left out."""
    shown, hidden = list(columns), list[str]()
    if not sys.stdout.isatty() or _is_wide.get():
        return shown, hidden
    widths = {
        column.title: max(len(column.title), *(len(cell(_value(column, row))) for row in rows), 0)
        for column in columns
    }
    room = shutil.get_terminal_size().columns
    for column in reversed(columns):
        if sum(widths[c.title] + 2 for c in shown) - 2 <= room:
            break
        if column.may_go:
            shown.remove(column)
            hidden.insert(0, column.title)
    return shown, hidden


def pairs(values: Mapping[str, Any]) -> str:
    """Return a mapping as aligned ``key  value`` lines; nested lists of rows are indented below their key."""
    width = max((len(key) for key in values), default=0)
    lines = []
    for key, value in values.items():
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            lines.append(f"{key}:")
            lines += [f"  - {cell(item)}" for item in value]
        else:
            lines.append(f"{key:<{width}}  {cell(value)}")
    return "\n".join(lines)


def _value(column: Column, row: Mapping[str, Any]) -> Any:
    return column.value(row) if callable(column.value) else row.get(column.value)


def _cell_text(column: Column, row: Mapping[str, Any]) -> Any:
    from rich.text import Text

    return Text(cell(_value(column, row)))  # Text: what users named is never read as markup


def _draw(drawn: Any) -> str:
    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    is_fitted = is_terminal and not _is_wide.get()
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        force_terminal=is_terminal,
        color_system="auto" if is_terminal else None,
        width=None if is_fitted else PLAIN_WIDTH,
        height=None if is_fitted else 1,  # without it, a terminal called dumb has 80 columns
        highlight=False,
    )
    console.print(drawn)
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip("\n").split("\n"))
