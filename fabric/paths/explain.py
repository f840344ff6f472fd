"""Say in words and shares where bytes to another node would go, from the terms of each rail's score. Pure.

The terms are those of the native scheduler (`fabric/native/paths/rail_scheduler.hpp`); nothing is estimated here. A
`row` is one rail: `rail`, `state`, `rate` and `rate_now` (bytes/s), `base_ns`, `inflight`, `window`, `finish_ns` …
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fabric import limits, units

Row = Mapping[str, Any]
NS = 1_000_000_000
RATE_ASSUMED = 125e6  #: kRateUnknown of rail_estimate.hpp: of a rail that nothing was measured on


def rail_name(row: Row) -> str:
    """Return a rail as people name it: its number and, where known, its link (unless it is tcp) and its interface."""
    link = row.get("link")
    known = [str(each) for each in (link if link != "tcp" else "", row.get("interface")) if each]
    return f"rail {row['rail']}" + (f" ({', '.join(known)})" if known else "")


def mask_of(rails: Sequence[int]) -> int:
    """Return a pin as the scheduler takes it: a bit per rail; 0 is no pin."""
    return sum(1 << rail for rail in set(rails))


def usable(rows: Sequence[Row], pinned: Sequence[int] = ()) -> list[Row]:
    """Return the rails that may carry something now: up, and within the pin where there is one."""
    return [row for row in rows if row["state"] == "up" and (not pinned or row["rail"] in pinned)]


def carrying(rows: Sequence[Row], pinned: Sequence[int] = ()) -> list[Row]:
    """Return the rails that get chunks now: the usable ones, without those that add nothing while another is there."""
    found = usable(rows, pinned)
    return [row for row in found if not row.get("left_out")] or found


def is_measured(row: Row) -> bool:
    """Tell whether a rail's rate was measured; else it is the assumption that a new rail begins with."""
    return float(row.get("rate") or RATE_ASSUMED) != RATE_ASSUMED


def is_waiting(rows: Sequence[Row], pinned: Sequence[int]) -> bool:
    """Tell whether what goes in chunks waits because no rail of a pin can be used; records go on over another."""
    return bool(pinned) and not usable(rows, pinned)


def goes_whole(size_bytes: int) -> bool:
    """Tell whether a message of so many bytes is one record: those are never cut, whatever their class."""
    return size_bytes <= limits.INLINE_BYTES_MAX


def finish_ns(row: Row, size_bytes: int) -> int:
    """Return when a rail would have delivered `size_bytes` more: base + (in flight + size) / rate."""
    rate = max(float(row.get("rate_now") or row.get("rate") or 0.0), 1.0)
    return int(row.get("base_ns", 0) + (row.get("inflight", 0) + size_bytes) * NS / rate)


def fluid_split(rows: Sequence[Row], size_bytes: int) -> tuple[dict[int, int], int]:
    """Return bytes by rail, and the nanoseconds until all are delivered, where every rail ends at the same moment.

    What earliest finish tends to for many small chunks: each rail gets what it can deliver beside what is in flight
    before a common end, and one that would be busy until then anyway gets nothing.
    """
    rails = sorted(rows, key=lambda row: finish_ns(row, 0))
    best: tuple[dict[int, int], int] = {}, 0
    for count in range(1, len(rails) + 1):
        used = rails[:count]
        rate = sum(_rate(row) for row in used)
        started = sum(finish_ns(row, 0) * _rate(row) for row in used)
        end = (size_bytes * NS + started) / rate
        if count > 1 and finish_ns(used[-1], 0) >= best[1]:
            break
        shares = {row["rail"]: int((end - finish_ns(row, 0)) * _rate(row) / NS) for row in used}
        shares[used[0]["rail"]] += size_bytes - sum(shares.values())
        best = shares, int(end)
    return best


def _rate(row: Row) -> float:
    return max(float(row.get("rate_now") or row.get("rate") or 0.0), 1.0)


# ------------------------------------------------------------------ words
def term(row: Row, size_bytes: int) -> str:
    """Return a rail's score as it is computed: ``180 µs + (256 KiB in flight + 1 MiB) / 118 MB/s = 11 ms``."""
    base, end = row.get("base_ns", 0) / NS, row.get("finish_ns") or finish_ns(row, size_bytes)
    return (
        f"{units.format_seconds(base)} + ({units.format_bytes(row.get('inflight', 0))} in flight"
        f" + {units.format_bytes(size_bytes)}) / {rate(row.get('rate_now') or row.get('rate'))}"
        f" = {units.format_seconds(end / NS)}"
    )


def rate(bytes_per_s: float | None) -> str:
    """Return a rate for people, decimal units: ``118.4 MB/s``."""
    value = float(bytes_per_s or 0.0)
    for unit, scale in (("GB/s", 1e9), ("MB/s", 1e6), ("kB/s", 1e3)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value:.0f} B/s"


