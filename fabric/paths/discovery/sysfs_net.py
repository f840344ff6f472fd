"""Network interfaces from ``/sys/class/net``, with its traps.

``speed`` is -1 for virtual ones, refused (EINVAL) while an interface is down, and an unsigned -1 from some drivers;
``operstate`` is ``unknown`` for drivers that do not tell, where ``carrier`` decides; what has no device is virtual.
"""

from __future__ import annotations

from collections.abc import Mapping

from fabric.paths.discovery import pci, rates
from fabric.paths.discovery.model import Device, Kind, Names
from fabric.paths.discovery.roots import Sysfs

_FOLDER = "class/net"
UNLISTED = (
    "not in sysfs"  #: the flavour of an interface of which the kernel tells and sysfs does not
)
_TYPES = {
    772: "loopback",
    32: "infiniband",
    65534: "tun",
    768: "tunnel",
    769: "tunnel",
    778: "tunnel",
}
_MARKS = {"bridge": "bridge", "bonding": "bond", "wireless": "wireless", "tun_flags": "tun"}
#: a driver's own word in uevent, where it has one
_DEVTYPES = {
    "vlan",
    "vxlan",
    "bond",
    "bridge",
    "macvlan",
    "macvtap",
    "wlan",
    "gre",
    "geneve",
    "ipvlan",
}


def read(
    sysfs: Sysfs,
    hardware: list[Device],
    names: Names,
    present: Mapping[str, tuple[int, str]] | None = None,
) -> list[Device]:
    """Return the interfaces as ports: below the NIC that carries them, else below nothing.

    Parameters
    ----------
    present : mapping of str to (int, str), optional
        Number and state of every interface that the kernel tells of, by name. A sysfs that was mounted in another
        network namespace shows that one's interfaces: then those are left out, and of ours no more than this is known.
    """
    by_address = {device.address: device for device in hardware if device.address}
    found, ours = [], dict(present or {})
    for name in sysfs.names(_FOLDER) or ():
        if sysfs.names(f"{_FOLDER}/{name}") is None:  # bonding_masters, a file
            continue
        if present is not None:
            index, _ = ours.get(name, (None, ""))
            if index is None or index != sysfs.number(f"{_FOLDER}/{name}/ifindex"):
                continue
            del ours[name]
        found.append(_interface(sysfs, name, by_address, names))
    return found + [_unlisted(name, state, names) for name, (_, state) in sorted(ours.items())]


def _unlisted(name: str, state: str, names: Names) -> Device:
    attributes = {"flavour": "loopback"} if name == "lo" else {"flavour": UNLISTED}
    own = names.id(Kind.port, name)
    return Device(own, Kind.port, None, name, state=state, attributes=attributes)


def _interface(sysfs: Sysfs, name: str, hardware: dict[str, Device], names: Names) -> Device:
    folder = f"{_FOLDER}/{name}"
    nic = _carrier_of(sysfs, folder, hardware)
    flavour = _flavour(sysfs, folder)
    rate = rates.from_mbit(sysfs.text(f"{folder}/speed") or "")
    number = sysfs.number(f"{folder}/dev_port") or 0
    attributes = {
        "flavour": flavour,
        "mac": sysfs.text(f"{folder}/address"),
        "mtu": sysfs.text(f"{folder}/mtu"),
        "driver": sysfs.linked(f"{folder}/device/driver"),
        "master": sysfs.linked(f"{folder}/master"),
        "dev_port": str(number) if number else None,
    }
    return Device(
        names.id(Kind.port, name),
        Kind.port,
        nic.id if nic else None,
        name,
        "",
        nic.numa if nic else None,
        state=_state(sysfs, folder),
        rate=rate,
        attributes={key: value for key, value in attributes.items() if value},
    )


def _carrier_of(sysfs: Sysfs, folder: str, hardware: dict[str, Device]) -> Device | None:
    """Return the PCI function behind an interface; virtio and others put a folder between."""
    place = sysfs.real(f"{folder}/device") or ""
    for part in reversed(place.split("/")):
        if pci.is_address(part):
            return hardware.get(part)
    return None


def _flavour(sysfs: Sysfs, folder: str) -> str:
    """Return what an interface is: `physical`, `loopback`, `bridge`, `bond`, `veth`, `vlan`, `virtual` …"""
    for mark, flavour in _MARKS.items():
        if sysfs.has(f"{folder}/{mark}"):
            return flavour
    kind = _TYPES.get(sysfs.number(f"{folder}/type") or 0)
    if kind is not None:
        return kind
    for line in (sysfs.text(f"{folder}/uevent") or "").splitlines():
        key, _, value = line.partition("=")
        if key == "DEVTYPE" and value in _DEVTYPES:
            return value
    if sysfs.has(f"{folder}/device"):
        return "physical"
    own, peer = sysfs.number(f"{folder}/ifindex"), sysfs.number(f"{folder}/iflink")
    # A veth's other end is another interface; 0 is what a tunnel without one says.
    return "veth" if own and peer and own != peer else "virtual"


def _state(sysfs: Sysfs, folder: str) -> str:
    """Return `up` or `down`; `unknown` where neither state nor carrier says."""
    said = sysfs.text(f"{folder}/operstate")
    if said == "up":
        return "up"
    if said in ("down", "lowerlayerdown", "dormant", "notpresent", "testing"):
        return "down"
    flags = sysfs.number(f"{folder}/flags", 16)
    if flags is not None and not flags & 1:  # switched off: reading carrier would be refused
        return "down"
    carrier = sysfs.number(f"{folder}/carrier")
    if carrier is None:
        return "unknown"
    return "up" if carrier else "down"
