"""Measure one rail by itself: a connection of its own between the rail's two addresses, round trips, then payload.

It shares the rail with live traffic and nothing else: not the engine, not its queues, not its state. Both ends are
coroutines of the daemons' loops; what a probe may take is bounded in bytes, time and number. Wire: after the handshake
(group `GROUP_PROBE`) orders of 9 bytes, `{u8 what, u64 count}`; docs/WIRE.md §5.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import struct
import time
from dataclasses import dataclass, field
from typing import Any

from fabric import errors, limits

# Orders: answer `count` pings; take `count` bytes, then confirm; give `count` bytes.
ECHO, SINK, SOURCE = 1, 2, 3
_ORDER = struct.Struct("<BQ")
_PING = bytes(8)
_BLOCK = bytes(256 << 10)
_WARM_SHARE = 0.25  # of the payload: the congestion window opens
_TCP_INFO_BYTES, _RTT_AT, _RETRANSMITS_AT, _MIN_RTT_AT = 192, 68, 100, 148


@dataclass(frozen=True, slots=True)
class Wish:
    """What to measure on a rail: round trips, and payload `outward` (from the end that asks) or towards it.

    `seconds` is the time that the payload may take; a rail too slow for all of it is measured on what fits.
    """

    trips: int = 20
    size_bytes: int = 0
    seconds: float = 1.0
    outward: bool = True

    def check(self) -> Wish:
        """Return it.

        Raises
        ------
        ConfigError
            A part is outside its bounds, which are named.
        """
        most = limits.PATH_PROBE_BYTES_MAX
        bounds = (
            ("--trips", self.trips, 1, limits.PATH_PROBE_TRIPS_MAX),
            ("--bytes", self.size_bytes, 0, most),
            ("--seconds", self.seconds, *limits.PATH_PROBE_SECONDS),
        )
        for option, value, least, largest in bounds:
            if not least <= value <= largest:
                raise errors.ConfigError(
                    f"{option} is {value:g}: give {least:g} to {largest:g}", key=option
                )
        if 0 < self.size_bytes < limits.PATH_PROBE_BYTES_MIN:
            raise errors.ConfigError(
                f"--bytes is {self.size_bytes}: less than {limits.PATH_PROBE_BYTES_MIN} says nothing of a rate",
                key="--bytes",
            )
        return self


@dataclass(slots=True)
class Measured:
    """What was found; `rate` is bytes/s, absent (0) where no payload was asked for."""

    trips_ns: list[int] = field(default_factory=list)
    rate: float = 0.0
    size_bytes: int = 0
    seconds: float = 0.0
    tcp_rtt_ns: int = 0
    retransmits: int = 0

    def row(self) -> dict[str, Any]:
        """Return it as figures."""
        trips = sorted(self.trips_ns)
        return {
            "rtt_us_min": round(trips[0] / 1e3, 1),
            "rtt_us_p50": round(statistics.median(trips) / 1e3, 1),
            "rtt_us_max": round(trips[-1] / 1e3, 1),
            "trips": len(trips),
            "tcp_rtt_us": round(self.tcp_rtt_ns / 1e3, 1),
            "retransmits": self.retransmits,
            **({"rate": round(self.rate), "bytes": self.size_bytes} if self.size_bytes else {}),
            "seconds": round(self.seconds, 3),
        }


async def measure(sock: socket.socket, wish: Wish) -> Measured:
    """Measure over a proven connection; the caller closes it.

    Raises
    ------
    PathBrokenError
        The connection ended, or was silent for longer than the wish allows.
    """
    found, began = Measured(), time.monotonic()
    try:
        async with asyncio.timeout(limits.PATH_PROBE_WAIT_S + wish.seconds):
            await _trips(sock, wish.trips, found)
            if wish.size_bytes:
                await _payload(sock, wish, found)
    except TimeoutError as error:
        raise errors.PathBrokenError(
            f"the rail was silent for {limits.PATH_PROBE_WAIT_S:g} s during the probe"
        ) from error
    except OSError as error:
        raise errors.PathBrokenError(
            f"the rail broke during the probe: {error.strerror or error}"
        ) from error
    found.seconds = time.monotonic() - began
    _ask_kernel(sock, found)
    return found


async def serve(sock: socket.socket) -> None:
    """Do what the other end orders until it closes, is silent for long or has had its bytes; closes the socket."""
    loop, left = asyncio.get_running_loop(), limits.PATH_PROBE_BYTES_MAX * 2
    try:
        async with asyncio.timeout(limits.PATH_PROBE_WAIT_S + 2 * limits.PATH_PROBE_SECONDS[1]):
            while order := await _exactly(sock, _ORDER.size, may_end=True):
                what, count = _ORDER.unpack(order)
                left -= count * (len(_PING) if what == ECHO else 1)
                if left < 0 or what not in _SERVED:
                    return
                await _SERVED[what](loop, sock, count)
    except (TimeoutError, OSError, errors.BrokenError):
        return  # the end that measures says why
    finally:
        sock.close()


# ------------------------------------------------------------------ the end that measures
async def _trips(sock: socket.socket, count: int, found: Measured) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, _ORDER.pack(ECHO, count + 1))
    for number in range(count + 1):
        began = time.perf_counter_ns()
        await loop.sock_sendall(sock, _PING)
        await _exactly(sock, len(_PING))
        if number:  # the first one carries the order
            found.trips_ns.append(time.perf_counter_ns() - began)


async def _payload(sock: socket.socket, wish: Wish, found: Measured) -> None:
    """Warm up in growing parts until one is long enough to be timed, then time as much of the rest as fits."""
    move = _give if wish.outward else _fetch
    size, moved, spent = limits.PATH_PROBE_BYTES_MIN // 4, 0, 0
    while True:
        took = max(await move(sock, size), 1)
        moved, spent = moved + size, spent + took
        if (
            took > _WARM_SHARE * wish.seconds * 1e9
            or moved + 2 * size > _WARM_SHARE * wish.size_bytes
        ):
            break
        size *= 2
    rest = min(wish.size_bytes - moved, int(size * max(wish.seconds * 1e9 - spent, 0.0) / took))
    if rest >= size:  # else it is so slow that the last part of the warm-up is the figure
        size, took = rest, max(await move(sock, rest), 1)
        moved += size
    found.rate, found.size_bytes = size * 1e9 / took, moved


async def _give(sock: socket.socket, size: int) -> int:
    """Send bytes and wait until the other end has them all; returns ns."""
    loop, began = asyncio.get_running_loop(), time.perf_counter_ns()
    await loop.sock_sendall(sock, _ORDER.pack(SINK, size))
    await _send_zeros(loop, sock, size)
    await _exactly(sock, len(_PING))
    return time.perf_counter_ns() - began


async def _fetch(sock: socket.socket, size: int) -> int:
    loop, began = asyncio.get_running_loop(), time.perf_counter_ns()
    await loop.sock_sendall(sock, _ORDER.pack(SOURCE, size))
    await _take_bytes(loop, sock, size)
    return time.perf_counter_ns() - began


def _ask_kernel(sock: socket.socket, found: Measured) -> None:
    """Take the least round trip and the retransmits that the kernel saw, without daemons in between."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return
    if len(info) >= _MIN_RTT_AT + 4:
        (found.retransmits,) = struct.unpack_from("=I", info, _RETRANSMITS_AT)
        (least_us,) = struct.unpack_from("=I", info, _MIN_RTT_AT)
        found.tcp_rtt_ns = least_us * 1000


