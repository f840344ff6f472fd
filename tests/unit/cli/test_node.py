"""up and down with real processes: a stand-in daemon that serves, dies, hangs or lingers."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fabric import limits
from fabric.cli import node, places, processes

FAKE = str(Path(__file__).parent / "fake_fabricd.py")


@pytest.fixture
def fake(monkeypatch):
    """Choose how the stand-in behaves; whatever it started is ended with the test."""
    started = []
    popen = subprocess.Popen

    def remember(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(node, "DAEMON", (sys.executable, FAKE))
    monkeypatch.setattr(node.subprocess, "Popen", remember)

    def choose(mode):
        monkeypatch.setenv("FAKE_FABRICD", mode)
        return started

    yield choose
    for process in started:
        process.kill()
        process.wait(10)


def test_up_waits_until_the_node_serves_and_names_its_log(fabricctl, fake, socket_path):
    fake("serve")
    result = fabricctl("up", "--name", "n1", "--listen", "127.0.0.1:7400")
    log = places.daemon_log(places.default_state("n1"))
    assert result.status == 0
    assert f"starting node n1; its log: {log}\n" in result.out
    assert "node n1 serving, pid " in result.out
    assert "listens on 127.0.0.1:7400" in result.out
    assert log.exists()
    assert fabricctl("status").status == 0


def test_up_with_a_secret_that_is_not_there_is_refused_before_anything_starts(fabricctl, fake):
    started = fake("serve")
    result = fabricctl("up", "--secret-file", "/nowhere/secret")
    assert result.status == 1
    assert "--secret-file /nowhere/secret: no such file" in result.err
    assert not started


def test_up_of_a_node_that_is_up_says_so_and_starts_nothing(fabricctl, fake):
    fake("serve")
    fabricctl("up")
    again = fabricctl("up")
    assert again.status == 0
    assert again.out.startswith("node a is up already\n")


def test_up_of_another_name_on_the_same_socket_is_refused(fabricctl, fake, socket_path):
    fake("serve")
    fabricctl("up")
    result = fabricctl("up", "--name", "b")
    assert result.status == 1
    assert f"why: node a serves on {socket_path}" in result.err


def test_up_shows_what_a_node_said_that_died_at_start(fabricctl, fake):
    fake("die")
    result = fabricctl("up", "--listen", "127.0.0.1:1")
    assert result.status == 1
    assert "ended while it started (exit status 78)" in result.err
    assert "why: the address 127.0.0.1:1 is taken" in result.err


def test_up_shows_only_what_this_start_wrote(fabricctl, fake):
    fake("die")
    fabricctl("up", "--listen", "first:1")
    assert "first:1" not in fabricctl("up", "--listen", "second:2").err


def test_up_ends_a_node_that_never_serves_and_says_so(fabricctl, fake, monkeypatch):
    started = fake("hang")
    monkeypatch.setattr(limits, "NODE_UP_S", 2.0)
    result = fabricctl("up")
    assert result.status == 1
    assert "did not serve within 2 s, and was ended" in result.err
    assert "why: waiting for nothing" in result.err
    assert [process.poll() for process in started] == [0]


def test_up_in_a_folder_that_cannot_be_made_is_a_clear_refusal(fabricctl, fake, tmp_path):
    (tmp_path / "file").touch()
    result = fabricctl("up", "--state", str(tmp_path / "file" / "state"))
    assert result.status == 1
    assert "cannot use the folder" in result.err


def test_down_waits_for_every_process_and_verifies_that_nothing_is_left(
    fabricctl, fake, socket_path
):
    fake("serve")
    fabricctl("up")
    result = fabricctl("down")
    assert result == (0, "node a is down: 1 processes ended, nothing is left\n", "")
    assert not os.path.exists(places.control_socket(socket_path))


def test_down_names_what_is_left_of_a_node_that_does_not_stop(
    fabricctl, fake, socket_path, monkeypatch
):
    fake("linger")
    fabricctl("up")
    monkeypatch.setattr(limits, "NODE_DOWN_S", 0.2)
    result = fabricctl("down")
    assert result.status == 1
    assert "2 things are left after 0.2 s" in result.err
    assert f"socket {socket_path}.ctl" in result.err
    assert "fake_fabricd.py" in result.err


def test_down_without_a_node_has_nothing_to_stop(fabricctl):
    result = fabricctl("down")
    assert result.status == 0
    assert result.out.startswith("nothing to stop: no daemon answers on ")


def test_down_while_a_keeper_starts_its_daemon_again_is_not_called_done(fabricctl, socket_path):
    import socket

    with socket.socket(socket.AF_UNIX) as keeper:
        keeper.bind(socket_path)
        keeper.listen()
        result = fabricctl("down")
    assert result.status == 1
    assert f"a keeper holds {socket_path}" in result.err


def test_process_is_named_by_its_script_however_long_the_path_of_its_interpreter_is(tmp_path):
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    (deep / "python3").symlink_to(sys.executable)
    (deep / "worker.py").write_text("import sys\nprint(flush=True)\nsys.stdin.read()\n")
    command = [str(deep / "python3"), str(deep / "worker.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert processes.Watched([process.pid]).wait(0) == [(process.pid, "python3 worker.py")]
        process.stdin.close()


def test_a_process_that_ends_is_noticed_and_one_that_does_not_is_named():
    process = subprocess.Popen(["sleep", "60"])
    try:
        assert processes.Watched([process.pid]).wait(0.05) == [(process.pid, "sleep 60")]
        watched = processes.Watched([process.pid, 0, None, -5])
        assert len(watched) == 1
        process.send_signal(signal.SIGKILL)
        assert watched.wait(10) == []
    finally:
        process.kill()
        process.wait(10)


def test_a_process_that_ignores_the_request_is_killed():
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True
    )
    with process.stdout:
        process.stdout.readline()
        processes.end(process, 0.05)
    assert process.returncode == -signal.SIGKILL


def test_interrupted_up_ends_what_it_started(socket_path, fake, monkeypatch):
    fake("hang")
    started = []

    def interrupt(process, *_):
        started.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(node, "_await_serving", interrupt)
    with pytest.raises(KeyboardInterrupt):
        node.up()
    assert started[0].returncode is not None


@pytest.mark.parametrize("name", ["", "a/b", "..", "n" * 129])
def test_up_with_a_name_that_cannot_be_makes_no_folder(fabricctl, fake, name):
    started = fake("serve")
    result = fabricctl("up", "--name", name)
    assert result.status == 1
    assert "do:  choose another with --name" in result.err
    assert not places.default_state("a").parent.exists()
    assert started == []
