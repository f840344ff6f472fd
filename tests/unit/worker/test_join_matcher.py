"""What a join decides: complete, late, partial, expired, too many."""

from __future__ import annotations

from collections import Counter

import pytest

from fabric.abc.join import JoinRules
from fabric.worker.join_matcher import (
    Dropped,
    Ended,
    Fuse,
    Matcher,
    Part,
    PartEnded,
    Repeated,
    Replaced,
)

INPUTS = ("image", "prompt")
MS = 1_000_000


class Memory:
    """Remembers without bound, for the time of a test."""

    def __init__(self):
        self.ended, self.counts = {}, Counter()

    def get(self, key):
        return self.ended.get(key)

    def put(self, key, ended):
        assert key not in self.ended, "a request ended twice"
        self.ended[key] = ended

    def count(self, name):
        self.counts[name] += 1


def matcher(**rules):
    made = Matcher(JoinRules(**{"window_s": 0.1, **rules}), INPUTS, Memory())
    made.counts = made._remembered.counts
    return made


def part(key, name, size=10, expires_ns=0, redelivered=False):
    return Part(key, name, size, expires_ns, redelivered, object())


def kinds(decisions):
    return [type(d) for d in decisions]


def test_parts_of_one_request_are_fused_in_whatever_order_they_come():
    joins = matcher()
    image, prompt = part(b"a", "image"), part(b"a", "prompt")
    assert joins.add(prompt, 1) == []
    (fuse,) = joins.add(image, 2)
    assert fuse == Fuse(b"a", {"image": image, "prompt": prompt}, ())
    joins.put_out(fuse)
    assert joins.counts == {"fused": 1}
    assert joins.waiting == joins.waiting_bytes == 0


def test_a_request_that_lacks_a_part_waits_for_its_window_and_no_longer():
    joins = matcher()
    joins.add(part(b"a", "image"), 1)
    assert joins.next_ns() == 1 + 100 * MS
    assert joins.tick(100 * MS) == []
    (dropped,) = joins.tick(100 * MS + 1)
    assert (dropped.reason, dropped.key) == ("incomplete", b"a")
    assert joins.next_ns() is None


def test_it_goes_partial_only_without_what_may_be_missing():
    for missing, found in (("image", Fuse), ("prompt", Dropped)):
        joins = matcher(late="partial", partial=("image",))
        joins.add(part(b"a", "image" if missing == "prompt" else "prompt"), 0)
        (decision,) = joins.tick(100 * MS)
        assert type(decision) is found
        if found is Fuse:
            assert decision.missing == ("image",)
            joins.put_out(decision)
            assert joins.counts == {"partial": 1}


@pytest.mark.parametrize(
    ("partial", "found"), [((), Dropped), (("image",), Fuse)], ids=["drops", "goes partial"]
)
def test_one_that_waits_is_held_until_the_deadline_and_then(partial, found):
    joins = matcher(late="wait", deadline_s=1.0, partial=partial)
    joins.add(part(b"a", "prompt"), 0)
    assert joins.tick(999 * MS) == []
    (decision,) = joins.tick(1000 * MS)
    assert type(decision) is found
    assert getattr(decision, "reason", "deadline") == "deadline"


def test_a_part_that_comes_while_its_request_waits_beyond_the_window_is_fused():
    joins = matcher(late="wait", deadline_s=1.0)
    joins.add(part(b"a", "prompt"), 0)
    joins.tick(500 * MS)
    assert kinds(joins.add(part(b"a", "image"), 501 * MS)) == [Fuse]


def test_what_comes_after_the_end_is_late():
    joins = matcher(late="partial", partial=("image",))
    joins.add(part(b"a", "prompt"), 0)
    (fuse,) = joins.tick(100 * MS)
    joins.put_out(fuse)
    late = part(b"a", "image")
    assert joins.add(late, 101 * MS) == [PartEnded(late, "late")]


def test_a_second_message_of_a_request_is_a_duplicate_before_and_after_its_end():
    joins = matcher()
    joins.add(part(b"a", "image"), 0)
    again = part(b"a", "image")
    assert joins.add(again, 1) == [PartEnded(again, "duplicate")]
    (fuse,) = joins.add(part(b"a", "prompt"), 2)
    joins.put_out(fuse)
    assert kinds(joins.add(part(b"a", "prompt"), 3)) == [PartEnded]
    assert joins.counts == {"duplicate": 2, "fused": 1}


def test_what_is_delivered_again_after_its_output_is_acknowledged():
    joins = matcher()
    joins.add(part(b"a", "image"), 0)
    (fuse,) = joins.add(part(b"a", "prompt"), 1)
    joins.put_out(fuse)
    again = part(b"a", "image", redelivered=True)
    assert joins.add(again, 2) == [Repeated(again)]


def test_of_two_copies_of_a_waiting_part_the_newer_is_kept():
    joins = matcher()
    older, newer = part(b"a", "image", 10), part(b"a", "image", 30, redelivered=True)
    joins.add(older, 0)
    assert joins.add(newer, 1) == [Replaced(older)]
    assert joins.waiting_bytes == 30
    (fuse,) = joins.add(part(b"a", "prompt"), 2)
    assert fuse.parts["image"] is newer


def test_a_request_ends_as_expired_when_its_first_part_does():
    joins = matcher()
    joins.add(part(b"a", "image", expires_ns=20 * MS), 0)
    assert joins.next_ns() == 20 * MS
    (dropped,) = joins.tick(20 * MS)
    assert dropped.reason == "expired"
    (dropped,) = joins.add(part(b"b", "image", expires_ns=20 * MS), 21 * MS)
    assert dropped.reason == "expired"


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
def test_one_request_too_many_ends_the_one_that_the_policy_names(overflow):
    joins = matcher(max_entries=2, overflow=overflow)
    joins.add(part(b"a", "image"), 0)
    assert joins.add(part(b"b", "image"), 1) == []  # just inside
    (dropped,) = joins.add(part(b"c", "image"), 2)
    assert (dropped.key, dropped.reason) == (
        b"a" if overflow == "drop_oldest" else b"c",
        "overflow",
    )
    assert joins.waiting == 2


def test_bytes_are_bounded_and_the_part_that_completes_needs_no_room():
    joins = matcher(max_bytes=100)
    joins.add(part(b"a", "image", 60), 0)
    assert joins.add(part(b"b", "image", 40), 1) == []  # just inside
    assert kinds(joins.add(part(b"b", "prompt", 1000), 2)) == [Fuse]
    joins.put_out(joins._going)
    joins.add(part(b"c", "image", 40), 3)
    (dropped,) = joins.add(part(b"d", "image", 1), 4)
    assert dropped.key == b"a"
    assert joins.waiting_bytes == 41


def test_an_output_that_cannot_be_ends_its_request_otherwise():
    joins = matcher()
    joins.add(part(b"a", "image"), 0)
    (fuse,) = joins.add(part(b"a", "prompt"), 1)
    dropped = joins.refused(fuse, "error")
    assert dropped.reason == "error" and len(dropped.parts) == 2
    assert joins._remembered.get(b"a") == Ended("dropped")


def test_timers_of_requests_that_ended_do_not_pile_up():
    joins = matcher()
    for n in range(5000):
        joins.add(part(b"%d" % n, "image"), n)
        (fuse,) = joins.add(part(b"%d" % n, "prompt"), n)
        joins.put_out(fuse)
    assert len(joins._due) < 100
