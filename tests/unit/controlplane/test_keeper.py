"""The keeper alone, with small scripts in the place of daemon and modules."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

PRELUDE = """
import asyncio, os, signal, sys, time
from pathlib import Path
from fabric.controlplane.keeper_client import KeeperLink
where = Path(sys.argv[1])
keeper = KeeperLink(int(sys.argv[-1]))
loaded = keeper.load()
def note(name, text=""):
    (where / (name + ".new")).write_text(str(text)); (where / (name + ".new")).rename(where / name)
"""
RUN = """
import sys
from fabric.controlplane import keeper
keeper.ABSENT_S = float(sys.argv[3])
import os
exec(sys.argv[4])
argv = [sys.executable, sys.argv[2], sys.argv[1]]
options = keeper.KeeperOptions(argv, dict(os.environ), [sys.argv[1] + "/path"])
sys.exit(keeper.Keeper(options).run())
"""


def wait_for(path: Path, seconds: float = 10.0) -> str:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not appear"
        time.sleep(0.01)
    return path.read_text()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(*pids: int, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline, f"{[p for p in pids if is_running(p)]} still run"
        time.sleep(0.01)


class Running:
    def __init__(self, folder: Path, daemon: str, absent_s: float, patch: str) -> None:
        script = folder / "daemon.py"
        script.write_text(PRELUDE + textwrap.dedent(daemon))
        (folder / "path").touch()
        command = [sys.executable, "-c", RUN, str(folder), str(script), str(absent_s)]
        command.append(textwrap.dedent(patch))  # what the keeper does before it runs
        self.folder = folder
        self.process = subprocess.Popen(command)

    def note(self, name: str, seconds: float = 10.0) -> str:
        return wait_for(self.folder / name, seconds)


@pytest.fixture
def start(short_dir):
    made = []

    def starting(daemon: str, absent_s: float = 10.0, patch: str = "") -> Running:
        made.append(Running(short_dir, daemon, absent_s, patch))
        return made[-1]

    yield starting
    for running in made:
        running.process.kill()
        running.process.wait(5)


def test_what_a_killed_daemon_had_put_is_handed_to_the_next(start):
    running = start("""
        if "k" in loaded.items:
            value, fd = loaded.items["k"]
            note("second", (value, os.pread(fd, 9, 0), sorted(loaded.items)))
            keeper.ready()
            time.sleep(60)
        fd = os.memfd_create("x")
        os.write(fd, b"persists")
        keeper.put("k", {"n": 1}, fd)
        keeper.put("k", {"n": 2})
        keeper.put("gone/1", {}); keeper.put("gone/2", {}); keeper.drop("gone/")
        keeper.ready()
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert running.note("second") == "({'n': 2}, b'persists', ['k'])"


@pytest.mark.promise("P8")
def test_keeper_short_of_descriptors_says_what_it_does_not_keep_and_lives_on(start):
    running = start("""
        import resource, psutil
        from fabric.errors import ConfigError
        async def main():
            keeper.start()
            keeper.ready()
            refused = asyncio.Queue()
            keeper.on_not_kept = lambda key, limit: refused.put_nowait((key, limit))
            if loaded.items:
                note("second", sorted(k for k in loaded.items if k.startswith("k")))
                await asyncio.sleep(60)
            read, write = os.pipe()
            keeper.put("kept", {}, read)
            keeper.put("key", {"n": 1}, read)
            first = await keeper.spawn("m0", ["true"], dict(os.environ), str(where / "m.log"))
            parent = os.getppid()
            limits = resource.prlimit(parent, resource.RLIMIT_NOFILE)
            resource.prlimit(parent, resource.RLIMIT_NOFILE, (3, limits[1]))
            keeper.put("key", {"n": 2}, read)
            note("refused", await asyncio.wait_for(refused.get(), 5))
            try:
                await keeper.spawn("m1", ["true"], dict(os.environ), str(where / "m.log"))
            except ConfigError as error:
                note("spawn", error)
            resource.prlimit(parent, resource.RLIMIT_NOFILE, limits)
            await keeper.spawn("m2", ["true"], dict(os.environ), str(where / "m.log"))
            os.kill(os.getpid(), signal.SIGKILL)
        asyncio.run(main())
    """)
    assert running.note("refused") == "('key', 'RLIMIT_NOFILE')"
    assert "Too many open files" in running.note("spawn")
    assert running.note("second") == "['kept']", "half of an entry would be taken for all of it"


SPAWNING = """
    async def main():
        keeper.start()
        ended = asyncio.Event()
        keeper.on_exit = lambda tag, pid, code: (note("exited", (tag, code)), ended.set())
        keeper.ready()
        if loaded.children or loaded.exits:
            note("again", (loaded.children, [(e["tag"], e["code"]) for e in loaded.exits]))
        else:
            pid = await keeper.spawn("m", {argv}, dict(os.environ), str(where / "m.log"))
            note("pid", pid)
        keeper.on_stop = ended.set
        await ended.wait()
    asyncio.run(main())
"""
SLEEP = '["sleep", "60"]'


def test_exit_of_a_module_is_reported_with_its_code_and_its_output_is_in_the_log(start):
    running = start(SPAWNING.replace("{argv}", '["sh", "-c", "echo said; exit 3"]'))
    assert running.note("exited") == "('m', 3)"
    assert running.note("m.log") == "said\n"


