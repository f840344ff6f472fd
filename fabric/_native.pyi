from collections.abc import Sequence
from typing import Any

from numpy import ndarray
from typing_extensions import Buffer



record_version: int = 1

has_tcp: bool = True

class NeedSegment(Exception):
    """
    A segment is needed before the call can be repeated. ``args`` is ``(size_bytes, 0, group)`` for a sender (ask the daemon for a segment of that slot size, ``add_segment`` with that group) or ``(0, segment_id, 0)`` for a reader (fetch that segment's fd, ``add_segment``).
    """

def monotonic_ns() -> int:
    """CLOCK_MONOTONIC, the clock of every deadline."""

def crc32c(data: Any, seed: int = 0) -> int:
    """CRC-32C of a contiguous buffer."""

def create_state(port: int, incarnation: int, tenant: int) -> int:
    """A port's state segment; the fd is the caller's."""

def create_doorbell() -> int:
    """A doorbell segment; the fd is the caller's."""

def create_lane_pair(klass: int, port0: int, incarnation0: int, port1: int, incarnation1: int) -> int:
    """
    The lanes between two ports; port0 must be the smaller id. The fd is the caller's.
    """

def create_segment(segment: int, port: int, incarnation: int, tenant: int, slot_bytes: int, slot_count: int) -> int:
    """
    An arena segment of `slot_count` slots (<= 1024) of `slot_bytes` (multiple of 64).
    """

def seal_segment(fd: int) -> None:
    """Refuse every later writable mapping; after the one writer has mapped."""

def freeze(state_fd: int, deadline_ns: int) -> bool:
    """Stop new operations; True when none is inside any more."""

def freeze_overruns(state_fd: int) -> int:
    """
    Operations that went on in a freeze, since the port exists: a cut over which it changed is none.
    """

def thaw(state_fd: int) -> None:
    """End a freeze."""

class Port:
    """
    A process's attachment. Thread-safe; calls that may wait release the interpreter's lock.
    After close(), and in a forked child, every call raises ClosedError.
    """

    def __init__(self, port: int, incarnation: int, state_fd: int, doorbell_fd: int, event_fd: int, *, adopt: bool = False, service_thread: bool = True) -> None: ...

    def add_lane(self, lane: int, pair_fd: int, side: int, klass: int, peer_port: int, peer_incarnation: int, peer_doorbell_fd: int, peer_event_fd: int) -> None:
        """Map a lane pair and its peer's doorbell. Idempotent per lane number."""

    def remove_lane(self, lane: int) -> None:
        """Drop a lane that carries no outgoing flow any more."""

    def add_segment(self, segment: int, fd: int, writable: bool, group: int = 0) -> None:
        """
        Map an own (writable) or a foreign arena segment. An own one serves only its group: 0 = classes control
        and token, 1 = embedding and bulk.
        """

    def drop_segment(self, segment: int) -> None:
        """
        Forget a segment; views keep their mapping. CapacityError while an own slot is taken.
        """

    def idle_segments(self) -> list[int]:
        """Own segments with every slot free."""

    def drop_unused_readers(self) -> int:
        """
        Unmap foreign segments that nobody read since the last call and that no message here lies in; how many.
        """

    def add_flow_out(self, endpoint: int, flow: int, lane: int, target_endpoint: int, messages: int, bytes: int, generation: int, after_drain: bool) -> None:
        """
        A way to one receiver with its first credit. `after_drain`: unused until the endpoint's older flows have
        nothing outstanding. May come before the sender is opened.
        """

    def close_flow_out(self, flow: int) -> None:
        """No new sends; what is out still ends normally."""

    def lose_flow_out(self, flow: int, handed_upto: int, reason: int, reader_lives: bool = False) -> None:
        """
        The consumer or the path is dead: at_least_once goes to another flow, in order; at_most_once ends as
        delivered up to `handed_upto` and as failed(reason) behind it. `reader_lives`, or reason closed: the process of the
        consumer lives, and its views keep their slots until they are released (or the flow is lost again without).
        """

    def suspect_flow(self, flow: int, suspect: bool) -> None:
        """
        The consumer is silent (or was heard of again): a queue gives it nothing new, new stream keys avoid it, keys
        on it wait, and for a broadcast it counts as full. An unknown flow is ignored.
        """

    def add_flow_in(self, endpoint: int, flow: int, lane: int, producer_port: int, messages: int, bytes: int) -> None:
        """
        The receiving half with its credit window. May come before the receiver is opened.
        """

    def close_flow_in(self, flow: int, drain: bool) -> None:
        """
        No more will come. Without `drain`, what is queued ends as failed(closed).
        """

    def progress(self) -> int:
        """Drain lanes and return rings; entries handled."""

    def event_fd(self) -> int:
        """Readable after arm() once something is ready."""

    def arm(self) -> bool:
        """
        Wake the eventfd at the next arrival; False = something arrived already: look again, then arm again.
        """

    def disarm(self) -> None:
        """Leave eventfd mode and read the eventfd down."""

    def set_wait(self, policy: int) -> None:
        """How threads wait from now on: 0 adaptive, 1 poll, 2 sleep."""

    def stats(self) -> dict[str, int]:
        """Sizes of tables and counters since open."""

    def views(self) -> list[dict[str, int]]:
        """
        Messages handed over and not released, also those collected without an end: channel, flow, flow_seq,
        since_ns (CLOCK_MONOTONIC, to some milliseconds), bytes.
        """

    def broken_lanes(self) -> list[tuple[int, str]]:
        """
        Lanes that are used no more because their peer broke the rules, and what it did.
        """

    def inject(self, fault: str, count: int) -> None:
        """
        Test hook, refused unless FABRIC_FAULTS=1: lose_drained, repeat_drained, miscount_fold, corrupt_cursor.
        """

    def close(self) -> None:
        """
        Wake every waiter with ClosedError and stop. Idempotent; what is outstanding is the daemon's to settle.
        """

    def open_sender(self, endpoint: int, channel: int, type: int, pattern: int, delivery: int, klass: int, *, overflow: int = 0) -> Sender:
        """
        `overflow`: 0 block, 1 drop_oldest, 2 drop_newest, 3 reject; `drop_*` with at_most_once only.
        """

    def forget_sender(self, endpoint: int) -> None:
        """
        Free the ledger row of a closed sender with nothing outstanding, once its counts are archived.
        """

    def open_receiver(self, endpoint: int, channel: int, type: int, pattern: int, delivery: int, *, overflow: int = 0) -> Receiver:
        """`overflow`: 0 block, 1 drop_oldest, 2 drop_newest, 3 reject."""

