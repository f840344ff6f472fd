"""The congestion control of a connection between nodes: without pacing inside a machine, the system's elsewhere."""

from __future__ import annotations

import contextlib
import socket

import pytest

from fabric.errors import ConfigError
from fabric.links import congestion


@pytest.fixture(params=["127.0.0.1", "::1"])
def ends(request):
    """Two ends of a tcp connection over loopback."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server((request.param, 0), family=family))
        except OSError:
            pytest.skip(f"this machine has no {request.param}")
        left = stack.enter_context(socket.create_connection(server.getsockname()[:2]))
        yield left, stack.enter_context(server.accept()[0])


def of(sock):
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return raw.rstrip(b"\0").decode()


def test_connection_within_a_machine_is_not_paced(ends):
    for end in ends:
        assert congestion.is_within_machine(end)
        assert congestion.choose(end) == of(end)
        assert of(end) in congestion.UNPACED


def test_connection_to_another_machine_is_as_the_system_says(ends, monkeypatch):
    before = of(ends[0])
    monkeypatch.setattr(congestion, "is_within_machine", lambda sock: False)
    assert congestion.choose(ends[0]) == before == of(ends[0])


def test_connection_that_carries_chunks_is_not_paced_on_any_path(ends, monkeypatch):
    monkeypatch.setattr(congestion, "is_within_machine", lambda sock: False)
    assert congestion.choose(ends[0], is_scheduled=True) == of(ends[0])
    assert of(ends[0]) in congestion.UNPACED


def test_operator_may_leave_every_connection_to_the_system(ends):
    before = of(ends[0])
    assert congestion.choose(ends[0], "system") == before == of(ends[0])


def test_operator_may_name_one(ends):
    assert congestion.choose(ends[0], "reno") == "reno"


def test_one_that_cannot_be_had_leaves_the_connection_as_it_is(ends, monkeypatch):
    before = of(ends[0])
    monkeypatch.setattr(congestion, "UNPACED", ("none-such",))
    assert congestion.choose(ends[0]) == before


def test_socket_that_is_not_tcp_is_left_alone():
    left, right = socket.socketpair()
    with left, right:
        assert not congestion.is_within_machine(left)
        assert congestion.choose(left) == ""


def test_unknown_name_is_refused_with_those_that_are_there():
    with pytest.raises(ConfigError, match=r"--tcp-congestion 'none-such'.*reno"):
        congestion.check("none-such")
    for good in ("auto", "system", "reno"):
        assert congestion.check(good) == good
