"""The chain against a hop of lists and a clock that stands still unless told."""

import io

import pytest

from fabric import limits
from fabric.abc.transform import AnyMessage, Defer, Drop, transform
from fabric.errors import CapacityError, RejectedError, TypeMismatchError, WouldBlock
from fabric.messages import MessageHeader
from fabric.worker.stage_chain import Chain

SECOND = 1_000_000_000


class Text:
    __fabric_type__ = object()

    def __init__(self, text):
        self.text = text


class Received:
    def __init__(self, hop, text, key, sequence, expires_ns):
        self.hop, self.value = hop, Text(text)
        self.header = MessageHeader(key, sequence, 1, 1, False, expires_ns, len(text), 0)
        self.key, self.expires_ns, self.identity = key, expires_ns, (1, 1, sequence)

    def end(self, how):
        assert self not in self.hop.ends, "ended twice"
        self.hop.ends[self] = how
        self.hop.history.append((how, self.value.text))

    def ack(self):
        self.end("ack")

    def drop(self, expired=False):
        self.end("expired" if expired else "drop")

    def fail(self):
        self.end("fail")


class Sent:
    def __init__(self, text, source):
        self.text, self.source, self.payload_bytes = text, source, len(text)


class Hop:
    """Inlet and outlet: a list on each side, and keys whose consumer is full."""

    def __init__(self):
        self.now_ns = 100 * SECOND
        self.queue, self.sent, self.history, self.ends, self.full = [], [], [], {}, set()
        self.waits = []

    def put(self, text, key=None, expires_ns=0):
        message = Received(self, text, key, len(self.ends) + len(self.queue) + 1, expires_ns)
        self.queue.append(message)
        return message

    def receive_many(self, count, deadline_ns):
        self.waits.append(deadline_ns - self.now_ns)
        taken, self.queue = self.queue[:count], self.queue[count:]
        return taken

    def prepare(self, value, source):
        return Sent(value.text, source)

    def forward(self, source):
        return Sent(source.value.text, source)

    def send(self, message, deadline_ns):
        if message.source.header.key in self.full:
            self.now_ns = max(self.now_ns, deadline_ns)
            raise WouldBlock("full")
        self.sent.append(message.text)
        self.history.append(("send", message.text))

    def send_many(self, messages, expires_ns):
        for count, message in enumerate(messages):
            try:
                self.send(message, 0)
            except Exception:
                return count
        return len(messages)

    def refuse(self, text, error):
        """Let sending `text` fail for good."""
        send = self.send

        def refusing(message, deadline_ns):
            if message.text == text:
                raise error
            send(message, deadline_ns)

        self.send = refusing


@pytest.fixture
def hop():
    return Hop()


def chain(hop, apply, log=None, **options):
    options.setdefault("accepts", Text)
    options.setdefault("max_expansion", 2.0)
    body = {"apply": lambda self, batch, ctx: apply(batch, ctx)}
    export = transform("t", **options)(type("T", (), body)).__fabric_export__
    return Chain(export, "p", "c", hop, hop, lambda: hop.now_ns, log or io.StringIO())


def upper(batch, ctx):
    return [Text(m.text.upper()) for m in batch]


def test_input_is_acknowledged_only_after_its_output_was_accepted(hop):
    hop.put("a")
    hop.put("b")
    assert chain(hop, upper).turn(0) == 2
    assert hop.history == [("send", "A"), ("send", "B"), ("ack", "a"), ("ack", "b")]


@pytest.mark.parametrize(
    "error", [CapacityError("larger than all arenas"), TypeMismatchError("no")]
)
def test_output_that_can_never_be_sent_fails_its_input_alone(hop, error):
    hop.refuse("BAD", error)
    for text in ("a", "bad", "c"):
        hop.put(text)
    log = io.StringIO()
    running = chain(hop, upper, log, on_error="bypass")
    running.turn(0)
    running.turn(0)
    assert running.idle
    assert [how for how, _ in hop.history] == ["send", "ack", "fail", "send", "ack"]
    assert hop.sent == ["A", "C"] and str(error) in log.getvalue()


def test_rejected_output_waits_as_if_the_hop_were_full(hop):
    hop.put("a")
    running = chain(hop, upper)
    hop.refuse("A", RejectedError("full"))
    assert running.turn(0) == 0 and not running.idle and hop.history == []


