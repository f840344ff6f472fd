"""Old and new versions of a message type meet on a channel: on one node, across two, and through a stage host."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import fabric
from fabric import errors
from fabric.messages import class_from_schema, message_type
from tests.integration.kill_nodes import clusters, wait_for

DELIVERY = {"pattern": "stream", "delivery": "at_least_once"}


@fabric.message("versions.part")
class Part:
    label: str
    grid: fabric.Tensor["n", "f32"]


@fabric.message("versions.part", version=2)
class NewPart:
    label: str
    grid: fabric.Tensor["n", "f32"]
    weight: float = 1.5


@fabric.message("versions.layer")
class Old:
    request: str
    count: int
    k: fabric.Tensor["tokens dim", "f32"]
    parts: list[Part]
    v: fabric.Tensor["tokens dim", "f32"]


@fabric.message("versions.layer", version=2)
class New:
    request: str
    v: fabric.Tensor["tokens dim", "f32"]
    k: fabric.Tensor["tokens dim", "f32"]
    parts: list[NewPart]
    layers: int = fabric.field(default=0, alias="count")
    note: str | None = "none yet"


@fabric.message("versions.layer", version=3)
class Wide:
    request: str
    v: fabric.Tensor["tokens dim", "f32 | f16"]
    k: fabric.Tensor["tokens dim", "f32 | f16"]
    parts: list[NewPart]
    layers: int = fabric.field(default=0, alias="count")


@fabric.message("versions.layer", version=4)
class Broken:
    request: str
    must: int


def array(*values):
    return np.array([values], np.float32)


def old(n):
    return Old(
        "r", n, array(1, 2), [Part("a", np.float32([n])), Part("b", np.float32([]))], array(3, 4)
    )


def new(n):
    parts = [NewPart("a", np.float32([n]), 2.5)]
    return New("r", array(3, 4), array(1, 2), parts, n, "told")


def ends(cluster, channel, sent, received, nodes=("a", "a")):
    """Attach a sender and a receiver, each with its version, and wait until they know of one another."""
    found = {node.name: node for node in cluster.nodes}
    out_port = fabric.attach("out", found[nodes[0]].socket)
    in_port = fabric.attach("in", found[nodes[1]].socket)
    out_port.declare(channel, sent, **DELIVERY)
    out, inn = out_port.sender(channel, sent), in_port.receiver(channel, received)
    return out_port, in_port, out, inn


@pytest.fixture(scope="module")
def nodes():
    """Two nodes for all tests here, in a folder whose path leaves room for a socket name."""
    folder = Path(tempfile.mkdtemp(prefix="fab-", dir="/tmp"))
    with contextlib.contextmanager(clusters)(folder) as cluster:
        cluster.node("b", cluster.node("a"))
        yield cluster
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("places", [("a", "a"), ("a", "b")], ids=["one node", "two nodes"])
def test_new_consumer_reads_an_old_producer_and_an_old_one_a_new_producer(nodes, places):
    out_port, in_port, out, inn = ends(nodes, f"up.{places[1]}", Old, New, places)
    with out_port, in_port:
        out.send(old(7), key="k", deadline=20)
        with inn.receive(timeout=20) as got:
            assert (got.request, got.layers, got.note) == ("r", 7, "none yet")
            assert got.k.tolist() == [[1, 2]] and got.v.tolist() == [[3, 4]]
            assert [(p.label, p.weight, p.grid.tolist()) for p in got.parts] == [
                ("a", 1.5, [7]), ("b", 1.5, []),
            ]  # fmt: skip
            into = np.zeros((1, 2), np.float32)
            got.copy_into("k", into)
            assert isinstance(got, New) and into.tolist() == [[1, 2]]
            got.ack()
        out.flush(timeout=20)
    out_port, in_port, out, inn = ends(nodes, f"down.{places[1]}", New, Old, places)
    with out_port, in_port:
        for n in (1, 2):
            out.send(new(n), key="k", deadline=20)
        for n in (1, 2):
            with inn.receive(timeout=20) as got:
                assert got.count == n and got.v.tolist() == [[3, 4]]
                assert [(type(p), p.label, p.grid.tolist()) for p in got.parts] == [
                    (Part, "a", [n])
                ]
                got.ack()
        out.flush(timeout=20)
        assert out.stats()["delivered"] == 2


def test_both_versions_are_sent_and_read_on_one_channel_and_a_tool_reads_them_too(nodes):
    out_port, in_port, out, inn = ends(nodes, "mixed", Old, New)
    with out_port, in_port, fabric.attach("second", nodes.nodes[0].socket) as second:
        newer = second.sender("mixed", New)
        out.send(old(1), key="k", deadline=20)
        newer.send(new(2), key="k", deadline=20)
        got = []
        while len(got) < 2:
            message = inn.receive(timeout=20)
            got.append(message.layers)
            message.ack()
        assert sorted(got) == [1, 2]
        row = nodes.nodes[0].call("show", "channel", "mixed")
        assert (
            message_type(class_from_schema(message_type(New).schema)).schema.text == row["schema"]
        )


def test_what_an_open_end_cannot_read_is_refused_with_the_field_and_both_versions(nodes):
    out_port, in_port, _, _ = ends(nodes, "strict", New, New)
    with out_port, in_port, fabric.attach("late", nodes.nodes[1].socket) as late:
        with pytest.raises(
            errors.TypeMismatchError, match=r"layer@4 .*layer@2.*'must'.*no default"
        ):
            late.sender("strict", Broken)
        with pytest.raises(errors.TypeMismatchError, match=r"layer@2 .*layer@3.*'v' may be f16"):
            late.sender("strict", Wide)
        late.receiver("strict", Wide).close()  # who takes more may come
    wait_for(
        "the ends are gone",
        lambda: not nodes.nodes[0].call("show", "channel", "strict")["receivers"],
    )
    with fabric.attach("late", nodes.nodes[1].socket) as late:
        late.sender("strict", Wide)  # and send more, once nobody is there who takes less


def test_stage_host_gives_a_plugin_of_one_version_the_messages_of_another(nodes, tmp_path):
    plugin = tmp_path / "pass_on.py"
    plugin.write_text(
        "import fabric\n\n@fabric.transform('pass_on')\nclass PassOn:\n"
        "    def apply(self, batch, ctx):\n        return batch\n"
    )
    out_port, in_port, out, inn = ends(nodes, "staged", Old, New)
    with out_port, in_port:
        nodes.nodes[0].call("plugin_load", str(plugin), plugin.read_text(), channel="staged")
        out.send(old(9), key="k", deadline=20)
        with inn.receive(timeout=20) as got:
            assert got.layers == 9 and [p.grid.tolist() for p in got.parts] == [[9], []]
            got.ack()


_CONSUMER = """
import os, sys, fabric
sys.path.insert(0, {root!r})
from tests.integration.test_type_versions import New
port = fabric.attach("first", {socket!r})
with port.receiver("moved", New) as inn:
    print("open", flush=True)
    assert inn.receive(timeout=20).layers == 5
    os.kill(os.getpid(), 9)
"""


def test_message_of_an_old_version_is_redelivered_when_its_consumer_is_killed(nodes):
    socket = nodes.nodes[0].socket
    with (
        fabric.attach("out", socket) as out_port,
        fabric.attach("in", nodes.nodes[1].socket) as next_port,
    ):
        out_port.declare("moved", Old, **DELIVERY)
        out = out_port.sender("moved", Old)
        root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
        first = subprocess.Popen(
            [sys.executable, "-c", _CONSUMER.format(root=root, socket=socket)],
            stdout=subprocess.PIPE, cwd=root,
        )  # fmt: skip
        assert first.stdout.readline() == b"open\n"
        out.send(old(5), key="k", deadline=60)
        assert first.wait(timeout=20) == -9
        first.stdout.close()
        with next_port.receiver("moved", New).receive(timeout=20) as got:
            assert got.header.redelivered and (got.layers, got.note) == (5, "none yet")
            got.ack()
