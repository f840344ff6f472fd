"""Rows of a message go to many consumers and come back in order, whatever the index, the deaths and the errors."""

import asyncio
import threading
import time

import numpy as np
import pytest

import fabric
from fabric import errors
from fabric.messages import Tensor, message
from tests.unit.dataplane.waiting import until


@message("test.rows")
class Rows:
    step: int
    hidden: Tensor["rows dim", "f32"]
    weight: Tensor["rows", "f32"]
    shared: Tensor["dim", "f32"] | None = None


@message("test.results")
class Results:
    who: str
    hidden: Tensor["rows dim", "f32"]


@message("test.flat")
class Flat:
    data: Tensor["n", "f32"]


class Consumers:
    """`count` ports that answer a scatter channel, each on a thread."""

    def __init__(self, node, channel, count, answer):
        self.ports = [fabric.attach(f"expert-{i}", node.path) for i in range(count)]
        self.seen = [[] for _ in self.ports]
        self.ends = []
        for number, port in enumerate(self.ports):
            responder = port.responder(channel, Rows, Results)
            self.ends.append(responder)
            threading.Thread(
                target=self._serve, args=(responder, number, answer), daemon=True
            ).start()

    def _serve(self, responder, number, answer):
        def handle(rows):
            self.seen[number].append(rows.hidden.shape[0])
            return answer(number, rows)

        try:
            responder.serve(handle)
        except errors.FabricError:
            return  # its port was closed or given up by the test

    def close(self):
        for port in self.ports:
            port.close()


def double(number, rows):
    return Results(f"expert-{number}", rows.hidden * 2 + rows.weight[:, None])


def make_rows(count, dim=3):
    hidden = np.arange(count * dim, dtype=np.float32).reshape(count, dim)
    return Rows(7, hidden, np.arange(count, dtype=np.float32), np.ones(dim, np.float32))


@pytest.fixture
def experts(node):
    made = []

    def make(count, answer=double, delivery="at_most_once", channel="experts"):
        left = fabric.attach("left", node.path)
        made.append(left)
        left.declare(channel, Rows, reply=Results, pattern="scatter", delivery=delivery)
        consumers = Consumers(node, channel, count, answer)
        made.append(consumers)
        scatterer = left.scatterer(channel, Rows, Results)
        until(lambda: len(scatterer.targets()) == count)
        return scatterer, consumers

    yield make
    for each in reversed(made):
        each.close()


def expected(rows):
    return rows.hidden * 2 + rows.weight[:, None]


@pytest.mark.parametrize("index", [[0, 1, 2, 0, 1, 2], [2, 2, 2, 2, 2, 0], [5, 4, 3, 2, 1, 0]])
def test_rows_come_back_in_order_from_whom_the_index_names(experts, index):
    scatterer, consumers = experts(3)
    rows = make_rows(6)
    got = scatterer.call(rows, np.array(index), deadline=5)
    np.testing.assert_array_equal(got.hidden, expected(rows))
    counts = np.bincount(np.array(index) % 3, minlength=3)
    assert [sum(seen) for seen in consumers.seen] == counts.tolist()
    assert all(len(seen) <= 1 for seen in consumers.seen)  # nobody without rows is asked
    assert got.who == f"expert-{index[0] % 3}"  # scalars are those of the first row's answer


def test_random_index_and_many_calls_keep_the_order(experts):
    scatterer, _ = experts(4)
    random = np.random.default_rng(5)
    for count in (1, 2, 17, 1000):
        rows = make_rows(count, 64)
        got = scatterer.call(rows, random.integers(-100, 100, count), deadline=10)
        np.testing.assert_array_equal(got.hidden, expected(rows))


def test_message_without_rows_goes_whole_to_one_consumer(experts):
    scatterer, consumers = experts(2)
    got = scatterer.call(make_rows(0), np.zeros(0, np.int64), deadline=5)
    assert got.hidden.shape == (0, 3)
    assert sorted(map(len, consumers.seen)) == [0, 1]


