"""Events: what a user may want to know, as typed records in a bounded ring. Pure but for the wall clock.

One log a daemon, used from its loop. What the ring pushes out is counted (`lost`). Numbers only grow, so that a
reader can ask for what came after the last it saw.
"""

from __future__ import annotations

import collections
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from fabric import limits

SEVERITIES = ("info", "warning", "error")
DROPPED, FAILED, VIEW_HELD = "messages dropped", "messages failed", "view held"
_INFO = ("daemon restarted", "process ended", "suspect over")
_ERROR = ("state unreadable", "lane corrupt", "module given up")
_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_TEXT_CHARACTERS = 500


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event.

    `at` is seconds since 1970 (UTC), `number` its place in the log of its node, `count` how many messages (or times)
    it stands for, `more` what else is known of it.
    """

    number: int
    at: float
    kind: str
    severity: str = "warning"
    node: str = ""
    channel: str = ""
    port: str = ""
    reason: str = ""
    count: int = 1
    text: str = ""
    more: dict[str, Any] = {}

    def row(self) -> dict[str, Any]:
        """Return the event as `fabricctl status` lists it: what is empty left out."""
        fields = {key: getattr(self, key) for key in ("channel", "port", "reason", "text")}
        shown = {key: value for key, value in fields.items() if value}
        return {
            "at_s": self.at,
            "event": self.kind,
            "severity": self.severity,
            **shown,
            **self.more,
        }


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Which events to return; an empty field asks for all. `after` is a number, `since` seconds since 1970."""

    after: int = 0
    since: float = 0.0
    reason: str = ""
    channel: str = ""
    drops: bool = False

    def takes(self, event: Event) -> bool:
        """Tell whether an event is asked for."""
        return (
            event.number > self.after
            and event.at >= self.since
            and (not self.reason or event.reason == self.reason)
            and (not self.channel or event.channel == self.channel)
            and (not self.drops or event.kind in (DROPPED, FAILED))
        )


class EventLog:
    """The last `limits.EVENTS_KEPT` events, each also logged.

    Parameters
    ----------
    kept : int
        Size of the ring.
    clock : callable
        Seconds since 1970.
    """

    def __init__(
        self, kept: int = limits.EVENTS_KEPT, clock: Callable[[], float] = time.time
    ) -> None:
        self._kept: collections.deque[Event] = collections.deque(maxlen=kept)
        self._clock = clock
        self._log = logging.getLogger("fabricd.events")
        self.node = ""
        self.total = 0  #: events ever added
        self.by_kind: collections.Counter[str] = collections.Counter()

    @property
    def lost(self) -> int:
        """Events that the ring has pushed out."""
        return self.total - len(self._kept)

    def add(self, kind: str, **fields: Any) -> Event:
        """Record something a user may want to know; fields that an event does not have go to its `more`."""
        self.total += 1
        severity, count = fields.pop("severity", severity_of(kind)), fields.pop("count", 1)
        if "port_name" in fields:  # people know a process by its name
            fields = {**fields, "port": fields["port_name"], "port_id": fields.get("port", 0)}
            del fields["port_name"]
        channel, port, reason, text = (_text(fields.pop(key, "")) for key in _TEXTS)
        event = Event(
            number=self.total,
            at=round(self._clock(), 3),
            kind=kind,
            node=self.node,
            severity=severity,
            count=count,
            channel=channel,
            port=port,
            reason=reason,
            text=text,
            more=fields,
        )
        self._kept.append(event)
        self.by_kind[
            kind if kind in self.by_kind or len(self.by_kind) < _KINDS_MAX else "other"
        ] += 1
        self._write(event)
        return event

    def _write(self, event: Event) -> None:
        fields = {"count": event.count, **event.row()}
        del fields["at_s"], fields["event"]
        level = getattr(logging, event.severity.upper())
        extra = {f"of_{key}" if key in _STANDARD else key: item for key, item in fields.items()}
        self._log.log(level, event.kind, extra=extra)

    def rows(self) -> list[dict[str, Any]]:
        """Return the events as rows of `fabricctl status`, oldest first."""
        return [event.row() for event in self._kept]

    def find(self, query: Query) -> list[Event]:
        """Return the events that a query takes, oldest first."""
        return [event for event in self._kept if query.takes(event)]


_TEXTS = ("channel", "port", "reason", "text")
_KINDS_MAX = 64  # kinds are words of the code; a foreign one cannot make the table grow


def severity_of(kind: str) -> str:
    """Return how bad a kind of event is."""
    return "info" if kind in _INFO else "error" if kind in _ERROR else "warning"


def _text(value: Any) -> str:
    return str(value)[:_TEXT_CHARACTERS]


def merged(parts: Mapping[str, Iterable[Event]]) -> list[Event]:
    """Return the events of several nodes in the order of their time."""
    return sorted(
        (event for part in parts.values() for event in part), key=lambda e: (e.at, e.node, e.number)
    )
