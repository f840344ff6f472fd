"""Whatever a transform answers and whenever its next hop is full: every input ends once, and keys stay in order."""

import io

from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.abc.transform import Defer, Drop, transform
from fabric.errors import WouldBlock
from fabric.messages import MessageHeader
from fabric.worker.stage_chain import Chain

KEYS = [None, b"a", b"b"]
ANSWERS = ["keep", "drop", "defer", "raise", "two", "wrong"]
NS = 1_000_000


class Item:
    __fabric_type__ = object()

    def __init__(self, number, part=0):
        self.number, self.part = number, part


class Source:
    def __init__(self, number, key, ends):
        self.value = Item(number)
        self.header = MessageHeader(key, number, 1, 1, False, 0, 64, 0)
        self.key, self.expires_ns, self.identity = key, 0, (1, 1, number)
        self.ends = ends

    def ack(self):
        self.ends.append((self.value.number, "ack"))

    def drop(self, expired=False):
        self.ends.append((self.value.number, "drop"))

    def fail(self):
        self.ends.append((self.value.number, "fail"))


class Sent:
    def __init__(self, value, source):
        self.value, self.source, self.payload_bytes = value, source, 64


class World:
    def __init__(self, script, full_at):
        self.now, self.sends, self.queue, self.ends, self.sent = NS, 0, [], [], []
        self.script, self.full_at = script, full_at

    def receive_many(self, count, deadline_ns):
        taken, self.queue = self.queue[:count], self.queue[count:]
        return taken

    def prepare(self, value, source):
        return Sent(value, source)

    def forward(self, source):
        return Sent(source.value, source)

    def send(self, message, deadline_ns):
        self.sends += 1
        if self.sends in self.full_at:
            raise WouldBlock("full")
        self.sent.append((message.source.header.key, message.value.number, message.value.part))

    def send_many(self, messages, expires_ns):
        for count, message in enumerate(messages):
            try:
                self.send(message, 0)
            except WouldBlock:
                return count
        return len(messages)

    def answer(self, number):
        answers = self.script.setdefault(number, ["keep"])
        return answers.pop(0) if len(answers) > 1 else answers[0].replace("defer", "keep")

    def apply(self, batch):
        kinds = [self.answer(item.number) for item in batch]
        if "raise" in kinds:
            # The chain gives each alone next: the same answer must come again.
            for item, kind in zip(batch, kinds, strict=True):
                self.script[item.number].insert(0, kind)
            if len(batch) == 1:
                self.script[batch[0].number].pop(0)
            raise ValueError("scripted")
        made = {
            "keep": lambda m: m,
            "drop": lambda m: Drop("scripted"),
            "defer": lambda m: Defer(0.001),
            "two": lambda m: [m, Item(m.number, 1)],
            "wrong": lambda m: "no message",
        }
        return [made[kind](item) for kind, item in zip(kinds, batch, strict=True)]


@settings(max_examples=150, deadline=None)
@given(
    arrivals=st.lists(st.tuples(st.sampled_from(KEYS), st.integers(0, 3)), max_size=25),
    script=st.lists(st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=3), max_size=25),
    full_at=st.sets(st.integers(1, 60), max_size=20),
    on_error=st.sampled_from(["fail", "drop", "bypass"]),
)
def test_every_input_ends_once_and_every_key_stays_in_order(arrivals, script, full_at, on_error):
    world = World(dict(enumerate(map(list, script))), full_at)
    body = {"apply": lambda self, batch, ctx: world.apply(batch)}
    declared = transform("t", accepts=Item, max_expansion=3.0, on_error=on_error)(
        type("T", (), body)
    )
    chain = Chain(
        declared.__fabric_export__, "p", "c", world, world, lambda: world.now, io.StringIO()
    )
    for number, (key, turns) in enumerate(arrivals):
        world.queue.append(Source(number, key, world.ends))
        for _ in range(turns):
            chain.turn(0)
            world.now += NS
    for _ in range(200):
        chain.turn(0)
        world.now += NS
    assert chain.idle and not world.queue
    assert sorted(number for number, _ in world.ends) == list(range(len(arrivals)))
    for key in KEYS:
        sent = [(number, part) for k, number, part in world.sent if k == key]
        assert sent == sorted(set(sent)), "in order, and nothing twice"
    sent_numbers = {number for _, number, _ in world.sent}
    assert sent_numbers == {number for number, end in world.ends if end == "ack"}
