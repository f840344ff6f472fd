// What the engine tells the control plane: rare facts, bounded, read in batches over one eventfd.
#pragma once

#include <string>
#include <vector>

#include "core/layout.hpp"

namespace fabric {

inline constexpr std::size_t kEngineEventsMax = 4096;

struct EngineEvent {
  enum class Kind : u8 {
    need_segment, grow, link_down, flow_unknown, stale, corrupt, lane_corrupt, link_silent, transfer_stalled, limit, rail
  };
  Kind kind;
  u64 a = 0;           // segment | slot bytes | session | flow | flow | flow | lane | session | flow | session | session
  u64 b = 0;           // – | – | group | – | flow_seq | flow_seq | – | group | flow_seq | – | rail
  std::string reason;
  u64 carried = 0;     // link_down: bytes that came, and payload that the peer acknowledged, over that connection
};

/// Test hooks behind the link; those of a link are links/fault_link.hpp. Each counts down and fires once.
struct EngineFaults {
  u64 flip_after_checksum = 0;   // n-th delivered bulk payload: one byte, after verification
  u64 zero_after_checksum = 0;   // n-th delivered bulk payload: all bytes
  u64 corrupt_chunk = 0;         // n-th received chunk: one byte, before verification
  u64 lose_record = 0;           // n-th record taken over: acknowledged, never published
  u64 repeat_record = 0;         // n-th record published: twice
  u64 stall_until_ns = 0;

  static bool fires(u64& countdown) { return countdown != 0 && --countdown == 0; }
};

}  // namespace fabric
