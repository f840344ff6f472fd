"""What every part of one daemon shares: identity, keeper, native core, numbers, events. No behaviour of its own."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fabric.controlplane.keeper_client import KeeperLink
from fabric.errors import StorageError
from fabric.telemetry.events import EventLog

BLOCK = 4096  #: numbers reserved at once


class Numbers:
    """Counters that never repeat, neither over a crash nor over a restart of the node.

    Reserved in blocks in a file of the state directory; numbers left in a block are lost at a restart.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reserved: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
        self._next: dict[str, int] = {}

    def take(self, kind: str) -> int:
        """Return the next number (from 1) of a kind: port, endpoint, flow, segment, lane, session.

        Raises
        ------
        StorageError
            A new block cannot be stored; the numbers left in the present one are still given.
        """
        reserved = self._reserved.get(kind, 0)
        number = self._next.get(kind, reserved + 1)
        if number > reserved:
            self._reserved[kind] = number + BLOCK - 1
            try:
                self._write()
            except StorageError:
                self._reserved[kind] = reserved  # only what is stored is reserved
                raise
        self._next[kind] = number + 1
        return number

    def _write(self) -> None:
        draft = self._path.with_suffix(".new")
        try:
            draft.write_text(json.dumps(self._reserved))
            os.replace(draft, self._path)
        except OSError as error:
            raise StorageError(
                f"the counters {self._path} cannot be written: {error.strerror or error};"
                " free some space or make the folder writable, then repeat the call",
                path=str(self._path),
                reason=str(error),
            ) from error


@dataclass
class Context:
    """One per daemon. `number` is 0 until the registry gave one."""

    name: str
    incarnation: int
    state_dir: Path
    socket_path: str
    keeper: KeeperLink
    native: Any  #: fabric._native, or a fake with its names
    numbers: Numbers
    events: EventLog = field(default_factory=EventLog)
    number: int = 0
    heartbeat_ms: int = 100

    def __post_init__(self) -> None:
        self.events.node = self.name

    def take_port(self) -> int:
        """Return a new port id: node << 32 | counter."""
        return self.number << 32 | self.numbers.take("port")

    def take_endpoint(self) -> int:
        """Return a new endpoint id: node << 32 | counter."""
        return self.number << 32 | self.numbers.take("endpoint")

    def take_flow(self) -> int:
        """Return a new flow id: node << 48 | counter."""
        return self.number << 48 | self.numbers.take("flow")
