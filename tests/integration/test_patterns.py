"""Patterns over real daemons: broadcast, scatter, leases and lists of tensors on one node and between two."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fabric
from fabric import errors
from fabric.messages import Tensor, message
from tests.integration.kill_nodes import balanced, clusters, settled, wait_for
from tests.integration.pattern_roles import SIZE, Gathered, Many, Offer, Rows

SAME = """
import fabric

@fabric.transform("same", on_error="bypass")
class Same:
    def apply(self, batch, ctx):
        return list(batch)
"""
ROLES = Path(__file__).with_name("pattern_roles.py")
cluster = pytest.fixture(clusters)


@message("pattern.tick")
class Tick:
    n: int
    data: Tensor["n", "f32"]


@pytest.fixture(params=[1, 2], ids=["one node", "two nodes"])
def nodes(request, cluster):
    """The nodes of both ends: the same twice, or two that are joined."""
    first = cluster.node("a")
    if request.param == 1:
        return first, first
    second = cluster.node("b", first)
    wait_for("both nodes are joined", lambda: len(first.call("ls", "node")) == 2)
    return first, second


@contextlib.contextmanager
def attached(*places):
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(fabric.attach(name, node.socket)) for name, node in places]


class Role:
    """A process of `pattern_roles.py`."""

    def __init__(self, role, node, name):
        self.process = subprocess.Popen(
            [sys.executable, str(ROLES), role, node.socket, name], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.getcwd()},
        )  # fmt: skip
        self.expect("ready")

    def expect(self, word):
        assert self.process.stdout.readline().decode().strip() == word

    def kill(self):
        self.process.kill()
        self.process.wait(10)
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def roles():
    made = []

    def start(role, node, name):
        made.append(Role(role, node, name))
        return made[-1]

    yield start
    for each in made:
        each.kill()


def flows(end, count):
    wait_for(f"{count} flows", lambda: len(end.stats()["flows"]) == count)


@pytest.mark.promise("P1", "P6")
def test_broadcast_reaches_every_receiver_once_in_order(nodes):
    here, there = nodes
    with attached(("source", here), ("one", here), ("two", there), ("three", there)) as ports:
        source, *sinks = ports
        source.declare("ticks", Tick, pattern="broadcast")
        sender = source.sender("ticks", Tick)
        receivers = [port.receiver("ticks", Tick) for port in sinks]
        flows(sender, 3)
        for n in range(100):
            size = (10, 5000, 200_000)[n % 3]
            sender.send(Tick(n, np.full(size, n, np.float32)), deadline=20)
        for receiver in receivers:
            for n in range(100):
                with receiver.receive(20) as tick:
                    assert tick.n == n and tick.header.sequence == n + 1
                    assert (tick.data == n).all()
        sender.flush(20)
        assert sender.stats()["delivered"] == 300
        balanced(here)


@pytest.mark.promise("P6")
def test_scatter_gathers_rows_of_all_consumers(nodes, roles):
    here, there = nodes
    with attached(("asker", here)) as (asker,):
        asker.declare("experts", Rows, reply=Gathered, pattern="scatter", klass="embedding")
        for name, node in (("e0", here), ("e1", there), ("e2", there)):
            roles("expert", node, name)
        scatterer = asker.scatterer("experts", Rows, Gathered)
        wait_for("three consumers", lambda: len(scatterer.targets()) == 3)
        random = np.random.default_rng(3)
        for count in (0, 1, 7, 2000):
            hidden = random.standard_normal((count, 64), np.float32)
            got = scatterer.call(Rows(hidden), random.integers(0, 3, count), deadline=20)
            np.testing.assert_array_equal(got.hidden, hidden * 2)
        settled(here, "experts")


@pytest.mark.promise("P1", "P3")
@pytest.mark.parametrize("delivery", ["at_most_once", "at_least_once"])
def test_part_of_a_killed_consumer_is_answered_by_another_or_named(nodes, roles, delivery):
    here, there = nodes
    with attached(("asker", here)) as (asker,):
        asker.declare("experts", Rows, reply=Gathered, pattern="scatter", delivery=delivery)
        roles("expert", there, "fine")
        scatterer = asker.scatterer("experts", Rows, Gathered)
        wait_for("one consumer", lambda: len(scatterer.targets()) == 1)
        stuck = roles("expert", there, "stuck")
        wait_for("two consumers", lambda: len(scatterer.targets()) == 2)
        hidden = np.arange(40, dtype=np.float32).reshape(10, 4)
        state = scatterer.start(20)
        assert state.begin(Rows(hidden), [0, 1] * 5, None) and not state.step()
        stuck.expect("taken")
        stuck.kill()
        try:
            if delivery == "at_least_once":
                scatterer._drive(state)
                np.testing.assert_array_equal(scatterer.gather(state).hidden, hidden * 2)
            else:
                with pytest.raises(errors.PeerLostError, match=r"part \d of 2 \(5 rows"):
                    scatterer._drive(state)
        finally:
            state.close()
        settled(here, "experts")


@pytest.mark.promise("P2", "P6")
def test_lease_is_read_written_and_ends_with_its_process(nodes, roles):
    here, there = nodes
    with attached(("reader", here)) as (reader,):
        reader.declare("offers", Offer)
        offers = reader.receiver("offers", Offer)
        exposer = roles("expose", there, "exposer")
        lease = offers.receive(20).lease
        assert (reader.get(lease, deadline=20) == 7).all()
        reader.put(lease, [(0, 4), (SIZE - 4, 4)], np.arange(8, dtype=np.uint8), deadline=20)
        np.testing.assert_array_equal(
            reader.get(lease, [(SIZE - 4, 4), (2, 4)], deadline=20), [4, 5, 6, 7, 2, 3, 7, 7]
        )
        exposer.kill()
        with pytest.raises(errors.StaleHandleError):
            reader.get(lease, deadline=20)
        with pytest.raises(errors.StaleHandleError):
            reader.put(lease, None, np.zeros(SIZE, np.uint8), deadline=20)
    balanced(here)


def test_lists_of_tensors_and_fp8_travel(nodes):
    here, there = nodes
    with attached(("left", here), ("right", there)) as (left, right):
        left.declare("many", Many, pattern="queue", delivery="at_least_once")
        sender, receiver = left.sender("many", Many), right.receiver("many", Many)
        random = np.random.default_rng(1)
        for number, rows in enumerate(([], [0], [3, 0, 5000], [1] * 63)):
            parts = [random.standard_normal((n, 7), np.float32) for n in rows]
            small = random.integers(0, 255, 100 * number, np.uint8)
            sender.send(Many(number, small, parts), deadline=20)
            with receiver.receive(20) as got:
                np.testing.assert_array_equal(got.small, small)
                assert len(got.parts) == len(parts)
                for found, sent in zip(got.parts, parts, strict=True):
                    np.testing.assert_array_equal(found, sent)
                got.ack()
        sender.flush(20)


@pytest.mark.promise("P1")
def test_closed_receiver_leaves_its_queue_to_another(nodes):
    here, there = nodes
    with attached(("source", here), ("first", there), ("second", there)) as ports:
        source, one, two = ports
        source.declare("jobs", Tick, pattern="queue", delivery="at_least_once")
        sender = source.sender("jobs", Tick)
        first = one.receiver("jobs", Tick)
        flows(sender, 1)
        for n in range(50):
            sender.send(Tick(n, np.zeros(5000, np.float32)), deadline=20)
        held = [first.receive(20) for _ in range(3)]
        held[0].ack()
        second = two.receiver("jobs", Tick)
        first.close()
        held[1].ack()
        seen = {}
        while len(seen) < 48:
            with second.receive(20) as tick:
                seen[tick.n] = tick.header.redelivered
                tick.ack()
        assert sorted(seen) == [2, *range(3, 50)] and seen[2]
        sender.flush(20)
        assert sender.stats()["delivered"] == 50
    settled(here, "jobs")


@pytest.mark.promise("P8")
def test_a_process_may_open_more_senders_in_its_life_than_at_once(cluster):
    node = cluster.node("a")
    with attached(("left", node), ("right", node)) as (left, right):
        left.declare("jobs", Tick, pattern="queue")
        receiver = right.receiver("jobs", Tick)
        for n in range(160):
            with left.sender("jobs", Tick) as sender:
                sender.send(Tick(n, np.zeros(3, np.float32)), deadline=20)
                assert receiver.receive(20).n == n
                sender.flush(20)
        assert settled(node, "jobs")["delivered"] == 160


@pytest.mark.promise("P1")
@pytest.mark.parametrize("overflow", ["reject", "drop_newest", "drop_oldest"])
def test_overflow_behind_a_transform_ends_every_message_by_the_policy(cluster, overflow):
    """Nobody reads: the policy acts at the channel's two ends, the transform between them neither loses nor stops."""
    node = cluster.node("a")
    with attached(("left", node), ("right", node)) as (left, right):
        left.declare("jobs", Tick, pattern="queue", overflow=overflow)
        receiver = right.receiver("jobs", Tick, messages=16)
        node.call("plugin_load", "same.py", SAME, channel="jobs", kind="transform")
        sender = left.sender("jobs", Tick)
        sender.send(Tick(-1, np.zeros(3, np.float32)), deadline=20)
        assert receiver.receive(20).n == -1
        accepted = []
        for n in range(3000):
            with contextlib.suppress(errors.RejectedError):
                sender.send(Tick(n, np.zeros(3, np.float32)), deadline=20)
                accepted.append(n)
        assert (len(accepted) < 3000) == (overflow == "reject")
        seen = []
        while (tick := receiver.receive(1.0)) is not None:
            seen.append(tick.n)
        assert len(seen) == len(set(seen))
        if overflow == "reject":
            assert sorted(seen) == accepted
        row = settled(node, "jobs")
        assert (row["dropped"] > 0) == (overflow != "reject")


