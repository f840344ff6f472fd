// The sending half: what was read from a local lane and has not been taken over by the peer.
//
// Engine thread (its lock) only. The lane is the durable copy: its tail moves only over entries that
// are acknowledged and whose ends and releases lie in the return ring, so a killed engine loses
// nothing. Entries live in the lane's deque; every other reference to them is a plain pointer.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <unordered_map>
#include <vector>

#include "core/arena.hpp"
#include "core/doorbell.hpp"
#include "core/ring.hpp"
#include "engine/bulk_queue.hpp"

namespace fabric {

struct Outgoing;
struct Session;

/// One contiguous part of a transfer, never across two segments.
struct Chunk { u32 piece; u64 length; u64 source_offset; u64 target_offset; };

inline constexpr u64 kNoTicket = ~u64{0};
inline constexpr u32 kTagChunkBits = 24;  // a transfer has at most kTransferBytesMax / kChunkMin chunks, and one a piece

/// A chunk that was cut, and so keeps its bounds; `tickets` of the rails that carry it now.
struct CutChunk {
  Chunk what;
  u64 tickets[2] = {kNoTicket, kNoTicket};
  u32 tried = 0;                       // bit per rail that carried it
  bool acked = false, queued = false;
};

struct OutTransfer {
  u64 id = 0, flow = 0, flow_seq = 0, deadline_ns = 0;
  Share share;
  Outgoing* owner = nullptr;
  std::vector<SegmentEntry> pieces;
  std::deque<Chunk> uncut;             // what was never posted, in order; cut to the measure of the rail that takes it
  std::vector<CutChunk> chunks;        // in the order of their offsets
  std::deque<u32> again;               // indices into chunks: to be posted again
  u64 left = 0;                        // bytes in `uncut` and `again`
  u64 queued_bytes = 0;                // of `left`, what its queue counts
  u64 total = 0;                       // bytes of the destination slot
  u32 bad = 0;                         // chunks that the receiver found corrupted
  u32 klass = 3, stalls = 0;           // stalls: in a row
  u64 moved_ns = 0;                    // granted, posted or acknowledged last
  bool granted = false, queued = false;
};

struct Forward;
struct EngineLane;

struct Outgoing {
  EngineLane* lane = nullptr;
  Forward* flow = nullptr;
  u64 cursor_begin = 0;                // where it lies in the lane
  u64 cursor_end = 0;                  // lane tail once it is released
  u64 flow_id = 0, flow_seq = 0, deadline_ns = 0;
  std::vector<u8> record;              // private, checked copy
  std::vector<SlotRef> slots;
  std::shared_ptr<OutTransfer> transfer;
  End end = End::none;                 // decided here (expired, corrupted): sent on as a skip record
  Reason reason = Reason::none;
  bool end_published = false;
  bool sent = false;                   // record, or every chunk, was posted at least once: cannot expire
  bool acked = false;
  bool timed = false;
  std::size_t released = 0;            // slots already in the return ring
};

struct Forward {
  u64 id = 0;
  EngineLane* lane = nullptr;
  u64 session = 0;                     // 0: not known yet
  u32 kind = 0;                        // which of its rail's connections carries it
  std::deque<Outgoing*> unacked;       // in flow_seq order
  std::size_t next = 0;                // first entry to post
  std::size_t window = ~std::size_t{0};  // entries posted and not acknowledged; small after a loss, doubles with each acknowledgement
  bool refused = false;                // peer does not know the flow yet
  bool blocked = false;                // in the session's list of flows that wait for the link
};

/// A report waiting for room in a local return ring.
struct HeldReturn { ReturnEntry entry; u64 session; u64 number; };

inline constexpr u32 kReturnsUnheardMax = 64;  // rings that a port may sleep through

struct EngineLane {
  u32 number = 0, klass = 0, tenant = 0;
  int side = 0;
  u64 peer_port = 0, peer_incarnation = 0;
  LaneEnd end;
  DoorbellRinger ringer;
  bool dirty = false;                  // ring at the end of the step
  bool has_message = false;            // for more than returns
  u32 wakes_owed = 0;                  // rung for returns while its peer slept for a message
  bool broken = false;                 // a cursor or record that cannot be true
  std::deque<Outgoing> outgoing;
  std::deque<Outgoing*> ends_due;      // decided ends that found the return ring full
  std::deque<HeldReturn> return_backlog;
  // returns_in: what R told, read ahead of the tail
  struct Reading { u64 cursor_end; bool done; ReturnEntry entry; };
  std::deque<Reading> readings;
  u64 readings_base = 0;               // number of readings.front()
  std::vector<u64> blocked_flows;      // inbound flows that found the lane full
  std::set<u64> flows_seen;            // inbound flows whose reader this lane's peer is
};

}  // namespace fabric
