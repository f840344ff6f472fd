"""Read NCCL's topology XML (`NCCL_TOPO_FILE`, `NCCL_TOPO_DUMP_FILE`; RCCL's as well).

Odd but real things are kept and noted with their lines: a link of width 0, an unknown NUMA node, a GPU linked to
itself, several switches of one address, NVSwitches hidden by a virtual machine. What is no topology is refused.
"""

from __future__ import annotations

from dataclasses import replace

from fabric.paths.discovery import cpus, pci, rates
from fabric.paths.discovery.model import Device, Kind, Link, LinkKind, Names, Note, Topology
from fabric.paths.discovery.xml_source import Element, Refused

_PCI_OWN = {"busid", "class", "vendor", "device", "link_speed", "link_width"}
_NVLINK_TAGS = {"nvlink": LinkKind.nvlink, "xgmi": LinkKind.xgmi}
_TO_NVSWITCH, _TO_CPU = "0x068000", "0x068001"
_KNOWN_BELOW_GPU = {*_NVLINK_TAGS, "c2c"}


def read(root: Element, name: str = "") -> Topology:
    """Return the topology of a ``<system>`` element.

    Raises
    ------
    Refused
        The element is another, or a value in it cannot be read; names the line.
    """
    if root.tag == "graphs":
        raise Refused(
            root.line,
            "<graphs> is what NCCL's search found (NCCL_GRAPH_FILE), not a topology;"
            " give the file of NCCL_TOPO_DUMP_FILE",
        )
    if root.tag != "system":
        raise Refused(root.line, f"<{root.tag[:40]}>: a topology of NCCL begins with <system>")
    version = root.number("version")
    if version not in (1, 2):
        raise Refused(root.line, f'version="{root.get("version")[:20]}"; 1 and 2 are known')
    reader = _Reader()
    for child in root.children:
        reader.cpu(child)
    return reader.topology(name, str(version))