def test_named_targets_are_counted_without_modulo(experts):
    scatterer, consumers = experts(3)
    last = scatterer.targets()[2]
    rows = make_rows(4)
    got = scatterer.call(rows, [0, 0, 0, 0], targets=[last], deadline=5)
    np.testing.assert_array_equal(got.hidden, expected(rows))
    assert [sum(seen) for seen in consumers.seen] == [0, 0, 4]
    with pytest.raises(errors.TypeMismatchError, match="there are 1 targets"):
        scatterer.call(rows, [0, 1, 0, 0], targets=[last], deadline=5)


@pytest.mark.parametrize(
    ("index", "match"),
    [([0, 1], "index has 2 rows"), ([0.5] * 4, "int64"), ([[0], [1], [0], [1]], "shape")],
)
def test_index_that_does_not_fit_is_refused_before_anything_is_sent(experts, index, match):
    scatterer, consumers = experts(2)
    with pytest.raises(errors.TypeMismatchError, match=match):
        scatterer.call(make_rows(4), index, deadline=5)
    assert consumers.seen == [[], []]


def test_types_without_rows_cannot_be_scattered(ports):
    left, _ = ports
    left.declare("flat", Flat, reply=Results, pattern="scatter")
    with pytest.raises(errors.TypeMismatchError, match="'rows' first"):
        left.scatterer("flat", Flat, Results)


def test_pattern_and_end_must_fit(ports):
    left, _ = ports
    left.declare("experts", Rows, reply=Results, pattern="scatter")
    with pytest.raises(errors.ConfigError, match="open it as scatterer"):
        left.requester("experts", Rows, Results)
    left.declare("plain", Rows, reply=Results)
    with pytest.raises(errors.ConfigError, match="open it as requester"):
        left.scatterer("plain", Rows, Results)


def test_failed_part_is_named_and_the_others_are_cancelled(experts):
    cancelled = threading.Event()
    release = threading.Event()

    def answer(number, rows):
        if number == 1:
            raise ValueError("no such expert")
        release.wait(5)
        return double(number, rows)

    scatterer, consumers = experts(2, answer)
    with pytest.raises(errors.RemoteError, match=r"part 2 of 2 \(1 rows, the first is row 3\)"):
        scatterer.call(make_rows(4), [0, 0, 0, 1], deadline=5)
    assert scatterer.requester.in_flight() == []
    release.set()
    cancelled.set()
    assert scatterer.call(make_rows(2), [0, 0], deadline=5).hidden.shape == (2, 3)
    del consumers


def test_answer_with_another_number_of_rows_names_the_part(experts):
    scatterer, _ = experts(2, lambda n, rows: Results("x", rows.hidden[: 2 - n]))
    with pytest.raises(errors.PeerProtocolError, match="part 2 of 2"):
        scatterer.call(make_rows(4), [0, 0, 1, 1], deadline=5)


def test_lost_part_fails_an_at_most_once_call(node, experts):
    begun = threading.Event()
    hold = threading.Event()

    def answer(number, rows):
        if number == 1:
            begun.set()
            hold.wait(5)
        return double(number, rows)

    scatterer, _ = experts(2, answer)
    threading.Thread(target=lambda: (begun.wait(5), node.lose("expert-1")), daemon=True).start()
    with pytest.raises(errors.PeerLostError, match="part 2 of 2"):
        scatterer.call(make_rows(4), [0, 0, 1, 1], deadline=5)
    hold.set()


@pytest.mark.promise("P1")
def test_lost_part_goes_to_another_consumer_where_delivery_is_at_least_once(node, experts):
    begun = threading.Event()
    hold = threading.Event()

    def answer(number, rows):
        if number == 1:
            begun.set()
            hold.wait(5)
        return double(number, rows)

    scatterer, consumers = experts(2, answer, delivery="at_least_once")
    threading.Thread(target=lambda: (begun.wait(5), node.lose("expert-1")), daemon=True).start()
    rows = make_rows(4)
    got = scatterer.call(rows, [0, 0, 1, 1], deadline=5)
    np.testing.assert_array_equal(got.hidden, expected(rows))
    assert consumers.seen[0] == [2, 2]
    hold.set()


