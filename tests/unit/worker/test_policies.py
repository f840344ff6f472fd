"""Policies in their host: made per channel, asked in batches, one that hangs holds up no other."""

from __future__ import annotations

import threading

import pytest

import fabric
from fabric import limits
from fabric.errors import DeadlineExceeded, PluginError
from fabric.worker.policies import Policies


@fabric.route("counting", per="batch", reads=["n"])
class Counting:
    def __init__(self, start: int = 0) -> None:
        self.turn = start

    def select(self, header, targets):
        self.turn += 1
        return targets[self.turn % len(targets)]


@fabric.route("idle_first", per="batch")
def idle_first(header, targets):
    return min(targets, key=lambda target: target.busy)


RELEASED = threading.Event()


@fabric.route("stuck")
def stuck(header, targets):
    assert RELEASED.wait(20)
    return targets[0]


@pytest.fixture
def policies():
    found = [policy.__fabric_export__ for policy in (Counting, idle_first, stuck)]
    return Policies({export.name: export for export in found})


def asked(policy, channel="c", **more):
    targets = [{"flow": n, "endpoint": n, "unknown": 1} for n in (5, 6, 7)]
    return {"policy": policy, "header": {"channel": channel}, "targets": targets, **more}


def test_each_channel_and_each_set_of_parameters_has_a_policy_of_its_own(policies):
    assert [policies.decide(asked("counting"))["flow"] for _ in range(2)] == [6, 7]
    assert policies.decide(asked("counting", "other"))["flow"] == 6
    assert policies.decide(asked('counting {"start":1}'))["flow"] == 7


def test_an_answer_says_how_it_may_be_kept(policies):
    answer = policies.decide(asked("counting"))
    assert (answer["per"], answer["reads"]) == ("batch", ["n"]) and answer["us"] > 0


def test_a_batch_is_one_question_whose_messages_see_each_other(policies):
    answer = policies.decide(asked("idle_first", batch=[{"channel": "c"}] * 6))
    assert sorted(answer["flows"]) == [5, 5, 6, 6, 7, 7]


@pytest.mark.parametrize(
    ("policy", "said"),
    [("absent", "no policy 'absent'"), ('counting {"stop":1}', "no parameter 'stop'")],
)
def test_what_cannot_be_asked_is_an_error_that_names_it(policies, policy, said):
    with pytest.raises(PluginError, match=said):
        policies.decide(asked(policy))


def test_one_that_hangs_is_given_up_and_holds_up_no_other(policies, monkeypatch):
    monkeypatch.setattr(limits, "ROUTE_DECIDE_S", 0.02)
    thread = threading.Thread(target=policies.decide, args=(asked("stuck"),))
    thread.start()
    try:
        with pytest.raises(DeadlineExceeded, match="busy with an earlier decision"):
            while True:  # until the thread is inside
                policies.decide(asked("stuck")) if policies._locks["stuck"].locked() else None
        assert policies.decide(asked("counting"))["flow"] == 6
    finally:
        RELEASED.set()
        thread.join(20)
