"""The control API over a real unix socket, with a fake daemon behind it."""

import asyncio
import os
import socket
import stat
import tempfile
from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from fabric import errors, limits
from fabric.controlplane.api import server, status
from fabric.controlplane.api.client import ControlClient, is_unreachable
from fabric.testing.fake_control import AUDIT, ROWS, STATUS, TOPOLOGY, FakeControl, ServedControl

SPEC = "version: 1\nchannels:\n  kv: {type: kv.layer}\n"


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory(prefix="fab", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def running(folder):
    served = ServedControl(FakeControl(), str(folder / "a.sock.ctl"))
    yield served
    served.close()


@pytest.fixture
def control(running):
    running.control.__init__()
    return running.control


@pytest.fixture
def client(running, control):
    with ControlClient(running.path, deadline_s=10) as connected:
        yield connected


def test_status_answers_every_field_of_the_daemon_even_unknown_ones(client):
    assert client.status() == STATUS


def test_topology_and_listings_arrive_as_the_daemon_said(client):
    topology = client.topology()
    flow = topology["channels"][0]["flows"][0]
    assert topology["nodes"] == TOPOLOGY["nodes"]
    assert flow["flow"] == 1 << 48 | 5
    for kind, rows in ROWS.items():
        assert client.ls(kind) == rows
    assert client.show("module", "prefill")["pid"] == 4321


def test_audit_arrives_with_differences_and_counts(client, control):
    assert client.audit() == AUDIT
    control.audit_answer = {
        "verdict": "unbalanced",
        "differences": [{"where": "kv", "what": "one record twice"}],
    }
    assert client.audit()["differences"] == [{"where": "kv", "what": "one record twice"}]


def test_apply_hands_the_parsed_file_to_the_daemon(client, control, tmp_path):
    (tmp_path / "upper.py").touch()
    text = SPEC + "plugins: [upper.py]\n"
    answer = client.apply(text, source="f.yaml", search=[str(tmp_path)])
    spec = control.calls[-1][1]
    assert answer["generation"] == 4
    assert answer["changes"] == [{"kind": "channel", "name": "kv", "action": "added"}]
    assert spec.channels["kv"].type == "kv.layer"
    assert spec.plugins[0].path == str(tmp_path / "upper.py")


def test_apply_of_an_illegal_file_never_reaches_the_daemon(client, control):
    text = (
        "version: 1\nchannels:\n  kv: {type: t, overflow: drop_oldest, delivery: at_least_once}\n"
    )
    with pytest.raises(errors.ConfigError, match=r"f.yaml:3:17: channels.kv.overflow"):
        client.apply(text, source="f.yaml")
    assert control.calls == []


def test_validate_reports_the_rules_that_are_broken(client):
    problems = client.validate(
        "version: 1\nchannels:\n  kv: {type: t, pattern: broadcast, delivery: at_least_once}\n",
        source="f.yaml",
    )["problems"]
    assert [(p["where"], p["severity"]) for p in problems] == [("channels.kv.delivery", "error")]


def test_plugin_and_module_verbs_carry_their_arguments(client, control):
    assert client.plugin_load("/p/upper.py", "text", channel="kv")["exports"][0]["name"] == "upper"
    assert client.plugin_logs("upper", 5) == ["loaded", "Traceback (most recent call last):"]
    assert client.module_logs("prefill", 10**9) == ["ready"]
    assert (
        client.plugin_change("canary", "upper", path="/p/u.py", source="t", seconds=2.0)["version"]
        == 2
    )
    assert client.plugin_change("rollback", "upper", version=3)["name"] == "upper"
    assert client.module_stop("prefill") == {"name": "prefill", "state": "stopped"}
    assert control.calls == [
        ("plugin_load", "/p/upper.py", "text", "kv", None),
        ("plugin_logs", "upper", 5),
        ("module_logs", "prefill", limits.LOG_LINES_MAX),
        ("plugin_change", "canary", "upper", {"path": "/p/u.py", "source": "t", "seconds": 2.0}),
        ("plugin_change", "rollback", "upper", {"version": 3}),
        ("module_stop", "prefill"),
    ]


@pytest.mark.parametrize(
    "cls", sorted(set(errors.BY_CODE.values()) - {errors.FabricError}, key=lambda c: c.__name__)
)
def test_every_error_arrives_as_itself_with_its_context(client, control, cls):
    control.failure = cls("what, why, what to do: é", limit=3, where=["a", "b"])
    with pytest.raises(cls) as caught:
        client.status()
    assert type(caught.value) is cls
    assert caught.value.message == "what, why, what to do: é"
    assert caught.value.context == {"limit": 3, "where": ["a", "b"]}


def test_every_error_class_has_a_grpc_code_of_its_family():
    assert status.status_of(errors.ConfigError("")) is grpc.StatusCode.INVALID_ARGUMENT
    assert status.status_of(errors.PeerRestartedError("")) is grpc.StatusCode.UNAVAILABLE
    assert status.status_of(errors.TransformError("")) is grpc.StatusCode.FAILED_PRECONDITION
    assert status.status_of(errors.InternalError("")) is grpc.StatusCode.INTERNAL


def test_a_foreign_exception_in_the_daemon_is_an_internal_error(client, control):
    control.failure = KeyError("oops")
    with pytest.raises(errors.InternalError, match="KeyError: 'oops'"):
        client.status()


def test_an_error_with_an_enormous_context_still_arrives(client, control):
    control.failure = errors.CapacityError("é" * 4000, rows=["x" * 1000] * 100)
    with pytest.raises(errors.CapacityError) as caught:
        client.status()
    assert caught.value.context["context_left_out_bytes"] > limits.CONTROL_ERROR_BYTES_MAX


def test_a_call_that_takes_too_long_names_what_was_asked(running):
    class Slow(FakeControl):
        async def audit(self):
            await asyncio.Event().wait()

    slow = ServedControl(Slow(), running.path + "2")
    try:
        with (
            ControlClient(slow.path, deadline_s=0.2) as client,
            pytest.raises(errors.DeadlineExceeded) as caught,
        ):
            client.audit()
    finally:
        slow.close()
    assert "did not finish audit within 0.2 s" in caught.value.message


def test_no_daemon_is_told_apart_from_a_daemon_that_refuses(folder, client, control):
    with (
        ControlClient(str(folder / "nobody.ctl"), deadline_s=5) as nobody,
        pytest.raises(errors.BrokenError) as caught,
    ):
        nobody.status()
    assert is_unreachable(caught.value)
    control.failure = errors.BrokenError("the peer is gone")
    with pytest.raises(errors.BrokenError) as refused:
        client.status()
    assert not is_unreachable(refused.value)


def test_health_says_serving_and_nothing_does_not(client, folder):
    assert client.is_serving()
    with ControlClient(str(folder / "nobody.ctl")) as nobody:
        assert not nobody.is_serving()


def test_reflection_names_the_control_service(running):
    with grpc.insecure_channel(f"unix:{running.path}") as channel:
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        answer = next(
            iter(
                reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                    iter([request]), timeout=5
                )
            )
        )
    names = {service.name for service in answer.list_services_response.service}
    assert {"fabric.v1.Control", "grpc.health.v1.Health"} <= names


