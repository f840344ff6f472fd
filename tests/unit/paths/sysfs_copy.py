"""A copy of a sysfs, made file by file: a machine with two sockets, a PCIe switch, GPUs, NICs and odd interfaces."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

ROOT_PORT = "pci0000:00/0000:00:01.0"
SWITCH = f"{ROOT_PORT}/0000:01:00.0"
GPU = f"{SWITCH}/0000:02:00.0/0000:03:00.0"
NIC = f"{SWITCH}/0000:02:01.0/0000:04:00.0"
FAR_GPU = "pci0000:80/0000:80:01.0/0000:81:00.0"
GRAPHICS = "pci0000:00/0000:00:1c.0/0000:08:00.0"
FAST = {"max_link_speed": "16.0 GT/s PCIe", "max_link_width": "16", "current_link_width": "16"}


class SysfsCopy:
    """Writes files and symbolic links below a folder's ``sys``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "sys").mkdir(parents=True)

    def file(self, path: str, text: str) -> None:
        place = self.folder / "sys" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"{text}\n")

    def link(self, path: str, target: str) -> None:
        place = self.folder / "sys" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)

    def function(
        self, place: str, class_code: str, vendor: str, device: str, **values: str
    ) -> None:
        """Add a PCI function at its place below ``devices``."""
        address = place.rpartition("/")[2]
        facts = {
            "class": class_code,
            "vendor": vendor,
            "device": device,
            "numa_node": "0",
            **values,
        }
        for name, text in facts.items():
            self.file(f"devices/{place}/{name}", text)
        self.link(f"bus/pci/devices/{address}", f"../../../devices/{place}")

    def interface(self, name: str, place: str = "", **values: str) -> None:
        """Add an interface, below the PCI function at `place` or virtual."""
        home = f"devices/{place}/net/{name}" if place else f"devices/virtual/net/{name}"
        facts = {
            "operstate": "up",
            "flags": "0x1003",
            "type": "1",
            "mtu": "1500",
            "speed": "-1",
            **values,
        }
        for key, text in facts.items():
            self.file(f"{home}/{key}", text)
        if place:
            self.link(f"{home}/device", "../../../" + place.rpartition("/")[2])
        self.link(f"class/net/{name}", f"../../{home}")

    def archive(self, path: Path) -> Path:
        with tarfile.open(path, "w:gz") as archive:
            archive.add(self.folder, arcname="machine")
        return path


def machine(folder: Path) -> SysfsCopy:
    """Return a copy with most of what real machines have."""
    copy = SysfsCopy(folder)
    for node, cpus in ((0, "0-3"), (1, "4-7")):
        copy.file(f"devices/system/node/node{node}/cpulist", cpus)
        copy.file(f"devices/system/node/node{node}/distance", "10 21" if node == 0 else "21 10")
        copy.file(f"devices/system/node/node{node}/meminfo", f"Node {node} MemTotal:   1048576 kB")
    copy.function(ROOT_PORT, "0x060400", "0x8086", "0x2030", **FAST)
    copy.function(SWITCH, "0x060400", "0x10b5", "0x9797", **FAST)
    copy.function(f"{SWITCH}/0000:02:00.0", "0x060400", "0x10b5", "0x9797", **FAST)
    copy.function(f"{SWITCH}/0000:02:01.0", "0x060400", "0x10b5", "0x9797", **FAST)
    # Idle, its link is clocked down; that is no lack.
    copy.function(GPU, "0x030200", "0x10de", "0x20b2", **FAST, current_link_speed="2.5 GT/s PCIe")
    copy.function(NIC, "0x020700", "0x15b3", "0x101b", **(FAST | {"current_link_width": "8"}))
    copy.function("pci0000:80/0000:80:01.0", "0x060400", "0x8086", "0x2030", **FAST, numa_node="1")
    copy.function(FAR_GPU, "0x030200", "0x10de", "0x20b2", **FAST, numa_node="1")
    copy.function("pci0000:00/0000:00:1c.0", "0x060400", "0x8086", "0xa190")
    copy.function(GRAPHICS, "0x030000", "0x1a03", "0x2000")
    copy.interface("ens1", NIC, speed="200000", address="00:00:00:00:00:01")
    copy.interface("lo", type="772", operstate="unknown", carrier="1")
    for name, text in {
        "state": "4: ACTIVE",
        "rate": "200 Gb/sec (4X HDR)",
        "link_layer": "InfiniBand",
    }.items():
        copy.file(f"devices/{NIC}/infiniband/mlx5_0/ports/1/{name}", text)
    copy.file(f"devices/{NIC}/infiniband/mlx5_0/node_guid", "0000:0000:0000:0001")
    copy.link(f"devices/{NIC}/infiniband/mlx5_0/device", "../../../0000:04:00.0")
    copy.link("class/infiniband/mlx5_0", f"../../devices/{NIC}/infiniband/mlx5_0")
    (folder / "proc").mkdir()
    (folder / "proc/cpuinfo").write_text(
        "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 106\n"
        "model name\t: Example CPU\n\nprocessor\t: 1\n"
    )
    return copy


def hostile_archive(path: Path, *members: tarfile.TarInfo) -> Path:
    """Write an archive of just these members, each with two bytes if it is a file."""
    with tarfile.open(path, "w") as archive:
        for member in members:
            member.size = 2 if member.isreg() else 0
            archive.addfile(member, io.BytesIO(b"1\n") if member.isreg() else None)
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.mode = kind, target, 0o644
    return found


def count_files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))
