"""The roles of one-sided leases: `exposer` gives and takes back memory, `getter` reads and writes it from anywhere.

Every exposed region says by itself whose it is and whether it is whole: a checksum, the region's nonce, a version, the
writer, and random bytes. A reference travels in a message and in a file; the file's suffix says the lease's state:

``.live`` → (``.going`` → revoked, or its port closed → memory overwritten) → ``.gone``

So a getter knows before it reads whether it may get data (live), may or may not (going), or must not (gone, or its
exposer's process has ended). Bytes that come must be whole and of that region, whatever happened meanwhile.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

import fabric
from fabric import _native, errors
from tests.soak.role import COPY_BYTES_PER_S, DEADLINE_S, MIB, RETRY_S, Actor, Offer, declare

HEAD = struct.Struct("<IIQQQ")  # checksum of what follows it, 0, nonce, version, writer
SIZES = {40: 2, 1000: 4, 5000: 4, 70_000: 4, MIB: 2, 4 * MIB: 0.5}  # of regions
LARGE = 12 * MIB  # in several parts between nodes, where a put is not one: read-only
LARGE_SHARE = 0.03
REGIONS_MAX = 6  # of one exposer
FILES_KEPT = 10  # of ended leases, an exposer
KNOWN_MAX = 40  # references that one getter chooses from
TURN_S = 0.25  # of an exposer
LOOK_S = 0.5  # between two looks into the folder
POISON = 0xEE
DYING_S = 2.0  # a process that is being killed may have lost its leases before it is seen dead


class Region(NamedTuple):
    """What is written beside a lease."""

    nonce: int
    pid: int
    started: int  # clock ticks after boot, so that a later process of that number is another
    lease: fabric.Lease


# ------------------------------------------------------------------ bytes
def build(nonce: int, version: int, writer: int, body: Any) -> Any:
    """Return the bytes of one version of a region."""
    data = np.empty(HEAD.size + len(body), np.uint8)
    HEAD.pack_into(data, 0, 0, 0, nonce, version, writer)
    data[HEAD.size :] = body
    struct.pack_into("<I", data, 0, _native.crc32c(data[4:]))
    return data


def judge(data: Any, nonce: int) -> str | None:
    """Return what is wrong with bytes that a get returned, or None."""
    crc, _, found, version, writer = HEAD.unpack_from(data, 0)
    if crc != _native.crc32c(data[4:]):
        return f"torn or strange bytes: nonce {found}, version {version}, writer {writer}"
    return None if found == nonce else f"bytes of region {found}, asked for {nonce}"


def born(pid: int) -> int:
    """Return when a process started, in ticks after boot; 0 when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


# ------------------------------------------------------------------ files
def state_of(path: Path, region: Region) -> str:
    """Return ``live``, ``going`` or ``gone``; each is looked for in the order in which they follow."""
    if born(region.pid) != region.started:
        return "gone"
    for state in ("live", "going"):
        if path.with_suffix(f".{state}").exists():
            return state
    return "gone"


def save(path: Path, region: Region) -> None:
    """Write a reference so that it is seen whole or not at all."""
    draft = path.with_suffix(".draft")
    draft.write_bytes(msgspec.msgpack.encode(region))
    draft.rename(path.with_suffix(".live"))


def load(path: Path) -> Region | None:
    """Read a reference; None when its file has been renamed or taken away."""
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=Region)
    except FileNotFoundError:
        return None


# ------------------------------------------------------------------ the exposing end
class Exposer:
    """The leases of one port and the files beside them."""

    def __init__(self, actor: Actor, port: Any, number: Iterator[int]) -> None:
        self._actor = actor
        self._port = port
        self._number = number
        self._folder = Path(actor.job["folder"])
        self._born = born(actor.pid)
        self.live: dict[Path, fabric.Lease] = {}

    def expose(self) -> Offer:
        """Expose a new region, write its file, and return what to tell the getters."""
        actor, count = self._actor, next(self._number)
        is_large = actor.chance.random() < LARGE_SHARE
        size = LARGE if is_large else actor.chance.choices(list(SIZES), list(SIZES.values()))[0]
        start = actor.chance.randrange(0, len(actor.bytes) - size)
        nonce = actor.job["seed"] << 32 | count
        data = build(nonce, 0, actor.job["seed"], actor.bytes[start : start + size - HEAD.size])
        with actor.within("expose", fabric.limits.ATTACH_S):
            lease = self._port.expose(data, writable=not is_large and actor.chance.random() < 0.6)
        path = self._folder / f"{actor.job['name']}-{count:06}"
        self.live[path] = lease
        save(path, Region(nonce, actor.pid, self._born, lease))
        return Offer(path.name, lease)

    def revoke(self, path: Path) -> None:
        """Take one back, and overwrite what nobody may read any more."""
        lease = self.live.pop(path)
        path.with_suffix(".live").rename(path.with_suffix(".going"))
        array = lease.array
        lease.revoke()
        array[:] = POISON
        path.with_suffix(".going").rename(path.with_suffix(".gone"))

    def leave(self) -> None:
        """Say that all of them may end from now on; `tidy` says that they have."""
        for path in self.live:
            path.with_suffix(".live").rename(path.with_suffix(".going"))
        self.live.clear()


def tidy(actor: Actor) -> None:
    """Of an actor without a port: all its leases have ended. Old files go."""
    folder, own = Path(actor.job["folder"]), f"{actor.job['name']}-*"
    for path in folder.glob(f"{own}.going"):
        path.rename(path.with_suffix(".gone"))
    for path in sorted(folder.glob(f"{own}.gone"))[:-FILES_KEPT]:
        path.unlink()


