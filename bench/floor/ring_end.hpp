// ring_spin, ring_futex: both halves on one piece of shared memory.
#pragma once

#include "meeting.hpp"
#include "ring.hpp"

namespace floors {

template <bool kSleeps>
class RingEnd {
 public:
  RingEnd(Role role, const std::string& folder, const Order& options)
      : meeting_(role, folder), memory_(meeting_.share(sizeof(DuplexMemory))),
        duplex_(reinterpret_cast<DuplexMemory*>(memory_.data()), role == Role::far, options.count("spin_us", 0) * 1000) {}

  void prepare(const Order& order) { check_length(order); }
  Meeting& meeting() { return meeting_; }
  u64 cpu_ns() const { return cpu_ns_of(0); }
  void send(std::span<const u8> message) { duplex_.send(message); }
  void send_many(std::span<const u8> message, u64 count) { duplex_.send_many(message, count); }
  std::span<const u8> receive() { return duplex_.receive(); }
  u64 receive_many(u64 most, std::span<const u8>& last) { return duplex_.receive_many(most, last); }

 private:
  Meeting meeting_;
  Memory memory_;
  Duplex<kSleeps> duplex_;
};

}  // namespace floors
