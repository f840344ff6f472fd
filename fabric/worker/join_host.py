"""A join at work: a module made of a join class, whose inputs and output are its channel fields.

So the supervisor starts, probes and restarts it, plans place it, and types and cycles are checked as of any module. A
thread for each input takes what comes; one thread matches, fuses, sends and acknowledges. `join_matcher` decides,
`join_journal` remembers over a kill. The rules:
- a part is acknowledged only after the output that it went into was accepted by the output channel;
- an output is noted before it is sent, and as put out before a part of it is acknowledged. After a kill in between, the
  daemon says from the dead sender's ledger whether it was accepted: so a request is put out once, not at least once.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any, Final

from fabric import limits, steps
from fabric.abc.join import OUTPUT, JoinContext, JoinExport, rules_from
from fabric.abc.transform import EXPORT_ATTRIBUTE, Drop
from fabric.errors import (
    CapacityError,
    ClosedError,
    ContractError,
    DeadlineExceeded,
    EndOfChannel,
    PeerProtocolError,
    RejectedError,
    TransformError,
    TypeMismatchError,
    WouldBlock,
)
from fabric.worker.join_endpoints import Encoded, InputMessage, Output
from fabric.worker.join_journal import Journal
from fabric.worker.join_matcher import (
    Decision,
    Dropped,
    Fuse,
    Matcher,
    Part,
    PartEnded,
    Reason,
    Repeated,
    Replaced,
)
from fabric.worker.join_memory import open_journal
from fabric.worker.module import In, Module, Out

log = logging.getLogger("fabric.worker.join")

BATCH: Final = 64
SEND_SLICE_NS: Final = 200_000_000
REJECTED_S: Final = 0.002  # before an output that was rejected is tried again
LOOK_S: Final = 0.2  # an idle join looks this often whether it is to stop
QUEUE_MAX: Final = 4096  # received, not matched yet; credit holds the rest back
REPORT_NS: Final = 1_000_000_000


class JoinModule(Module):
    """Runs one join; `module_of` makes a subclass with the fields of its class."""

    export: JoinExport

    def start(self) -> None:
        """Make the join, take over what the last host knew."""
        export, config = self.export, dict(self.config)
        inputs = tuple(export.inputs)
        self._rules = rules_from(export.name, export.rules, config.get("rules") or {}, inputs)
        self._own: Mapping[str, Any] = config.get("config") or {}
        self._join = export.factory()
        opened = getattr(self._join, "open", None)
        if opened is not None:
            opened(self._own)
        memory = open_journal(self.port, self.name)
        self._journal = Journal(memory, inputs)
        self._matcher = Matcher(self._rules, inputs, self._journal)
        self._arrived: queue.Queue[Part | BaseException] = queue.Queue(QUEUE_MAX)
        self._output = Output(getattr(self, OUTPUT).endpoint)
        self._reported_ns, self._unreported = -REPORT_NS, 0
        self._settle_doubt()

    def run(self) -> None:
        """Match until told to stop; what waits then stays unacknowledged, for the successor."""
        threads = [
            threading.Thread(target=self._take, args=(name,), name=f"join-{name}", daemon=True)
            for name in self.export.inputs
        ]
        for thread in threads:
            thread.start()
        while not self.stopping.is_set():
            self._turn()
        for thread in threads:
            thread.join(limits.MODULE_POLL_S * 2)
        self._leave()

    # ---- receiving, a thread for each input
    def _take(self, name: str) -> None:
        receiver = getattr(self, name).endpoint
        try:
            while not self.stopping.is_set():
                deadline_ns = time.monotonic_ns() + int(limits.MODULE_POLL_S * 1e9)
                for native in receiver.take_many(BATCH, deadline_ns):
                    part = self._part(name, receiver, native)
                    while part is not None and not self.stopping.is_set():
                        try:
                            self._arrived.put(part, timeout=LOOK_S)
                            break
                        except queue.Full:
                            continue
        except (EndOfChannel, ClosedError):
            return
        except BaseException as error:  # the matching thread raises it, and the module ends visibly
            self._arrived.put(error)

    def _part(self, name: str, receiver: Any, native: Any) -> Part | None:
        try:
            message = InputMessage(receiver.decode(native))
        except PeerProtocolError as error:  # it ended as failed(corrupted)
            log.warning("join %s: input %s: %s", self.name, name, error)
            return None
        header = message.header
        key = self._key(name, message)
        if key is None:
            self._report(f"input {name!r}: a message without a key: send it with key=, or say `by`")
            message.drop()
            return None
        size = int(header.payload_bytes)
        return Part(key, name, size, header.expires_ns, header.redelivered, message)

    def _key(self, name: str, message: InputMessage) -> bytes | None:
        field = self.export.by[name]
        if not field:
            return message.header.key
        value = getattr(message.value, field)
        return value if isinstance(value, bytes) else str(value).encode()

    # ---- matching
    def _turn(self) -> None:
        """Take what has come, wait for it at most until something is due, and carry out what is decided."""
        due_ns = self._matcher.next_ns()
        left_s = LOOK_S if due_ns is None else (due_ns - time.monotonic_ns()) / 1e9
        wait_s = min(left_s, LOOK_S)
        for _ in range(BATCH):  # what is due is not kept waiting by what goes on coming
            part = None if self.stopping.is_set() else self._next(wait_s)
            if part is None:
                break
            wait_s = 0.0
            for decision in self._matcher.add(part, time.monotonic_ns()):
                self._carry_out(decision)
        while not self.stopping.is_set() and (decisions := self._matcher.tick(time.monotonic_ns())):
            for decision in decisions:
                self._carry_out(decision)
        self._journal.note_waiting(self._matcher.waiting, self._matcher.waiting_bytes)

    def _next(self, wait_s: float) -> Part | None:
        """Return the next part; raises what ended a receiving thread."""
        try:
            found = self._arrived.get(timeout=wait_s) if wait_s > 0 else self._arrived.get_nowait()
        except queue.Empty:
            return None
        if isinstance(found, BaseException):
            raise found
        return found

    def _carry_out(self, decision: Decision) -> None:
        if isinstance(decision, Fuse):
            self._fuse(decision)
        elif isinstance(decision, Dropped):
            self._end_dropped(decision)
        elif isinstance(decision, PartEnded):
            decision.part.token.drop()
        elif isinstance(decision, Repeated):
            decision.part.token.ack()
        elif isinstance(decision, Replaced):
            decision.part.token.release()

    def _end_dropped(self, decision: Dropped) -> None:
        now_ns = time.monotonic_ns()
        for part in decision.parts:
            if decision.reason == "error":
                part.token.fail()
            else:
                part.token.drop(expired=bool(part.expires_ns) and part.expires_ns <= now_ns)

    # ---- putting out
    def _fuse(self, fuse: Fuse) -> None:
        try:
            output = self._made(fuse)
        except Exception as error:
            self._report(f"fuse: {type(error).__name__}: {error}", traceback.format_exc())
            self._carry_out(self._matcher.refused(fuse, "error"))
            return
        if output is None:
            self._carry_out(self._matcher.refused(fuse, "refused"))
            return
        steps.at("join.fused")
        self._send(fuse, output)

    def _made(self, fuse: Fuse) -> Encoded | None:
        """Return the encoded output; None where the join drops the request."""
        parts = dict.fromkeys(self.export.inputs) | {
            name: part.token.value for name, part in fuse.parts.items()
        }
        now_ns = time.monotonic_ns()
        context = JoinContext(self.name, fuse.key, now_ns, fuse.missing, self._own)
        result = self._join.fuse(parts, context)
        if isinstance(result, Drop):
            return None
        if not isinstance(result, self.export.produces):
            wanted = self.export.produces.__name__
            raise TransformError(f"fuse returned {type(result).__name__}, produces={wanted}")
        expires = [part.expires_ns for part in fuse.parts.values() if part.expires_ns]
        return self._output.prepare(result, fuse.key, min(expires, default=0))

    def _send(self, fuse: Fuse, output: Encoded) -> None:
        """Send until the output is accepted, its request expires or this host is to stop."""
        names = frozenset(fuse.parts)
        while not self.stopping.is_set():
            if output.expires_ns and time.monotonic_ns() >= output.expires_ns:
                self._end_unsent(fuse, "expired")
                return
            self._journal.begin(fuse.key, names, self._output.endpoint, self._output.accepted)
            steps.at("join.noted")
            try:
                self._output.send(output, time.monotonic_ns() + SEND_SLICE_NS)
            except RejectedError:
                self._output.rejected()
                self.stopping.wait(REJECTED_S)
            except (DeadlineExceeded, WouldBlock):
                continue
            except (CapacityError, TypeMismatchError) as error:
                self._report(f"output: {type(error).__name__}: {error}")
                self._end_unsent(fuse, "error")
                return
            else:
                self._sent(fuse)
                return
        self._journal.end()  # not sent: the successor gets its parts and makes it anew

    def _end_unsent(self, fuse: Fuse, reason: Reason) -> None:
        self._journal.end()
        self._carry_out(self._matcher.refused(fuse, reason))

    def _sent(self, fuse: Fuse) -> None:
        steps.at("join.accepted")
        self._matcher.put_out(fuse)
        self._journal.end()
        steps.at("join.remembered")
        for part in fuse.parts.values():
            part.token.ack()
            steps.at("join.acknowledged")

    def _settle_doubt(self) -> None:
        """Find out whether the output that was on its way when the last host ended was accepted."""
        doubt = self._journal.in_doubt()
        if doubt is None:
            return
        deadline = time.monotonic() + limits.JOIN_DOUBT_S
        pause = 0.005
        while time.monotonic() < deadline:
            answer, _ = self.port.request("sender_accepted", {"endpoint": doubt.endpoint})
            if answer["is_settled"]:
                self._journal.settle(answer["accepted"] > doubt.accepted_before)
                return
            time.sleep(pause)
            pause = min(pause * 2, 0.1)
        self._journal.settle(False)
        log.warning(
            "join %s: its node did not say whether the last output was accepted; it is put out again",
            self.name,
        )

    # ---- the end
    def _leave(self) -> None:
        """Hand back what waits; parts of channels that do not hand back end as dropped."""
        left = [*self._matcher.drain(), *self._queued()]
        for part in left:
            endpoint = getattr(self, part.input).endpoint
            if getattr(endpoint, "delivery", "") != "at_least_once":
                part.token.drop()
        self._journal.note_waiting(0, 0)
        for name in self.export.inputs:
            getattr(self, name).endpoint.close()

    def _queued(self) -> list[Part]:
        found: list[Part] = []
        while True:
            try:
                item = self._arrived.get_nowait()
            except queue.Empty:
                return found
            if isinstance(item, Part):
                found.append(item)

    def _report(self, what: str, trace: str = "") -> None:
        now = time.monotonic_ns()
        if now - self._reported_ns < REPORT_NS:
            self._unreported += 1
            return
        more = f" ({self._unreported} more since the last report)" if self._unreported else ""
        log.warning("join %s: %s%s\n%s", self.name, what, more, trace)
        self._reported_ns, self._unreported = now, 0


def join_of(found: Any) -> JoinExport | None:
    """Return the join that a class declares; None when it declares none."""
    export = vars(found).get(EXPORT_ATTRIBUTE) if isinstance(found, type) else None
    return export if isinstance(export, JoinExport) else None


def module_of(cls: type, export: JoinExport) -> type[Module]:
    """Return the module that runs a join: its inputs and `output` are its channel fields."""
    for name in export.inputs:
        if name.startswith("_") or hasattr(JoinModule, name) or name in Module.__annotations__:
            raise ContractError(
                f"join {export.name!r} cannot call an input {name!r}: use another name"
            )
    fields = {name: In[declared] for name, declared in export.inputs.items()}  # type: ignore[valid-type]
    annotations = {**fields, OUTPUT: Out[export.produces]}  # type: ignore[name-defined]
    body = {"__annotations__": annotations, "__module__": cls.__module__, "export": export}
    return type(cls.__name__, (JoinModule,), body)
