"""Write a topology as NCCL's topology XML, to be given to NCCL in `NCCL_TOPO_FILE` or read back here. Pure.

Written is what NCCL knows: interfaces that hang below no NIC, addresses and states are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from xml.sax.saxutils import quoteattr

from fabric.paths.discovery import cpus, pci
from fabric.paths.discovery.model import Device, Kind, Link, LinkKind, Topology

_CPU = ("affinity", "arch", "vendor", "familyid", "modelid", "host_hash")
_GPU = ("dev", "sm", "gcn", "arch", "rank", "gdr")
_NET = ("name", "dev", "speed", "port", "latency", "guid", "maxconn", "gdr", "coll")
_SUBSYSTEM = ("subsystem_vendor", "subsystem_device")
_NVLINKS = {LinkKind.nvlink: "nvlink", LinkKind.xgmi: "xgmi"}


def write(topology: Topology) -> str:
    """Return the document, ending in a line feed; equal topologies give equal text."""
    lines = [f'<system version="{topology.attributes.get("version", "1")}">']
    for cpu in topology.of_kind(Kind.cpu):
        lines += _element("cpu", _cpu(cpu), list(_children(topology, cpu)))
    lines.append("</system>")
    return "\n".join(lines) + "\n"


def _children(topology: Topology, parent: Device) -> Iterator[str]:
    for link in topology.links_from(parent.id, LinkKind.pci_peer):
        yield from _element("pcilink", {"target": topology.by_id[link.target].address}, [])
    for device in topology.children(parent.id):
        if device.kind is Kind.port:
            continue
        if device.kind is Kind.nic and not device.address:
            yield from _element("nic", {}, list(_ports(topology, device)))
        else:
            yield from _element("pci", _pci(topology, device), list(_inside(topology, device)))


def _inside(topology: Topology, device: Device) -> Iterator[str]:
    if device.kind is Kind.gpu:
        links = [line for link in topology.links_from(device.id, *_NVLINKS, LinkKind.c2c)
                 for line in _fast(topology, link)]  # fmt: skip
        own = _kept(device.attributes, _GPU)
        if own or links:
            yield from _element("gpu", {"dev": "-1", **own}, links)
    if device.kind is Kind.nic and (ports := list(_ports(topology, device))):
        yield from _element("nic", {}, ports)
    yield from _children(topology, device)


def _fast(topology: Topology, link: Link) -> list[str]:
    """Return the element of an NVLink, xGMI or C2C link."""
    target = topology.by_id[link.target]
    if link.kind is LinkKind.c2c:
        each = 0 if link.rate is None else round(link.rate / link.count / 1e6)
        return _element("c2c", {"bw": str(each), "count": str(link.count)}, [])
    values = {
        "target": target.address,
        "count": str(link.count),
        "tclass": _hex(target.class_code, 6),
    }
    if target.kind is Kind.nvswitch:
        values["target"] = target.address or target.attributes.get("target", pci.HIDDEN_NVSWITCH)
        values["tclass"] = "0x068000"
    elif target.kind is Kind.cpu:
        values["target"], values["tclass"] = "0000:00:00.0", "0x068001"
    return _element(_NVLINKS[link.kind], values, [])


def _cpu(cpu: Device) -> dict[str, str]:
    values = {"numaid": str(-1 if cpu.numa is None else cpu.numa)}
    known = dict(cpu.attributes)
    if "cpus" in known and "affinity" not in known:
        known["affinity"] = cpus.mask_text(cpus.parse_list(known["cpus"]))
    return values | _kept(known, _CPU)


def _pci(topology: Topology, device: Device) -> dict[str, str]:
    values = {"busid": device.address}
    if device.class_code is not None:
        values["class"] = _hex(device.class_code, 6)
    if device.vendor_id is not None:
        values["vendor"] = _hex(device.vendor_id, 4)
        values["device"] = _hex(device.device_id or 0, 4)
    values |= _kept(device.attributes, _SUBSYSTEM)
    link = topology.uplinks.get(device.id)
    if link is not None and device.class_code is not None:
        values["link_speed"] = f"{link.speed:.1f} GT/s PCIe" if link.speed else ""
        values["link_width"] = str(link.width or 0)
    return values


def _ports(topology: Topology, nic: Device) -> Iterator[str]:
    for index, port in enumerate(topology.children(nic.id)):
        if port.kind is not Kind.port:
            continue
        mbit = "" if port.rate is None else str(round(port.rate * 8 / 1e6))
        name, _, number = port.name.partition("/")
        values = {"name": name, "dev": str(index), "port": number or "0", "guid": "0x0", "gdr": "0"}
        values |= _kept(port.attributes, _NET)
        if mbit:
            values["speed"] = mbit
        yield from _element("net", {key: values[key] for key in _NET if key in values}, [])


def _kept(values: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    return {name: values[name] for name in names if name in values}


def _hex(value: int | None, digits: int) -> str:
    return f"0x{value or 0:0{digits}x}"


def _printable(text: str) -> str:
    """Return a text that XML can hold: it has no words for most control characters."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _element(tag: str, attributes: Mapping[str, str], inside: list[str]) -> list[str]:
    words = "".join(f" {name}={quoteattr(_printable(value))}" for name, value in attributes.items())
    if not inside:
        return [f"<{tag}{words}/>"]
    return [f"<{tag}{words}>", *(f"  {line}" for line in inside), f"</{tag}>"]
