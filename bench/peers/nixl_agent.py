"""NIXL with its UCX backend: one-sided transfers between registered memories, with a notification each.

No progress thread: on few cores its two would spin against the halves. Handles are made once and posted again.
Options: ``{"op": "write" | "read", "tls": "shm" | "tcp"}``; `op` says how arrays go: written by the near half, or read
by the far one once it is told that one is there. Messages are writes into a ring of slots in the other half's memory,
and every `CREDIT` of them the receiver says that it has taken them.
"""

from __future__ import annotations

import atexit
import os
import time
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.loops import SOURCES, WORKLOADS, Order, payload
from bench.peers.rendezvous import OTHER, exchange

TLS = {"shm": "posix,sysv,cma,self", "tcp": "tcp,self"}
SLOTS, CREDIT = 128, 32
SLOT_BYTES = 2048
LARGEST = 256 << 20
BACKEND_S = 20.0  # creation fails for a few seconds after a link came up
MESSAGE, BATCH, TAKEN, ARRAY = b"m", b"b", b"t", b"a"


def flushed(name: str) -> Callable[[NixlEnd, str, Order], Order]:
    """Return a workload of the bench that leaves nothing half sent."""

    def run(end: NixlEnd, role: str, order: Order) -> Order:
        found = WORKLOADS[name][role == "far"](end, order)
        end.flush()
        return found

    return run


