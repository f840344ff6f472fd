"""What `fabricctl path` and `bench path` print for people."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fabric import units
from fabric.cli.output import ABSENT, Column, cell, size_of, table
from fabric.paths.explain import is_measured

Row = Mapping[str, Any]
DECISIONS_SHOWN = 12
CHANGES_SHOWN = 8


# ------------------------------------------------------------------ cells
def rate(bytes_per_s: float | None) -> str | None:
    """Return a rate in decimal units, as networks are sold; None without one."""
    if not bytes_per_s:
        return None
    for unit, scale in (("GB/s", 1e9), ("MB/s", 1e6), ("kB/s", 1e3)):
        if bytes_per_s >= scale:
            return f"{bytes_per_s / scale:.1f} {unit}"
    return f"{bytes_per_s:.0f} B/s"


def duration(ns: float | None) -> str | None:
    """Return nanoseconds for people; None for none."""
    return units.format_seconds(ns / 1e9) if ns else None


def _state(row: Row) -> str:
    waits = ", waits" if row.get("waits") and row.get("pinned") else ""
    return f"{row['state']}{', left out' if row.get('left_out') else ''}{waits}"


def _rail(row: Row) -> str:
    marks = ("*" if row.get("is_primary") else "") + ("!" if row.get("pinned") else "")
    return f"{row['rail']}{marks}"


def _share(key: str) -> Any:
    return lambda row: f"{100 * row[key]:.0f} %" if row.get(key) else None


def _rate_of(key: str) -> Any:
    return lambda row: rate(row.get(key))


def _known(row: Row, key: str) -> str | None:
    """Return a rate, marked where it is an assumption."""
    found = rate(row.get(key))
    return f"{found}?" if found and not is_measured(row) else found


def _of_ns(key: str) -> Any:
    return lambda row: duration(row.get(key))


def _us(key: str) -> Any:
    return lambda row: duration(row[key] * 1000) if row.get(key) else None


def _interfaces(row: Row) -> str:
    here, there = row.get("interface") or "", row.get("peer_interface") or ""
    return f"{here} → {there}" if here and there else here or there


def _addresses(row: Row) -> str:
    here, there = row.get("local") or "", row.get("remote") or row.get("address") or ""
    return f"{here or ABSENT} → {there or ABSENT}" if here or there else ""


_LISTING = (
    Column("peer", "peer"),
    Column("rail", _rail),
    Column("state", _state),
    Column("rate", lambda row: _known(row, "rate"), True),
    Column("latency", _of_ns("base_ns"), True),
    Column("share", _share("share"), True),
    Column("in flight", size_of("inflight"), True),
    Column("interface", _interfaces, may_go=True),
    Column("failures", "failures", True, may_go=True),
    Column("window", size_of("window"), True, may_go=True),
    Column("resent", size_of("resent"), True, may_go=True),
    Column("addresses", _addresses, may_go=True),
)


def _with_link(columns: Sequence[Column], rows: Iterable[Row]) -> list[Column]:
    """Return the columns, behind the rail that of its link, where one is no tcp."""
    found = list(columns)
    if any(row.get("link", "tcp") != "tcp" for row in rows):
        at = next(number for number, each in enumerate(found) if each.title == "rail") + 1
        found.insert(at, Column("link", "link"))
    return found


# ------------------------------------------------------------------ ls
def listing(rows: Sequence[Row]) -> str:
    """Return the rails as a table, with what its marks mean and what waits."""
    drawn = table(
        _with_link(_LISTING, rows),
        rows,
        "no rails: this node stands alone, or no other is connected",
    )
    marks = []
    if any(row.get("is_primary") for row in rows):
        marks.append("* takes what goes whole (records)")
    if any(row.get("pinned") for row in rows):
        marks.append("! pinned: others carry nothing")
    if any(row["state"] == "up" and not is_measured(row) for row in rows):
        marks.append("? assumed: nothing was sent in chunks yet")
    return "\n".join(
        [drawn, *(["", "; ".join(marks)] if marks else []), *_left_out(rows), *_waiting(rows)]
    )


def _left_out(rows: Iterable[Row]) -> list[str]:
    return [
        f"rail {row['rail']} to {row['peer']} is left out: {row['left_out']}"
        for row in rows
        if row["state"] == "up" and row.get("left_out")
    ]


def _waiting(rows: Iterable[Row]) -> list[str]:
    peers = dict.fromkeys(row["peer"] for row in rows if row.get("waits"))
    return [
        f"large messages to {peer} wait: no pinned rail is up; fabricctl path unpin {peer}"
        for peer in peers
    ]


# ------------------------------------------------------------------ show
_TERMS = (
    Column("rail", _rail),
    Column("state", _state),
    Column("base", _of_ns("base_ns"), True),
    Column("in flight", size_of("inflight"), True),
    Column("rate now", lambda row: _known(row, "rate_now"), True),
    Column("finish", _of_ns("finish_ns"), True),
    Column("window", size_of("window"), True),
    Column("silent", _of_ns("silent_ns"), True, may_go=True),
    Column("penalty", lambda row: round(row.get("penalty", 0), 2), True, may_go=True),
)
_COUNTS = (
    Column("rail", "rail"),
    Column("delivered", size_of("delivered"), True),
    Column("share", _share("share"), True),
    Column("resent", size_of("resent"), True),
    Column("failures", "failures", True),
    Column("interface", _interfaces),
    Column("last error", "last_error"),
    Column("addresses", _addresses, may_go=True),
)
_CHANGES = (
    Column("at", lambda row: _moment(row["at"])),
    Column("rail", "rail", True),
    Column("from", "before"),
    Column("to", "after"),
    Column("reason", "reason"),
)


def shown(answer: Row) -> str:
    """Return everything about the rails to one node."""
    rails = answer.get("rails", ())
    sections = [
        f"{answer.get('source')} → {answer.get('peer')}: {_path(answer)}{_pin(answer)}",
        answer.get("warning") or "",
        table(
            _TERMS,
            rails,
            "no rails: the node is not connected",
            f"score for {units.format_bytes(answer['size_bytes'])}: base + (in flight + size) / rate now = finish",
        ),
        "\n".join(_left_out(rails)),
        table(_with_link(_COUNTS, rails), rails, "", "since the session began:") if rails else "",
        _last_changes(answer.get("changes", ())),
        decisions(answer.get("decisions", ())),
    ]
    return "\n\n".join(section for section in sections if section)


def _path(row: Row) -> str:
    taken, preferred = str(row.get("path") or ABSENT), row.get("path_preferred")
    if not preferred or preferred == taken:
        return f"{taken} ({row.get('path_reason')})"
    return f"{taken} instead of {preferred}: {row.get('path_reason')}"


def _pin(answer: Row) -> str:
    rails = answer.get("pinned") or ()
    return f"; pinned to rail {', '.join(map(str, rails))}" if rails else ""


def _last_changes(changes: Sequence[Row]) -> str:
    if not changes:
        return "no rail has changed its state since this daemon knows it"
    last = sorted(changes, key=lambda change: change["at"])[-CHANGES_SHOWN:]
    return table(_CHANGES, last, "", "last changes:")


def decisions(rows: Sequence[Row]) -> str:
    """Return the scheduler's last decisions, each with what the other rails would have finished at."""
    if not rows:
        return "no decisions yet: nothing was cut into chunks for this node"
    columns = (
        Column("ago", lambda row: duration(row["age_ms"] * 1e6), True),
        Column("chunk", size_of("bytes"), True),
        Column("pending", size_of("pending"), True),
        Column("rail", lambda row: row["rail"] if row["rail"] is not None else ABSENT, True),
        Column("why", lambda row: WHY.get(row["why"], row["why"])),
        Column("finish by rail", _finishes),
    )
    return table(columns, list(rows)[-DECISIONS_SHOWN:], "", "last decisions:")


