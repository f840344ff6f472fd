"""The channels of the soak and who is at their ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Channel:
    """A channel of the soak and how it is declared."""

    name: str
    declare: dict[str, Any]
    roles: tuple[str, str] = ("source", "sink")
    keyed: bool = False  # whether the order of each key is promised
    carries: str = "part"  # one of `role.CARRIED`
    share: int = 1  # how often it is drawn
    answerers: int = 1  # how many of its second role are there before anybody else comes


ASKING, SCATTERING = ("asker", "answerer"), ("scatterer", "expert")
ONCE, LEAST = "at_most_once", "at_least_once"
CHANNELS = (
    Channel("s1", {"pattern": "stream", "delivery": LEAST, "klass": "token"}, keyed=True),
    Channel("s0", {"pattern": "stream", "delivery": ONCE, "klass": "embedding"}, keyed=True),
    Channel("q1", {"pattern": "queue", "delivery": LEAST, "klass": "bulk"}),
    Channel("q0", {"pattern": "queue", "delivery": ONCE, "klass": "token"}),
    Channel("turned", {}, keyed=True),  # these three are declared by the plan
    Channel("into", {}, ("source", "")),
    Channel("outof", {}, ("", "sink")),
    Channel("r", {"pattern": "request"}, ASKING, carries="ask"),
    Channel(
        "x0", {"pattern": "scatter", "klass": "embedding"}, SCATTERING, carries="rows", answerers=2
    ),
    Channel(
        "x1",
        {"pattern": "scatter", "delivery": LEAST, "klass": "token"},
        SCATTERING,
        carries="rows",
        share=2,
        answerers=3,
    ),
    Channel(
        "offers",
        {"pattern": "broadcast", "overflow": "drop_oldest", "klass": "token"},
        ("exposer", "getter"),
        carries="offer",
        share=3,
        answerers=2,
    ),
)
# Offered by later versions than the oldest that this runs against: taken in when the node accepts the declaration.
TRIED = (
    Channel("b", {"pattern": "broadcast", "delivery": ONCE, "klass": "token"}),
    Channel(
        "old", {"pattern": "queue", "delivery": ONCE, "overflow": "drop_oldest", "klass": "token"}
    ),
    Channel(
        "new", {"pattern": "stream", "delivery": ONCE, "overflow": "drop_newest", "klass": "token"}
    ),
    Channel("no", {"pattern": "queue", "delivery": LEAST, "overflow": "reject", "klass": "token"}),
)
# Never harmed. A sentinel's two ends are on one node, and nothing that happens elsewhere may touch it.
# The veterans stay for the whole soak, on two nodes: what a client holds after a long time shows in them.
SENTINELS = {
    node: Channel(
        f"sentinel_{node}", {"pattern": "request", "klass": "control"}, ASKING, carries="ask"
    )
    for node in "ab"
}
VETERANS = Channel("veterans", {"pattern": "queue", "delivery": LEAST, "klass": "embedding"})
