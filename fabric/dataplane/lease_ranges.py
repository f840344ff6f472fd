"""Byte ranges of a lease: checked, then copied by whole blocks where they are regular. Pure; numpy at use."""

from __future__ import annotations

from typing import Any

from fabric import limits
from fabric.errors import CapacityError, PeerProtocolError, TypeMismatchError


class Ranges:
    """Ranges (offset, length) of `size_bytes` bytes, all inside.

    Attributes
    ----------
    table : numpy.ndarray
        int64 [ranges, 2].
    total : int
        Bytes together.
    """

    def __init__(self, ranges: Any, size_bytes: int) -> None:
        import numpy

        self.is_whole = ranges is None
        try:
            table = numpy.asarray([(0, size_bytes)] if ranges is None else ranges)
        except (OverflowError, ValueError) as error:
            raise TypeMismatchError(f"ranges are no numbers: {error}") from error
        if table.size == 0:
            table = numpy.zeros((0, 2), numpy.int64)
        if table.ndim != 2 or table.shape[1] != 2 or table.dtype.kind != "i":
            raise TypeMismatchError(
                f"ranges are {table.dtype.name}{list(table.shape)}: give (offset, length) pairs of bytes"
            )
        if len(table) > limits.LEASE_RANGES_MAX:
            raise CapacityError(
                f"{len(table)} ranges in one call, LEASE_RANGES_MAX is {limits.LEASE_RANGES_MAX}",
                limit="LEASE_RANGES_MAX",
            )
        self.table = table.astype(numpy.int64, copy=False)
        offsets, lengths = self.table[:, 0], self.table[:, 1]
        # No sum that may overflow: a length is below the size before it is taken from it.
        inside = (lengths >= 0) & (lengths <= size_bytes) & (offsets >= 0)
        inside &= offsets <= size_bytes - numpy.where(inside, lengths, 0)
        if not inside.all():
            offset, length = self.table[int(numpy.argmin(inside))].tolist()
            raise TypeMismatchError(
                f"range of {length} bytes at {offset} is not inside the lease's {size_bytes} bytes",
                bytes=size_bytes,
            )
        self.total = int(lengths.sum()) if len(lengths) else 0
        if self.total > limits.MESSAGE_BYTES_MAX:
            raise CapacityError(
                f"{self.total} bytes at once, MESSAGE_BYTES_MAX is {limits.MESSAGE_BYTES_MAX}; ask for less",
                limit="MESSAGE_BYTES_MAX",
            )

    @property
    def hull(self) -> tuple[int, int]:
        """First byte and the one behind the last; (0, 0) when there are no bytes."""
        used = self.table[self.table[:, 1] > 0]
        return (int(used[:, 0].min()), int(used.sum(axis=1).max())) if len(used) else (0, 0)

    def copy_out(self, source: Any, target: Any) -> None:
        """Copy the ranges of `source` into the contiguous bytes of `target`."""
        import numpy

        blocks = self._blocks(source)
        if blocks is not None:
            numbers, view, length = blocks
            numpy.take(view, numbers, axis=0, out=target.reshape(-1, length))
            return
        at = 0
        for offset, length in self.table.tolist():
            target[at : at + length] = source[offset : offset + length]
            at += length

    def copy_in(self, source: Any, target: Any) -> None:
        """Copy the contiguous bytes of `source` into the ranges of `target`; where ranges overlap, the last stays."""
        blocks = self._blocks(target)
        if blocks is not None:
            numbers, view, length = blocks
            view[numbers] = source.reshape(-1, length)
            return
        at = 0
        for offset, length in self.table.tolist():
            target[offset : offset + length] = source[at : at + length]
            at += length

    def parts(self, part_bytes: int) -> list[Any]:
        """Return tables that cover the ranges in order, of at most `part_bytes` each."""
        import numpy

        parts: list[list[tuple[int, int]]] = [[]]
        room = part_bytes
        for offset, length in self.table.tolist():
            while length:
                taken = min(length, room)
                parts[-1].append((offset, taken))
                offset, length, room = offset + taken, length - taken, room - taken
                if not room:
                    parts.append([])
                    room = part_bytes
        return [numpy.array(part, numpy.int64) for part in parts if part]

    def _blocks(self, memory: Any) -> tuple[Any, Any, int] | None:
        """Return (block numbers, memory as blocks, block bytes) where all ranges are blocks of one size."""
        if len(self.table) < 2:
            return None
        length = int(self.table[0, 1])
        if length == 0 or (self.table[:, 1] != length).any() or (self.table[:, 0] % length).any():
            return None
        return (
            self.table[:, 0] // length,
            memory[: len(memory) // length * length].reshape(-1, length),
            length,
        )


def flat_bytes(data: Any, what: str, writable: bool = False) -> Any:
    """Return `data` as contiguous uint8 over the same memory.

    Raises
    ------
    TypeMismatchError
        It is no contiguous array, or (`writable`) cannot be written.
    """
    import numpy

    from fabric.messages.tensor import to_array

    if isinstance(data, (bytes, bytearray, memoryview)):
        array = numpy.frombuffer(data, numpy.uint8)
    elif isinstance(data, numpy.ndarray):
        array = data
    else:
        array = to_array(data)[1]
    if array.dtype.hasobject or not array.flags.c_contiguous:
        raise TypeMismatchError(f"{what} is not C-contiguous plain memory; copy it first")
    if writable and not array.flags.writeable:
        raise TypeMismatchError(f"{what} is read-only")
    return array.reshape(-1).view(numpy.uint8)


def checked(lease: Any) -> Any:
    """Return `lease` if it is one and its numbers fit together; it may come from anywhere."""
    import math

    import numpy

    from fabric.messages.lease import Lease

    if not isinstance(lease, Lease):
        raise TypeMismatchError(
            f"{type(lease).__name__} is no Lease; use what port.expose returned"
        )
    try:
        size = math.prod(lease.shape) * numpy.dtype(lease.dtype).itemsize
        fits = not numpy.dtype(lease.dtype).hasobject and min(lease.shape, default=0) >= 0
    except (TypeError, ValueError, SyntaxError) as error:
        raise PeerProtocolError(f"lease of dtype {lease.dtype!r:.64}: {error}") from error
    if not fits or size != lease.bytes or not 0 <= lease.bytes <= limits.SEGMENT_BYTES_MAX:
        raise PeerProtocolError(
            f"a lease of {lease.bytes} bytes for {lease.dtype!r:.64}{list(lease.shape)} does not hold together"
        )
    return lease
