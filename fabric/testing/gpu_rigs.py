"""Engine rigs over GPU memory: CUDA IPC, also with faults and beside tcp, and NCCL; by what `fabric.links.gpu` opens.

With FABRIC_CUDA_LIBRARY and FABRIC_NCCL_LIBRARY set to the fakes they run without a GPU.
"""

from __future__ import annotations

from typing import ClassVar

from fabric.links import gpu
from fabric.testing.fault_rigs import Faulty
from fabric.testing.rigs import RIGS, EngineRig, TcpRig, connected_pair


class GpuRig(EngineRig):
    """Engines joined by memory of GPUs; small frames go over loopback."""

    kind: ClassVar[str]
    devices: ClassVar[tuple[int, int]] = (0, 0)  #: of the sender's and the receiver's engine

    def connect_group(self, group: int) -> None:
        one, two = connected_pair()
        with one, two:
            for engine, sock, device in zip(self.engines, (one, two), self.devices, strict=True):
                link = gpu.make_link(
                    sock.detach(), self.session, self.kind, device, deadline_s=20.0
                )
                engine.add_link(self.session, link, group)


class CudaIpcRig(GpuRig):
    """CUDA IPC; within this one process the memory is used as it is."""

    name = "cuda_ipc"
    kind = gpu.CUDA_IPC


class CudaIpcRailsRig(CudaIpcRig):
    """A rail of loopback tcp, and one of CUDA IPC beside it."""

    name = "cuda_ipc_rails"
    groups = (0, 1, 2, 3)

    def connect_group(self, group: int) -> None:
        if group < 2:
            TcpRig.connect_group(self, group)  # type: ignore[arg-type]
        else:
            super().connect_group(group)


class FaultCudaIpcRig(Faulty, CudaIpcRig):
    """CUDA IPC that misbehaves."""

    name = "fault_cuda_ipc"


class NcclRig(GpuRig):
    """NCCL between two GPUs: one GPU is no two ranks."""

    name = "nccl"
    kind = gpu.NCCL
    devices = (0, 1)


RIGS.update({rig.name: rig for rig in (CudaIpcRig, CudaIpcRailsRig, FaultCudaIpcRig, NcclRig)})
