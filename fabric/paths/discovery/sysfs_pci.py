"""The PCI tree from sysfs: GPUs, NICs and NVSwitches with the switches above them, and the links between.

As NCCL has it, a PCIe switch is one device: its upstream port. Root ports and downstream ports are left out, and so is
a switch with nothing below it that is of interest. Of a bridge sysfs does not say which port it is; its depth does:
root port, upstream, downstream, upstream, and so on, from the host bridge down.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.paths.discovery import numa, pci, rates
from fabric.paths.discovery.model import Device, Kind, Link, LinkKind, Names
from fabric.paths.discovery.roots import Sysfs

_FOLDER = "bus/pci/devices"
_WANTED = (Kind.gpu, Kind.nic, Kind.nvswitch)


@dataclass(slots=True)
class PciTree:
    """What was found: devices, parents first, and their links upwards."""

    devices: list[Device]
    links: list[Link]


def read(sysfs: Sysfs, nodes: list[Device], names: Names) -> PciTree:
    """Return the functions that traffic may use, and what they hang below."""
    reader = _Reader(sysfs, nodes, names)
    for address in sysfs.names(_FOLDER) or ():
        place = sysfs.real(f"{_FOLDER}/{address}")
        if place is not None and pci.is_address(address):
            reader.function(place)
    return PciTree(reader.devices, reader.links)


class _Reader:
    def __init__(self, sysfs: Sysfs, nodes: list[Device], names: Names) -> None:
        self._sysfs = sysfs
        self._nodes = nodes
        self._names = names
        self._done: dict[str, Device] = {}  # by folder
        self.devices: list[Device] = []
        self.links: list[Link] = []

    def function(self, place: str) -> None:
        """Take a function, if it is one of interest, and the switches above it."""
        class_code = self._sysfs.number(f"{place}/class", 16)
        kind = pci.kind_of(class_code, self._sysfs.number(f"{place}/vendor", 16))
        if class_code is not None and kind in _WANTED:
            self._add(place, kind)

    def _add(self, place: str, kind: Kind) -> Device:
        if place in self._done:
            return self._done[place]
        chain = [part for part in place.split("/") if pci.is_address(part)]
        above = _switch_above(place, len(chain) - 1)
        root = numa.nearest(self._sysfs, place, self._nodes)
        parent = self._add(above, Kind.switch) if above else root
        if root is numa.UNKNOWN and root.id not in {d.id for d in self.devices}:
            self.devices.append(root)
        device = self._device(place, chain[-1], kind, parent, root)
        self._done[place] = device
        self.devices.append(device)
        self.links.append(self._link(place, device, parent))
        return device

    def _device(self, place: str, address: str, kind: Kind, parent: Device, root: Device) -> Device:
        vendor = self._sysfs.number(f"{place}/vendor", 16)
        product = self._sysfs.number(f"{place}/device", 16)
        subsystem = {
            name: text
            for name in ("subsystem_vendor", "subsystem_device")
            if (text := self._sysfs.text(f"{place}/{name}"))
        }
        return Device(
            self._names.id(kind, address),
            kind,
            parent.id,
            address if kind is Kind.switch else self._names.next(kind),
            pci.model_name(vendor, product),
            root.numa,
            address,
            self._sysfs.number(f"{place}/class", 16),
            vendor,
            product,
            attributes=subsystem,
        )

    def _link(self, place: str, device: Device, parent: Device) -> Link:
        """Return the link up: as fast as both of its ends are when busy, as wide as it runs now."""
        port = place.rpartition("/")[0]
        ends = [place, port] if pci.is_address(port.rpartition("/")[2]) else [place]
        speeds = [
            rates.parse_pcie_speed(self._sysfs.text(f"{end}/max_link_speed") or "") for end in ends
        ]
        widths = [self._sysfs.number(f"{end}/max_link_width") for end in ends]
        width_max = min((w for w in widths if w and w <= rates.PCIE_LANES_MAX), default=None)
        width = self._sysfs.number(f"{place}/current_link_width")
        width = width if width and width <= rates.PCIE_LANES_MAX else width_max
        speed = min((s for s in speeds if s), default=None)
        return Link(
            LinkKind.pcie,
            device.id,
            parent.id,
            rates.pcie(speed, width),
            width=width,
            speed=speed,
            width_max=width_max,
        )


def _switch_above(place: str, depth: int) -> str | None:
    """Return the folder of the switch that a function hangs below, or None for a host bridge.

    Parameters
    ----------
    depth : int
        How many bridges are above it.
    """
    if depth < 2:
        return None
    parts = place.split("/")
    bridges = [index for index, part in enumerate(parts) if pci.is_address(part)]
    # Bridges 1, 3, 5 … from the top are ports; 2, 4 … are switches.
    return "/".join(parts[: bridges[depth - (2 if depth % 2 else 1)] + 1])