class Loan:
    """The right to write a slot before it is sent. Not thread-safe."""

    def tensor(self, index: int) -> memoryview:
        """
        Writable bytes of tensor `index`, 64-byte aligned. Do not write after the loan was sent.
        """

    def discard(self) -> None:
        """Give the slot back unsent. Idempotent."""

class Sender:
    """The sending endpoint of a channel. Thread-safe."""

    def send(self, meta: bytes, tensors: Sequence[Any], key: bytes | None, deadline_ns: int, *, flow: int = 0, correlation: int = 0, reply_flow: int = 0, flags: int = 0, expires_ns: int = 0) -> int:
        """
        Copy once and send; returns the message's number, which its records carry as `sequence`.

        Waits for credit, lane space and a consumer until `deadline_ns` (absolute CLOCK_MONOTONIC; 0 = do not
        wait: WouldBlock). `tensors` are C-contiguous buffers. `flow` 0 lets the pattern choose: a stream key
        stays on its flow, a queue takes the least outstanding, a broadcast goes to every open flow (none: it ends as
        dropped(no_target)). `expires_ns` (absolute) travels in the record. Without room in a receiver `drop_newest`
        returns the number of a message that has ended as dropped(overflow_newest), and `reject` raises RejectedError.
        Raises DeadlineExceeded naming what was full, ClosedError, PeerLostError, NeedSegment, CapacityError.
        """

    def send_many(self, metas: Sequence[bytes], tensors: Sequence[Sequence[Any]], keys: Sequence[bytes | None], deadline_ns: int, *, expires_ns: int = 0) -> int:
        """
        Send in order with one doorbell a lane; returns how many were accepted. Raises only when none was: a rejection
        is counted when it is raised.
        """

    def loan(self, sizes: Sequence[int]) -> Loan:
        """One slot for tensors of `sizes` bytes. Raises NeedSegment."""

    def send_loan(self, loan: Loan, meta: bytes, key: bytes | None, deadline_ns: int, *, flow: int = 0, correlation: int = 0, reply_flow: int = 0, flags: int = 0, expires_ns: int = 0) -> int:
        """
        Send what was written into `loan`; on an error the loan is still the caller's.
        """

    def cancel(self, sequence: int) -> bool:
        """
        True if the message waited for a consumer and now ends as dropped(cancelled).
        """

    def set_route(self, policy: str, *, load_factor: float = 1.25, spill: int = 0, seed: int = 1) -> None:
        """
        Let a built-in policy choose from the next message on; empty: the pattern does. Forgets what was pinned.
        """

    def set_target(self, endpoint: int, *, weight: float = 1.0, rank: int = 0, distance: int = 0, load: int = 0) -> None:
        """
        What policies are to know of a target, now or once there is a flow to it.
        """

    def pin(self, key: bytes | None, flow: int, until_ns: int) -> None:
        """
        Messages of `key` that ask go on `flow` until then (absolute CLOCK_MONOTONIC), and while it is open.
        """

    def fall_back(self, policy: str, until_ns: int) -> None:
        """
        Let a built-in policy (empty: the pattern) decide for messages that ask, until then.
        """

    def pin_hits(self) -> int:
        """Messages that went where `pin` had said."""

    def decide(self, key: bytes | None) -> int:
        """
        The flow that the built-in policy gives `key` now; 0: none has room. Nothing is sent.
        """

    def flows(self) -> list[dict[str, int]]:
        """
        flow, target_endpoint, outstanding, credit_messages, credit_bytes, generation, closed of every flow.
        """

    def ended_upto(self) -> int:
        """Makes progress, then: every sequence <= this has ended."""

    def counts(self) -> dict[tuple[int, int], int]:
        """(end, reason) -> messages."""

    def delivered_bytes(self) -> int:
        """Payload bytes of the messages that ended as delivered."""

    def flush(self, deadline_ns: int) -> bool:
        """Wait until nothing is outstanding; False at the deadline."""

    def close(self) -> None:
        """
        No new sends; messages that wait for a consumer end as failed(closed). Idempotent.
        """

