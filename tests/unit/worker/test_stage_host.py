"""The stage host over a port of queues: real plugins, real encoding, no daemon."""

import queue
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

import fabric
from fabric.errors import ContractError, PluginError, StaleHandleError, WouldBlock
from fabric.messages import message_type
from fabric.worker.stage_host import StageHost, exports_of, serve

PLUGIN = """
import fabric

@fabric.message("stage.text")
class Text:
    text: str
    data: fabric.Tensor["n", "f32"]

@fabric.transform("upper", accepts=Text, max_expansion=2.0)
class Upper:
    def apply(self, batch, ctx):
        return [fabric.Drop("empty") if not m.text else Text(m.text.upper(), m.data * 2) for m in batch]

@fabric.transform("packed", accepts=Text)
class Packed:
    def apply(self, batch, ctx): return batch
    def revert(self, batch, ctx): return batch

@fabric.transform("any")
class Any:
    def apply(self, batch, ctx): return batch

@fabric.route("last")
def last(header, targets):
    return targets[-1] if header.key else "nobody"
"""


@fabric.message("stage.text")
class Text:
    text: str
    data: fabric.Tensor["n", "f32"]


TYPE = message_type(Text)


class Native:
    """A received message as the native module hands it out."""

    def __init__(self, meta, tensors, key=None, correlation=0, reply_flow=0, expires_ns=0):
        self.meta, self.tensors, self.key = meta, tensors, key
        self.correlation, self.reply_flow, self.expires_ns = correlation, reply_flow, expires_ns
        self.sequence = self.producer = self.producer_incarnation = 1
        self.type = TYPE.schema.type_id
        self.redelivered, self.ends, self.released = False, [], False
        self.payload_bytes = len(meta) + sum(t.nbytes for t in tensors)

    def tensor(self, index, dtype, shape):
        return np.frombuffer(self.tensors[index].tobytes(), dtype).reshape(shape)

    def ack(self):
        self.ends.append("ack")

    def nack(self, reason):
        self.ends.append(reason)

    def release(self):
        self.released = True


class Endpoint:
    """Sender or receiver of the client, with its native side."""

    def __init__(self, channel, type_, stage, transform):
        self.opened = (channel, type_, stage, transform)
        self.type = message_type(type_) if type_ else TYPE
        self.queue, self.sent, self.closed = queue.Queue(), [], False
        self.segments, self.has_policy = 1, False
        self.native = self

    def decode(self, native):
        return self.type.decode(native, self)

    def receive_many(self, count, deadline_ns):
        wait_s = max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9)
        try:
            return [self.queue.get(timeout=min(wait_s, 0.02))]
        except queue.Empty:
            return []

    def coded(self, meta, tensors):
        return meta, tensors

    def choose(self, message, key, meta, tensors):
        return 77

    def forget_flow(self, flow):
        self.forgotten = flow

    def send(self, meta, tensors, key, deadline_ns, **options):
        if options["flow"] == 77 and self.has_policy == "stale":
            raise StaleHandleError("that flow is closed")
        if not self.segments:
            raise NeedSegment(4096)
        self.sent.append((self.decode(Native(meta, tensors)), key, options))

    def provide(self, need, deadline_ns):
        self.segments += 1

    def pending(self):
        return self.queue.qsize()

    def flush(self, timeout):
        return True

    def close(self):
        self.closed = True


class NeedSegment(Exception):
    pass


class Port:
    def __init__(self):
        self.receivers, self.senders, self.handlers, self.is_ready = [], [], {}, threading.Event()

    def receiver(self, channel, type_, **options):
        self.receivers.append(Endpoint(channel, type_, **options))
        return self.receivers[-1]

    def sender(self, channel, type_, **options):
        self.senders.append(Endpoint(channel, type_, **options))
        return self.senders[-1]

    def on_push(self, op, handler):
        self.handlers[op] = handler

    def on_stop(self, handler):
        self.stop = handler

    def ready(self):
        self.is_ready.set()


@pytest.fixture
def port():
    return Port()


