"""The floors in C++: every one carries what it says it carries, in the words of bench/side.py."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
FLOOR = ROOT / "build" / "bench" / "floor" / "floor"
pytestmark = pytest.mark.deadline(
    240
)  # the first test builds: eight seconds of two cores, when they are free

SLEEPING = [
    ("ring_futex", {}),
    ("ring_futex", {"spin_us": 20}),
    ("unix_socket", {}),
    ("tcp_socket", {}),
    ("two_engines", {}),
]
MESSAGES = [("ring_spin", {}), *SLEEPING]
ARRAYS = [
    ("memcpy", {}),
    ("memcpy", {"nt": True}),
    ("unix_socket", {}),
    ("tcp_socket", {}),
    ("tcp_bulk", {"crc": False}),
    ("tcp_bulk", {"crc": True}),
]
CHUNK = 256 << 10


class Pair:
    """Both halves of one floor."""

    def __init__(self, folder: Path, name: str, options: dict[str, Any]) -> None:
        self.halves = [
            subprocess.Popen(
                [FLOOR, name, role, folder, json.dumps(options), ""],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for role in ("near", "far")
        ]
        self.hello = [self.read(half) for half in self.halves]

    def read(self, half: subprocess.Popen[str]) -> dict[str, Any]:
        assert half.stdout is not None
        answer: dict[str, Any] = json.loads(half.stdout.readline())
        return answer

    def run(self, **order: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        near, far = self.halves
        for half in (far, near):
            assert half.stdin is not None
            half.stdin.write(json.dumps(order) + "\n")
            half.stdin.flush()
            if half is far:
                assert self.read(far) == {"armed": True}
        return self.read(near), self.read(far)

    def close(self) -> list[int]:
        for half in self.halves:
            assert half.stdin is not None
            half.stdin.close()
        return [half.wait(10) for half in self.halves]


Start = Callable[..., Pair]


@pytest.fixture(scope="module")
def built() -> None:
    for needed in ("c++", "flock"):
        if not shutil.which(needed):
            pytest.skip(f"needs {needed} to build bench/floor")
    if not shutil.which("cmake") and not (ROOT / ".venv" / "bin" / "cmake").exists():
        pytest.skip("needs cmake to build bench/floor")
    made = subprocess.run(
        ["sh", ROOT / "bench" / "floor" / "build.sh"], capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr


@pytest.fixture
def start(built: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    pairs: list[Pair] = []

    def make(name: str, options: dict[str, Any]) -> Pair:
        pairs.append(Pair(tmp_path_factory.mktemp("f"), name, options))
        return pairs[-1]

    yield make
    for pair in pairs:
        for half in pair.halves:
            half.kill()
            half.wait(10)
            for stream in (half.stdin, half.stdout):
                assert stream is not None
                stream.close()


def random_bytes(size: int, seed: int) -> bytes:
    """What a floor fills memory with (splitmix64)."""
    mask, out = (1 << 64) - 1, bytearray()
    state = (seed * 0x9E3779B97F4A7C15 + 1) & mask
    while len(out) < size:
        state = (state + 0x9E3779B97F4A7C15) & mask
        word = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & mask
        word = ((word ^ word >> 27) * 0x94D049BB133111EB) & mask
        out += (word ^ word >> 31).to_bytes(8, "little")
    return bytes(out[:size])


def crc32c(data: bytes) -> int:
    """Bit by bit, as RFC 3720 has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(("name", "options"), MESSAGES)
def test_messages_go_there_and_back_whole(start: Start, name: str, options: dict[str, Any]) -> None:
    pair = start(name, options)
    assert all(hello["connected"] and "send_many" in hello["can"] for hello in pair.hello)
    near, far = pair.run(run="verify", size=1001, count=3, seed=3)
    assert near["crc"] == far["crc"] == [crc32c(random_bytes(1001, 3000 + n)) for n in range(3)]
    near, far = pair.run(run="round_trips", size=64, count=50)
    assert (
        len(near["ns"]) == 50 and min(near["ns"]) > 0 and near["cpu_ns"] > 0 and far["cpu_ns"] > 0
    )
    # More than a ring holds, in lengths that leave a gap before its wrap.
    for batch in (1, 64):
        near, far = pair.run(run="one_way", size=1001, count=1280, batch=batch)
        assert near["ns"] > 0 and "error" not in far
    assert pair.close() == [0, 0]


