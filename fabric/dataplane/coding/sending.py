"""A sender's coder, joined to what the port knows: its flows, and the rates of the paths to their nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fabric.abc.transform_checks import make
from fabric.dataplane.coding.encode import CodecUse, Coder, Surroundings
from fabric.dataplane.coding.installed import edge_codec, require

if TYPE_CHECKING:
    from fabric.dataplane.sender import Sender

_NODE_SHIFT = 32  #: an endpoint's number begins with that of its node


class SenderCoder(Coder):
    """The coder of one sender.

    `is_idle`: nothing that is sent now could be encoded, so messages may go by the shortest way.
    """

    def __init__(self, sender: Sender[Any], *parts: Any) -> None:
        super().__init__(sender.channel, sender.type, *parts)
        self._sender = sender

    def is_idle(self) -> bool:
        """Tell whether nothing that is sent now can be worth encoding, so that messages may go by the shortest way.

        So it is while every receiver known is on this node: what they get is memory that lies there already.
        """
        if self.use.when == "never":
            return True
        nodes, own = nodes_of(self._sender)
        return nodes == {own} and (self.use.where == "remote" or self.use.when == "pays")

    def explain(self) -> dict[str, Any]:
        """Return what was decided of late, and where messages go by now."""
        nodes, own = nodes_of(self._sender)
        rates = self._sender.path_rates
        return {
            **super().explain(),
            "is_idle": self.is_idle(),
            "paths": {str(node): rates.get(node, 0.0) for node in sorted(nodes - {own})},
        }


def nodes_of(sender: Sender[Any]) -> tuple[set[int], int]:
    """Return the nodes of a sender's receivers, and its own."""
    nodes = {flow["target_endpoint"] >> _NODE_SHIFT for flow in sender.flows_known()}
    return nodes, sender.endpoint >> _NODE_SHIFT


def coder_for(sender: Sender[Any], codecs: Sequence[Mapping[str, Any]]) -> SenderCoder | None:
    """Return the coder of a sender for the codecs of its channel, None without any.

    Raises
    ------
    PluginError, ContractError
        The codec is not installed here, or its parameters are wrong.
    """
    if not codecs:
        return None
    require(sender.channel, codecs)
    use = CodecUse.read(codecs[0])
    export = edge_codec(use.name)

    def surroundings() -> Surroundings:
        nodes, own = nodes_of(sender)
        rates = [sender.path_rates.get(node, 0.0) for node in nodes if node != own]
        is_remote = own not in nodes or (use.when == "always" and nodes != {own})
        queued = sum(flow["outstanding"] for flow in sender.native.flows())
        return Surroundings(is_remote, queued, min(rates, default=0.0))

    return SenderCoder(sender, use, export, make(export, use.parameters), surroundings)