# ------------------------------------------------------------------ the end that obeys
async def _echo(loop: asyncio.AbstractEventLoop, sock: socket.socket, count: int) -> None:
    for _ in range(count):
        await loop.sock_sendall(sock, await _exactly(sock, len(_PING)))


async def _take(loop: asyncio.AbstractEventLoop, sock: socket.socket, count: int) -> None:
    await _take_bytes(loop, sock, count)
    await loop.sock_sendall(sock, _PING)


async def _send_zeros(loop: asyncio.AbstractEventLoop, sock: socket.socket, count: int) -> None:
    block = memoryview(_BLOCK)
    while count:
        part = min(count, len(block))
        await loop.sock_sendall(sock, block[:part])
        count -= part


_SERVED = {ECHO: _echo, SINK: _take, SOURCE: _send_zeros}


async def _take_bytes(loop: asyncio.AbstractEventLoop, sock: socket.socket, count: int) -> None:
    block = memoryview(bytearray(min(count, len(_BLOCK)) or 1))
    while count:
        found = await loop.sock_recv_into(sock, block[: min(count, len(block))])
        if not found:
            raise errors.BrokenError("the connection ended in the middle of the payload")
        count -= found


async def _exactly(sock: socket.socket, count: int, may_end: bool = False) -> bytes:
    """Receive `count` bytes; nothing where the other end closed before the first and may."""
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < count:
        more = await loop.sock_recv(sock, count - len(data))
        if not more:
            if may_end and not data:
                return b""
            raise errors.PathBrokenError("the other end closed the connection of the probe")
        data += more
    return data
