"""Structured logs: one JSON object a line, to STATE/logs/fabricd.log (bounded, rotated once) and stderr.

Events worth showing (suspect, restart, downgrade …) are also kept in memory: `fabric.telemetry.events`.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from fabric.controlplane.children import LogFile

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """A record as one JSON line: ts (UTC seconds), level, logger, event, then its extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without a newline."""
        fields: dict[str, Any] = {
            "ts": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        fields.update({key: value for key, value in vars(record).items() if key not in _STANDARD})
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


class BoundedFileHandler(logging.Handler):
    """Writes lines to a file that is rotated once."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = LogFile(str(path))

    def emit(self, record: logging.LogRecord) -> None:
        """Append one line."""
        self._file.write(self.format(record).encode() + b"\n")


def configure(path: Path, level: str = "info") -> None:
    """Send the daemon's logs to `path`; warnings and worse also to stderr."""
    root = logging.getLogger("fabricd")
    root.setLevel(level.upper())
    root.propagate = False
    to_file = BoundedFileHandler(path)
    to_stderr = logging.StreamHandler(sys.stderr)
    to_stderr.setLevel(logging.WARNING)
    for handler in (to_file, to_stderr):
        handler.setFormatter(JsonFormatter())
        root.addHandler(handler)
    asyncio_log = logging.getLogger("asyncio")
    asyncio_log.addHandler(to_file)
    asyncio_log.addHandler(to_stderr)


def tail(path: Path, lines: int) -> list[str]:
    """Return the last lines of a log, its rotated part included; empty when there is none."""
    text: list[str] = []
    for part in (Path(f"{path}.1"), path):
        try:
            text += part.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            continue
    return text[-lines:] if lines > 0 else []
