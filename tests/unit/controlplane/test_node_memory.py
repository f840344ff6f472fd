"""What a node says of its memory: pages that are there, by purpose, and averages over ports and channels."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from fabric.controlplane.node_memory import memory

PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def segment():
    """Make a sparse segment of which the first `pages` were written."""
    opened = []

    def make(pages: int) -> int:
        fd = os.memfd_create("segment")
        opened.append(fd)
        os.truncate(fd, 1000 * PAGE)
        os.pwrite(fd, b"x" * pages * PAGE, 0)
        return fd

    yield make
    for fd in opened:
        os.close(fd)


def daemon_of(ports=(), channels=(), lanes=(), segments=()):
    ends = [SimpleNamespace(channel=channel) for channel in channels]
    return SimpleNamespace(
        ports=ports,
        endpoints=SimpleNamespace(all=lambda: ends),
        lanes=SimpleNamespace(all=lambda: lanes),
        segments=SimpleNamespace(all=lambda: segments),
    )


def test_pages_count_once_written_and_a_channel_is_what_lies_behind_the_heads(segment):
    ports = [
        SimpleNamespace(state_fd=segment(1), doorbell_fd=segment(1)),
        SimpleNamespace(state_fd=segment(7), doorbell_fd=segment(1)),
    ]
    lane, arena = SimpleNamespace(fd=segment(2)), SimpleNamespace(fd=segment(5))
    found = memory(daemon_of(ports, (4, 4, 5, 6), [lane], [arena]))
    assert (found["ports_bytes"], found["port_bytes"]) == (4 * PAGE, 2 * PAGE)
    assert (found["channels_bytes"], found["channel_bytes"]) == (6 * PAGE, 2 * PAGE)
    assert (found["lanes_bytes"], found["arenas_bytes"]) == (2 * PAGE, 5 * PAGE)
    assert found["daemon_bytes"] > 1 << 20


def test_a_node_without_ports_and_a_segment_that_was_closed_take_nothing():
    gone = SimpleNamespace(state_fd=-1, doorbell_fd=-1)
    found = memory(daemon_of([gone]))
    assert {found[name] for name in ("ports_bytes", "channels_bytes", "lanes_bytes")} == {0}
    assert memory(daemon_of())["port_bytes"] == 0