@pytest.fixture
def host(port):
    host = StageHost(port)
    host.load({"plugin": "p", "path": "p.py", "source": PLUGIN})
    yield host
    host.close()


def put(port, text, **options):
    native = Native(*TYPE.encode(Text(text, np.ones(3, np.float32))), **options)
    port.receivers[0].queue.put(native)
    return native


def wait_for(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "did not happen within 5 s"
        time.sleep(0.002)


def run(host, transform="upper"):
    return host.run({"channel": "c", "transform": transform, "stage": 1})


def test_transform_runs_between_its_two_hops(host, port):
    run(host)
    assert port.receivers[0].opened[::2] == ("c", 1) and port.receivers[0].opened[3] == "upper"
    assert port.senders[0].opened[::2] == ("c", 2) and port.senders[0].opened[3] == "upper"
    native = put(port, "a", key=b"k", correlation=7, reply_flow=8, expires_ns=1 << 62)
    wait_for(lambda: native.released)
    message, key, options = port.senders[0].sent[0]
    assert (message.text, message.data.tolist(), key) == ("A", [2, 2, 2], b"k")
    assert options == {"flow": 0, "correlation": 7, "reply_flow": 8, "expires_ns": 1 << 62}
    assert native.ends == ["ack"]


def test_dropped_message_ends_with_the_reason_of_a_transform(host, port):
    run(host)
    native = put(port, "")
    wait_for(lambda: native.released)
    assert native.ends == [13] and not port.senders[0].sent


def test_tap_of_any_type_forwards_the_very_bytes(host, port):
    run(host, "any")
    assert port.receivers[0].opened[1] is None and port.senders[0].opened[1] is None
    native = put(port, "as it is")
    wait_for(lambda: native.ends == ["ack"])
    message, _, _ = port.senders[0].sent[0]
    assert (message.text, message.data.tolist()) == ("as it is", [1, 1, 1])


def test_send_asks_for_a_segment_when_the_arena_has_none(host, port):
    run(host)
    port.senders[0].segments = 0
    native = put(port, "a")
    wait_for(lambda: native.released)
    assert native.ends == ["ack"] and port.senders[0].segments == 1


@pytest.mark.parametrize(("policy", "flow"), [(True, 77), ("stale", 0)])
def test_policy_of_the_channel_chooses_on_the_last_hop(host, port, policy, flow):
    run(host)
    port.senders[0].has_policy = policy
    native = put(port, "a", key=b"k")
    wait_for(lambda: native.released)
    assert port.senders[0].sent[0][2]["flow"] == flow
    assert flow or port.senders[0].forgotten == 77


def test_full_hop_keeps_the_input_unacknowledged(host, port):
    run(host)
    refused = threading.Event()
    send = port.senders[0].send

    def full(*arguments, **options):
        refused.set()
        raise WouldBlock("full")

    port.senders[0].send = full
    native = put(port, "a")
    assert refused.wait(5) and native.ends == []
    port.senders[0].send = send
    wait_for(lambda: native.ends == ["ack"])


def test_stop_finishes_what_is_queued_and_answers_its_counts(host, port):
    run(host)
    for _ in range(5):
        put(port, "a")
    stats = host.stop({"channel": "c", "transform": "upper"})["stats"]
    assert (stats["received"], stats["sent"]) == (5, 5)
    assert port.receivers[0].closed and port.senders[0].closed


def test_run_and_stop_may_be_repeated(host, port):
    run(host)
    run(host)
    assert len(port.receivers) == 1
    host.stop({"channel": "c", "transform": "upper"})
    assert host.stop({"channel": "c", "transform": "upper"}) == {"stats": {}}


def test_unknown_transform_and_codec_are_refused(host):
    with pytest.raises(PluginError, match="no transform 'absent' here"):
        run(host, "absent")
    with pytest.raises(ContractError, match="codec 'packed'"):
        run(host, "packed")


def test_failing_constructor_is_a_plugin_error_and_leaves_no_endpoint(host, port):
    source = PLUGIN.replace(
        "def apply(self, batch, ctx): return batch\n\n",
        "def __init__(self): 1 / 0\n    def apply(self, batch, ctx): return batch\n\n",
    )
    assert source != PLUGIN
    host.load({"plugin": "p", "path": "p.py", "source": source})
    with pytest.raises(PluginError, match="'any' cannot be made: ZeroDivisionError"):
        run(host, "any")
    assert not port.receivers and not port.senders


def test_chain_that_cannot_go_on_ends_the_host_for_the_supervisor(host, port, capsys):
    run(host)

    def broken(count, deadline_ns):
        raise RuntimeError("torn")

    port.receivers[0].receive_many = broken
    assert host.ended.wait(5)
    assert isinstance(host.failure, RuntimeError) and "torn" in capsys.readouterr().err


def test_loaded_again_a_running_transform_goes_on_with_the_new_code(host, port):
    run(host)
    host.load(
        {"plugin": "p", "path": "p.py", "source": PLUGIN.replace("m.text.upper()", "m.text + '!'")}
    )
    native = put(port, "a")
    wait_for(lambda: native.released)
    assert port.senders[0].sent[0][0].text == "a!" and len(port.receivers) == 1


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('("upper"', '("lower"', "lacks it"),
        ("    text: str", "    text: str\n    more: int", "has other types"),
    ],
)
def test_version_that_no_longer_fits_a_running_transform_is_refused(host, port, old, new, text):
    run(host)
    with pytest.raises(ContractError, match=text):
        host.load({"plugin": "p", "path": "p.py", "source": PLUGIN.replace(old, new)})
    native = put(port, "a")
    wait_for(lambda: native.released)
    assert port.senders[0].sent[0][0].text == "A", "the version before still runs"


