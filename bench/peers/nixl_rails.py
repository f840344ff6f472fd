"""NIXL over several interfaces: writes into registered slots of the other half, a notification with each.

Options: ``{"devices": ["r0", …]}``, as UCX below it takes them. Handles are made once; no thread of its own.
"""

from __future__ import annotations

import atexit
import os
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from bench.paths.stream import Streaming, clock
from bench.peers.nixl_agent import make_agent
from bench.peers.rendezvous import OTHER, exchange

NUMBERS = ("EAGER_LANES", "EAGER_RAILS", "RNDV_LANES", "RNDV_RAILS", "RMA_LANES", "RMA_RAILS")
MEMORY_BYTES = 256 << 20  # slots for the longest window of the largest messages
ARRIVED, TAKEN = b"a", b"t"


class NixlRails(Streaming):
    """One half: an agent with as many slots as a window is long, and one."""

    def __init__(self, role: str, folder: Path, options: dict[str, Any]) -> None:
        devices = options["devices"]
        os.environ |= {f"UCX_MAX_{name}": str(len(devices)) for name in NUMBERS}
        os.environ |= {"UCX_NET_DEVICES": ",".join(devices), "UCX_TLS": "tcp,self"}
        os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")
        os.environ.setdefault("UCX_WARN_UNUSED_ENV_VARS", "n")
        self._role, self._peer, self._agent = role, OTHER[role], make_agent(role)
        self._memory = np.ones(MEMORY_BYTES, np.uint8)
        self._agent.register_memory(
            [(self._memory.ctypes.data, self._memory.nbytes, 0, "")], "DRAM"
        )
        mine = np.array([self._memory.ctypes.data], np.uint64).tobytes()
        self._theirs = int(np.frombuffer(exchange(folder, role, mine, "memory"), np.uint64)[0])
        metadata = self._agent.get_agent_metadata()
        self._agent.add_remote_agent(exchange(folder, role, metadata, "metadata"))
        self._agent.make_connection(self._peer)
        self._size = 0
        # They go on from order to order: of the one before some may still be on their way.
        self._arrived: deque[int] = deque()
        self._open: deque[Any] = deque()
        self._sent = self._taken = 0

    def prepare(self, order: dict[str, Any]) -> None:
        """Make the handles for a size and a window, the same ones for every order."""
        if self._role == "near" and order["size"] != self._size:
            self._size, self._slots = order["size"], order["window"] + 1
            here = [
                (self._memory.ctypes.data + i * self._size, self._size, 0)
                for i in range(self._slots)
            ]
            there = [(self._theirs + i * self._size, self._size, 0) for i in range(self._slots)]
            agent = self._agent
            local = agent.prep_xfer_dlist("NIXL_INIT_AGENT", here, "DRAM")
            remote = agent.prep_xfer_dlist(self._peer, there, "DRAM")
            self._handles = [
                agent.make_prepped_xfer("WRITE", local, [i], remote, [i])
                for i in range(self._slots)
            ]
        self._size, self._slots = order["size"], order["window"] + 1

    def post(self, array: np.ndarray[Any, Any], until_ns: int) -> Any:
        """Write into the next slot once the one before in it was taken."""
        while self._sent - self._taken >= self._slots:
            self._poll(until_ns)
        slot = self._sent % self._slots
        self._memory[slot * self._size : (slot + 1) * self._size] = array
        if self._agent.transfer(self._handles[slot], ARRIVED + bytes([slot])) != "DONE":
            self._open.append(self._handles[slot])
        self._sent += 1
        return self._handles[slot]

    def finish(self, handle: Any, until_ns: int) -> None:
        """Progress until it is written."""
        while handle in self._open:
            self._poll(until_ns)

    def take(self, until_ns: int) -> np.ndarray[Any, Any] | None:
        """Return the slot that was told last."""
        try:
            while not self._arrived:
                self._poll(until_ns)
        except TimeoutError:
            return None
        slot = self._arrived.popleft()
        return self._memory[slot * self._size : (slot + 1) * self._size]

    def release(self) -> None:
        """Tell the sender."""
        self._agent.send_notif(self._peer, TAKEN)

    def _poll(self, until_ns: int) -> None:
        while self._open and self._agent.check_xfer_state(self._open[0]) == "DONE":
            self._open.popleft()  # it notifies while its state is asked for
        for notices in self._agent.get_new_notifs().values():
            for notice in notices:
                if notice[:1] == TAKEN:
                    self._taken += 1
                else:
                    self._arrived.append(notice[1])
        if clock() > until_ns:
            raise TimeoutError("nothing moved any more")

    def close(self) -> None:
        """Go without a handshake: the rails may be gone."""
        atexit.register(os._exit, 0)


def connect(role: str, folder: Path, options: dict[str, Any]) -> NixlRails:
    """Exchange metadata."""
    return NixlRails(role, folder, options)
