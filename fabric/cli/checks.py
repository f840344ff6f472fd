"""What `fabricctl doctor` looks at: one small function per fact, each naming what was found and what to do.

States: ``ok``; ``note`` (an optional thing is absent); ``warn`` (works, but slower or near a limit);
``fail`` (a node will not run). Paths are arguments, so that a test can show other machines.
"""

from __future__ import annotations

import ctypes.util
import fcntl
import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from fabric import limits, units

PYTHON_MIN = (3, 11)
DEPENDENCIES = (
    "msgspec", "numpy", "grpcio", "grpcio-health-checking", "grpcio-reflection", "protobuf", "pyyaml", "psutil",
    "structlog", "typer", "rich",
)  # fmt: skip
MODEL_DEPENDENCIES = ("torch", "transformers", "gguf", "safetensors")
FILES_WANTED = 4096  # descriptors: two per lane, one per segment, for some hundred ports
SHM_FREE_WANTED_BYTES = 256 << 20
MEMLOCK_WANTED_BYTES = 64 << 20
F_ADD_SEALS = 1033  # fcntl.h; the Python constants lack FUTURE_WRITE
SEAL_SHRINK_GROW_FUTURE_WRITE = 0x2 | 0x4 | 0x10


class Check(NamedTuple):
    """One fact about the machine."""

    name: str
    state: str
    found: str
    advice: str = ""


def kernel() -> Check:
    """The calls that the data plane cannot do without: memfd with a future-write seal, eventfd, pidfd."""
    missing = []
    try:
        descriptor = os.memfd_create("fabric-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, 4096)
            fcntl.fcntl(descriptor, F_ADD_SEALS, SEAL_SHRINK_GROW_FUTURE_WRITE)
        finally:
            os.close(descriptor)
    except OSError as error:
        missing.append(f"sealed memfd ({error.strerror})")
    probes: dict[str, Callable[[], int]] = {
        "eventfd": lambda: os.eventfd(0),
        "pidfd": lambda: os.pidfd_open(os.getpid()),
    }
    for name, probe in probes.items():
        try:
            os.close(probe())
        except OSError as error:
            missing.append(f"{name} ({error.strerror})")
    if missing:
        return Check(
            "kernel",
            "fail",
            f"{platform.release()} lacks {', '.join(missing)}",
            "use Linux 5.4 or newer",
        )
    return Check("kernel", "ok", f"{platform.release()}: sealed memfd, eventfd, pidfd")


def cpus() -> Check:
    """How many CPUs this process may use; below two, daemon and modules take turns."""
    count = len(os.sched_getaffinity(0))
    if count < 2:
        return Check(
            "cpus", "warn", f"{count} usable", "two or more let the engine run beside the modules"
        )
    return Check("cpus", "ok", f"{count} usable")


def memlock() -> Check:
    """Locked memory, which registered (RDMA, pinned) arenas need; shared memory and tcp do not."""
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if soft == resource.RLIM_INFINITY:
        return Check("memlock", "ok", "unlimited")
    if soft < MEMLOCK_WANTED_BYTES:
        advice = "ulimit -l unlimited, before links with registered memory are used"
        return Check("memlock", "note", units.format_bytes(soft), advice)
    return Check("memlock", "ok", units.format_bytes(soft))


def files() -> Check:
    """Open descriptors: lanes and segments are passed as descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES_WANTED:
        return Check(
            "open files", "warn", f"{soft} (hard limit {hard})", f"ulimit -n {FILES_WANTED}"
        )
    return Check("open files", "ok", str(soft))


def shared_memory(folder: str = "/dev/shm") -> Check:
    """Where torch and others keep shared memory; the fabric's own segments are memfds and need no folder."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Check(
            folder,
            "note",
            error.strerror or str(error),
            f"mount -t tmpfs tmpfs {folder}, for modules that use it",
        )
    if free < SHM_FREE_WANTED_BYTES:
        return Check(
            folder,
            "warn",
            f"{units.format_bytes(free)} free",
            "enlarge it: mount -o remount,size=2G " + folder,
        )
    return Check(folder, "ok", f"{units.format_bytes(free)} free")


def huge_pages(path: str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled") -> Check:
    """Whether shared memory can have huge pages (fewer TLB misses for large arenas)."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        return Check("huge pages", "note", f"unknown: {error.strerror}")
    chosen = text.partition("[")[2].partition("]")[0] or text.strip()
    if chosen in ("never", "deny"):
        return Check(
            "huge pages",
            "note",
            f"off for shared memory ({chosen})",
            f"echo advise > {path} (as root)",
        )
    return Check("huge pages", "ok", f"{chosen} for shared memory")


def congestion_control(folder: str = "/proc/sys/net/ipv4") -> Check:
    """Which algorithm new tcp connections get, and what else there is."""
    try:
        used = Path(folder, "tcp_congestion_control").read_text().strip()
        available = Path(folder, "tcp_available_congestion_control").read_text().split()
    except OSError as error:
        return Check("congestion control", "note", f"unknown: {error.strerror}")
    return Check("congestion control", "ok", f"{used} (available: {', '.join(available)})")


def python() -> Check:
    """The interpreter's version."""
    found = platform.python_version()
    if sys.version_info < PYTHON_MIN:
        return Check(
            "python", "fail", found, f"use Python {PYTHON_MIN[0]}.{PYTHON_MIN[1]} or newer"
        )
    return Check("python", "ok", f"{found} ({sys.executable})")


def native_core() -> Check:
    """The compiled extension."""
    spec = importlib.util.find_spec("fabric._native")
    if spec is None:
        return Check("native core", "fail", "fabric._native is not built", "build it: make setup")
    return Check("native core", "ok", str(spec.origin))


def packages(names: tuple[str, ...] = DEPENDENCIES) -> Check:
    """The Python packages that daemon and fabricctl need."""
    found, missing = _versions(names)
    if missing:
        return Check(
            "packages", "fail", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}"
        )
    return Check("packages", "ok", ", ".join(found))


