"""A node for fabricctl to talk to: a fake daemon on a real control socket, and fabricctl run in this process."""

import sys
from typing import NamedTuple

import pytest

from fabric.cli import main, places
from fabric.testing.fake_control import FakeControl, ServedControl


class Result(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def socket_path(short_dir, monkeypatch):
    path = str(short_dir / "a.sock")
    monkeypatch.setenv("FABRIC_SOCKET", path)
    monkeypatch.setenv("XDG_STATE_HOME", str(short_dir / "state"))
    return path


@pytest.fixture
def control(socket_path):
    served = ServedControl(FakeControl(), places.control_socket(socket_path))
    yield served.control
    served.close()


@pytest.fixture
def fabricctl(socket_path, monkeypatch, capsys):
    """Run fabricctl with arguments; return its exit status and what it printed."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fabricctl", *arguments])
        capsys.readouterr()
        status = main.run()
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return run
