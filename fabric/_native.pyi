# CONTRACT DRAFT: replaced by the generated stub once the binding exists; names and semantics stay.
from typing import Any, Sequence
import numpy as np

has_tcp: bool
record_version: int

def monotonic_ns() -> int: ...
def crc32c(data: Any, seed: int = 0) -> int: ...

# ---- creation of shared segments (daemon side; every fd is a memfd with SHRINK|GROW sealed)
def create_state(port: int, incarnation: int, tenant: int) -> int: ...
def create_doorbell() -> int: ...
def create_lane_pair(klass: int, port0: int, incarnation0: int, port1: int, incarnation1: int) -> int: ...
def create_segment(segment: int, port: int, incarnation: int, tenant: int, slot_bytes: int, slot_count: int) -> int: ...
def seal_segment(fd: int) -> None: ...            # FUTURE_WRITE | SEAL, after the writer has mapped

# ---- what the daemon reads out of segments (audit, death handling); pure reads
def inspect_state(fd: int) -> dict[str, Any]: ...
    # {port, incarnation, heartbeat_ns, busy, flows:[{flow, endpoint, channel, drained, handed, ended_upto, reported:[4]}],
    #  held:[{flow, flow_seq, state, segment, slot, generation, since_ns, channel}],
    #  ledgers:[{endpoint, channel, pattern, delivery, accepted, tail, counts:{(end, reason): n},
    #            outstanding:[{sequence, flow, flow_seq, state, end, reason}]}]}
def inspect_lane(fd: int, direction: int) -> dict[str, Any]: ...
    # {records:[(flow, flow_seq, sequence, channel)], returns:[(kind, flow, a, b, end, reason)], head, tail, return_head, return_tail}
    # raises CorruptError-mapped fabric.errors.InternalError when a cursor or record cannot be true
def freeze(doorbell_fd: int, state_fd: int, deadline_ns: int) -> bool: ...   # True when no operation is inside
def thaw(doorbell_fd: int) -> None: ...

class Port:
    """A process's attachment. All calls are thread-safe; calls that may wait release the GIL."""
    def __init__(self, port: int, incarnation: int, state_fd: int, doorbell_fd: int, event_fd: int, *,
                 adopt: bool = False, service_thread: bool = True) -> None: ...     # fds are dup'ed
    # control thread
    def add_lane(self, lane: int, pair_fd: int, side: int, klass: int, peer_port: int, peer_incarnation: int,
                 peer_doorbell_fd: int, peer_event_fd: int) -> None: ...
    def remove_lane(self, lane: int) -> None: ...
    def add_segment(self, segment: int, fd: int, writable: bool) -> None: ...
    def drop_segment(self, segment: int) -> None: ...
    def idle_segments(self) -> list[int]: ...                  # own segments with every slot free
    def add_flow_out(self, endpoint: int, flow: int, lane: int, target_endpoint: int, messages: int, bytes: int,
                     generation: int, after_drain: bool) -> None: ...    # initial credit; after_drain: first use waits until older flows of the endpoint have nothing outstanding
    def close_flow_out(self, flow: int) -> None: ...           # no new sends; what is out still ends normally
    def lose_flow_out(self, flow: int, handed_upto: int, reason: int) -> None: ...   # consumer or path dead: settle per delivery mode
    def add_flow_in(self, endpoint: int, flow: int, lane: int, producer_port: int, messages: int, bytes: int) -> None: ...
    def close_flow_in(self, flow: int, drain: bool) -> None: ...
    def progress(self) -> int: ...                             # drain lanes + return rings; entries handled
    def event_fd(self) -> int: ...                             # readable after arm() once something is ready
    def arm(self) -> bool: ...                                 # asyncio: set eventfd mode; False = work is already ready
    def disarm(self) -> None: ...
    def stats(self) -> dict[str, Any]: ...
    def close(self) -> None: ...                               # idempotent; never blocks > 1 s
    def open_sender(self, endpoint: int, channel: int, type: int, pattern: int, delivery: int, klass: int) -> Sender: ...
    def open_receiver(self, endpoint: int, channel: int, type: int, pattern: int, delivery: int) -> Receiver: ...

class NeedSegment(Exception):
    """`args = (size_bytes,)` for a sender (ask the daemon for a segment of that slot size, add_segment, repeat the call)
    or `args = (0, segment_id)` for a reader (fetch that segment's fd, add_segment, repeat)."""

class Loan:
    def tensor(self, index: int) -> memoryview: ...            # writable bytes of tensor i (64-byte aligned)
    def discard(self) -> None: ...

