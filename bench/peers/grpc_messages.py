"""What both gRPC peers share: channel options, the typed message, and what the far half does with each request."""

from __future__ import annotations

import time
import zlib
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from bench import loops

SERVICE, CALL = "bench.Peer", "Call"
METHOD = f"/{SERVICE}/{CALL}"
# Messages of any length, in the largest frames that HTTP/2 knows.
OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.http2.max_frame_size", (1 << 24) - 1),
)
FIELDS = (("a", "INT64"), ("b", "INT64"), ("c", "DOUBLE"), ("text", "STRING"), ("tensor", "BYTES"))


def typed_class() -> Any:
    """Return the protobuf class of the typed message, as ``protoc`` would make it."""
    file = descriptor_pb2.FileDescriptorProto(name="bench.proto", package="bench", syntax="proto3")
    message, kinds = file.message_type.add(name="Typed"), descriptor_pb2.FieldDescriptorProto
    for number, (name, kind) in enumerate(FIELDS, 1):
        message.field.add(name=name, number=number, type=kinds.Type.Value(f"TYPE_{kind}"), label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("bench.Typed"))


Typed = typed_class()


def encode(a: int, b: int, c: float, text: str, tensor: np.ndarray[Any, Any]) -> bytes:
    """Serialize a typed message."""
    data: bytes = Typed(a=a, b=b, c=c, text=text, tensor=tensor.tobytes()).SerializeToString()
    return data


def decode(data: bytes) -> tuple[int, int, float, str, np.ndarray[Any, Any]]:
    """Parse one; the tensor is a view of what protobuf made."""
    typed = Typed.FromString(data)
    return typed.a, typed.b, typed.c, typed.text, np.frombuffer(typed.tensor, np.float32)


class Requests:
    """The far half of one workload, request by request, wherever they come from.

    Attributes
    ----------
    left : int
        Requests still to come.
    found : dict
        What the half answers in the end.
    """

    def __init__(self, order: loops.Order) -> None:
        self.left = order.get("count", 1)
        self.found: loops.Order = {}
        self._order = order
        self._answer = getattr(self, f"_{order['run']}")
        self._tensor = loops.payload(order, loops.TYPED_BYTES).view(np.float32)

    def take(self, request: bytes) -> bytes | None:
        """Return the answer to one request; None where only a unary call needs one."""
        self.left -= 1
        answer: bytes | None = self._answer(request)
        return answer

    def _round_trips(self, request: bytes) -> bytes:
        return request

    def _one_way(self, request: bytes) -> bytes | None:
        if len(request) != self._order["size"]:
            raise AssertionError(f"{len(request)} bytes came where {self._order['size']} were sent")
        return None if self.left else request

    def _typed(self, request: bytes) -> bytes | None:
        a, b, c, text, tensor = decode(request)
        step = self._order["count"] - self.left - 1
        if (a, b, c, text, len(tensor)) != (step, 7, 0.5, "request-1", len(self._tensor)):
            raise AssertionError(f"message {step} is not what was sent: {a, b, c, text}")
        if self.left:
            return None
        if tensor[3].tobytes() != self._tensor[3].tobytes():
            raise AssertionError("the last tensor is not what was sent")
        return encode(0, 0, 0.0, "done", self._tensor)

    def _bulk(self, request: bytes) -> bytes:
        if len(request) != self._order["size"]:
            raise AssertionError(f"{len(request)} bytes came where {self._order['size']} were sent")
        if self._order.get("read", False):
            words = np.frombuffer(request, np.uint64)
            total = self.found.get("sum", 0) + int(np.add.reduce(words))
            self.found["sum"] = total % (1 << 64)
        return bytes(loops.ACK_BYTES)

    _loaned = _bulk

    def _hand_over(self, request: bytes) -> bytes:
        self.found.setdefault("at", []).append(time.monotonic_ns())
        return bytes(loops.ACK_BYTES)

    def _verify(self, request: bytes) -> bytes:
        self.found.setdefault("crc", []).append(zlib.crc32(request))
        return bytes(loops.ACK_BYTES)

    def _idle(self, request: bytes) -> None:
        return None
