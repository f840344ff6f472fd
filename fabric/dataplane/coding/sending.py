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
        """Tell whether every receiver known is on this node, and the codec acts between nodes only."""
        if self.use.when == "never":
            return True
        flows = self._sender.flows_known()
        own = self._sender.endpoint >> _NODE_SHIFT
        return (
            self.use.where == "remote"
            and bool(flows)
            and all(f["target_endpoint"] >> _NODE_SHIFT == own for f in flows)
        )


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
        own, targets = sender.endpoint >> _NODE_SHIFT, sender.flows_known()
        nodes = {flow["target_endpoint"] >> _NODE_SHIFT for flow in targets}
        rates = [sender.path_rates.get(node, 0.0) for node in nodes if node != own]
        is_remote = own not in nodes or (use.when == "always" and nodes != {own})
        queued = sum(flow["outstanding"] for flow in sender.native.flows())
        return Surroundings(is_remote, queued, min(rates, default=0.0))

    return SenderCoder(sender, use, export, make(export, use.parameters), surroundings)
