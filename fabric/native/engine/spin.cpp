// Waiting awake: what comes within some tens of microseconds is seen without a sleep and a wake, which across CPUs cost more.
//
// Whoever else wants this CPU has it at every look; a thread that keeps it for long ends the spinning, so that the scheduler
// wakes us instead.
#include "engine/spin.hpp"

#include <sched.h>

#include <algorithm>

#include "core/clock.hpp"
#include "engine/engine.hpp"

namespace fabric {
namespace {

constexpr u64 kSpinNs = 100'000;      // a round trip over loopback, with every thread on it woken once
constexpr u64 kYieldedNs = 50'000;    // a client takes its message and answers in less
constexpr u32 kMissesMax = 10;        // back-off: 2^misses waits are not spun
constexpr u32 kRecordsMax = 4;        // of a round trip, at once; more is a stream

}  // namespace

bool SpinPolicy::worth(const Moved& moved) {
  const bool paid = awaited_ == Awaited::port ? moved.read > 0 : moved.published > 0;
  if (spun_ && paid) misses_ = 0;
  if ((spun_ && !paid && !moved.held) || moved.read + moved.published > kRecordsMax) miss();
  spun_ = false;
  if (moved.read > 0) awaited_ = Awaited::peer;
  else if (moved.published > 0) awaited_ = Awaited::port;
  if (skips_ == 0) return awaited_ != Awaited::nothing;
  --skips_;
  return false;
}

void SpinPolicy::ended(bool came) {
  spun_ = came;
  if (!came) miss();
}

void SpinPolicy::miss() {
  misses_ = std::min(misses_ + 1, kMissesMax);
  skips_ = 1u << misses_;
}

/// @return true when there is something to do.
bool Engine::spin() {
  const bool worth = spin_policy_.worth(std::exchange(moved_, {}));
  if (!worth || has_transfers()) return false;
  bool came = false;
  u64 now = monotonic_ns();
  for (const u64 until = now + kSpinNs; now < until;) {
    came = doorbell_.any_ready() || collect(0) > 0 || stopping_.load(std::memory_order_acquire);
    if (came) break;
    const u64 before = monotonic_ns();
    ::sched_yield();
    now = monotonic_ns();
    if (now - before > kYieldedNs) break;
  }
  spin_policy_.ended(came);
  return came;
}

/// Payload under way keeps a link busy by itself: who sleeps meanwhile finds more of it at once.
bool Engine::has_transfers() {
  std::lock_guard guard(lock_);
  return std::any_of(sessions_.begin(), sessions_.end(), [](const auto& each) {
    return !each.second->in_transfers.empty() || !each.second->out_transfers.empty();
  });
}

/// What a reader says of a message comes before what it answers. While this thread stays awake, the first waits for the second:
/// one frame to write, and one to be woken by.
bool Engine::reports_may_wait(Session& session, u64 now) {
  const Connection& connection = session.leading(0);
  const u64 unsent = session.reports.size() - session.reports_sent;
  if (unsent == 0 || hold_nothing_ || !spin_policy_.is_patient() || now < session.acks_prompt_ns || connection.link == nullptr) return false;
  if (unsent > kAcksWaitReports || connection.link->backlog() > 0) return false;
  if (session.reports_since_ns == 0) session.reports_since_ns = now;
  if (now - session.reports_since_ns >= kSpinNs) return false;
  moved_.held = true;
  return true;
}

}  // namespace fabric
