"""UCX through ucxx's asyncio face: what its users write, one coroutine a call.

Connected by worker address without error handling, which keeps UCX on shared memory; options: ``{"tls": "shm" |
"tcp", "progress": "blocking" | "polling" | "thread"}``. An event loop entered once a call would be measured instead,
so this end brings whole workloads. A coroutine that waits spins in its event loop whatever the mode: an idle half keeps
a core busy. The ucxx peer that sleeps is ucxx_core with blocking progress.
"""

from __future__ import annotations

import asyncio
import os
import time
import zlib
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from bench.loops import ACK_BYTES, SOURCES, Order, payload
from bench.peers.rendezvous import exchange
from bench.peers.ucxx_core import ARRAY, LARGEST, MESSAGE, TLS

Array = np.ndarray[Any, Any]


class UcxxAsyncioEnd:
    """One half: an event loop, the worker of the library's own context, one endpoint."""

    def __init__(self, role: str, folder: Path, options: dict[str, Any]) -> None:
        os.environ.setdefault("UCX_WARN_UNUSED_ENV_VARS", "n")
        import ucxx
        from ucxx.types import Tag

        self._ucxx, self._message, self._array = ucxx, Tag(MESSAGE), Tag(ARRAY)
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        ucxx.init({"TLS": TLS[options["tls"]]}, progress_mode=options["progress"])
        address = exchange(folder, role, ucxx.get_worker_address().tobytes())
        self._endpoint = self._loop.run_until_complete(self._connect(address))
        self._memory = np.ones(
            LARGEST, np.uint8
        )  # touched: fresh pages would be measured otherwise

    async def _connect(self, address: bytes) -> Any:
        peer = self._ucxx.get_ucx_address_from_buffer(address)
        return await self._ucxx.create_endpoint_from_worker_address(
            peer, endpoint_error_handling=False
        )

    async def _send(self, data: Any) -> None:
        await self._endpoint.send(data, self._message, force_tag=True)

    async def _receive(self, into: Array) -> None:
        await self._endpoint.recv(into, self._message, force_tag=True)

    async def _receive_array(self, size: int) -> Array:
        array = self._memory[:size]
        await self._endpoint.recv(array, self._array, force_tag=True)
        return array

    # ------------------------------------------------------------------ round trips
    def round_trips(self, role: str, order: Order) -> Order:
        """Time each round trip, or send back what comes."""
        half = self._round_trips_near if role == "near" else self._round_trips_far
        return self._loop.run_until_complete(half(order))

    async def _round_trips_near(self, order: Order) -> Order:
        send, receive, clock = self._send, self._receive, time.perf_counter_ns
        data, back, times = payload(order), np.zeros(order["size"], np.uint8), []
        for _ in range(order["count"]):
            start = clock()
            await send(data)
            await receive(back)
            times.append(clock() - start)
        return {"ns": times}

    async def _round_trips_far(self, order: Order) -> Order:
        memory = np.zeros(order["size"], np.uint8)
        for _ in range(order["count"]):
            await self._receive(memory)
            await self._send(memory)
        return {}

    # ------------------------------------------------------------------ rate
    def one_way(self, role: str, order: Order) -> Order:
        """Time `count` messages until the far half confirms the last; this face has no call for a batch."""
        half = self._one_way_near if role == "near" else self._one_way_far
        return self._loop.run_until_complete(half(order))

    async def _one_way_near(self, order: Order) -> Order:
        send, data = self._send, payload(order)
        start = time.perf_counter_ns()
        for _ in range(order["count"]):
            await send(data)
        await self._receive(np.zeros(order["size"], np.uint8))
        return {"ns": time.perf_counter_ns() - start}

    async def _one_way_far(self, order: Order) -> Order:
        receive, memory = self._receive, np.zeros(order["size"], np.uint8)
        for _ in range(order["count"]):
            await receive(memory)
        await self._send(memory)
        return {}

    # ------------------------------------------------------------------ bulk
    def bulk(self, role: str, order: Order) -> Order:
        """Time `count` arrays, `window` of them unconfirmed at most."""
        return self._loop.run_until_complete(
            self._bulk_near(order) if role == "near" else self._bulk_far(order)
        )

    async def _bulk_near(self, order: Order) -> Order:
        count, window, ack = order["count"], order.get("window", 1), np.zeros(ACK_BYTES, np.uint8)
        sources = [payload({**order, "seed": seed}) for seed in range(min(SOURCES, count))]
        sent: deque[asyncio.Task[None]] = deque()
        start = time.perf_counter_ns()
        for number in range(count):
            if number >= window:
                await self._receive(ack)
                await sent.popleft()
            array = sources[number % len(sources)]
            sent.append(
                self._loop.create_task(self._endpoint.send(array, self._array, force_tag=True))
            )
        while sent:
            await self._receive(ack)
            await sent.popleft()
        return {"ns": time.perf_counter_ns() - start}

    async def _bulk_far(self, order: Order) -> Order:
        total, ack = 0, np.zeros(ACK_BYTES, np.uint8)
        for _ in range(order["count"]):
            array = await self._receive_array(order["size"])
            if order.get("read", False):
                total += int(np.add.reduce(array.view(np.uint64)))
            await self._send(ack)
        return {"sum": total % (1 << 64)}

    # ------------------------------------------------------------------ idle, contents
    def idle(self, role: str, order: Order) -> Order:
        """Say nothing for a while, then something; or wait for it."""
        ack = np.zeros(ACK_BYTES, np.uint8)
        if role == "near":
            time.sleep(order["seconds"])
        self._loop.run_until_complete(self._send(ack) if role == "near" else self._receive(ack))
        return {}

    def verify(self, role: str, order: Order) -> Order:
        """Say the checksum of each message that was sent, or that came."""
        half = self._verify_near if role == "near" else self._verify_far
        return self._loop.run_until_complete(half(order))

    async def _verify_near(self, order: Order) -> Order:
        found, tag = [], self._array if order.get("as_array") else self._message
        for seed in range(order["count"]):
            data = payload({**order, "seed": order["seed"] * 1000 + seed})
            found.append(zlib.crc32(data))
            await self._endpoint.send(data, tag, force_tag=True)
            await self._receive(np.zeros(ACK_BYTES, np.uint8))
        return {"crc": found}

    async def _verify_far(self, order: Order) -> Order:
        found, tag, memory = (
            [],
            self._array if order.get("as_array") else self._message,
            self._memory[: order["size"]],
        )
        for _ in range(order["count"]):
            await self._endpoint.recv(memory, tag, force_tag=True)
            found.append(zlib.crc32(memory))
            await self._send(np.zeros(ACK_BYTES, np.uint8))
        return {"crc": found}

    def close(self) -> None:
        """Close the endpoint, then what the library keeps for the loop."""
        self._loop.run_until_complete(self._endpoint.close())
        del self._endpoint
        self._ucxx.reset()
        self._loop.close()


def connect(role: str, folder: Path, options: dict[str, Any]) -> UcxxAsyncioEnd:
    """Exchange worker addresses."""
    return UcxxAsyncioEnd(role, folder, options)
