"""What one stage host leaves for the next, and what it lets a plugin keep, print and take."""

import io
from types import SimpleNamespace

import numpy as np
import pytest

import fabric
from fabric import limits
from fabric.errors import ContractError
from fabric.messages import message_type
from fabric.worker.canary_child import Copy
from fabric.worker.kept_views import KeptViews
from fabric.worker.stage_bounds import ENDED_FOR_TIME, BoundedOutput, Watchdog
from fabric.worker.stage_guard import DEATHS_MAX, STEADY_S, Guard

SECOND = 1_000_000_000
MESSAGE = (1, 2, 3)


@fabric.message("bounds.text")
class Text:
    text: str
    data: fabric.Tensor["n", "f32"]


class Slot(Copy):
    released = False

    def release(self):
        self.released = True


def view():
    meta, tensors = message_type(Text).encode(Text("a", np.ones(4, np.float32)))
    return message_type(Text).decode(
        Slot(meta, [bytes(memoryview(t).cast("B")) for t in tensors]), None
    )


def hand_over(kept, holder):
    """As a chain does: the last reference of its own goes along."""
    value, holder.value = holder.value, None
    kept.give_back(value)


def test_message_in_hand_at_a_death_is_known_to_the_next_hosts(tmp_path):
    path = tmp_path / "p.hand"
    for deaths in range(3):
        guard = Guard(path, deaths * SECOND)
        assert guard.deaths == deaths and guard.deaths_of(MESSAGE) == deaths
        guard.hold(guard.slot(), MESSAGE)
    assert Guard(path, 0).deaths_of((1, 2, 4)) == 0


def test_host_that_left_as_asked_or_lived_long_ends_the_row(tmp_path):
    path = tmp_path / "p.hand"
    for number in range(DEATHS_MAX):
        Guard(path, number * SECOND)
    resting = Guard(path, 0)
    assert resting.deaths == DEATHS_MAX and resting.rest_s > 0
    resting.alive(int((STEADY_S + 1) * SECOND))
    after = Guard(path, 0)
    assert (after.deaths, after.rest_s) == (1, 0)
    after.close(SECOND)
    assert Guard(path, 0).deaths == 0


def test_why_a_host_ended_itself_is_kept(tmp_path):
    path = tmp_path / "p.hand"
    Guard(path, 0).dies("a call did not return", SECOND)
    assert Guard(path, 0).reason == "a call did not return"


def test_call_that_hangs_ends_the_process_and_a_long_one_does_not():
    ends, guard = [], Guard(None, 0)
    call = SimpleNamespace(busy_since_ns=SECOND, budget_ms=300.0, label="transform 't'")
    watchdog = Watchdog(guard, lambda: [call], ends.append)
    watchdog.look(3 * SECOND)
    assert ends == []
    watchdog.look(5 * SECOND)
    assert ends == [ENDED_FOR_TIME]


def test_slot_of_a_view_is_given_back_once_nobody_refers_to_it():
    kept, holder = KeptViews(), SimpleNamespace(value=view())
    slot = holder.value._native
    hand_over(kept, holder)
    assert slot.released and len(kept) == 0


@pytest.mark.parametrize(
    "keep", [lambda v: v, lambda v: v.data, lambda v: v.data[1:], lambda v: memoryview(v.data)]
)
def test_slot_of_a_view_that_is_kept_waits_until_it_is_let_go(keep):
    kept, holder = KeptViews(), SimpleNamespace(value=view())
    slot, reference = holder.value._native, keep(holder.value)
    hand_over(kept, holder)
    kept.sweep()
    assert not slot.released and len(kept) == 1
    del reference
    kept.sweep()
    assert slot.released and len(kept) == 0


def test_too_many_kept_views_are_a_broken_contract():
    kept, references = KeptViews(), []
    with pytest.raises(ContractError, match="VIEWS_KEPT_MAX"):
        for _ in range(limits.VIEWS_KEPT_MAX + 1):
            holder = SimpleNamespace(value=view())
            references.append(holder.value.data)
            hand_over(kept, holder)


def test_what_is_printed_beyond_the_budget_of_a_second_is_counted():
    now, below = [0.0], io.StringIO()
    output = BoundedOutput(below, lambda: now[0], 10)
    assert output.write("x" * 25) == 25
    now[0] = 1.5
    output.write("later")
    assert below.getvalue().count("x") == 10 and "15 bytes were not kept" in below.getvalue()
    assert below.getvalue().endswith("later")
