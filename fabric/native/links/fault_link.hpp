// A link that misbehaves on purpose, around any other: the faults of a network, deterministic, for tests.
//
// Engine thread only. `LinkFaults` is shared by all links of an engine and changed under its lock, so that a fault
// holds for present and future connections. The wrapped link keeps its contract towards its own sink: what is
// lost, repeated or out of order shows at the peer as what it is, a hop sequence that does not follow. Chunks may
// come in any order and any number of times (WIRE.md §4.3), so they are numbered after the fault and not before.
#pragma once

#include <deque>

#include "core/memory.hpp"
#include "links/link.hpp"

namespace fabric {

/// Strikes the n-th frame, then again after 1 … 2n-1 more: one in n, without the rhythm that a resent burst could keep.
struct Every {
  u64 n = 0, left = 0, random = 0x9e3779b97f4a7c15ULL;
  void arm(u64 every) { n = left = every; }
  bool strikes() {
    if (n == 0 || --left != 0) return false;
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    left = 1 + random % (2 * n - 1);
    return true;
  }
};

/// What is armed; 0 is off. Frames are counted over all links that share it.
struct LinkFaults {
  u64 delay_ns = 0;          ///< every frame leaves that much later
  u64 rate_bytes = 0;        ///< bytes a second of one link
  Every lose, repeat;
  Every reorder;             ///< goes after the frame behind it
  Every corrupt;             ///< one bit of the body
  u64 stall_until_ns = 0;    ///< nothing is written or read before
  bool cut_armed = false;    ///< once: the connection that carries byte `cut_left` ends before it
  u64 cut_left = 0;
};

class FaultLink final : public Link {
 public:
  FaultLink(std::unique_ptr<Link> inner, std::shared_ptr<LinkFaults> faults);
  void post(OutFrame frame) override;
  bool progress(Sink& sink, u64 budget) override;
  int fd() const override { return epoll_.get(); }
  bool wants_write() const override { return false; }  // its descriptor is readable then, too
  u64 backlog() const override { return inner_->backlog() + later_bytes_; }
  LinkCapabilities capabilities() const override { return inner_->capabilities(); }
  LinkSample sample() override;
  void close() override;

 private:
  struct Later { u64 due_ns; OutFrame frame; };
  void number(OutFrame& frame);
  void schedule(OutFrame frame);
  void release(u64 now);
  void watch(u64 now);
  void arm_timer(u64 due_ns);

  std::unique_ptr<Link> inner_;
  std::shared_ptr<LinkFaults> faults_;
  Fd epoll_, timer_;
  u64 samples_ = 0, sequence_ = 0, rate_free_ns_ = 0, later_bytes_ = 0, armed_ns_ = 0, held_due_ns_ = 0;
  std::deque<Later> later_;
  std::deque<OutFrame> held_;  // at most one: waits for the frame behind it
  u32 watched_ = ~0u;
};

}  // namespace fabric
