// Sampling of living segments from outside, for telemetry: cheap, bounded, and never an error for a race.
//
// Each value is one that its owner keeps anyway; nothing is written, and no page is read that nobody wrote. A sampler
// keeps its mapping, so a look costs little more than reads. Against a hostile owner every loop is bounded by the layout, not by what is read. A ledger's counts are of
// one moment (or left out, or folded ones only: never too many); different rows may be of different moments:
// `inspect.hpp` is for those who must have all of one.
#pragma once

#include <vector>

#include "core/layout.hpp"
#include "core/memory.hpp"

namespace fabric {

struct SampledLedger {
  u64 endpoint, accepted, delivered_bytes, outstanding, outstanding_bytes, waiting;
  u64 counts[4][static_cast<int>(Reason::count)];  ///< folded, unfolded and aside; [none] is empty
  u32 channel;
  u8 pattern, delivery, klass;
};
struct SampledFlow { u64 flow, endpoint, drained, handed, ended_upto, returned, payload_bytes; u32 channel, lane; };
/// What a port holds of one channel. A view is a message that was handed over and keeps its slot.
struct SampledHeld { u64 queued, queued_bytes, views, view_bytes, oldest_view_ns; u32 channel; };
struct SampledState {
  u64 heartbeat_ns;
  std::vector<SampledLedger> ledgers;
  std::vector<SampledFlow> flows;
  std::vector<SampledHeld> held;
};
struct SampledLane { u64 record_bytes, record_bytes_total, returns, returns_total; };
struct SampledSegment { u64 slot_bytes; u32 slot_count, taken; };

class StateSampler {
 public:
  Status open(int fd);
  void sample(SampledState& out) const;

 private:
  Mapping mapping_;
  Fd fd_;                                          ///< a duplicate
};

class LaneSampler {
 public:
  Status open(int fd);
  SampledLane sample(int direction) const;  ///< direction 0 or 1

 private:
  Mapping mapping_;
};

/// Slots of an arena segment and how many are taken; reads the segment's head only.
Status sample_segment(int fd, SampledSegment& out);

}  // namespace fabric
