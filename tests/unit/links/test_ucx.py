"""The ucx link's Python half: what is refused, what is said where it is absent, and that loading it changes nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from fabric import _native
from fabric.abc.link import PLAIN_CHUNKS, UCX_FRAMES
from fabric.controlplane import ucx_rails
from fabric.errors import PathBrokenError
from fabric.links import rail_link, ucx
from fabric.links.addresses import LocalAddress
from fabric.testing.rigs import rig

needs_ucx = pytest.mark.needs_ucx


def sockets() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


def test_without_the_module_a_link_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr(ucx, "_loaded", lambda: (None, "this build has no ucx link: install it"))
    one, two = sockets()
    with pytest.raises(PathBrokenError, match="no ucx link: this build has no ucx link"):
        ucx.make_link(one.detach(), 7)
    assert two.recv(1) == b"", "the socket was taken, so it is closed"
    two.close()
    assert ucx.check() == ucx.unavailable() == "this build has no ucx link: install it"
    assert not ucx.UcxBackend().probe().available


@needs_ucx
def test_transports_that_ucx_has_not_are_refused_by_name_and_the_socket_is_closed():
    one, two = sockets()
    with pytest.raises(PathBrokenError, match="transports 'warp' on 'eth9': No such device"):
        ucx.make_link(one.detach(), 7, "warp", "eth9")
    assert two.recv(1) == b""
    two.close()


@needs_ucx
def test_link_that_no_engine_takes_closes_its_socket():
    one, two = sockets()
    link = ucx.make_link(one.detach(), 7, "tcp", "lo")
    del link
    two.settimeout(5.0)
    while two.recv(4096):  # its address may have been said
        pass
    two.close()


@needs_ucx
def test_link_is_taken_once_and_anything_else_is_refused(monkeypatch):
    with rig("inproc") as joined:
        one, two = sockets()
        link = ucx.make_link(one.detach(), joined.session, "tcp", "lo")
        joined.engines[0].add_link(joined.session, link, 2)
        with pytest.raises(ValueError, match=r"found 'fabric\.Link, taken'"):
            joined.engines[0].add_link(joined.session, link, 2)
        with pytest.raises(ValueError, match="found no link"):
            joined.engines[0].add_link(joined.session, object(), 2)
        two.close()


@needs_ucx
def test_link_for_a_session_that_is_not_there_is_closed():
    with rig("inproc") as joined:
        one, two = sockets()
        link = ucx.make_link(one.detach(), 99, "tcp", "lo")
        with pytest.raises(ValueError, match="no such session"):
            joined.engines[0].add_link(99, link, 2)
        two.settimeout(5.0)
        assert two.recv(1) == b""
        two.close()


LOAD = """
import os, signal, sys
from fabric.links import ucx
before = {n: signal.getsignal(n) for n in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)}
handlers = open("/proc/self/status").read().split("SigCgt:")[1].split()[0]
environment = dict(os.environ)
assert ucx.has_ucx(), ucx.unavailable()
assert ucx.check("warp") != ""
assert open("/proc/self/status").read().split("SigCgt:")[1].split()[0] == handlers
assert dict(os.environ) == environment
"""


@needs_ucx
def test_loading_ucx_installs_no_signal_handler_says_nothing_and_leaves_the_environment():
    done = subprocess.run(
        [sys.executable, "-c", LOAD], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_ucx
@pytest.mark.parametrize(
    ("bytes_", "said"),
    [
        (b"GET / HTTP/1.1\r\nHost: far away\r\n\r\n", "not the address of a ucx worker"),
        (bytes.fromhex("46414255 0100 0000 00004000 00000000") + bytes(8), "not the address"),
        (bytes.fromhex("46414255 0100 0000 40000000 00000000") + bytes(8 + 64), "ucx"),
        (b"", "closed by peer"),
    ],
    ids=["another protocol", "an address without end", "no address", "nothing"],
)
def test_peer_that_says_anything_but_its_address_breaks_the_link_and_nothing_else(bytes_, said):
    with rig("inproc") as joined:
        one, two = sockets()
        joined.engines[0].add_link(
            joined.session, ucx.make_link(one.detach(), joined.session, "tcp", "lo"), 2
        )
        two.sendall(bytes_)
        two.shutdown(socket.SHUT_WR)
        deadline = _native.monotonic_ns() + 10**10
        while not (down := [e for _, e in joined.events if e["event"] == "link_down"]):
            assert _native.monotonic_ns() < deadline
            os.sched_yield()
        two.close()
        assert down[0]["group"] == 2 and said in down[0]["reason"]
        flow = joined.open_flow()
        flow.send(b"still here")
        message = flow.receive()
        assert message is not None
        message.ack()


# ------------------------------------------------------------------ what the daemon decides
def test_rail_of_ucx_keeps_its_checksums_whatever_the_operator_says():
    assert ucx_rails.offer_dialling("ucx+shm", PLAIN_CHUNKS) == UCX_FRAMES
    assert ucx_rails.offer_dialling("tcp", PLAIN_CHUNKS) == PLAIN_CHUNKS
    assert ucx_rails.offer_accepting(["tcp"], PLAIN_CHUNKS) == PLAIN_CHUNKS
    assert ucx_rails.offer_accepting(["tcp", "ucx"], 0) == UCX_FRAMES


def test_network_transports_keep_to_the_interface_of_their_address(monkeypatch, tmp_path):
    here = LocalAddress("eth1", "10.1.0.5", 24, index=3)
    monkeypatch.setattr(ucx_rails.addresses, "local_addresses", lambda: (here,))
    assert ucx_rails.devices_for("all", "10.1.0.5", tmp_path) == "eth1"
    assert ucx_rails.devices_for("shm", "10.1.0.5", tmp_path) == ""
    with pytest.raises(
        PathBrokenError, match=r"no interface here has the IPv4 address '10\.9\.9\.9'"
    ):
        ucx_rails.devices_for("all", "10.9.9.9", tmp_path)
    (tmp_path / "eth1" / "device" / "infiniband" / "mlx5_1").mkdir(parents=True)
    (tmp_path / "eth1" / "dev_port").write_text("1\n")
    assert ucx_rails.devices_for("rc,ud", "10.1.0.5", tmp_path) == "mlx5_1:2,eth1"


def test_links_of_rails_are_read_from_their_names(monkeypatch):
    assert rail_link.split_link("ucx+shm:127.0.0.1:0") == ("ucx+shm", "127.0.0.1:0")
    assert rail_link.split_link("[fd00::2]:7400") == ("tcp", "[fd00::2]:7400")
    assert rail_link.transports_of("ucx") == "all"
    assert rail_link.missing("tcp") == ""
    monkeypatch.setattr(rail_link.importlib.util, "find_spec", lambda name: None)
    assert "install libucx-cu12" in rail_link.missing("ucx+shm")
