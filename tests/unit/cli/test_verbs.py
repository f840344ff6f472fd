"""Verbs that change or judge: validate, apply, audit, plugins, modules."""

import json

import pytest

from fabric import errors

GOOD = "version: 1\nchannels:\n  kv: {type: kv.layer}\n"
BAD = "version: 1\nchannels:\n  kv: {type: kv.layer, delivery: at_least_once, overflow: drop_oldest}\n"


@pytest.fixture
def spec_file(tmp_path):
    def write(text):
        file = tmp_path / "f.yaml"
        file.write_text(text)
        return str(file)

    return write


def test_validate_without_a_node_checks_what_it_can_and_says_so(fabricctl, spec_file):
    file = spec_file(GOOD)
    result = fabricctl("validate", file)
    assert result.status == 0
    assert result.out == (
        f"{file} is valid (no node runs, so names of routes, transforms and nodes were not checked)\n"
    )


def test_validate_with_a_node_asks_it_too(fabricctl, spec_file, control, socket_path):
    assert (
        f"checked against the node on {socket_path}.ctl"
        in fabricctl("validate", spec_file(GOOD)).out
    )
    assert control.calls[-1][0] == "validate"


def test_validate_refuses_with_the_place_of_every_problem(fabricctl, spec_file):
    file = spec_file(BAD)
    result = fabricctl("validate", file)
    assert result.status == 1
    assert (
        f"why: {file}:3:49: channels.kv.overflow: overflow drop_oldest with delivery at_least_once"
        in result.err
    )


def test_validate_shows_warnings_and_still_succeeds(fabricctl, spec_file):
    result = fabricctl(
        "validate", spec_file(GOOD + "modules: {m: {class: 'a:b', channels: {x: nope}}}\n")
    )
    assert result.status == 0
    assert result.out.startswith("warning: ")


def test_apply_prints_generation_and_changes(fabricctl, spec_file, control):
    result = fabricctl("apply", spec_file(GOOD))
    assert result == (
        0,
        "generation 4\nKIND     NAME  ACTION  DETAIL\nchannel  kv    added   -\n",
        "",
    )
    assert control.calls[-1][1].channels["kv"].type == "kv.layer"


def test_apply_of_an_illegal_file_reaches_no_daemon(fabricctl, spec_file, control):
    assert fabricctl("apply", spec_file(BAD)).status == 1
    assert control.calls == []


def test_apply_that_the_node_refuses_says_why(fabricctl, spec_file, control):
    control.failure = errors.ConfigError("channels.kv.route: there is no route 'x'")
    result = fabricctl("apply", spec_file(GOOD))
    assert result.status == 1
    assert "why: channels.kv.route: there is no route 'x'" in result.err


def test_audit_that_balances_exits_zero(fabricctl, control):
    result = fabricctl("audit")
    assert result == (
        0,
        "CHANNEL  ACCEPTED  DELIVERED  DROPPED  FAILED  IN FLIGHT\n"
        "kv             60         58        0       0          2\n"
        "\n"
        "audit: balanced in 12.5 ms\n",
        "",
    )


def test_audit_with_a_difference_exits_one_and_names_it(fabricctl, control):
    control.audit_answer |= {
        "verdict": "unbalanced",
        "differences": [{"where": "kv", "what": "record 7 twice"}],
    }
    result = fabricctl("audit")
    assert result.status == 1
    assert "difference: kv: record 7 twice\naudit: unbalanced" in result.out


def test_audit_names_the_reasons_of_what_was_not_delivered(fabricctl, control):
    row = {"name": "kv", "accepted": 5, "delivered": 2, "dropped": 0, "failed": 3, "in_flight": 0}
    row |= {"dropped_by_reason": {}, "failed_by_reason": {"peer_lost": 1, "closed": 2}}
    control.audit_answer |= {"channels": [row]}
    assert (
        "kv              5          2        0  3 (closed 2, peer_lost 1)          0\n"
        in fabricctl("audit").out
    )


@pytest.mark.parametrize("verdict", ["indeterminate", "surprise", None])
def test_audit_without_a_verdict_exits_three(fabricctl, control, verdict):
    control.audit_answer |= {"verdict": verdict, "reason": "a port did not freeze"}
    result = fabricctl("audit", "-o", "json")
    assert result.status == 3
    assert json.loads(result.out)["reason"] == "a port did not freeze"


def test_audit_without_a_daemon_is_no_verdict_rather_than_a_difference(fabricctl):
    result = fabricctl("audit")
    assert result.status == 3
    assert "error: there is no verdict" in result.err


