"""What NVML knows of NVIDIA's GPUs and sysfs does not: names, NVLinks and where they lead, who may reach whom.

`read` asks the library (nvidia-ml-py, imported on use) and returns values; `add` is pure and joins them to a topology
by PCI address. A question that a GPU or driver does not answer leaves that fact out; no library or driver is a note.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from fabric.paths.discovery import pci, rates
from fabric.paths.discovery.model import Device, Kind, Link, LinkKind, Note, Topology
from fabric.paths.discovery.path_class import PathClass, Paths

_LINKS_MAX = 18  # of a GPU, where the library does not say; one with fewer refuses the rest
#: NVML_NVLINK_DEVICE_TYPE_*
_GPU, _NPU, _SWITCH = 0, 1, 2
#: NVML_TOPOLOGY_*, in NCCL's words
ANCESTORS = {
    0: PathClass.LOC,
    10: PathClass.PIX,
    20: PathClass.PXB,
    30: PathClass.PHB,
    40: PathClass.SYS,
    50: PathClass.SYS,
}
#: NVML_P2P_STATUS_*
_P2P = {
    0: "ok",
    1: "chipset not supported",
    2: "GPU not supported",
    3: "I/O hub not supported",
    4: "disabled by a registry key",
    5: "not supported",
}


@dataclass(frozen=True, slots=True)
class NvLinkReport:
    """One active NVLink: what kind of device is at its other end, where, and bytes/s of one direction."""

    target_kind: int
    target: str
    rate: float | None


@dataclass(frozen=True, slots=True)
class GpuReport:
    """One GPU; `peers` has the other GPUs' addresses with P2P status and nearest common ancestor."""

    address: str
    index: int
    name: str = ""
    uuid: str = ""
    memory_bytes: int | None = None
    capability: int | None = None
    links: tuple[NvLinkReport, ...] = ()
    links_down: int = 0
    peers: dict[str, tuple[int | None, int | None]] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class NvmlReport:
    """What NVML said; `absent` is why it said nothing."""

    gpus: tuple[GpuReport, ...] = ()
    driver: str = ""
    absent: str = ""


def read(library: ModuleType | Any | None = None) -> NvmlReport:
    """Return what NVML says of this machine's GPUs.

    Parameters
    ----------
    library : module, optional
        Takes the place of ``pynvml``.
    """
    if library is None:
        try:
            library = importlib.import_module("pynvml")
        except ImportError:
            return NvmlReport(absent="nvidia-ml-py is not installed")
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        return NvmlReport(absent=str(error))
    try:
        return _Reader(library).report()
    except library.NVMLError as error:
        return NvmlReport(absent=str(error))
    finally:
        library.nvmlShutdown()


class _Reader:
    def __init__(self, library: Any) -> None:
        self._library = library

    def _asked(self, question: str, *arguments: Any) -> Any:
        """Return the answer to a question, or None where this GPU, driver or library has none."""
        ask: Callable[..., Any] | None = getattr(self._library, question, None)
        if ask is None:
            return None
        try:
            answer = ask(*arguments)
        except self._library.NVMLError:
            return None
        return answer.decode(errors="replace") if isinstance(answer, bytes) else answer

    def report(self) -> NvmlReport:
        count = self._library.nvmlDeviceGetCount()
        handles = [self._asked("nvmlDeviceGetHandleByIndex", index) for index in range(count)]
        places = [self._place(handle) for handle in handles]
        known = [
            (index, handle, place)
            for index, (handle, place) in enumerate(zip(handles, places, strict=True))
            if handle is not None and place
        ]
        gpus = tuple(self._gpu(index, handle, place, known) for index, handle, place in known)
        return NvmlReport(gpus, str(self._asked("nvmlSystemGetDriverVersion") or ""))

    def _place(self, handle: Any) -> str:
        if handle is None:
            return ""
        return _address(self._asked("nvmlDeviceGetPciInfo", handle))

    def _gpu(
        self, index: int, handle: Any, place: str, known: list[tuple[int, Any, str]]
    ) -> GpuReport:
        capability = self._asked("nvmlDeviceGetCudaComputeCapability", handle)
        memory = self._asked("nvmlDeviceGetMemoryInfo", handle)
        links, down = self._links(handle)
        return GpuReport(
            place,
            index,
            str(self._asked("nvmlDeviceGetName", handle) or ""),
            str(self._asked("nvmlDeviceGetUUID", handle) or ""),
            None if memory is None else int(memory.total),
            None if capability is None else capability[0] * 10 + capability[1],
            links,
            down,
            {other: self._peer(handle, far) for _, far, other in known if other != place},
        )

    def _links(self, handle: Any) -> tuple[tuple[NvLinkReport, ...], int]:
        found, down = [], 0
        for number in range(getattr(self._library, "NVML_NVLINK_MAX_LINKS", _LINKS_MAX)):
            is_active = self._asked("nvmlDeviceGetNvLinkState", handle, number)
            if is_active is None:  # it has no such link
                continue
            if not is_active:
                down += 1
                continue
            version = self._asked("nvmlDeviceGetNvLinkVersion", handle, number)
            kind = self._asked("nvmlDeviceGetNvLinkRemoteDeviceType", handle, number)
            far = _address(self._asked("nvmlDeviceGetNvLinkRemotePciInfo", handle, number))
            rate = rates.nvlink_version(version)
            found.append(
                NvLinkReport(_SWITCH if kind is None and not far else kind or 0, far, rate)
            )
        return tuple(found), down

    def _peer(self, handle: Any, far: Any) -> tuple[int | None, int | None]:
        read_index = getattr(self._library, "NVML_P2P_CAPS_INDEX_READ", 0)
        if isinstance(read_index, tuple):  # nvidia-ml-py 13 defines it with a comma too many
            read_index = read_index[0]
        status = self._asked("nvmlDeviceGetP2PStatus", handle, far, read_index)
        return status, self._asked("nvmlDeviceGetTopologyCommonAncestor", handle, far)


