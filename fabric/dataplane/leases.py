"""What a port exposes to others, and what it reads of theirs: `Port.expose`, `Port.get`, `Port.put`.

On one node a reader maps the exposer's segment (see `lease_memory`); from another node it asks the exposer over an
internal request channel of the exposer's node (see `lease_service`). Any thread.
"""

from __future__ import annotations

import collections
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

from fabric import errors, limits
from fabric.dataplane.deadlines import absolute_ns, asking_s, monotonic_ns
from fabric.dataplane.lease_memory import LeaseMemory, slot_bytes
from fabric.dataplane.lease_ranges import Ranges, checked, flat_bytes
from fabric.messages.lease import Lease, exposures, issued
from fabric.messages.tensor import to_array

if TYPE_CHECKING:
    from fabric.dataplane.client import Port
    from fabric.dataplane.lease_service import LeaseClient, LeaseServer

log = logging.getLogger("fabric.leases")


class Exposed:
    """One lease that this process gave: its memory and how it ends."""

    def __init__(self, leases: Leases, lease: Lease, memory: LeaseMemory, array: Any) -> None:
        self.lease = lease
        self.memory = memory
        self.array = array
        self._leases = leases

    def revoke(self) -> None:
        """Let nobody read it any more; the array stays as long as somebody here holds it."""
        self._leases.revoke(self)


