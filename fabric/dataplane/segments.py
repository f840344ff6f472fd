"""A port's arena, segment by segment: asked for when a sender lacks a slot, fetched when a reader meets a new one.

Order of a new one: fd from the daemon → mapped writable → `segment_seal` → readers may get it. An own segment that
stays empty is given back by the control thread (`idle_segments`). Any thread may call.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fabric import errors, limits
from fabric.dataplane.deadlines import asking_s, monotonic_ns
from fabric.dataplane.idle_segments import IdleSegments

if TYPE_CHECKING:
    from fabric.dataplane.connection import ControlConnection

log = logging.getLogger("fabric.segments")


def plan_segment(size_bytes: int) -> tuple[int, int]:
    """Return (slot_bytes, slot_count) of a segment for payloads of `size_bytes`.

    Slots are powers of two up to 1 MiB, then multiples of 1 MiB; a segment is 4 MiB, or eight slots up to 32 MiB,
    or two.
    """
    mib = 1 << 20
    if size_bytes > limits.SEGMENT_BYTES_MAX:
        raise errors.CapacityError(
            f"a message of {size_bytes} bytes needs a slot above SEGMENT_BYTES_MAX ({limits.SEGMENT_BYTES_MAX})",
            limit="SEGMENT_BYTES_MAX",
            size_bytes=size_bytes,
            limit_bytes=limits.SEGMENT_BYTES_MAX,
        )
    slot = limits.SLOT_BYTES_MIN
    while slot < size_bytes and slot < mib:
        slot *= 2
    if slot < size_bytes:
        slot = -(-size_bytes // mib) * mib
    total = max(4 * mib, min(32 * mib, 8 * slot), min(2 * slot, 256 * mib))
    return slot, max(1, min(limits.SLOTS_PER_SEGMENT_MAX, total // slot))


class Segments:
    """Own and foreign segments of one port."""

    def __init__(self, native: Any, connection: ControlConnection) -> None:
        self._native = native
        self._connection = connection
        self._lock = threading.Lock()
        self._own: dict[int, int] = {}  # segment → bytes
        self._idle = IdleSegments()
        self._looked_ns = 0  # for unused foreign segments
        self.full_count = 0

    def provide(self, need: Exception, deadline_ns: int = 0) -> None:
        """Do what a native `NeedSegment` asks for.

        Raises
        ------
        CapacityError
            A limit on arena memory is reached and no slot came free before `deadline_ns`.
        StaleHandleError
            The segment to read from no longer exists.
        """
        size_bytes, segment, group = (*need.args, 0, 0)[:3]
        if segment:
            self._fetch(int(segment))
        else:
            self._grow(int(size_bytes), int(group), deadline_ns)

    def give_back_idle(self) -> None:
        """Drop own segments that stayed empty for long, and foreign ones that nobody reads. Control thread."""
        now = monotonic_ns()
        if now - self._looked_ns >= limits.SEGMENT_IDLE_S * 1e9:
            self._looked_ns = now
            self._native.drop_unused_readers()
        if not self._own:
            return
        empty = {s: self._own[s] for s in self._native.idle_segments() if s in self._own}
        for segment in self._idle.due(empty, now / 1e9):
            self._drop(segment)

    def _grow(self, size_bytes: int, group: int, deadline_ns: int) -> None:
        with self._growing(deadline_ns):
            slot_bytes, slot_count = plan_segment(size_bytes)
            if len(self._own) >= limits.SEGMENTS_PER_PORT_MAX:
                raise errors.CapacityError(
                    f"this port holds SEGMENTS_PER_PORT_MAX ({limits.SEGMENTS_PER_PORT_MAX}) segments",
                    limit="SEGMENTS_PER_PORT_MAX",
                )
            fields = {"slot_bytes": slot_bytes, "slot_count": slot_count, "group": group}
            try:
                answer, fds = self._connection.request("segment_new", fields, asking_s(deadline_ns))
            except errors.CapacityError:
                if slot_count == 1:
                    raise
                # There may be room for this one message where there is none for its like.
                slot_count = 1
                answer, fds = self._connection.request(
                    "segment_new", {**fields, "slot_count": 1}, asking_s(deadline_ns)
                )
            segment = int(answer["segment"])
            self._add(segment, fds, writable=True, group=group)
            self._own[segment] = slot_bytes * slot_count
            self._idle.keep_bytes = int(answer.get("keep_bytes", 0))
            self._connection.request("segment_seal", {"segment": segment}, asking_s(deadline_ns))

    @contextmanager
    def _growing(self, deadline_ns: int) -> Iterator[None]:
        """Two senders that lack the same size get one segment; neither waits longer than it may for the other."""
        if not self._lock.acquire(timeout=asking_s(deadline_ns)):
            raise errors.DeadlineExceeded("another sender of this port waits for arena memory")
        try:
            yield
        finally:
            self._lock.release()

    def _fetch(self, segment: int) -> None:
        answer_fds = self._connection.request("segment_get", {"segment": segment})[1]
        self._add(segment, answer_fds, writable=False)

    def _add(self, segment: int, fds: list[int], writable: bool, group: int = 0) -> None:
        if len(fds) != 1:
            raise errors.PeerProtocolError(f"segment {segment} came with {len(fds)} descriptors")
        try:
            self._native.add_segment(segment, fds[0], writable, group)
        finally:
            os.close(fds[0])

    def _drop(self, segment: int) -> None:
        self._idle.forget(segment)
        try:
            self._native.drop_segment(segment)
        except errors.FabricError as error:
            log.debug("segment %d is in use again: %s", segment, error)
            return
        self._own.pop(segment, None)
        self._connection.post("segment_drop", {"segment": segment})
