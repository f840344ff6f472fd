"""gRPC's asyncio stack over a unix socket, one bidirectional stream: the best of what it offers for a flow of messages.

The synchronous stack gives every stream threads of its own, which its documentation calls much slower. Both halves run
whole workloads inside the event loop, so that none of them pays for going in and out of it with each message.
"""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from bench import loops
from bench.peers import grpc_messages as messages
from bench.peers.rendezvous import exchange

GIVE_UP_S = 60.0
ORDER_S = 600.0


class StreamEnd:
    """What both halves do: run a coroutine for each order."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def _run(self, work: Awaitable[loops.Order]) -> loops.Order:
        return self._loop.run_until_complete(asyncio.wait_for(work, ORDER_S))


class Near(StreamEnd):
    """The calling half."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        exchange(folder, "near", b"")
        self._loop.run_until_complete(asyncio.wait_for(self._open(folder), GIVE_UP_S))

    async def _open(self, folder: Path) -> None:
        self._channel = grpc.aio.insecure_channel(f"unix:{folder}/grpc", options=messages.OPTIONS)
        self._stream = self._channel.stream_stream(messages.METHOD)(wait_for_ready=True)
        await self._stream.wait_for_connection()

    def round_trips(self, role: str, order: loops.Order) -> loops.Order:
        """Time each round trip."""
        return self._run(self._round_trips(order["count"], loops.payload(order).tobytes()))

    async def _round_trips(self, count: int, data: bytes) -> loops.Order:
        write, read, clock, times = self._stream.write, self._stream.read, time.perf_counter_ns, []
        for _ in range(count):
            start = clock()
            await write(data)
            await read()
            times.append(clock() - start)
        return {"ns": times}

    def one_way(self, role: str, order: loops.Order) -> loops.Order:
        """Time all, until the far half confirms the last."""
        data = loops.payload(order).tobytes()
        return self._run(self._flow(order["count"], lambda step: data))

    def typed(self, role: str, order: loops.Order) -> loops.Order:
        """Time protobuf messages, until the far half confirms the last."""
        tensor = loops.payload(order, loops.TYPED_BYTES).view("float32")
        make = messages.encode
        return self._run(
            self._flow(order["count"], lambda step: make(step, 7, 0.5, "request-1", tensor))
        )

    async def _flow(self, count: int, make: Callable[[int], bytes]) -> loops.Order:
        write, start = self._stream.write, time.perf_counter_ns()
        for step in range(count):
            await write(make(step))
        await self._stream.read()
        return {"ns": time.perf_counter_ns() - start}

    def bulk(self, role: str, order: loops.Order) -> loops.Order:
        """Time arrays; each becomes bytes first, the only thing that a gRPC message can be."""
        seeds = range(min(loops.SOURCES, order["count"]))
        sources = [loops.payload({**order, "seed": seed}) for seed in seeds]
        return self._run(self._bulk(order["count"], order.get("window", 1), sources))

    async def _bulk(self, count: int, window: int, sources: list[Any]) -> loops.Order:
        write, read, start = self._stream.write, self._stream.read, time.perf_counter_ns()
        for number in range(count):
            if number >= window:
                await read()
            await write(sources[number % len(sources)].tobytes())
        for _ in range(min(window, count)):
            await read()
        return {"ns": time.perf_counter_ns() - start}

    def verify(self, role: str, order: loops.Order) -> loops.Order:
        """Send random messages; ``crc`` of each."""
        return self._run(self._verify(order))

    async def _verify(self, order: loops.Order) -> loops.Order:
        found = []
        for seed in range(order["count"]):
            data = loops.payload({**order, "seed": order["seed"] * 1000 + seed}).tobytes()
            found.append(zlib.crc32(data))
            await self._stream.write(data)
            await self._stream.read()
        return {"crc": found}

    def idle(self, role: str, order: loops.Order) -> loops.Order:
        """Say nothing for a while, then something."""
        return self._run(self._idle(order["seconds"]))

    async def _idle(self, seconds: float) -> loops.Order:
        await asyncio.sleep(seconds)
        await self._stream.write(bytes(loops.ACK_BYTES))
        return {}

    def close(self) -> None:
        """End the stream, then the channel."""
        self._stream.cancel()
        self._loop.run_until_complete(self._channel.close())
        self._loop.close()


class Far(StreamEnd):
    """The serving half."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._came: asyncio.Future[Any] = self._loop.create_future()
        self._loop.run_until_complete(self._serve(folder))
        self._context = self._loop.run_until_complete(asyncio.wait_for(self._came, GIVE_UP_S))

    async def _serve(self, folder: Path) -> None:
        self._server = grpc.aio.server(options=messages.OPTIONS)
        self._is_over = asyncio.Event()
        handler = grpc.stream_stream_rpc_method_handler(self._hold)
        service = grpc.method_handlers_generic_handler(messages.SERVICE, {messages.CALL: handler})
        self._server.add_generic_rpc_handlers((service,))
        self._server.add_insecure_port(f"unix:{folder}/grpc")
        await self._server.start()
        exchange(folder, "far", b"serving")

    async def _hold(self, _: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Keep the one stream open; the orders read and write it."""
        await context.send_initial_metadata(())
        self._came.set_result(context)
        await self._is_over.wait()

    def _answer(self, role: str, order: loops.Order) -> loops.Order:
        """Answer every request of one order."""
        return self._run(self._take(messages.Requests(order)))

    async def _take(self, requests: messages.Requests) -> loops.Order:
        read, write, take = self._context.read, self._context.write, requests.take
        while requests.left:
            answer = take(await read())
            if answer is not None:
                await write(answer)
        return requests.found

    round_trips = one_way = typed = bulk = verify = idle = _answer

    def close(self) -> None:
        """Stop serving; what is under way is cut off."""
        self._is_over.set()
        self._loop.run_until_complete(self._server.stop(0))
        self._loop.close()


def connect(role: str, folder: Path, options: dict[str, Any]) -> Near | Far:
    """Near opens the stream, far holds it."""
    return Near(folder) if role == "near" else Far(folder)
