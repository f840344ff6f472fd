// Acts for a dead port: settles its ledgers from its return rings and from where its records lie.
//
// One thread; the port's process must be dead (only one writer of a state segment at a time).
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "core/ledger.hpp"
#include "core/ring.hpp"

namespace fabric {

class Adopter {
 public:
  Status open(int state_fd);
  Status add_lane(int pair_fd, int side, u32 number);
  void place_flow(u64 flow, u32 lane) { lane_of_[flow] = lane; }  ///< no other lane tells of its ends
  /// Settles `flow`: nobody will report its ends any more.
  void lose_flow(u64 flow, u64 handed_upto, Reason reason);
  u64 step();                         ///< applies what was returned; @return outstanding messages
  void finish(Reason reason);         ///< everything left fails with `reason`

 private:
  struct Place { Ledger* ledger; u64 sequence; };
  void settle_pending(Ledger& ledger);
  bool in_a_lane(const OutEntry& entry) const;
  void index(Ledger& ledger);
  void end(u64 flow, u64 first, u64 last, End end, Reason reason);
  Mapping mapping_;
  StateLayout* state_ = nullptr;
  bool settled_ = false;
  std::vector<std::unique_ptr<LaneEnd>> lanes_;
  std::vector<int> sides_;
  std::vector<u32> numbers_;
  std::unordered_map<u64, u32> lane_of_;
  std::vector<Ledger> ledgers_;
  std::unordered_map<u64, std::unordered_map<u64, Place>> places_;  ///< flow → flow_seq → entry
};

}  // namespace fabric