#: what the scheduler's reasons mean
WHY = {
    "earliest": "finishes first",
    "only": "the only rail that is up",
    "pinned": "pinned",
    "no_room": "earlier ones are full",
    "no_rail": "no rail can be used",
    "resent": "again, on another rail",
}


def _finishes(row: Row) -> str:
    return ", ".join(
        f"{number}: {duration(ns)}" for number, ns in enumerate(row.get("finish_ns", ())) if ns
    )


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%H:%M:%S.%f")[:-3]


# ------------------------------------------------------------------ why
_WHY = (
    Column("rail", lambda row: f"{row['rail']}{'*' if row.get('is_fastest') else ''}"),
    Column("state", "state"),
    Column("carries", size_of("carries"), True),
    Column("share", _share("carries_share"), True),
    Column("if all went here", "score"),
)


def reasons(answer: Row) -> str:
    """Return where a message would go, in words first, then rail by rail."""
    heading = (
        f"{answer['source']} → {answer['target']}, {units.format_bytes(answer['size_bytes'])}"
        f" of class {answer['class']}, over {answer.get('path') or 'no link'}:"
    )
    words = "\n".join(_wrapped(sentence) for sentence in answer.get("words", ()))
    rails = [
        {**row, "score": row["left_out"] or row["score"]} if row.get("left_out") else row
        for row in answer.get("rails", ())
    ]
    parts = [f"{heading}\n{words}"]
    if rails:
        said = "* takes what goes whole (records)"
        if answer.get("by") == "scheduler":
            said += "; the scheduler itself made the split, for rails as now"
        parts += [table(_with_link(_WHY, rails), rails, ""), said]
    return "\n\n".join(parts)


