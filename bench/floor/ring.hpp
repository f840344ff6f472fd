// A ring of records in shared memory: one producer, one consumer, cursors that only grow.
//
// kSleeps false: both sides spin for ever, offering their processor now and then, and no fence is paid. kSleeps true:
// they spin for `spin_ns` (0: not at all, and never while the other side was last seen on the same processor), then
// sleep on a futex.
#pragma once

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "system.hpp"

namespace floors {

inline constexpr u64 kRingBytes = 256 * 1024;  // as a lane of the fabric
inline constexpr u64 kRecordHead = 8;
inline constexpr u32 kSkip = ~u32{0};          // a length that says: nothing more before the wrap
inline constexpr u32 kTurnsToYield = 2048;      // some ten microseconds
inline constexpr u64 kMessageMax = kRingBytes / 4;

struct RingMemory {
  alignas(64) std::atomic<u64> head;
  alignas(64) std::atomic<u64> tail;
  alignas(64) std::atomic<u32> consumer_asleep;
  alignas(64) std::atomic<u32> producer_asleep;
  alignas(64) u8 data[kRingBytes];
};

/// Both directions, and where each side last ran.
struct DuplexMemory {
  RingMemory rings[2];
  struct alignas(64) Seen { std::atomic<u32> cpu_plus_one; } seen[2];
};

constexpr u64 record_bytes(u64 size) { return kRecordHead + (size + 7) / 8 * 8; }

/// How one side waits.
class Patience {
 public:
  Patience(DuplexMemory* memory, int side, u64 spin_ns) : memory_(memory), side_(side), spin_ns_(spin_ns) {}

  template <bool kSleeps, class Ready>
  void wait(Ready ready, std::atomic<u32>& asleep) {
    if constexpr (!kSleeps) {
      for (u32 turns = 1; !ready(); ++turns) {
        if (turns % kTurnsToYield == 0) ::sched_yield();  // both may be on one processor
        else relax();
      }
    } else if (spin_ns_ == 0 || !spin(ready)) {
      sleep_until(ready, asleep);
    }
  }

 private:
  template <class Ready>
  bool spin(Ready ready) {
    const u32 here = static_cast<u32>(::sched_getcpu()) + 1;
    memory_->seen[side_].cpu_plus_one.store(here, std::memory_order_relaxed);
    if (memory_->seen[1 - side_].cpu_plus_one.load(std::memory_order_relaxed) == here) return false;
    const u64 until = now_ns() + spin_ns_;
    do {
      for (int i = 0; i < 64; ++i) {
        if (ready()) return true;
        relax();
      }
    } while (now_ns() < until);
    return false;
  }

  DuplexMemory* memory_;
  int side_;
  u64 spin_ns_;
};

template <bool kSleeps>
class RingWriter {
 public:
  RingWriter(RingMemory* ring, Patience patience) : ring_(ring), patience_(patience) {}

  /// Copies one message in; publish() shows it.
  void put(std::span<const u8> message) {
    const u64 need = record_bytes(message.size());
    const u64 to_wrap = kRingBytes - (head_ & (kRingBytes - 1));
    const u64 whole = to_wrap < need ? to_wrap + need : need;
    if (head_ + whole - tail_seen_ > kRingBytes) wait_for_room(whole);
    if (to_wrap < need) {
      write_length(kSkip);
      head_ += to_wrap;
    }
    write_length(static_cast<u32>(message.size()));
    std::memcpy(ring_->data + (head_ & (kRingBytes - 1)) + kRecordHead, message.data(), message.size());
    head_ += need;
  }
  void publish() {
    ring_->head.store(head_, std::memory_order_release);
    if constexpr (kSleeps) wake(ring_->consumer_asleep);
  }

