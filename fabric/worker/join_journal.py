"""What a join must know after its host was killed: how its requests ended, which output was on its way, its counters.

A fixed table in shared memory that the node's keeper holds. One writer (the host's thread); the daemon reads the
counters. A record is written whole before the cursor counts it, so a kill leaves none half done: the cursor is one
aligned store, and what lies behind it is not looked at.

| offset | what |
|---|---|
| 0 | magic, records of the table, CRC of the input names, records ever written (the cursor); 8 bytes each |
| 32 | the output on its way: 1 while there is one; its request (16 bytes); endpoint; messages accepted before |
| 72 | requests and bytes that wait now; counters in the order of `COUNTERS`; 8 bytes each |
| 4096 | records of 32 bytes: request (16 bytes), inputs that went into its output (a bit each), outcome |
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import Any, Final, NamedTuple

from fabric import limits
from fabric.errors import StorageError
from fabric.worker.join_matcher import REASONS, Ended, Outcome

HEAD_BYTES: Final = 4096
_RECORD: Final = struct.Struct("<16sQQ")
_MAGIC: Final = 0x314E494F_4A424146
_AT_MAGIC, _AT_COUNT, _AT_INPUTS, _AT_CURSOR, _AT_INTENT = 0, 1, 2, 3, 4  # in 8-byte words
_AT_REQUEST: Final = 40  # in bytes
_AT_ENDPOINT, _AT_ACCEPTED, _AT_WAITING, _AT_BYTES, _AT_COUNTERS = 7, 8, 9, 10, 11
COUNTERS: Final = (
    "fused",
    "partial",
    "late",
    "duplicate",
    "repeated",
    *(f"dropped_{reason}" for reason in REASONS),
)
_OUTCOMES: Final[tuple[Outcome, ...]] = ("fused", "partial", "dropped")


def journal_bytes() -> int:
    """Return the size of a join's journal."""
    return HEAD_BYTES + limits.JOIN_REMEMBERED_MAX * _RECORD.size


class InDoubt(NamedTuple):
    """An output of which the last host did not say whether it was accepted."""

    endpoint: int
    accepted_before: int


