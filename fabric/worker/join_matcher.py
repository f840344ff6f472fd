"""Which parts belong together, and what becomes of a request: decided from values and `now`. Pure; one thread.

The rules, kept in whatever order parts come, come twice, come late or do not come:
- a request ends exactly once: fused, partial or dropped(reason), and never waits longer than its rules say;
- what waits never exceeds `max_entries` requests or `max_bytes`;
- a part that comes after the end of its request ends itself: as `late`, as a `duplicate`, or, delivered again after its
  output was accepted, as acknowledged.
A decision is carried out by the caller before it asks for more; a `Fuse` is answered with `put_out` or `refused`.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from fabric.abc.join import JoinRules

Outcome = Literal["fused", "partial", "dropped"]
Reason = Literal["incomplete", "deadline", "expired", "overflow", "error", "refused"]
PartReason = Literal["late", "duplicate"]

REASONS: tuple[Reason, ...] = ("incomplete", "deadline", "expired", "overflow", "error", "refused")


class Part(NamedTuple):
    """One received message. `token` is the caller's; `expires_ns` is absolute, 0 for none."""

    key: bytes
    input: str
    size_bytes: int
    expires_ns: int
    redelivered: bool
    token: Any


class Ended(NamedTuple):
    """How a request ended; `inputs` are those whose parts went into its output."""

    outcome: Outcome
    inputs: frozenset[str] = frozenset()