class RouteKernel:
    """
    A built-in routing policy on values, as senders run it. Not thread-safe.
    """

    def __init__(self, policy: str, *, load_factor: float = 1.25, spill: int = 0, seed: int = 1) -> None: ...

    def choose(self, targets: Sequence[tuple[int, int, int, int, float, int, int]], key: bytes) -> int:
        """
        Index of the chosen one of `targets`: (endpoint, outstanding, load, service_ns, weight, rank, distance).
        """

class Message:
    """
    A view of one message. Holds its slot until released, collected, or the port closes.
    """
    meta: bytes
    key: bytes | None
    sequence: int
    producer: int
    producer_incarnation: int
    flow: int
    flow_seq: int
    correlation: int
    reply_flow: int
    flags: int
    redelivered: bool
    expires_ns: int
    type: int
    generation: int
    payload_bytes: int
    def tensor(self, index: int, dtype: str, shape: Sequence[int]) -> ndarray: ...
    def copy_into(self, index: int, target: Any) -> int: ...
    def ack(self) -> None: ...
    def nack(self, reason: int) -> None: ...
    def release(self) -> None: ...

class TensorField:
    def __new__(cls, property: property, slot: Any, native: Any, index: int, /) -> TensorField: ...
    def __get__(self, view: Any, owner: Any = None) -> Any: ...
    def __set__(self, view: Any, value: Any) -> None: ...

class Receiver:
    """The receiving endpoint of a channel. Thread-safe."""

    def receive(self, deadline_ns: int) -> Message | None:
        """
        The next message; None at the deadline (absolute CLOCK_MONOTONIC; 0 = do not wait).

        Raises ClosedError, PeerProtocolError once a lane of this endpoint carried what cannot be true.
        """

    def receive_many(self, count: int, deadline_ns: int) -> list[Message]:
        """Up to `count` messages, waiting for the first only."""

    def pending(self) -> int:
        """Messages drained and not handed over."""

    def close(self, hand_back: bool = False) -> None:
        """
        Waiters get ClosedError; what is queued ends as failed(closed). With `hand_back`, at_least_once: what is
        queued or still comes is neither handed nor ended here, its slots are given back; its senders have it
        until they are told that the flow is lost. What was handed may still be acknowledged. Idempotent.
        """

