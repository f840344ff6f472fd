"""The registry's SQLite file: node numbers, channels, plans, archived counts, the last epoch.

Owned by the first node's daemon, used from its loop only. Every call is one short transaction; several together are one
inside `transaction`. What the disk does not take is `StorageError`, and then nothing of it was stored.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from fabric import limits
from fabric.errors import CapacityError, ConfigError, StorageError
from fabric.registry.plans import Plan, check_size
from fabric.registry.records import ArchivedCounts, ChannelRecord, NodeRecord

EPOCH_STEP = 1 << 20  #: epochs a restarted registry skips, so that they only grow

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS nodes (number INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, record BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS channels (number INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, record BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS archived (endpoint INTEGER PRIMARY KEY, record BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS plans (generation INTEGER PRIMARY KEY, record BLOB NOT NULL);
"""


class RegistryStore:
    """Everything of the registry that survives a restart.

    Raises
    ------
    ConfigError
        The file cannot be opened or is no registry of this version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._depth = 0
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=2.0)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")  # a plan that was answered must be there
            (verdict,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise _damaged(path, " ".join(str(verdict).split()))
            self._db.executescript(_SCHEMA)
            self._check_rows()
        except sqlite3.DatabaseError as error:
            if _is_storage(error):
                raise _storage(path, error) from error
            raise _damaged(path, str(error)) from error
        except msgspec.MsgspecError as error:
            raise _damaged(path, f"a record cannot be read: {error}") from error

    def _check_rows(self) -> None:
        """Read everything once: what is damaged is refused now, not in the middle of the day."""
        self.nodes()
        self.channels()
        self.archived()
        self.plans()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All of the block or nothing of it; nested ones belong to the outermost.

        Raises
        ------
        StorageError
            The disk is full or read-only, or reports an error; nothing was stored.
        """
        if self._depth:
            yield self._db
            return
        self._depth += 1
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._undo()
            raise _storage(self.path, error) from error
        except BaseException:
            self._undo()
            raise
        finally:
            self._depth -= 1

    def _undo(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def next_epoch_base(self) -> int:
        """Return an epoch above every one used before, and remember it."""
        row = self._db.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
        base = (row[0] if row else 0) + EPOCH_STEP
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('epoch', ?)", (base,))
        return int(base)

    def nodes(self) -> list[NodeRecord]:
        """Return every node that ever joined."""
        rows = self._db.execute("SELECT record FROM nodes ORDER BY number").fetchall()
        return [msgspec.msgpack.decode(row[0], type=NodeRecord) for row in rows]

    def put_node(self, record: NodeRecord) -> None:
        """Keep a node under its number."""
        data = msgspec.msgpack.encode(record)
        with self.transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO nodes VALUES (?, ?, ?)", (record.number, record.name, data)
            )

    def channels(self) -> list[ChannelRecord]:
        """Return every declared channel."""
        rows = self._db.execute("SELECT record FROM channels ORDER BY number").fetchall()
        return [msgspec.msgpack.decode(row[0], type=ChannelRecord) for row in rows]

    def put_channel(self, record: ChannelRecord) -> None:
        """Keep a channel under its number."""
        data = msgspec.msgpack.encode(record)
        with self.transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO channels VALUES (?, ?, ?)",
                (record.number, record.name, data),
            )

    def next_channel_number(self) -> int:
        """Return a channel number that no channel ever had."""
        (highest,) = self._db.execute("SELECT COALESCE(MAX(number), 0) FROM channels").fetchone()
        row = self._db.execute("SELECT value FROM meta WHERE key = 'channel'").fetchone()
        return max(int(highest), int(row[0]) if row else 0) + 1

    def drop_channel(self, number: int, *, with_counts: bool = False) -> None:
        """Forget a channel, and what was archived of it where asked; its number is never used again."""
        with self.transaction() as db:
            last = self.next_channel_number() - 1
            db.execute("INSERT OR REPLACE INTO meta VALUES ('channel', ?)", (last,))
            db.execute("DELETE FROM channels WHERE number = ?", (number,))
            if with_counts:
                gone = [(f.endpoint,) for f in self.archived() if f.channel == number]
                db.executemany("DELETE FROM archived WHERE endpoint = ?", gone)

    def plans(self) -> list[Plan]:
        """Return the generations that are kept, oldest first."""
        rows = self._db.execute("SELECT record FROM plans ORDER BY generation").fetchall()
        return [msgspec.msgpack.decode(row[0], type=Plan) for row in rows]

    def plan(self, generation: int) -> Plan | None:
        """Return one generation; None when it never was or is forgotten."""
        row = self._db.execute(
            "SELECT record FROM plans WHERE generation = ?", (generation,)
        ).fetchone()
        return msgspec.msgpack.decode(row[0], type=Plan) if row else None

    def put_plan(self, plan: Plan) -> None:
        """Keep a generation; the oldest beyond `limits.PLANS_KEPT` are forgotten."""
        data = check_size(plan)
        with self.transaction() as db:
            db.execute("INSERT OR REPLACE INTO plans VALUES (?, ?)", (plan.generation, data))
            db.execute(
                "DELETE FROM plans WHERE generation <= ?", (plan.generation - limits.PLANS_KEPT,)
            )

    def archive(self, final: ArchivedCounts) -> None:
        """Keep the final counts of an endpoint; a repeat (after a crash) changes nothing."""
        with self.transaction() as db:
            (rows,) = db.execute("SELECT COUNT(*) FROM archived").fetchone()
            if rows >= limits.ARCHIVED_ENDPOINTS_MAX:
                self._compact()
            db.execute(
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
        self._db.executemany(
            "DELETE FROM archived WHERE endpoint = ?", [(final.endpoint,) for final in finals]
        )
        for total in sums:
            self._db.execute(
                "INSERT INTO archived VALUES (?, ?)",
                (total.endpoint, msgspec.msgpack.encode(total)),
            )


def _is_storage(error: sqlite3.Error) -> bool:
    """Tell a disk that does not take a write from a file that is no registry."""
    name = str(getattr(error, "sqlite_errorname", ""))
    return name.startswith(
        ("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_BUSY")
    )


def _storage(path: Path, error: sqlite3.Error) -> StorageError:
    name = str(getattr(error, "sqlite_errorname", ""))
    what = "free some space" if name == "SQLITE_FULL" else "make its folder writable"
    return StorageError(
        f"the registry {path} cannot be written: {error}; {what} and repeat the call,"
        " what was there before is unchanged",
        path=str(path),
        reason=str(error),
    )


def _damaged(path: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"the registry {path} is damaged or of another version: {reason}; put a copy of it back, or move it away"
        " (with its -wal and -shm files) to begin an empty registry",
        path=str(path),
        reason=reason,
    )


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
