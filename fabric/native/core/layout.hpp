// Every byte that two processes share: records, rings, state and doorbell segments, slot tables.
//
// Plain data only: no logic, no allocation. All integers are little-endian; every struct is
// standard-layout and its size is asserted. Who may write which part is said beside each struct.
// docs/WIRE.md §2 describes the same bytes in words; tests/tidy compares fabric/limits.py with §limits.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace fabric {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

// ------------------------------------------------------------------ limits (fabric/limits.py)
inline constexpr u8 kRecordVersion = 1;
inline constexpr u32 kRecordHeaderBytes = 64;
inline constexpr u32 kInlineBytesMax = 4096;      ///< meta + tensors carried in the ring
inline constexpr u32 kRecordBytesMax = 8192;      ///< header + extensions + table + inline
inline constexpr u32 kSegmentsPerRecordMax = 64;
inline constexpr u32 kLaneBytes = 256 * 1024;     ///< power of two, one direction
inline constexpr u32 kFlowPendingMax = 384 * 1024;  ///< of a flow from a peer: its lane's worth, producers named
inline constexpr u32 kReturnEntries = 4096;       ///< power of two, one direction
inline constexpr u32 kLanesPerPortMax = 1024;     ///< bits of the ready bitmap
inline constexpr u32 kEndpointsPerPortMax = 2048; ///< sender ledgers
inline constexpr u32 kFlowsInPerPortMax = 1024;
inline constexpr u32 kOutstandingPerEndpoint = 2048;  ///< power of two
inline constexpr u32 kFlowSpanMax = 262144;       ///< messages of a flow since its oldest that has not ended
inline constexpr u32 kHeldPerPort = 8192;
inline constexpr u32 kSlotsPerSegmentMax = 1024;
inline constexpr u32 kTensorsPerMessageMax = 64;
inline constexpr u32 kKeyBytesMax = 512;
inline constexpr u32 kPinsPerSenderMax = 65536;   ///< keys that a stream sender remembers
inline constexpr u32 kLinkPingMs = 1000;          ///< a connection on which nothing was heard this long is asked
inline constexpr u32 kLinkSilentMs = 2500;        ///< and broken when it is silent this long; below the lease
inline constexpr u32 kTransferStallMs = 2000;     ///< chunks that left and are not acknowledged go again
inline constexpr u32 kTransferStallsMax = 3;      ///< in a row, then the connections of the session are broken
inline constexpr u32 kTransferSilentMs = 10000;   ///< a granted transfer without chunks breaks the connection
inline constexpr u32 kUnknownFlowsMax = 4096;     ///< flows that a peer names before they are set up, per session
inline constexpr u32 kReportsUnackedMax = 16384;  ///< return entries on their way, per session and direction
inline constexpr u32 kChunksBadMax = 16;          ///< corrupted chunks of one transfer, then it has failed
inline constexpr u32 kCacheLine = 64;

// ------------------------------------------------------------------ words
enum class Class : u8 { control = 0, token = 1, embedding = 2, bulk = 3 };
enum class Pattern : u8 { stream = 0, queue = 1, broadcast = 2, request = 3, reply = 4 };
enum class Delivery : u8 { at_most_once = 0, at_least_once = 1 };
enum class Overflow : u8 { block = 0, drop_oldest = 1, drop_newest = 2, reject = 3 };
enum class MemoryKind : u8 { host = 0, pinned = 1, cuda = 2, foreign = 3 };

/// How a message ended. The pair (end, reason) is what the ledger counts.
enum class End : u8 { none = 0, delivered = 1, dropped = 2, failed = 3 };
enum class Reason : u8 {
  none = 0,
  expired = 1,           // dropped: deadline passed before it was handed over
  overflow_oldest = 2,   // dropped
  overflow_newest = 3,   // dropped
  rejected = 4,          // failed: overflow policy reject
  consumer_error = 5,    // failed: the consumer refused it (nack)
  peer_lost = 6,         // failed: consumer died before it was handed over
  outcome_unknown = 7,   // failed: handed over, consumer or path died before the acknowledgement
  path_broken = 8,       // failed: no path within the deadline
  cancelled = 9,         // dropped: the sender or requester cancelled it
  closed = 10,           // failed: channel or endpoint closed
  corrupted = 11,        // failed: checksum or generation did not hold
  no_target = 12,        // failed: no consumer within the deadline
  transform_drop = 13,   // dropped by a transform
  transform_error = 14,  // failed in a transform
  sender_lost = 15,      // failed: the sender died before it was in a lane
  count = 16,
};