def test_batch_is_what_is_there(hop):
    sizes = []
    running = chain(hop, lambda batch, ctx: sizes.append(len(batch)) or batch)
    for count in (1, 3, limits.TRANSFORM_BATCH_MAX + 5):
        for _ in range(count):
            hop.put("m")
        running.turn(0)
    assert sizes == [1, 3, limits.TRANSFORM_BATCH_MAX]


def test_context_headers_belong_to_the_batch(hop):
    seen = []
    hop.put("a", key=b"k", expires_ns=900 * SECOND)
    chain(hop, lambda batch, ctx: seen.append(ctx) or batch).turn(0)
    assert (seen[0].headers[0].key, seen[0].headers[0].expires_ns) == (b"k", 900 * SECOND)
    assert (seen[0].plugin, seen[0].channel, seen[0].now_ns) == ("p", "c", hop.now_ns)


def test_dropped_input_ends_as_transform_drop(hop):
    hop.put("a")
    running = chain(hop, lambda batch, ctx: [Drop("unwanted")])
    running.turn(0)
    assert hop.history == [("drop", "a")] and running.counts["dropped"] == 1 and running.idle


def test_one_drop_holds_for_the_whole_batch(hop):
    hop.put("a")
    hop.put("b")
    chain(hop, lambda batch, ctx: Drop("all")).turn(0)
    assert hop.history == [("drop", "a"), ("drop", "b")]


def test_one_input_may_become_several_outputs(hop):
    hop.put("ab")
    chain(hop, lambda batch, ctx: [[Text("a"), Text("b")]]).turn(0)
    assert hop.history == [("send", "a"), ("send", "b"), ("ack", "ab")]


def failing(batch, ctx):
    if any(m.text == "bad" for m in batch):
        raise ValueError("no good")
    return upper(batch, ctx)


@pytest.mark.parametrize(
    ("on_error", "expected"),
    [
        ("fail", [("fail", "bad")]),
        ("drop", [("drop", "bad")]),
        ("bypass", [("send", "bad"), ("ack", "bad")]),
    ],
)
def test_error_ends_only_its_own_message_by_policy(hop, on_error, expected):
    for text in ("x", "bad", "y"):
        hop.put(text)
    log = io.StringIO()
    running = chain(hop, failing, log, on_error=on_error)
    running.turn(0)
    assert [h for h in hop.history if h[1] == "bad"] == expected
    assert [t for t in hop.sent if t != "bad"] == ["X", "Y"]
    assert running.idle and len(hop.ends) == 3
    assert "plugin 'p', transform 't' on 'c': ValueError: no good" in log.getvalue()
    assert "in failing" in log.getvalue()


def test_tracebacks_are_bounded_and_the_rest_counted(hop):
    log = io.StringIO()
    running = chain(hop, failing, log)
    for _ in range(5):
        hop.put("bad")
    running.turn(0)
    hop.now_ns += 2 * SECOND
    hop.put("bad")
    running.turn(0)
    assert log.getvalue().count("Traceback") == 2
    assert "(4 more since the last report)" in log.getvalue()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (lambda batch: [], "0 results"),
        (lambda batch: None, "None"),
        (lambda batch: ["text"], "returned str, declares produces=Text"),
        (lambda batch: [[]], "0 outputs for one input"),
        (lambda batch: [[Text("")] * (limits.TRANSFORM_OUTPUTS_MAX + 1)], "outputs for one input"),
    ],
)
def test_answer_outside_the_contract_is_a_transform_error(hop, answer, text):
    hop.put("a")
    log = io.StringIO()
    chain(hop, lambda batch, ctx: answer(batch), log).turn(0)
    assert hop.history == [("fail", "a")]
    assert text in log.getvalue()


def test_output_at_the_expansion_bound_passes_and_above_it_fails(hop):
    bound = 100 * 2 + limits.TRANSFORM_SLACK_BYTES
    for size in (bound, bound + 1):
        hop.put("i" * 100)
        chain(hop, lambda batch, ctx, size=size: [Text("o" * size)]).turn(0)
    assert [how for how, _ in hop.history] == ["send", "ack", "fail"]


def test_tap_of_any_type_passes_messages_on_unchanged(hop):
    source = hop.put("a")
    chain(hop, lambda batch, ctx: batch, accepts=AnyMessage).turn(0)
    assert hop.sent == ["a"] and hop.ends[source] == "ack"


