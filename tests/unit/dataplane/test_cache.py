"""A tenant's cache: what was put is what comes back, or nothing does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import fabric
from fabric import limits
from fabric.dataplane import cache as cache_module
from fabric.dataplane.cache import Cache
from fabric.dataplane.cache_layout import THERE, WRITING, block_bytes, cache_bytes
from fabric.errors import CapacityError, TypeMismatchError

CAPACITY = 1 << 20  # 64 blocks


@pytest.fixture
def fd():
    made = os.memfd_create("cache")
    os.ftruncate(made, cache_bytes(CAPACITY))
    yield made
    os.close(made)


@pytest.fixture
def cache(fd):
    made = Cache(fd)
    yield made
    made.close()


@pytest.mark.parametrize(
    "value",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.zeros((0, 7), np.float16),
        np.array(5, np.int64),
        np.arange(100_000, dtype=np.uint16).reshape(10, -1),
        np.arange(24, dtype=np.float32).reshape(4, 6)[:, ::2],
    ],
    ids=["matrix", "empty", "scalar", "over blocks", "not contiguous"],
)
def test_an_array_comes_back_as_it_was(cache, fd, value):
    assert cache.put("k", value)
    found = Cache(fd).get("k")  # as another process would
    assert found.dtype == value.dtype and found.shape == value.shape
    assert (found == value).all()


def test_bytes_come_back_and_unknown_keys_do_not(cache):
    assert cache.put(b"k", b"") and cache.get(b"k") == b""
    assert cache.put("text", b"abc") and cache.get(b"text") == b"abc"
    assert cache.get("other") is None
    stat = cache.stat()
    assert (stat["hits"], stat["misses"], stat["puts"], stat["entries"]) == (2, 1, 2, 2)


def test_what_comes_back_is_ones_own(cache):
    cache.put("k", np.zeros(4, np.float32))
    cache.get("k")[:] = 7
    assert (cache.get("k") == 0).all()


def test_the_key_of_contents_says_all_that_they_are():
    picture = np.zeros((2, 8), np.float32)
    keys = {
        fabric.content_key("clip", picture),
        fabric.content_key("clip2", picture),
        fabric.content_key("clip", picture.reshape(8, 2)),
        fabric.content_key("clip", picture.view(np.int32)),
        fabric.content_key("clip", b"", picture),
        fabric.content_key("cli", "p", picture),
    }
    assert len(keys) == 6
    assert fabric.content_key("clip", picture.copy()) in keys


def test_a_full_cache_evicts_what_was_not_read(cache):
    block = b"x" * (block_bytes(CAPACITY) - 100)
    for n in range(64):
        assert cache.put(f"{n}", block)
    for n in range(0, 64, 2):
        cache.get(f"{n}")
    for n in range(64, 96):
        assert cache.put(f"{n}", block)
    assert all(cache.get(f"{n}") is not None for n in range(0, 64, 2))
    assert all(cache.get(f"{n}") is None for n in range(1, 64, 2))
    assert cache.stat()["evictions"] == 32


def test_a_cache_of_which_all_was_read_still_takes_more(cache):
    block = b"x" * (block_bytes(CAPACITY) - 100)
    for n in range(200):
        assert cache.put(f"{n}", block)
        assert cache.get(f"{n}") == block
    assert cache.stat()["entries"] == 64


def test_entries_are_bounded_too(cache, monkeypatch):
    for n in range(65):
        assert cache.put(f"{n}", b"small")
    assert cache.stat()["entries"] == 64  # a block each


def test_an_entry_may_take_its_share_and_no_more(cache):
    share = int(cache.memory.capacity_bytes * limits.CACHE_SHARE_MAX)
    head = 64  # says what the bytes are
    assert cache.put("just inside", b"x" * (share - head))
    assert not cache.put("just outside", b"x" * (share - head + 1))
    assert cache.stat()["refused"] == 1


def test_a_torn_entry_is_a_miss(cache):
    cache.put("k", b"abc" * 100)
    at = int((cache.memory.state == THERE).argmax())
    block = int((cache.memory.owners == at + 1).argmax())
    cache.memory.blocks[block, 50] ^= 1
    assert cache.get("k") is None
    assert cache.stat()["torn"] == 1


def test_an_entry_that_changes_while_it_is_copied_is_a_miss(cache):
    cache.put("k", b"abc" * 100)
    at, real = int((cache.memory.state == THERE).argmax()), cache.memory.blocks

    class Moving:
        def __getitem__(self, index):
            cache.memory.generation[at] += (
                1  # another process evicts it and writes another one there
            )
            return real[index]

    cache.memory.blocks = Moving()
    assert cache.get("k") is None
    cache.memory.blocks = real
    assert cache.get("k") == b"abc" * 100


def test_bytes_of_another_key_are_a_miss(cache):
    """Whatever order another processor sees the words of an entry in, its checksum is that of its key."""
    cache.put("k", b"abc" * 100)
    at = int((cache.memory.state == THERE).argmax())
    other_low, other_high = cache_module._digest("other")
    cache.memory.digest_low[at], cache.memory.digest_high[at] = other_low, other_high
    assert cache.get("other") is None


def test_what_a_killed_writer_left_is_free_again(cache, fd):
    memory = cache.memory
    memory.state[3], memory.owners[:40] = WRITING, 4  # killed in the middle of a put
    for n in range(64):
        assert cache.put(f"{n}", b"x" * 10_000)
    assert all(cache.get(f"{n}") == b"x" * 10_000 for n in range(64))


def test_a_writer_that_holds_the_lock_makes_others_give_up_not_wait(cache, fd):
    other = Cache(fd)
    with other._writing() as is_mine:
        assert is_mine
        assert not cache.put("k", b"v")
        with pytest.raises(CapacityError, match="try again"):
            cache.clear()
    assert cache.put("k", b"v")
    assert cache.stat()["refused"] == 1


def test_clear_forgets_everything_and_gives_the_pages_back(cache, fd):
    for n in range(64):
        cache.put(f"{n}", b"x" * 16_000)
    full = os.fstat(fd).st_blocks
    assert cache.clear() == 64
    assert os.fstat(fd).st_blocks * 512 < full * 512 - CAPACITY // 2
    assert cache.get("3") is None and cache.entries() == []
    assert cache.put("3", b"again") and cache.get("3") == b"again"


def test_keys_and_values_that_cannot_be_are_refused(cache):
    for key in ("", b"x" * (limits.KEY_BYTES_MAX + 1), 5):
        with pytest.raises(TypeMismatchError, match="cache key"):
            cache.get(key)
    with pytest.raises(TypeMismatchError):
        cache.put("k", object())


def test_counters_of_a_process_that_is_gone_are_kept(fd, cache):
    other = Cache(fd)
    other.get("nothing")
    other.close()
    again = Cache(fd)
    again.get("nothing")
    assert cache.stat()["misses"] == 2


def test_threads_may_read_and_write_at_once(cache):
    values = {f"{n}": bytes([n]) * 20_000 for n in range(80)}
    wrong = []

    def work(seed):
        for step in range(150):
            key = f"{(seed * 31 + step * 7) % 80}"
            cache.put(key, values[key])
            found = cache.get(key)
            if found not in (None, values[key]):
                wrong.append(key)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong


WRITER = """
import os, sys
from fabric.dataplane.cache import Cache
cache = Cache(int(sys.argv[1]))
n = 0
print("ready", flush=True)
while True:
    n += 1
    cache.put(f"{n % 90}", (b"%d." % (n % 90)) * 9000)
"""


@pytest.mark.promise("P9", "P2")
def test_kill_of_writers_leaves_no_torn_entry(cache, fd):
    """Writers are killed at arbitrary points of their puts; whatever is found then is whole, and puts go on."""
    found = 0
    for _ in range(3):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, str(fd)], pass_fds=[fd], stdout=subprocess.PIPE
            )
            for _ in range(2)
        ]
        for writer in writers:
            assert writer.stdout.readline() == b"ready\n"
        deadline = cache_module.time.monotonic() + 20
        seen = cache.stat()["puts"]
        while cache.stat()["puts"] < seen + 200:
            assert cache_module.time.monotonic() < deadline, "no writer put anything"
            for n in range(90):
                value = cache.get(f"{n}")
                assert value in (None, (b"%d." % n) * 9000)
                found += value is not None
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
            writer.wait(10)
            writer.stdout.close()
        assert cache.put("after", b"a kill") and cache.get("after") == b"a kill"
    assert found
