// two_engines: module, ring, engine, tcp, engine, ring, module: the shape of two daemons, in four processes.
#pragma once

#include "meeting.hpp"
#include "ring.hpp"

namespace floors {

/// A module and the engine beside it, forked by its half; two threads there, one a direction. Option "spin_us": what
/// module and engine spin on their ring before they sleep (0).
class EnginesEnd {
 public:
  EnginesEnd(Role role, const std::string& folder, const Order& options);
  ~EnginesEnd();
  EnginesEnd(const EnginesEnd&) = delete;

  void prepare(const Order& order) { check_length(order); }
  Meeting& meeting() { return meeting_; }
  u64 cpu_ns() const { return cpu_ns_of(0) + cpu_ns_of(engine_); }
  void send(std::span<const u8> message) { duplex_.send(message); }
  void send_many(std::span<const u8> message, u64 count) { duplex_.send_many(message, count); }
  std::span<const u8> receive() { return duplex_.receive(); }
  u64 receive_many(u64 most, std::span<const u8>& last) { return duplex_.receive_many(most, last); }

 private:
  Meeting meeting_;
  Fd memfd_;
  Memory memory_;
  Duplex<true> duplex_;
  pid_t engine_ = 0;
};

}  // namespace floors
