// The held table: every message between lane and end, and every view that still holds a slot.
//
// Only the reading port writes it, under its lock; free entries are listed privately.
#pragma once

#include <vector>

#include "core/layout.hpp"

namespace fabric {

inline constexpr u32 kNotHeld = 0xffffffff;

/// Ended, but with segments: the view is still there. Ended without: only its report waits for room in the ring.
inline bool is_view(u32 word) {
  const auto held = static_cast<HeldState>(word & 0xff);
  return held == HeldState::handed || (held == HeldState::ended && word >> 8 != 0);
}

class HeldTable {
 public:
  void attach(StateLayout* state) { state_ = state; }
  /// Takes an entry and fills it as `queued`; kNotHeld when the table is full.
  u32 take(const RecordHeader& header, const SegmentEntry* first, u64 now_ns) {
    u32 index = 0;
    if (!free_.empty()) {
      index = free_.back();
      free_.pop_back();
    } else {
      index = state_->head.held_high.load(std::memory_order_relaxed);
      if (index >= kHeldPerPort) return kNotHeld;
      state_->head.held_high.store(index + 1, std::memory_order_release);
    }
    HeldEntry& entry = state_->held[index];
    store_word(&entry.flow, header.flow);
    store_word(&entry.flow_seq, header.flow_seq);
    entry.segment = first != nullptr ? first->segment : 0;
    entry.slot = first != nullptr ? first->slot : 0;
    entry.generation = first != nullptr ? first->generation : 0;
    entry.since_ns = now_ns;
    entry.payload_bytes = header.payload_bytes;
    entry.channel = header.channel;
    set(index, HeldState::queued, header.segment_count);
    ++used_;
    return index;
  }
  bool full() const {
    return free_.empty() && state_->head.held_high.load(std::memory_order_relaxed) >= kHeldPerPort;
  }
  void set(u32 index, HeldState to, u32 segments) {
    state_->held[index].word.store(static_cast<u32>(to) | segments << 8, std::memory_order_release);
  }
  void handed_at(u32 index, u64 now_ns) { state_->held[index].since_ns = now_ns; }
  void free(u32 index) {
    set(index, HeldState::free, 0);
    free_.push_back(index);
    --used_;
  }
  u32 used() const { return used_; }
  /// Every entry that is taken.
  template <class Visit>
  void each_live(Visit&& visit) const {
    const u32 high = state_->head.held_high.load(std::memory_order_relaxed);
    for (u32 i = 0; i < high; ++i) {
      const u32 word = state_->held[i].word.load(std::memory_order_relaxed);
      if (static_cast<HeldState>(word & 0xff) != HeldState::free) visit(state_->held[i]);
    }
  }
  /// Every entry whose message was handed over and that its view still needs.
  template <class Visit>
  void each_view(Visit&& visit) const {
    const u32 high = state_->head.held_high.load(std::memory_order_relaxed);
    for (u32 i = 0; i < high; ++i) {
      if (is_view(state_->held[i].word.load(std::memory_order_relaxed))) visit(state_->held[i]);
    }
  }

 private:
  StateLayout* state_ = nullptr;
  std::vector<u32> free_;
  u32 used_ = 0;
};

}  // namespace fabric
