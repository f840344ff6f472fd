"""fabricctl plan, apply --dry-run, diff, rollback, history: exit status, what is printed, what the node is asked."""

import json

import pytest

from fabric import errors
from fabric.testing.fake_control import CHANGE

GOOD = "version: 1\nchannels:\n  kv: {type: kv.layer}\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "fabric.yaml"
    path.write_text(GOOD)
    return str(path)


@pytest.fixture
def same(control):
    control.plan_changes = [{**CHANGE, "action": "unchanged", "detail": ""}]
    return control


def verbs(control):
    return [call[0] for call in control.calls]


@pytest.mark.parametrize("verb", [("plan",), ("apply", "--dry-run")])
def test_plan_with_changes_exits_two_and_shows_each_field(fabricctl, file, control, verb):
    result = fabricctl(*verb, file)
    assert result.status == 2
    assert "against generation 3" in result.out
    assert "channel  kv    changed  credit.messages 256 → 64" in result.out
    assert verbs(control) == ["plan"], "nothing is applied"


def test_plan_without_changes_exits_zero_and_says_so(fabricctl, file, same):
    result = fabricctl("plan", file)
    assert result.status == 0 and "nothing would change" in result.out


def test_plan_as_json_has_every_change(fabricctl, file, control):
    result = fabricctl("plan", file, "-o", "json")
    assert result.status == 2
    assert json.loads(result.out)["changes"] == [CHANGE]


def test_plan_of_an_illegal_file_reaches_no_daemon(fabricctl, tmp_path, control):
    path = tmp_path / "bad.yaml"
    path.write_text("version: 1\nchannels:\n  kv: {type: kv.layer, pattern: ring}\n")
    assert fabricctl("plan", str(path)).status == 1
    assert control.calls == []


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [((), (None, None)), (("1",), (1, None)), (("1", "2"), (1, 2))],
)
def test_diff_asks_for_the_generations_that_are_named(fabricctl, control, arguments, asked):
    result = fabricctl("diff", *arguments)
    assert result.status == 2
    assert control.calls[-1][1:3] == asked and control.calls[-1][3] is None


@pytest.mark.parametrize("before", [(), ("1",)])
def test_diff_with_a_file_sends_it(fabricctl, control, file, before):
    assert fabricctl("diff", *before, file).status == 2
    verb, old, new, spec = control.calls[-1]
    assert (verb, old, new) == ("diff", 1 if before else None, None)
    assert spec.channels["kv"].type == "kv.layer"


def test_diff_of_equal_generations_exits_zero(fabricctl, same):
    result = fabricctl("diff", "2", "3")
    assert result.status == 0 and "no difference" in result.out


def test_rollback_names_the_generation_or_leaves_it_to_the_node(fabricctl, control):
    assert "generation 5" in fabricctl("rollback").out
    assert fabricctl("rollback", "2").status == 0
    assert [call[1] for call in control.calls] == [None, 2]
    assert fabricctl("rollback", "nosuch").status == 2, "wrong usage"


def test_history_shows_what_became_of_each_and_which_are_live(fabricctl, control):
    result = fabricctl("history")
    assert result.status == 0
    assert "generation 3 is in force, live: 2, 3" in result.out
    assert "rolled back" in result.out and "module 'x' ended before it was ready" in result.out
    assert "0@a" in result.out


def test_second_apply_at_once_says_who_is_at_it(fabricctl, file, control):
    control.failure = errors.BusyError("1000@b is applying a plan; try again when it is done")
    result = fabricctl("apply", file)
    assert result.status == 1 and "1000@b is applying a plan" in result.err


def test_diff_with_nothing_applied_names_generation_zero(fabricctl, control, monkeypatch):
    async def nothing(*_arguments):
        return {"from": 0, "to": 0, "changes": []}

    monkeypatch.setattr(control, "diff", nothing)
    assert fabricctl("diff").out.splitlines()[0] == "generation 0 → 0"


@pytest.mark.parametrize("verb", ["apply", "rollback"])
def test_an_interrupted_change_says_that_the_node_goes_on(
    fabricctl, file, control, monkeypatch, verb
):
    def interrupt(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"fabric.controlplane.api.client.ControlClient.{verb}", interrupt)
    result = fabricctl(verb, *([file] if verb == "apply" else []))
    assert result.status == 130
    assert "see fabricctl history" in result.err
