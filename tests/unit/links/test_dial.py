"""Connecting to one rail: from where, for how long, and what a dead path looks like."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from typing import Any

import pytest

from fabric.errors import DeadlineExceeded, PathBrokenError
from fabric.links.dial import Target, dial, give_up_after, is_stalled


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


async def test_connection_comes_from_the_address_that_it_was_told(listening):
    host, port = listening.getsockname()
    with await dial(Target(host, port, "127.0.0.9"), 2.0) as sock:
        assert sock.getsockname()[0] == "127.0.0.9"
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_connection_keeps_to_the_interface_that_it_was_told(listening):
    host, port = listening.getsockname()
    with await dial(Target(host, port, "127.0.0.1", "lo"), 2.0) as sock:
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"


async def test_refusal_names_the_rail():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        port = taken.getsockname()[1]
        with pytest.raises(
            PathBrokenError, match=f"127.0.0.1:{port} from 127.0.0.3: Connection refused"
        ):
            await dial(Target("127.0.0.1", port, "127.0.0.3"), 2.0)


async def test_local_address_that_is_not_ours_is_refused(listening):
    host, port = listening.getsockname()
    with pytest.raises(PathBrokenError, match="cannot reach"):
        await dial(Target(host, port, "198.51.100.7"), 2.0)


@pytest.mark.promise("P3")
async def test_peer_that_does_not_answer_is_given_up_in_time():
    with full_listener() as address:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"does not answer within 0\.1 s"):
            await dial(Target(*address), 0.1)
        assert time.monotonic() - began < 10.0, "not the minutes that the kernel would try"


@contextlib.contextmanager
def full_listener():
    """Yield an address that answers no SYN any more: its queue is full, and nobody accepts."""
    with socket.socket() as server, contextlib.ExitStack() as stack:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        yield server.getsockname()


async def test_cancelled_attempt_leaves_no_socket(listening):
    with full_listener() as address:
        task = asyncio.create_task(dial(Target(*address), 30.0))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_connection_whose_peer_is_busy_is_not_stalled(listening):
    with socket.create_connection(listening.getsockname()) as near:
        give_up_after(near, 0.7)
        near.sendall(b"x" * 1000)  # not read; the peer's kernel confirms it all the same
        assert not is_stalled(near, 0.0)
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 700
    assert not is_stalled(near, 0.0), "closed"


class Info:
    """A socket with these counts: segments sent again and unconfirmed, and when something was confirmed last."""

    def __init__(self, again: int, unacked: int, last_ack_ms: int) -> None:
        self._info = bytearray(104)
        self._info[2] = again
        struct.pack_into("=I", self._info, 24, unacked)
        struct.pack_into("=I", self._info, 56, last_ack_ms)

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        return bytes(self._info)


@pytest.mark.promise("P3")
@pytest.mark.parametrize(
    ("again", "unacked", "last_ack_ms", "stalled"),
    [(0, 1, 250, True), (1, 1, 10, True), (0, 0, 9000, False), (0, 1, 200, False)],
    ids=["silent since", "sent again", "idle", "confirmed since; more is on its way"],
)
def test_path_is_silent_when_nothing_was_confirmed_since(again, unacked, last_ack_ms, stalled):
    sock: Any = Info(again, unacked, last_ack_ms)
    assert is_stalled(sock, 0.25) is stalled
