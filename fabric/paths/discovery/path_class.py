"""How near two devices are, in NCCL's words, and by which way bytes go between them. Pure.

As NCCL does: fewest hops first, then the higher rate; the class is the worst link on the way. A path goes through a
third GPU over NVLink at most once. Unknown rates count as NCCL counts them, but only to order ways: the rate that is
returned is None as soon as one link's is unknown. All NVSwitches are one, as their fabric does not block.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from fabric.paths.discovery import rates
from fabric.paths.discovery.model import Device, Kind, LinkKind, Topology

_NVSWITCHES = "nvswitches"  # the node that stands for all of them
_ASSUMED_PCIE = 12e9  # third generation, 16 lanes, as NCCL takes it; to order ways, never to answer
_ASSUMED_FAST = 20e9
_ASSUMED_SMP = 6e9
_UNBOUND = float("inf")


class PathClass(enum.IntEnum):
    """NCCL's classes, the nearest first."""

    LOC = 0  #: the same device, or a NIC and its own port
    NVL = 1  #: NVLink or xGMI, also through NVSwitches
    NVB = 2  #: NVLink through a third GPU
    C2C = 3  #: the GPU's own link to its CPU
    PIX = 4  #: at most one PCIe switch
    PXB = 5  #: several PCIe switches, not the CPU
    PXN = 6  #: NVLink to the GPU beside the NIC, PCIe from there
    PHB = 7  #: through the CPU's PCIe host bridge
    SYS = 8  #: between NUMA nodes
    NET = 9  #: over the network
    DIS = 10  #: not joined


MEANINGS = {
    PathClass.LOC: "same device",
    PathClass.NVL: "NVLink or xGMI",
    PathClass.NVB: "NVLink through another GPU",
    PathClass.C2C: "GPU to CPU, chip to chip",
    PathClass.PIX: "at most one PCIe switch",
    PathClass.PXB: "several PCIe switches",
    PathClass.PXN: "NVLink to a GPU near the NIC",
    PathClass.PHB: "PCIe through the CPU",
    PathClass.SYS: "across NUMA nodes",
    PathClass.NET: "over the network",
    PathClass.DIS: "not joined",
}


@dataclass(frozen=True, slots=True)
class DevicePath:
    """A way between two devices.

    Attributes
    ----------
    hops : tuple of str
        Ids of the devices on the way, both ends included.
    rate : float, optional
        bytes/s of its narrowest link; None where a link's rate is not known.
    narrowest : tuple of str
        The two ends of that link.
    """

    cls: PathClass
    hops: tuple[str, ...]
    rate: float | None = None
    narrowest: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class _Edge:
    target: str
    cls: PathClass
    rate: float | None  # known
    weight: float  # known or assumed


@dataclass(frozen=True, slots=True)
class _Way:
    hops: tuple[str, ...]
    cls: PathClass
    weight: float
    edges: tuple[_Edge, ...]