class BytesMessage(Buffer):
    """
    A received message that is its bytes: buffer protocol, len(), bytes(), == bytes.

    Holds its slot, if it has one, until released or collected.
    """
    __hash__: None = None  # type: ignore[assignment]
    key: bytes | None
    sequence: int
    producer: int
    producer_incarnation: int
    redelivered: bool
    expires_ns: int
    payload_bytes: int
    correlation: int
    header: Any
    def __new__(cls, message: Message, provide: Any) -> BytesMessage: ...
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int) -> memoryview: ...
    def __eq__(self, other: object) -> bool: ...
    def __enter__(self) -> BytesMessage: ...
    def __exit__(self, *_: object) -> None: ...
    def ack(self) -> None: ...
    def nack(self, reason: int = 5) -> None: ...
    def release(self) -> None: ...
    def tobytes(self) -> bytes: ...

class SendingEnd:
    """Native base of a sender. Thread-safe."""
    def _bind(self, native: Sender, encode: Any, plan: Any, default_ns: int, seconds_max: float, /) -> None: ...
    def _set_direct(self, is_direct: bool, /) -> None: ...
    def _set_asks(self, asks: bool, /) -> None: ...
    def send(self, message: Any, key: str | bytes | None = None, deadline: float | None = None) -> int: ...
    def send_many(self, messages: Sequence[Any], keys: Any = None, deadline: float | None = None) -> int: ...
    def send_at_once(self, message: Any, key: str | bytes | None, /) -> int | None: ...
    def send_many_at_once(self, messages: Sequence[Any], /) -> int: ...

class ReceivingEnd:
    """Native base of a receiver. Thread-safe."""
    def _bind(self, native: Receiver, unpack: Any, plan: Any, default_ns: int, seconds_max: float, type: int = 0, /) -> None: ...
    def receive(self, timeout: float | None = None) -> Any: ...
    def receive_many(self, count: int, timeout: float | None = None) -> list[Any]: ...

class BytesReceivingEnd(ReceivingEnd):
    """Native base of a receiver of plain bytes. Thread-safe."""
    def receive_bytes(self, timeout: float | None = None) -> bytes | None: ...
    def receive_many_bytes(self, count: int, timeout: float | None = None) -> list[bytes]: ...

def inspect_state(fd: int) -> dict[str, Any]:
    """
    What a state segment says: port, incarnation, tenant, heartbeat_ns, busy, flows, held, ledgers.

    Ledger `counts` are the folded ones; `outstanding` lists every entry behind the tail, states as words
    (pending, accepted, ended, waiting). Raises InternalError for what cannot be true.
    """

def inspect_ledgers(fd: int, endpoints: Sequence[int]) -> list[dict[str, Any]]:
    """
    The ledgers of some endpoints, as `inspect_state` gives them; those that there are.
    """

def inspect_lane(fd: int, direction: int) -> dict[str, Any]:
    """
    records [(flow, flow_seq, sequence, channel)], returns [(kind, flow, a, b, end, reason)] and cursors of
    one direction (d: written by side d). Raises InternalError for a cursor or record that cannot be true.
    """

class Adopter:
    """Acts for a dead port: settles its ledgers. Not thread-safe."""

    def __init__(self, state_fd: int) -> None: ...

    def add_lane(self, pair_fd: int, side: int, lane: int = 0) -> None:
        """
        A lane of the dead port; `side` is the dead port's. All of them before the first step().
        """

    def place_flow(self, flow: int, lane: int) -> None:
        """No other lane has a say in how its messages ended."""

    def lose_flow(self, flow: int, handed_upto: int, reason: int) -> None:
        """The flow's receiver is dead, too: settle what is left of it."""

    def step(self) -> int:
        """Apply what was returned; outstanding messages left."""

    def finish(self, reason: int) -> None:
        """Everything left fails with `reason`."""

def float_encode_max(bytes: int, width: int, row: int) -> int: ...

def float_encode(data: Buffer, out: Buffer, width: int, rotated: bool, row: int) -> int: ...

def float_decoded_bytes(data: Buffer) -> int: ...

def float_decode(data: Buffer, out: Buffer) -> None: ...

