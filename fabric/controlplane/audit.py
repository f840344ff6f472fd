"""Compare what senders' ledgers say with what can be found walking lanes, held tables and return rings. Pure.

A snapshot is what one node saw while all its ports were frozen:
`{node, ports: [inspect_state + {is_alive, is_adopting}], lanes: [{lane, ports, directions: [inspect_lane(0),
inspect_lane(1)]}]}`. Nothing here subtracts one counter from another to get a third: *in flight* is counted from the
entries found, then compared with the ledger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fabric import limits

END_NAMES = ("none", "delivered", "dropped", "failed")
REASON_NAMES = (
    "none",
    "expired",
    "overflow_oldest",
    "overflow_newest",
    "rejected",
    "consumer_error",
    "peer_lost",
    "outcome_unknown",
    "path_broken",
    "cancelled",
    "closed",
    "corrupted",
    "no_target",
    "transform_drop",
    "transform_error",
    "sender_lost",
)
PENDING, ACCEPTED, ENDED, WAITING = "pending", "accepted", "ended", "waiting"  # OutState, in words
HELD_QUEUED, HELD_HANDED, HELD_ENDED = "queued", "handed", "ended"  # HeldState, in words
END_DELIVERED = 1
_RETURN_END = 1

Key = tuple[int, int]  # flow, flow_seq


class Walk:
    """Everything found outside the ledgers, by (flow, flow_seq)."""

    def __init__(self) -> None:
        self.in_lanes: set[Key] = set()
        self.held: set[Key] = set()
        self.ended_here: set[Key] = (
            set()
        )  # ended, entry kept: a view still holds the slot, or the return ring was full
        self.returning: dict[int, list[tuple[int, int]]] = {}  # flow → ranges of ends under way
        self.drained: dict[int, int] = {}
        self.ended_upto: dict[int, int] = {}
        self.handed_back: dict[
            int, tuple[int, int]
        ] = {}  # flow → (after, upto): its sender has these
        self.differences: list[dict[str, str]] = []

    def is_returning(self, key: Key) -> bool:
        """Tell whether the end of a message is in a return ring."""
        return any(first <= key[1] <= last for first, last in self.returning.get(key[0], ()))

    def is_handed_back(self, key: Key) -> bool:
        """Tell whether its receiver closed and left a message, unended, to its sender."""
        after, upto = self.handed_back.get(key[0], (0, 0))
        return after < key[1] <= upto

    def differ(self, where: str, what: str) -> None:
        """Note a difference, at most AUDIT_DIFFERENCES_MAX."""
        if len(self.differences) < limits.AUDIT_DIFFERENCES_MAX:
            self.differences.append({"where": where, "what": what})


def compare(
    snapshots: Sequence[Mapping[str, Any]],
    archived: Iterable[Mapping[str, Any]] = (),
    names: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """Return the report: balanced or not, counts by channel, and every difference found.

    Parameters
    ----------
    snapshots : sequence of maps
        One per node, taken at one cut.
    archived : iterable of maps
        Final counts `{endpoint, channel, accepted, counts: [(end, reason, n)]}` of endpoints that are gone.
    names : map, optional
        Channel names by number.

    Returns
    -------
    dict
        `{balanced, channels: {name: {accepted, delivered, dropped: {reason: n}, failed: {reason: n}, in_flight}},
        differences: [{where, what}]}`.
    """
    walk = Walk()
    for snapshot in snapshots:
        _walk_node(walk, snapshot)
    channels: dict[int, dict[str, Any]] = {}
    seen: set[int] = set()
    outstanding: set[Key] = set()
    for snapshot in snapshots:
        for port in snapshot["ports"]:
            for ledger in port["ledgers"]:
                seen.add(ledger["endpoint"])
                _check_ledger(walk, channels, port, ledger, outstanding)
    _check_strays(walk, outstanding)
    for final in archived:
        if final["endpoint"] not in seen:
            _add_archived(walk, channels, final)
    called = names or {}
    return {
        "balanced": not walk.differences,
        "channels": {
            called.get(number, f"#{number}"): counts for number, counts in sorted(channels.items())
        },
        "differences": walk.differences,
    }


# -------------------------------------------------------------------- walking
def _walk_node(walk: Walk, snapshot: Mapping[str, Any]) -> None:
    for lane in snapshot["lanes"]:
        for direction, seen in enumerate(lane["directions"]):
            where = f"{snapshot['node']} lane {lane['lane']} direction {direction}"
            if "error" in seen:
                walk.differ(where, f"unreadable: {seen['error']}")
                continue
            _walk_direction(walk, where, seen)
    for port in snapshot["ports"]:
        where = f"{snapshot['node']} port {port['port']:#x}"
        if "error" in port:
            walk.differ(where, f"unreadable: {port['error']}")
        live = _walk_held(walk, where, port)
        for flow in port["flows"]:
            number = flow["flow"]
            walk.drained[number] = max(walk.drained.get(number, 0), flow["drained"])
            walk.ended_upto[number] = max(walk.ended_upto.get(number, 0), flow["ended_upto"])
            if flow.get("returned"):
                walk.handed_back[number] = (flow["handed"], flow["drained"])
            if port.get("is_alive", True):
                _check_receiver(walk, where, flow, live[number])


def _walk_direction(walk: Walk, where: str, seen: Mapping[str, Any]) -> None:
    found: set[Key] = set()
    for flow, flow_seq, _, _ in seen["records"]:
        key = (flow, flow_seq)
        if key in found:
            walk.differ(where, f"flow {flow:#x} message {flow_seq} is twice in this lane")
        found.add(key)
    walk.in_lanes |= found
    for kind, flow, first, last, _, _ in seen["returns"]:
        if kind == _RETURN_END:
            walk.returning.setdefault(flow, []).append((first, last))


def _walk_held(walk: Walk, where: str, port: Mapping[str, Any]) -> Counter[int]:
    """Take in one held table; returns the entries that have not ended, by flow."""
    found: set[Key] = set()
    live: Counter[int] = Counter()
    for entry in port["held"]:
        key = (entry["flow"], entry["flow_seq"])
        if entry["state"] not in (HELD_QUEUED, HELD_HANDED):
            if entry["state"] == HELD_ENDED:
                walk.ended_here.add(key)
            continue
        live[key[0]] += 1
        if key in found:
            walk.differ(where, f"flow {key[0]:#x} message {key[1]} is held twice")
        found.add(key)
    walk.held |= found
    return live


def _check_receiver(walk: Walk, where: str, flow: Mapping[str, Any], live: int) -> None:
    """Everything drained was reported, handed back or is held: a loss or a repeat shows for ever after."""
    reported, returned = sum(flow["reported"]), flow.get("returned", 0)
    if reported + returned + live != flow["drained"]:
        walk.differ(
            where,
            f"flow {flow['flow']:#x}: {flow['drained']} messages drained, {reported} ends reported and {live} held, "
            f"{returned} handed back",
        )


# -------------------------------------------------------------------- ledgers
def _check_ledger(
    walk: Walk,
    channels: dict[int, dict[str, Any]],
    port: Mapping[str, Any],
    ledger: Mapping[str, Any],
    outstanding: set[Key],
) -> None:
    where = f"endpoint {ledger['endpoint']:#x}"
    folded = sum(ledger["counts"].values())
    if folded != ledger["tail"]:
        walk.differ(where, f"{folded} ends are counted, {ledger['tail']} messages have ended")
    entries = [row for row in ledger["outstanding"] if row["state"] != PENDING]
    expected = set(range(ledger["tail"] + 1, ledger["accepted"] + 1))
    found = Counter(row["sequence"] for row in entries)
    for sequence in sorted(expected - set(found))[:8]:
        walk.differ(where, f"message {sequence} was accepted and has neither an entry nor an end")
    for sequence, times in found.items():
        if times > 1 or sequence not in expected:
            walk.differ(
                where, f"message {sequence} has {times} entries outside what is outstanding"
            )
    in_flight = 0
    for row in entries:
        in_flight += _check_entry(walk, where, port, row, outstanding)
    counts = _channel(channels, ledger["channel"])
    counts["accepted"] += ledger["accepted"]
    counts["in_flight"] += in_flight
    _add_counts(counts, ((end, reason, n) for (end, reason), n in ledger["counts"].items()))
    _add_counts(
        counts, ((row["end"], row["reason"], 1) for row in entries if row["state"] == ENDED)
    )


def _check_entry(
    walk: Walk, where: str, port: Mapping[str, Any], row: Mapping[str, Any], outstanding: set[Key]
) -> int:
    """Check one outstanding entry; returns 1 when it is in flight."""
    if row["state"] == ENDED:
        return 0
    if row["state"] == WAITING:
        return 1
    key = (row["flow"], row["flow_seq"])
    if row["state"] != ACCEPTED:
        walk.differ(
            where, f"message {row['sequence']} is in state {row['state']}, which does not exist"
        )
    if key in outstanding:
        walk.differ(where, f"flow {key[0]:#x} message {key[1]} belongs to two entries")
    outstanding.add(key)
    known = key in walk.in_lanes or key in walk.held or key in walk.ended_here
    if not known and not walk.is_returning(key) and not walk.is_handed_back(key):
        walk.differ(
            where, f"flow {key[0]:#x} message {key[1]} is outstanding and nowhere to be found"
        )
    return 1


def _check_strays(walk: Walk, outstanding: set[Key]) -> None:
    """Every message in a lane or held that has not ended belongs to an outstanding entry.

    A record below its receiver's `drained` is a repeat on its way to be discarded, one whose end is under way or
    reported is settled; flows no ledger knows any more (lost ones) are not counted by anybody.
    """
    flows = {flow for flow, _ in outstanding}
    for key in sorted((walk.held | walk.in_lanes) - outstanding):
        flow, flow_seq = key
        repeat = key not in walk.held and flow_seq <= walk.drained.get(flow, 0)
        if (
            flow not in flows
            or repeat
            or walk.is_returning(key)
            or flow_seq <= walk.ended_upto.get(flow, 0)
        ):
            continue
        walk.differ(f"flow {flow:#x}", f"message {flow_seq} is found, and no sender knows it")


# -------------------------------------------------------------------- sums
def _channel(channels: dict[int, dict[str, Any]], number: int) -> dict[str, Any]:
    empty: dict[str, Any] = {
        "accepted": 0,
        "delivered": 0,
        "dropped": {},
        "failed": {},
        "in_flight": 0,
    }
    return channels.setdefault(number, empty)


def _add_counts(counts: dict[str, Any], ends: Iterable[tuple[int, int, int]]) -> None:
    for end, reason, number in ends:
        if end == END_DELIVERED:
            counts["delivered"] += number
        elif END_NAMES[end] in ("dropped", "failed") and number:
            by_reason = counts[END_NAMES[end]]
            name = REASON_NAMES[reason]
            by_reason[name] = by_reason.get(name, 0) + number


def _add_archived(
    walk: Walk, channels: dict[int, dict[str, Any]], final: Mapping[str, Any]
) -> None:
    ended = sum(n for _, _, n in final["counts"])
    if ended != final["accepted"]:
        where = f"archived endpoint {final['endpoint']:#x}"
        walk.differ(where, f"{final['accepted']} were accepted, {ended} ends are counted")
    counts = _channel(channels, final["channel"])
    counts["accepted"] += final["accepted"]
    _add_counts(counts, final["counts"])
