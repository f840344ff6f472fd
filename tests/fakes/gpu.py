"""Stand-ins for NVIDIA's libraries: built from the sources beside this file, and opened in place of the real ones.

The links are told by the settings that a user has (FABRIC_CUDA_LIBRARY, FABRIC_NCCL_LIBRARY), so the code under test
does not know. Built once for a content, under `build/fakes`.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric.links.gpu import NCCL_LIBRARY
from fabric.messages.device import CUDA_LIBRARY

HERE = Path(__file__).parent
FOLDER = HERE.parent.parent / "build" / "fakes"
DEVICE, PINNED, OPENED = 0, 1, 2  # kinds of memory that a fake driver counts


@functools.cache
def library(name: str) -> Path:
    """Build `name`.cpp where that has not been done, and return the library."""
    source = HERE / f"{name}.cpp"
    sources = b"".join(each.read_bytes() for each in sorted(HERE.glob("*.cpp")))
    digest = hashlib.sha256(sources).hexdigest()[:16]
    built = FOLDER / f"lib{name}-{digest}.so"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            fresh = built.with_suffix(".new")
            command = ["c++", "-std=c++20", "-O1", "-fPIC", "-shared", "-pthread", str(source)]
            subprocess.run([*command, "-o", str(fresh), "-ldl"], check=True)
            fresh.rename(built)
    return built


class FakeCuda:
    """Has the fake driver of this process do what a real one does on a bad day."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))
        self._library.fake_cuda_delay_us.argtypes = [ctypes.c_int64]
        self._library.fake_cuda_live.restype = ctypes.c_long

    def delay_us(self, us: int) -> None:
        """Every piece of work begins that much later."""
        self._library.fake_cuda_delay_us(us)

    def stall(self, is_stalled: bool = True) -> None:
        """No work begins at all."""
        self._library.fake_cuda_stall(int(is_stalled))

    def fail_copies(self, result: int) -> None:
        """Every copy fails with this error of the driver, and its stream with it; 0: none does."""
        self._library.fake_cuda_fail_copies(result)

    def forbid_ipc(self, is_forbidden: bool = True) -> None:
        """No memory is given to other processes."""
        self._library.fake_cuda_no_ipc(int(is_forbidden))

    def live(self, kind: int) -> int:
        """Return how many allocations of `DEVICE`, `PINNED` or `OPENED` memory there are."""
        return int(self._library.fake_cuda_live(kind))

    def join_never(self, is_never: bool = True) -> None:
        """No communicator of NCCL ever finds its other rank."""
        self._library.fake_nccl_join_never(int(is_never))

    def reset(self) -> None:
        """Have it do what it should again."""
        self.delay_us(0)
        self.stall(False)
        self.fail_copies(0)
        self.forbid_ipc(False)


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """Two GPUs that are none."""
    path = library("fake_cuda")
    monkeypatch.setenv(CUDA_LIBRARY, str(path))
    fake = FakeCuda(path)
    yield fake
    fake.reset()


@pytest.fixture
def fake_nccl(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """The same with NCCL, in one library."""
    path = library("fake_nccl")
    monkeypatch.setenv(CUDA_LIBRARY, str(path))
    monkeypatch.setenv(NCCL_LIBRARY, str(path))
    fake = FakeCuda(path)
    yield fake
    fake.reset()
    fake.join_never(False)
