// How a public call enters the engine: its lock, asked for politely.
#pragma once

#include "engine/engine.hpp"

namespace fabric {

/// Holds the lock; with `operation`, counts as an operation of the port and has the thread look again.
/// It never waits for an audit's end, which may need this very caller: what moves ring cursors is left
/// to the thread.
class Engine::Access {
 public:
  explicit Access(Engine& engine, bool operation = false) : engine_(engine), operation_(operation) {
    engine_.callers_.fetch_add(1, std::memory_order_acq_rel);
    engine_.lock_.lock();
    engine_.callers_.fetch_sub(1, std::memory_order_acq_rel);
    if (operation_) busy(1);
  }
  ~Access() {
    if (operation_) {
      engine_.ring_dirty();
      busy(0);
      engine_.recheck_ = true;
    }
    engine_.lock_.unlock();
    if (operation_) engine_.kick();
  }

 private:
  void busy(u32 value) {
    if (engine_.state_) engine_.state_.as<StateLayout>()->head.busy.store(value, std::memory_order_seq_cst);
  }
  Engine& engine_;
  bool operation_;
};

}  // namespace fabric
