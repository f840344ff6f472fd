"""The whole topology of a machine: from its sysfs, and for this one also NVML and the addresses of its interfaces."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from fabric import errors
from fabric.paths.discovery import numa, rails, sysfs_infiniband, sysfs_net, sysfs_pci
from fabric.paths.discovery.model import Kind, Names, Note, Topology
from fabric.paths.discovery.roots import FolderTree, Sysfs, open_root


def read_machine() -> Topology:
    """Return the topology of this machine, as far as its user may see it.

    What cannot be read is noted, never fatal.
    """
    from fabric.paths.discovery import addresses, netlink, nvml

    notes: list[Note] = []
    known: Mapping[str, Sequence[str]] | None = None
    present: Mapping[str, tuple[int, str]] | None = None
    try:
        known, present = addresses.interface_addresses(), netlink.present()
    except errors.BrokenError as error:
        notes.append(Note("netlink", error.message))
    sysfs = Sysfs(FolderTree("/"))
    found = read_sysfs(sysfs, socket.gethostname(), known, present, notes)
    return nvml.add(found, nvml.read())


def read_root(path: str | Path) -> Topology:
    """Return the topology that a copy of a sysfs tells of: a folder, or a tar archive.

    Raises
    ------
    ConfigError
        There is none; says why.
    """
    return read_sysfs(open_root(path), Path(path).name.partition(".tar")[0])


def read_sysfs(
    sysfs: Sysfs,
    name: str = "",
    addresses: Mapping[str, Sequence[str]] | None = None,
    present: Mapping[str, tuple[int, str]] | None = None,
    notes: Sequence[Note] = (),
) -> Topology:
    """Return the topology that a sysfs tells of.

    Parameters
    ----------
    addresses : mapping of str to sequence of str, optional
        Of each interface; None: not known, and no rail is judged by them.
    present : mapping of str to (int, str), optional
        Number and state of each interface, as the kernel tells them beside this sysfs.
    """
    names = Names()
    nodes = numa.read_nodes(sysfs)
    tree = sysfs_pci.read(sysfs, nodes, names)
    ports = [
        *sysfs_net.read(sysfs, tree.devices, names, present),
        *sysfs_infiniband.read(sysfs, tree.devices, names),
    ]
    roots = [*nodes, *(device for device in tree.devices if device.kind is Kind.cpu)]
    links = numa.read_links(roots) + tree.links
    narrowed = [
        Note(link.source, f"runs on {link.width} lanes of {link.width_max}")
        for link in links
        if link.is_narrowed
    ]
    unlisted = [p.name for p in ports if p.attributes.get("flavour") == sysfs_net.UNLISTED]
    if unlisted:
        what = "sysfs is of another network namespace: line rate and hardware are not known"
        narrowed.append(Note(", ".join(unlisted), what))
    product = sysfs.text("class/dmi/id/product_name")
    return Topology(
        name,
        "sysfs",
        (*nodes, *tree.devices, *ports),
        tuple(links),
        tuple(rails.rails(ports, addresses)),
        (*notes, *narrowed),
        {"product": product} if product else {},
    )
