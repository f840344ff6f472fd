"""What a stage host leaves for its successor when it is killed: the messages it held, how often that has happened.

A mapped file in the node's state folder, written before each `apply` and read once by the next host of the plugin. So a
message that ends the process is known: those of a batch come again alone, and one that did it alone as well is given to
`apply` no more, its transform's `on_error` decides. A plugin that ends its hosts one after the other is left out for a
while (`rest_s`), then tried again. One thread per slot writes; the watchdog writes the head.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from fabric import limits

Identity = tuple[int, int, int]  #: producer, its incarnation, sequence

DEATHS_ALONE_MAX: Final = (
    2  # a message that was in hand this often when the host died is not given again
)
DEATHS_MAX: Final = 4  # hosts that die one after the other before the plugin rests
STEADY_S: Final = 10.0  # a host that lived this long ends the row
REST_S: Final = 1.0  # the first rest; it doubles to REST_S_MAX
REST_S_MAX: Final = 60.0
_SUSPECTS_MAX: Final = 1024
_MAGIC: Final = 0x31445241_55474246
_HEAD: Final = struct.Struct(
    "<QIIQQ112s"
)  # magic, is running, reason bytes, started and alive ns, reason
_COUNT: Final = struct.Struct("<Q")
_SLOT_BYTES: Final = _COUNT.size + 24 * limits.TRANSFORM_BATCH_MAX
_SIZE: Final = _HEAD.size + _SLOT_BYTES * limits.STAGES_PER_HOST_MAX


class Guard:
    """The file of one plugin.

    Parameters
    ----------
    path : Path or None
        None: nothing is kept; a host that is run by hand, a test.

    Attributes
    ----------
    deaths : int
        Hosts of this plugin that died one after the other, up to now.
    reason : str
        Why the last one did, as far as it could tell.
    rest_s : float
        For so long from now `apply` is not to be called.
    """

    def __init__(self, path: Path | None, now_ns: int) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._free = list(range(limits.STAGES_PER_HOST_MAX))[::-1]
        self._suspects: Counter[Identity] = Counter()
        self.deaths, self.reason, self.rest_s = 0, "", 0.0
        self._started_ns = now_ns
        self._map: mmap.mmap | bytearray = bytearray(_SIZE)
        if path is not None:
            self._map = _mapped(path)
            self._take_over(now_ns)
        self._write_head(now_ns, 1, b"")

    # ---- before and after `apply`
    def slot(self) -> int:
        """Return the place of one more chain; None is left beyond STAGES_PER_HOST_MAX chains."""
        with self._lock:
            return _HEAD.size + _SLOT_BYTES * self._free.pop()

    def give_back(self, slot: int) -> None:
        """Free the place of a chain that has ended."""
        self.clear(slot)
        with self._lock:
            self._free.append((slot - _HEAD.size) // _SLOT_BYTES)

    def hold(self, slot: int, identities: Sequence[int]) -> None:
        """Note what is about to be given to `apply`: producer, incarnation, sequence of each, in one flat row."""
        count = len(identities)
        struct.pack_into(f"<Q{count}Q", self._map, slot, count // 3, *identities)

    def clear(self, slot: int) -> None:
        """Nothing is in hand."""
        _COUNT.pack_into(self._map, slot, 0)

    def deaths_of(self, identity: Identity) -> int:
        """Return how often a message was in hand when a host died."""
        return self._suspects[identity] if self._suspects else 0

    @property
    def has_suspects(self) -> bool:
        """Some message was in hand when a host died."""
        return bool(self._suspects)

    # ---- of the process
    def alive(self, now_ns: int) -> None:
        """Note that the host lives; every fraction of a second."""
        self._write_head(now_ns, 1, b"")

    def dies(self, reason: str, now_ns: int) -> None:
        """Note why this host ends itself."""
        self._write_head(now_ns, 1, reason.encode())

    def close(self, now_ns: int) -> None:
        """Note that the host left as asked."""
        self._write_head(now_ns, 0, b"")

    def _write_head(self, now_ns: int, running: int, reason: bytes) -> None:
        reason = reason[:112]
        _HEAD.pack_into(
            self._map, 0, _MAGIC, running, len(reason), self._started_ns, now_ns, reason
        )

    def _take_over(self, now_ns: int) -> None:
        """Read what the host before has left, and keep what it means for the hosts after."""
        magic, running, length, started_ns, alive_ns, reason = _HEAD.unpack_from(self._map, 0)
        kept = self._kept()
        if magic == _MAGIC and running:
            lived_s = (alive_ns - started_ns) / 1e9
            before = 0 if lived_s >= STEADY_S else int(kept.get("deaths", 0))
            self.deaths, self.reason = before + 1, reason[:length].decode(errors="replace")
            for row in kept.get("suspects", ()):
                self._suspects[tuple(row[:3])] = int(row[3])
            for identity in self._in_hand():
                self._suspects[identity] += 1
        for index in range(limits.STAGES_PER_HOST_MAX):
            self.clear(_HEAD.size + _SLOT_BYTES * index)
        if self.deaths >= DEATHS_MAX:
            self.rest_s = min(REST_S * 2 ** (self.deaths - DEATHS_MAX), REST_S_MAX)
        self._keep()

    def _in_hand(self) -> list[Identity]:
        found: list[Identity] = []
        for index in range(limits.STAGES_PER_HOST_MAX):
            slot = _HEAD.size + _SLOT_BYTES * index
            count = min(_COUNT.unpack_from(self._map, slot)[0], limits.TRANSFORM_BATCH_MAX)
            words = struct.unpack_from(f"<{3 * count}Q", self._map, slot + _COUNT.size)
            found += zip(words[0::3], words[1::3], words[2::3], strict=True)
        return found

    def _kept(self) -> dict[str, Any]:
        assert self._path is not None
        try:
            kept = json.loads(self._path.with_suffix(".deaths").read_text())
        except (OSError, ValueError):
            return {}
        return kept if isinstance(kept, dict) else {}

    def _keep(self) -> None:
        assert self._path is not None
        rows = [
            [*identity, deaths] for identity, deaths in self._suspects.most_common(_SUSPECTS_MAX)
        ]
        text = json.dumps({"deaths": self.deaths, "suspects": rows})
        draft = self._path.with_suffix(".draft")
        draft.write_text(text)
        os.replace(draft, self._path.with_suffix(".deaths"))


def _mapped(path: Path) -> mmap.mmap:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(fd, _SIZE)
        return mmap.mmap(fd, _SIZE)
    finally:
        os.close(fd)


class Rest:
    """Whether `apply` may be called now; after a rest, it is."""

    def __init__(self, rest_s: float) -> None:
        self._until_ns = time.monotonic_ns() + int(rest_s * 1e9) if rest_s else 0

    def is_over(self, now_ns: int) -> bool:
        """True once the plugin may be tried again."""
        return now_ns >= self._until_ns
