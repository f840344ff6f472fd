"""Mooncake's transfer engine over tcp: synchronous writes into memory that the other half registered.

Nothing tells the written half; a slot's last bytes carry its number, and whoever waits reads them again and again.
Arrays go the same way, a write of the whole, then a message that one has come. A synchronous write is the fastest for
small ones; it returns once it was answered.
"""

from __future__ import annotations

import os
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from bench.loops import SOURCES, WORKLOADS, Order, payload
from bench.peers.rendezvous import exchange

HOST = "127.0.0.1"
SLOTS, CREDIT = 128, 32
SLOT_BYTES = 2048
NUMBER_BYTES = 8
LARGEST = 256 << 20
YIELD_AFTER = (
    50  # looks at a slot before the CPU is offered to others: the engine's threads may share it
)


class MooncakeEnd:
    """One half: an engine; a ring to send from, a ring to receive in, memory for arrays."""

    def __init__(self, role: str, folder: Path, options: dict[str, Any]) -> None:
        os.environ.setdefault("MC_LOG_LEVEL", "ERROR")
        os.environ.setdefault("GLOG_minloglevel", "2")
        from mooncake.engine import TransferEngine

        self._engine = TransferEngine()
        if self._engine.initialize(HOST, "P2PHANDSHAKE", "tcp", ""):
            raise ConnectionError("Mooncake could not be initialized for tcp")
        self._outgoing, self._incoming = np.zeros((2, SLOTS, SLOT_BYTES), np.uint8)
        self._taken_there, self._taken = np.zeros((2, 1), np.uint64)
        arrays = (
            SOURCES if role == "near" else 1
        )  # touched: fresh pages would be measured otherwise
        self._arrays = [np.ones(LARGEST, np.uint8) for _ in range(arrays)]
        self._meet(role, folder)
        self._sent = self._received = 0
        self._write = self._engine.transfer_sync_write
        self.prepare({"message_bytes": 8})

    def _meet(self, role: str, folder: Path) -> None:
        shared = (self._incoming, self._taken_there, self._arrays[0])
        for memory in (self._outgoing, self._taken, *shared, *self._arrays[1:]):
            if self._engine.register_memory(memory.ctypes.data, memory.nbytes):
                raise ConnectionError(f"Mooncake could not register {memory.nbytes} bytes")
        own = [self._engine.get_rpc_port(), *(memory.ctypes.data for memory in shared)]
        theirs = np.frombuffer(
            exchange(folder, role, np.array(own, np.uint64).tobytes()), np.uint64
        )
        port, self._their_ring, self._their_taken, self._their_array = map(int, theirs)
        self._peer = f"{HOST}:{port}"

    def _put(self, source: int, target: int, size: int) -> None:
        """Write `size` bytes."""
        if self._write(self._peer, source, target, size):
            raise ConnectionError(f"a write of {size} bytes to {self._peer} failed")

    # ------------------------------------------------------------------ messages
    def prepare(self, order: Order) -> None:
        """Learn the lengths; a slot is a message, then its number."""
        size = self._message_bytes = order["message_bytes"]
        self._whole = size + NUMBER_BYTES
        self._slots_out = [slot[:size].data for slot in self._outgoing]
        self._slots_in = [slot[:size].data for slot in self._incoming]
        ends = slice(size, size + NUMBER_BYTES)
        self._numbers_out = [slot[ends].data.cast("Q") for slot in self._outgoing]
        self._numbers_in = [slot[ends].data.cast("Q") for slot in self._incoming]

    def send(self, data: Any) -> None:
        """Copy into the next slot and write it into the other half's ring."""
        index = self._sent % SLOTS
        self._sent += 1
        while self._sent - int(self._taken_there[0]) > SLOTS:
            os.sched_yield()
        self._slots_out[index][:] = data
        self._numbers_out[index][0] = self._sent
        at = index * SLOT_BYTES
        self._put(self._outgoing.ctypes.data + at, self._their_ring + at, self._whole)

    def send_many(self, batch: list[Any]) -> None:
        """Copy into the next slots and write them in one call of the engine."""
        first = self._sent
        self._sent += len(batch)
        while self._sent - int(self._taken_there[0]) > SLOTS:
            os.sched_yield()
        places = [number % SLOTS for number in range(first, self._sent)]
        for number, (place, data) in enumerate(zip(places, batch, strict=True), first + 1):
            self._slots_out[place][:] = data
            self._numbers_out[place][0] = number
        ours = [self._outgoing.ctypes.data + place * SLOT_BYTES for place in places]
        theirs = [self._their_ring + place * SLOT_BYTES for place in places]
        if self._engine.batch_transfer_sync_write(
            self._peer, ours, theirs, [self._whole] * len(batch)
        ):
            raise ConnectionError(f"a write of {len(batch)} messages to {self._peer} failed")

    def receive_many(self, most: int) -> list[memoryview]:
        """Return the next slots, which hold until the next call."""
        found = [self.receive()]
        while len(found) < most and self._received % CREDIT:
            place = self._received % SLOTS
            if self._numbers_in[place][0] != self._received + 1:
                break
            found.append(self._slots_in[place])
            self._received += 1
        return found

    def receive(self) -> memoryview:
        """Return the next slot once its number is there; it holds until the next call."""
        if self._received % CREDIT == 0 and self._received:
            self._taken[0] = self._received
            self._put(self._taken.ctypes.data, self._their_taken, NUMBER_BYTES)
        index = self._received % SLOTS
        self._received += 1
        number, expected, looks = self._numbers_in[index], self._received, 0
        while number[0] != expected:
            looks += 1
            if looks > YIELD_AFTER:
                os.sched_yield()
        return self._slots_in[index]

    # ------------------------------------------------------------------ arrays
    def bulk(self, role: str, order: Order) -> Order:
        """Write arrays from memory that was registered before, as Mooncake's users do."""
        return self._bulk_near(order) if role == "near" else self._bulk_far(order)

    def _bulk_near(self, order: Order) -> Order:
        count, size = order["count"], order["size"]
        for seed, memory in enumerate(self._arrays):
            memory[:size] = payload({**order, "seed": seed})
        places, told = [memory.ctypes.data for memory in self._arrays], bytes(self._message_bytes)
        start = time.perf_counter_ns()
        for number in range(count):
            self._put(places[number % SOURCES], self._their_array, size)
            self.send(told)
            self.receive()
        return {"ns": time.perf_counter_ns() - start}

    def _bulk_far(self, order: Order) -> Order:
        total, array = 0, self._arrays[0][: order["size"]]
        for _ in range(order["count"]):
            self.receive()
            if order.get("read", False):
                total += int(np.add.reduce(array.view(np.uint64)))
            self.send(bytes(self._message_bytes))
        return {"sum": total % (1 << 64)}

    # ------------------------------------------------------------------ contents
    def verify(self, role: str, order: Order) -> Order:
        """Say the checksum of each message or array that was sent, or that came."""
        if not order.get("as_array"):
            return WORKLOADS["verify"][role == "far"](self, order)
        return {"crc": self._verify_near(order) if role == "near" else self._verify_far(order)}

    def _verify_near(self, order: Order) -> list[int]:
        found = []
        for seed in range(order["count"]):
            data = payload({**order, "seed": order["seed"] * 1000 + seed})
            self._arrays[0][: order["size"]] = data
            found.append(zlib.crc32(data))
            self._put(self._arrays[0].ctypes.data, self._their_array, order["size"])
            self.send(bytes(self._message_bytes))
            self.receive()
        return found

    def _verify_far(self, order: Order) -> list[int]:
        found = []
        for _ in range(order["count"]):
            self.receive()
            found.append(zlib.crc32(self._arrays[0][: order["size"]]))
            self.send(bytes(self._message_bytes))
        return found

    def close(self) -> None:
        """Give back the memory."""
        for memory in (
            self._outgoing,
            self._incoming,
            self._taken,
            self._taken_there,
            *self._arrays,
        ):
            self._engine.unregister_memory(memory.ctypes.data)
        del self._engine, self._write


def connect(role: str, folder: Path, options: dict[str, Any]) -> MooncakeEnd:
    """Exchange ports and addresses."""
    return MooncakeEnd(role, folder, options)
