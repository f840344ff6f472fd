"""Requests of a trace, as (time, tokens or bytes): three formats, told apart by their first line.

JSON lines of Mooncake (``timestamp`` in ms, ``input_length`` in tokens), CSV of Azure's inference traces
(``TIMESTAMP``, ``ContextTokens``), and JSON lines of one's own (``at_s``, ``bytes``, and where wanted ``source`` and
``target``, numbers of nodes).
"""

from __future__ import annotations

import csv
import datetime
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from fabric import errors, limits


@dataclass(frozen=True, slots=True)
class Request:
    """One request: when it came, and what it moves; `tokens` or `bytes` is 0."""

    at_s: float
    tokens: int = 0
    bytes: int = 0
    source: int | None = None
    target: int | None = None


class _Refused(Exception):
    """A line that is no request: the reason."""


def read(path: str | Path, most: int = limits.SIMULATION_REQUESTS_MAX) -> list[Request]:
    """Return the first requests of a trace, at most `most`, in order of time; the first comes at 0.

    Raises
    ------
    ConfigError
        The file cannot be read, or a line is no request; names file, line and reason.
    """
    file = str(path)
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            found = list(itertools.islice(_rows(stream), most))
    except _Refused as wrong:
        raise errors.ConfigError(f"{file}: {wrong}", file=file, reason=str(wrong)) from wrong
    except (OSError, UnicodeDecodeError) as error:
        raise errors.ConfigError(f"{file} cannot be read: {error}", file=file) from error
    if not found:
        raise errors.ConfigError(f"{file} holds no request", file=file)
    found.sort(key=lambda request: request.at_s)
    start = found[0].at_s
    return [Request(r.at_s - start, r.tokens, r.bytes, r.source, r.target) for r in found]


def _rows(stream: TextIO) -> Iterator[Request]:
    head = stream.readline(limits.SIMULATION_LINE_BYTES_MAX)
    return _json_rows(head, stream) if head.lstrip().startswith("{") else _csv_rows(head, stream)


def _json_rows(head: str, stream: TextIO) -> Iterator[Request]:
    number = 0
    line = head
    while line:
        number += 1
        if line.strip():
            try:
                yield _from_json(json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                raise _Refused(f"line {number}: {_reason(error)}") from error
        line = stream.readline(limits.SIMULATION_LINE_BYTES_MAX)


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _from_json(row: Any) -> Request:
    if not isinstance(row, dict):
        raise TypeError("not an object")
    if "at_s" in row or "bytes" in row:
        return _checked(
            Request(float(row["at_s"]), 0, int(row["bytes"]), row.get("source"), row.get("target"))
        )
    return _checked(Request(float(row["timestamp"]) / 1e3, int(row["input_length"])))


def _csv_rows(head: str, stream: TextIO) -> Iterator[Request]:
    names = next(csv.reader([head]), [])
    if "TIMESTAMP" not in names or "ContextTokens" not in names:
        raise _Refused(
            "line 1: neither JSON lines nor a CSV with the columns TIMESTAMP and ContextTokens"
        )
    for number, row in enumerate(csv.DictReader(stream, names), start=2):
        try:
            when = datetime.datetime.fromisoformat(row["TIMESTAMP"][:26])
            at_s = when.replace(tzinfo=datetime.UTC).timestamp()
            yield _checked(Request(at_s, int(row["ContextTokens"])))
        except (ValueError, TypeError) as error:
            raise _Refused(f"line {number}: {error}") from error


def _checked(request: Request) -> Request:
    """Return the request, or raise ValueError for one that cannot be."""
    if not 0 <= request.at_s < 1e12:
        raise ValueError(f"a time of {request.at_s} s")
    if not 0 < request.tokens + request.bytes <= limits.SIMULATION_TRANSFER_BYTES_MAX:
        raise ValueError(f"{request.tokens + request.bytes} tokens or bytes")
    for node in (request.source, request.target):
        if node is not None and (not isinstance(node, int) or node < 0):
            raise ValueError(f"{node!r} is no number of a node")
    return request