/// One store of its own into memory that others read. Neighbouring fields that the compiler puts together on the stack and
/// moves by wider loads wait for their own stores: a dozen cycles each time.
inline void store_word(void* at, u64 value) { __atomic_store_n(static_cast<u64*>(at), value, __ATOMIC_RELAXED); }

// ------------------------------------------------------------------ record
enum RecordFlag : u16 {
  kFlagRedelivered = 1 << 0,
  kFlagMetaInSegment = 1 << 1,  // segment 0 holds the inline part (too large for the ring)
  kFlagStreamEnd = 1 << 2,      // last message of a streamed reply
  kFlagStreamMore = 1 << 3,     // a streamed reply, more to come
  kFlagError = 1 << 4,          // the inline part is an error report (reply)
  kFlagCancel = 1 << 5,         // cancels `correlation`
  kFlagBare = 1 << 6,           // the inline bytes are the meta alone: no InlineHead, no tensors
  kFlagEnded = 1 << 14,         // in a lane to a gateway: ended and reported there, travels on as a skip record
  kFlagPad = 1 << 15,           // ring filler up to the wrap; skip total_len bytes
};

/// skip: header and extensions only. The message with this flow_seq ended at an earlier hop, which has
/// reported the end; the reader counts 1 message and `payload_bytes` as drained (sequence and credit),
/// hands over nothing and reports nothing. Written by gateways.
enum class RecordKind : u8 { message = 0, skip = 1 };

/// Fixed head of every record in a lane and of every EAGER / ANNOUNCE frame (there `deadline_ns`
/// holds remaining nanoseconds, in a lane absolute CLOCK_MONOTONIC; 0 = none).
/// Followed by extensions (TLV, to header_len8 * 8), the segment table, the inline bytes.
struct RecordHeader {
  u8 version;
  u8 header_len8;      ///< header + extensions, in units of 8 bytes
  u16 flags;           ///< RecordFlag
  u32 total_len;       ///< whole record in the ring, before padding to 8
  u64 flow;            ///< cluster-wide flow id: sender node << 48 | counter
  u64 flow_seq;        ///< 1, 2, 3 … within the flow; receivers refuse gaps and discard repeats
  u64 sequence;        ///< the producer's own number; kept over redelivery
  u64 deadline_ns;
  u32 channel;         ///< registry number
  u32 type;            ///< low 32 bits of the type fingerprint
  u32 generation;      ///< plan generation that routed it
  u8 klass;            ///< Class
  u8 kind;             ///< RecordKind; other values are refused
  u16 segment_count;
  u64 payload_bytes;   ///< inline bytes + all segment lengths
};
static_assert(sizeof(RecordHeader) == kRecordHeaderBytes);

/// What the inline bytes begin with, unless they are bare (and segment 0, if kFlagMetaInSegment): {InlineHead, u64 size of
/// each tensor, meta, zeros to 64}, then, when the tensors are inline too, each tensor at a multiple of
/// 64 from the start of the inline bytes. Otherwise the tensors lie in the last segment, each at a
/// multiple of 64 from its offset. Gateways carry these bytes unread.
struct InlineHead { u32 meta_bytes; u32 tensor_count; };

/// Extension: {u16 type, u16 len, len bytes, zero padding to 8}. Unknown types are skipped.
enum class Extension : u16 { producer = 1, key = 2, correlation = 3, trace = 4, tenant = 5 };
struct ExtensionHead { u16 type; u16 len; };
struct ProducerExtension { u64 port; u64 incarnation; };                // absent: the peer of the lane
struct CorrelationExtension { u64 id; u64 reply_flow; };                // request and reply

/// One piece of out-of-line payload.
struct SegmentEntry {
  u8 memory_kind;      ///< MemoryKind
  u8 device;           ///< cuda ordinal
  u16 numa_node;       ///< 0xffff unknown
  u32 tenant;          ///< uid of the owner
  u32 segment;         ///< node-wide segment id
  u32 slot;
  u32 generation;      ///< must equal the slot's, before and after the read
  u32 index_count;     ///< 0 = contiguous
  u64 offset;          ///< bytes from the slot's start
  u64 length;
  u64 ready_fence;     ///< 0 = ready
};
static_assert(sizeof(SegmentEntry) == 48);

