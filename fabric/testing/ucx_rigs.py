"""Engine rigs over UCX: its tcp and its shared-memory transports, a rail of it beside a tcp rail, and each with faults.

A rig is there only where `fabric.links.ucx.has_ucx()`; tests carry the marker `needs_ucx`.
"""

from __future__ import annotations

from typing import ClassVar

from fabric.links import ucx
from fabric.testing.fault_rigs import Faulty
from fabric.testing.rigs import RIGS, EngineRig, TcpRig, connected_pair


class UcxRig(EngineRig):
    """Engines joined by UCX, its workers' addresses exchanged over loopback."""

    transports: ClassVar[str]
    devices: ClassVar[str] = ""

    def connect_group(self, group: int) -> None:
        for engine, sock in zip(self.engines, connected_pair(), strict=True):
            link = ucx.make_link(sock.detach(), self.session, self.transports, self.devices)
            engine.add_link(self.session, link, group)


class UcxTcpRig(UcxRig):
    """UCX's own tcp transport, over loopback."""

    name = "ucx_tcp"
    transports = "tcp"
    devices = "lo"


class UcxShmRig(UcxRig):
    """UCX's shared memory: small bodies through queues, large ones by the kernel's copy between processes."""

    name = "ucx_shm"
    transports = "shm"


class UcxRailsRig(UcxShmRig):
    """A rail of loopback tcp, and one of UCX's shared memory beside it."""

    name = "ucx_rails"
    groups = (0, 1, 2, 3)

    def connect_group(self, group: int) -> None:
        if group < 2:
            TcpRig.connect_group(self, group)  # type: ignore[arg-type]
        else:
            super().connect_group(group)


class FaultUcxTcpRig(Faulty, UcxTcpRig):
    """UCX's tcp that misbehaves."""

    name = "fault_ucx_tcp"


class FaultUcxShmRig(Faulty, UcxShmRig):
    """UCX's shared memory that misbehaves."""

    name = "fault_ucx_shm"


RIGS.update(
    {rig.name: rig for rig in (UcxTcpRig, UcxShmRig, UcxRailsRig, FaultUcxTcpRig, FaultUcxShmRig)}
)
