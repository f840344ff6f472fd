"""channel send and echo, over a fake port: json lines become messages of the channel's type and back."""

import io
import json
import sys

import numpy
import pytest

import fabric
from fabric import errors
from fabric.messages import message, message_type
from fabric.testing.fake_control import ROWS


@message("demo.text")
class Text:
    text: str
    count: int
    note: str | None
    values: fabric.Tensor["rows cols", "f32 | i32"]


SCHEMA = message_type(Text).schema.text
LINE = '{"text": "hi", "count": 2, "values": [[1, 2], [3, 4]]}'


class FakeEnd:
    """A sender, receiver or requester that records, and gives what it was loaded with."""

    def __init__(self, incoming=()):
        self.incoming = list(incoming)
        self.sent = []
        self.acknowledged = 0
        self.is_flushed = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def send(self, value, *, key, deadline):
        self.sent.append((value, key, deadline))

    def flush(self, deadline):
        self.is_flushed = True

    def receive(self, timeout):
        return self.incoming.pop(0) if self.incoming else None

    def stream(self, value, *, key, deadline):
        self.sent.append((value, key, deadline))
        return iter(self.incoming)


class FakePort:
    def __init__(self, end):
        self.end = end
        self.opened = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def sender(self, name, cls):
        self.opened.append(("sender", name, message_type(cls).schema.text))
        return self.end

    def receiver(self, name, cls, messages):
        assert messages == 1, "echo must not hoard what other consumers wait for"
        self.opened.append(("receiver", name, message_type(cls).schema.text))
        return self.end

    def requester(self, name, asks, replies):
        self.opened.append(("requester", name, message_type(replies).schema.text))
        return self.end


def received(end, **fields):
    """Return a message that notes how it was treated, as a received one would."""

    class Received(Text):
        def ack(self):
            end.acknowledged += 1

        def release(self):
            pass

    Received.__fabric_type__ = Text.__fabric_type__
    return Received(**fields)


@pytest.fixture
def port(monkeypatch, control):
    monkeypatch.setitem(
        ROWS,
        "channel",
        [{"name": "c", "pattern": "queue", "schema": SCHEMA, "reply_schema": SCHEMA}],
    )
    fake = FakePort(FakeEnd())
    monkeypatch.setitem(vars(fabric), "attach", lambda name, socket: fake)
    return fake


def test_send_builds_a_message_of_the_channels_type_from_an_argument(fabricctl, port):
    result = fabricctl("channel", "send", "c", LINE, "--key", "k", "--deadline", "2")
    assert (result.status, result.err) == (0, "1 sent\n")
    (value, key, deadline) = port.end.sent[0]
    assert (value.text, value.count, value.note, key, deadline) == ("hi", 2, None, "k", 2.0)
    assert value.values.dtype == numpy.float32
    assert value.values.tolist() == [[1, 2], [3, 4]]
    assert port.opened == [("sender", "c", SCHEMA)]
    assert port.end.is_flushed


def test_send_reads_standard_input_line_by_line(fabricctl, port, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{LINE}\n\n{LINE}\n"))
    assert fabricctl("channel", "send", "c").err == "2 sent\n"


def test_a_tensor_can_be_described_by_shape_and_fill(fabricctl, port):
    line = '{"text": "", "count": 1, "values": {"shape": [2, 3], "dtype": "i32", "fill": 7}}'
    assert fabricctl("channel", "send", "c", line).status == 0
    value = port.end.sent[0][0].values
    assert (value.dtype, value.shape, set(value.flat)) == (numpy.int32, (2, 3), {7})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "argument 1: not json"),
        ("[]", "argument 1: expected an object with the fields text, count, note, values"),
        ('{"text": "x", "cuont": 1, "values": [[1]]}', "unknown: cuont; missing: count"),
        (
            '{"text": "x", "count": 1, "values": {"shape": [1, 1], "dtype": "f16"}}',
            "'values': dtype 'f16' is not one of f32",
        ),
        (
            '{"text": "x", "count": 1, "values": {"fill": 1}}',
            "field 'values' is no tensor: 'shape'",
        ),
        (
            '{"text": "x", "count": 1, "values": {"shape": [99999999, 999999]}}',
            "larger than a message may be",
        ),
        ('{"text": "x", "count": 1, "values": "abc"}', "field 'values' is no tensor"),
    ],
)
def test_a_line_that_is_no_message_names_place_and_field(fabricctl, port, line, said):
    result = fabricctl("channel", "send", "c", line)
    assert result.status == 1
    assert said in result.err
    assert "do:  correct the json; its type: fabricctl channel show c" in result.err
    assert port.end.sent == []


def test_send_on_a_request_channel_prints_the_replies(fabricctl, port):
    ROWS["channel"][0]["pattern"] = "request"
    port.end.incoming = [
        received(port.end, text=word, count=1, note=None, values=None) for word in "ab"
    ]
    result = fabricctl("channel", "send", "c", LINE)
    assert [json.loads(line)["text"] for line in result.out.splitlines()] == ["a", "b"]
    assert port.opened == [("requester", "c", SCHEMA)]


def test_echo_prints_scalars_and_summarises_tensors(fabricctl, port):
    port.end.incoming = [
        received(port.end, text="é", count=3, note=None, values=numpy.zeros((2, 5), numpy.int32)),
    ]
    result = fabricctl("channel", "echo", "c", "--timeout", "0.1")
    assert json.loads(result.out) == {
        "text": "é", "count": 3, "note": None, "values": {"dtype": "i32", "shape": [2, 5]},
    }  # fmt: skip
    assert result.err == "1 received\n"
    assert port.end.acknowledged == 1


def test_echo_stops_after_the_count(fabricctl, port):
    port.end.incoming = [
        received(port.end, text="", count=i, note=None, values=None) for i in range(3)
    ]
    assert fabricctl("channel", "echo", "c", "-n", "2").err == "2 received\n"
    assert len(port.end.incoming) == 1


def test_a_channel_whose_type_nobody_has_brought_yet_is_refused(fabricctl, port):
    ROWS["channel"][0]["schema"] = None
    result = fabricctl("channel", "echo", "c")
    assert result.status == 1
    assert "do:  start the module or process that uses the channel" in result.err


def test_a_failure_of_the_port_says_what_was_tried(fabricctl, port, monkeypatch):
    def refuse(name, socket):
        raise errors.BusyError("the name fabricctl is taken")

    monkeypatch.setitem(vars(fabric), "attach", refuse)
    result = fabricctl("channel", "send", "c", LINE)
    assert result.err.startswith(
        "error: cannot send on channel 'c'\n  why: the name fabricctl is taken\n"
    )
