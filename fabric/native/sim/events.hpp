// What happens next in simulated time. Ties go in the order in which they were planned, so that a run can be repeated.
#pragma once

#include <algorithm>
#include <queue>
#include <vector>

#include "core/layout.hpp"

namespace fabric::sim {

enum class Kind : u8 {
  served,     // who: wire; a: service number. The head of the queue has left
  arrived,    // who: rail; a: segment, b: transmission. At the receiving host
  heard,      // who: rail; a: segment, b: transmission, c: next expected. An acknowledgement of the transport
  timeout,    // who: rail. The transport waited for an acknowledgement
  rate,       // who: wire; a: bytes/s
  split,      // who: rail. It leaves the wire that it shared
  outage,     // who: rail; a: 1 begins, 0 ends; b: the interface says so
  acks,       // who: rail. The receiver's acknowledgements leave
  acked,      // who: rail; a: post, b: 1 corrupted. At the sender
  offered,    // a: index of the load. A message is given to the sender
  granted,    // a: transfer
  freed,      // a: slot. The application gave it back
  tick,       // the sender's own time
  dial,       // who: rail
  dialled,    // who: rail
  ping,       // the sender looks at its rails
  pong,       // who: rail; a: when it was asked, b: how often it was lost
};

struct Event {
  u64 at = 0, order = 0;
  Kind kind{};
  u32 who = 0, epoch = 0;
  u64 a = 0, b = 0, c = 0;
};

class Events {
 public:
  void at(u64 when, Kind kind, u32 who = 0, u64 a = 0, u64 b = 0, u64 c = 0, u32 epoch = 0) {
    heap_.push_back({std::max(when, now_), order_++, kind, who, epoch, a, b, c});
    std::push_heap(heap_.begin(), heap_.end(), Later{});
  }
  bool next(Event& event) {
    if (heap_.empty()) return false;
    std::pop_heap(heap_.begin(), heap_.end(), Later{});
    event = heap_.back();
    heap_.pop_back();
    now_ = event.at;
    return true;
  }
  u64 now() const { return now_; }
  u64 handled() const { return order_ - heap_.size(); }
  std::size_t waiting() const { return heap_.size(); }

 private:
  struct Later {
    bool operator()(const Event& a, const Event& b) const { return a.at != b.at ? a.at > b.at : a.order > b.order; }
  };
  std::vector<Event> heap_;
  u64 now_ = 0, order_ = 0;
};

}  // namespace fabric::sim
