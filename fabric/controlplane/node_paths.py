"""The path to every other node as chosen now; a downgrade is counted and told once, when it begins.

Belongs to the daemon's loop. The choice is made again with every view, so a node that comes back with a better link
gets it at its next connection.
"""

from __future__ import annotations

from typing import Any

from fabric.controlplane.context import Context
from fabric.links.rail_link import TCP, UCX, is_ucx
from fabric.paths.choice import LOCAL, Ends, Path, choose
from fabric.registry.records import NodeRecord, View

_BOTH = f"{TCP}+{UCX}"


def ends_of(node: NodeRecord) -> Ends:
    """Return what a node brings to a path."""
    return Ends(node.name, node.links, node.links_wanted)


def between(here: NodeRecord, there: NodeRecord) -> Path:
    """Return the path between two nodes: the better link, among those that the accepting one has rails of.

    Rails of both links are used side by side, each as fast as it is measured to be.
    """
    accepts, dials = sorted((here, there), key=lambda node: node.number)
    links = {UCX if is_ucx(rail.link) else TCP for rail in accepts.addresses()} or {TCP}
    path = choose(*(_narrowed(ends_of(node), links) for node in (here, there)))
    if links == {TCP, UCX} == links & set(dials.links) & set(accepts.links):
        return Path(
            _BOTH,
            _BOTH,
            "rails of both: each chunk goes by the one that is measured to finish it first",
        )
    return path


def _narrowed(ends: Ends, links: set[str]) -> Ends:
    return Ends(ends.name, tuple(each for each in ends.offers if each in links), ends.wants)


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
            number: self._chosen(number, between(here, node), node.name)
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
