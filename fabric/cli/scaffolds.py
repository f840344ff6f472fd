"""What `fabricctl plugin new` writes: for each kind a plugin that works, and its test. Texts only."""

from __future__ import annotations

from typing import Final

_TYPE: Final = """
@fabric.message("{name}.line")
class Line:
    text: str
    data: fabric.Tensor["n", "f32"]
"""

_TEST_HEAD: Final = '''"""Run with pytest; `fabricctl plugin test {name}.py` checks the contract of the fabric."""

from types import SimpleNamespace

import numpy as np

import {name} as plugin

CTX = SimpleNamespace(channel="test", transform="{name}", plugin="{name}", now_ns=0, headers=())
'''

PLUGINS: Final[dict[str, str]] = {
    "message": '''"""The message type {name}.line."""

import fabric

'''
    + _TYPE,
    "route": '''"""The routing policy {name}: one receiver a key."""

import zlib

import fabric


@fabric.route("{name}")
def {name}(header, targets):
    """Asked once a key, not a message; the answer holds while the receivers do."""
    return targets[zlib.crc32(header.key or b"") % len(targets)]
''',
    "transform": '''"""The transform {name}: messages in, messages out."""

import fabric

'''
    + _TYPE
    + '''

@fabric.transform("{name}", accepts=Line, max_expansion=2.0, on_error="bypass")
class Map:
    def apply(self, batch, ctx):
        """One result for each input: a message, a list of them, fabric.Drop(reason) or fabric.Defer()."""
        return [Line(m.text.upper(), m.data * 2) for m in batch]
''',
    "codec": '''"""The codec {name}: `apply` packs, `revert` gives back the same bits."""

import zlib

import numpy as np

import fabric

'''
    + _TYPE
    + """

@fabric.message("{name}.packed")
class Packed:
    text: str
    data: fabric.Tensor["bytes", "u8"]


@fabric.transform("{name}", accepts=Line, produces=Packed, max_expansion=1.1, on_error="fail")
class Codec:
    def apply(self, batch, ctx):
        packed = [np.frombuffer(zlib.compress(m.data, 1), np.uint8) for m in batch]
        return [Packed(m.text, data) for m, data in zip(batch, packed, strict=True)]

    def revert(self, batch, ctx):
        return [Line(m.text, np.frombuffer(zlib.decompress(m.data), np.float32)) for m in batch]
""",
    "join": '''"""The join {name}: a line and its score become one message."""

import fabric

'''
    + _TYPE
    + '''

@fabric.message("{name}.score")
class Score:
    value: float


@fabric.message("{name}.scored")
class Scored:
    text: str
    value: float


@fabric.join("{name}", inputs={{"line": Line, "score": Score}}, produces=Scored, window_s=0.5)
class Join:
    def fuse(self, parts, ctx):
        """Called once a request, when its parts are there."""
        return Scored(parts["line"].text, parts["score"].value)
''',
    "module": '''"""The module {name}: receives lines on one channel, sends them on another."""

import fabric

'''
    + _TYPE
    + """

class Worker(fabric.Module):
    lines: fabric.In[Line]
    results: fabric.Out[Line]

    def on_lines(self, line):
        self.results.send(Line(line.text.upper(), line.data), deadline=5)
""",
}

TESTS: Final[dict[str, str]] = {
    "message": _TEST_HEAD
    + """

def test_a_line_has_its_fields():
    line = plugin.Line("a", np.ones(3, np.float32))
    assert line.text == "a" and line.data.sum() == 3
""",
    "route": '''"""Run with pytest; `fabricctl plugin test {name}.py` checks the contract of the fabric."""

from types import SimpleNamespace

import {name} as plugin


def test_a_key_keeps_its_receiver():
    targets = ["a", "b", "c"]
    chosen = [plugin.{name}(SimpleNamespace(key=b"k"), targets) for _ in range(3)]
    assert len(set(chosen)) == 1 and chosen[0] in targets
''',
    "transform": _TEST_HEAD
    + """

def test_lines_come_out_upper_and_doubled():
    (out,) = plugin.Map().apply([plugin.Line("a", np.ones(3, np.float32))], CTX)
    assert out.text == "A" and out.data.tolist() == [2, 2, 2]
""",
    "codec": _TEST_HEAD
    + """

def test_what_was_packed_comes_back():
    line, codec = plugin.Line("a", np.arange(5, dtype=np.float32)), plugin.Codec()
    (back,) = codec.revert(codec.apply([line], CTX), CTX)
    assert back.text == "a" and back.data.tolist() == line.data.tolist()
""",
    "join": _TEST_HEAD
    + """

def test_parts_become_one_message():
    parts = {{"line": plugin.Line("a", np.ones(1, np.float32)), "score": plugin.Score(0.5)}}
    scored = plugin.Join().fuse(parts, CTX)
    assert (scored.text, scored.value) == ("a", 0.5)
""",
    "module": _TEST_HEAD
    + """

def test_a_line_is_sent_on():
    sent = []
    worker = plugin.Worker()
    worker.results = SimpleNamespace(send=lambda line, deadline: sent.append(line))
    worker.on_lines(plugin.Line("a", np.ones(1, np.float32)))
    assert [line.text for line in sent] == ["A"]
""",
}

NEXT: Final[dict[str, str]] = {
    "message": "import it where you send and receive: from {name} import Line",
    "route": "fabricctl plugin test {file} && fabricctl plugin load {file} --channel CHANNEL",
    "transform": "fabricctl plugin test {file} && fabricctl plugin load {file} --channel CHANNEL",
    "codec": "fabricctl plugin test {file}",
    "join": "name it in fabric.yaml: joins",
    "module": "fabricctl module add {name} --class {file}:Worker",
}


def texts(kind: str, name: str) -> tuple[str, str]:
    """Return the plugin and its test."""
    return PLUGINS[kind].format(name=name), TESTS[kind].format(name=name)
