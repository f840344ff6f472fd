"""The path to every other node as chosen now; a downgrade is counted and told once, when it begins.

Belongs to the daemon's loop. The choice is made again with every view, so a node that comes back with a better link
gets it at its next connection.
"""

from __future__ import annotations

from typing import Any

from fabric.controlplane.context import Context
from fabric.paths.choice import LOCAL, Ends, Path, choose
from fabric.registry.records import NodeRecord, View


def ends_of(node: NodeRecord) -> Ends:
    """Return what a node brings to a path."""
    return Ends(node.name, node.links, node.links_wanted)


class NodePaths:
    """Node number → chosen path."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._paths: dict[int, Path] = {}
        self.downgrades = 0  #: since this daemon started

    def on_view(self, view: View) -> None:
        """Choose again for every node of a view; nodes that left are forgotten."""
        here = view.node(self._context.number)
        if here is None:
            return
        others = {n.number: n for n in view.nodes if n.number != here.number and n.state != "dead"}
        self._paths = {
            number: self._chosen(number, choose(ends_of(here), ends_of(node)), node.name)
            for number, node in others.items()
        }

    def count_downgrade(self) -> None:
        """Count one more: a rail to a node was lost."""
        self.downgrades += 1

    def _chosen(self, number: int, path: Path, name: str) -> Path:
        if path.is_downgrade and self._paths.get(number) != path:
            self.count_downgrade()
            self._context.events.add(
                "path downgraded",
                node=name,
                taken=path.taken or "none",
                preferred=path.preferred,
                reason=path.reason,
            )
        return path

    def to(self, number: int) -> Path:
        """Return the path to a node; before the first view that knows it, nothing is known."""
        if number == self._context.number:
            return LOCAL
        return self._paths.get(number, Path("", "", "the node is not in this node's view"))

    def row(self, number: int) -> dict[str, Any]:
        """Return the columns that listings show for the path to a node."""
        path = self.to(number)
        return {
            "path": path.taken,
            "path_preferred": path.preferred,
            "path_reason": path.reason,
        }
