"""torch.distributed with gloo: point-to-point messages between tensors that both halves keep.

Over loopback tcp, the transport that gloo has on Linux. What is sent leaves once the other half asks for it, so sends
do not wait (``isend``): two halves that both send and wait would wait for ever. Tensors that land messages are made
before an order.
"""

from __future__ import annotations

import os
import warnings
from collections import deque
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as distributed

TIMEOUT = timedelta(seconds=600)
LARGEST = 256 << 20
INTERFACE = "lo"
UNDER_WAY_MAX = 64


class GlooEnd:
    """One half; the other is `peer`."""

    def __init__(self, peer: int) -> None:
        self._peer = peer
        self._memory = torch.ones(
            LARGEST, dtype=torch.uint8
        )  # touched: fresh pages would be measured otherwise
        self._message, self._array = self._memory[:0], self._memory[:0]
        self._came = self._message.numpy()
        self._under_way: deque[tuple[Any, torch.Tensor]] = deque()

    def prepare(self, order: dict[str, Any]) -> None:
        """Make the tensors of this order."""
        self._message = torch.zeros(order["message_bytes"], dtype=torch.uint8)
        self._came = self._message.numpy()
        self._array = self._memory[: order.get("size", 0)]

    def send(self, data: Any) -> None:
        """Send bytes, or what `receive` returned."""
        tensor = self._message if data is self._came else torch.frombuffer(data, dtype=torch.uint8)
        self._send(tensor)

    def _send(self, tensor: torch.Tensor) -> None:
        """Start one; a tensor stays alive until it has gone."""
        if len(self._under_way) == UNDER_WAY_MAX:
            self._under_way.popleft()[0].wait()
        self._under_way.append((distributed.isend(tensor, self._peer), tensor))

    def receive(self) -> np.ndarray[Any, Any]:
        """Fill the same tensor again."""
        distributed.recv(self._message, self._peer)
        return self._came

    def send_array(self, array: np.ndarray[Any, Any]) -> None:
        """Send the array's own memory."""
        self._send(torch.from_numpy(array))

    def receive_array(self) -> np.ndarray[Any, Any]:
        """Fill the same memory again."""
        distributed.recv(self._array, self._peer)
        return self._array.numpy()

    def release_array(self) -> None:
        """Nothing to give back: one buffer."""

    def close(self) -> None:
        """Leave the group; nobody asks any more for what has not gone by now."""
        self._under_way.clear()
        distributed.destroy_process_group()


def connect(role: str, folder: Path, options: dict[str, Any]) -> GlooEnd:
    """Meet over a file in the folder."""
    warnings.filterwarnings("ignore", "The given buffer is not writable")  # it is only read
    os.environ.setdefault("GLOO_SOCKET_IFNAME", INTERFACE)
    rank = 0 if role == "near" else 1
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2, timeout=TIMEOUT
    )
    return GlooEnd(1 - rank)
