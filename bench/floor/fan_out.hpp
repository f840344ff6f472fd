// fan_out: one copy, then a wake-up for each of several receivers: the least a broadcast on one host costs.
#pragma once

#include "meeting.hpp"
#include "sources.hpp"

namespace floors {

/// Order: {"run": "fan_out", "size", "count", "receivers", "loaned"}. Near's ``at``: when each send was called, which
/// is after the last receiver had the one before; far's ``at``: when the last of its receivers, a process each,
/// awake again, could see it. "loaned" leaves the copy out.
class FanOutEnd {
 public:
  FanOutEnd(Role role, const std::string& folder, const Order&) : meeting_(role, folder) {}
  void prepare(const Order& order);
  Meeting& meeting() { return meeting_; }
  u64 cpu_ns() const;
  void fan_out(Role role, const Order& order, const Sources& sources, Answer& answer);

 private:
  std::vector<u64> send(const Order& order, const Sources& sources);
  void start_receivers();
  std::vector<u64> wait_for_receivers();

  Meeting meeting_;
  Memory control_, slot_;
  u64 receivers_ = 0, count_ = 0;
  std::vector<pid_t> children_;
};

}  // namespace floors