// ------------------------------------------------------------------ lane pair segment (one memfd)
// One per (port pair, class): side 0 is the port with the smaller id. Each direction has a record
// ring (written by the sending side) and a return ring (written by the receiving side). A cursor is
// a byte or entry count since creation; it only grows; position = cursor & (size - 1).
struct alignas(kCacheLine) Cursor {
  std::atomic<u64> value;
  u8 pad[kCacheLine - sizeof(std::atomic<u64>)];
};
/// head: producer only. tail: consumer only, released after the record was taken over.
struct RingCursors { Cursor head; Cursor tail; };

/// What flows back from a receiver (or gateway) to the sending side.
enum class ReturnKind : u8 { end = 1, credit = 2, release = 3 };
struct ReturnEntry {
  u64 flow;
  u64 a;        ///< end: first flow_seq · credit: messages, cumulative · release: segment << 32 | slot
  u64 b;        ///< end: last flow_seq  · credit: bytes, cumulative    · release: slot generation
  u8 kind;      ///< ReturnKind
  u8 end;       ///< End
  u8 reason;    ///< Reason
  u8 pad;
  u32 epoch;    ///< credit epoch; an older epoch is ignored
};
static_assert(sizeof(ReturnEntry) == 32);

struct LaneHead {
  u64 magic;        ///< "FABLANE1"
  u32 version;
  u32 klass;
  u64 port[2];      ///< port ids, ascending
  u64 incarnation[2];
  u32 lane_bytes;
  u32 return_entries;
};
inline constexpr u64 kLaneMagic = 0x31454e414c424146ULL;
struct LaneDirection {       // direction d: from side d to side 1-d
  RingCursors records;       // head written by side d, tail by side 1-d
  RingCursors returns;       // head written by side 1-d, tail by side d
};
struct LanePairLayout {
  alignas(4096) LaneHead head;
  alignas(4096) LaneDirection direction[2];
  alignas(4096) u8 records[2][kLaneBytes];
  alignas(4096) ReturnEntry returns[2][kReturnEntries];
};

// ------------------------------------------------------------------ doorbell segment (peers write)
/// messages: on the futex, too, but what its own messages came to is not what the owner waits for.
enum class Wake : u32 { awake = 0, futex = 1, eventfd = 2, messages = 3 };
struct DoorbellLayout {
  alignas(kCacheLine) std::atomic<u32> state;   ///< Wake; also the futex word
  alignas(kCacheLine) std::atomic<u64> ready[kLanesPerPortMax / 64];  ///< bit = lane number mod kLanesPerPortMax
  alignas(kCacheLine) std::atomic<u32> cpu;     ///< 1 + where the owner ran last, by the owner; 0 unknown
};

// ------------------------------------------------------------------ state segment (one port writes, but for `freeze`)
// Read by the daemon (audit, death handling). After the port's death the daemon writes it (adoption).
struct StateHead {
  u64 magic;                           ///< "FABSTAT1"
  u32 version;
  u32 tenant;
  u64 port;
  u64 incarnation;
  std::atomic<u64> heartbeat_ns;       ///< CLOCK_MONOTONIC, by the native service thread
  std::atomic<u32> busy;               ///< 1 inside an operation; see docs/ARCHITECTURE.md §audit
  std::atomic<u32> held_high;          ///< entries of the held table ever used
  std::atomic<u64> overruns;           ///< operations that went on in a freeze: a cut that saw it change is none
  std::atomic<u32> freeze;             ///< written by the daemon only: an audit's cut is taken. No peer can map it
};
inline constexpr u64 kStateMagic = 0x3154415453424146ULL;

/// moving: this entry takes over what the oldest entry holds. ended with End::none: it was taken over.
enum class OutState : u8 { empty = 0, pending = 1, accepted = 2, ended = 3, waiting = 4, moving = 5 };
/// One accepted message (of a broadcast: one copy) that has not ended. Index = sequence & (kOutstandingPerEndpoint - 1).
/// `sequence` numbers entries, not messages: an entry that lives long moves behind younger ones (Ledger::relocate).
struct OutEntry {
  std::atomic<u64> sequence;
  u64 flow;                            ///< 0 while it waits for a consumer (state waiting)
  u64 flow_seq;
  std::atomic<u32> word;               ///< OutState | End << 8 | Reason << 16: one store ends it
  u32 position;                        ///< low 32 bits of the lane cursor at which its record begins
  u64 payload_bytes;
};
static_assert(sizeof(OutEntry) == 40);

