"""What a bench calls memory is what was touched: anonymous or shared, and not code."""

from __future__ import annotations

import mmap
import os

from bench.ours.footprint import memory_bytes

TOUCHED = 32 << 20


def test_memory_grows_by_what_is_touched() -> None:
    before = memory_bytes([os.getpid()])
    memory = bytearray(os.urandom(1) * TOUCHED)
    grown = memory_bytes([os.getpid()]) - before
    assert len(memory) == TOUCHED <= grown < 2 * TOUCHED


def test_untouched_shared_memory_costs_nothing_and_touched_memory_does() -> None:
    descriptor = os.memfd_create("footprint")
    os.ftruncate(descriptor, TOUCHED)
    with mmap.mmap(descriptor, TOUCHED) as shared:
        before = memory_bytes([os.getpid()])
        assert memory_bytes([os.getpid()]) - before < TOUCHED // 8
        for page in range(0, TOUCHED, mmap.PAGESIZE):
            shared[page] = 1
        assert TOUCHED <= memory_bytes([os.getpid()]) - before < 2 * TOUCHED
    os.close(descriptor)