class Sender:
    def send(self, meta: bytes, tensors: Sequence[Any], key: bytes | None, deadline_ns: int, *, flow: int = 0,
             correlation: int = 0, reply_flow: int = 0, flags: int = 0, expires_ns: int = 0) -> int: ...
        # copies once; waits for credit until deadline_ns (absolute; 0 = do not wait: WouldBlock). Returns the sequence.
        # tensors: C-contiguous buffers. flow 0 = the endpoint's policy chooses (stream: hash of key; queue: round robin over flows with credit)
        # expires_ns: absolute deadline carried in the record (0 = none)
    def send_many(self, metas: Sequence[bytes], tensors: Sequence[Sequence[Any]], keys: Sequence[bytes | None],
                  deadline_ns: int, *, expires_ns: int = 0) -> int: ...     # how many were accepted; one doorbell
    def loan(self, sizes: Sequence[int]) -> Loan: ...          # one slot, tensors at 64-byte aligned offsets
    def send_loan(self, loan: Loan, meta: bytes, key: bytes | None, deadline_ns: int, *, flow: int = 0, correlation: int = 0,
                  reply_flow: int = 0, flags: int = 0, expires_ns: int = 0) -> int: ...
    def cancel(self, sequence: int) -> bool: ...               # true if it had not been put in a lane
    def flows(self) -> list[dict[str, int]]: ...               # flow, target_endpoint, outstanding, credit_messages, credit_bytes
    def ended_upto(self) -> int: ...                           # progresses, then: every sequence <= this has ended
    def counts(self) -> dict[tuple[int, int], int]: ...        # (end, reason) -> messages, folded and unfolded
    def delivered_bytes(self) -> int: ...
    def flush(self, deadline_ns: int) -> bool: ...             # waits until nothing is outstanding
    def close(self) -> None: ...

class Receiver:
    def receive(self, deadline_ns: int) -> Message | None: ... # None at the deadline; 0 = do not wait
    def receive_many(self, count: int, deadline_ns: int) -> list[Message]: ...
    def pending(self) -> int: ...
    def close(self) -> None: ...                               # what is queued ends as failed(closed); waiters get ClosedError

class Message:
    """A view. Holds its slot until released, collected, or the port closes."""
    meta: bytes
    key: bytes | None
    sequence: int
    producer: int
    producer_incarnation: int
    flow: int
    correlation: int
    reply_flow: int
    flags: int
    redelivered: bool
    expires_ns: int
    type: int
    payload_bytes: int
    def tensor(self, index: int, dtype: str, shape: Sequence[int]) -> np.ndarray: ...
        # tensors lie in order at 64-byte aligned offsets of the tensor area (inline or segment); read-only array
        # over the slot that keeps this message alive. dtype: numpy name; bf16 comes as uint16. Raises NeedSegment,
        # StaleHandleError when the generation does not hold
    def copy_into(self, index: int, target: Any) -> int: ...   # receive_into: one copy, generation checked before and after
    def ack(self) -> None: ...                                 # at_least_once: delivered
    def nack(self, reason: int) -> None: ...
    def release(self) -> None: ...                             # idempotent; acknowledges nothing

class Adopter:
    """Acts for a dead port: settles its ledger from its return rings. Call step() until done() or the deadline."""
    def __init__(self, state_fd: int) -> None: ...
    def add_lane(self, pair_fd: int, side: int) -> None: ...
    def lose_flow(self, flow: int, handed_upto: int, reason: int) -> None: ...
    def step(self) -> int: ...                                 # outstanding messages left
    def finish(self, reason: int) -> None: ...                 # everything left fails with reason

class Engine:
    """The node's gateway: one C++ thread between lanes and links. Owns the gateway Port."""
    def __init__(self, port: int, incarnation: int, state_fd: int, doorbell_fd: int, event_fd: int) -> None: ...
    def start(self) -> None: ...
    def stop(self, drain_ms: int) -> None: ...
    def event_fd(self) -> int: ...                             # readable when events() has something
    def events(self) -> list[dict[str, Any]]: ...
        # {"event": "need_segment", "segment": id} (map a local segment for reading) | {"event": "grow", "slot_bytes": n}
        # | {"event": "link_down", "session": id, "group": 0|1, "reason": str} | {"event": "flow_unknown", "flow": id, ...}
        # | {"event": "stale"| "corrupt", ...}
    def add_lane(self, lane: int, pair_fd: int, side: int, klass: int, peer_port: int, peer_incarnation: int,
                 peer_doorbell_fd: int, peer_event_fd: int) -> None: ...
    def remove_lane(self, lane: int) -> None: ...
    def add_segment(self, segment: int, fd: int, writable: bool) -> None: ...
    def drop_segment(self, segment: int) -> None: ...
    def open_session(self, session: int, peer_node: int, peer_incarnation: int) -> None: ...
    def add_connection(self, session: int, fd: int, group: int) -> None: ...   # handshaken socket; group 0 control+token, 1 bulk; takes the fd
    def close_session(self, session: int) -> None: ...
    def add_forward(self, flow: int, lane: int, session: int) -> None: ...     # sender side: lane -> session
    def add_deliver(self, flow: int, lane: int, session: int, published: int = 0) -> None: ...  # receiver side: session -> lane
        # published: the receiver's `drained` for a flow taken over after a restart; 0 = new or unknown
    def add_inproc(self, session: int, link: int, group: int) -> None: ...     # one end of inproc_pair()
    def reclaim(self, segment: int, keep: Sequence[int]) -> int: ...           # after a restart, before start(): frees own slots not in keep
    def remove_flow(self, flow: int) -> None: ...
    def drained(self, lane: int) -> bool: ...                  # nothing left between tail and head, returns included
    def stats(self) -> dict[str, Any]: ...                     # per session and group: bytes, frames, retransmits, crc_errors, rtt
    def inject(self, fault: str, argument: int) -> None: ...   # test hooks; refused unless FABRIC_FAULTS=1 is in the environment

def inproc_pair() -> tuple[int, int]: ...                      # two link ids for Engine.add_inproc
