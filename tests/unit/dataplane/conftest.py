"""A node without a daemon for every test, and types to send."""

import numpy as np
import pytest

import fabric
from fabric.messages import Tensor, message
from fabric.testing.local import LocalFabric


@message("test.note")
class Note:
    text: str
    number: int = 0


@message("test.block")
class Block:
    step: int
    data: Tensor["rows columns", "f32 | bf16"]
    extra: Tensor["rows", "i64"] | None = None


@message("test.query")
class Query:
    n: int


@message("test.answer")
class Answer:
    value: int
    data: Tensor["n", "f32"] | None = None


class Types:
    note, block, query, answer = Note, Block, Query, Answer

    @staticmethod
    def make_block(step=0, rows=4, columns=8):
        return Block(
            step, np.arange(rows * columns, dtype=np.float32).reshape(rows, columns) + step
        )


@pytest.fixture
def types():
    return Types


@pytest.fixture
def node():
    with LocalFabric() as local:
        yield local


@pytest.fixture
def ports(node):
    with fabric.attach("left", node.path) as left, fabric.attach("right", node.path) as right:
        yield left, right


@pytest.fixture
def notes(ports):
    """A queue of notes: (sender, receiver)."""
    left, right = ports
    left.declare("notes", Note, pattern="queue")
    return left.sender("notes", Note), right.receiver("notes", Note)


@pytest.fixture
def blocks(ports):
    """A stream of blocks, acknowledged: (sender, receiver)."""
    left, right = ports
    left.declare("blocks", Block, pattern="stream", delivery="at_least_once", klass="bulk")
    return left.sender("blocks", Block), right.receiver("blocks", Block)


@pytest.fixture
def embed(ports):
    """A request channel: (requester, responder)."""
    left, right = ports
    left.declare("embed", Query, reply=Answer)
    return left.requester("embed", Query, Answer), right.responder("embed", Query, Answer)
