"""The arena segments of a node: who owns them, who may map them, what a tenant may have."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from fabric import errors, limits, steps
from fabric.controlplane import descriptors
from fabric.controlplane.context import Context
from fabric.controlplane.ports import Port

HOLDERS_NAMED = 5  #: in the error when memory is exhausted


@dataclass(eq=False)
class Segment:
    """One memfd of slots. `is_sealed`: its writer has mapped it, readers may."""

    segment: int
    port: int
    tenant: int
    slot_bytes: int
    slot_count: int
    group: int = 0  #: 0 control and token, 1 embedding and bulk
    is_sealed: bool = False
    fd: int = -1

    @property
    def size_bytes(self) -> int:
        """Payload bytes of the segment."""
        return self.slot_bytes * self.slot_count


class SegmentTable:
    """All segments by number; the keeper holds a reference to each."""

    def __init__(
        self, context: Context, arena_bytes: int = limits.ARENA_BYTES_PER_TENANT_MAX
    ) -> None:
        self._context = context
        self._arena_bytes = arena_bytes
        self.name_of: Callable[[int], str] = str
        self.on_dropped: Callable[[int], None] = lambda number: None
        self._segments: dict[int, Segment] = {}

    def create(self, port: Port, slot_bytes: int, slot_count: int, group: int = 0) -> Segment:
        """Make a segment for `port`, writable until sealed; raises `CapacityError` naming the limit."""
        self._check(port, slot_bytes, slot_count)
        self._check_quota(port.tenant, slot_bytes * slot_count, group)
        number = self._context.numbers.take("segment")
        segment = Segment(number, port.port, port.tenant, slot_bytes, slot_count, group)
        (segment.fd,) = descriptors.make(
            f"a segment of {port.name!r}",
            lambda: int(
                self._context.native.create_segment(
                    number, port.port, port.incarnation, port.tenant, slot_bytes, slot_count
                )
            ),
        )
        self._segments[number] = segment
        self._keep(segment, segment.fd)
        steps.at("segment.kept")
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

    def drop_unread(self, living: set[int], named: set[int]) -> bool:
        """Give back what ports that are gone have left, but for what messages in readers' hands name.

        Parameters
        ----------
        living : set of int
            Ports that keep their segments.
        named : set of int
            Segments that readers still need.

        Returns
        -------
        bool
            Whether something is left to look at again.
        """
        left = [s for s in self._segments.values() if s.port not in living]
        for segment in left:
            if segment.segment not in named:
                self._forget(segment)
        return any(s.segment in named for s in left)

    def of(self, port: int) -> list[Segment]:
        """Return the segments of a port."""
        return [s for s in self._segments.values() if s.port == port]

    def all(self) -> list[Segment]:
        """Return every segment."""
        return list(self._segments.values())

    @property
    def keep_bytes(self) -> int:
        """How much a port may keep although it is empty, so that the next message finds its pages."""
        return int(self._arena_bytes * limits.SEGMENTS_KEPT_SHARE)

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

    def _check_quota(self, tenant: int, size_bytes: int, group: int) -> None:
        """Refuse what exceeds the tenant's bytes; bulk leaves ARENA_RESERVE of them to control and token."""
        mine = [s for s in self._segments.values() if s.tenant == tenant]
        used = sum(s.size_bytes for s in mine)
        reserved = int(self._arena_bytes * limits.ARENA_RESERVE)
        bulk = sum(s.size_bytes for s in mine if s.group)
        if group and bulk + size_bytes > self._arena_bytes - reserved:
            told = self._full(tenant, mine, f"{bulk} bytes for embedding and bulk", "ARENA_RESERVE")
            raise self._sized(told, size_bytes, self._arena_bytes - reserved)
        if used + size_bytes > self._arena_bytes:
            told = self._full(tenant, mine, f"{used} bytes", "ARENA_BYTES_PER_TENANT_MAX")
            raise self._sized(told, size_bytes, self._arena_bytes)

    @staticmethod
    def _sized(
        error: errors.CapacityError, size_bytes: int, limit_bytes: int
    ) -> errors.CapacityError:
        """Say how much was asked for and could be had at most: what is larger need not be waited for."""
        context = {**error.context, "size_bytes": size_bytes, "limit_bytes": limit_bytes}
        return errors.CapacityError(
            f"a segment of {size_bytes} bytes, of at most {limit_bytes}: {error.message}", **context
        )

    def _full(
        self, tenant: int, segments: list[Segment], used: str, limit: str
    ) -> errors.CapacityError:
        sizes = Counter[int]()
        for segment in segments:
            sizes[segment.port] += segment.size_bytes
        holders = [
            f"{self.name_of(port)}: {size}" for port, size in sizes.most_common(HOLDERS_NAMED)
        ]
        return errors.CapacityError(
            f"user {tenant} holds {used} of arenas on this node, --arena-bytes is {self._arena_bytes}, of which"
            f" {limits.ARENA_RESERVE:.1%} are for control and token alone; held by {', '.join(holders) or 'nobody'};"
            " release messages, close ports or give more",
            limit=limit,
            holders=holders,
        )

    def _keep(self, segment: Segment, fd: int = -1) -> None:
        value = asdict(segment)
        del value["fd"]
        self._context.keeper.put(f"segment/{segment.segment}", value, fd)

    def _forget(self, segment: Segment) -> None:
        self._segments.pop(segment.segment, None)
        self._context.keeper.drop(f"segment/{segment.segment}")
        os.close(segment.fd)
        self.on_dropped(segment.segment)
