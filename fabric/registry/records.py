"""What the cluster agrees on, as frozen values: nodes, channels, endpoints, and the view that is pushed.

Pure values; msgspec carries them over control connections and into SQLite.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

NodeState = Literal["alive", "silent", "dead"]


class RailRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One address of a node: `interface` is its name there, `bits_per_second` what it claims (0: it does not say).

    `link` moves what is connected there: tcp, ucx, or ucx+TRANSPORTS.
    """

    host: str
    port: int
    interface: str = ""
    bits_per_second: int = 0
    link: str = "tcp"


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One node. `silent`: no lease lately (or not back since the registry restarted); its endpoints stay."""

    number: int
    name: str
    incarnation: int
    host: str = ""
    port: int = 0
    state: NodeState = "alive"
    links: tuple[str, ...] = ("tcp",)  #: that work there, the better first
    links_wanted: tuple[str, ...] = ()  #: that its operator asked for
    rails: tuple[RailRecord, ...] = ()  #: where it listens; the first is `host` and `port`

    def addresses(self) -> tuple[RailRecord, ...]:
        """Return where it listens: its rails, or the one address of a node that names no more; empty: nowhere."""
        return self.rails or ((RailRecord(host=self.host, port=self.port),) if self.port else ())


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """What a channel's messages went through under an older generation, kept while something of it is in flight."""

    generation: int
    transforms: tuple[str, ...] = ()


class CodecRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A codec at the ends of a channel: what `fabric.yaml` says of it, and its place `index` among the transforms."""

    name: str
    when: str = "pays"
    where: str = "remote"
    parameters: dict[str, Any] = {}
    index: int = 0


class ChannelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One channel as declared; `transforms` are in order of hops, `settings` the parameters of those that have any.

    `codecs` act at the ends of every hop, inside the processes: they are no hops of their own.

    `schema` is the canonical text; empty while the channel is known only from fabric.yaml, until the first
    endpoint brings it. `delivers` names the type after the last transform (empty: the same). `messages` and `bytes` are
    the credit a receiver grants (0: its own choice). `generation` is the plan that last changed how its messages go;
    `older` the graphs before it that still carry some. `is_planned`: a plan brought it in, so a plan may take it away.
    `is_transient`: it belongs to one measurement and goes with its ends, its counts too.
    """

    number: int = 0
    name: str
    type_name: str
    schema: str = ""
    type: int = 0
    reply_schema: str = ""
    schemas: tuple[str, ...] = ()  #: older versions of `schema` that ends use
    reply_schemas: tuple[str, ...] = ()
    pattern: str = "stream"
    delivery: str = "at_most_once"
    overflow: str = "block"
    klass: str = "token"
    route: str | None = None
    transforms: tuple[str, ...] = ()
    codecs: tuple[CodecRecord, ...] = ()
    settings: dict[str, dict[str, Any]] = {}
    delivers: str = ""
    idempotent: bool = False
    messages: int = 0
    bytes: int = 0
    deadline_s: float = 0.0  #: of a send that names none; 0: the fabric's default
    weight: int = 1  #: among the channels that fill the way to a node together
    generation: int = 0
    older: tuple[Graph, ...] = ()
    is_planned: bool = False
    is_transient: bool = False

    def graph(self, generation: int) -> tuple[str, ...] | None:
        """Return the transforms of a generation of this channel; None when it is not live."""
        if generation == self.generation:
            return self.transforms
        return next((g.transforms for g in self.older if g.generation == generation), None)


class EndpointRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One end of a channel. A requester is a sender, a responder a receiver; `reply_endpoint` is the way back.

    `transform` names the stage that owns it (then `stage` is its hop, and `generation` the one graph that it serves);
    user ends have none and serve every generation.
    """

    endpoint: int
    channel: int
    role: Literal["sender", "receiver"]
    node: int
    incarnation: int
    port: int
    port_name: str = ""
    reply_endpoint: int = 0
    stage: int = 0
    transform: str = ""
    generation: int = 0
    messages: int = 0
    bytes: int = 0
    type: int = 0  #: id of the schema that it uses, and of that of its replies
    reply_type: int = 0


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that flows are planned from, at one epoch. Epochs only grow, registry restarts included.

    `generation` is the plan in force, `live` it and the older ones that still carry messages, ascending.
    """

    epoch: int = 0
    generation: int = 0
    live: tuple[int, ...] = ()
    nodes: tuple[NodeRecord, ...] = ()
    channels: tuple[ChannelRecord, ...] = ()
    endpoints: tuple[EndpointRecord, ...] = ()

    def channel(self, name: str) -> ChannelRecord | None:
        """Return the channel called `name`."""
        return next((c for c in self.channels if c.name == name), None)

    def transient(self) -> set[int]:
        """Return the numbers of the transient channels."""
        return {c.number for c in self.channels if c.is_transient}

    def node(self, number: int) -> NodeRecord | None:
        """Return the node with this number."""
        return next((n for n in self.nodes if n.number == number), None)


class ArchivedCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Final ledger of one sender endpoint that is gone. `counts` are (end, reason, messages)."""

    endpoint: int
    channel: int
    accepted: int
    counts: tuple[tuple[int, int, int], ...] = ()
    delivered_bytes: int = 0


def view_from(plain: dict[str, Any]) -> View:
    """Rebuild a view from a frame; raises `msgspec.ValidationError` when it is none."""
    return msgspec.convert(plain, View)