def test_module_outlives_the_daemon_and_is_handed_back(start):
    running = start(SPAWNING.replace("{argv}", SLEEP))
    pid = int(running.note("pid"))
    kill_daemon(running)
    assert running.note("again") == f"({{'m': {pid}}}, [])"
    assert is_running(pid)


def test_exit_while_no_daemon_is_there_is_told_to_the_next_one(start):
    running = start(SPAWNING.replace("{argv}", SLEEP))
    pid = int(running.note("pid"))
    daemon = kill_daemon(running)
    os.kill(pid, signal.SIGKILL)
    wait_until_gone(daemon, pid)
    assert running.note("again") == "({}, [('m', -9)])"


def test_modules_end_when_no_daemon_serves_for_too_long(start):
    running = start(
        """
        if (where / "pid").exists():
            sys.exit(1)  # it never serves again
    """
        + textwrap.indent(textwrap.dedent(SPAWNING.replace("{argv}", SLEEP)), "        "),
        absent_s=0.5,
    )
    pid = int(running.note("pid"))
    kill_daemon(running)
    wait_until_gone(pid)
    assert running.process.poll() is None, "the keeper itself goes on trying"


def test_orderly_stop_ends_daemon_and_modules_and_removes_the_paths(start):
    running = start(SPAWNING.replace("{argv}", '["sh", "-c", "sleep 61 & sleep 62"]'))
    pid = int(running.note("pid"))
    running.process.terminate()
    assert running.process.wait(10) == 0
    wait_until_gone(pid)
    assert not (running.folder / "path").exists()


def test_kill_of_the_keeper_takes_daemon_and_modules_along(start):
    running = start(SPAWNING.replace("{argv}", SLEEP))
    pid = int(running.note("pid"))
    daemon = daemon_of(running)
    running.process.kill()
    wait_until_gone(pid, daemon)


def test_daemon_that_never_served_is_not_started_again(start):
    running = start("sys.exit(78)")
    assert running.process.wait(10) == 78


@pytest.mark.promise("P3")
def test_daemon_that_is_asked_to_end_in_its_very_first_start_gets_a_successor(start):
    running = start("""
        if not (where / "first").exists():
            note("first")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        keeper.ready()
        note("second")
        time.sleep(60)
    """)
    running.note("second")


@pytest.mark.promise("P3")
def test_daemon_that_the_machine_cannot_start_now_is_started_later(start):
    running = start(
        """
        keeper.ready()
        if (where / "refused").exists():
            note("second", sorted(loaded.items))
            time.sleep(60)
        keeper.put("kept", {})
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        patch="""
        import errno, pathlib
        calls, spawn = [], keeper.children.spawn
        def refusing(*args, **options):
            calls.append(args)
            if len(calls) == 2:
                pathlib.Path(sys.argv[1], "refused").touch()
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return spawn(*args, **options)
        keeper.children.spawn = refusing
        """,
    )
    assert running.note("second") == "['kept']", "what it kept outlives the attempt that failed"


def daemon_of(running: Running) -> int:
    listing = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text()
    for pid in map(int, listing.split()):
        if b"daemon.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise AssertionError("no daemon")


def kill_daemon(running: Running) -> int:
    pid = daemon_of(running)
    os.kill(pid, signal.SIGKILL)
    return pid


SIGNING = """
    async def main():
        keeper.start()
        stop = asyncio.Event()
        keeper.on_stop = stop.set
        keeper.ready()
        note("served-%d" % len([p for p in where.iterdir() if p.name.startswith("served")]))
        {signs}
        await stop.wait()
        note("asked")
    asyncio.run(main())
"""


@pytest.mark.promise("P3")
def test_daemon_that_gives_no_sign_is_killed_and_started_again(start):
    running = start(SIGNING.replace("{signs}", "time.sleep(60)"))
    running.note("served-0")
    began = time.monotonic()
    running.note("served-1")
    assert 2.5 < time.monotonic() - began < 6.0


@pytest.mark.promise("P3")
def test_daemon_that_gives_signs_is_left_alone_and_asked_to_stop_by_the_keeper(start):
    signs = "[(keeper.alive(), await asyncio.sleep(0.5)) for _ in range(8)]"
    running = start(SIGNING.replace("{signs}", signs))
    running.note("served-0")
    time.sleep(4.0)
    assert not (running.folder / "served-1").exists()
    running.process.terminate()
    assert running.note("asked") == "" and running.process.wait(10) == 0


@pytest.mark.promise("P3")
def test_keeper_that_was_stopped_kills_no_daemon_for_its_own_pause(start):
    running = start(
        SIGNING.replace(
            "{signs}", "[(keeper.alive(), await asyncio.sleep(0.3)) for _ in range(40)]"
        )
    )
    running.note("served-0")
    running.process.send_signal(signal.SIGSTOP)
    time.sleep(4.0)
    running.process.send_signal(signal.SIGCONT)
    time.sleep(1.0)
    assert not (running.folder / "served-1").exists()


def test_daemon_that_asks_for_a_successor_gets_one_at_once(start):
    running = start("""
        if (where / "first").exists():
            keeper.ready()
            note("second")
            time.sleep(60)
        note("first")
        sys.exit(75)
    """)
    running.note("first")
    running.note("second", 2.0)
