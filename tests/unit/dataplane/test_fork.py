"""fork, exec and exit in a process that holds a port: the parent notices nothing, the child never hangs or crashes."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fabric import errors

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.promise("P3", "P9")


def in_child(body, timeout=20.0):
    """Run `body` in a forked child, which then leaves through the interpreter's exit; returns its status."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            body()
            code = 0
        finally:
            os._exit(code)
    return wait_for(child, timeout)


def wait_for(child, timeout):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"the child was still there after {timeout:g} s")


def exchange(sender, receiver, types):
    sender.send(types.note("still here"), deadline=5)
    assert receiver.receive(5).text == "still here"


def test_child_that_closes_everything_leaves_the_parents_port_alone(ports, notes, types):
    sender, receiver = notes

    def close_all():
        receiver.close()
        sender.close()
        for port in ports:
            port.close()
            port.close()
        with pytest.raises(errors.ClosedError):
            ports[0].declare("x", types.note)

    assert in_child(close_all) == 0
    exchange(sender, receiver, types)
    ports[0].declare("more", types.note, pattern="queue")  # the socket of the parent works, too
    assert ports[0].sender("more", types.note).endpoint


def test_child_forked_while_all_threads_are_at_work_leaves(ports, notes, types):
    """Wherever the parent's threads stood at the fork, locks that they held are nobody's in the child."""
    import threading

    sender, receiver = notes
    stop = threading.Event()

    def work():
        while not stop.is_set():
            sender.send(types.note("x"), deadline=5)
            receiver.receive(5)

    threads = [threading.Thread(target=work) for _ in range(2)]
    gc.collect()
    gc.freeze()  # what other tests left is not the child's to walk through, page by copied page
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):

            def leave():
                for port in ports:
                    port.close()
                with pytest.raises(errors.ClosedError):
                    sender.send(types.note("child"), deadline=1)
                with pytest.raises(errors.ClosedError):
                    receiver.receive(1)
                gc.collect()

            assert in_child(leave) == 0
    finally:
        gc.unfreeze()
        stop.set()
        for thread in threads:
            thread.join(20)
    assert not any(thread.is_alive() for thread in threads)


def test_view_made_before_the_fork_is_readable_in_the_child_and_released_by_the_parent(
    ports, blocks, types
):
    sender, receiver = blocks
    sender.send(types.make_block(3, 64, 256), deadline=5)
    message = receiver.receive(5)
    array = message.data
    expected = np.asarray(array).copy()

    def look():
        assert np.array_equal(array, expected)
        with pytest.raises(errors.ClosedError):
            message.ack()

    assert in_child(look) == 0
    assert len(ports[1].native.views()) == 1
    message.ack()
    message.release()
    assert ports[1].native.views() == []
    assert np.array_equal(expected.shape, (64, 256))


def test_executed_program_inherits_no_descriptor_of_the_fabric(ports, blocks, types):
    """Shared memory, eventfds and the control socket are close-on-exec, also those that came over the socket."""
    sender, receiver = blocks
    sender.send(types.make_block(), deadline=5)
    receiver.receive(5).ack()
    script = (
        "import os\n"
        "for fd in os.listdir('/proc/self/fd'):\n"
        "    try: print(os.readlink('/proc/self/fd/' + fd))\n"
        "    except OSError: pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
        close_fds=False,
        check=True,
    )
    leaked = [line for line in done.stdout.split() if "fabric" in line or "eventfd" in line]
    assert leaked == []


LEAVE = """
import sys
import fabric
from tests.unit.dataplane.conftest import Block, Types
source, port = fabric.attach("source", sys.argv[1]), fabric.attach("leaver", sys.argv[1])
port.declare("left", Block, pattern="stream", delivery="at_least_once", klass="bulk")
out, inn = source.sender("left", Block), port.receiver("left", Block)
kept = []
for step in range(5):
    out.send(Types.make_block(step, 64, 256), deadline=10)
    kept.append(inn.receive(10))
arrays = [message.data for message in kept]
how = sys.argv[2]
if how == "close":
    port.close()
    assert float(arrays[2][0, 0]) == 2.0, "an array outlives its port"
    try:
        kept[0].ack()
        raise SystemExit("acknowledged on a closed port")
    except fabric.errors.ClosedError:
        pass
elif how == "forget":
    del source, port, out, inn, kept
    import gc
    gc.collect()
    assert float(arrays[2][0, 0]) == 2.0
elif how == "cycle":
    port.itself = [port, kept, arrays]
    del port, kept, arrays
elif how == "global":
    fabric.keep_me = arrays
elif how == "thread":
    import threading
    threading.Thread(target=lambda: inn.receive(60), daemon=True).start()
elif how == "busy":
    import itertools
    import threading
    for _ in range(4):
        threading.Thread(target=lambda: [inn.receive(0.0001) for _ in itertools.count()], daemon=True).start()
sys.exit(0)
"""


@pytest.mark.parametrize("how", ["exit", "close", "forget", "cycle", "global", "thread", "busy"])
def test_process_leaves_with_views_alive(node, how):
    """Arrays, messages, endpoints and port in any state at the interpreter's end: status 0, soon, no signal."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", LEAVE, node.path, how],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - began < 30