class Journal:
    """Remembers the last `limits.JOIN_REMEMBERED_MAX` requests; see `join_matcher.Remembered`.

    Parameters
    ----------
    memory : writable buffer
        Of `journal_bytes()`; new memory is all zero.
    inputs : tuple of str
        With other inputs than before, what was remembered is forgotten: it says nothing of them.

    Raises
    ------
    StorageError
        The memory is no journal of this version.
    """

    def __init__(self, memory: Any, inputs: tuple[str, ...]) -> None:
        self._bytes = memoryview(memory).cast("B")
        if len(self._bytes) < journal_bytes():
            raise StorageError(
                f"a join's journal of {len(self._bytes)} bytes, not {journal_bytes()}"
            )
        self._words = self._bytes.cast("Q")
        self._inputs = inputs
        self._known: dict[bytes, int] = {}
        self._slots = limits.JOIN_REMEMBERED_MAX
        crc = zlib.crc32("\0".join(inputs).encode())
        if self._words[_AT_MAGIC] == 0:
            self._words[_AT_COUNT], self._words[_AT_INPUTS] = self._slots, crc
            self._words[_AT_MAGIC] = _MAGIC
        elif (self._words[_AT_MAGIC], self._words[_AT_COUNT]) != (_MAGIC, self._slots):
            raise StorageError("a join's journal of another version; restart the node")
        elif self._words[_AT_INPUTS] != crc:
            self._words[_AT_CURSOR] = self._words[_AT_INTENT] = 0
            self._words[_AT_INPUTS] = crc
        self._load()

    def _load(self) -> None:
        cursor = int(self._words[_AT_CURSOR])
        for number in range(max(0, cursor - self._slots + 1), cursor):
            self._known[self._record(number)[0]] = number

    def _record(self, number: int) -> tuple[bytes, int, int]:
        at = HEAD_BYTES + number % self._slots * _RECORD.size
        found: tuple[bytes, int, int] = _RECORD.unpack_from(self._bytes, at)
        return found

    # ---- requests that have ended
    def get(self, key: bytes) -> Ended | None:
        """Return how a request ended; None when it did not, or too long ago."""
        number = self._known.get(_digest(key))
        if number is None:
            return None
        _, mask, outcome = self._record(number)
        names = [name for bit, name in enumerate(self._inputs) if mask >> bit & 1]
        return Ended(_OUTCOMES[outcome], frozenset(names))

    def put(self, key: bytes, ended: Ended) -> None:
        """Remember how a request ended; the oldest is forgotten when the table is full."""
        self._write(_digest(key), self._mask(ended.inputs), ended.outcome)

    def _mask(self, inputs: frozenset[str]) -> int:
        return sum(1 << bit for bit, name in enumerate(self._inputs) if name in inputs)

    # ---- the output on its way
    def begin(self, key: bytes, inputs: frozenset[str], endpoint: int, accepted: int) -> None:
        """Note that the output of a request is about to be sent, as message `accepted` + 1 of an endpoint."""
        mask = self._mask(inputs)
        self._words[_AT_INTENT] = 0
        self._bytes[_AT_REQUEST : _AT_REQUEST + 16] = _digest(key)
        self._words[_AT_ENDPOINT], self._words[_AT_ACCEPTED] = endpoint, accepted
        self._words[_AT_INTENT] = 1 << 32 | mask

    def end(self) -> None:
        """Note that it is known what became of that output."""
        self._words[_AT_INTENT] = 0

    def in_doubt(self) -> InDoubt | None:
        """Return the output that the last host had on its way when it ended; None when there is none."""
        if not self._words[_AT_INTENT]:
            return None
        if bytes(self._bytes[_AT_REQUEST : _AT_REQUEST + 16]) in self._known:
            self.end()
            return None
        return InDoubt(int(self._words[_AT_ENDPOINT]), int(self._words[_AT_ACCEPTED]))

    def settle(self, is_accepted: bool) -> None:
        """Say whether the output in doubt was accepted; then it is remembered as put out."""
        intent = int(self._words[_AT_INTENT])
        if intent and is_accepted:
            mask = intent & 0xFFFF_FFFF
            outcome: Outcome = "fused" if mask == (1 << len(self._inputs)) - 1 else "partial"
            self._write(bytes(self._bytes[_AT_REQUEST : _AT_REQUEST + 16]), mask, outcome)
            self.count(outcome)
        self.end()

    def _write(self, digest: bytes, mask: int, outcome: Outcome) -> None:
        number = int(self._words[_AT_CURSOR])
        if number >= self._slots:
            oldest = self._record(number)[0]
            if self._known.get(oldest) == number - self._slots:
                del self._known[oldest]
        at = HEAD_BYTES + number % self._slots * _RECORD.size
        _RECORD.pack_into(self._bytes, at, digest, mask, _OUTCOMES.index(outcome))
        self._words[_AT_CURSOR] = number + 1
        self._known[digest] = number

    # ---- counters
    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter of `COUNTERS`."""
        self._words[_AT_COUNTERS + COUNTERS.index(name)] += by

    def note_waiting(self, requests: int, size_bytes: int) -> None:
        """Say what waits now."""
        self._words[_AT_WAITING], self._words[_AT_BYTES] = requests, size_bytes


def read_counters(head: bytes) -> dict[str, int]:
    """Return what a journal's first `HEAD_BYTES` count: waiting, waiting_bytes and `COUNTERS`; {} for new memory."""
    words = memoryview(head).cast("Q")
    if words[_AT_MAGIC] != _MAGIC:
        return {}
    found = {name: int(words[_AT_COUNTERS + at]) for at, name in enumerate(COUNTERS)}
    return {"waiting": int(words[_AT_WAITING]), "waiting_bytes": int(words[_AT_BYTES]), **found}


def _digest(key: bytes) -> bytes:
    """Return what stands for a key: 128 bits, so that two keys of one table are never taken for one."""
    return hashlib.blake2b(key, digest_size=16).digest()
