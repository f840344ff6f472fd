// Waiting: the leader sleeps on the doorbell, followers on a private word, asyncio on the eventfd.
#include <sched.h>

#include <algorithm>
#include <climits>
#include <utility>

#include "core/clock.hpp"
#include "core/futex.hpp"
#include "core/port.hpp"

namespace fabric {
namespace {

constexpr int kSpinRounds = 64;       ///< looks between two looks at the clock

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  asm volatile("yield");
#endif
}

}  // namespace

// Spinning pays only on a direct lane (a gateway never tells its CPU), while the peer is awake on another CPU, and as
// long as it paid lately.
bool Port::worth_spinning() {
  const u32 here = static_cast<u32>(sched_getcpu());
  doorbell_.tell_cpu(here);
  if (wait_ != WaitPolicy::adaptive) return wait_ == WaitPolicy::poll;
  if (last_lane_ == nullptr || !last_lane_->peer.runs_elsewhere(here)) return false;
  if (spin_skips_ != 0) {
    --spin_skips_;
    return false;
  }
  return true;
}

// Without the lock: something came, another thread of this process made news, or the port is closing.
bool Port::look_for_news(u64 seen) const {
  return doorbell_.any_ready() || news_count_.load(std::memory_order_relaxed) != seen || closed();
}

// Without the lock. Whoever else may wait for this CPU is offered it now and then, which costs next to nothing while
// nobody does; a peer that does (`shares`) is offered it all the time.
Port::Spun Port::poll_until(u64 deadline_ns, u64 seen, bool shares) {
  u64 now = monotonic_ns(), yielded = now, asked = now;
  while (now < deadline_ns) {
    for (int i = 0; i < kSpinRounds; ++i) {
      if (look_for_news(seen)) return Spun::news;
      pause_cpu();
    }
    now = monotonic_ns();
    if (shares || now - yielded >= kPollYieldNs) {
      sched_yield();
      doorbell_.tell_cpu(static_cast<u32>(sched_getcpu()));
      yielded = now;
    }
    if (now - asked >= kPollSignalNs) {
      if (interrupt_hook != nullptr && interrupt_hook()) return Spun::stop;
      asked = now;
    }
  }
  return Spun::nothing;
}

// The lock is given away and taken again. With `news` or `stop` the caller looks again or ends; else nothing came.
Port::Spun Port::spin_for_news(Operation& operation, u64 deadline_ns) {
  if (!worth_spinning()) return Spun::nothing;
  const u64 seen = news_count_.load(std::memory_order_relaxed);
  if (wait_ == WaitPolicy::poll) {
    const bool shares = last_lane_ != nullptr && last_lane_->peer.wants_cpu(static_cast<u32>(sched_getcpu()));
    operation.leave();
    const Spun spun = poll_until(deadline_ns, seen, shares);
    return operation.enter() ? spun : Spun::news;
  }
  const u64 until = std::min(monotonic_ns() + std::exchange(spin_ns_, kSpinNs), deadline_ns);
  operation.leave();
  bool ready = false;
  do {
    for (int i = 0; i < kSpinRounds && !ready; ++i) {
      ready = look_for_news(seen);
      if (!ready) pause_cpu();
    }
  } while (!ready && monotonic_ns() < until);
  if (!operation.enter()) return Spun::news;
  spin_misses_ = ready ? 0 : std::min(spin_misses_ + 1, kSpinMissesMax);
  if (!ready) spin_skips_ = 1u << spin_misses_;
  return ready || news_count_.load(std::memory_order_relaxed) != seen ? Spun::news : Spun::nothing;
}

Status Port::set_wait(WaitPolicy policy) {
  Operation operation(*this);
  if (!operation.ok()) return operation.status();
  wait_ = policy;
  notify_waiters();                   // a thread that polls begins anew
  return Status::success();
}

// Whoever waits for a message of others needs no wake for the end of its own; unless something here moves on with it.
Wake Port::sleeping_mode() const {
  return await_returns_ == 0 && stuck_.empty() && !armed_ ? Wake::messages : Wake::futex;
}