def test_message_larger_than_all_arenas_is_refused_at_once_naming_both_sizes(cluster):
    node = cluster.node("a", None, "--arena-bytes", "32MiB")
    with attached(("left", node), ("right", node)) as (left, right):
        left.declare("jobs", Tick, pattern="queue", klass="bulk")
        sender, receiver = left.sender("jobs", Tick), right.receiver("jobs", Tick)
        with pytest.raises(errors.CapacityError, match=r"41943040 bytes, of at most 29360128"):
            sender.send(Tick(1, np.zeros(10 << 20, np.float32)), deadline=20)
        sender.send(Tick(2, np.zeros(5 << 20, np.float32)), deadline=20)
        assert receiver.receive(20).data.size == 5 << 20


@pytest.mark.promise("P2")
def test_lease_outlives_its_daemon(cluster):
    node = cluster.node("a")
    table = np.arange(5000, dtype=np.int64)
    with attached(("left", node), ("right", node)) as (left, right):
        lease = left.expose(table, writable=True)
        assert right.get(lease, deadline=20)[7] == 7
        node.kill_daemon()
        right.put(lease, [(0, 8)], np.int64([9]), deadline=20)
        with attached(("third", node)) as (third,):
            assert third.get(lease, deadline=20)[0] == 9
        lease.revoke()
        with pytest.raises(errors.StaleHandleError):
            right.get(lease, deadline=20)
