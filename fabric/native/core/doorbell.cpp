#include "core/doorbell.hpp"

#include <poll.h>
#include <sys/uio.h>
#include <unistd.h>

#include <climits>

#include "core/clock.hpp"
#include "core/futex.hpp"

namespace fabric {
namespace {

// The word changes before the wake: a waiter that was about to sleep sees it and does not.
void wake_owner(DoorbellLayout* layout, int event_fd) {
  u32 expected = layout->state.load(std::memory_order_relaxed);
  if (expected == static_cast<u32>(Wake::awake)) return;
  const u32 former = layout->state.exchange(static_cast<u32>(Wake::awake), std::memory_order_acq_rel);
  if (former == static_cast<u32>(Wake::eventfd)) {
    ring_event(event_fd);
  } else if (former != static_cast<u32>(Wake::awake)) {
    futex_wake(&layout->state, INT_MAX, true);
  }
}

}  // namespace

// Every port that rings shares the file description, O_NONBLOCK and the count: neither may be relied on. A count that
// takes no more is readable, so that its owner is told already.
void ring_event(int event_fd) {
  pollfd room{event_fd, POLLOUT, 0};
  if (::poll(&room, 1, 0) != 1 || (room.revents & POLLOUT) == 0) return;
  const u64 one = 1;
  [[maybe_unused]] auto written = ::write(event_fd, &one, sizeof one);
}

Status DoorbellRinger::attach(int doorbell_fd, int event_fd) {
  Status status = Mapping::map(doorbell_fd, sizeof(DoorbellLayout), true, mapping_);
  if (!status.ok()) return status;
  mapping_.keep_from_children();
  layout_ = mapping_.as<DoorbellLayout>();
  event_ = Fd::duplicate(event_fd);
  return event_.get() < 0 ? system_failure("duplicating an eventfd") : Status::success();
}

void DoorbellRinger::mark(u32 lane) {
  const u32 index = lane % kLanesPerPortMax;
  layout_->ready[index / 64].fetch_or(u64{1} << (index % 64), std::memory_order_release);
}

void DoorbellRinger::wake() {
  // seq_cst: either the owner sees our record when it looks again, or we see that it sleeps.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  wake_owner(layout_, event_.get());
}

// The ready bit stays: whoever comes next, a message or the owner's service thread, brings what is marked along.
bool DoorbellRinger::wake_for_returns() {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (layout_->state.load(std::memory_order_relaxed) == static_cast<u32>(Wake::messages)) return false;
  wake_owner(layout_, event_.get());
  return true;
}

// A bit that is still set after the fence will be taken by an owner that then sees our record, too:
// most messages of a stream need no atomic write to the owner's cache line.
void DoorbellRinger::ring(u32 lane) {
  const u32 index = lane % kLanesPerPortMax;
  const u64 bit = u64{1} << (index % 64);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  auto& word = layout_->ready[index / 64];
  if ((word.load(std::memory_order_relaxed) & bit) == 0) word.fetch_or(bit, std::memory_order_seq_cst);
  wake_owner(layout_, event_.get());
}

bool DoorbellRinger::runs_elsewhere(u32 here) const {
  const u32 cpu = layout_->cpu.load(std::memory_order_relaxed);
  return cpu != 0 && cpu != here + 1 && layout_->state.load(std::memory_order_relaxed) == static_cast<u32>(Wake::awake);
}

bool DoorbellRinger::wants_cpu(u32 here) const {
  return layout_->cpu.load(std::memory_order_relaxed) == here + 1 &&
         layout_->state.load(std::memory_order_relaxed) == static_cast<u32>(Wake::awake);
}

void DoorbellRinger::forget() { mapping_.forget(); layout_ = nullptr; event_.reset(); }

Status Doorbell::attach(int doorbell_fd, int event_fd) {
  Status status = Mapping::map(doorbell_fd, sizeof(DoorbellLayout), true, mapping_);
  if (!status.ok()) return status;
  mapping_.keep_from_children();
  layout_ = mapping_.as<DoorbellLayout>();
  event_ = Fd::duplicate(event_fd);
  return event_.get() < 0 ? system_failure("duplicating an eventfd") : Status::success();
}

void Doorbell::prepare(Wake mode) {
  layout_->state.store(static_cast<u32>(mode), std::memory_order_seq_cst);
  std::atomic_thread_fence(std::memory_order_seq_cst);
}

bool Doorbell::sleep_until(Wake mode, u64 deadline_ns) {
  return futex_wait(&layout_->state, static_cast<u32>(mode), deadline_ns, true);
}

void Doorbell::cancel() { layout_->state.store(static_cast<u32>(Wake::awake), std::memory_order_release); }

void Doorbell::wake_self() { wake_owner(layout_, event_.get()); }

void Doorbell::wake_sleepers() { futex_wake(&layout_->state, INT_MAX, true); }

bool Doorbell::any_ready() const {
  for (const auto& word : layout_->ready) {
    if (word.load(std::memory_order_acquire) != 0) return true;
  }
  return false;
}

void Doorbell::tell_cpu(u32 here) {
  if (layout_->cpu.load(std::memory_order_relaxed) != here + 1) layout_->cpu.store(here + 1, std::memory_order_relaxed);
}

u64 Doorbell::take_ready(u32 index) {
  if (layout_->ready[index].load(std::memory_order_relaxed) == 0) return 0;
  return layout_->ready[index].exchange(0, std::memory_order_seq_cst);  // before the rings are looked at: see ring()
}

void Doorbell::drain_event() {
  u64 count = 0;
  const iovec part{&count, sizeof count};
  [[maybe_unused]] auto got = ::preadv2(event_.get(), &part, 1, -1, RWF_NOWAIT);  // whatever O_NONBLOCK says by now
}

void Doorbell::forget() { mapping_.forget(); layout_ = nullptr; event_.reset(); }

void park_while_frozen(StateHead& head, u64 deadline_ns) {
  while (const u32 now = head.freeze.load(std::memory_order_seq_cst)) {
    if (monotonic_ns() >= deadline_ns) return;
    futex_wait(&head.freeze, now, deadline_ns, true);
  }
}

bool freeze_port(int state_fd, u64 deadline_ns, Status& status) {
  Mapping state;
  status = Mapping::map(state_fd, sizeof(StateLayout), true, state);
  if (!status.ok()) return false;
  StateHead& head = state.as<StateLayout>()->head;
  head.freeze.store(1, std::memory_order_seq_cst);
  std::atomic_thread_fence(std::memory_order_seq_cst);  // Dekker: freeze, fence, look at busy
  auto& busy = head.busy;
  while (busy.load(std::memory_order_seq_cst) != 0) {
    if (monotonic_ns() >= deadline_ns) return false;
    const timespec pause{0, 50'000};
    nanosleep(&pause, nullptr);
  }
  return true;
}

Status freeze_overruns(int state_fd, u64& out) {
  Mapping state;
  Status status = Mapping::map(state_fd, sizeof(StateLayout), false, state);
  if (status.ok()) out = state.as<StateLayout>()->head.overruns.load(std::memory_order_seq_cst);
  return status;
}

Status thaw_port(int state_fd) {
  Mapping state;
  Status status = Mapping::map(state_fd, sizeof(StateLayout), true, state);
  if (!status.ok()) return status;
  auto& freeze = state.as<StateLayout>()->head.freeze;
  freeze.store(0, std::memory_order_seq_cst);
  futex_wake(&freeze, INT_MAX, true);
  return status;
}

}  // namespace fabric