class _Reader:
    """What has been read so far; links to other devices are joined at the end, when all are known."""

    def __init__(self) -> None:
        self.devices: list[Device] = []
        self.links: list[Link] = []
        self.notes: list[Note] = []
        self.names = Names()
        self._far: list[tuple[str, Element]] = []  # who, and its link to another device

    def note(self, element: Element, what: str, whom: str = "") -> None:
        """Note something odd; of whom it is, stands apart, so that the same of several can be told at once."""
        where = f"line {element.line}"
        self.notes.append(Note(f"{where} ({whom})" if whom else where, what))

    def cpu(self, element: Element) -> None:
        """Read a NUMA node and all below it."""
        if element.tag != "cpu":
            raise Refused(element.line, f"<{element.tag[:40]}> where <cpu> should stand")
        numa = element.number("numaid")
        if numa is None:
            raise Refused(element.line, "<cpu> without a numaid")
        if numa < 0:
            self.note(element, f"numaid {numa}: which NUMA node this is, is unknown")
        place = "unknown" if numa < 0 else str(numa)
        host = element.get("host_hash")
        attributes = {k: v for k, v in element.attributes.items() if k != "numaid"}
        try:
            if "affinity" in attributes:
                attributes["cpus"] = cpus.list_text(cpus.parse_mask(element.get("affinity")))
        except ValueError as error:
            raise Refused(element.line, f"affinity: {error}") from error
        own = self.names.id(Kind.cpu, f"{host}/{place}" if host else place)
        model = " ".join(filter(None, (element.get("vendor"), element.get("arch"))))
        cpu = Device(
            own,
            Kind.cpu,
            None,
            "numa?" if numa < 0 else f"numa{numa}",
            model,
            numa if numa >= 0 else None,
            attributes=attributes,
        )
        self.devices.append(cpu)
        for child in element.children:
            self._below(child, cpu)

    def _below(self, element: Element, parent: Device) -> None:
        if element.tag == "pci":
            self._pci(element, parent)
        elif element.tag == "nic":
            self._nic(element, parent, None)
        elif element.tag == "pcilink":
            self._far.append((parent.id, element))
        else:
            self.note(element, f"<{element.tag[:40]}> below {parent.name} is not known: left out")

    def _pci(self, element: Element, parent: Device) -> None:
        device = self._function(element, parent)
        gpus, nics = list(element.named("gpu")), list(element.named("nic"))
        if gpus:
            device = self._gpu(device, gpus[0])
        self.devices.append(device)
        self._uplink(element, device, parent)
        for gpu in gpus[:1]:
            self._far += [(device.id, child) for child in gpu.children]
        for nic in nics:
            self._nic(nic, parent, device)
        for child in element.children:
            if child not in gpus and child not in nics:
                self._below(child, device)

    def _function(self, element: Element, parent: Device) -> Device:
        """Return the device of a <pci> element; a GPU's own facts are added by `_gpu`."""
        try:
            address = pci.normal_address(element.get("busid"))
        except ValueError as error:
            raise Refused(element.line, f"busid: {error}") from error
        class_code, vendor = element.number("class", 16), element.number("vendor", 16)
        kind = _kind(element, class_code, None if vendor == 0xFFFF else vendor)
        own = self.names.id(kind, address)
        if "#" in own:
            self.note(element, "an address that is there more than once", own)
        name = address if kind is Kind.switch else self.names.next(kind)
        return Device(
            own,
            kind,
            parent.id,
            name,
            pci.model_name(vendor, element.number("device", 16)),
            parent.numa,
            address,
            class_code,
            vendor,
            element.number("device", 16),
            attributes={k: v for k, v in element.attributes.items() if k not in _PCI_OWN},
        )

    def _gpu(self, device: Device, element: Element) -> Device:
        index = element.number("dev")
        name = device.name if index is None or index < 0 else f"gpu{index}"
        return replace(device, name=name, attributes={**device.attributes, **element.attributes})

    def _uplink(self, element: Element, device: Device, parent: Device) -> None:
        speed = rates.parse_pcie_speed(element.get("link_speed"))
        width = element.number("link_width")
        width = width if width and 0 < width <= rates.PCIE_LANES_MAX else None
        if "link_width" in element.attributes and (width is None or speed is None):
            given = f'"{element.get("link_speed")}" × {element.get("link_width")}'
            self.note(element, f"PCIe link of {given}: its rate is unknown", device.name)
        rate = rates.pcie(speed, width)
        self.links.append(Link(LinkKind.pcie, device.id, parent.id, rate, width=width, speed=speed))

    def _nic(self, element: Element, parent: Device, device: Device | None) -> None:
        """Read the ports of a NIC; one without a PCI function becomes a device of its own."""
        if device is None:
            nets = list(element.named("net"))
            place = f"{parent.id.partition(':')[2]}/{nets[0].get('name') if nets else ''}"
            own = self.names.id(Kind.nic, place)
            device = Device(own, Kind.nic, parent.id, self.names.next(Kind.nic), "", parent.numa)
            self.devices.append(device)
        for net in element.named("net"):
            self._port(net, device)

    def _port(self, element: Element, nic: Device) -> None:
        name = element.get("name") or f"net{element.get('dev')}"
        port = element.get("port")
        title = f"{name}/{port}" if port not in ("", "0") else name
        rate = rates.from_mbit(element.get("speed"))
        if rate is None:
            self.note(element, f'a port of unknown speed, "{element.get("speed")[:20]}"', title)
        self.devices.append(
            Device(
                self.names.id(Kind.port, title),
                Kind.port,
                nic.id,
                title,
                "",
                nic.numa,
                state="unknown",
                rate=rate,
                attributes=dict(element.attributes),
            )
        )

    def topology(self, name: str, version: str) -> Topology:
        """Return what was read, its links joined."""
        for source, element in self._far:
            self._join(source, element)
        self.links += _between_nodes(self.devices)
        return Topology(
            name,
            "nccl",
            tuple(self.devices),
            tuple(self.links),
            notes=tuple(self.notes),
            attributes={"version": version},
        )

    def _join(self, source: str, element: Element) -> None:
        """Add a link to a device that is named by its address."""
        if element.tag == "c2c":
            self._c2c(source, element)
        elif element.tag == "pcilink":
            target = self._at(element)
            if target is not None:
                self.links.append(Link(LinkKind.pci_peer, source, target.id))
        elif element.tag in _NVLINK_TAGS:
            self._nvlink(source, element, _NVLINK_TAGS[element.tag])
        else:
            self.note(element, f"<{element.tag[:40]}> below a GPU is not known: left out")

    def _c2c(self, source: str, element: Element) -> None:
        count = element.number("count") or 1
        each = element.number("bw")  # MB/s
        rate = each * 1e6 * count if each else None
        self.links.append(Link(LinkKind.c2c, source, self._node_of(source).id, rate, count))

    def _nvlink(self, source: str, element: Element, kind: LinkKind) -> None:
        gpu = next(device for device in self.devices if device.id == source)
        count = element.number("count")
        if count is None or count < 1:
            raise Refused(element.line, f'count="{element.get("count")[:20]}" of <{element.tag}>')
        target = self._far_end(source, element)
        if target is None:
            return
        if target.id == source:
            self.note(element, "a link to itself: no path uses it", gpu.name)
        self.links.append(Link(kind, source, target.id, _rate(gpu, kind, count), count))

    def _far_end(self, source: str, element: Element) -> Device | None:
        goal, address = element.get("tclass"), element.get("target").lower()
        if goal == _TO_CPU:
            return self._node_of(source)
        if goal == _TO_NVSWITCH or address.startswith("fffffff"):
            return self._nvswitch(element)
        return self._at(element)

    def _nvswitch(self, element: Element) -> Device:
        address = element.get("target").lower()
        for device in self.devices:
            if device.kind is Kind.nvswitch and address in (
                device.address,
                device.attributes.get("target"),
            ):
                return device
        is_hidden = address.startswith("fffffff")
        place = "hidden" if is_hidden else address
        found = Device(
            self.names.id(Kind.nvswitch, place),
            Kind.nvswitch,
            None,
            "nvswitch" if is_hidden else self.names.next(Kind.nvswitch),
            "NVSwitches, hidden" if is_hidden else "NVSwitch",
            attributes={"target": address},
        )
        if is_hidden:
            self.note(element, "the NVSwitches are hidden (a virtual machine): taken as one")
        self.devices.append(found)
        return found

    def _at(self, element: Element) -> Device | None:
        try:
            address = pci.normal_address(element.get("target"))
        except ValueError as error:
            raise Refused(element.line, f"target: {error}") from error
        for device in self.devices:
            if device.address == address:
                return device
        self.note(element, f"<{element.tag}> to {address}, which is not there: left out")
        return None

    def _node_of(self, id: str) -> Device:
        by_id = {device.id: device for device in self.devices}
        device = by_id[id]
        while device.parent is not None:
            device = by_id[device.parent]
        return device


def _kind(element: Element, class_code: int | None, vendor: int | None) -> Kind:
    """Return what a function is: by what stands below it, else by its class."""
    if any(element.named("gpu")):
        return Kind.gpu
    kind = pci.kind_of(class_code, vendor) or Kind.pci
    if kind is Kind.pci:
        for tag, meant in (("nic", Kind.nic), ("pci", Kind.switch)):
            if any(element.named(tag)):
                return meant
    return kind


def _rate(gpu: Device, kind: LinkKind, count: int) -> float | None:
    if kind is LinkKind.xgmi:
        each = rates.xgmi(gpu.attributes.get("gcn", ""))
    else:
        each = rates.nvlink(rates.whole(gpu.attributes.get("sm", "")))
    return None if each is None else each * count


def _between_nodes(devices: list[Device]) -> list[Link]:
    """Return the links between the NUMA nodes of each host: NCCL's files leave them unsaid."""
    nodes = [device for device in devices if device.kind is Kind.cpu]
    return [
        Link(LinkKind.smp, one.id, other.id)
        for index, one in enumerate(nodes)
        for other in nodes[index + 1 :]
        if one.attributes.get("host_hash") == other.attributes.get("host_hash")
    ]