class Paths:
    """The paths of a topology; those from one device are found together, at first use, and kept."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._from: dict[str, dict[str, _Way]] = {}

    def between(self, source: str, target: str, *, relay: bool = True) -> DevicePath:
        """Return the path from one device to another, by their ids.

        Parameters
        ----------
        relay : bool
            Whether a GPU may reach a NIC through a GPU beside it (`PXN`), where that is faster or avoids the CPU.

        Raises
        ------
        KeyError
            There is no such device.
        """
        self._topology.by_id[source], self._topology.by_id[target]
        if source == target:
            return DevicePath(PathClass.LOC, (source,))
        way = self._ways(source).get(self._node(target))
        if relay and way is not None and self._topology.by_id[source].kind is Kind.gpu:
            way = self._relayed(source, target, way)
        if way is None:
            return self._over_network(source, target)
        return self._path(source, target, way)

    def cls(self, source: str, target: str) -> PathClass:
        """Return the class of the path between two devices."""
        return self.between(source, target).cls

    def _node(self, id: str) -> str:
        return _NVSWITCHES if self._topology.by_id[id].kind is Kind.nvswitch else id

    def _path(self, source: str, target: str, way: _Way) -> DevicePath:
        named = {_NVSWITCHES: next((d.id for d in self._topology.of_kind(Kind.nvswitch)), "")}
        hops = tuple(named.get(hop, hop) for hop in way.hops)
        known = [edge.rate for edge in way.edges]
        if any(rate is None for rate in known):
            return DevicePath(way.cls, hops)
        least = min(range(len(known)), key=lambda index: known[index] or 0)
        rate = known[least]
        if rate == _UNBOUND:
            return DevicePath(way.cls, hops)
        return DevicePath(way.cls, hops, rate, (hops[least], hops[least + 1]))

    def _over_network(self, source: str, target: str) -> DevicePath:
        """Two devices that nothing joins here may meet outside, when each reaches a port of its own."""
        ports = {device.id for device in self._topology.of_kind(Kind.port)}
        ends = [self._ways(self._node(end)).keys() | {end} for end in (source, target)]
        is_joined = all(ports & reached for reached in ends)
        return DevicePath(PathClass.NET if is_joined else PathClass.DIS, (source, target))

    def _relayed(self, source: str, target: str, way: _Way) -> _Way:
        """Return the way through a GPU near the NIC, where NCCL would take it, else `way`."""
        if self._topology.by_id[target].kind not in (Kind.nic, Kind.port):
            return way
        found = way
        for gpu in self._topology.of_kind(Kind.gpu):
            first = self._ways(source).get(gpu.id)
            second = self._ways(gpu.id).get(target)
            if gpu.id == source or first is None or second is None:
                continue
            if first.cls > PathClass.NVL or second.cls > PathClass.PXB:
                continue
            joined = _Way(
                first.hops + second.hops[1:], PathClass.PXN,
                min(first.weight, second.weight), first.edges + second.edges,
            )  # fmt: skip
            # Worth it only where it is faster, or spares the way through the CPU.
            if found is way and not (second.weight > way.weight or way.cls > PathClass.PXB):
                continue
            if found is way or joined.weight > found.weight:
                found = joined
        return found

    def _ways(self, source: str) -> dict[str, _Way]:
        source = self._node(source) if source != _NVSWITCHES else source
        if source not in self._from:
            self._from[source] = self._search(source)
        return self._from[source]

    def _search(self, source: str) -> dict[str, _Way]:
        """Breadth first, as NCCL's `ncclTopoSetPaths`: a later way of as few hops wins when it is faster."""
        found = {source: _Way((source,), PathClass.LOC, _UNBOUND, ())}
        level = [source]
        while level:
            following: dict[str, None] = {}
            for here in level:
                for edge in self._edges.get(here, ()):
                    way = self._step(source, found[here], edge)
                    before = found.get(edge.target)
                    if way is None or (before and len(before.hops) < len(way.hops)):
                        continue
                    if before is None or before.weight < way.weight:
                        found[edge.target] = way
                        following[edge.target] = None
            level = list(following)
        del found[source]
        return found

    def _step(self, source: str, way: _Way, edge: _Edge) -> _Way | None:
        here, there = self._kind(way.hops[-1]), self._kind(edge.target)
        if edge.target in way.hops:
            return None
        through_nic = here is Kind.nic and there is not Kind.port and len(way.hops) > 1
        if through_nic and self._kind(way.hops[-2]) is not Kind.port:
            return None  # a NIC passes nothing on to another device
        through_gpu = here is Kind.gpu and way.hops[-1] != source
        if through_gpu and not (
            edge.cls is PathClass.NVL
            and there is Kind.gpu
            and len(way.hops) == 2
            and self._kind(source) is Kind.gpu
        ):
            return None
        cls = edge.cls
        if here is Kind.switch and there is Kind.switch:
            cls = PathClass.PXB
        if edge.cls is PathClass.PIX and Kind.cpu in (here, there):
            cls = PathClass.PHB
        if through_gpu:
            cls = PathClass.NVB
        weight = min(way.weight, edge.weight)
        return _Way((*way.hops, edge.target), max(way.cls, cls), weight, (*way.edges, edge))

    def _kind(self, node: str) -> Kind:
        return Kind.nvswitch if node == _NVSWITCHES else self._topology.by_id[node].kind

    @cached_property
    def _edges(self) -> dict[str, list[_Edge]]:
        edges: dict[str, dict[tuple[str, PathClass], _Edge]] = {}
        for source, target, cls, rate, assumed in self._both_ways():
            # Links to several NVSwitches are one link to all of them.
            here = edges.setdefault(source, {})
            before = here.get((target, cls))
            weight = assumed if rate is None else rate
            if before is not None:
                rate = None if rate is None or before.rate is None else rate + before.rate
                weight += before.weight
            here[target, cls] = _Edge(target, cls, rate, weight)
        return {source: list(found.values()) for source, found in edges.items()}

    def _both_ways(self) -> Iterator[tuple[str, str, PathClass, float | None, float]]:
        """Yield every link from each end: source, target, class, rate, rate to be taken for an unknown one."""
        classes = {
            LinkKind.pcie: (PathClass.PIX, _ASSUMED_PCIE),
            LinkKind.pci_peer: (PathClass.PIX, _ASSUMED_PCIE),
            LinkKind.smp: (PathClass.SYS, _ASSUMED_SMP),
            LinkKind.nvlink: (PathClass.NVL, _ASSUMED_FAST),
            LinkKind.xgmi: (PathClass.NVL, _ASSUMED_FAST),
            LinkKind.c2c: (PathClass.C2C, _ASSUMED_FAST),
        }
        told: set[tuple[str, str]] = set()
        for link in self._topology.links:
            source, target = self._node(link.source), self._node(link.target)
            is_fast = link.kind in (LinkKind.nvlink, LinkKind.xgmi)
            if source == target or (_NVSWITCHES in (source, target) and not is_fast):
                continue
            cls, assumed = classes[link.kind]
            assumed *= link.count
            yield source, target, cls, link.rate, assumed
            if is_fast:
                told.add((link.source, link.target))
            else:
                yield target, source, cls, link.rate, assumed
        for link in self._topology.links:
            is_fast = link.kind in (LinkKind.nvlink, LinkKind.xgmi)
            if is_fast and link.source != link.target and (link.target, link.source) not in told:
                # Only one side tells of it, as those to NVSwitches do.
                source, target = self._node(link.source), self._node(link.target)
                if source != target:
                    yield target, source, PathClass.NVL, link.rate, _ASSUMED_FAST * link.count
        yield from self._to_ports()

    def _to_ports(self) -> Iterator[tuple[str, str, PathClass, float | None, float]]:
        for device in self._topology.devices:
            parent = self._topology.by_id.get(device.parent or "")
            if parent is None or device.id in self._topology.uplinks:
                continue
            is_port = device.kind is Kind.port
            if not is_port and device.kind is not Kind.nic:
                continue
            cls = PathClass.LOC if is_port else PathClass.PIX
            rate = device.rate if is_port else _UNBOUND
            for source, target in ((parent.id, device.id), (device.id, parent.id)):
                yield source, target, cls, rate, _ASSUMED_PCIE


def matrix(
    topology: Topology, rows: Iterable[Device], columns: Iterable[Device]
) -> list[list[PathClass]]:
    """Return the class of the path between each two of the devices, row by row."""
    paths = Paths(topology)
    columns = list(columns)
    return [[paths.cls(row.id, column.id) for column in columns] for row in rows]


def describe(topology: Topology, path: DevicePath) -> str:
    """Return a path in words: its class, its devices, its rate and what bounds it."""
    names = [topology.by_id[hop].name for hop in path.hops]
    told = f"{path.cls.name} ({MEANINGS[path.cls]}): {' → '.join(names)}"
    if path.rate is None or path.narrowest is None:
        return told
    ends = " – ".join(topology.by_id[end].name for end in path.narrowest)
    return f"{told}, {rates.text(path.rate)} (bounded by {ends})"
