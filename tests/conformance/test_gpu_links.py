"""The link conformance suite over GPU memory: by a fake driver whose copies come late, and by the real one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fabric.testing import gpu_rigs
from fabric.testing.link_conformance import LinkConformance
from tests.fakes.gpu import FakeCuda

assert gpu_rigs.CudaIpcRig.kind == "cuda_ipc"

pytestmark = pytest.mark.promise("P2", "P6")


@pytest.fixture
def late(fake_cuda: FakeCuda) -> Iterator[FakeCuda]:
    """Every piece of work of the GPU takes a moment, so nothing is done when it is asked for."""
    fake_cuda.delay_us(50)
    yield fake_cuda
    fake_cuda.delay_us(0)


@pytest.mark.usefixtures("late")
class TestFakeCudaIpc(LinkConformance):
    rig_name = "cuda_ipc"


@pytest.mark.usefixtures("fake_cuda")
class TestFakeCudaIpcBesideTcp(LinkConformance):
    rig_name = "cuda_ipc_rails"


@pytest.mark.usefixtures("fake_cuda")
class TestFaultFakeCudaIpc(LinkConformance):
    rig_name = "fault_cuda_ipc"


@pytest.mark.usefixtures("fake_nccl")
class TestFakeNccl(LinkConformance):
    rig_name = "nccl"


@pytest.mark.needs_gpu
class TestCudaIpc(LinkConformance):
    rig_name = "cuda_ipc"
