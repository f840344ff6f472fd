"""A join's host over fake ends: everything that came is ended, outputs wait for room, the end hands back."""

from __future__ import annotations

import os
import threading
import time
from types import SimpleNamespace

import pytest

import fabric
from fabric.errors import ContractError, DeadlineExceeded, RejectedError
from fabric.worker.host import HostSettings, ModuleHost, load_module_class
from fabric.worker.join_host import BATCH, join_of, module_of
from fabric.worker.join_journal import journal_bytes


@fabric.message("host.left")
class Left:
    n: int


@fabric.message("host.right")
class Right:
    n: int


@fabric.message("host.sum")
class Sum:
    n: int


@fabric.join("sum", inputs={"left": Left, "right": Right}, produces=Sum, window_s=20.0)
class Sums:
    def fuse(self, parts, ctx):
        return Sum(parts["left"].n + parts["right"].n)


class View:
    """A received message; `ends` says how it ended."""

    def __init__(self, value, key, number):
        self.value, self.n = value, value.n
        self.header = SimpleNamespace(
            key=key, payload_bytes=8, expires_ns=0, redelivered=False, sequence=number
        )
        self.ends = []

    def ack(self):
        self.ends.append("delivered")

    def nack(self, reason):
        self.ends.append(reason)

    def release(self):
        pass


class Inlet:
    delivery = "at_least_once"

    def __init__(self):
        self.views, self.queued, self.some = [], [], threading.Condition()
        self.is_closed = False

    def put(self, values):
        with self.some:
            made = [View(value, b"%d" % value.n, n) for n, value in enumerate(values)]
            self.views += made
            self.queued += made
            self.some.notify()

    def take_many(self, count, deadline_ns):
        with self.some:
            self.some.wait_for(lambda: self.queued, (deadline_ns - time.monotonic_ns()) / 1e9)
            found, self.queued = self.queued[:count], self.queued[count:]
            return found

    def decode(self, native):
        return native

    def close(self):
        self.is_closed = True


class Outlet:
    endpoint, has_policy = 7, False

    def __init__(self):
        self.sent, self.answers = [], []

    def coded(self, meta, tensors, expires_ns=0):
        return meta, tensors

    def send_encoded(self, value, meta, tensors, key, deadline_ns, flow, expires_ns):
        if self.answers:
            raise self.answers.pop()
        self.sent.append((key, value.n))

    def flush(self, timeout):
        pass


class Port:
    """Gives the ends; its memory is the join's journal."""

    def __init__(self):
        self.ends = {"left": Inlet(), "right": Inlet(), "output": Outlet()}
        self.is_ready = threading.Event()
        self.memory = os.memfd_create("journal")
        os.ftruncate(self.memory, journal_bytes())

    def receiver(self, channel, type_):
        return self.ends[channel]

    def sender(self, channel, type_):
        return self.ends[channel]

    responder = requester = None  # a join has none

    def request(self, op, fields):
        assert (op, fields) == ("shared_open", {"kind": "join", "name": "sums"})
        return {}, [os.dup(self.memory)]

    def ready(self):
        self.is_ready.set()


@pytest.fixture
def port():
    made = Port()
    yield made
    os.close(made.memory)


@pytest.fixture
def running(port):
    host = ModuleHost(port, module_of(Sums, join_of(Sums)), HostSettings("", "sums"))
    thread = threading.Thread(target=host.serve)
    thread.start()
    assert port.is_ready.wait(20), "the join is not ready within 20 s"
    yield host
    host.stop(2.0)
    thread.join(20)
    assert not thread.is_alive(), "the join does not end within 20 s"
    assert host._failure is None


def wait_for(what, condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within 20 s"
        time.sleep(0.002)


def test_every_part_of_bursts_larger_than_a_batch_is_ended(port, running):
    count = 5 * BATCH
    for name, kind in (("left", Left), ("right", Right)):
        port.ends[name].put([kind(n) for n in range(count)])
    views = [view for name in ("left", "right") for view in port.ends[name].views]
    wait_for("the end of every part", lambda: all(view.ends for view in views))
    assert all(view.ends == ["delivered"] for view in views)
    assert port.ends["output"].sent == [(b"%d" % n, 2 * n) for n in range(count)]


def test_an_output_without_room_is_tried_until_it_is_accepted(port, running):
    port.ends["output"].answers = [
        DeadlineExceeded("no credit"),
        RejectedError("no room"),
        DeadlineExceeded("no credit"),
    ]
    port.ends["left"].put([Left(1)])
    port.ends["right"].put([Right(1)])
    wait_for("the output", lambda: port.ends["output"].sent == [(b"1", 2)])
    wait_for("the part's end", lambda: port.ends["left"].views[0].ends == ["delivered"])


def test_what_waits_at_the_end_is_not_ended_but_handed_back(port, running):
    port.ends["left"].put([Left(1)])
    wait_for("the part's arrival", lambda: running.module._matcher.waiting == 1)
    running.stop(2.0)
    wait_for("the end", lambda: port.ends["left"].is_closed and port.ends["right"].is_closed)
    assert port.ends["left"].views[0].ends == []


def test_an_output_that_has_no_room_when_the_join_stops_is_left_to_the_next(port, running):
    port.ends["output"].answers = [DeadlineExceeded("no credit")] * 1_000_000
    for name, kind in (("left", Left), ("right", Right)):
        port.ends[name].put([kind(n) for n in range(3)])
    wait_for("a try", lambda: len(port.ends["output"].answers) < 1_000_000)
    running.stop(2.0)
    wait_for("the end", lambda: port.ends["left"].is_closed and port.ends["right"].is_closed)
    assert not any(view.ends for view in port.ends["left"].views + port.ends["right"].views)


def test_a_part_without_a_key_is_dropped(port, running):
    port.ends["left"].put([Left(1)])
    nameless = View(Left(2), None, 0)
    with port.ends["left"].some:
        port.ends["left"].queued.append(nameless)
        port.ends["left"].some.notify()
    wait_for("its end", lambda: nameless.ends == [13])  # transform_drop


def test_names_of_a_module_are_no_inputs():
    with pytest.raises(ContractError, match="cannot call an input 'config'"):
        name = fabric.join("x", inputs={"config": Left, "right": Right}, produces=Sum)(
            type("Taken", (), {"fuse": lambda self, parts, ctx: None})
        )
        module_of(name, join_of(name))


def test_an_installed_join_is_found_by_its_name_and_others_are_listed():
    assert load_module_class("join:fuse").__name__ == "Fuse"
    with pytest.raises(fabric.errors.ConfigError, match=r"no installed join is called 'no'.*fuse"):
        load_module_class("join:no")