def test_plugin_load_sends_the_file_and_shows_its_exports(fabricctl, control, tmp_path):
    file = tmp_path / "upper.py"
    file.write_text("x = 1\n")
    result = fabricctl("plugin", "load", str(file), "--channel", "kv")
    assert result.out == (
        "loaded upper on channel kv\n"
        "KIND       NAME   ACCEPTS    PRODUCES\n"
        "transform  upper  demo.text  demo.text\n"
    )
    assert control.calls == [("plugin_load", str(file), "x = 1\n", "kv", None)]


def test_plugin_load_of_broken_python_is_refused_before_it_is_sent(fabricctl, control, tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("x = 1\ndef (:\n")
    result = fabricctl("plugin", "load", str(file))
    assert result.status == 1
    assert f"why: {file}:2: " in result.err
    assert control.calls == []


def test_plugin_load_never_runs_the_file_here(fabricctl, control, tmp_path):
    file = tmp_path / "loud.py"
    file.write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    assert fabricctl("plugin", "load", str(file)).status == 0
    assert not (tmp_path / "mark").exists()


def test_plugin_load_of_a_missing_file_says_so(fabricctl, tmp_path):
    result = fabricctl("plugin", "load", str(tmp_path / "none.py"))
    assert result.status == 1
    assert "why: No such file or directory" in result.err


def test_a_plugin_that_breaks_its_contract_is_a_failure_with_its_reason(
    fabricctl, control, tmp_path
):
    (tmp_path / "p.py").touch()
    control.failure = errors.ContractError(
        "upper: produces demo.text, the channel carries kv.layer"
    )
    result = fabricctl("plugin", "load", str(tmp_path / "p.py"))
    assert result.status == 1
    assert "why: upper: produces demo.text" in result.err


def test_logs_are_printed_as_they_are(fabricctl, control):
    assert (
        fabricctl("plugin", "logs", "upper", "-n", "5").out
        == "loaded\nTraceback (most recent call last):\n"
    )
    assert fabricctl("module", "logs", "prefill").out == "ready\n"
    assert control.calls == [("plugin_logs", "upper", 5), ("module_logs", "prefill", 100)]


def test_module_stop_says_what_became_of_it(fabricctl, control):
    assert fabricctl("module", "stop", "prefill").out == "module prefill is stopped\n"


@pytest.mark.parametrize("verb", ["status", "up", "audit", "topology", "down"])
def test_a_socket_path_that_is_too_long_is_refused_before_anything_is_tried(fabricctl, verb):
    result = fabricctl(verb, "--socket", "/tmp/" + "x" * 110)
    assert result.status == 1
    assert "has 119 bytes, the system allows 107" in result.err
    assert "do:  choose a shorter one" in result.err
    assert result.out == ""


@pytest.mark.parametrize("has_node", [True, False])
def test_a_plugin_file_that_is_not_there_is_named_with_its_place(
    fabricctl, tmp_path, has_node, request
):
    if has_node:
        request.getfixturevalue("control")
    file = tmp_path / "fabric.yaml"
    file.write_text("version: 1\nplugins: [nope.py]\n")
    result = fabricctl("validate", str(file))
    assert result.status == 1
    assert f"{file}:2:11: plugins[0]: there is no file 'nope.py'" in result.err


def test_plugin_load_takes_no_kind_but_transform_and_route(fabricctl, control, tmp_path):
    file = tmp_path / "p.py"
    file.write_text("x = 1\n")
    result = fabricctl("plugin", "load", str(file), "--channel", "kv", "--kind", "banana")
    assert result.status == 2
    assert "transform" in result.err and "route" in result.err
    assert control.calls == []


def test_without_a_daemon_on_a_socket_of_ones_own_the_advice_names_it(fabricctl, tmp_path):
    result = fabricctl("audit", "--socket", str(tmp_path / "b.sock"))
    assert result.err.endswith(f"do:  start one: fabricctl up --socket {tmp_path / 'b.sock'}\n")


def test_audit_leaves_out_removed_channels_that_carried_nothing(fabricctl, control, monkeypatch):
    rows = [{"name": "#1", "accepted": 0}, {"name": "#2", "accepted": 3, "delivered": 3}]

    async def audit():
        return {"verdict": "balanced", "channels": rows}

    monkeypatch.setattr(control, "audit", audit)
    printed = fabricctl("audit").out
    assert "#2" in printed and "#1" not in printed
