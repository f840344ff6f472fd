"""The arena segments of a node: who owns them, who may map them, what a tenant may have."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from fabric import errors, limits
from fabric.controlplane.context import Context
from fabric.controlplane.ports import Port


@dataclass(eq=False)
class Segment:
    """One memfd of slots. `is_sealed`: its writer has mapped it, readers may."""

    segment: int
    port: int
    tenant: int
    slot_bytes: int
    slot_count: int
    is_sealed: bool = False
    fd: int = -1

    @property
    def size_bytes(self) -> int:
        """Payload bytes of the segment."""
        return self.slot_bytes * self.slot_count


class SegmentTable:
    """All segments by number; the keeper holds a reference to each."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._segments: dict[int, Segment] = {}

    def create(self, port: Port, slot_bytes: int, slot_count: int) -> Segment:
        """Make a segment for `port`, writable until sealed; raises `CapacityError` naming the limit."""
        self._check(port, slot_bytes, slot_count)
        number = self._context.numbers.take("segment")
        segment = Segment(number, port.port, port.tenant, slot_bytes, slot_count)
        segment.fd = self._context.native.create_segment(
            number, port.port, port.incarnation, port.tenant, slot_bytes, slot_count
        )
        self._segments[number] = segment
        self._keep(segment, segment.fd)
        return segment

    def publish(self, port: Port, number: int) -> None:
        """Let readers have a segment of the gateway without sealing it: a restarted engine must map it again."""
        segment = self._own(port, number)
        segment.is_sealed = True
        self._keep(segment)

    def seal(self, port: Port, number: int) -> None:
        """Forbid further writable mappings; from now on readers get it."""
        segment = self._own(port, number)
        if not segment.is_sealed:
            self._context.native.seal_segment(segment.fd)
            segment.is_sealed = True
            self._keep(segment)

    def readable(self, tenant: int, number: int) -> Segment:
        """Return a sealed segment of the same tenant; `StaleHandleError` when it is gone."""
        segment = self._segments.get(number)
        if segment is None or not segment.is_sealed:
            raise errors.StaleHandleError(
                f"segment {number} is gone or not published", segment=number
            )
        if segment.tenant != tenant:
            raise errors.ConfigError(f"segment {number} belongs to another user", segment=number)
        return segment

    def open_readable(self, segment: Segment) -> int:
        """Return a new read-only descriptor of a segment, for a reader; the caller closes it."""
        return os.open(f"/proc/self/fd/{segment.fd}", os.O_RDONLY | os.O_CLOEXEC)

    def drop(self, port: Port, number: int) -> None:
        """Give a segment back; who has it mapped keeps its mapping."""
        self._forget(self._own(port, number))

    def drop_of(self, port: Port) -> None:
        """Give back everything of a dead port."""
        for segment in [s for s in self._segments.values() if s.port == port.port]:
            self._forget(segment)

    def of(self, port: int) -> list[Segment]:
        """Return the segments of a port."""
        return [s for s in self._segments.values() if s.port == port]

    def total_bytes(self) -> int:
        """Return the size of all segments together."""
        return sum(s.size_bytes for s in self._segments.values())

    def restore(self, items: dict[str, tuple[dict[str, Any], int]]) -> None:
        """Take back what the keeper held."""
        for key, (value, fd) in items.items():
            if key.startswith("segment/") and fd >= 0:
                self._segments[value["segment"]] = Segment(**{**value, "fd": fd})

    def _own(self, port: Port, number: int) -> Segment:
        segment = self._segments.get(number)
        if segment is None or segment.port != port.port:
            raise errors.StaleHandleError(f"segment {number} is not yours", segment=number)
        return segment

    def _check(self, port: Port, slot_bytes: int, slot_count: int) -> None:
        if not 1 <= slot_count <= limits.SLOTS_PER_SEGMENT_MAX or slot_bytes < 1:
            raise errors.CapacityError(
                f"{slot_count} slots of {slot_bytes} bytes; a segment has 1 to {limits.SLOTS_PER_SEGMENT_MAX} slots",
                limit="SLOTS_PER_SEGMENT_MAX",
            )
        if slot_bytes * slot_count > limits.SEGMENT_BYTES_MAX:
            raise errors.CapacityError(
                f"a segment of {slot_bytes * slot_count} bytes, SEGMENT_BYTES_MAX is {limits.SEGMENT_BYTES_MAX}",
                limit="SEGMENT_BYTES_MAX",
            )
        if len(self.of(port.port)) >= limits.SEGMENTS_PER_PORT_MAX:
            raise errors.CapacityError(
                f"{port.name} has SEGMENTS_PER_PORT_MAX ({limits.SEGMENTS_PER_PORT_MAX}) segments",
                limit="SEGMENTS_PER_PORT_MAX",
            )
        used = sum(s.size_bytes for s in self._segments.values() if s.tenant == port.tenant)
        if used + slot_bytes * slot_count > limits.ARENA_BYTES_PER_TENANT_MAX:
            raise errors.CapacityError(
                f"user {port.tenant} holds {used} bytes of arenas, ARENA_BYTES_PER_TENANT_MAX is"
                f" {limits.ARENA_BYTES_PER_TENANT_MAX}; release messages or close ports",
                limit="ARENA_BYTES_PER_TENANT_MAX",
            )

    def _keep(self, segment: Segment, fd: int = -1) -> None:
        value = asdict(segment)
        del value["fd"]
        self._context.keeper.put(f"segment/{segment.segment}", value, fd)

    def _forget(self, segment: Segment) -> None:
        self._segments.pop(segment.segment, None)
        self._context.keeper.drop(f"segment/{segment.segment}")
        os.close(segment.fd)
