"""A node refuses a cycle of credit before it changes anything; a channel's deadline holds where none is named."""

import time
from pathlib import Path

import pytest

import fabric
from fabric import errors
from tests.integration.kill_nodes import clusters

cluster = pytest.fixture(clusters)

MODULES = """
import fabric

@fabric.message("cycle.x", version=1)
class X:
    n: int

class Ping(fabric.Module):
    there: fabric.Out[X]
    back: fabric.In[X]
    def on_back(self, message):
        self.there.send(message)

class Pong(fabric.Module):
    there: fabric.In[X]
    back: fabric.Out[X]
    def on_there(self, message):
        self.back.send(message)
"""


@fabric.message("cycle.x", version=1)
class X:
    """What goes round."""

    n: int


def spec(folder: Path, deadline: str = "") -> str:
    (folder / "m.py").write_text(MODULES)
    return (
        "version: 1\nchannels:\n  there: {type: cycle.x}\n"
        f"  back: {{type: cycle.x{deadline}}}\n"
        "modules:\n  ping: {class: 'm.py:Ping'}\n  pong: {class: 'm.py:Pong'}\n"
    )


@pytest.mark.promise("P3")
@pytest.mark.deadline(120)
def test_a_cycle_of_credit_is_refused_hop_by_hop_and_nothing_is_changed(cluster, short_dir):
    node = cluster.node("a")
    search = [str(short_dir)]
    (problem,) = node.call("validate", spec(short_dir), search=search)["problems"]
    assert problem["severity"] == "error"
    with pytest.raises(errors.ConfigError) as caught:
        node.call("apply", spec(short_dir), search=search)
    assert (
        "ping.there -> channel 'there' -> pong.there, pong.back -> channel 'back' -> ping.back"
        in caught.value.message
    )
    assert "Give one of 'there', 'back' a deadline" in caught.value.message
    assert node.call("ls", "channel") == []
    assert node.call("ls", "module") == []
    broken = spec(short_dir, ", deadline: 2s")
    assert node.call("validate", broken, search=search)["problems"] == []


@pytest.mark.promise("P3")
@pytest.mark.deadline(60)
def test_a_channels_deadline_is_that_of_sends_that_name_none(cluster):
    node = cluster.node("a")
    with fabric.attach("snd", socket=node.socket) as out:
        out.declare("slow", X, deadline=0.4)
        with pytest.raises(errors.ConfigError, match="deadline"):
            out.declare("slow", X, deadline=0.5)
        out.declare("slow", X)
        sender = out.sender("slow", X)
        began = time.monotonic()
        with pytest.raises(errors.DeadlineExceeded):
            sender.send(X(n=1))
        assert 0.3 < time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("module", "why"),
    [
        ("{class: 'm.py:Nope'}", "Nope"),
        ("{class: 'absent.py:Ping'}", "absent.py"),
        ("{class: 'm.py:Ping', node: zz}", "there is no node 'zz'"),
        ("{class: 'm.py:Ping', channels: {thre: there}}", "did you mean 'there'"),
    ],
)
def test_a_module_that_cannot_run_is_refused_and_not_started(cluster, short_dir, module, why):
    (short_dir / "m.py").write_text(MODULES)
    text = f"version: 1\nmodules: {{m: {module}}}\n"
    node = cluster.node("a")
    with pytest.raises(errors.ConfigError) as caught:
        node.call("module_add", text, search=[str(short_dir)])
    assert why in caught.value.message
    assert node.call("ls", "module") == []


def test_the_first_generation_is_compared_with_nothing(cluster):
    node = cluster.node("a")
    assert node.call("diff")["to"] == 0
    node.call("apply", "version: 1\nchannels: {x: {type: cycle.x}}\n")
    found = node.call("diff")
    assert (found["from"], found["to"]) == (0, 1)
    assert [change["name"] for change in found["changes"]] == ["x"]
