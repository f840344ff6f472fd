// Reading of state and lane segments from outside: audit and death handling.
//
// Pure reads on a mapping of their own; meant for frozen or dead ports. What cannot be true (cursors,
// states, records) is an error and not a value, so that an audit over it cannot pass by accident.
#pragma once

#include <span>
#include <vector>

#include "core/ledger.hpp"
#include "core/memory.hpp"

namespace fabric {

struct InspectedFlow { u64 flow, endpoint, drained, handed, ended_upto, reported[4], returned, payload_bytes; u32 channel, lane; };
struct InspectedHeld { u64 flow, flow_seq, since_ns, payload_bytes; u32 channel, segments, segment, slot, generation; HeldState state; };
struct InspectedOut { u64 sequence, flow, flow_seq, payload_bytes; OutState state; End end; Reason reason; };
struct InspectedLedger {
  u64 endpoint, accepted, tail;
  u64 delivered_bytes;                             ///< folded only
  u32 channel;
  u8 pattern, delivery, klass;
  u64 counts[4][static_cast<int>(Reason::count)];  ///< folded only
  std::vector<InspectedOut> outstanding;           ///< everything behind the tail, ended or not
};
struct InspectedState {
  u64 port, incarnation, heartbeat_ns;
  u32 busy, tenant;
  std::vector<InspectedFlow> flows;
  std::vector<InspectedHeld> held;
  std::vector<InspectedLedger> ledgers;
};
struct InspectedRecord { u64 flow, flow_seq, sequence; u32 channel; u8 kind; };
struct InspectedLane {
  u64 head, tail, return_head, return_tail;
  std::vector<InspectedRecord> records;
  std::vector<ReturnEntry> returns;
};

Status inspect_state(int fd, InspectedState& out);
/// Only these ledgers, those of them that there are: what one costs does not grow with how many others there are.
Status inspect_ledgers(int fd, std::span<const u64> endpoints, std::vector<InspectedLedger>& out);
Status inspect_lane(int fd, int direction, InspectedLane& out);

}  // namespace fabric
