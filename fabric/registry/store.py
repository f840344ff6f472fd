"""The registry's SQLite file: node numbers, channels, archived counts, the last epoch.

Owned by the first node's daemon, used from its loop only; every call is one short transaction.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path

import msgspec

from fabric import limits
from fabric.errors import CapacityError, ConfigError
from fabric.registry.records import ArchivedCounts, ChannelRecord, NodeRecord

EPOCH_STEP = 1 << 20  #: epochs a restarted registry skips, so that they only grow

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS nodes (number INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, record BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS channels (number INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, record BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS archived (endpoint INTEGER PRIMARY KEY, record BLOB NOT NULL);
"""


class RegistryStore:
    """Everything of the registry that survives a restart.

    Raises
    ------
    ConfigError
        The file cannot be opened or is no registry of this version.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=2.0)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise ConfigError(
                f"cannot open the registry {path}: {error}; choose another --state"
            ) from error

    def next_epoch_base(self) -> int:
        """Return an epoch above every one used before, and remember it."""
        row = self._db.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
        base = (row[0] if row else 0) + EPOCH_STEP
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('epoch', ?)", (base,))
        return int(base)

    def nodes(self) -> list[NodeRecord]:
        """Return every node that ever joined."""
        rows = self._db.execute("SELECT record FROM nodes ORDER BY number").fetchall()
        return [msgspec.msgpack.decode(row[0], type=NodeRecord) for row in rows]

    def put_node(self, record: NodeRecord) -> None:
        """Keep a node under its number."""
        data = msgspec.msgpack.encode(record)
        self._db.execute(
            "INSERT OR REPLACE INTO nodes VALUES (?, ?, ?)", (record.number, record.name, data)
        )

    def channels(self) -> list[ChannelRecord]:
        """Return every declared channel."""
        rows = self._db.execute("SELECT record FROM channels ORDER BY number").fetchall()
        return [msgspec.msgpack.decode(row[0], type=ChannelRecord) for row in rows]

    def put_channel(self, record: ChannelRecord) -> None:
        """Keep a channel under its number."""
        data = msgspec.msgpack.encode(record)
        self._db.execute(
            "INSERT OR REPLACE INTO channels VALUES (?, ?, ?)", (record.number, record.name, data)
        )

    def archive(self, final: ArchivedCounts) -> None:
        """Keep the final counts of an endpoint; a repeat (after a crash) changes nothing."""
        (rows,) = self._db.execute("SELECT COUNT(*) FROM archived").fetchone()
        if rows >= limits.ARCHIVED_ENDPOINTS_MAX:
            self._compact()
        self._db.execute(
            "INSERT OR IGNORE INTO archived VALUES (?, ?)",
            (final.endpoint, msgspec.msgpack.encode(final)),
        )

    def archived(self) -> list[ArchivedCounts]:
        """Return the final counts of all endpoints that are gone."""
        rows = self._db.execute("SELECT record FROM archived").fetchall()
        return [msgspec.msgpack.decode(row[0], type=ArchivedCounts) for row in rows]

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._db.close()

    def _compact(self) -> None:
        """Add the older half into one row per channel (endpoint = -channel): totals stay, rows shrink."""
        half = limits.ARCHIVED_ENDPOINTS_MAX // 2
        rows = self._db.execute(
            "SELECT record FROM archived ORDER BY endpoint LIMIT ?", (half,)
        ).fetchall()
        finals = [msgspec.msgpack.decode(row[0], type=ArchivedCounts) for row in rows]
        sums = _sum_by_channel(finals)
        if len(sums) >= half:
            raise CapacityError(
                "too many channels with archived counts", limit="ARCHIVED_ENDPOINTS_MAX"
            )
        self._db.execute("BEGIN")
        self._db.executemany(
            "DELETE FROM archived WHERE endpoint = ?", [(final.endpoint,) for final in finals]
        )
        for total in sums:
            self._db.execute(
                "INSERT INTO archived VALUES (?, ?)",
                (total.endpoint, msgspec.msgpack.encode(total)),
            )
        self._db.execute("COMMIT")


def _sum_by_channel(finals: list[ArchivedCounts]) -> list[ArchivedCounts]:
    by_channel: dict[int, list[ArchivedCounts]] = {}
    for final in finals:
        by_channel.setdefault(final.channel, []).append(final)
    sums = []
    for channel, rows in by_channel.items():
        counts: Counter[tuple[int, int]] = Counter()
        for row in rows:
            for end, reason, number in row.counts:
                counts[end, reason] += number
        sums.append(
            ArchivedCounts(
                endpoint=-channel,
                channel=channel,
                accepted=sum(row.accepted for row in rows),
                counts=tuple((end, reason, n) for (end, reason), n in counts.items()),
                delivered_bytes=sum(row.delivered_bytes for row in rows),
            )
        )
    return sums