def test_the_socket_is_for_its_owner_only(running):
    assert stat.S_IMODE(os.stat(running.path).st_mode) == 0o600


def test_the_socket_is_private_from_its_first_instant(folder, monkeypatch):
    """Without the chmod that follows: the umask at bind alone must do it."""
    monkeypatch.setattr(server.os, "chmod", lambda *_: None)
    served = ServedControl(FakeControl(), str(folder / "early.ctl"))
    mode = stat.S_IMODE(os.stat(served.path).st_mode)
    served.close()
    assert mode == 0o600


def test_a_path_in_use_by_a_live_process_is_refused(running):
    with pytest.raises(errors.BusyError, match="another process serves"):
        running.run(server.serve(FakeControl(), running.path))
    assert os.path.exists(running.path)


def test_a_socket_left_by_a_dead_process_is_replaced_and_removed_at_the_end(folder):
    path = str(folder / "old.ctl")
    left = socket.socket(socket.AF_UNIX)
    left.bind(path)
    left.close()
    replaced = ServedControl(FakeControl(), path)
    with ControlClient(path, deadline_s=5) as client:
        assert client.status()["node"] == "a"
    replaced.close()
    assert not os.path.exists(path)


def test_a_file_that_is_no_socket_is_left_alone(running, folder):
    path = folder / "precious"
    path.write_text("data")
    with pytest.raises(errors.ConfigError, match="is not a socket"):
        running.run(server.serve(FakeControl(), str(path)))
    assert path.read_text() == "data"


def test_a_path_too_long_for_a_socket_is_refused_with_both_lengths(running):
    path = "/tmp/" + "x" * 110
    with pytest.raises(errors.ConfigError, match="115 bytes, the system allows 107"):
        running.run(server.serve(FakeControl(), path))


def test_a_folder_that_does_not_exist_is_a_clear_refusal(running):
    with pytest.raises(errors.ConfigError, match="cannot listen on /tmp/fab-nowhere/x"):
        running.run(server.serve(FakeControl(), "/tmp/fab-nowhere/x"))