def _wrapped(sentence: str, width: int = 78) -> str:
    import textwrap

    whole = re.sub(r"(\d) (?=\S)", "\\1\u00a0", sentence)  # a number stays with its unit
    lines = textwrap.fill(whole, width, initial_indent="  ", subsequent_indent="  ")
    return lines.replace("\u00a0", " ")


# ------------------------------------------------------------------ probe, pin, bench
_PROBED = (
    Column("rail", "rail", True),
    Column("state", "state"),
    Column("round trip", _us("rtt_us_p50"), True),
    Column("least", _us("rtt_us_min"), True),
    Column("kernel", _us("tcp_rtt_us"), True),
    Column("rate", _rate_of("rate"), True),
    Column("payload", size_of("bytes"), True),
    Column("retransmits", "retransmits", True, may_go=True),
    Column("interface", _interfaces, may_go=True),
    Column("addresses", _addresses, may_go=True),
)


def probed(answer: Row) -> str:
    """Return the figures of each rail, and why those without any have none."""
    rails = answer.get("rails", ())
    good = [row for row in rails if not row.get("failed")]
    heading = f"{answer.get('source')} → {answer.get('peer')}"
    lines = [table(_PROBED, good, "no rail could be measured", heading)]
    lines += _failures(rails)
    spent = units.format_bytes(answer.get("bytes", 0))
    lines += [f"took {cell(answer.get('seconds'))} s and {spent} of payload"]
    return "\n".join(lines)


def _failures(rails: Iterable[Row]) -> list[str]:
    return [f"rail {row['rail']}: {row['failed']}" for row in rails if row.get("failed")]


def pinned(answer: Row) -> str:
    """Return what a pin or unpin did."""
    peer, rails = answer.get("peer"), answer.get("pinned") or ()
    if rails:
        said = f"traffic to {peer} goes over rail {', '.join(map(str, rails))} alone; fabricctl path unpin {peer}"
    elif answer.get("was_pinned"):
        said = f"traffic to {peer} may use every rail again"
    else:
        said = f"traffic to {peer} was not pinned"
    warning = answer.get("warning")
    return f"{said}\nwarning: {warning}" if warning else said


_TOGETHER = (
    Column("", "name"),
    Column("rate", _rate_of("rate"), True),
    Column("of the sum", _share("of_sum"), True),
    Column("by rail", lambda row: _by_rail(row)),
)


def measured(answer: Row) -> str:
    """Return what `bench path` found: each rail alone, all at once, and the fabric over them."""
    rails = answer.get("rails", ())
    heading = f"{answer.get('source')} → {answer.get('peer')}, each rail alone:"
    parts = [
        "\n".join(
            [
                table(_PROBED, [r for r in rails if not r.get("failed")], "nothing", heading),
                *_failures(rails),
            ]
        ),
        table(_TOGETHER, answer.get("together", ()), "", "all rails at once:"),
        "\n".join(_wrapped(sentence) for sentence in answer.get("words", ())),
        f"took {cell(answer.get('seconds'))} s and {units.format_bytes(answer.get('bytes', 0))} of payload",
    ]
    return "\n\n".join(part for part in parts if part)


def _by_rail(row: Row) -> str:
    return ", ".join(f"{part['rail']}: {rate(part['rate'])}" for part in row.get("by_rail", ()))
