"""gRPC's synchronous stack over a unix socket, one unary call a message: the near half calls, the far half serves.

The best practices for Python name the synchronous unary call as the fast one. Where no answer is waited for, calls stay
open as futures; one worker serves them, so that they are taken in the order of the calls.
"""

from __future__ import annotations

import threading
import time
from collections import deque
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
OPEN_MAX = 64


class Caller:
    """The near half; answers without contents only say that a call has ended."""

    def __init__(self, folder: Path) -> None:
        exchange(folder, "near", b"")
        self._channel = grpc.insecure_channel(f"unix:{folder}/grpc", options=messages.OPTIONS)
        grpc.channel_ready_future(self._channel).result(GIVE_UP_S)
        self._call = self._channel.unary_unary(messages.METHOD)
        self._open: deque[Any] = deque()

    def round_trips(self, role: str, order: loops.Order) -> loops.Order:
        """Time calls that wait for their answers: nothing is faster for one at a time."""
        call, data, clock = self._call, loops.payload(order).tobytes(), time.perf_counter_ns
        times = []
        for _ in range(order["count"]):
            start = clock()
            call(data)
            times.append(clock() - start)
        return {"ns": times}

    def send(self, data: bytes) -> None:
        """Call without waiting, unless too many calls are open."""
        if len(self._open) == OPEN_MAX:
            self._open.popleft().result()
        self._open.append(self._call.future(data))

    def receive(self) -> bytes:
        """Return the next answer with contents."""
        answer = b""
        while not answer:
            answer = self._open.popleft().result()
        return answer

    def send_typed(self, *fields: Any) -> None:
        """Call with a protobuf message."""
        self.send(messages.encode(*fields))

    def receive_typed(self) -> tuple[int, int, float, str, np.ndarray[Any, Any]]:
        """Parse the next answer."""
        return messages.decode(self.receive())

    def send_array(self, array: np.ndarray[Any, Any]) -> None:
        """Call with the array as bytes, the only thing that a gRPC message can be."""
        self.send(array.tobytes())

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
