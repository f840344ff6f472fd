"""What a contender does in one round of a row, and the figures that come of it.

A scenario is given the stage, who plays, and the order: ``(stage, who, order) -> figures``. Where a row changes the
network, capacity counts as changed from before the change where less is left, and from after it where more is there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from bench.paths import timeline
from bench.paths.stage import FABRIC, Schedule, Stage
from bench.paths.timeline import MS, Arrivals, Capacity, S
from bench.sides import Pair, SubjectFailed
from fabric.errors import FabricError

Figures = dict[str, float]
Order = dict[str, Any]
Scenario = Callable[[Stage, str, Order], Figures]
MIB = 1 << 20
GRACE_S = 4.0  # for what is under way when a stream ends
WARM_S, WARM_BYTES, WARM_GIVE_UP_S = 0.4, 64 * MIB, 45.0
RECEIVER = "n1"  # the node that a stream goes to
SETTLED_NS = 150 * MS  # after a change, from when on a bar counts
PAYLOAD = 1448 / 1514  # of a frame that `tbf` counts


def rate_of(stage: Stage, *rails: int) -> float:
    """Return the bytes/s of payload that some rails let through, all where none is named."""
    chosen = rails or tuple(range(len(stage.rails)))
    return sum(stage.rails[number].mbit for number in chosen) * 1e6 / 8 * PAYLOAD


# ------------------------------------------------------------------ one stream
class Stream:
    """One order of a stream, as both halves saw it."""

    def __init__(self, near: Any, far: Any, order: Order) -> None:
        self.order, self.sent = order, near["sent"]
        self.start = near["start"]
        self.arrivals = Arrivals(far["arrivals"], order["size"], near["start"])
        self.torn = far["torn"]
        self.is_whole = bool(near["ended"] and far["ended"] and not near["failed"])
        self.why = near["failed"] or far["failed"] or "the stream never ended"

    @property
    def until(self) -> int:
        """When the stream was to end; where it had to be longer, when it did."""
        return max(self.start + int(self.order.get("seconds", 0) * S), self.arrivals.end)

    def wrong(self) -> int:
        """Return how many messages were lost, came twice or were not what was sent."""
        return self.arrivals.wrong(self.sent) + self.torn


def stream(stage: Stage, who: str, pair: Pair, order: Order) -> Stream:
    """Run one; a contender whose stream does not end is killed, what arrived until then still counts."""
    given = {"run": "stream", "window": 8, **order}
    given["give_up_s"] = order.get("give_up_s", order.get("seconds", 0) + GRACE_S)
    try:
        near, far = pair.order(given, given["give_up_s"] + 15.0)
    except SubjectFailed:
        stage.drop(who)
        raise
    found = Stream(near, far, given)
    if not found.is_whole:
        stage.drop(who)
    return found


def warm(stage: Stage, who: str, pair: Pair, order: Order) -> None:
    """Send for a moment, once for each pair: connections grow, rates become known, memory is touched.

    Raises
    ------
    SubjectFailed
        Nothing went through.
    """
    if getattr(pair, "is_warm", False):
        return
    if order["size"] > WARM_BYTES:  # one is enough, and takes seconds
        short = {"seconds": 0.0, "count": 1, "give_up_s": WARM_GIVE_UP_S}
    else:
        short = {"seconds": WARM_S, "count": 0, "give_up_s": WARM_GIVE_UP_S}
    found = stream(stage, who, pair, {**order, **short})
    if not found.is_whole:
        raise SubjectFailed(f"{who}: {found.why}")
    pair.is_warm = True  # type: ignore[attr-defined]


def steady(stage: Stage, who: str, order: Order) -> Figures:
    """One stream over all rails while nothing changes."""
    pair = stage.pair(who)
    warm(stage, who, pair, order)
    before = rails_of(stage, who)
    found = stream(stage, who, pair, order)
    if not found.is_whole:
        raise SubjectFailed(f"{who}: {found.why}")
    rate = found.arrivals.rate()
    figures = {"gb_per_s": rate / 1e9, "wrong": float(found.wrong())}
    possible = rate_of(stage)
    if possible:
        figures["share"] = rate / possible
    return {**figures, **resent(before, rails_of(stage, who))}


def singly(stage: Stage, who: str, order: Order) -> Figures:
    """The sum of what a contender moves over each rail alone, one after the other."""
    total = 0.0
    for number in range(len(stage.rails)):
        pair = stage.pair(who, (number,))
        warm(stage, who, pair, order)
        found = stream(stage, who, pair, order)
        if not found.is_whole:
            raise SubjectFailed(f"{who} over rail {number}: {found.why}")
        total += found.arrivals.rate()
    return {"gb_per_s": total / 1e9}


def alone(stage: Stage, who: str, order: Order) -> Figures:
    """A stream over the first rail only."""
    pair = stage.pair(who, (0,))
    warm(stage, who, pair, order)
    found = stream(stage, who, pair, order)
    if not found.is_whole:
        raise SubjectFailed(f"{who} over one rail: {found.why}")
    return {"gb_per_s": found.arrivals.rate() / 1e9}


def rails_of(stage: Stage, who: str) -> list[dict[str, Any]]:
    """Return the sending node's rails to the other, as it lists them; nothing of a peer."""
    if who != FABRIC:
        return []
    with stage.nodes().client(0) as client:
        return client.path_ls()