class Remembered(Protocol):
    """The requests that ended lately, a bounded number, and counters; it outlives the process where that matters."""

    def get(self, key: bytes) -> Ended | None: ...
    def put(self, key: bytes, ended: Ended) -> None: ...
    def count(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Fuse:
    """Put out one message of these parts, then say `put_out` or `refused`."""

    key: bytes
    parts: dict[str, Part]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dropped:
    """The request has ended without output: end its parts."""

    key: bytes
    parts: tuple[Part, ...]
    reason: Reason


@dataclass(frozen=True, slots=True)
class PartEnded:
    """A part whose request had ended, or that came twice: end it."""

    part: Part
    reason: PartReason


@dataclass(frozen=True, slots=True)
class Repeated:
    """A part that is in an accepted output already: acknowledge it, it has done its work."""

    part: Part


@dataclass(frozen=True, slots=True)
class Replaced:
    """A part of which a newer copy came: let go of it, the newer one is to be acknowledged."""

    part: Part


Decision = Fuse | Dropped | PartEnded | Repeated | Replaced


@dataclass(slots=True, eq=False)
class _Request:
    first_ns: int
    due_ns: int
    parts: dict[str, Part] = field(default_factory=dict)
    size_bytes: int = 0


class Matcher:
    """Matches parts by key.

    Parameters
    ----------
    rules : JoinRules
    inputs : tuple of str
        Every name that a complete request has.
    remembered : Remembered
        What ended before; asked once for each part that opens a request. It counts ``fused``, ``partial``,
        ``late``, ``duplicate``, ``repeated`` and ``dropped_<reason>``.
    """

    def __init__(self, rules: JoinRules, inputs: tuple[str, ...], remembered: Remembered) -> None:
        self._rules = rules
        self._inputs = inputs
        self._remembered = remembered
        self._waiting: OrderedDict[bytes, _Request] = OrderedDict()  # by age of the first part
        self._due: list[
            tuple[int, bytes]
        ] = []  # a heap; entries of requests that ended stay a while
        self._going: Fuse | None = None
        self.waiting_bytes = 0

    @property
    def waiting(self) -> int:
        """Requests that wait for a part."""
        return len(self._waiting)

    def next_ns(self) -> int | None:
        """Return when `tick` has something to decide; None while nothing waits."""
        while self._due and self._stale(*self._due[0]):
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    # ---- what happens
    def add(self, part: Part, now_ns: int) -> list[Decision]:
        """Take a part; returns what is to be done, in order."""
        self._settled()
        request = self._waiting.get(part.key)
        if request is None:
            ended = self._remembered.get(part.key)
            if ended is not None:
                return [self._after(part, ended)]
            request = self._waiting[part.key] = _Request(now_ns, 0)
            request.due_ns = now_ns + int(self._rules.window_s * 1e9)
        elif part.input in request.parts:
            return [self._twice(request, part)]
        self._join(request, part)
        if part.expires_ns and part.expires_ns <= now_ns:
            return [self._drop(part.key, "expired")]
        if len(request.parts) == len(self._inputs):
            return [self._go(part.key)]
        return self._make_room(part)

    def tick(self, now_ns: int) -> list[Decision]:
        """Decide the first request whose time has come, if there is one: ask again until nothing comes back."""
        self._settled()
        while (due_ns := self.next_ns()) is not None and due_ns <= now_ns:
            _, key = heapq.heappop(self._due)
            decision = self._overdue(key, self._waiting[key], now_ns)
            if decision is not None:
                return [decision]
        return []

    def put_out(self, fuse: Fuse) -> None:
        """Note that the output of a `Fuse` was accepted: from here on its parts are done, whatever happens."""
        self._answered(fuse)
        outcome: Outcome = "partial" if fuse.missing else "fused"
        self._remembered.put(fuse.key, Ended(outcome, frozenset(fuse.parts)))
        self._remembered.count(outcome)

    def refused(self, fuse: Fuse, reason: Reason) -> Dropped:
        """Note that a `Fuse` can have no output; returns how the request ends instead."""
        self._answered(fuse)
        return self._ended(fuse.key, tuple(fuse.parts.values()), reason)

    def drain(self) -> list[Part]:
        """Forget every waiting request, and one that was not put out; returns their parts, which have not ended."""
        parts = [part for request in self._waiting.values() for part in request.parts.values()]
        parts += self._going.parts.values() if self._going is not None else ()
        self._going = None
        self._waiting.clear()
        self._due.clear()
        self.waiting_bytes = 0
        return parts

    # ---- decisions
    def _after(self, part: Part, ended: Ended) -> Decision:
        if part.input in ended.inputs:
            if part.redelivered:
                self._remembered.count("repeated")
                return Repeated(part)
            self._remembered.count("duplicate")
            return PartEnded(part, "duplicate")
        self._remembered.count("late")
        return PartEnded(part, "late")

    def _twice(self, request: _Request, part: Part) -> Decision:
        """Of two copies of one message the newer counts: only its acknowledgement still does."""
        if not part.redelivered:
            self._remembered.count("duplicate")
            return PartEnded(part, "duplicate")
        older = request.parts[part.input]
        self._size(request, part.size_bytes - older.size_bytes)
        request.parts[part.input] = part
        self._remembered.count("repeated")
        return Replaced(older)

    def _overdue(self, key: bytes, request: _Request, now_ns: int) -> Decision | None:
        if any(p.expires_ns and p.expires_ns <= now_ns for p in request.parts.values()):
            return self._drop(key, "expired")
        rules = self._rules
        deadline_ns = request.first_ns + int(rules.deadline_s * 1e9)
        if rules.late == "wait" and now_ns < deadline_ns:
            request.due_ns = self._earliest(request, deadline_ns)
            heapq.heappush(self._due, (request.due_ns, key))
            return None
        missing = set(self._inputs) - set(request.parts)
        if rules.late != "drop" and missing <= set(rules.partial):
            return self._go(key)
        return self._drop(key, "deadline" if rules.late == "wait" else "incomplete")

    def _make_room(self, part: Part) -> list[Decision]:
        """End whole requests until what waits fits; the newest is the one that `part` belongs to."""
        decisions: list[Decision] = []
        rules = self._rules
        while self.waiting > rules.max_entries or self.waiting_bytes > rules.max_bytes:
            oldest = next(iter(self._waiting))
            key = part.key if rules.overflow == "drop_newest" else oldest
            decisions.append(self._drop(key, "overflow"))
        return decisions

    # ---- the table
    def _join(self, request: _Request, part: Part) -> None:
        request.parts[part.input] = part
        self._size(request, part.size_bytes)
        request.due_ns = self._earliest(request, request.due_ns)
        heapq.heappush(self._due, (request.due_ns, part.key))
        if len(self._due) > 64 + 4 * len(self._waiting):  # mostly of requests that have ended
            self._due = [(r.due_ns, key) for key, r in self._waiting.items()]
            heapq.heapify(self._due)

    def _earliest(self, request: _Request, due_ns: int) -> int:
        return min([due_ns, *(p.expires_ns for p in request.parts.values() if p.expires_ns)])

    def _stale(self, due_ns: int, key: bytes) -> bool:
        request = self._waiting.get(key)
        return request is None or request.due_ns != due_ns

    def _size(self, request: _Request, size_bytes: int) -> None:
        request.size_bytes += size_bytes
        self.waiting_bytes += size_bytes

    def _take(self, key: bytes) -> _Request:
        request = self._waiting.pop(key)
        self.waiting_bytes -= request.size_bytes
        return request

    def _go(self, key: bytes) -> Fuse:
        request = self._take(key)
        missing = tuple(name for name in self._inputs if name not in request.parts)
        self._going = Fuse(key, request.parts, missing)
        return self._going

    def _drop(self, key: bytes, reason: Reason) -> Dropped:
        return self._ended(key, tuple(self._take(key).parts.values()), reason)

    def _ended(self, key: bytes, parts: tuple[Part, ...], reason: Reason) -> Dropped:
        self._remembered.put(key, Ended("dropped"))
        self._remembered.count(f"dropped_{reason}")
        return Dropped(key, parts, reason)

    def _answered(self, fuse: Fuse) -> None:
        assert self._going is fuse, "the answer to a Fuse that was not decided last"
        self._going = None

    def _settled(self) -> None:
        assert self._going is None, "a Fuse was decided and not answered"