def _address(info: Any) -> str:
    """Return the PCI address in an answer, or nothing: a hidden end has one that names nobody."""
    text = getattr(info, "busId", b"") if info is not None else b""
    text = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    try:
        return pci.normal_address(text.rstrip("\0"))
    except ValueError:
        return ""


def add(topology: Topology, report: NvmlReport) -> Topology:
    """Return a topology with what NVML said of its GPUs: numbers, names, NVLinks, and notes where the two disagree."""
    if not report.gpus:
        has_nvidia = any(gpu.vendor_id == pci.NVIDIA for gpu in topology.of_kind(Kind.gpu))
        if not has_nvidia:
            return topology
        note = Note("nvml", f"not asked, so NVLinks are not known: {report.absent or 'no GPU'}")
        return replace(topology, notes=(*topology.notes, note))
    joined = _Join(topology, report)
    found = joined.topology()
    return replace(found, notes=(*found.notes, *_disagreements(found, report)))


class _Join:
    def __init__(self, topology: Topology, report: NvmlReport) -> None:
        self._topology = topology
        self._report = report
        self._by_address = {d.address: d for d in topology.devices if d.address}
        self._hidden: Device | None = None
        self._notes: list[Note] = []

    def topology(self) -> Topology:
        told = {gpu.address: gpu for gpu in self._report.gpus}
        links = [link for gpu in self._report.gpus for link in self._links(gpu)]
        devices = [
            self._named(device, told[device.address]) if device.address in told else device
            for device in self._topology.devices
        ]
        for gpu in self._report.gpus:
            if gpu.address not in self._by_address:
                self._notes.append(
                    Note("nvml", f"GPU {gpu.index} at {gpu.address} is not in sysfs")
                )
            if gpu.links_down:
                self._notes.append(Note(f"gpu:{gpu.address}", f"{gpu.links_down} NVLinks are down"))
        return replace(
            self._topology,
            devices=(*devices, *([self._hidden] if self._hidden else [])),
            links=(*self._topology.links, *links),
            notes=(*self._topology.notes, *self._notes),
            attributes={**self._topology.attributes, "nvidia_driver": self._report.driver},
        )

    def _named(self, device: Device, gpu: GpuReport) -> Device:
        facts = {
            "dev": str(gpu.index),
            "uuid": gpu.uuid,
            "memory_bytes": "" if gpu.memory_bytes is None else str(gpu.memory_bytes),
            "sm": "" if gpu.capability is None else str(gpu.capability),
        }
        facts |= {
            f"p2p {other}": _P2P.get(status, "unknown")
            for other, (status, _) in gpu.peers.items()
            if status is not None
        }
        return replace(
            device,
            name=f"gpu{gpu.index}",
            model=gpu.name or device.model,
            attributes={**device.attributes, **{k: v for k, v in facts.items() if v}},
        )

    def _links(self, gpu: GpuReport) -> Iterator[Link]:
        own = self._by_address.get(gpu.address)
        if own is None:
            return
        ends: dict[str, list[float | None]] = {}
        for link in gpu.links:
            end = self._far_end(own, link)
            if end is not None:
                ends.setdefault(end.id, []).append(link.rate or rates.nvlink(gpu.capability))
        for target, each in ends.items():
            known = [rate for rate in each if rate is not None]
            total = sum(known) if len(known) == len(each) else None
            yield Link(LinkKind.nvlink, own.id, target, total, len(each))

    def _far_end(self, own: Device, link: NvLinkReport) -> Device | None:
        """Return who is at the other end; NVSwitches that sysfs does not show are taken as one."""
        found = self._by_address.get(link.target)
        if found is not None:
            return found
        if link.target_kind == _NPU:
            return next((d for d in self._topology.of_kind(Kind.cpu) if d.numa == own.numa), None)
        if link.target_kind == _GPU and link.target:
            self._notes.append(Note(own.id, f"an NVLink leads to {link.target}, which is not here"))
            return None
        switches = self._topology.of_kind(Kind.nvswitch)
        if switches:
            return switches[0]
        if self._hidden is None:
            self._hidden = Device(
                "nvswitch:hidden", Kind.nvswitch, None, "nvswitch", "NVSwitches, hidden",
                attributes={"target": pci.HIDDEN_NVSWITCH},
            )  # fmt: skip
        return self._hidden


def _disagreements(topology: Topology, report: NvmlReport) -> Iterator[Note]:
    """Say where NVML and the PCI tree see two GPUs at different distances: a virtual machine often hides switches."""
    bare = Paths(
        replace(topology, links=tuple(k for k in topology.links if k.kind is not LinkKind.nvlink))
    )
    by_address = {device.address: device for device in topology.of_kind(Kind.gpu)}
    for gpu in report.gpus:
        for other, (_, ancestor) in gpu.peers.items():
            own, far = by_address.get(gpu.address), by_address.get(other)
            said = None if ancestor is None else ANCESTORS.get(ancestor)
            if own is None or far is None or said is None or own.id > far.id:
                continue
            found = bare.cls(own.id, far.id)
            if found is not said:
                yield Note(
                    own.id,
                    f"the way to {far.name} is {found.name} by the PCI tree, {said.name} by NVML",
                )
