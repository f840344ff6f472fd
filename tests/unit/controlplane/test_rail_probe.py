"""A probe measures what its connection does, within its budget, and the end that obeys is bounded."""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from fabric import errors, limits
from fabric.controlplane import rail_probe
from fabric.controlplane.rail_probe import ECHO, SINK, SOURCE, Wish, measure, serve

pytestmark = pytest.mark.promise("P8")
MIB = 1 << 20


def pair() -> tuple[socket.socket, socket.socket]:
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    return ends


def probed(wish: Wish) -> rail_probe.Measured:
    """Measure over a pair of sockets whose other end obeys."""

    async def both() -> rail_probe.Measured:
        near, far = pair()
        obeys = asyncio.create_task(serve(far))
        try:
            return await measure(near, wish)
        finally:
            near.close()
            await asyncio.wait_for(obeys, 5.0)

    return asyncio.run(both())


def test_round_trips_are_counted_without_the_one_that_carries_the_order():
    found = probed(Wish(trips=7))
    assert len(found.trips_ns) == 7 and min(found.trips_ns) > 0
    assert "rate" not in found.row() and found.row()["trips"] == 7


@pytest.mark.parametrize("outward", [True, False])
def test_payload_stays_within_its_bytes_in_both_directions(outward):
    found = probed(Wish(1, 8 * MIB, 5.0, outward))
    assert 0.5 * 8 * MIB < found.size_bytes <= 8 * MIB
    assert found.rate > 0 and found.row()["bytes"] == found.size_bytes


def test_slow_rail_is_measured_on_what_fits_in_its_time(monkeypatch):
    async def slow(sock, size):
        return size * 1000  # 1 MB/s

    monkeypatch.setattr(rail_probe, "_give", slow)
    found = probed(Wish(1, 64 * MIB, 0.5))
    assert found.rate == pytest.approx(1e6)
    assert found.size_bytes <= 0.5 * 1e6 + 65536


def test_end_that_closes_in_the_middle_is_a_broken_path():
    async def body() -> None:
        near, far = pair()
        far.close()
        with pytest.raises(errors.PathBrokenError):
            await measure(near, Wish())
        near.close()

    asyncio.run(body())


def test_silent_end_is_given_up(monkeypatch):
    monkeypatch.setattr(limits, "PATH_PROBE_WAIT_S", 0.01)

    async def body() -> None:
        near, far = pair()
        with pytest.raises(errors.PathBrokenError, match="silent"):
            await asyncio.wait_for(measure(near, Wish(seconds=0.05)), 10.0)
        near.close()
        far.close()

    asyncio.run(body())


@pytest.mark.parametrize(
    "order", [(SINK, 1 << 62), (SOURCE, 1 << 62), (ECHO, 1 << 62), (9, 1)], ids=str
)
def test_order_beyond_what_a_probe_may_take_ends_the_connection(order):
    async def body() -> None:
        near, far = pair()
        obeys = asyncio.create_task(serve(far))
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(near, struct.pack("<BQ", *order))
        assert await asyncio.wait_for(loop.sock_recv(near, 1), 5.0) == b""
        await obeys
        near.close()

    asyncio.run(body())


def test_end_that_obeys_leaves_when_nothing_is_ordered(monkeypatch):
    monkeypatch.setattr(limits, "PATH_PROBE_WAIT_S", 0.01)
    monkeypatch.setattr(limits, "PATH_PROBE_SECONDS", (0.05, 0.01))

    async def body() -> None:
        near, far = pair()
        await asyncio.wait_for(serve(far), 5.0)
        assert far.fileno() == -1
        near.close()

    asyncio.run(body())


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (Wish(0), "--trips is 0"),
        (Wish(1, 2 << 30), "--bytes is"),
        (Wish(1, 5), "says nothing of a rate"),
        (Wish(1, 0, 0.001), "--seconds is 0.001"),
    ],
)
def test_budget_outside_its_bounds_is_refused_by_name(wish, said):
    with pytest.raises(errors.ConfigError, match=said):
        wish.check()
