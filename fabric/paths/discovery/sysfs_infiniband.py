"""RDMA ports from ``/sys/class/infiniband``: InfiniBand, and Ethernet that speaks RoCE."""

from __future__ import annotations

from fabric.paths.discovery import pci, rates
from fabric.paths.discovery.model import Device, Kind, Names
from fabric.paths.discovery.roots import Sysfs

_FOLDER = "class/infiniband"
_ACTIVE = 4  # IB_PORT_ACTIVE: ``4: ACTIVE``


def read(sysfs: Sysfs, hardware: list[Device], names: Names) -> list[Device]:
    """Return the ports of every RDMA device, called ``mlx5_0/1``."""
    by_address = {device.address: device for device in hardware if device.address}
    found = []
    for name in sysfs.names(_FOLDER) or ():
        nic = None
        for part in (sysfs.real(f"{_FOLDER}/{name}/device") or "").split("/"):
            if pci.is_address(part):
                nic = by_address.get(part)
        for number in sysfs.names(f"{_FOLDER}/{name}/ports") or ():
            found.append(_port(sysfs, name, number, nic, names))
    return found


def _port(sysfs: Sysfs, name: str, number: str, nic: Device | None, names: Names) -> Device:
    folder = f"{_FOLDER}/{name}/ports/{number}"
    state = sysfs.text(f"{folder}/state") or ""
    guid = (sysfs.text(f"{_FOLDER}/{name}/node_guid") or "").replace(":", "")
    attributes = {
        "flavour": "rdma",
        "name": name,
        "port": number,
        "link_layer": sysfs.text(f"{folder}/link_layer") or "InfiniBand",
        "rate": sysfs.text(f"{folder}/rate"),
        "guid": f"0x{guid}" if guid else None,
        "state": state,
    }
    title = f"{name}/{number}"
    first = rates.whole(state.partition(":")[0])
    return Device(
        names.id(Kind.port, title),
        Kind.port,
        nic.id if nic else None,
        title,
        "",
        nic.numa if nic else None,
        state="unknown" if first is None else "up" if first == _ACTIVE else "down",
        rate=rates.parse_infiniband(sysfs.text(f"{folder}/rate") or ""),
        attributes={key: value for key, value in attributes.items() if value},
    )
