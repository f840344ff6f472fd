"""The topology of one machine: its devices, the links between them, its rails. Values only: no IO, no clock.

The shape follows NCCL's: NUMA nodes are roots, below them PCIe switches, GPUs and NICs, below NICs their ports.
Root ports and downstream ports of switches are no devices of their own. Rates are what the hardware declares, in
bytes/s of one direction; what is not known is None, never a guess. Measured rates are not kept here.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property


class Kind(enum.StrEnum):
    """What a device is."""

    cpu = "cpu"  #: a NUMA node: its cores and its memory
    switch = "switch"  #: a PCIe switch (or a bridge to another bus)
    gpu = "gpu"  #: a GPU or another accelerator
    nvswitch = "nvswitch"  #: joins NVLinks
    nic = "nic"  #: a network function
    port = "port"  #: an interface of the system or a port of an RDMA device
    pci = "pci"  #: a PCI function of which the source does not say what it is


class LinkKind(enum.StrEnum):
    """What joins two devices."""

    pcie = "pcie"  #: from a device up to what it hangs below
    nvlink = "nvlink"
    xgmi = "xgmi"
    c2c = "c2c"  #: a GPU's own link to its CPU
    smp = "smp"  #: between NUMA nodes: UPI, QPI, Infinity Fabric
    pci_peer = "pci_peer"  #: between PCIe switches, not through the CPU


@dataclass(frozen=True, slots=True)
class Device:
    """One device.

    Attributes
    ----------
    id : str
        Its kind and its place: ``gpu:0000:3b:00.0``, ``cpu:0``, ``port:eth0``; the same at every look.
    parent : str, optional
        What it hangs below; None for NUMA nodes and for interfaces that no hardware carries.
    name : str
        Short, for people: ``gpu0``, ``numa1``, ``eth0``.
    model : str
        What it is called by its maker, as far as that is known.
    numa : int, optional
        Number of the NUMA node that it is near to.
    address : str
        PCI address, or empty.
    state : str
        Of a port: ``up``, ``down`` or ``unknown``.
    rate : float, optional
        Of a port: bytes/s of its line.
    attributes : mapping
        What the source says besides, as text, under the source's names.
    """

    id: str
    kind: Kind
    parent: str | None = None
    name: str = ""
    model: str = ""
    numa: int | None = None
    address: str = ""
    class_code: int | None = None
    vendor_id: int | None = None
    device_id: int | None = None
    state: str = ""
    rate: float | None = None
    attributes: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Link:
    """One link, or several alike between the same two devices.

    Attributes
    ----------
    rate : float, optional
        bytes/s of one direction, of all `count` together.
    width, speed : int, float, optional
        Of PCIe: lanes in use, and GT/s of a lane when it is busy (an idle GPU clocks its link down).
    width_max : int, optional
        Lanes that both ends have.
    """

    kind: LinkKind
    source: str
    target: str
    rate: float | None = None
    count: int = 1
    width: int | None = None
    speed: float | None = None
    width_max: int | None = None

    @property
    def is_narrowed(self) -> bool:
        """Tell whether fewer lanes run than both ends have."""
        return bool(self.width and self.width_max and self.width < self.width_max)


@dataclass(frozen=True, slots=True)
class Rail:
    """An interface seen as a way for traffic to other nodes.

    Attributes
    ----------
    interface : str
        Name of the system's interface, or of the RDMA port (``mlx5_0/1``).
    device : str
        Id of the port.
    transport : str
        ``tcp`` or ``rdma``.
    is_usable : bool
        Whether traffic can go now; `reason` says why, or why not.
    """

    interface: str
    device: str
    transport: str
    is_usable: bool
    reason: str
    rate: float | None = None
    numa: int | None = None
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Note:
    """Something odd that was met while reading; `where` is a line of a file or a path."""

    where: str
    what: str


@dataclass(frozen=True)
class Topology:
    """One machine, as one source told of it at one time.

    Attributes
    ----------
    source : str
        ``sysfs``, ``nccl`` or ``hwloc``.
    """

    name: str = ""
    source: str = ""
    devices: tuple[Device, ...] = ()
    links: tuple[Link, ...] = ()
    rails: tuple[Rail, ...] = ()
    notes: tuple[Note, ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict, hash=False)

    @cached_property
    def by_id(self) -> dict[str, Device]:
        """Devices by their ids."""
        return {device.id: device for device in self.devices}

    @cached_property
    def _below(self) -> dict[str | None, list[Device]]:
        below: dict[str | None, list[Device]] = {}
        for device in self.devices:
            below.setdefault(device.parent, []).append(device)
        return below

    def children(self, parent: str | None) -> list[Device]:
        """Return what hangs directly below a device (None: below none), in order."""
        return self._below.get(parent, [])

    def of_kind(self, *kinds: Kind) -> list[Device]:
        """Return the devices of these kinds, in order."""
        return [device for device in self.devices if device.kind in kinds]

    def find(self, word: str) -> Device | None:
        """Return the device with this id, name or PCI address, or None."""
        if word in self.by_id:
            return self.by_id[word]
        return next((d for d in self.devices if word in (d.name, d.address)), None)

    @cached_property
    def uplinks(self) -> dict[str, Link]:
        """The PCIe link of each device that has one, by the device's id."""
        return {link.source: link for link in self.links if link.kind is LinkKind.pcie}

    def links_from(self, source: str, *kinds: LinkKind) -> Iterator[Link]:
        """Yield a device's links of these kinds that lead away from it."""
        return (link for link in self._from.get(source, ()) if link.kind in kinds)

    @cached_property
    def _from(self) -> dict[str, list[Link]]:
        found: dict[str, list[Link]] = {}
        for link in self.links:
            found.setdefault(link.source, []).append(link)
        return found


class Names:
    """Gives each device an id of its own: a second one at the same place becomes ``…#2``."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)
        self._counts: dict[Kind, int] = {}

    def id(self, kind: Kind, place: str) -> str:
        """Return an id that nobody else has."""
        wanted = found = f"{kind}:{place}"
        number = 1
        while found in self._taken:
            number += 1
            found = f"{wanted}#{number}"
        self._taken.add(found)
        return found

    def next(self, kind: Kind) -> str:
        """Return the short name of the next device of a kind: ``nic0``, then ``nic1``."""
        number = self._counts.get(kind, 0)
        self._counts[kind] = number + 1
        return f"{kind}{number}"
