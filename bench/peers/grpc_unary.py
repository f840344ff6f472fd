"""gRPC's synchronous stack over a unix socket, one unary call a message: the near half calls, the far half serves.

One caller and one worker: the best practices for Python name the synchronous unary call as the fast one, and further
callers contend for the interpreter. A message is confirmed by the answer to its own call, so no window stays open.
"""

from __future__ import annotations

import threading
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from bench import loops
from bench.peers import grpc_messages as messages
from bench.peers.rendezvous import exchange

GIVE_UP_S = 60.0
ORDER_S = 600.0


class Caller:
    """The near half: whatever is sent has been answered when the call returns."""

    def __init__(self, folder: Path) -> None:
        exchange(folder, "near", b"")
        self._channel = grpc.insecure_channel(f"unix:{folder}/grpc", options=messages.OPTIONS)
        grpc.channel_ready_future(self._channel).result(GIVE_UP_S)
        self._call = self._channel.unary_unary(messages.METHOD)
        self._answer = b""

    def send(self, data: bytes) -> None:
        """Call and keep the answer."""
        self._answer = self._call(data)

    def receive(self) -> bytes:
        """Return the answer to the last call."""
        return self._answer

    def send_typed(self, *fields: Any) -> None:
        """Call with a protobuf message."""
        self._answer = self._call(messages.encode(*fields))

    def receive_typed(self) -> tuple[int, int, float, str, np.ndarray[Any, Any]]:
        """Parse the answer to the last call."""
        return messages.decode(self._answer)

    def send_array(self, array: np.ndarray[Any, Any]) -> None:
        """Call with the array as bytes, the only thing that a gRPC message can be."""
        self._answer = self._call(array.tobytes())

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class Server:
    """The far half: a handler answers, the orders only wait for it."""

    def __init__(self, folder: Path) -> None:
        self._has_order, self._is_done = threading.Event(), threading.Event()
        self._requests: messages.Requests
        self._problem: Exception | None = None
        self._server = grpc.server(futures.ThreadPoolExecutor(1), options=messages.OPTIONS)
        handler = grpc.unary_unary_rpc_method_handler(self._serve)
        service = grpc.method_handlers_generic_handler(messages.SERVICE, {messages.CALL: handler})
        self._server.add_generic_rpc_handlers((service,))
        self._server.add_insecure_port(f"unix:{folder}/grpc")
        self._server.start()
        exchange(folder, "far", b"serving")

    def _serve(self, request: bytes, _: grpc.ServicerContext) -> bytes:
        """Answer one call; one may come before its order has."""
        self._has_order.wait(GIVE_UP_S)
        try:
            answer = self._requests.take(request)
        except Exception as problem:
            self._problem = problem
        if self._problem is not None or not self._requests.left:
            self._has_order.clear()
            self._is_done.set()
        if self._problem is not None:
            raise self._problem
        return answer or b""

    def _run(self, role: str, order: loops.Order) -> loops.Order:
        """Let the handler answer every call of one order."""
        self._requests, self._problem = messages.Requests(order), None
        self._is_done.clear()
        self._has_order.set()
        if not self._is_done.wait(ORDER_S):
            raise TimeoutError(f"{self._requests.left} calls did not come within {ORDER_S:g} s")
        if self._problem is not None:
            raise self._problem
        return self._requests.found

    round_trips = one_way = typed = bulk = loaned = hand_over = verify = idle = _run

    def close(self) -> None:
        """Stop serving; what is under way is cut off."""
        self._server.stop(0).wait(GIVE_UP_S)


def connect(role: str, folder: Path, options: dict[str, Any]) -> Caller | Server:
    """Near calls, far serves."""
    return Caller(folder) if role == "near" else Server(folder)
