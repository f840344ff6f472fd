"""What a join still knows after its host was killed."""

from __future__ import annotations

import pytest

from fabric import limits
from fabric.errors import StorageError
from fabric.worker.join_journal import HEAD_BYTES, Journal, journal_bytes, read_counters
from fabric.worker.join_matcher import Ended

INPUTS = ("image", "prompt")
FUSED = Ended("fused", frozenset(INPUTS))


@pytest.fixture
def memory():
    return bytearray(journal_bytes())


def test_how_requests_ended_is_known_to_the_next_host(memory):
    first = Journal(memory, INPUTS)
    first.put(b"a", FUSED)
    first.put(b"b", Ended("partial", frozenset({"prompt"})))
    first.put(b"c", Ended("dropped"))
    second = Journal(memory, INPUTS)
    assert second.get(b"a") == FUSED
    assert second.get(b"b") == Ended("partial", frozenset({"prompt"}))
    assert second.get(b"c") == Ended("dropped")
    assert second.get(b"d") is None


def test_the_oldest_is_forgotten_when_the_table_is_full(memory, monkeypatch):
    monkeypatch.setattr(limits, "JOIN_REMEMBERED_MAX", 4)
    journal = Journal(memory, INPUTS)
    for n in range(6):
        journal.put(b"%d" % n, FUSED)
    assert [journal.get(b"%d" % n) is not None for n in range(6)] == [False, False, *[True] * 4]
    again = Journal(memory, INPUTS)
    assert again.get(b"5") == FUSED and again.get(b"1") is None
    again.put(b"6", FUSED)
    assert again.get(b"6") == FUSED


def test_a_record_that_was_cut_off_is_not_looked_at(memory):
    journal = Journal(memory, INPUTS)
    journal.put(b"a", FUSED)
    memory[HEAD_BYTES + 32 : HEAD_BYTES + 48] = (
        b"\xff" * 16
    )  # written, and not counted by the cursor
    again = Journal(memory, INPUTS)
    assert again.get(b"a") == FUSED
    again.put(b"b", FUSED)
    assert Journal(memory, INPUTS).get(b"b") == FUSED


@pytest.mark.parametrize("is_accepted", [True, False])
def test_an_output_in_doubt_is_remembered_only_when_it_was_accepted(memory, is_accepted):
    Journal(memory, INPUTS).begin(b"a", frozenset(INPUTS), 77, 5)
    journal = Journal(memory, INPUTS)
    assert journal.in_doubt() == (77, 5)
    journal.settle(is_accepted)
    assert journal.get(b"a") == (FUSED if is_accepted else None)
    assert Journal(memory, INPUTS).in_doubt() is None
    assert read_counters(bytes(memory[:HEAD_BYTES]))["fused"] == is_accepted


def test_an_output_that_was_noted_is_not_in_doubt(memory):
    first = Journal(memory, INPUTS)
    first.begin(b"a", frozenset(INPUTS), 77, 5)
    first.put(b"a", FUSED)
    assert Journal(memory, INPUTS).in_doubt() is None


def test_other_inputs_forget_what_was_known_of_the_old_ones(memory):
    Journal(memory, INPUTS).put(b"a", FUSED)
    assert Journal(memory, ("sound", "prompt")).get(b"a") is None


def test_memory_that_is_no_journal_is_refused(memory):
    with pytest.raises(StorageError, match="bytes"):
        Journal(bytearray(100), INPUTS)
    memory[:8] = b"somebody"
    with pytest.raises(StorageError, match="another version"):
        Journal(memory, INPUTS)


def test_counters_can_be_read_from_outside(memory):
    assert read_counters(bytes(HEAD_BYTES)) == {}
    journal = Journal(memory, INPUTS)
    journal.count("late")
    journal.note_waiting(3, 4096)
    found = read_counters(bytes(memory[:HEAD_BYTES]))
    assert (found["late"], found["waiting"], found["waiting_bytes"]) == (1, 3, 4096)