// The caller made progress inside `operation` and found nothing. It re-checks after this returns.
void Port::wait_for_news(Operation& operation, u64 deadline_ns, News awaited) {
  flush_wakes();
  if (service_leads_) leader_ = service_leads_ = false;
  if (awaited == News::all) ++await_returns_;
  bool stop = false;
  if (leader_) {
    follow(operation, deadline_ns, stop);
  } else {
    lead(operation, deadline_ns, stop);
  }
  if (!operation.ok()) return;        // the port is gone, and with it who waits
  if (awaited == News::all) --await_returns_;
  if (stop) operation.interrupt();
}

void Port::follow(Operation& operation, u64 deadline_ns, bool& stop) {
  if (leader_asleep_ && asleep_as_ != sleeping_mode()) doorbell_.wake_self();  // it sleeps again, for more
  const u32 seen = follow_word_.load(std::memory_order_relaxed);
  ++followers_;
  operation.leave();
  stop = futex_wait(&follow_word_, seen, deadline_ns, false) && interrupt_hook != nullptr && interrupt_hook();
  if (operation.enter()) --followers_;
}

void Port::lead(Operation& operation, u64 deadline_ns, bool& stop) {
  leader_ = true;
  const Spun spun = spin_for_news(operation, deadline_ns);
  if (!operation.ok()) return;
  stop = spun == Spun::stop;
  const Wake mode = sleeping_mode();
  if (spun == Spun::nothing) doorbell_.prepare(mode);
  if (spun == Spun::nothing && !doorbell_.any_ready()) {
    leader_asleep_ = true;
    asleep_as_ = mode;
    operation.leave();
    stop = doorbell_.sleep_until(mode, deadline_ns) && interrupt_hook != nullptr && interrupt_hook();
    if (!operation.enter()) return;
    leader_asleep_ = false;
  }
  leader_ = false;
  doorbell_.cancel();
  progress_locked();
  hand_bell_over();
  if (prompt_ != 0) {                 // This thread may not look again for long.
    kick_service();
    doorbell_.wake_sleepers();
  }
}

// Nobody leads any more: a follower does next, or the event loop is told.
void Port::hand_bell_over() {
  if (followers_ != 0) {
    follow_word_.fetch_add(1, std::memory_order_relaxed);
    futex_wake(&follow_word_, INT_MAX, false);
  }
  if (!armed_) {
    doorbell_.cancel();
    return;
  }
  doorbell_.prepare(Wake::eventfd);
  if (doorbell_.any_ready()) doorbell_.wake_self();
}

// Something may have become possible for a thread that sleeps, or for the event loop.
void Port::notify_waiters() {
  news_ = true;
  news_count_.store(news_count_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  if (leader_asleep_) doorbell_.wake_self();
  if (followers_ != 0) {
    follow_word_.fetch_add(1, std::memory_order_relaxed);
    futex_wake(&follow_word_, INT_MAX, false);
  }
  if (!armed_) return;
  armed_ = false;
  ring_event(doorbell_.event_fd());
  if (!leader_) doorbell_.cancel();
}

Status Port::arm(bool& armed) {
  armed = false;
  Operation operation(*this);
  if (!operation.ok()) return operation.status();
  progress_locked();
  flush_wakes();
  if (news_) {
    news_ = false;
    return Status::success();
  }
  armed_ = armed = true;
  if (leader_) {                      // the leader hands the bell over when it goes
    if (leader_asleep_ && asleep_as_ != sleeping_mode()) doorbell_.wake_self();
    return Status::success();
  }
  doorbell_.prepare(Wake::eventfd);
  if (doorbell_.any_ready()) {
    doorbell_.cancel();
    armed_ = armed = false;
  }
  return Status::success();
}

Status Port::disarm() {
  Operation operation(*this);
  if (!operation.ok()) return operation.status();
  armed_ = false;
  if (!leader_) doorbell_.cancel();
  doorbell_.drain_event();
  return Status::success();
}

}  // namespace fabric