/// Folded ends: `tail` and its counters flip together through `active`.
struct Fold {
  u64 tail;                            ///< every sequence <= tail has ended and is counted here
  u64 delivered_bytes;                 ///< payload of those that were delivered
  u64 count[4][static_cast<int>(Reason::count)];   ///< [End][Reason]
};
/// A message that ends in the call that sends it needs no entry: one store counts it as accepted and as ended.
enum class Aside : u8 { overflow_newest = 0, rejected = 1, no_target = 2, count = 3 };
struct SenderLedger {
  u64 endpoint;                        ///< 0 = free
  u32 channel;
  u8 pattern, delivery, klass, pad;
  std::atomic<u64> accepted;           ///< last accepted entry
  std::atomic<u32> active;             ///< which Fold holds
  u32 pad2;
  Fold fold[2];                        ///< count[none][none]: entries that moved
  std::atomic<u64> aside[static_cast<int>(Aside::count)];
  alignas(kCacheLine) OutEntry outstanding[kOutstandingPerEndpoint];
};

/// The receiving half of a flow.
struct FlowIn {
  std::atomic<u64> flow;               ///< 0 = free
  u64 endpoint;
  u32 channel;
  u32 lane;
  std::atomic<u64> drained;            ///< last flow_seq taken from the lane
  std::atomic<u64> handed;             ///< last flow_seq handed to the endpoint
  std::atomic<u64> ended_upto;         ///< every flow_seq <= this was reported in the return ring
  std::atomic<u64> reported[4];        ///< ends reported, by End; [none] = ended at an earlier hop
                                       ///< Σ reported + returned + held (queued, handed) == drained, at every cut
  std::atomic<u64> returned;           ///< handed back, neither handed nor ended: (handed, drained] of a flow whose
                                       ///< receiver closed so; its sender has them still
  std::atomic<u64> payload_bytes;      ///< of what was drained
};

enum class HeldState : u8 { free = 0, queued = 1, handed = 2, ended = 3, releasing = 4 };
/// One message between lane and end, or one view that still holds its slot. Only the reader writes.
struct HeldEntry {
  u64 flow;
  u64 flow_seq;
  u32 segment;                         ///< first segment; more are in the record it was drained with
  u32 slot;
  u32 generation;
  std::atomic<u32> word;               ///< HeldState | segment_count << 8
  u64 since_ns;                        ///< CLOCK_MONOTONIC: queued, later handed (to some milliseconds)
  u64 payload_bytes;
  u32 channel;
  u32 pad[3];
};
static_assert(sizeof(HeldEntry) == kCacheLine);

struct StateLayout {
  alignas(4096) StateHead head;
  alignas(4096) FlowIn flows[kFlowsInPerPortMax];
  alignas(4096) HeldEntry held[kHeldPerPort];
  alignas(4096) SenderLedger ledger[kEndpointsPerPortMax];
};

// ------------------------------------------------------------------ arena segment (owner writes)
// One size class per segment: slot i lies at data_offset + i * slot_bytes.
struct SlotMeta {
  std::atomic<u32> generation;         ///< odd = loaned or sent, even = free; +1 at each change
  u32 pad;
};
struct SegmentLayout {                 // at offset 0 of the memfd
  u64 magic;                           ///< "FABSEGM1"
  u32 version;
  u32 segment;
  u64 port;
  u64 incarnation;
  u32 tenant;
  u32 numa_node;
  u64 slot_bytes;
  u32 slot_count;
  u32 pad;
  u64 data_offset;                     ///< multiple of 4096
  u8 pad2[kCacheLine - 8];
  SlotMeta slots[kSlotsPerSegmentMax];
};
inline constexpr u64 kSegmentMagic = 0x314d474553424146ULL;

static_assert(std::atomic<u64>::is_always_lock_free && std::atomic<u32>::is_always_lock_free);

}  // namespace fabric