def decide(host, key, policy="last"):
    targets = [{"flow": n, "endpoint": n, "node": "a", "load_hint": 3} for n in (4, 5)]
    return host.decide(
        {"policy": policy, "header": {"channel": "c", "key": key}, "targets": targets}
    )


def test_policy_answers_a_flow(host):
    answer = decide(host, b"k")
    assert (answer["flow"], answer["flows"], answer["per"], answer["reads"]) == (5, [5], "flow", [])
    assert answer["us"] > 0


def test_policy_that_breaks_its_contract_is_an_error_with_a_traceback(host, capsys):
    with pytest.raises(ContractError, match="return one of the given targets"):
        decide(host, None)
    assert "route 'last' on 'c'" in capsys.readouterr().err


def test_unknown_policy_is_refused(host):
    with pytest.raises(PluginError, match="no policy 'absent' here"):
        decide(host, b"k", "absent")


def test_exports_carry_the_schemas(host):
    rows = {(e["kind"], e["name"]): e for e in exports_of(host._plugin)}
    assert rows["transform", "upper"]["accepts_schema"] == TYPE.schema.text
    assert rows["transform", "upper"]["produces"] == "stage.text@1"
    assert (rows["transform", "any"]["accepts"], rows["transform", "any"]["accepts_schema"]) == (
        "any",
        "",
    )
    assert set(rows) >= {("route", "last"), ("message", "stage.text")}


def test_serve_ends_when_the_daemon_stops_it(port):
    statuses = []
    # Signals belong to the main thread; the daemon's stop is what is tested here.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("signal.signal", lambda *_: None)
        thread = threading.Thread(target=lambda: statuses.append(serve(port)))
        thread.start()
        assert port.is_ready.wait(5)
        assert set(port.handlers) == {
            "stage_load",
            "stage_run",
            "stage_stop",
            "stage_canary",
            "stage_canary_look",
            "stage_canary_end",
            "route_decide",
        }
        port.stop(1.0)
        thread.join(5)
    assert statuses == [0]


def test_installed_plugin_loads_without_source(port):
    host = StageHost(port)
    host._plugin = SimpleNamespace(module_name="none")
    exports = host.load({"plugin": "round_robin", "path": "", "source": ""})["exports"]
    assert [(e["kind"], e["name"], e["per"]) for e in exports] == [
        ("route", "round_robin", "batch")
    ]