 private:
  void write_length(u32 length) { std::memcpy(ring_->data + (head_ & (kRingBytes - 1)), &length, sizeof length); }
  void wait_for_room(u64 whole) {
    const auto has_room = [&] {
      tail_seen_ = ring_->tail.load(std::memory_order_acquire);
      return head_ + whole - tail_seen_ <= kRingBytes;
    };
    if (has_room()) return;
    publish();  // of a batch: the consumer can free only what it sees
    patience_.template wait<kSleeps>(has_room, ring_->producer_asleep);
  }

  RingMemory* ring_;
  Patience patience_;
  u64 head_ = 0, tail_seen_ = 0;
};

template <bool kSleeps>
class RingReader {
 public:
  RingReader(RingMemory* ring, Patience patience) : ring_(ring), patience_(patience) {}

  bool is_empty() const { return tail_ == head_seen_; }
  void wait_for_message() {
    const auto has_message = [&] {
      head_seen_ = ring_->head.load(std::memory_order_acquire);
      return head_seen_ != tail_;
    };
    if (has_message()) return;
    release();
    patience_.template wait<kSleeps>(has_message, ring_->consumer_asleep);
  }
  /// Copies one message out.
  std::span<const u8> take() {
    std::span<const u8> found;
    do {
      if (is_empty()) wait_for_message();
      found = record();
    } while (found.empty());
    const u64 size = found.size() - kRecordHead;
    std::memcpy(message_, found.data() + kRecordHead, size);
    consume(record_bytes(size));
    return {message_, size};
  }
  /// Whole records that lie together, as they are in the ring; maybe none where the ring wraps.
  std::span<const u8> run() {
    const u8* begin = at();
    u64 bytes = 0;
    while (tail_ + bytes < head_seen_) {
      u32 length;
      std::memcpy(&length, begin + bytes, sizeof length);
      if (length == kSkip) break;
      bytes += record_bytes(length);
      if ((tail_ + bytes) % kRingBytes == 0) break;
    }
    if (bytes == 0) consume(to_wrap());
    return {begin, bytes};
  }
  void consume(u64 bytes) {
    tail_ += bytes;
    if (tail_ - released_ >= kRingBytes / 4) release();
  }
  void release() {
    if (released_ == tail_) return;
    released_ = tail_;
    ring_->tail.store(tail_, std::memory_order_release);
    if constexpr (kSleeps) wake(ring_->producer_asleep);
  }

 private:
  const u8* at() const { return ring_->data + (tail_ & (kRingBytes - 1)); }
  u64 to_wrap() const { return kRingBytes - (tail_ & (kRingBytes - 1)); }
  /// The record at the tail with its head; empty after what lies before the wrap was skipped.
  std::span<const u8> record() {
    u32 length;
    std::memcpy(&length, at(), sizeof length);
    if (length != kSkip) return {at(), kRecordHead + length};
    consume(to_wrap());
    return {};
  }

  RingMemory* ring_;
  Patience patience_;
  u64 tail_ = 0, head_seen_ = 0, released_ = 0;
  alignas(64) u8 message_[kMessageMax];
};

inline void check_length(const Order& order) {
  if (order.message_bytes() > kMessageMax) throw std::runtime_error("a message of a ring has at most 64 KiB");
}

/// One side of both directions: what a module holds.
template <bool kSleeps>
class Duplex {
 public:
  Duplex(DuplexMemory* memory, int side, u64 spin_ns)
      : out_(&memory->rings[side], {memory, side, spin_ns}), in_(&memory->rings[1 - side], {memory, side, spin_ns}) {}

  void send(std::span<const u8> message) {
    out_.put(message);
    out_.publish();
  }
  void send_many(std::span<const u8> message, u64 count) {
    for (u64 i = 0; i < count; ++i) out_.put(message);
    out_.publish();
  }
  std::span<const u8> receive() { return in_.take(); }
  /// What has come, `most` at most and one at least; the last of them in `last`.
  u64 receive_many(u64 most, std::span<const u8>& last) {
    u64 count = 0;
    do last = in_.take();
    while (++count < most && !in_.is_empty());
    return count;
  }

 private:
  RingWriter<kSleeps> out_;
  RingReader<kSleeps> in_;
};

}  // namespace floors
