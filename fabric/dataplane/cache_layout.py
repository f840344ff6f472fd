"""The bytes of a tenant's cache: a head, rows of its users, columns of its entries, owners of blocks, blocks.

No lock and no decision here: views over shared memory, and what is where. Columns, not records: a look-up is one
comparison over a column of 32 KiB, so there is no index that a kill could leave half changed.

| part | what |
|---|---|
| head, 4096 bytes | 8-byte words: magic, blocks, bytes of a block, hand, births, evictions, clears |
| users | `limits.CACHE_USERS_MAX` rows of 64 bytes: pid, then the counters of `USER_COUNTERS`; one writer each |
| entries | columns of 8-byte words, `limits.CACHE_ENTRIES_MAX` each: see `COLUMNS` |
| owners | 4 bytes a block: number of the entry that has it, from 1; an entry's blocks are in rising order |
| blocks | data |
"""

from __future__ import annotations

from typing import Any, Final

from fabric import limits

MAGIC: Final = 0x31484341_4C424146
HEAD_BYTES: Final = 4096
USER_BYTES: Final = 64
BLOCK_BYTES_MIN: Final = 16 << 10
BLOCKS_MAX: Final = (
    16_384  # more would make a look at the owners slow; larger caches have larger blocks
)

#: words of the head
MAGIC_AT, BLOCKS_AT, BLOCK_BYTES_AT, HAND_AT, BIRTHS_AT, EVICTIONS_AT, CLEARS_AT = range(7)
#: counters of a user, behind its pid
USER_COUNTERS: Final = ("hits", "misses", "puts", "refused", "hit_bytes", "torn")
#: `state`: 0 free, 1 being written, 2 there; `generation` grows with every change; `visited`: read since the hand came
COLUMNS: Final = (
    "state",
    "generation",
    "digest_low",
    "digest_high",
    "bytes",
    "checksum",
    "born",
    "visited",
)
FREE, WRITING, THERE = 0, 1, 2


def block_bytes(capacity_bytes: int) -> int:
    """Return the size of a block in a cache of `capacity_bytes`: a power of two."""
    size = BLOCK_BYTES_MIN
    while size * BLOCKS_MAX < capacity_bytes:
        size *= 2
    return size


def cache_bytes(capacity_bytes: int) -> int:
    """Return the size of the whole memory of a cache with `capacity_bytes` of data."""
    blocks = capacity_bytes // block_bytes(capacity_bytes)
    return _owners_at() + -(-blocks * 4 // 4096) * 4096 + blocks * block_bytes(capacity_bytes)


def _entries_at() -> int:
    return HEAD_BYTES + limits.CACHE_USERS_MAX * USER_BYTES


def _owners_at() -> int:
    return _entries_at() + len(COLUMNS) * limits.CACHE_ENTRIES_MAX * 8


class CacheMemory:
    """Arrays over the memory of one cache.

    Parameters
    ----------
    memory : writable buffer
        Of `cache_bytes(…)`; new memory is all zero.

    Attributes
    ----------
    head : uint64[512]
    users : uint64[CACHE_USERS_MAX, 8]
    owners : uint32[blocks]
    blocks : uint8[blocks, block_bytes]
    state, generation, digest_low, digest_high, bytes, checksum, born, visited : uint64[CACHE_ENTRIES_MAX]
    """

    state: Any
    generation: Any
    digest_low: Any
    digest_high: Any
    bytes: Any
    checksum: Any
    born: Any
    visited: Any

    def __init__(self, memory: Any) -> None:
        import numpy

        whole = numpy.frombuffer(memory, numpy.uint8)
        self.head = whole[:HEAD_BYTES].view(numpy.uint64)
        self._give_shape(len(whole))
        count, size = int(self.head[BLOCKS_AT]), int(self.head[BLOCK_BYTES_AT])
        users = whole[HEAD_BYTES : _entries_at()].view(numpy.uint64)
        self.users = users.reshape(limits.CACHE_USERS_MAX, USER_BYTES // 8)
        columns = whole[_entries_at() : _owners_at()].view(numpy.uint64)
        for name, column in zip(COLUMNS, columns.reshape(len(COLUMNS), -1), strict=True):
            setattr(self, name, column)
        self.owners = whole[_owners_at() : _owners_at() + count * 4].view(numpy.uint32)
        self.data_at = len(whole) - count * size
        self.blocks = whole[self.data_at :].reshape(count, size)

    def _give_shape(self, whole_bytes: int) -> None:
        """Write the head of new memory; every first user writes the same, so it does not matter who does."""
        if self.head[MAGIC_AT] == MAGIC:
            return
        size = BLOCK_BYTES_MIN
        while cache_bytes(size * BLOCKS_MAX) < whole_bytes:
            size *= 2
        blocks = (whole_bytes - _owners_at()) // (size + 4)
        while cache_bytes(blocks * size) > whole_bytes:
            blocks -= 1
        self.head[BLOCKS_AT], self.head[BLOCK_BYTES_AT] = blocks, size
        self.head[MAGIC_AT] = MAGIC

    @property
    def block_bytes(self) -> int:
        return int(self.head[BLOCK_BYTES_AT])

    @property
    def capacity_bytes(self) -> int:
        return int(self.head[BLOCKS_AT]) * self.block_bytes

    def counters(self) -> dict[str, int]:
        """Return entries, used and capacity bytes, evictions, clears and the users' counters, summed."""
        there = self.state == THERE
        sums = self.users.sum(axis=0)
        return {
            "entries": int(there.sum()),
            "bytes": int(self.bytes[there].sum()),
            "capacity_bytes": self.capacity_bytes,
            "users": int((self.users[:, 0] != 0).sum()),
            "evictions": int(self.head[EVICTIONS_AT]),
            "clears": int(self.head[CLEARS_AT]),
            **{name: int(sums[1 + at]) for at, name in enumerate(USER_COUNTERS)},
        }
