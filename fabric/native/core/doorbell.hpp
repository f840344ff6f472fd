// Waking a port: a ready bitmap, one state word, a futex or an eventfd behind it.
//
// Producer: publish, mark(lane), wake(). Consumer: prepare(mode), look at its rings once more,
// then sleep. A seq_cst fence on both sides makes sure that one of the two sees the other.
// Doorbell is the owner's end (one waiter at a time), DoorbellRinger a peer's; any thread may ring.
#pragma once

#include "core/memory.hpp"

namespace fabric {

class DoorbellRinger {
 public:
  Status attach(int doorbell_fd, int event_fd);  ///< fds are duplicated
  void mark(u32 lane);                ///< sets the lane's ready bit
  void wake();                        ///< wakes the owner if it sleeps; call after mark()
  bool wake_for_returns();            ///< the same, unless it sleeps for messages only: then false
  void ring(u32 lane);                ///< mark and wake, for the price of one fence
  /// Does the owner run, awake, on another CPU than `here`? Only then may news come while one spins.
  bool runs_elsewhere(u32 here) const;
  /// Is the owner awake, and did it run on `here` last? Then it waits for this CPU.
  bool wants_cpu(u32 here) const;
  void forget();                      ///< forked child: drops the mapping without touching it

 private:
  Mapping mapping_;
  DoorbellLayout* layout_ = nullptr;
  Fd event_;
};

class Doorbell {
 public:
  static constexpr u32 kWords = kLanesPerPortMax / 64;

  Status attach(int doorbell_fd, int event_fd);  ///< fds are duplicated
  /// Announces sleep in `mode` and fences. Look for work afterwards, then sleep or cancel().
  void prepare(Wake mode);
  /// Sleeps on the futex until woken or `deadline_ns` (absolute). prepare(mode), futex or messages, came before.
  /// @return true when a signal ended the sleep.
  bool sleep_until(Wake mode, u64 deadline_ns);
  void cancel();                      ///< back to awake
  void wake_self();                   ///< another thread of the owner ends the sleep
  void wake_sleepers();               ///< every thread on the futex looks at the word again
  bool any_ready() const;
  void tell_cpu(u32 here);            ///< for peers that may spin
  /// Takes the ready bits of word `index` (lane numbers index * 64 + bit).
  u64 take_ready(u32 index);
  int event_fd() const { return event_.get(); }
  void drain_event();                 ///< reads the eventfd down to zero
  DoorbellLayout* layout() const { return layout_; }
  void forget();

 private:
  Mapping mapping_;
  DoorbellLayout* layout_ = nullptr;
  Fd event_;
};

/// Adds to an eventfd that others can write, too, without ever waiting for it.
void ring_event(int event_fd);

/// Port side: is an audit's cut being taken? The word lies in the state segment, which no peer has.
inline bool is_frozen(const StateHead& head) { return head.freeze.load(std::memory_order_seq_cst) != 0; }
void park_while_frozen(StateHead& head, u64 deadline_ns);  ///< futex on `freeze`

/// Daemon side: stops new operations of a port and waits until none is inside (audit).
bool freeze_port(int state_fd, u64 deadline_ns, Status& status);
Status thaw_port(int state_fd);
/// Operations of the port that went on although it was frozen, since it exists: read before freeze_port() and after
/// the last look; a cut over which it changed is not consistent.
Status freeze_overruns(int state_fd, u64& out);

}  // namespace fabric