class Leases:
    """Leases of one port, both ways."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self.node = port.number >> 32
        self._lock = threading.Lock()
        self._exposed: dict[int, Exposed] = {}
        self._mapped: collections.OrderedDict[tuple[int, int, int], LeaseMemory] = (
            collections.OrderedDict()
        )
        self._server: LeaseServer | None = None
        self._clients: dict[int, LeaseClient] = {}
        self._next = 1

    # ---- exposing

    def expose(self, value: Any, writable: bool) -> Lease:
        """See `Port.expose`."""
        import numpy

        array = to_array(value)[1]
        if array.nbytes > limits.SEGMENT_BYTES_MAX - slot_bytes(0):
            raise errors.CapacityError(
                f"an array of {array.nbytes} bytes, SEGMENT_BYTES_MAX is {limits.SEGMENT_BYTES_MAX}",
                limit="SEGMENT_BYTES_MAX", size_bytes=array.nbytes, limit_bytes=limits.SEGMENT_BYTES_MAX,
            )  # fmt: skip
        with self._lock:
            if len(self._exposed) >= limits.LEASES_PER_PORT_MAX:
                raise errors.CapacityError(
                    f"port {self._port.name!r} exposes LEASES_PER_PORT_MAX ({limits.LEASES_PER_PORT_MAX}) arrays; "
                    "revoke some",
                    limit="LEASES_PER_PORT_MAX",
                )
            if self._server is None:
                from fabric.dataplane.lease_service import LeaseServer

                self._server = LeaseServer(self._port, self.node, self.exposed)
            number, self._next = self._next, self._next + 1
            key = (self._port.number, self._port.incarnation, number)
            segment, memory = self._new_memory(key, array.nbytes, writable)
            lease = Lease(
                self.node, *key, segment, self._server.endpoint, array.nbytes, array.dtype.str, array.shape, writable,
            )  # fmt: skip
            shared = memory.data.view(array.dtype).reshape(array.shape)
            numpy.copyto(shared, array)
            memory.publish()
            found = self._exposed[number] = Exposed(self, lease, memory, shared)
            issued[key[:2]] = number
            exposures[key] = found
        return lease

    def exposed(self, number: int) -> Exposed | None:
        """Return what this port exposes under a number."""
        return self._exposed.get(number)

    def revoke(self, found: Exposed) -> None:
        """End a lease of this port. Idempotent."""
        with self._lock:
            if self._exposed.pop(found.lease.lease, None) is None:
                return
            exposures.pop(found.lease.key, None)
            found.memory.withdraw()
            found.memory.close()
        try:
            if not self._port.is_closed:
                self._port.connection.post("segment_drop", {"segment": found.lease.segment})
        except errors.FabricError as error:  # the daemon is gone, and drops what this port had
            log.debug("segment %d is not given back: %s", found.lease.segment, error)

    def _new_memory(
        self, key: tuple[int, int, int], size_bytes: int, writable: bool
    ) -> tuple[int, LeaseMemory]:
        fields = {"slot_bytes": slot_bytes(size_bytes), "slot_count": 1, "group": 1}
        answer, fds = self._port.request("segment_new", fields)
        segment = int(answer["segment"])
        try:
            memory = LeaseMemory(fds[0], key, size_bytes, writable=True)
        finally:
            for fd in fds:
                os.close(fd)
        self._port.request("segment_seal", {"segment": segment, "writable": writable})
        return segment, memory

    # ---- reading and writing

    def get(self, lease: Lease, ranges: Any, into: Any, deadline: float | None) -> Any:
        """See `Port.get`."""
        import numpy

        deadline_ns = absolute_ns(deadline) or monotonic_ns()
        plan = Ranges(ranges, checked(lease).bytes)
        if into is None:
            target = numpy.empty(plan.total, numpy.uint8)
        else:
            target = flat_bytes(into, "the target of a get", writable=True)
            if target.nbytes != plan.total:
                raise errors.TypeMismatchError(
                    f"the target of a get has {target.nbytes} bytes, the ranges have {plan.total}"
                )
        if lease.node == self.node:
            memory = self._memory_of(lease, deadline_ns)
            self._guard(
                lease,
                lambda: memory.read(
                    lambda data: plan.copy_out(data, target), lease.writable, deadline_ns
                ),
            )
        else:
            self._client(lease.node).get(lease, plan, target, deadline_ns)
        if into is not None:
            return into
        return target.view(lease.dtype).reshape(lease.shape) if plan.is_whole else target

    def put(self, lease: Lease, ranges: Any, data: Any, deadline: float | None) -> None:
        """See `Port.put`."""
        deadline_ns = absolute_ns(deadline) or monotonic_ns()
        plan = Ranges(ranges, checked(lease).bytes)
        source = flat_bytes(data, "the data of a put")
        if not lease.writable:
            raise errors.ConfigError(
                "the lease is read-only; its owner must say port.expose(array, writable=True)"
            )
        if source.nbytes != plan.total:
            raise errors.TypeMismatchError(
                f"the data of a put has {source.nbytes} bytes, the ranges have {plan.total}"
            )
        if lease.node == self.node:
            memory = self._memory_of(lease, deadline_ns)
            self._guard(
                lease,
                lambda: memory.write(
                    lambda own: plan.copy_in(source, own), *plan.hull, deadline_ns
                ),
            )
        else:
            self._client(lease.node).put(lease, plan, source, deadline_ns)

    def tick(self) -> None:
        """Let go of mappings whose exposer is gone. Control thread: it must not wait for who waits for it."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            for key, memory in list(self._mapped.items()):
                if not memory.is_live():
                    del self._mapped[key]
                    memory.close()
        finally:
            self._lock.release()

    def revoke_all(self) -> None:
        """End every lease of this port. Idempotent."""
        for found in list(self._exposed.values()):
            self.revoke(found)

    def close(self) -> None:
        """Revoke everything and forget every mapping. Idempotent."""
        self.revoke_all()
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
            server, self._server = self._server, None
            mapped, self._mapped = list(self._mapped.values()), collections.OrderedDict()
        for memory in mapped:
            memory.close()
        for client in clients:
            client.close()
        if server is not None:
            server.close()

    def _guard(self, lease: Lease, access: Any) -> None:
        try:
            access()
        except errors.StaleHandleError:
            with self._lock:
                memory = self._mapped.pop(lease.key, None)
            if memory is not None:
                memory.close()
            raise

    def _memory_of(self, lease: Lease, deadline_ns: int) -> LeaseMemory:
        """Return the mapping of a lease of this node, made at first use."""
        self._port.check()
        with self._lock:
            own = self._exposed.get(lease.lease)
            if own is not None and own.lease == lease:
                return own.memory
            known = self._mapped.get(lease.key)
            if known is not None and known.size_bytes == lease.bytes:
                self._mapped.move_to_end(lease.key)
                return known
        _, fds = self._port.request(
            "segment_get", {"segment": lease.segment}, asking_s(deadline_ns)
        )
        try:
            memory = LeaseMemory(fds[0], lease.key, lease.bytes, lease.writable)
            try:
                memory.check()
            except errors.StaleHandleError:
                memory.close()
                raise
        except PermissionError as error:
            _check_sealed(fds[0], lease)
            raise errors.ConfigError("the lease says writable, its segment is not") from error
        finally:
            for fd in fds:
                os.close(fd)
        with self._lock:
            raced = self._mapped.pop(lease.key, None)
            if raced is not None:
                raced.close()
            self._mapped[lease.key] = memory
            while len(self._mapped) > limits.LEASES_MAPPED_MAX:
                self._mapped.popitem(last=False)[1].close()
        return memory

    def _client(self, node: int) -> LeaseClient:
        from fabric.dataplane.lease_service import LeaseClient

        with self._lock:
            if node not in self._clients:
                self._clients[node] = LeaseClient(self._port, node)
            return self._clients[node]


def _check_sealed(fd: int, lease: Lease) -> None:
    """Raise `StaleHandleError` when a sealed segment is not that of the lease: its number is another's by now."""
    memory = LeaseMemory(fd, lease.key, lease.bytes, False)
    try:
        memory.check()
    finally:
        memory.close()
