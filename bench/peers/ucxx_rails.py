"""UCX over several interfaces through ucxx's synchronous core: messages striped over all of them, the worker polled.

Options: ``{"devices": ["r0", …]}``. As its documentation has it for several rails: all devices in UCX_NET_DEVICES and
the numbers of eager and rendezvous rails raised to theirs (rendezvous has 2, eager 1 by default).
"""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from bench.paths.stream import Streaming, clock
from bench.peers.rendezvous import exchange

ARRAY = 1  # tag
NUMBERS = ("EAGER_LANES", "EAGER_RAILS", "RNDV_LANES", "RNDV_RAILS", "RMA_LANES", "RMA_RAILS")
POLLS = 64  # between two looks at the clock


class UcxxRails(Streaming):
    """One half: a worker with one endpoint over all devices."""

    def __init__(self, role: str, folder: Path, options: dict[str, Any]) -> None:
        devices = options["devices"]
        os.environ |= {f"UCX_MAX_{name}": str(len(devices)) for name in NUMBERS}
        os.environ |= {"UCX_NET_DEVICES": ",".join(devices), "UCX_TLS": "tcp,self"}
        os.environ.setdefault("UCX_WARN_UNUSED_ENV_VARS", "n")
        import ucxx._lib.libucxx as ucx
        from ucxx._lib.arr import Array

        self._wrap = Array
        context = ucx.UCXContext({}, (ucx.Feature.TAG,))
        self.worker = ucx.UCXWorker(context)
        own = self.worker.address.tobytes()
        address = ucx.UCXAddress.create_from_buffer(exchange(folder, role, own))
        self.endpoint = self.worker.create_endpoint_from_worker_address(
            address, endpoint_error_handling=False
        )
        self._tag = ucx.UCXXTag(ARRAY)
        self._awaited: deque[tuple[Any, np.ndarray[Any, Any]]] = deque()
        self._held: np.ndarray[Any, Any] | None = None
        self._free: list[np.ndarray[Any, Any]] = []

    def prepare(self, order: dict[str, Any]) -> None:
        """Learn the size; memory to receive in is kept as long as it fits."""
        size = order["size"]
        if not self._free or len(self._free[0]) != size:
            self._free = [np.ones(size, np.uint8) for _ in range(order["window"])]

    def post(self, array: np.ndarray[Any, Any], until_ns: int) -> Any:
        """Start a send."""
        request = self.endpoint.tag_send(self._wrap(array), self._tag)
        self.worker.progress()
        return request

    def finish(self, handle: Any, until_ns: int) -> None:
        """Progress the worker until it is through."""
        if not self._is_done(handle, until_ns):
            raise TimeoutError("a send never completed")

    def take(self, until_ns: int) -> np.ndarray[Any, Any] | None:
        """Return the next message; receives for the whole window are posted ahead."""
        while self._free:
            memory = self._free.pop()
            request = self.endpoint.tag_recv(self._wrap(memory), self._tag)
            self._awaited.append((request, memory))
        request, memory = self._awaited[0]
        if not self._is_done(request, until_ns):
            return None
        self._awaited.popleft()
        self._held = memory
        return memory

    def release(self) -> None:
        """Its memory takes another message."""
        if self._held is not None:
            self._free.append(self._held)
            self._held = None

    def _is_done(self, request: Any, until_ns: int) -> bool:
        progress = self.worker.progress
        while not request.completed:
            for _ in range(POLLS):
                progress()
            if clock() > until_ns:
                return False
        request.check_error()
        return True

    def close(self) -> None:
        """Go without a handshake: the rails may be gone. What is posted ahead goes with the process."""
        os._exit(0)


def connect(role: str, folder: Path, options: dict[str, Any]) -> UcxxRails:
    """Exchange worker addresses."""
    return UcxxRails(role, folder, options)
