"""A half that dies, hangs or talks nonsense is reported within its deadline, and nothing stays behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import sides
from bench.sides import FREE, Pair, Placement, Subject, SubjectFailed, placements

TRIPS = {"run": "round_trips", "size": 64, "count": 20}


def fake(**options: str) -> Subject:
    return Subject("fake", "tests.unit.bench.fake_subject", options)


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    found: list[Pair] = []
    yield found
    for pair in found:
        pair.kill()


def pids(pair: Pair) -> list[int]:
    return [half._process.pid for half in pair._halves.values()]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_processes_answer_an_order_and_end_with_their_pair(pairs: list[Pair]) -> None:
    pair = Pair(Subject("unix socket", "bench.peers.unix_socket"), FREE)
    pairs.append(pair)
    near, far = pair.order(TRIPS, 20.0)
    assert len(near["ns"]) == 20 and min(near["ns"]) > 0
    assert near["cpu_ns"] > 0 and far["cpu_ns"] > 0
    assert {"send", "send_array", "round_trips"} - pair.can == {"round_trips"}
    assert len(set(pids(pair))) == 2
    pair.stop()
    assert not any(is_running(pid) for pid in pids(pair))
    assert not pair.folder.exists()


def test_a_placement_is_where_the_halves_run(pairs: list[Pair]) -> None:
    cpu = min(os.sched_getaffinity(0))
    pairs.append(pair := Pair(fake(), Placement("one", (cpu,), (cpu,))))
    assert [os.sched_getaffinity(pid) for pid in pids(pair)] == [{cpu}, {cpu}]


def test_two_placements_where_there_are_two_cpus() -> None:
    found = placements()
    assert found[-1] == FREE
    if len(os.sched_getaffinity(0)) > 1:
        assert found[0].near != found[0].far and len(found) == 2


@pytest.mark.parametrize("role", ["near", "far"])
def test_a_half_that_dies_is_reported_with_its_last_words(pairs: list[Pair], role: str) -> None:
    pairs.append(pair := Pair(fake(**{role: "dies"}), FREE))
    before = time.monotonic()
    with pytest.raises(
        SubjectFailed, match=rf"fake: the {role} half ended(.|\n)*this is the last word"
    ):
        pair.order(TRIPS, 30.0)
    assert time.monotonic() - before < 15.0
    assert not any(is_running(pid) for pid in pids(pair))
    assert not pair.folder.exists()


@pytest.mark.parametrize("role", ["near", "far"])
def test_a_silent_half_is_killed_at_its_deadline(pairs: list[Pair], role: str) -> None:
    pairs.append(pair := Pair(fake(**{role: "is silent"}), FREE))
    before = time.monotonic()
    with pytest.raises(SubjectFailed, match="no answer to order round_trips in time"):
        pair.order(TRIPS, 1.0)
    assert 1.0 <= time.monotonic() - before < 15.0
    assert not any(is_running(pid) for pid in pids(pair))


def test_a_half_that_cannot_connect_says_why() -> None:
    with pytest.raises(SubjectFailed, match=r"(?s)the far half connect.*nobody is there"):
        Pair(fake(far="does not connect"), FREE)


def test_what_goes_wrong_in_an_order_is_said(pairs: list[Pair]) -> None:
    pairs.append(pair := Pair(fake(), FREE))
    with pytest.raises(SubjectFailed, match="KeyError"):
        pair.order({"run": "dance"}, 20.0)


def test_nonsense_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "floor"
    program.write_text("#!/bin/sh\necho 'ready steady go'\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setattr(sides, "FLOOR", program)
    with pytest.raises(SubjectFailed, match="answered b'ready steady go' to connect"):
        Pair(Subject("floor x", "x", {}, "floor"), FREE)


@pytest.mark.parametrize("interpreter, name", [("floor", "FLOOR"), ("peers", "PEERS_PYTHON")])
def test_a_program_that_was_not_made_is_named_with_what_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interpreter: str, name: str
) -> None:
    monkeypatch.setattr(sides, name, tmp_path / "nothing")
    with pytest.raises(SubjectFailed, match="`make bench-"):
        Pair(Subject("x", "x", {}, interpreter), FREE)


def test_an_answer_that_comes_in_one_piece_with_the_one_before_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: list[Pair]
) -> None:
    program = tmp_path / "floor"
    program.write_text(
        "#!/bin/sh\n"
        'printf \'{"connected": true, "can": []}\\n\'\n'
        "read order\n"
        'test "$2" = far && printf \'{"armed": true}\\n{"cpu_ns": 2}\\n\' || printf \'{"cpu_ns": 1}\\n\'\n'
        "read order\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sides, "FLOOR", program)
    pairs.append(pair := Pair(Subject("floor x", "x", {}, "floor"), FREE))
    answers: tuple[Any, Any] = pair.order({"run": "x"}, 10.0)
    assert answers == ({"cpu_ns": 1}, {"cpu_ns": 2})
