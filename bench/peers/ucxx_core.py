"""UCX through ucxx's synchronous core: tagged messages, the worker progressed by the thread that waits.

Connected by worker address without error handling, which a listener would force and which keeps UCX off shared
memory. Options: ``{"tls": "shm" | "tcp", "progress": "polling" | "blocking"}``. "rendezvous" is how UCX moves arrays:
``am`` is the fastest over shared memory from 16 MiB on, ``put_zcopy`` (process_vm_writev) at 1 MiB.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.rendezvous import exchange

TLS = {"shm": "posix,sysv,cma,self", "tcp": "tcp,self"}
LARGEST = 256 << 20
MESSAGE, ARRAY, BATCH = 1, 2, 3  # tags


class UcxxEnd:
    """One half: a worker with one endpoint."""

    def __init__(self, role: str, folder: Path, options: dict[str, Any]) -> None:
        os.environ.setdefault("UCX_WARN_UNUSED_ENV_VARS", "n")
        import ucxx._lib.libucxx as ucx
        from ucxx._lib.arr import Array

        self._wrap = Array
        context = ucx.UCXContext(
            {"TLS": TLS[options["tls"]]}, (ucx.Feature.TAG, ucx.Feature.WAKEUP)
        )
        self.worker = ucx.UCXWorker(context)
        is_blocking = options["progress"] == "blocking"
        if is_blocking:
            self.worker.init_blocking_progress_mode()
        self._progress: Callable[[], Any] = (
            self.worker.progress_worker_event if is_blocking else self.worker.progress
        )
        address = ucx.UCXAddress.create_from_buffer(
            exchange(folder, role, self.worker.address.tobytes())
        )
        self.endpoint = self.worker.create_endpoint_from_worker_address(
            address, endpoint_error_handling=False
        )
        self._message, self._array, self._batch = map(ucx.UCXXTag, (MESSAGE, ARRAY, BATCH))
        self._memory = np.ones(
            LARGEST, np.uint8
        )  # touched: fresh pages would be measured otherwise
        self._sent: deque[Any] = deque()
        self._array_bytes = 0
        self.prepare({"message_bytes": 8})

    def prepare(self, order: dict[str, Any]) -> None:
        """Learn the lengths."""
        self._buffer = np.zeros(order["message_bytes"], np.uint8)
        self._slot = self._wrap(self._buffer)
        self._array_slot = self._memory[: order.get("size", 0)]

    def finish(self, request: Any) -> None:
        """Progress the worker until a request is done."""
        progress = self._progress
        while not request.completed:
            progress()
        request.check_error()

    def send(self, data: Any) -> None:
        """Send one message; done once UCX needs the bytes no longer."""
        request = self.endpoint.tag_send(self._wrap(data), self._message)
        if not request.completed:
            self.finish(request)

    def receive(self) -> np.ndarray[Any, Any]:
        """Return the memory that every message of an order is received into."""
        request = self.endpoint.tag_recv(self._slot, self._message)
        progress = self._progress
        while not request.completed:
            progress()
        return self._buffer

    def send_many(self, batch: list[Any]) -> None:
        """Send several in one call: UCX sees a message each and one that describes them."""
        requests = self.endpoint.tag_send_multi(tuple(map(self._wrap, batch)), self._batch)
        progress = self._progress
        while not requests.completed:
            progress()
        requests.check_error()

    def receive_many(self, most: int) -> list[Any]:
        """Return what one call of the sender sent, in memory that ucxx allocated."""
        requests = self.endpoint.tag_recv_multi(self._batch)
        progress = self._progress
        while not requests.completed:
            progress()
        requests.check_error()
        return list(requests.py_buffers)

    def send_array(self, array: np.ndarray[Any, Any]) -> None:
        """Start a rendezvous, which goes on while the confirmation is waited for."""
        sent = self._sent
        while sent and sent[0][0].completed:
            sent.popleft()[0].check_error()
        sent.append((self.endpoint.tag_send(self._wrap(array), self._array), array))
        self.worker.progress()

    def receive_array(self) -> np.ndarray[Any, Any]:
        """Fill the same memory again."""
        self.finish(self.endpoint.tag_recv(self._wrap(self._array_slot), self._array))
        return self._array_slot

    def release_array(self) -> None:
        """Nothing to give back: one buffer."""

    def close(self) -> None:
        """Close the endpoint."""
        self.endpoint.close_blocking()


def connect(role: str, folder: Path, options: dict[str, Any]) -> UcxxEnd:
    """Exchange worker addresses."""
    return UcxxEnd(role, folder, options)
