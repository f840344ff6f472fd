// The two halves of a flow as a port keeps them privately (shared parts: ledger, FlowIn row).
//
// Owned by the port, used under its lock.
#pragma once

#include <atomic>
#include <deque>
#include <utility>
#include <vector>

#include "core/credit.hpp"
#include "core/doorbell.hpp"
#include "core/ring.hpp"
#include "core/route_kernel.hpp"

namespace fabric {

class SenderCore;
class ReceiverCore;
struct FlowInState;
class FlowRef;
struct MessageCore;

/// A lane as its port sees it.
struct LaneLink {
  u32 number = 0;
  u32 klass = 0;
  u64 peer_port = 0, peer_incarnation = 0;
  LaneEnd end;
  DoorbellRinger peer;
  /// Returns for which the ring had no room; `held` is freed (or set) once the entry is in the ring.
  struct Owed { ReturnEntry entry; u32 held; bool free_held; };
  std::deque<Owed> backlog;
  bool dirty = false;                 ///< returns pushed in this operation, not yet published
  u32 wakes_owed = 0;                 ///< published returns the peer was not woken for
  bool wake_now = false, owing = false;
  bool broken = false;
  const char* fault = nullptr;
  LaneLink* next_same_bit = nullptr;
  FlowRef* last_in = nullptr;  ///< the flow of its last record, where the port keeps it
};

/// flow_seq → entry of what may still be live; spans at most kFlowSpanMax (SenderCore::room).
class SequenceMap {
 public:
  void put(u64 flow_seq, u64 sequence) {
    if (low_ == 0) low_ = flow_seq;
    if (flow_seq - low_ >= ring_.size()) grow(flow_seq);
    ring_[flow_seq & (ring_.size() - 1)] = sequence;
  }
  /// 0 when it ended before or was never there.
  u64 take(u64 flow_seq) {
    if (low_ == 0 || flow_seq < low_ || flow_seq - low_ >= ring_.size()) return 0;
    u64& slot = ring_[flow_seq & (ring_.size() - 1)];
    const u64 sequence = slot;
    slot = 0;
    return sequence;
  }
  void lower_to(u64 last) {           ///< moves low over what has ended
    while (low_ != 0 && low_ <= last && ring_[low_ & (ring_.size() - 1)] == 0) ++low_;
  }
  u64 low() const { return low_; }
  /// Messages up to `last` since the oldest that lives.
  u64 span(u64 last) const { return low_ == 0 ? 0 : last + 1 - low_; }

 private:
  void grow(u64 flow_seq) {
    while (low_ < flow_seq && ring_[low_ & (ring_.size() - 1)] == 0) ++low_;
    if (flow_seq - low_ < ring_.size()) return;
    std::vector<u64> larger(ring_.size() * 2);
    while (flow_seq - low_ >= larger.size()) larger.resize(larger.size() * 2);
    for (u64 i = 0; i < ring_.size(); ++i) {
      const u64 seq = low_ + i;
      larger[seq & (larger.size() - 1)] = ring_[seq & (ring_.size() - 1)];
    }
    ring_.swap(larger);
  }
  u64 low_ = 0;
  std::vector<u64> ring_ = std::vector<u64>(64);
};

struct FlowOut : RouteTarget {
  u64 id = 0;
  LaneLink* lane = nullptr;
  SenderCore* sender = nullptr;
  u32 generation = 0;
  bool closed = false;
  bool suspect = false;               ///< its consumer is silent: no new work until it was heard of again
  u64 last_seq = 0;
  CreditOut credit;
  SequenceMap sequences;
  ServiceTime service;                ///< kept where the policy asks for it
  u64 stuck_pass = 0;                 ///< of the redelivery in which it had no room
  std::vector<u64> after;             ///< flows that must have nothing outstanding before first use
};

/// The ends of one flow that were reported, out of order, above `upto`.
class EndedRange {
 public:
  /// Marks; @return the new prefix.
  u64 mark(u64 flow_seq) {
    if (above_ == 0 && flow_seq == upto_ + 1) [[likely]] return ++upto_;
    if (flow_seq - upto_ > bits_.size()) {
      std::vector<bool> larger(bits_.size() * 2);
      while (flow_seq - upto_ > larger.size()) larger.resize(larger.size() * 2);
      for (u64 i = 1; i <= bits_.size(); ++i) larger[(upto_ + i) & (larger.size() - 1)] = at(upto_ + i);
      bits_.swap(larger);
    }
    above_ += !at(flow_seq);
    at(flow_seq) = true;
    for (; at(upto_ + 1); --above_) at(++upto_) = false;
    return upto_;
  }
  u64 upto() const { return upto_; }

 private:
  std::vector<bool>::reference at(u64 flow_seq) { return bits_[flow_seq & (bits_.size() - 1)]; }
  u64 upto_ = 0, above_ = 0;          // above_: how many are marked beyond upto_
  std::vector<bool> bits_ = std::vector<bool>(64);  // a power of two
};

/// What becomes of a record that nobody will be handed: its receiver has closed.
enum class Refusal : u8 { none, end, hand_back };

struct FlowInState {
  u64 id = 0;
  u64 producer_port = 0;
  FlowIn* row = nullptr;
  LaneLink* lane = nullptr;           ///< nullptr once the lane is gone
  ReceiverCore* receiver = nullptr;   ///< nullptr before it opened and after it closed
  Refusal refusal = Refusal::none;    ///< set when the receiver closed
  CreditIn credit;
  /// What is queued of this flow, oldest first; kept by a receiver that drops its oldest.
  struct Queue { MessageCore *first = nullptr, *last = nullptr; u64 messages = 0, bytes = 0; } queue;
  EndedRange ended;
  u64 live = 0;                       ///< drained, and not ended or its slots still read
  std::vector<u32> abandoned;         ///< held entries, of these, whose view went unacknowledged: nobody can end them here
  bool closing = false;               ///< no more will come: the row goes when nothing is live
  bool gone = false;
  bool lying = false;                 ///< its producer, behind a gateway, broke the rules: told once
  std::atomic<u32> refs{0};
};

/// Keeps a flow for the port and for each of its messages. Copies are made, and messages of a port that is there end,
/// under the port's lock alone, so that counting needs no atomic addition; a view that outlives the port lets go with
/// one, and by then nobody else counts without.
class FlowRef {
 public:
  FlowRef() = default;
  explicit FlowRef(FlowInState* state) : state_(state) { add(); }
  FlowRef(const FlowRef& other) : state_(other.state_) { add(); }
  FlowRef(FlowRef&& other) noexcept : state_(std::exchange(other.state_, nullptr)) {}
  FlowRef& operator=(FlowRef other) noexcept {
    std::swap(state_, other.state_);
    return *this;
  }
  ~FlowRef() {
    if (state_ != nullptr && state_->refs.fetch_sub(1, std::memory_order_acq_rel) == 1) delete state_;
  }
  void let_go_locked() {              ///< under the port's lock
    FlowInState* const state = std::exchange(state_, nullptr);
    if (state == nullptr) return;
    const u32 left = state->refs.load(std::memory_order_relaxed) - 1;
    state->refs.store(left, std::memory_order_relaxed);
    if (left == 0) delete state;
  }
  FlowInState* get() const { return state_; }
  FlowInState& operator*() const { return *state_; }
  FlowInState* operator->() const { return state_; }
  explicit operator bool() const { return state_ != nullptr; }

 private:
  void add() {
    if (state_ != nullptr) state_->refs.store(state_->refs.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  }
  FlowInState* state_ = nullptr;
};

}  // namespace fabric
