"""Plugins that do their worst, all on one node at once: each ends at most its own stage host, and its own messages."""

import time
from functools import partial

import numpy as np
import pytest

import fabric
from tests.integration.kill_nodes import balanced, clusters, wait_for

pytestmark = pytest.mark.promise("P4")

cluster = pytest.fixture(clusters)
COUNT, BAD = 12, 5
HEAD = """
import ctypes, os, sys, time
import numpy as np
import fabric

@fabric.message("hostile.part")
class Part:
    number: int
    data: fabric.Tensor["n", "f32"]
"""
ONE = """
@fabric.transform("{name}", accepts=Part, on_error="{on_error}", {options})
class {name}:
    kept = []

    def apply(self, batch, ctx):
        return [self.one(m) if {when} else m for m in batch]

    def one(self, m):
        {body}
        return m
"""
# name: options, body, on_error, how the bad message ends
CASES = {
    "raises": ("", "raise ValueError('no')", "fail", "failed"),
    "returns_nonsense": ("", "return 'nonsense'", "drop", "dropped"),
    "wrong_dtype": ("", "return Part(m.number, m.data.astype('f8'))", "bypass", "delivered"),
    "grows": ("", "return Part(m.number, np.zeros(1 << 16, np.float32))", "fail", "failed"),
    "sleeps": ("time_budget_ms=20", "time.sleep(3600)", "drop", "dropped"),
    "allocates": (
        "memory_budget_bytes=32 << 20",
        "hog = [np.ones(1 << 20) for _ in range(1 << 20)]",
        "bypass",
        "delivered",
    ),
    "segfaults": ("", "ctypes.string_at(0)", "fail", "failed"),
    "exits": ("", "os._exit(0)", "bypass", "delivered"),
    "exits_politely": ("", "sys.exit(0)", "drop", "dropped"),
    "forks": ("", "os.fork(); ctypes.CDLL(None).fork()", "fail", "delivered"),
    "prints": ("", "print('x' * (5 << 20))", "fail", "delivered"),
    "keeps": (
        "",
        "self.kept.append(m.data); assert [k[0] for k in self.kept] == list(range(len(self.kept)))",
        "fail",
        "delivered",
    ),
    "always_exits": ("", "os._exit(1)", "drop", "dropped"),
}
ALL = {"keeps", "always_exits"}  # do it with every message
ENDS_ITS_HOST = {"sleeps", "segfaults", "exits", "always_exits"}
ALONE = {
    *ENDS_ITS_HOST,
    "allocates",
}  # each in a plugin, and so a stage host, of its own: memory is the host's


@fabric.message("hostile.part")
class Part:
    number: int
    data: fabric.Tensor["n", "f32"]


def transform(name):
    options, body, on_error, _ = CASES[name]
    when = "True" if name in ALL else f"m.number == {BAD}"
    return ONE.format(name=name, options=options, body=body, on_error=on_error, when=when)


def spec(folder):
    """Write the plugins, and return the fabric.yaml that puts each of their transforms on a channel."""
    together = [name for name in CASES if name not in ALONE]
    files = {"together": together, **{f"{name}_alone": [name] for name in ALONE}}
    for file, names in files.items():
        (folder / f"{file}.py").write_text(HEAD + "".join(map(transform, names)))
    channels = [
        f"  {name}: {{type: hostile.part, pattern: stream, delivery: at_least_once, transforms: [{name}]}}"
        for name in CASES
    ]
    plugins = ", ".join(f"{file}.py" for file in files)
    return "\n".join(["version: 1", f"plugins: [{plugins}]", "channels:", *channels])


def counts(sender):
    """Return how the messages of a sender ended."""
    found = {"delivered": 0, "dropped": 0, "failed": 0}
    for end, count in sender.stats().items():
        if end.partition("(")[0] in found and isinstance(count, int):
            found[end.partition("(")[0]] += count
    return found


def expected(name):
    end = CASES[name][3]
    ended = COUNT if name in ALL else 1
    found = {"delivered": COUNT - ended, "dropped": 0, "failed": 0}
    found[end] += ended
    return found


def test_each_does_its_worst_and_only_its_own_messages_feel_it(cluster):
    node = cluster.node()
    names = [*CASES, "calm"]
    with (
        fabric.attach("out", socket=node.socket) as out,
        fabric.attach("in", socket=node.socket) as inn,
    ):
        node.call("apply", spec(node.folder), search=[str(node.folder)])
        out.declare("calm", Part, pattern="stream", delivery="at_least_once")
        receivers = {name: inn.receiver(name, Part) for name in names}
        senders = {name: out.sender(name, Part) for name in names}
        for number in range(COUNT):
            for sender in senders.values():
                sender.send(Part(number, np.full(8, number, np.float32)), key=b"k", deadline=30)
        got = {name: [] for name in names}
        wanted = {name: expected(name) for name in CASES}
        deadline = time.monotonic() + 60
        while any(len(got[n]) < wanted[n]["delivered"] for n in CASES):
            assert time.monotonic() < deadline, {
                n: got[n] for n in CASES if len(got[n]) < wanted[n]["delivered"]
            }
            for name, receiver in receivers.items():
                for message in receiver.receive_many(64, timeout=0.01):
                    got[name].append((message.number, float(message.data[-1])))
                    message.ack()
                    message.release()
        for name in CASES:
            ended = partial(lambda n: sum(counts(senders[n]).values()) == COUNT, name)
            wait_for(f"the end of {name}, {counts(senders[name])}", ended, 60.0)
            assert counts(senders[name]) == wanted[name], name
            numbers = list(dict.fromkeys(number for number, _ in got[name]))
            assert numbers == sorted(numbers), f"{name}: order of the key"
            assert all(number == value for number, value in got[name]), f"{name}: bytes"
        assert [number for number, _ in got["calm"]] == list(range(COUNT))
        balanced(node)
    _visible(node)


def _visible(node):
    rows = {row["name"]: row for row in node.call("ls", "plugin")}
    kept = [rows[name]["restarts"] for name in ("together", "allocates_alone")]
    assert kept == [0, 0], "what only misbehaves ends no process"
    assert all(rows[f"{name}_alone"]["restarts"] >= 1 for name in ENDS_ITS_HOST)
    found = node.call("events")["events"]
    said = {e["more"]["plugin"]: e["reason"] for e in found if e["kind"] == "plugin ended its host"}
    assert "did not return within" in said["sleeps_alone"]
    assert "left out for" in said["always_exits_alone"], "a row of crashes rests"
    log = "\n".join(node.call("plugin_logs", "together", 100))
    assert len(log) < 2 << 20 and "a second are not kept" in log
