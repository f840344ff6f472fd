"""zenoh: two sessions over tcp on loopback, a publisher and a subscriber each; with ``{"shm": true}`` arrays go
through shared memory that the sender allocates from a provider.

No scouting; full queues block. The Python API takes bytearrays and gives `bytes`, so an array is copied on either
side. Messages that are waited for go express (not held back for a batch), those of a rate do not. The pool is no
larger than a window needs: the provider collects garbage only when it is full, and fresh pages are slow.
"""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import zenoh

from bench.peers.rendezvous import OTHER, exchange, note_segments, sweep

QUEUED, QUEUED_ARRAYS = 1024, 8
SLACK_BYTES = 1 << 20
RECEIVE_BYTES = 2 << 20
BLOCK_US = 60_000_000
MATCH_S = 30.0
Array = np.ndarray[Any, Any]


class ZenohEnd:
    """One half: a session."""

    def __init__(self, role: str, folder: Path, options: dict[str, Any]) -> None:
        self._folder, self._role = folder, role
        own = free_port()
        theirs = int(exchange(folder, role, str(own).encode(), "port"))
        self._session = zenoh.open(
            configuration(role, own if role == "near" else theirs, options["shm"])
        )
        self._messages = self._session.declare_subscriber(
            f"bench/{OTHER[role]}/message", zenoh.handlers.FifoChannel(QUEUED)
        )
        self._arrays = self._session.declare_subscriber(
            f"bench/{OTHER[role]}/array", zenoh.handlers.FifoChannel(QUEUED_ARRAYS)
        )
        self._express = self._publisher(f"bench/{role}/message", True)
        self._batching = self._publisher(f"bench/{role}/message", False)
        self._array_publisher = self._publisher(f"bench/{role}/array", True)
        self._has_pool, self._pool_bytes = options["shm"] and role == "near", 0
        self._pool: Any = None
        self._segments: set[Path] = set()
        self._policy = zenoh.shm.BlockOn(zenoh.shm.GarbageCollect())
        self._match()
        exchange(folder, role, b"", "matched")
        note_segments(folder, role, own_segments())
        self._staging = bytearray()
        self.send = self._express.put

    def _publisher(self, key: str, is_express: bool) -> Any:
        return self._session.declare_publisher(
            key,
            congestion_control=zenoh.CongestionControl.BLOCK,
            reliability=zenoh.Reliability.RELIABLE,
            express=is_express,
        )

    def _match(self) -> None:
        """Wait until the other half has subscribed."""
        deadline = time.monotonic() + MATCH_S
        while not all(
            one.matching_status.matching for one in (self._express, self._array_publisher)
        ):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no subscriber after {MATCH_S} s")
            time.sleep(0.01)

    def prepare(self, order: dict[str, Any]) -> None:
        """Choose between latency and rate, and make the pool for arrays."""
        self.send = (self._batching if order["run"] == "one_way" else self._express).put

        if self._has_pool and (order["run"] == "bulk" or order.get("as_array")):
            self._make_pool((order.get("window", 1) + 1) * order["size"] + SLACK_BYTES)

    def _make_pool(self, size: int) -> None:
        if size == self._pool_bytes:
            return
        self._pool = None
        self._pool = zenoh.shm.ShmProvider.default_backend(size)
        self._pool_bytes = size
        memory = self._pool.alloc(size - SLACK_BYTES, self._policy)
        memory[:] = bytes(size - SLACK_BYTES)  # touched: fresh pages would be measured otherwise
        self._segments.update(own_segments())
        note_segments(self._folder, "near", self._segments)

    def receive(self) -> bytes:
        """Return the next message."""
        return bytes(self._messages.recv().payload)

    def send_array(self, array: Array) -> None:
        """Put the bytes, or put them into shared memory and that."""
        if len(self._staging) != len(array):
            self._staging = bytearray(len(array))
        np.copyto(
            np.frombuffer(self._staging, np.uint8), array
        )  # into warm memory, unlike `tobytes`
        if self._pool is None:
            self._array_publisher.put(self._staging)
            return
        memory = self._pool.alloc(len(array), self._policy)
        memory[:] = self._staging
        self._array_publisher.put(zenoh.ZBytes(memory))

    def receive_array(self) -> Array:
        """Return an array over the bytes that came."""
        return np.frombuffer(bytes(self._arrays.recv().payload), np.uint8)

    def release_array(self) -> None:
        """Nothing to give back: the bytes are a copy."""

    def close(self) -> None:
        """Close the session, then remove what zenoh leaves in /dev/shm even so."""
        note_segments(self._folder, self._role, self._segments | own_segments())
        del self._pool
        self._session.close()
        sweep(self._folder)


def configuration(role: str, port: int, has_shared_memory: bool) -> Any:
    """Near listens, far connects; nobody looks for others."""
    found = zenoh.Config()
    place = [f"tcp/127.0.0.1:{port}"]
    settings: dict[str, Any] = {
        "mode": "peer",
        "scouting/multicast/enabled": False,
        "scouting/gossip/enabled": False,
        "listen/endpoints": place if role == "near" else [],
        "connect/endpoints": [] if role == "near" else place,
        "transport/shared_memory/enabled": has_shared_memory,
        "transport/link/rx/buffer_size": RECEIVE_BYTES,
        "transport/link/tx/queue/congestion_control/block/wait_before_close": BLOCK_US,
    }
    for key, value in settings.items():
        found.insert_json5(key, json.dumps(value))
    return found


def own_segments() -> set[Path]:
    """Return the files of zenoh's shared memory that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    found = {
        line.split(maxsplit=5)[-1].removesuffix(" (deleted)")
        for line in lines
        if "/dev/shm/" in line
    }
    return {Path(name) for name in found if name.endswith(".zenoh")}


def free_port() -> int:
    """Return a port that nobody had a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def connect(role: str, folder: Path, options: dict[str, Any]) -> ZenohEnd:
    """Near listens at a port that it leaves in the folder."""
    return ZenohEnd(role, folder, options)