@pytest.mark.parametrize(("name", "options"), SLEEPING)
def test_who_waits_sleeps(start: Start, name: str, options: dict[str, Any]) -> None:
    _, far = start(name, options).run(run="idle", seconds=0.2)
    assert far["cpu_ns"] < 20_000_000


@pytest.mark.parametrize(("name", "options"), ARRAYS)
def test_arrays_arrive_whole(start: Start, name: str, options: dict[str, Any]) -> None:
    pair = start(name, options)
    size = 2 * CHUNK + 1000  # the last chunk is short
    near, far = pair.run(run="verify", size=size, count=3, seed=5, as_array=True)
    assert near["crc"] == far["crc"] and len(set(far["crc"])) == 3
    sums = []
    for window in (1, 3):  # the same four sources in turn, whoever carries them
        near, far = pair.run(run="bulk", size=size, count=8, window=window, read=True)
        assert near["ns"] > 0
        sums.append(far["sum"])
    words = [random_bytes(size, seed) for seed in range(4)]
    expected = 2 * sum(
        int.from_bytes(part[at : at + 8], "little") for part in words for at in range(0, size, 8)
    )
    assert sums == [expected % (1 << 64)] * 2


@pytest.mark.parametrize(("name", "options"), [("memcpy", {}), ("tcp_bulk", {"crc": True})])
def test_loans_are_handed_over(start: Start, name: str, options: dict[str, Any]) -> None:
    pair = start(name, options)
    near, far = pair.run(run="verify", size=CHUNK + 8, count=3, seed=2, as_array=True, loaned=True)
    assert near["crc"] == far["crc"] and len(set(far["crc"])) == 3
    near, far = pair.run(run="hand_over", size=CHUNK, count=5)
    assert all(sent < came for sent, came in zip(near["at"], far["at"], strict=True))
    assert near["at"] == sorted(near["at"]) and len(near["at"]) == 5
    near, far = pair.run(run="loaned", size=CHUNK, count=6, window=2, read=True)
    assert near["ns"] > 0 and far["sum"] > 0


def test_all_receivers_of_a_fan_out_see_every_message(start: Start) -> None:
    pair = start("fan_out", {})
    for receivers in (1, 8):
        near, far = pair.run(run="fan_out", size=CHUNK, count=4, receivers=receivers)
        assert len(near["at"]) == 4
        assert all(sent < came for sent, came in zip(near["at"], far["at"], strict=True))
        assert all(
            came < following for came, following in zip(far["at"], near["at"][1:], strict=False)
        )


def test_what_a_floor_cannot_do_is_an_answer(start: Start) -> None:
    pair = start("ring_futex", {})
    for half in pair.run(run="typed", count=3):
        assert "typed" in half["error"]
    near, far = pair.run(run="verify", size=8, count=1, seed=1)
    assert near["crc"] == far["crc"]


def test_an_order_ends_at_its_deadline(start: Start) -> None:
    pair = start("ring_futex", {"deadline_s": 1})
    near, far = pair.halves
    for half, count in ((far, 3), (near, 2)):  # the far half waits for one that never comes
        assert half.stdin is not None
        half.stdin.write(json.dumps({"run": "round_trips", "size": 64, "count": count}) + "\n")
        half.stdin.flush()
    assert len(pair.read(near)["ns"]) == 2
    assert far.wait(30) == 3


def test_who_has_gone_is_named(start: Start) -> None:
    pair = start("memcpy", {})
    near, far = pair.halves
    far.kill()
    far.wait(10)
    assert near.stdin is not None
    near.stdin.write(json.dumps({"run": "bulk", "size": CHUNK, "count": 1}) + "\n")
    near.stdin.flush()
    assert "error" in pair.read(near)


def test_an_engine_ends_with_its_half(start: Start) -> None:
    pair = start("two_engines", {})
    pair.run(run="round_trips", size=64, count=1)
    engines = [
        Path(f"/proc/{half.pid}/task/{half.pid}/children").read_text().split()
        for half in pair.halves
    ]
    assert [len(found) for found in engines] == [1, 1]
    assert pair.close() == [0, 0]
    assert not any(Path("/proc", pid).exists() for found in engines for pid in found)


def test_a_name_that_no_floor_has(built: None) -> None:
    ended = subprocess.run(
        [FLOOR, "magic", "near", "/tmp", "{}", ""], capture_output=True, text=True
    )
    assert ended.returncode == 1 and "magic" in json.loads(ended.stdout)["error"]