def why_not(row: Row, pinned: Sequence[int]) -> str:
    """Return why a rail carries nothing; empty for one that may."""
    state = str(row["state"])
    if state == "up" and pinned_out(row, pinned):
        return f"not among the pinned ({_numbers(pinned)})"
    if state == "up":
        return str(row.get("left_out") or "")
    reason = row.get("last_error") or row.get("reason") or ""
    said = {
        "down": "it has no connection",
        "suspect": "it is silent while others are not",
        "held": "it failed repeatedly and is held back",
        "absent": "it was never connected",
    }.get(state, state)
    return f"{state}: {said}" + (f" ({reason})" if reason else "")


def pinned_out(row: Row, pinned: Sequence[int]) -> bool:
    """Tell whether a pin leaves this rail out."""
    return bool(pinned) and row["rail"] not in pinned


def words(
    rows: Sequence[Row],
    size_bytes: int,
    klass: str,
    fastest: int | None,
    shares: Mapping[int, int],
    end_ns: int,
    pinned: Sequence[int] = (),
) -> list[str]:
    """Return, in sentences, where a message of this size and class goes and why.

    Parameters
    ----------
    rows : sequence of mapping
        Every rail to the peer.
    size_bytes : int
        Of the message.
    klass : str
        Traffic class of its channel.
    fastest : int or None
        The rail that records take; None where none is healthy.
    shares : mapping
        Rail → bytes that it would carry.
    end_ns : int
        Predicted until the last byte is delivered.
    pinned : sequence of int
        Rails that traffic to this peer is bound to; empty: all.
    """
    if not rows:
        return ["There is no rail to this node: it waits until one is connected."]
    if not usable(rows, () if goes_whole(size_bytes) else pinned):
        return [_nothing(rows, pinned)]
    by_number = {row["rail"]: row for row in rows}
    said = _pin_words(rows, pinned)
    if goes_whole(size_bytes) and fastest is not None:
        said.append(_whole(by_number[fastest], size_bytes, klass, rows))
    else:
        said.append(_striped(by_number, size_bytes, klass, shares, end_ns))
    return said + _left_out(rows, size_bytes, shares, pinned)


def _nothing(rows: Sequence[Row], pinned: Sequence[int]) -> str:
    states = "; ".join(
        f"{rail_name(row)} is {why_not(row, ())}" for row in rows if why_not(row, ())
    )
    if pinned:
        return (
            f"Nothing would go: traffic is pinned to rail {_numbers(pinned)}, and none of it is up. {states}."
            " It waits until one is, or until the pin is taken away."
        )
    return f"Nothing would go now: {states}. It waits until one is up again, or until its deadline."


def _pin_words(rows: Sequence[Row], pinned: Sequence[int]) -> list[str]:
    if not pinned:
        return []
    if is_waiting(rows, pinned):
        return [
            f"Traffic to this node is pinned to rail {_numbers(pinned)}, and none of it is up: what goes in chunks"
            " waits, records go on over another."
        ]
    return [
        f"Traffic to this node is pinned to rail {_numbers(pinned)}; other rails are not asked."
    ]


def _whole(row: Row, size_bytes: int, klass: str, rows: Sequence[Row]) -> str:
    others = [r for r in usable(rows) if r["rail"] != row["rail"]]
    base = units.format_seconds(row.get("base_ns", 0) / NS)
    beside = ", ".join(
        f"{rail_name(r)} {units.format_seconds(r.get('base_ns', 0) / NS)}" for r in others
    )
    reason = f"the only one that may carry now (base latency {base})"
    if others:
        reason = f"the primary until it is not fit to be (base latency {base}, beside {beside})"
    return (
        f"{units.format_bytes(size_bytes)} of class {klass} is one record (up to"
        f" {units.format_bytes(limits.INLINE_BYTES_MAX)}): it goes whole over {rail_name(row)}, {reason}."
    )


def _striped(
    by_number: Mapping[int, Row], size_bytes: int, klass: str, shares: Mapping[int, int], end: int
) -> str:
    parts = [
        f"{rail_name(by_number[rail])} {100 * part / size_bytes:.0f} %"
        for rail, part in sorted(shares.items(), key=lambda item: -item[1])
        if part
    ]
    return (
        f"{units.format_bytes(size_bytes)} of class {klass} go in chunks, each to the rail that is predicted to"
        f" deliver it first: {', '.join(parts)}; all delivered in {units.format_seconds(end / NS)}."
    )


def _left_out(
    rows: Sequence[Row], size_bytes: int, shares: Mapping[int, int], pinned: Sequence[int]
) -> list[str]:
    said = []
    for row in rows:
        reason = why_not(row, pinned)
        if goes_whole(size_bytes) and row["state"] == "up" and row.get("left_out"):
            continue  # of chunks only
        if reason:
            said.append(f"{rail_name(row).capitalize()} gets nothing: {reason}.")
        elif not goes_whole(size_bytes) and not shares.get(row["rail"]):
            said.append(
                f"{rail_name(row).capitalize()} gets nothing: what is in flight there keeps it busy for longer"
                " than the others need for all of this."
            )
    return said


def _numbers(rails: Sequence[int]) -> str:
    return ", ".join(str(rail) for rail in sorted(rails))
