"""Memory of a node that outlives the processes that use it: journals of joins, caches of tenants.

A memfd each, held by the keeper, so that a restarted daemon goes on with it and the pages go when the node ends. Its
users map it and write as they please, all of one user; what stands in it says for itself what is whole.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from dataclasses import dataclass
from typing import Any

from fabric import errors, limits
from fabric.controlplane import descriptors
from fabric.controlplane.context import Context
from fabric.controlplane.modules import ModuleTable
from fabric.controlplane.ports import Port
from fabric.dataplane.cache_layout import CacheMemory, cache_bytes
from fabric.worker.join_journal import HEAD_BYTES, journal_bytes, read_counters
from fabric.worker.supervisor import State


@dataclass(eq=False)
class Shared:
    """One memory. `kind`: join or cache; `name`: the join's process, or the tenant."""

    kind: str
    name: str
    tenant: int
    size_bytes: int
    fd: int = -1

    @property
    def key(self) -> str:
        """Where the keeper has it."""
        return f"shared/{self.kind}/{self.tenant}/{self.name}"


class SharedMemories:
    """Belongs to the daemon's loop. `capacity_bytes`: data of one tenant's cache."""

    def __init__(
        self, context: Context, modules: ModuleTable, capacity_bytes: int = limits.CACHE_BYTES
    ) -> None:
        self._context = context
        self._modules = modules
        self._capacity_bytes = capacity_bytes
        self._known: dict[str, Shared] = {}

    def serve(self, port: Port, fields: dict[str, Any]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Answer `shared_open {kind, name}`; a process gets its tenant's memory, and no other.

        Raises
        ------
        ConfigError
            There is no such kind, or a join asks for another's journal.
        CapacityError
            No descriptor or memory is left for it.
        """
        kind = str(fields.get("kind"))
        if kind == "cache":
            found = self.open("cache", "", port.tenant, cache_bytes(self._capacity_bytes))
        elif kind == "join":
            name = str(fields.get("name"))
            if port.owner != f"module-{name}":
                raise errors.ConfigError(
                    f"{port.name!r} is not the host of join {name!r}", join=name
                )
            self._check_alone(name)
            found = self.open("join", name, port.tenant, journal_bytes())
        else:
            raise errors.ConfigError(f"there is no shared memory of kind {kind!r}", kind=kind)
        return {"bytes": found.size_bytes}, (found.fd,)

    def open(self, kind: str, name: str, tenant: int, size_bytes: int) -> Shared:
        """Return a memory, made at first use; its pages take room only once they are written."""
        wanted = Shared(kind, name, tenant, size_bytes)
        known = self._known.get(wanted.key)
        if known is not None:
            return known
        self._make_room()
        (wanted.fd,) = descriptors.make(
            f"the {kind} of {name or tenant!r}", lambda: _memfd(f"fabric-{kind}", size_bytes)
        )
        self._known[wanted.key] = wanted
        value = {k: v for k, v in vars(wanted).items() if k != "fd"}
        self._context.keeper.put(wanted.key, value, wanted.fd)
        return wanted

    def all(self, kind: str) -> list[Shared]:
        """Return the memories of a kind."""
        return [shared for shared in self._known.values() if shared.kind == kind]

    def join_counters(self) -> dict[str, dict[str, int]]:
        """Return the counters of every join of this node, by the name of its process."""
        found = {}
        for shared in self.all("join"):
            counters = read_counters(os.pread(shared.fd, HEAD_BYTES, 0))
            if counters and self._modules.find("module", shared.name) is not None:
                found[shared.name] = counters
        return found

    def cache_counters(self) -> dict[int, dict[str, int]]:
        """Return the counters of every cache of this node, by tenant."""
        return {
            shared.tenant: CacheMemory(_mapped(shared)).counters() for shared in self.all("cache")
        }

    def restore(self, items: dict[str, tuple[dict[str, Any], int]]) -> None:
        """Take back what the keeper held."""
        for key, (value, fd) in items.items():
            if key.startswith("shared/") and fd >= 0:
                self._known[key] = Shared(**value, fd=fd)

    def _check_alone(self, name: str) -> None:
        """Refuse a second process of a join: each would see a part of its channels, and no request whole."""
        own = self._modules.find("module", name)
        for other in self._modules.all("module"):
            is_twin = own is not None and other.about.get("name") == own.about.get("name")
            if is_twin and other is not own and other.life.state is State.READY:
                raise errors.ConfigError(
                    f"join {name!r}: {other.name!r} runs it already, and a join is one process:"
                    f" fabricctl module scale {other.about['name']} 1",
                    join=name,
                )

    def _make_room(self) -> None:
        """Give back the journals of joins that are gone, once there are many: a join that is changed comes back."""
        if len(self.all("join")) < limits.JOINS_MAX:
            return
        for shared in self.all("join"):
            if self._modules.find("module", shared.name) is None:
                del self._known[shared.key]
                self._context.keeper.drop(shared.key)
                os.close(shared.fd)
        if len(self.all("join")) >= limits.JOINS_MAX:
            raise errors.CapacityError(
                f"JOINS_MAX ({limits.JOINS_MAX}) joins run on this node: move some to another",
                limit="JOINS_MAX",
            )


def _mapped(shared: Shared) -> mmap.mmap:
    """Map a memory for one look; the mapping goes with the last array over it."""
    return mmap.mmap(shared.fd, shared.size_bytes)


def _memfd(name: str, size_bytes: int) -> int:
    """Return a memfd whose size is fixed: no user of it can cut it off under the others."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        fcntl.fcntl(
            fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        )
    except OSError:
        os.close(fd)
        raise
    return fd