@pytest.mark.promise("P1")
def test_lost_part_waits_for_a_new_consumer(node, experts):
    begun = threading.Event()
    hold = threading.Event()

    def stuck(number, rows):
        begun.set()
        hold.wait(5)
        return double(number, rows)

    scatterer, _ = experts(1, stuck, delivery="at_least_once")
    late = []

    def replace():
        begun.wait(5)
        node.lose("expert-0")
        until(lambda: scatterer.targets() == [])
        time.sleep(
            0.2
        )  # longer than a reader's look at what has come: it must wait on, not give up
        late.append(Consumers(node, "experts", 1, double))

    replacing = threading.Thread(target=replace, daemon=True)
    replacing.start()
    rows = make_rows(4)
    got = scatterer.call(rows, [0, 1, 0, 1], deadline=5)
    np.testing.assert_array_equal(got.hidden, expected(rows))
    hold.set()
    replacing.join(5)
    late[0].close()


def test_call_without_consumers_or_answers_ends_at_its_deadline(ports, experts):
    left, _ = ports
    left.declare("empty", Rows, reply=Results, pattern="scatter")
    scatterer = left.scatterer("empty", Rows, Results)
    with pytest.raises(errors.DeadlineExceeded, match="waited for a consumer"):
        scatterer.call(make_rows(2), [0, 1], deadline=0.1)
    hold = threading.Event()
    slow, _ = experts(2, lambda n, rows: hold.wait(5) and double(n, rows))
    with pytest.raises(errors.DeadlineExceeded, match="2 of 2 parts unanswered"):
        slow.call(make_rows(2), [0, 1], deadline=0.1)
    hold.set()


def test_parts_above_the_room_for_replies_wait_for_it(node):
    """A consumer that may have four answers out gets the fifth part when one was read."""
    with fabric.attach("left", node.path) as left, fabric.attach("right", node.path) as right:
        left.declare("experts", Rows, reply=Results, pattern="scatter")
        responder = right.responder("experts", Rows, Results, messages=4)
        scatterer = left.scatterer("experts", Rows, Results)
        until(lambda: scatterer.targets())
        threading.Thread(
            target=responder.serve, args=(lambda m: double(0, m),), daemon=True
        ).start()
        done = []

        def ask():
            rows = make_rows(50, 200)
            got = scatterer.call(rows, np.zeros(50, np.int64), deadline=10)
            np.testing.assert_array_equal(got.hidden, expected(rows))
            done.append(1)

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert len(done) == 20


async def test_asyncio_scatter_gathers_and_cancels(node, experts):
    hold = threading.Event()

    def answer(number, rows):
        if rows.step == 1:
            hold.wait(5)
        return double(number, rows)

    _, consumers = experts(3, answer)
    async with fabric.aio.attach("loop", node.path) as port:
        scatterer = await port.scatterer("experts", Rows, Results)
        rows = make_rows(9)
        got = await scatterer.call(rows, np.arange(9), deadline=5)
        np.testing.assert_array_equal(got.hidden, expected(rows))
        slow = make_rows(3)
        slow.step = 1
        task = asyncio.ensure_future(scatterer.call(slow, [0, 1, 2], deadline=5))
        while len(consumers.seen[0]) < 2:
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert scatterer.sync.requester.in_flight() == []
        hold.set()
        again = await scatterer.call(rows, np.arange(9), deadline=5)
        np.testing.assert_array_equal(again.hidden, expected(rows))


def test_call_without_a_deadline_takes_the_one_of_its_channel(node):
    with fabric.attach("router", node.path) as port:
        port.declare("slow", Rows, reply=Results, pattern="scatter")
        scatterer = port.scatterer("slow", Rows, Results)
        scatterer.requester.sender.deadline_s = 0.2
        started = time.monotonic()
        with pytest.raises(errors.DeadlineExceeded):
            scatterer.call(make_rows(2), np.zeros(2, np.int64))
        assert time.monotonic() - started < 5
