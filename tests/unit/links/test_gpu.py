"""The GPU links' Python half: what is refused, what is said where a library is absent; importing it opens nothing."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from fabric.abc.link import GPU_FRAMES, PLAIN_CHUNKS, UCX_FRAMES
from fabric.controlplane import ucx_rails
from fabric.errors import ConfigError, PathBrokenError
from fabric.links import gpu, rail_link
from fabric.messages.device import CUDA_LIBRARY
from fabric.testing import gpu_rigs
from fabric.testing.link_conformance import payload_of, take
from fabric.testing.rigs import rig
from tests.fakes.gpu import DEVICE, PINNED, FakeCuda

NOWHERE = "libno-such-driver.so.1"
assert gpu_rigs.CudaIpcRailsRig.groups


def wait_for(what: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not holds():
        assert time.monotonic() < deadline, f"waited 20 s for {what}"
        time.sleep(0.01)


def refused(match: str, **options) -> None:
    """Make a link, expect a refusal, and find the socket closed."""
    one, two = socket.socketpair()
    with pytest.raises(PathBrokenError, match=match):
        gpu.make_link(one.detach(), 7, **options)
    assert two.recv(1) == b"", "the socket was taken, so it is closed"
    two.close()


@pytest.mark.parametrize("kind", gpu.KINDS)
def test_without_a_driver_a_link_is_refused_with_the_library(fake_nccl, monkeypatch, kind):
    monkeypatch.setenv(CUDA_LIBRARY, NOWHERE)
    refused(f"{kind}: {NOWHERE}", kind=kind)
    assert NOWHERE in gpu.unavailable(kind)
    backend = gpu.GpuBackend() if kind == gpu.CUDA_IPC else gpu.NcclBackend()
    assert not backend.probe().available and NOWHERE in backend.probe().reason


def test_without_nccl_only_that_link_is_absent(fake_cuda, monkeypatch):
    monkeypatch.setenv(gpu.NCCL_LIBRARY, NOWHERE)
    assert gpu.unavailable(gpu.CUDA_IPC) == ""
    assert "pip install nvidia-nccl-cu12" in gpu.unavailable(gpu.NCCL)
    assert gpu.nccl_version() == ""
    refused("pip install nvidia-nccl-cu12", kind=gpu.NCCL)


def test_gpu_and_kind_that_are_not_there_are_named(fake_cuda):
    refused("there is no GPU 5: the driver shows 2", device=5)
    refused("no link over GPU memory called 'warp': cuda_ipc and nccl are", kind="warp")


def test_link_that_no_engine_takes_gives_its_memory_back(fake_cuda: FakeCuda):
    before = fake_cuda.live(DEVICE), fake_cuda.live(PINNED)
    one, two = socket.socketpair()
    link = gpu.make_link(one.detach(), 7)
    assert fake_cuda.live(DEVICE) == before[0] + 1
    del link
    two.settimeout(20.0)
    while two.recv(4096):  # its introduction may have been said
        pass
    two.close()  # the peer has nothing of it mapped
    wait_for(
        "the memory of a link that was dropped to be freed",
        lambda: (fake_cuda.live(DEVICE), fake_cuda.live(PINNED)) == before,
    )


def test_memory_that_cannot_be_shared_breaks_the_rail_with_the_reason_and_another_carries(
    fake_cuda: FakeCuda,
):
    fake_cuda.forbid_ipc()
    with rig("cuda_ipc_rails") as joined:
        flow = joined.open_flow()
        flow.send(payload_of(1, 3_000_000))
        take(flow, 1, 3_000_000)
        wait_for(
            "both ends of the rail to be broken with the reason",
            lambda: (
                {0, 1}
                == {
                    side
                    for side, event in joined.events
                    if event["event"] == "link_down"
                    and "does not give its memory" in event["reason"]
                }
            ),
        )


def test_gpu_that_fails_breaks_the_rail_with_its_name_and_nothing_is_lost(
    fake_cuda: FakeCuda,
):
    with rig("cuda_ipc_rails") as joined:
        flow = joined.open_flow()
        fake_cuda.fail_copies(700)
        for n in range(8):
            flow.send(payload_of(n, 4_000_000))
        for n in range(8):
            take(flow, n, 4_000_000)
        assert flow.settle()
        fake_cuda.fail_copies(0)
        reasons = [e["reason"] for _, e in joined.events if e["event"] == "link_down"]
        assert any("CUDA_ERROR_ILLEGAL_ADDRESS" in reason for reason in reasons), reasons


@pytest.mark.parametrize("link", gpu.KINDS)
def test_rail_is_named_offered_and_left_out_without_a_driver(monkeypatch, link):
    assert rail_link.split_link(f"{link}:127.0.0.1:7401") == (link, "127.0.0.1:7401")
    assert rail_link.is_gpu(link) and not rail_link.is_ucx(link)
    assert ucx_rails.offer_dialling(link, PLAIN_CHUNKS) == GPU_FRAMES, "it keeps its checksums"
    assert ucx_rails.offer_accepting(["tcp", link, "ucx"], 0) == GPU_FRAMES | UCX_FRAMES
    monkeypatch.delenv(CUDA_LIBRARY, raising=False)
    monkeypatch.setattr(rail_link.ctypes.util, "find_library", lambda _: None)
    assert "install NVIDIA's driver" in rail_link.missing(link)
    monkeypatch.setenv(CUDA_LIBRARY, NOWHERE)
    assert rail_link.missing(link) == "", "whoever names a library is told when it is opened"


def test_transports_belong_to_ucx_alone():
    assert rail_link.split_link("nccl+1:127.0.0.1:7401") == ("tcp", "nccl+1:127.0.0.1:7401")
    with pytest.raises(ConfigError):
        rail_link.split_link("ucx+!:127.0.0.1:1")


def test_importing_it_opens_no_library():
    code = "import fabric.links.gpu, fabric._gpu; print('cuda' in open('/proc/self/maps').read())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