class NixlEnd:
    """One half: an agent; a ring to send from, a ring to receive in, memory for arrays."""

    def __init__(self, role: str, folder: Path, options: dict[str, Any]) -> None:
        os.environ["UCX_TLS"] = TLS[options["tls"]]
        os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")
        os.environ.setdefault("UCX_WARN_UNUSED_ENV_VARS", "n")
        self._is_read, self._folder, self._role = options["op"] == "read", folder, role
        self._agent, self._peer = make_agent(role), OTHER[role]
        self._outgoing = np.ones(SLOTS * SLOT_BYTES, np.uint8)
        self._incoming = np.ones(SLOTS * SLOT_BYTES, np.uint8)
        # One that is written into stays as it is until the reader has confirmed it. Touched: fresh pages would be
        # measured otherwise.
        arrays = 1 if self._is_read and role == "far" else SOURCES
        self._arrays = [np.ones(LARGEST, np.uint8) for _ in range(arrays)]
        self._register()
        self._sent = self._taken_there = self._received = self._granted = 0
        self._messages, self._arrived, self._open = 0, deque[int](), deque[Any]()
        self.prepare({"message_bytes": 8})

    def _register(self) -> None:
        agent = self._agent
        for memory in (self._outgoing, self._incoming, *self._arrays):
            agent.register_memory([(memory.ctypes.data, memory.nbytes, 0, "")], "DRAM")
        addresses = [memory.ctypes.data for memory in (self._incoming, *self._arrays)]
        metadata = agent.get_agent_metadata()
        theirs = exchange(
            self._folder, self._role, np.array(addresses, np.uint64).tobytes(), "addresses"
        )
        agent.add_remote_agent(exchange(self._folder, self._role, metadata, "metadata"))
        self._their_ring, *self._their_arrays = (
            int(address) for address in np.frombuffer(theirs, np.uint64)
        )
        agent.make_connection(self._peer)

    # ------------------------------------------------------------------ messages
    def prepare(self, order: Order) -> None:
        """Make the handles for the lengths of an order."""
        self.flush()
        size = self._message_bytes = order["message_bytes"]
        starts = range(0, SLOTS * SLOT_BYTES, SLOT_BYTES)
        ring, theirs = self._outgoing.ctypes.data, self._their_ring
        self._batches: dict[tuple[int, int], Any] = {}
        self._here, self._there = self._prepare_lists(
            [(ring + at, size) for at in starts], [(theirs + at, size) for at in starts]
        )
        self._handles = [
            self._agent.make_prepped_xfer("WRITE", self._here, [i], self._there, [i])
            for i in range(SLOTS)
        ]
        self._outgoing_slots = [self._outgoing[at : at + size].data for at in starts]
        self._incoming_slots = [self._incoming[at : at + size].data for at in starts]

    def _prepare_lists(
        self, local: list[tuple[int, int]], remote: list[tuple[int, int]]
    ) -> tuple[Any, Any]:
        """Return what handles are made of, from (address, bytes) on either side."""
        here = self._agent.prep_xfer_dlist(
            "NIXL_INIT_AGENT", [(*place, 0) for place in local], "DRAM"
        )
        return here, self._agent.prep_xfer_dlist(
            self._peer, [(*place, 0) for place in remote], "DRAM"
        )

    def _make(
        self, operation: str, local: list[tuple[int, int]], remote: list[tuple[int, int]]
    ) -> list[Any]:
        """Return a handle for each pair of (address, bytes)."""
        here, there = self._prepare_lists(local, remote)
        return [
            self._agent.make_prepped_xfer(operation, here, [i], there, [i])
            for i in range(len(local))
        ]

    def _finish(self, handle: Any, state: str) -> None:
        while state == "PROC":
            state = self._agent.check_xfer_state(handle)
        if state != "DONE":
            raise ConnectionError(f"a transfer ended as {state}")

    def _poll(self) -> None:
        """Progress, and count what has come."""
        while self._open and self._agent.check_xfer_state(self._open[0]) == "DONE":
            self._open.popleft()
        for notices in self._agent.get_new_notifs().values():
            for notice in notices:
                if notice == MESSAGE:
                    self._messages += 1
                elif notice[:1] == TAKEN:
                    self._taken_there += CREDIT * notice[1]
                elif notice[:1] == BATCH:
                    self._messages += notice[1]
                else:
                    self._arrived.append(notice[1])

    def flush(self) -> None:
        """Finish what was posted: without a thread of its own NIXL notifies while a state is asked for."""
        while self._open:
            self._finish(self._open.popleft(), "PROC")

    def send(self, data: Any) -> None:
        """Copy into the next slot, write it into the other half's and notify."""
        slot = self._sent % SLOTS
        if self._open:
            self._poll()
        while self._sent - self._taken_there >= SLOTS:  # taken there: done here
            self._poll()
        self._outgoing_slots[slot][:] = data
        state = self._agent.transfer(self._handles[slot], MESSAGE)
        if state != "DONE":
            self._open.append(self._handles[slot])
        self._sent += 1

    def receive(self) -> memoryview:
        """Return the next slot, which holds until the next call."""
        if self._received // CREDIT != self._granted:
            self._grant()
        while not self._messages:
            self._poll()
        self._messages -= 1
        place = self._received % SLOTS
        self._received += 1
        return self._incoming_slots[place]

    def _grant(self) -> None:
        """Say how many more have been taken."""
        credits = self._received // CREDIT - self._granted
        self._agent.send_notif(self._peer, TAKEN + bytes([credits]))
        self._granted += credits

    def send_many(self, batch: list[Any]) -> None:
        """Copy into the next slots and write them all in one transfer with one notification."""
        first, count = self._sent % SLOTS, len(batch)
        if self._open:
            self._poll()
        while self._sent + count - self._taken_there > SLOTS:
            self._poll()
        places = [(first + i) % SLOTS for i in range(count)]
        for place, data in zip(places, batch, strict=True):
            self._outgoing_slots[place][:] = data
        handle = self._batches.get((first, count))
        if handle is None:
            handle = self._agent.make_prepped_xfer("WRITE", self._here, places, self._there, places)
            self._batches[first, count] = handle
        if self._agent.transfer(handle, BATCH + bytes([count])) != "DONE":
            self._open.append(handle)
        self._sent += count

    def receive_many(self, most: int) -> list[memoryview]:
        """Return the next slots, which hold until the next call."""
        if self._received // CREDIT != self._granted:
            self._grant()
        while not self._messages:
            self._poll()
        count, first = min(most, self._messages), self._received
        self._messages -= count
        self._received += count
        return [self._incoming_slots[place % SLOTS] for place in range(first, first + count)]

    round_trips = flushed("round_trips")
    one_way = flushed("one_way")
    idle = flushed("idle")

    # ------------------------------------------------------------------ arrays
    def bulk(self, role: str, order: Order) -> Order:
        """Move arrays between memories that were registered before, as NIXL's users do."""
        return self._bulk_near(order) if role == "near" else self._bulk_far(order)

    def _bulk_near(self, order: Order) -> Order:
        count, window, size = order["count"], order.get("window", 1), order["size"]
        window = window if self._is_read else min(window, SOURCES)
        for seed, memory in enumerate(self._arrays):
            memory[:size] = payload({**order, "seed": seed})
        handles = self._array_handles(size)
        start = time.perf_counter_ns()
        for number in range(count):
            if number >= window:
                self.receive()
            self._offer(handles, number % SOURCES)
        for _ in range(min(window, count)):
            self.receive()
        return {"ns": time.perf_counter_ns() - start}

    def _array_handles(self, size: int) -> list[Any]:
        """Return what moves each of the near half's arrays."""
        near = (
            [memory.ctypes.data for memory in self._arrays]
            if self._role == "near"
            else self._their_arrays
        )
        far = (
            self._their_arrays if self._role == "near" else [self._arrays[0].ctypes.data] * SOURCES
        )
        if self._role == "near":
            return [] if self._is_read else self._make("WRITE", *pairs(near, far, size))
        return self._make("READ", *pairs(far, near, size)) if self._is_read else []

    def _offer(self, handles: list[Any], index: int) -> None:
        """Write an array, or say that it can be read."""
        notice = ARRAY + bytes([index])
        if self._is_read:
            self._agent.send_notif(self._peer, notice)
        else:
            self._finish(handles[index], self._agent.transfer(handles[index], notice))

    def _bulk_far(self, order: Order) -> Order:
        handles, total = self._array_handles(order["size"]), 0
        for _ in range(order["count"]):
            array = self._take_array(handles, order["size"])
            if order.get("read", False):
                total += int(np.add.reduce(array.view(np.uint64)))
            self.send(bytes(self._message_bytes))
        self.flush()
        return {"sum": total % (1 << 64)}

    def _take_array(self, handles: list[Any], size: int) -> np.ndarray[Any, Any]:
        """Return the next array once it is in this half's memory."""
        while not self._arrived:
            self._poll()
        index = self._arrived.popleft()
        if not self._is_read:
            return self._arrays[index][:size]
        self._finish(handles[index], self._agent.transfer(handles[index]))
        return self._arrays[0][:size]

    # ------------------------------------------------------------------ contents
    def verify(self, role: str, order: Order) -> Order:
        """Say the checksum of each message or array that was sent, or that came."""
        if not order.get("as_array"):
            return flushed("verify")(self, role, order)
        found = self._verify_near(order) if role == "near" else self._verify_far(order)
        self.flush()
        return {"crc": found}

    def _verify_near(self, order: Order) -> list[int]:
        handles, found = self._array_handles(order["size"]), []
        for seed in range(order["count"]):
            data = payload({**order, "seed": order["seed"] * 1000 + seed})
            self._arrays[seed % SOURCES][: order["size"]] = data
            found.append(zlib.crc32(data))
            self._offer(handles, seed % SOURCES)
            self.receive()
        return found

    def _verify_far(self, order: Order) -> list[int]:
        handles, found = self._array_handles(order["size"]), []
        for _ in range(order["count"]):
            found.append(zlib.crc32(self._take_array(handles, order["size"])))
            self.send(bytes(self._message_bytes))
        return found

    def close(self) -> None:
        """Give back the handles, the connection and the agent.

        What then remains is a library beside NIXL (libnl-route) whose own end of process crashes: that is left out.
        """
        self.flush()
        del self._handles, self._batches, self._here, self._there
        self._agent.remove_remote_agent(self._peer)
        del self._agent
        atexit.register(os._exit, 0)


def pairs(
    local: list[int], remote: list[int], size: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return as many places on either side as both have."""
    both = min(len(local), len(remote))
    return [(at, size) for at in local[:both]], [(at, size) for at in remote[:both]]


def make_agent(name: str) -> Any:
    """Make an agent without a thread of its own.

    Raises
    ------
    Exception
        What NIXL raised last, when its backend could not be made within `BACKEND_S`.
    """
    import nixl

    agent = nixl.nixl_agent(name, nixl.nixl_agent_config(enable_prog_thread=False, backends=[]))
    deadline = time.monotonic() + BACKEND_S
    while True:
        try:
            agent.create_backend(
                "UCX", {"ucx_error_handling_mode": "none"}
            )  # its handling knows no shared memory
            return agent
        except nixl.nixlBackendError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def connect(role: str, folder: Path, options: dict[str, Any]) -> NixlEnd:
    """Exchange metadata."""
    return NixlEnd(role, folder, options)
