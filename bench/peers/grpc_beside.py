"""gRPC with small messages and large ones over one connection: two streams of one channel, on the asyncio stack.

Options: ``{"address": FAR}``.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc

from bench.paths.stream import LAST, PING_BYTES, PING_PAUSE_S, Order, clock
from bench.peers import grpc_messages as messages
from bench.peers.rendezvous import exchange

GIVE_UP_S = 60.0
PING, BULK = f"/{messages.SERVICE}/Ping", f"/{messages.SERVICE}/Bulk"


class Near:
    """The calling half."""

    workloads = ("pings",)

    def __init__(self, folder: Path, address: str) -> None:
        self._loop = asyncio.new_event_loop()
        port = int(exchange(folder, "near", b""))
        self._run(self._open(f"{address}:{port}"))

    def _run(self, work: Any) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(work, GIVE_UP_S))

    async def _open(self, target: str) -> None:
        self._channel = grpc.aio.insecure_channel(target, options=messages.OPTIONS)
        self._ping = self._channel.stream_stream(PING)(wait_for_ready=True)
        await self._ping.wait_for_connection()

    def pings(self, role: str, order: Order) -> Order:
        """Make round trips for `seconds`; with `beside` large messages go with them as fast as they can."""
        return dict(self._run(self._pings(order)))

    async def _pings(self, order: Order) -> Order:
        until, flood = clock() + int(order["seconds"] * 1e9), None
        if order["beside"]:
            flood = asyncio.ensure_future(self._flood(bytes(order["size"]), until))
        times, is_over = [], False
        while not is_over:
            is_over = clock() >= until
            if is_over and flood is not None:
                await flood  # the far half serves no more after the last round trip
            begun = clock()
            await self._ping.write((LAST if is_over else b"p") + bytes(PING_BYTES - 1))
            await self._ping.read()
            times.append((begun, clock() - begun))
            await asyncio.sleep(PING_PAUSE_S)
        return {"trips": times}

    async def _flood(self, data: bytes, until: int) -> None:
        call = self._channel.stream_unary(BULK)()
        while clock() < until:
            await call.write(data)
        await call.done_writing()
        await call

    def close(self) -> None:
        """End the stream, then the channel."""
        self._ping.cancel()
        self._loop.run_until_complete(self._channel.close())
        self._loop.close()


class Far:
    """The serving half."""

    workloads = ("pings",)

    def __init__(self, folder: Path, address: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._is_over = asyncio.Event()
        self._loop.run_until_complete(self._serve(folder, address))

    async def _serve(self, folder: Path, address: str) -> None:
        self._server = grpc.aio.server(options=messages.OPTIONS)
        handlers = {
            "Ping": grpc.stream_stream_rpc_method_handler(self._echo),
            "Bulk": grpc.stream_unary_rpc_method_handler(self._swallow),
        }
        service = grpc.method_handlers_generic_handler(messages.SERVICE, handlers)
        self._server.add_generic_rpc_handlers((service,))
        port = self._server.add_insecure_port(f"{address}:0")
        await self._server.start()
        exchange(folder, "far", str(port).encode())

    async def _echo(self, _: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.send_initial_metadata(())
        while (data := await context.read()) is not grpc.aio.EOF:
            await context.write(data)
            if data[:1] == LAST:
                self._is_over.set()

    async def _swallow(self, requests: Any, _: Any) -> bytes:
        total = 0
        async for request in requests:
            total += len(request)
        return str(total).encode()

    def pings(self, role: str, order: Order) -> Order:
        """Serve until the last round trip was made."""
        self._loop.run_until_complete(asyncio.wait_for(self._is_over.wait(), GIVE_UP_S))
        self._is_over.clear()
        self._loop.run_until_complete(asyncio.sleep(PING_PAUSE_S))
        return {}

    def close(self) -> None:
        """Stop serving; what is under way is cut off."""
        self._loop.run_until_complete(self._server.stop(0))
        self._loop.close()


def connect(role: str, folder: Path, options: dict[str, Any]) -> Near | Far:
    """Near opens the streams, far serves them."""
    make = Near if role == "near" else Far
    return make(folder, options["address"])