def test_tap_of_any_type_may_not_invent_messages(hop):
    hop.put("a")
    chain(hop, lambda batch, ctx: [Text("b")], accepts=AnyMessage).turn(0)
    assert hop.history == [("fail", "a")]


def test_deferred_input_is_given_again_when_its_time_has_come(hop):
    answers = [[Defer(0.5)], [Text("A")]]
    running = chain(hop, lambda batch, ctx: answers.pop(0))
    hop.put("a")
    assert running.turn(0) == 0 and not running.idle
    assert running.turn(10 * SECOND) == 0
    assert hop.waits[-1] == SECOND // 2
    hop.now_ns += SECOND // 2
    assert running.turn(0) == 1 and hop.history == [("send", "A"), ("ack", "a")]


def deferring_once(texts):
    left = set(texts)

    def apply(batch, ctx):
        results = [Defer(1) if m.text in left else m for m in batch]
        left.difference_update(m.text for m in batch)
        return results

    return apply


def test_order_of_a_key_holds_over_deferral_and_other_keys_go_ahead(hop):
    running = chain(hop, deferring_once({"a1"}))
    hop.put("a1", key=b"a")
    hop.put("a2", key=b"a")
    hop.put("b1", key=b"b")
    running.turn(0)
    hop.put("a3", key=b"a")
    running.turn(0)
    assert hop.sent == ["b1"]
    hop.now_ns += SECOND
    running.turn(0)
    assert hop.sent == ["b1", "a1", "a2", "a3"]


def test_input_deferred_past_its_expiry_is_dropped_as_expired(hop):
    running = chain(hop, lambda batch, ctx: Defer(0.01))
    hop.put("a", expires_ns=hop.now_ns + SECOND)
    running.turn(0)
    hop.now_ns += SECOND
    running.turn(0)
    assert hop.history == [("expired", "a")]


def test_input_without_expiry_is_not_deferred_for_ever(hop):
    running = chain(hop, lambda batch, ctx: Defer(1))
    hop.put("a")
    running.turn(0)
    hop.now_ns += int(limits.DEFAULT_DEADLINE_S * SECOND) - 1
    running.turn(0)
    assert hop.history == []
    hop.now_ns += 1
    running.turn(0)
    assert hop.history == [("fail", "a")]


def test_full_consumer_keeps_back_only_its_own_keys(hop):
    hop.full = {b"slow"}
    for text, key in (("s1", b"slow"), ("f1", b"fast"), ("s2", b"slow"), ("f2", b"fast")):
        hop.put(text, key=key)
    running = chain(hop, lambda batch, ctx: batch)
    running.turn(0)
    assert hop.sent == ["f1", "f2"]
    hop.full = set()
    running.turn(0)
    assert hop.sent == ["f1", "f2", "s1", "s2"]


def test_full_next_hop_stops_receiving_at_the_limit(hop):
    hop.full = {None}
    running = chain(hop, lambda batch, ctx: batch)
    for _ in range(2 * limits.TRANSFORM_WAITING_MAX):
        hop.put("m")
    for _ in range(20):
        running.turn(0)
    assert running.counts["received"] == limits.TRANSFORM_WAITING_MAX
    assert len(hop.queue) == limits.TRANSFORM_WAITING_MAX and hop.ends == {}


def test_message_that_expires_at_a_full_hop_is_dropped(hop):
    hop.full = {None}
    hop.put("a", expires_ns=hop.now_ns + SECOND)
    running = chain(hop, lambda batch, ctx: batch)
    running.turn(0)
    hop.now_ns += SECOND
    running.turn(0)
    assert hop.history == [("expired", "a")]


def test_outputs_already_sent_are_not_repeated_after_a_full_hop(hop):
    running = chain(hop, lambda batch, ctx: [[Text("1"), Text("2")]])
    send, refused = hop.send, []

    def full_after_one(message, deadline_ns):
        if hop.sent and not refused:
            refused.append(message)
            raise WouldBlock("full")
        send(message, deadline_ns)

    hop.send = full_after_one
    hop.put("ab")
    running.turn(0)
    running.turn(0)
    assert hop.history == [("send", "1"), ("send", "2"), ("ack", "ab")]