def exposer(actor: Actor) -> None:
    """Expose, announce and revoke regions; what is left ends with the port, or the process."""
    job = actor.job
    number = iter(range(1, 1 << 31))

    def serve(port: Any) -> None:
        tidy(actor)
        declare(port, job)
        out = port.sender(job["channel"], Offer)
        actor.report(ready=True)
        mine = Exposer(actor, port, number)
        try:
            while not actor.leaving.is_set():
                if len(mine.live) >= actor.chance.randrange(1, REGIONS_MAX + 1):
                    mine.revoke(actor.chance.choice(sorted(mine.live)))
                    tidy(actor)
                else:
                    offer = mine.expose()
                    with actor.within("send", DEADLINE_S):
                        out.send(offer, deadline=DEADLINE_S)
                actor.beat()
                actor.pause(TURN_S)
        finally:
            mine.leave()

    actor.work(serve)
    tidy(actor)


# ------------------------------------------------------------------ the reading end
class Getter:
    """What one port reads and writes of others."""

    def __init__(self, actor: Actor, port: Any) -> None:
        self._actor = actor
        self._port = port
        self._folder = Path(actor.job["folder"])
        self._node = port.number >> 32
        self._looked_at = 0.0
        self.known: dict[str, Region] = {}

    def look(self) -> None:
        """Take in the references that are in files: also those of processes that have ended."""
        if time.monotonic() - self._looked_at < LOOK_S:
            return
        self._looked_at = time.monotonic()
        files = sorted(p for p in self._folder.iterdir() if p.suffix in (".live", ".going", ".gone"))  # fmt: skip
        for path in self._actor.chance.sample(files, min(len(files), KNOWN_MAX // 2)):
            region = None if path.stem in self.known else load(path)
            if region is not None:
                self.known[path.stem] = region
        while len(self.known) > KNOWN_MAX:
            self.known.pop(next(iter(self.known)))

    def hear(self, offer: Offer) -> None:
        """Take in a reference that came in a message: the same as the one in the file."""
        region = load(self._folder / f"{offer.name}.live")
        if region is not None:
            if region.lease != offer.lease:
                sent = f"was sent as {region.lease}"
                self._actor.violate(f"the lease of {offer.name} came as {offer.lease}, {sent}")
            self.known[offer.name] = region._replace(lease=offer.lease)

    def work(self) -> None:
        """Read or write one region, and judge what comes of it."""
        actor = self._actor
        if not self.known:
            return
        name = actor.chance.choice(sorted(self.known))
        region, path = self.known[name], self._folder / name
        before = state_of(path, region)
        is_put = region.lease.writable and actor.chance.random() < 0.4
        try:
            with actor.within("put" if is_put else "get", DEADLINE_S):
                self._put(region) if is_put else self._get(name, region)
        except errors.StaleHandleError as error:
            self._check_stale(path, region, error)
            return
        except (errors.DeadlineExceeded, errors.CapacityError, errors.BrokenError):
            self._port.check()  # lost: attach anew
            actor.pause(RETRY_S)
            return
        except (errors.ConfigError, errors.TypeMismatchError, errors.RemoteError) as error:
            actor.violate(f"{name} is {before}, and it was said to be none: {error!r}")
            return
        if before == "gone":
            actor.violate(f"{name} had ended, and a {'put' if is_put else 'get'} of it went well")
        actor.beat()

    def _get(self, name: str, region: Region) -> None:
        lease, ranges, into = region.lease, None, None
        if self._actor.chance.random() < 0.5:
            cut = self._actor.chance.randrange(0, lease.bytes)
            ranges = [(0, cut), (cut, lease.bytes - cut)]
            into = np.zeros(lease.bytes, np.uint8)
        data = self._port.get(lease, ranges, into=into, deadline=DEADLINE_S)
        wrong = judge(data, region.nonce)
        if wrong:
            where = f"{lease.bytes} bytes of node {lease.node} on node {self._node}"
            self._actor.violate(f"get of {name}, {where}: {wrong}")

    def _put(self, region: Region) -> None:
        actor, size = self._actor, region.lease.bytes - HEAD.size
        start = actor.chance.randrange(0, len(actor.bytes) - size)
        body = actor.bytes[start : start + size]
        data = build(region.nonce, time.monotonic_ns(), actor.job["seed"], body)
        self._port.put(region.lease, None, data, deadline=DEADLINE_S)

    def _check_stale(self, path: Path, region: Region, error: errors.FabricError) -> None:
        """On one node, a lease is stale only when it was revoked, its port closed, or its process or node ended."""
        if region.lease.node != self._node or region.lease.incarnation < self._node_since():
            return
        deadline = time.monotonic() + DYING_S
        while state_of(path, region) == "live":
            if time.monotonic() > deadline:
                self._actor.violate(f"{path.name} is live, and a get on its node said {error!r}")
                return
            self._actor.pause(0.05)

    def _node_since(self) -> int:
        """Return when this node was started (ns wall clock): what its ports exposed before is lost with it."""
        return int(Path(self._actor.job["since"]).read_text())


def getter(actor: Actor) -> None:
    """Read and write whatever is exposed or has been."""
    job = actor.job

    def serve(port: Any) -> None:
        declare(port, job)
        inn = port.receiver(job["channel"], Offer)
        actor.report(ready=True)
        mine = Getter(actor, port)
        while not actor.leaving.is_set():
            mine.look()
            with actor.within("receive", 0.02):
                offer = inn.receive(timeout=0.02)
            if offer is not None:
                mine.hear(offer)
                offer.release()
            mine.work()
            actor.pause(job["pause_s"] + 4 * MIB / COPY_BYTES_PER_S)

    actor.work(serve)
