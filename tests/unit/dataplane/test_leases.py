"""Exposed memory is read and written by others while its lease is good, and never after."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import msgspec
import numpy as np
import pytest

import fabric
from fabric import errors, limits
from fabric.dataplane.lease_memory import LeaseMemory
from fabric.messages import message


def until(condition, seconds=5):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@message("test.offer")
class Offer:
    lease: fabric.Lease
    more: list[fabric.Lease]


@pytest.fixture(params=["same node", "other node"])
def pair(request, ports):
    """(exposer, getter); as from another node, the getter asks the exposer instead of mapping its memory."""
    left, right = ports
    if request.param == "other node":
        right.leases.node = 99
    return left, right


@pytest.fixture
def table():
    return np.arange(3000, dtype=np.float32).reshape(100, 30)


def test_whole_array_comes_with_dtype_and_shape(pair, table):
    left, right = pair
    with left.expose(table) as lease:
        got = right.get(lease, deadline=5)
        np.testing.assert_array_equal(got, table)
        assert got.dtype == table.dtype and got.flags.writeable


def test_ranges_come_one_after_another(pair, table):
    left, right = pair
    lease = left.expose(table)
    raw = table.reshape(-1).view(np.uint8)
    for ranges in (
        [(0, 12000)], [(120, 120), (0, 120), (480, 120)], [(1, 3), (11999, 1), (5, 0), (7, 100)], [],
        np.array([[240, 60], [0, 60]]),
    ):  # fmt: skip
        expected = np.concatenate([raw[o : o + n] for o, n in ranges] or [raw[:0]])
        np.testing.assert_array_equal(right.get(lease, ranges, deadline=5), expected)
    into = np.zeros(30, np.float32)
    assert right.get(lease, [(120, 120)], into=into, deadline=5) is into
    np.testing.assert_array_equal(into, table[1])


def test_put_is_seen_by_the_owner_and_by_every_later_get(pair, table):
    left, right = pair
    lease = left.expose(table, writable=True)
    right.put(lease, [(0, 120), (240, 120)], np.full(60, 5, np.float32), deadline=5)
    expected = table.copy()
    expected[0] = expected[2] = 5
    np.testing.assert_array_equal(lease.array, expected)
    np.testing.assert_array_equal(right.get(lease, deadline=5), expected)
    right.put(lease, None, np.zeros_like(table), deadline=5)
    assert not lease.array.any()


def test_read_only_lease_takes_no_put(pair, table):
    left, right = pair
    lease = left.expose(table)
    with pytest.raises(errors.ConfigError, match="read-only"):
        right.put(lease, None, table, deadline=5)
    forged = msgspec_replace(lease, writable=True)
    with pytest.raises(errors.ConfigError):
        right.put(forged, None, table * 0, deadline=5)
    np.testing.assert_array_equal(lease.array, table)


@pytest.mark.promise("P2")
def test_stale_writable_lease_whose_segment_is_another_one_by_now_is_stale(ports, table):
    left, right = ports
    old = left.expose(table, writable=True)
    left.leases.revoke_all()
    new = left.expose(table)  # as after a restart of the node: the numbers of segments begin anew
    with pytest.raises(errors.StaleHandleError):
        right.get(msgspec_replace(old, segment=new.segment), deadline=5)


@pytest.mark.promise("P2")
@pytest.mark.parametrize("writable", [False, True])
def test_lease_that_is_revoked_while_it_is_read_is_stale_and_its_descriptor_nobody_elses(
    ports, table, writable
):
    left, _ = ports
    lease = left.expose(table, writable=writable)
    memory = left.leases.exposed(lease.lease).memory
    copied = []

    def copy(data):
        lease.revoke()
        copied.append(data.nbytes)
        copied.append(memory._fd)

    with pytest.raises(errors.StaleHandleError):
        memory.read(copy, writable, time.monotonic_ns() + 10**9)
    assert copied[0] == table.nbytes and copied[1] >= 0
    assert memory._fd == -1
    with pytest.raises(errors.StaleHandleError):
        memory.read(copy, writable, time.monotonic_ns() + 10**9)


def test_refused_asks_of_other_nodes_leave_nothing_in_the_log(ports, table, caplog):
    left, right = ports
    right.leases.node = 99
    lease = left.expose(table)
    lease.revoke()
    with pytest.raises(errors.StaleHandleError):
        right.get(lease, deadline=5)
    assert not [r for r in caplog.records if r.levelname in ("WARNING", "ERROR")]


def msgspec_replace(given, /, **changes):
    return msgspec.structs.replace(given, **changes)


@pytest.mark.promise("P2")
@pytest.mark.parametrize("how", ["revoke", "close"])
def test_revoked_lease_gives_no_data(pair, table, how):
    left, right = pair
    lease = left.expose(table)
    assert right.get(lease, deadline=5).shape == (100, 30)
    lease.revoke() if how == "revoke" else left.close()
    lease.revoke()
    for _ in range(2):
        with pytest.raises(errors.StaleHandleError):
            right.get(lease, deadline=5)


@pytest.mark.promise("P2")
def test_lease_revoked_during_the_copy_gives_no_data(ports, table):
    left, right = ports
    lease = left.expose(table)
    right.get(lease, deadline=5)
    memory = right.leases._mapped[lease.key]
    with pytest.raises(errors.StaleHandleError):
        memory.read(lambda data: (data.copy(), lease.revoke()), False, 0)


EXPOSER = """
import sys, numpy as np, fabric
from tests.unit.dataplane.test_leases import Offer
port = fabric.attach("exposer", sys.argv[1])
lease = port.expose(np.full(1000, 7, np.int32), writable=True)
port.sender("offers", Offer).send(Offer(lease, [lease]), deadline=5)
if sys.argv[2] == "fork":
    import os, time
    if os.fork() == 0:
        time.sleep(20)  # a child that lives on does not keep the lease alive
        os._exit(0)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.promise("P2", "P3")