def quantize(numbers: Buffer, codes: Buffer, scales: Buffer, number: int, code: int, rows: int, columns: int, group: int) -> tuple[float, float, float, bool]: ...

def dequantize(codes: Buffer, scales: Buffer, numbers: Buffer, code: int, number: int, rows: int, columns: int, group: int) -> None: ...

class StateSampler:
    """Looks at a living port from outside; the fd stays the caller's."""

    def __init__(self, fd: int) -> None: ...

    def sample(self) -> dict[str, Any]:
        """
        heartbeat_ns; ledgers, counts by (end, reason), asides included; flows; held, one row a channel.

        Never raises for a race; sums may be of slightly different moments.
        """

class LaneSampler:
    """Looks at a lane pair from outside; the fd stays the caller's."""

    def __init__(self, fd: int) -> None: ...

    def sample(self, direction: int) -> dict[str, int]:
        """
        record_bytes and returns in the rings of a direction now, and what went through since creation.
        """

def sample_segment(fd: int) -> dict[str, int]:
    """slot_bytes, slot_count and taken slots of an arena segment."""

def simulate_plan(text: str, bucket_ns: int = 50000000) -> dict[str, Any]:
    """
    Run one schedule (docs/guides/simulation.md); ``violation`` is empty when everything held. ValueError names a line.
    """

def random_plan(seed: int) -> str:
    """The schedule that a seed draws, as text."""

def simulate_seeds(first: int, count: int) -> list[tuple[int, int, str]]:
    """
    Run the schedules of `count` seeds; returns (seed, at_ns, violation) of those in which something did not hold.
    """

def simulate_cluster(policy: str, nodes: int, rates: Sequence[float], delay_ns: int, transfers: Sequence[tuple[int, int, int, int]], slow: Sequence[tuple[int, int, float]], flows: int, seed: int) -> dict[str, Any]:
    """
    Replay transfers (at_ns, bytes, source, target) over nodes with rails of `rates` (bytes/s); `slow` holds (node, rail, factor). policy: adaptive, hashed, striped. ``took_ns`` by transfer.
    """

class RailScheduler:
    """
    Which rail carries the next chunk: the engine's own object, driven by `now` in ns.
    """

    def __init__(self) -> None: ...

    def rail_up(self, rail: int, now: int) -> None: ...

    def round_trip(self, rail: int, ns: int, now: int) -> None: ...

    def pin(self, mask: int) -> None:
        """A bit per rail; 0: all."""

    def pick(self, left: int, pending: int, now: int, avoid: int = 0) -> tuple[int, int] | None:
        """Rail for the next chunk and its bytes; None: wait for a delivery."""

    def posted(self, rail: int, bytes: int, tag: int, now: int) -> int:
        """Returns the ticket to deliver."""

    def delivered(self, ticket: int, now: int) -> None: ...

    def fastest(self) -> int | None:
        """The rail for what goes whole; None: no healthy one."""

    def tick(self, now: int) -> tuple[list[int], list[int]]:
        """
        Judges the rails: tags to post again, rails whose connections to give up.
        """

    def terms(self, rail: int, bytes: int, now: int) -> dict[str, Any]:
        """
        state, rate, rate_now, base_ns, inflight, window, finish_ns, left_out of a rail, for `bytes` more.
        """

def inproc_pair() -> tuple[int, int]:
    """Ids of both ends of a fresh in-process link, for Engine.add_inproc."""

