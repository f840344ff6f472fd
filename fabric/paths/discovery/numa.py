"""NUMA nodes from sysfs and ``/proc/cpuinfo``: their CPUs, memory, distances, and the processor's name."""

from __future__ import annotations

import re

from fabric.paths.discovery import cpus
from fabric.paths.discovery.model import Device, Kind, Link, LinkKind
from fabric.paths.discovery.roots import Sysfs

_NODE = re.compile(r"node(\d+)")
_MEMORY = re.compile(r"MemTotal:\s+(\d+) kB")
_FOLDER = "devices/system/node"
#: a device that says nothing of its node hangs below this one, where there are several to choose from
UNKNOWN = Device("cpu:unknown", Kind.cpu, None, "numa?", "NUMA node unknown")


def read_nodes(sysfs: Sysfs) -> list[Device]:
    """Return the NUMA nodes, by number; a machine that tells of none has one, with all its CPUs."""
    facts = _processor(sysfs.proc("cpuinfo") or "")
    numbers = sorted(
        int(match[1])
        for name in sysfs.names(_FOLDER) or ()
        if (match := _NODE.fullmatch(name)) is not None
    )
    if not numbers:
        online = sysfs.text("devices/system/cpu/online") or ""
        return [_device(0, {"cpus": online, **facts})]
    return [_node(sysfs, number, facts) for number in numbers]


def _node(sysfs: Sysfs, number: int, facts: dict[str, str]) -> Device:
    folder = f"{_FOLDER}/node{number}"
    memory = _MEMORY.search(sysfs.text(f"{folder}/meminfo") or "")
    said = {
        "cpus": sysfs.text(f"{folder}/cpulist"),
        "distances": sysfs.text(f"{folder}/distance"),
        "memory_bytes": str(int(memory[1]) * 1024) if memory else None,
    }
    return _device(number, {key: value for key, value in said.items() if value} | facts)


def _device(number: int, attributes: dict[str, str]) -> Device:
    model = attributes.pop("model_name", "")
    return Device(
        f"cpu:{number}", Kind.cpu, None, f"numa{number}", model, number, attributes=attributes
    )


def _processor(cpuinfo: str) -> dict[str, str]:
    """Return what the first processor's lines say, under NCCL's names where NCCL has one."""
    lines = (line.partition(":") for line in cpuinfo.partition("\n\n")[0].splitlines())
    said = {key.strip(): value.strip() for key, _, value in lines}
    wanted = {
        "vendor_id": "vendor",
        "cpu family": "familyid",
        "model": "modelid",
        "model name": "model_name",
        "cpu": "model_name",  # POWER
    }
    found = {name: said[key] for key, name in wanted.items() if said.get(key)}
    if found.get("vendor") in ("GenuineIntel", "AuthenticAMD", "HygonGenuine", "  Shanghai  "):
        found["arch"] = "x86_64"
    return found


def read_links(nodes: list[Device]) -> list[Link]:
    """Return the links between NUMA nodes: their rate is not to be had from sysfs."""
    return [
        Link(LinkKind.smp, one.id, other.id)
        for index, one in enumerate(nodes)
        for other in nodes[index + 1 :]
    ]


def nearest(sysfs: Sysfs, folder: str, nodes: list[Device]) -> Device:
    """Return the NUMA node of a PCI function: the one it names, else the only one that has its CPUs, else unknown.

    Parameters
    ----------
    folder : str
        Of the function, below ``/sys``. A ``numa_node`` of -1 is what virtual machines and old firmware say.
    """
    number = sysfs.number(f"{folder}/numa_node")
    for node in nodes:
        if node.numa == number:
            return node
    if len(nodes) == 1:
        return nodes[0]
    try:
        local = cpus.parse_list(sysfs.text(f"{folder}/local_cpulist") or "")
        having = [n for n in nodes if local & cpus.parse_list(n.attributes.get("cpus", ""))]
    except ValueError:
        return UNKNOWN
    return having[0] if len(having) == 1 else UNKNOWN
