"""Read hwloc's XML, versions 2 and 3 (`lstopo file.xml`). Version 1 is refused: its NUMA nodes are parents of cores.

Taken are NUMA nodes, PCI devices with the switches above them, their OS devices, and the NVLink bandwidths that hwloc
keeps as distances. As from sysfs, a PCIe switch is its upstream port; ports alone are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from fabric.paths.discovery import cpus, pci, rates
from fabric.paths.discovery.model import Device, Kind, Link, LinkKind, Names, Note, Topology
from fabric.paths.discovery.numa import UNKNOWN
from fabric.paths.discovery.xml_source import Element, Refused

_PCI_TYPE = re.compile(
    r"([0-9a-f]{4}) \[([0-9a-f]{4}):([0-9a-f]{4})\] \[([0-9a-f]{4}):([0-9a-f]{4})\]", re.I
)
_WANTED = (Kind.gpu, Kind.nic, Kind.nvswitch)
_FAR_CPU = ("Package", "NUMANode")
#: kinds of an OS device that are a network's, as numbers of version 2 and as bits of version 3
_NET_2, _OPENFABRICS_2 = 2, 3
_NET_3, _OPENFABRICS_3 = 16, 32
_BANDWIDTHS = {"NVLinkBandwidth": LinkKind.nvlink, "XGMIBandwidth": LinkKind.xgmi}
_LOCAL = 1_000_000  # what hwloc writes for a device's distance to itself


def read(root: Element, name: str = "") -> Topology:
    """Return the topology of a ``<topology>`` element.

    Raises
    ------
    Refused
        It is of version 1 or of one that is not known, or a value in it cannot be read; names the line.
    """
    version = root.get("version")
    major = version.partition(".")[0]
    if major not in ("2", "3"):
        known = "hwloc 1" if not version else f"version {version[:20]!r}"
        raise Refused(
            root.line, f"{known}; versions 2 and 3 are read: export it anew with hwloc 2 or newer"
        )
    reader = _Reader(int(major))
    for machine in root.named("object"):
        reader.nodes_of(machine)
        reader.walk(machine, None)
    reader.distances(root)
    return reader.topology(name, version)


@dataclass(slots=True)
class _Above:
    """What a PCI object hangs below: bridges so far, the switch or NUMA node, and that node."""

    bridges: int
    parent: Device
    root: Device


class _Reader:
    def __init__(self, major: int) -> None:
        self._major = major
        self._names = Names()
        self._nodes: dict[int, Device] = {}
        self._by_index: dict[str, Device] = {}  # gp_index of whatever leads to a device
        self._switches: dict[str, tuple[Device, Link]] = {}  # not yet known to be of interest
        self.devices: list[Device] = []
        self.links: list[Link] = []
        self.notes: list[Note] = []

    def nodes_of(self, machine: Element) -> None:
        """Read every NUMA node, wherever it hangs."""
        processor = ""
        for element in _all(machine):
            if element.get("type") == "Package":
                processor = _infos(element).get("CPUModel", processor)
            if element.get("type") == "NUMANode":
                self._node(element, processor)

    def _node(self, element: Element, processor: str) -> None:
        number = element.number("os_index")
        if number is None or number in self._nodes:
            raise Refused(element.line, "a NUMANode without an os_index of its own")
        try:
            own = cpus.list_text(cpus.parse_mask(element.get("cpuset")))
        except ValueError as error:
            raise Refused(element.line, f"cpuset: {error}") from error
        attributes = {"cpus": own, "memory_bytes": element.get("local_memory")}
        self._nodes[number] = Device(
            self._names.id(Kind.cpu, str(number)),
            Kind.cpu,
            None,
            f"numa{number}",
            processor,
            number,
            attributes={key: value for key, value in attributes.items() if value},
        )

    def walk(self, element: Element, above: _Above | None) -> None:
        """Read an object and all below it."""
        kind = element.get("type")
        near = self._near(element)
        if near is not None:
            self._by_index[f"{kind}:{element.get('gp_index')}"] = near
        here = above
        if kind == "Bridge":
            here = self._bridge(element, above)
        elif kind == "PCIDev":
            self._function(element, above or self._below_unknown())
            return
        for child in element.named("object"):
            if here is None and child.get("type") in ("Bridge", "PCIDev"):
                root = near or (self._only_node() if kind == "Machine" else None)
                self.walk(child, _Above(0, root or self._unknown(), root or self._unknown()))
            else:
                self.walk(child, here)

    def _near(self, element: Element) -> Device | None:
        """Return the NUMA node that an object with a nodeset lies in, where it is one alone."""
        if not element.get("nodeset"):
            return None
        try:
            numbers = cpus.parse_mask(element.get("nodeset"))
        except ValueError as error:
            raise Refused(element.line, f"nodeset: {error}") from error
        return self._nodes.get(min(numbers)) if len(numbers) == 1 else None

    def _only_node(self) -> Device | None:
        return next(iter(self._nodes.values())) if len(self._nodes) == 1 else None

    def _unknown(self) -> Device:
        self._nodes.setdefault(-1, UNKNOWN)
        return UNKNOWN

    def _below_unknown(self) -> _Above:
        return _Above(0, self._unknown(), self._unknown())

    def _bridge(self, element: Element, above: _Above | None) -> _Above:
        above = above or self._below_unknown()
        if not element.get("pci_busid"):  # the host bridge
            return above
        bridges = above.bridges + 1
        if bridges % 2:  # a root port, or a downstream port
            return replace(above, bridges=bridges)
        device, link = self._described(element, Kind.switch, above)
        self._switches[device.id] = (device, link)
        return _Above(bridges, device, above.root)

    def _function(self, element: Element, above: _Above) -> None:
        class_code, vendor, _ = self._type(element)
        kind = pci.kind_of(class_code, vendor)
        if element.get("subtype") == "NVSwitch":
            kind = Kind.nvswitch
        if class_code is None or kind not in _WANTED:
            return
        self._keep(above.parent)
        device, link = self._described(element, kind, above)
        device = self._with_os_devices(device, element)
        self.devices.append(device)
        self.links.append(link)
        self._by_index[f"PCIDev:{element.get('gp_index')}"] = device
        for child in element.named("object"):
            self._by_index[f"OSDev:{child.get('gp_index')}"] = device
            if kind is Kind.nic:
                self._port(child, device)

    def _keep(self, switch: Device) -> None:
        """Take a switch and those above it, now that something of interest hangs below."""
        found = self._switches.pop(switch.id, None)
        if found is None:
            return
        device, link = found
        above = self._switches.get(device.parent or "")
        if above is not None:
            self._keep(above[0])
        self.devices.append(device)
        self.links.append(link)

    def _type(self, element: Element) -> tuple[int | None, int | None, int | None]:
        match = _PCI_TYPE.match(element.get("pci_type"))
        if match is None:
            raise Refused(element.line, f'pci_type="{element.get("pci_type")[:60]}" cannot be read')
        return int(match[1], 16) << 8, int(match[2], 16), int(match[3], 16)

    def _described(self, element: Element, kind: Kind, above: _Above) -> tuple[Device, Link]:
        try:
            address = pci.normal_address(element.get("pci_busid"))
            rate = float(element.get("pci_link_speed") or 0) * 1e9 or None
        except ValueError as error:
            raise Refused(element.line, str(error)) from error
        class_code, vendor, product = self._type(element)
        device = Device(
            self._names.id(kind, address),
            kind,
            above.parent.id,
            address if kind is Kind.switch else self._names.next(kind),
            pci.model_name(vendor, product),
            above.root.numa,
            address,
            class_code,
            vendor,
            product,
        )
        width, speed = rates.pcie_shape(rate)
        return device, Link(
            LinkKind.pcie, device.id, above.parent.id, rate, width=width, speed=speed
        )

    def _with_os_devices(self, device: Device, element: Element) -> Device:
        """Return a GPU with what NVML, CUDA or ROCm told hwloc of it."""
        infos: dict[str, str] = {}
        for child in element.named("object"):
            infos |= _infos(child)
        known = {"NVIDIAUUID": "uuid", "AMDUUID": "uuid", "GPUModel": "model"}
        found = {name: infos[key] for key, name in known.items() if key in infos}
        model = found.pop("model", "") or device.model
        return replace(device, model=model, attributes={**device.attributes, **found})

    def _port(self, element: Element, nic: Device) -> None:
        said = element.number("osdev_type") or 0
        net, fabric = (_NET_2, _OPENFABRICS_2) if self._major == 2 else (_NET_3, _OPENFABRICS_3)
        is_rdma = said == fabric if self._major == 2 else bool(said & fabric)
        is_net = said == net if self._major == 2 else bool(said & net)
        if not is_rdma and not is_net:
            return
        infos = _infos(element)
        numbers = sorted(
            {key[4:-5] for key in infos if key.startswith("Port") and key.endswith("State")}
        )
        for number in numbers or ("",):
            self._one_port(element.get("name"), number, infos, is_rdma, nic)

    def _one_port(
        self, name: str, number: str, infos: dict[str, str], is_rdma: bool, nic: Device
    ) -> None:
        title = f"{name}/{number}" if number else name
        state = infos.get(f"Port{number}State", "")
        attributes = {
            "flavour": "rdma" if is_rdma else "physical",
            "name": name,
            "port": number,
            "mac": infos.get("Address", ""),
            "guid": infos.get("NodeGUID", ""),
        }
        self.devices.append(
            Device(
                self._names.id(Kind.port, title),
                Kind.port,
                nic.id,
                title,
                "",
                nic.numa,
                state="up" if state == "4" else "down" if state else "unknown",
                attributes={key: value for key, value in attributes.items() if value},
            )
        )

    def distances(self, root: Element) -> None:
        """Read NVLinks and xGMI links, which hwloc keeps as matrices of bandwidths in MB/s."""
        for element in root.named("distances2hetero", "distances2"):
            kind = _BANDWIDTHS.get(element.get("name"))
            if kind is None:
                continue
            ends = _words(element, "indexes")
            values = _words(element, "u64values")
            if len(ends) ** 2 != len(values) or len(ends) != element.number("nbobjs"):
                raise Refused(element.line, f"{len(values)} bandwidths between {len(ends)} objects")
            if element.get("type"):  # all of one type: the numbers alone are written
                ends = [f"{element.get('type')}:{end}" for end in ends]
            self._fast_links(element, kind, ends, values)

    def _fast_links(
        self, element: Element, kind: LinkKind, ends: list[str], values: list[str]
    ) -> None:
        devices = [self._end(end) for end in ends]
        for row, source in enumerate(devices):
            for column, target in enumerate(devices):
                text = values[row * len(ends) + column]
                rate = rates.whole(text)
                if rate is None or rate < 0:
                    raise Refused(element.line, f"{text[:20]!r} is no bandwidth")
                if not rate or rate >= _LOCAL or source is None or target is None:
                    continue
                if source is not target and source.kind is not Kind.cpu:
                    self.links.append(
                        Link(kind, source.id, target.id, rate * 1e6, _count(kind, rate))
                    )
        for end, device in zip(ends, devices, strict=True):
            if device is None:
                self.notes.append(
                    Note(f"line {element.line}", f"NVLinks of {end}, which is not there: left out")
                )

    def _end(self, word: str) -> Device | None:
        return self._by_index.get(word)

    def topology(self, name: str, version: str) -> Topology:
        """Return what was read."""
        nodes = [self._nodes[number] for number in sorted(self._nodes) if number >= 0]
        nodes += [UNKNOWN] if -1 in self._nodes else []
        smp = [
            Link(LinkKind.smp, one.id, other.id)
            for index, one in enumerate(nodes)
            for other in nodes[index + 1 :]
        ]
        return Topology(
            name,
            "hwloc",
            (*nodes, *self.devices),
            (*smp, *self.links),
            notes=tuple(self.notes),
            attributes={"hwloc": version},
        )


def _count(kind: LinkKind, rate_mb: int) -> int:
    """Return how many NVLinks make a bandwidth: they run at 20 (first), 25 or 50 GB/s. Of xGMI hwloc does not say."""
    if kind is LinkKind.xgmi:
        return 1
    each = next((mb for mb in (25_000, 20_000) if rate_mb % mb == 0), rate_mb)
    return max(1, rate_mb // each)


def _words(element: Element, tag: str) -> list[str]:
    return [word for child in element.named(tag) for word in child.text.split()]


def _infos(element: Element) -> dict[str, str]:
    return {child.get("name"): child.get("value") for child in element.named("info")}


def _all(element: Element) -> Iterator[Element]:
    yield element
    for child in element.named("object"):
        yield from _all(child)