class Engine:
    """The node's gateway: one native thread between lanes and links."""

    def __init__(self, port: int, incarnation: int, state_fd: int, doorbell_fd: int, event_fd: int) -> None: ...

    def start(self) -> None: ...

    def stop(self, drain_ms: int) -> None: ...

    def event_fd(self) -> int:
        """Readable when events() has something."""

    def events(self) -> list[dict[str, Any]]: ...

    def stats(self) -> dict[str, Any]:
        """
        Counters and gauges at one moment. `groups`: one dict per session and connection group (session, group, up, bytes_in,
        bytes_out, frames_in, frames_out, rtt_ns, link_retransmits, backlog_bytes, features). `sessions`: per session, counters
        since it began (messages_in/out, payload_bytes_in/out: hop-acknowledged; retransmits, repeats, crc_errors, chunks_late, gaps,
        breaks, silent_breaks, protocol_breaks, transfers_done_in/out, transfers_aborted, transfers_stalled, backlog_stalls,
        lane_stalls, slot_stalls, foreign) and gauges (transfers_in/out, reports_unacked, reports_blocked). `closed_sessions`:
        the same counters summed over sessions that ended. `ends`: (end, reason, count) of messages that ended in the engine.
        Engine-wide gauges: flows_out, flows_in, unknown_flows, orphan_returns, slots_taken, slot_waits, segment_waits; counters:
        wakeups, releases_refused, limits_hit.
        """

    def inject(self, fault: str, argument: int) -> None:
        """
        Test faults, refused unless FABRIC_FAULTS=1. Links, all present and future ones (0 = off): link_delay_us, link_rate_bytes
        (a second), link_lose, link_repeat, link_reorder, link_corrupt (the n-th frame, then one in n), link_stall (ms), link_cut_at (once,
        after so many posted bytes), link_none (all off). Behind the link, the n-th once: corrupt_chunk, lose_record, repeat_record,
        flip_after_checksum, zero_after_checksum; stall (ms), drop_connection (group).
        """

    def add_lane(self, lane: int, pair_fd: int, side: int, klass: int, peer_port: int, peer_incarnation: int, peer_doorbell_fd: int, peer_event_fd: int, tenant: int = 0) -> None:
        """`tenant`: whose port it leads to; tenants share a peer equally."""

    def remove_lane(self, lane: int) -> None: ...

    def add_segment(self, segment: int, fd: int, writable: bool) -> None: ...

    def idle_segments(self) -> list[int]:
        """Own segments with every slot free."""

    def drop_segment(self, segment: int) -> None:
        """
        Unmap it; messages that wait for a foreign one that will not come end as failed(corrupted). CapacityError while a
        slot of an own one is taken.
        """

    def ask_again(self) -> None:
        """
        Ask again for what could not be served: tells `grow` anew for what still waits.
        """

    def reclaim(self, segment: int, holders: Sequence[tuple[int, int, int, int]]) -> int:
        """
        After a restart: frees the slots of an own segment; returns how many. Kept are those that `holders` (slot, generation,
        flow, lane) read, taken from the held tables after every lane was added, and those named by records still in a lane.
        """

    def drained(self, lane: int) -> bool: ...

    def open_session(self, session: int, peer_node: int, peer_incarnation: int) -> None: ...

    def add_connection(self, session: int, fd: int, group: int, features: int = 0) -> None:
        """
        Takes a handshaken socket (also on failure). Group: rail × 2 + kind; kind 0 is control and token, 1 embedding and
        bulk. `features`: what the handshake agreed on; 1: chunks without checksums.
        """

    def rails(self, session: int, size: int = 1048576) -> list[dict[str, Any]]:
        """
        The terms of each rail's score now: rail, state, rate and rate_now (bytes/s), base_ns, inflight and window (bytes),
        finish_ns (predicted, for `size` bytes), silent_ns, delivered and resent (bytes), failures, penalty, held_until_ns,
        is_primary (records go over it), left_out (why it gets no chunks although it is up; empty: it does).
        """

    def decisions(self, session: int) -> list[dict[str, Any]]:
        """
        The last choices of a rail for a chunk, with every usable rail's predicted finish (0: not usable).
        """

    def pin(self, session: int, mask: int) -> None:
        """Use only these rails, a bit each; 0: all."""

    def lose_rail(self, session: int, rail: int, reason: str) -> None:
        """Give up both connections of a rail now: its interface is gone."""

    def add_inproc(self, session: int, link: int, group: int) -> None: ...

    def add_link(self, session: int, link: object, group: int, features: int = 0) -> None:
        """
        As add_connection, with a link that another extension module made (fabric.links.ucx); once taken it is the engine's.
        """

    def close_session(self, session: int) -> None: ...

    def add_forward(self, flow: int, lane: int, session: int) -> None: ...

    def weigh(self, channel: int, weight: int) -> None:
        """
        A channel's part of what a tenant's channels send to one peer in large messages; 1 unless said.
        """

    def add_deliver(self, flow: int, lane: int, session: int, published: int = 0) -> None:
        """
        `published`: last flow_seq known to have reached the receiver (its `drained`), 0 for a new flow.
        """

    def remove_flow(self, flow: int) -> None: ...