def pin(stage: Stage, *rails: int) -> None:
    """Have the sending node use only some rails; none named: all again.

    Raises
    ------
    SubjectFailed
        It cannot be told.
    """
    with stage.nodes().client(0) as client:
        try:
            client.path_pin(RECEIVER, list(rails))
        except FabricError as error:
            raise SubjectFailed(f"rails cannot be pinned: {error}") from error


def resent(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> Figures:
    """Return what was sent again, in percent of what was delivered between two listings of rails."""
    try:
        again = sum(row["resent"] for row in after) - sum(row["resent"] for row in before)
        delivered = sum(row["delivered"] for row in after) - sum(row["delivered"] for row in before)
    except KeyError:
        return {}
    return {"resent_percent": 100.0 * again / delivered} if delivered else {}


# ------------------------------------------------------------------ a rail that changes
def throttled(stage: Stage, who: str, order: Order) -> Figures:
    """The last rail goes to a tenth, and back."""
    rail, full = stage.rails[-1], rate_of(stage)
    slow = rail.mbit // 10
    left = full - rate_of(stage, rail.number) * 0.9
    normal = rail.mbit
    pair = stage.pair(who)
    warm(stage, who, pair, order)
    first, second = order["at"]
    with Schedule((first, lambda: rail.shape(slow)), (second, lambda: rail.shape(normal))) as plan:
        found = stream(stage, who, pair, order)
    (begin, slowed), (end, back) = plan.done
    arrivals = found.arrivals
    capacity = Capacity(((0, full), (begin, left), (back, full)))
    during = Capacity(((0, left),))
    return {
        "gb_per_s": arrivals.between(slowed + SETTLED_NS, end) / (end - slowed - SETTLED_NS),
        "least_share": timeline.least_share(arrivals, during, slowed + SETTLED_NS, end),
        "back_ms": timeline.back_after(arrivals, back, 0.93 * full) / MS,
        "p99_ratio": timeline.p99(timeline.slowdowns(arrivals, capacity) or [1e3]),
        "wrong": float(found.wrong()),
    }


def lost(stage: Stage, who: str, order: Order) -> Figures:
    """The last rail goes, `silent` without an event, and returns."""
    rail, full = stage.rails[-1], rate_of(stage)
    one = full - rate_of(stage, rail.number)
    go, come = (rail.swallow, rail.heal) if order.get("silent") else (rail.down, rail.up)
    pair = stage.pair(who)
    warm(stage, who, pair, order)
    first, second = order["at"]
    with Schedule((first, go), (second, come)) as plan:
        found = stream(stage, who, pair, order)
    (begin, _), (_, back) = plan.done
    arrivals = found.arrivals
    # It is not faulted for being slow in the first second of the return: that is a bar of its own.
    capacity = Capacity(((0, full), (begin, one), (back + S, full)))
    return {
        "gap_ms": arrivals.longest_gap(found.start + 100 * MS, found.until) / MS,
        "late_ms": timeline.latest(arrivals, capacity) / MS,
        "back_ms": timeline.back_after(arrivals, back, one + 0.5 * (full - one)) / MS,
        "gb_per_s": arrivals.between(begin, back) / (back - begin),
        "wrong": float(found.wrong()),
    }


def flapping(stage: Stage, who: str, order: Order) -> Figures:
    """The last rail goes down and comes up every 300 ms."""
    rail = stage.rails[-1]
    one = rate_of(stage) - rate_of(stage, rail.number)
    first, last = order["at"]
    period, steps, at = order["period_s"], [], first
    while at < last:
        steps += [(at, rail.down), (at + period, rail.up)]
        at += 2 * period
    pair = stage.pair(who)
    warm(stage, who, pair, order)
    with Schedule(*steps) as plan:
        found = stream(stage, who, pair, order)
    begin, end = plan.done[0][0], plan.done[-1][1]
    share = timeline.least_share(found.arrivals, Capacity(((0, one),)), begin, end)
    return {
        "least_share": share,
        "gap_ms": found.arrivals.longest_gap(begin, end) / MS,
        "gb_per_s": found.arrivals.between(begin, end) / (end - begin),
        "wrong": float(found.wrong()),
    }


def dark(stage: Stage, who: str, order: Order) -> Figures:
    """Both rails go down; after 3 s one of them returns. Messages with a deadline end meanwhile."""
    pair, other = stage.pair(who), stage.pair(who, part="brief")
    warm(stage, who, pair, order)
    first, second = order["at"]
    expiry: dict[str, Any] = {}
    brief = {"run": "expire", "after_s": first + 0.3, "deadline_s": 1.0, "count": order["expiring"]}

    def expire() -> None:
        try:
            expiry.update(other.order({**brief, "size": 4096}, 30.0)[0])
        except SubjectFailed as error:
            expiry["failed"] = str(error)

    aside = threading.Thread(target=expire, daemon=True)
    rails = stage.rails
    everything = lambda: [rail.down() for rail in rails]  # noqa: E731
    with Schedule((first, everything), (second, rails[0].up)) as plan:
        aside.start()
        found = stream(stage, who, pair, order)
        aside.join()
    rails[-1].up()
    back = plan.done[1][1]
    after = [row[0] for row in found.arrivals.rows if row[0] >= back]
    return {
        "resume_ms": (min(after) - back) / MS if after else 1e6,
        "wrong": float(found.wrong()),
        "unexplained": float(order["expiring"] - expiry.get("ended", 0)),
        "unbalanced": unbalanced(stage),
    }


def unbalanced(stage: Stage) -> float:
    """Return 0 where the audit of both nodes balances, else 1."""
    with stage.nodes().client(0) as client:
        return 0.0 if client.audit().get("balanced") else 1.0


# ------------------------------------------------------------------ control beside bulk
def beside(stage: Stage, who: str, order: Order) -> Figures:
    """Round trips of 64 B with nothing beside them, then with all rails full."""
    pings = {"run": "pings", "size": order["size"], "seconds": order["seconds"]}
    if who != FABRIC:
        pair = stage.pair(who)
        idle, busy = (trips(stage, who, pair, {**pings, "beside": b}) for b in (False, True))
    else:
        pair, bulk = stage.pair(who, part="ping"), stage.pair(who)
        warm(stage, who, bulk, order)
        idle = trips(stage, who, pair, pings)
        flow = {**order, "seconds": order["seconds"] + 0.6}
        aside = threading.Thread(target=lambda: stream(stage, who, bulk, flow), daemon=True)
        aside.start()
        busy = trips(stage, who, pair, pings)
        aside.join()
    calm, full = timeline.p99(idle) / 1e3, timeline.p99(busy) / 1e3
    return {"idle_p99_us": calm, "p99_us": full, "added_ms": max(0.0, full - calm) / 1e3}


def trips(stage: Stage, who: str, pair: Pair, order: Order) -> list[int]:
    """Return the time of each round trip in ns."""
    try:
        near, _ = pair.order(order, order["seconds"] + 30.0)
    except SubjectFailed:
        stage.drop(who)
        raise
    return [took for _, took in near["trips"]]


SCENARIOS: dict[str, Scenario] = {
    "steady": steady,
    "singly": singly,
    "alone": alone,
    "throttled": throttled,
    "lost": lost,
    "flapping": flapping,
    "dark": dark,
    "beside": beside,
}