@pytest.mark.parametrize("kind", ["plain", "fork"])
def test_lease_of_a_killed_process_gives_no_data_at_once(ports, node, kind):
    _, right = ports
    right.declare("offers", Offer)
    offers = right.receiver("offers", Offer)
    child = subprocess.Popen(
        [sys.executable, "-c", EXPOSER, node.path, kind], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        offer = offers.receive(10)
        assert child.stdout.readline() == b"ready\n"
        assert offer.lease == offer.more[0]
        assert right.get(offer.lease, deadline=5).sum() == 7000
        os.kill(child.pid, signal.SIGKILL)
        child.wait(5)
        with pytest.raises(errors.StaleHandleError):  # no daemon told anybody: the kernel did
            right.get(offer.lease, deadline=5)
        with pytest.raises(errors.StaleHandleError):
            right.put(offer.lease, None, np.zeros(1000, np.int32), deadline=5)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(5)
        child.stdin.close()
        child.stdout.close()


@pytest.mark.promise("P6")
def test_unfinished_put_is_told_until_its_range_is_put_again(pair, table):
    left, right = pair
    lease = left.expose(table, writable=True)
    right.get(lease, deadline=5)
    memory = left.leases.exposed(lease.lease).memory

    def die(data):
        data[0:4] = 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        memory.write(die, 0, 120, 0)
    with pytest.raises(errors.BrokenError, match="bytes 0 to 120"):
        right.get(lease, deadline=5)
    right.put(lease, [(480, 120)], table[4], deadline=5)
    with pytest.raises(errors.BrokenError):
        right.get(lease, deadline=5)
    right.put(lease, [(0, 240)], table[:2], deadline=5)
    np.testing.assert_array_equal(right.get(lease, deadline=5), table)


def test_gets_never_see_half_a_put(ports):
    left, right = ports
    lease = left.expose(np.zeros(1 << 16, np.int64), writable=True)
    stop = threading.Event()

    def write():
        value = 0
        while not stop.is_set():
            value += 1
            right.put(lease, None, np.full(1 << 16, value), deadline=5)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with fabric.attach("third", right.connection.path) as third:
            seen = [third.get(lease, deadline=5) for _ in range(50)]
    finally:
        stop.set()
        writer.join(5)
    assert all((array == array[0]).all() for array in seen)


BAD_RANGES = [
    [(0, 12001)], [(12000, 1)], [(-1, 1)], [(0, -1)], [(2**63 - 1, 2**63 - 1)], [(1, 2**63 - 1)], [(2**64, 1)],
    [(0.5, 1)], [(0, 1, 2)], [1, 2], "abc", [("a", "b")], np.zeros((2, 2), np.uint64) - 1,
]  # fmt: skip


@pytest.mark.parametrize("ranges", BAD_RANGES, ids=str)
def test_hostile_ranges_are_refused_and_harm_nothing(pair, table, ranges):
    left, right = pair
    lease = left.expose(table, writable=True)
    with pytest.raises(errors.TypeMismatchError):
        right.get(lease, ranges, deadline=5)
    with pytest.raises(errors.TypeMismatchError):
        right.put(lease, ranges, np.zeros(1, np.uint8), deadline=5)
    np.testing.assert_array_equal(right.get(lease, deadline=5), table)


def test_limits_of_leases_are_named(ports, table):
    left, right = ports
    lease = left.expose(table)
    with pytest.raises(errors.CapacityError, match="LEASE_RANGES_MAX"):
        right.get(lease, np.zeros((limits.LEASE_RANGES_MAX + 1, 2), np.int64), deadline=5)
    assert right.get(lease, np.zeros((limits.LEASE_RANGES_MAX, 2), np.int64), deadline=5).size == 0
    leases = [left.expose(np.zeros(1, np.uint8)) for _ in range(limits.LEASES_PER_PORT_MAX - 1)]
    with pytest.raises(errors.CapacityError, match="LEASES_PER_PORT_MAX"):
        left.expose(table)
    leases[0].revoke()
    left.expose(table).revoke()
    for each in leases[1:]:
        right.get(each, deadline=5)
    assert len(right.leases._mapped) <= limits.LEASES_MAPPED_MAX


@pytest.mark.parametrize(
    "change", [{"bytes": 1 << 20}, {"shape": (1, 2)}, {"dtype": "object"}, {"dtype": "no such"}, {"shape": (-1, -3000)}]
)  # fmt: skip
def test_lease_that_does_not_hold_together_is_refused(pair, table, change):
    left, right = pair
    lease = left.expose(table)
    with pytest.raises(errors.PeerProtocolError):
        right.get(msgspec_replace(lease, **change), deadline=5)
    with pytest.raises(errors.TypeMismatchError, match="no Lease"):
        right.get("lease", deadline=5)


@pytest.mark.parametrize("change", [{"lease": 77}, {"incarnation": 5}])
def test_lease_of_another_number_or_life_is_stale(pair, table, change):
    left, right = pair
    lease = left.expose(table)
    with pytest.raises(errors.StaleHandleError):
        right.get(msgspec_replace(lease, **change), deadline=5)


@pytest.mark.parametrize("count", [10, 200, 1 << 20])
def test_lease_that_lies_about_its_size_gives_no_data(pair, table, count):
    left, right = pair
    lease = left.expose(table)
    forged = msgspec_replace(lease, bytes=count * 120, shape=(count, 30))
    for _ in range(2):
        with pytest.raises(errors.StaleHandleError):
            right.get(forged, deadline=5)
        with pytest.raises(errors.StaleHandleError):
            left.get(forged, deadline=5) if right.leases.node == lease.node else right.get(forged)
        assert right.get(lease, deadline=5).size == 3000


@pytest.mark.promise("P3")
def test_first_look_at_a_lease_waits_for_an_absent_daemon_no_longer_than_its_deadline(
    pair, node, table
):
    left, right = pair
    lease = left.expose(table, writable=True)
    node.stop_listening()
    until(lambda: not left.connection.is_connected and not right.connection.is_connected)
    started = time.monotonic()
    with pytest.raises(errors.DeadlineExceeded, match="did not answer"):
        right.get(lease, deadline=0.3)
    with pytest.raises(errors.DeadlineExceeded, match="did not answer"):
        right.put(lease, None, table, deadline=0.3)
    assert time.monotonic() - started < limits.CONTROL_CALL_S / 2
    node.listen()
    until(lambda: left.connection.is_connected and right.connection.is_connected)
    np.testing.assert_array_equal(right.get(lease, deadline=10), table)


def test_targets_and_data_of_another_size_or_layout_are_refused(pair, table):
    left, right = pair
    lease = left.expose(table, writable=True)
    bad = np.zeros((100, 60), np.float32)[:, ::2]
    for into, match in (
        (np.zeros(5), "40 bytes"),
        (bad, "contiguous"),
        (b"x" * 12000, "read-only"),
    ):
        with pytest.raises(errors.TypeMismatchError, match=match):
            right.get(lease, into=into, deadline=5)
    with pytest.raises(errors.TypeMismatchError, match="ranges have 12000"):
        right.put(lease, None, np.zeros(5), deadline=5)


def test_own_lease_zero_bytes_and_large_memory_work(pair):
    left, right = pair
    empty = left.expose(np.zeros((0, 4), np.float32))
    assert right.get(empty, deadline=5).shape == (0, 4)
    large = np.random.default_rng(1).integers(0, 255, 20 << 20, np.uint8)
    lease = left.expose(large)
    np.testing.assert_array_equal(right.get(lease, deadline=10), large)
    np.testing.assert_array_equal(left.get(lease, deadline=10), large)


def test_only_the_exposing_process_revokes(ports, table):
    left, _ = ports
    lease = left.expose(table)
    foreign = msgspec_replace(lease, port=lease.port + 1)
    with pytest.raises(errors.ConfigError, match="only the process that exposed"):
        foreign.revoke()
    assert left.get(lease, deadline=5).size == 3000


def test_nothing_stays_mapped_or_open_after_the_leases_ended(ports, node, table):
    left, right = ports
    left.expose(table).revoke()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with left.expose(table) as lease:
            right.get(lease, deadline=5)
        right.leases.tick()
    deadline = 100
    while len(os.listdir("/proc/self/fd")) > before and deadline:
        deadline -= 1
        threading.Event().wait(0.02)  # the local fabric drops the segment on its own thread
    assert len(os.listdir("/proc/self/fd")) <= before
    assert not right.leases._mapped and isinstance(LeaseMemory.__doc__, str)


async def test_asyncio_port_exposes_gets_and_puts(node, table):
    async with fabric.aio.attach("a", node.path) as one, fabric.aio.attach("b", node.path) as two:
        lease = await one.expose(table, writable=True)
        await two.put(lease, [(0, 4)], np.array([9], np.float32))
        got = await two.get(lease)
        assert got[0, 0] == 9


@pytest.mark.promise("P2")
def test_lease_of_a_port_that_its_daemon_gave_up_is_stale(ports, node, table):
    left, right = ports
    lease = left.expose(table)
    assert right.get(lease, deadline=5).size == 3000
    node.ports[
        left.number
    ].incarnation += 1  # the daemon does not know this life of the port any more
    node.restart()
    deadline = time.monotonic() + 5
    while left.leases._exposed and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(errors.StaleHandleError):
        right.get(lease, deadline=5)


def test_housekeeping_does_not_wait_for_an_expose(ports):
    left, _ = ports
    with left.leases._lock:
        left.leases.tick()
