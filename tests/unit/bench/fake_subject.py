"""A subject over pipes in its folder that does what its options say: die, stay silent, corrupt."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any


class FakeEnd:
    """One half; both ends of two named pipes."""

    def __init__(self, role: str, folder: Path, options: dict[str, Any]) -> None:
        self._role, self._options = role, options
        names = ("out", "back") if role == "near" else ("back", "out")
        for name in names:
            if not (folder / name).exists():
                try:
                    os.mkfifo(folder / name)
                except FileExistsError:  # the other half was faster
                    continue
        self._out = os.open(folder / names[0], os.O_RDWR)
        self._inn = os.open(folder / names[1], os.O_RDWR)
        self._bytes = 0

    def prepare(self, order: dict[str, Any]) -> None:
        self._bytes = order["message_bytes"]
        does = self._options.get(self._role)
        if order["run"] == "round_trips" and does == "dies":
            print("this is the last word")
            os._exit(3)
        if order["run"] == "round_trips" and does == "is silent":
            time.sleep(600)

    def send(self, data: Any) -> None:
        corrupt = self._options.get(self._role) == "corrupts"
        os.write(self._out, bytes(len(data)) if corrupt else data)

    def receive(self) -> bytes:
        return os.read(self._inn, self._bytes)

    def close(self) -> None:
        os.close(self._out)
        os.close(self._inn)


def connect(role: str, folder: Path, options: dict[str, Any]) -> FakeEnd:
    if options.get(role) == "does not connect":
        raise ConnectionError("nobody is there")
    return FakeEnd(role, folder, options)
