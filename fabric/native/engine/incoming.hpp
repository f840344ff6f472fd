// The receiving half: records and payload on their way from a session into a local lane.
//
// Engine thread (its lock) only. Entries of a flow are published strictly in flow_seq order; a
// transfer is published after every byte was verified. Slots belong to the engine's arena and come
// back through the receiver's return ring.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "core/arena.hpp"

namespace fabric {

struct EngineLane;
struct Deliver;

struct InTransfer {
  u64 id = 0, session = 0;
  u64 total = 0;                        // extent of the slot
  u64 expected = 0;                     // Σ segment lengths
  u64 received = 0;
  SlotRef slot;
  u8* base = nullptr;
  u64 moved_ns = 0;                     // granted, or a chunk was verified
  std::map<u64, u64> ranges;            // verified: offset → length
  bool covers(u64 offset, u64 length) const;
  bool overlaps(u64 offset, u64 length) const;
  void take(u64 offset, u64 length);    ///< it does not overlap what was taken
};

struct Incoming {
  u64 flow_seq = 0;
  std::vector<u8> record;               // deadline already absolute
  std::unique_ptr<InTransfer> transfer;
  bool ready = false;
};

struct Deliver {
  u64 id = 0, session = 0;
  EngineLane* lane = nullptr;
  u64 last = 0;                         // last flow_seq appended
  u64 published = 0;                    // last flow_seq in the lane
  bool known = false;                   // false: any first flow_seq is taken (successor of a killed engine)
  bool ack_due = false, gap_told = false, lane_blocked = false;
  std::deque<Incoming> pending;
  u64 pending_bytes = 0;                // of records: all lie in the sender's lane, so no more than that holds
};

}  // namespace fabric
