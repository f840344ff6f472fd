"""``multiprocessing.connection``: what the standard library offers two Python processes.

A duplex connection over a unix socket, as ``Pipe()`` makes, between processes that did not fork from each other. Bytes
go with ``send_bytes`` and land with ``recv_bytes``, arrays in the receiver's own memory with ``recv_bytes_into``.
``send`` of objects is left out: it unpickles what the other process says.
"""

from __future__ import annotations

import secrets
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.rendezvous import exchange

LARGEST = 256 << 20
KEY_BYTES = 32


class ConnectionEnd:
    """One half."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection
        self.send = connection.send_bytes
        self.receive = connection.recv_bytes
        self.send_array = connection.send_bytes
        self._memory = np.ones(
            LARGEST, np.uint8
        )  # touched: fresh pages would be measured otherwise

    def receive_array(self) -> np.ndarray[Any, Any]:
        """Fill the same memory again."""
        return self._memory[: self._connection.recv_bytes_into(self._memory)]

    def release_array(self) -> None:
        """Nothing to give back: one buffer."""

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def connect(role: str, folder: Path, options: dict[str, Any]) -> ConnectionEnd:
    """Near listens, far connects; the key is in the folder of this run."""
    address = str(folder / "connection")
    if role == "far":
        return ConnectionEnd(Client(address, authkey=exchange(folder, role, b"")))
    key = secrets.token_bytes(KEY_BYTES)
    with Listener(address, "AF_UNIX", authkey=key) as listener:
        exchange(folder, role, key)
        return ConnectionEnd(listener.accept())
