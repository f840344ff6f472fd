"""Data connections of rails whose large bodies go from GPU to GPU: the links that are made of them.

Belongs to the daemon's loop. CUDA is opened with the first rail of it, which takes up to seconds: on a thread, one at a
time. The GPU is the first that the daemon sees (CUDA_VISIBLE_DEVICES).
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from fabric import errors
from fabric.links.rail_link import is_gpu


class GpuRails:
    """One per daemon."""

    def __init__(self) -> None:
        self._making = asyncio.Lock()

    async def make(self, sock: socket.socket, session: int, rail_link: str) -> Any:
        """Return the link over a proven connection, for `NodeGateway.add_link`; the socket is its own, or closed.

        Parameters
        ----------
        rail_link : str
            As `RailRecord.link`; both sides know it, since one of them told the other.

        Raises
        ------
        PathBrokenError
            No driver, no GPU, no memory or no NCCL here.
        """
        from fabric.links import gpu

        if not is_gpu(rail_link):
            sock.close()
            raise errors.PathBrokenError("the peer takes a rail of another link for one over GPUs")
        async with self._making:
            return await asyncio.to_thread(gpu.make_link, sock.detach(), session, rail_link)
