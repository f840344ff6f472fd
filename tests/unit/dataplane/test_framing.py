"""Frames survive any split of the stream, carry descriptors to their own frame, and refuse hostile bytes."""

import asyncio
import os
import socket
import struct

import msgspec
import pytest

from fabric import limits
from fabric.dataplane.framing import FrameBuffer, FrameSocket, FrameStream, encode_frame
from fabric.errors import BrokenError, CapacityError, DeadlineExceeded, PeerProtocolError


@pytest.fixture
def pair():
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    left, right = FrameSocket(a), FrameSocket(b)
    yield left, right
    left.close()
    right.close()


def test_frames_survive_being_split_at_every_byte():
    data = encode_frame({"id": 1, "op": "hello"}) + encode_frame({"id": 2})
    for cut in range(len(data)):
        buffer = FrameBuffer()
        buffer.feed(data[:cut])
        frames = []
        while (frame := buffer.next()) is not None:
            frames.append(frame)
        buffer.feed(data[cut:])
        while (frame := buffer.next()) is not None:
            frames.append(frame)
        assert [f for f, _ in frames] == [{"id": 1, "op": "hello"}, {"id": 2}]


def test_descriptors_reach_the_frame_that_sent_them(pair):
    left, right = pair
    read, write = os.pipe()
    other_read, other_write = os.pipe()
    left.send({"n": 1})
    left.send({"n": 2}, [write])
    left.send({"n": 3})
    left.send({"n": 4}, [other_write])
    frames = [right.receive(1) for _ in range(4)]
    assert [(f["n"], len(fds)) for f, fds in frames] == [(1, 0), (2, 1), (3, 0), (4, 1)]
    os.write(frames[1][1][0], b"x")
    assert os.read(read, 1) == b"x"
    os.write(frames[3][1][0], b"y")
    assert os.read(other_read, 1) == b"y"
    assert not os.get_inheritable(frames[1][1][0])
    for fd in (read, write, other_read, other_write, frames[1][1][0], frames[3][1][0]):
        os.close(fd)


def test_large_frame_crosses_whole_and_a_larger_one_is_refused():
    async def scenario():
        a, b = socket.socketpair()
        left, right = FrameStream(a), FrameStream(b)
        blob = os.urandom(limits.FRAME_BYTES_MAX - 100)
        read, write = os.pipe()
        left.send({"blob": blob}, [write])
        frame, fds = await asyncio.wait_for(right.receive(), 5)
        assert frame == {"blob": blob}
        await left.drain()
        os.close(write)
        os.write(fds[0], b"z")
        assert os.read(read, 1) == b"z"
        os.close(fds[0])
        os.close(read)
        with pytest.raises(CapacityError):
            left.send({"blob": b"\0" * limits.FRAME_BYTES_MAX})
        left.close()
        with pytest.raises(BrokenError):
            await asyncio.wait_for(right.receive(), 5)
        right.close()

    asyncio.run(scenario())


def test_backlog_of_a_peer_that_never_reads_is_bounded():
    async def scenario():
        a, b = socket.socketpair()
        stream = FrameStream(a)
        with pytest.raises(BrokenError, match="unread"):
            for _ in range(100):
                stream.send({"blob": bytes(limits.FRAME_BYTES_MAX - 100)})
        b.close()
        stream.close()

    asyncio.run(scenario())


def test_receive_names_what_it_waited_for_at_the_deadline(pair):
    with pytest.raises(DeadlineExceeded, match="a frame"):
        pair[0].receive(0.01)


def test_end_of_stream_is_broken_not_silence(pair):
    pair[1].close()
    with pytest.raises(BrokenError):
        pair[0].receive(1)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<I", limits.FRAME_BYTES_MAX + 1),
        struct.pack("<I", 1) + b"\xc1",
        struct.pack("<I", 3) + msgspec.msgpack.encode([1, 2]),
        struct.pack("<I", 400) + b"\x91" * 400,
        encode_frame({"fds": 1}),
        encode_frame({"fds": -1}),
        encode_frame({"fds": "many"}),
        struct.pack("<I", 3) + b"\x81\x01\x01",
    ],
)
def test_bytes_that_are_no_frame_are_a_protocol_error(data):
    buffer = FrameBuffer()
    buffer.feed(data)
    with pytest.raises(PeerProtocolError):
        while buffer.next() is not None:
            pass


def test_unclaimed_descriptors_are_closed_with_the_buffer():
    read, write = os.pipe()
    buffer = FrameBuffer()
    buffer.feed(b"\1", [write])
    buffer.close()
    with pytest.raises(OSError):
        os.write(write, b"x")
    os.close(read)