def model_packages(names: tuple[str, ...] = MODEL_DEPENDENCIES) -> Check:
    """What the model modules need, and nothing else does."""
    found, missing = _versions(names)
    if missing:
        return Check(
            "model packages",
            "note",
            f"missing: {', '.join(missing)}",
            "for model modules: make setup",
        )
    return Check("model packages", "ok", ", ".join(found))


def _versions(names: tuple[str, ...]) -> tuple[list[str], list[str]]:
    found, missing = [], []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    return found, missing


def socket_path(path: str) -> Check:
    """The attach socket's path and that of the control socket beside it (``.ctl``)."""
    size = len(os.fsencode(path)) + len(".ctl")
    found = f"{path} ({size} of {limits.SOCKET_PATH_BYTES_MAX} bytes with .ctl)"
    if size > limits.SOCKET_PATH_BYTES_MAX:
        return Check(
            "socket path", "fail", found, "choose a shorter --socket, or set XDG_RUNTIME_DIR"
        )
    folder = Path(path).parent
    if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
        return Check("socket path", "fail", f"{folder} is not writable", "choose another --socket")
    return Check("socket path", "ok", found)


def daemon(path: str) -> Check:
    """Whether a node serves on that socket."""
    from fabric.cli.failure import Failure
    from fabric.cli.options import connect

    try:
        with connect(path, deadline_s=limits.CLOSE_S) as client:
            if client.is_serving():
                return Check("daemon", "ok", f"serves on {path}")
    except Failure as too_long:
        return Check("daemon", "note", too_long.what, too_long.fix)
    return Check("daemon", "note", f"none on {path}", "start one: fabricctl up")


def paths(path: str) -> Check:
    """Whether the rails to other nodes carry, where a node serves on that socket."""
    from fabric import errors
    from fabric.cli.failure import Failure
    from fabric.cli.options import connect

    try:
        with connect(path, deadline_s=limits.CLOSE_S) as client:
            rows = client.path_ls()
    except (Failure, errors.FabricError):
        return Check("paths", "note", "no node to ask", "start one: fabricctl up")
    waits = sorted({row["peer"] for row in rows if row.get("waits")})
    if waits:
        found = f"large messages to {', '.join(waits)} wait: no pinned rail is up"
        return Check("paths", "warn", found, f"fabricctl path unpin {waits[0]}")
    lost = [f"rail {row['rail']} to {row['peer']}" for row in rows if row["state"] != "up"]
    if lost:
        found = f"{len(lost)} of {len(rows)} rails do not carry: {', '.join(lost)}"
        return Check("paths", "warn", found, "see why: fabricctl path show PEER")
    return Check("paths", "ok", f"{len(rows)} rails carry" if rows else "no other node")


def gpu(device: str = "/dev/nvidiactl") -> Check:
    """An NVIDIA device and the library that speaks to it."""
    library = ctypes.util.find_library("nvidia-ml")
    if not os.path.exists(device):
        return Check(
            "gpu",
            "note",
            f"none: {device} is absent",
            "host memory serves",
        )
    if library is None:
        return Check(
            "gpu",
            "warn",
            f"{device} is there, libnvidia-ml is not",
            "install the driver's user libraries",
        )
    return Check("gpu", "ok", f"{device}, {library}")


def ucx() -> Check:
    """The UCX link, a separate extension module that may be absent, and the transports that UCX has here."""
    from fabric.links import ucx as link

    if why := link.unavailable():
        return Check("ucx", "note", why, "until then nodes talk over tcp")
    usable = [name for name in link.TRANSPORTS if name != "all" and not link.check(name)]
    found = f"UCX {link.version()}, transports {', '.join(usable) or 'none of tcp and shm'}"
    return Check("ucx", "ok", f"{found}; a rail of it is --listen ucx:HOST:PORT")


def gpu_links() -> Check:
    """The links over GPU memory: what CUDA's driver shows, and NCCL."""
    from fabric.links import gpu as link

    found = link.driver()
    if found.why:
        return Check(
            "gpu links", "note", found.why, "host memory serves; --listen cuda_ipc: is left out"
        )
    version = f"{found.version // 1000}.{found.version % 1000 // 10}"
    nccl = link.nccl_version() or f"none ({link.unavailable(link.NCCL)})"
    what = f"{found.gpus} GPUs, CUDA {version}, NCCL {nccl}"
    if kept := link.remains():
        what += f"; {kept} closed connections keep memory"
    return Check("gpu links", "ok", f"{what}; a rail is --listen cuda_ipc:HOST:PORT")


def run_all(path: str) -> Iterator[Check]:
    """Yield every check of this machine, for the node on the attach socket `path`."""
    for check in (
        kernel,
        cpus,
        memlock,
        files,
        shared_memory,
        huge_pages,
        congestion_control,
        python,
        native_core,
    ):
        yield check()
    yield packages()
    yield model_packages()
    yield socket_path(path)
    yield daemon(path)
    yield paths(path)
    yield gpu()
    yield ucx()
    yield gpu_links()
