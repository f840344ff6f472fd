#include "links/fault_link.hpp"

#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <cstring>

#include "core/clock.hpp"

namespace fabric {
namespace {

constexpr u64 kHeldNs = 20'000'000;  // a frame held back goes anyway when none comes behind it
constexpr u64 kSecondNs = 1'000'000'000;

u64 size_of(const OutFrame& frame) {
  return wire::kFrameHeaderBytes + (frame.owned.empty() ? frame.body_len : frame.owned.size());
}

bool is_chunk(const OutFrame& frame) { return frame.header.type == u8(wire::FrameType::chunk); }

/// The body's checksum stays that of the bytes before.
void corrupt_body(OutFrame& frame) {
  if (frame.owned.empty()) frame.owned.assign(frame.body, frame.body + frame.body_len);
  frame.owned[frame.owned.size() / 2] ^= 0x10;
}

/// A second frame of the same bytes; `keep` holds those that are not its own.
OutFrame copy_of(const OutFrame& frame) {
  OutFrame copy = frame;
  copy.cookie = 0;
  return copy;
}

}  // namespace

FaultLink::FaultLink(std::unique_ptr<Link> inner, std::shared_ptr<LinkFaults> faults)
    : inner_(std::move(inner)), faults_(std::move(faults)), epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      timer_(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)) {
  epoll_event event{};
  event.events = EPOLLIN;
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, timer_.get(), &event);
  watch(monotonic_ns());
}

void FaultLink::close() {
  if (inner_->fd() >= 0) ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, inner_->fd(), nullptr);
  inner_->close();
  later_.clear();
  held_.clear();
  later_bytes_ = 0;
}

/// What waits here for its time is on its way: it moves with each look.
LinkSample FaultLink::sample() {
  LinkSample sample = inner_->sample();
  if (!later_.empty() && monotonic_ns() >= faults_->stall_until_ns) sample.acked += ++samples_;
  return sample;
}

void FaultLink::number(OutFrame& frame) {
  if (frame.header.sequence == 0) frame.header.sequence = ++sequence_;
}

void FaultLink::post(OutFrame frame) {
  LinkFaults& faults = *faults_;
  if (!is_chunk(frame)) number(frame);
  if (faults.lose.strikes()) return;
  const bool twice = faults.repeat.strikes();
  const bool back = faults.reorder.strikes() && held_.empty();
  if (size_of(frame) > wire::kFrameHeaderBytes && faults.corrupt.strikes()) corrupt_body(frame);
  if (back) {
    held_due_ns_ = monotonic_ns() + kHeldNs;
    later_bytes_ += size_of(frame);
    held_.push_back(std::move(frame));
    watch(monotonic_ns());
    return;
  }
  if (twice) schedule(copy_of(frame));
  schedule(std::move(frame));
  if (held_.empty()) return;
  OutFrame behind = std::move(held_.front());
  held_.clear();
  later_bytes_ -= size_of(behind);
  schedule(std::move(behind));
}

void FaultLink::schedule(OutFrame frame) {
  LinkFaults& faults = *faults_;
  const u64 bytes = size_of(frame);
  number(frame);
  if (faults.cut_armed && faults.cut_left < bytes) {
    frame.cut_after = faults.cut_left;
    faults.cut_armed = false;
  } else if (faults.cut_armed) {
    faults.cut_left -= bytes;
  }
  const u64 now = monotonic_ns();
  u64 due = now + faults.delay_ns;
  if (faults.rate_bytes != 0) {
    rate_free_ns_ = std::max(rate_free_ns_, now) + bytes * kSecondNs / faults.rate_bytes;
    due = std::max(due, rate_free_ns_);
  }
  if (!later_.empty()) due = std::max(due, later_.back().due_ns);  // a queue: nothing passes what waits
  if (due <= now && now >= faults.stall_until_ns) {
    inner_->post(std::move(frame));
    return;
  }
  later_bytes_ += bytes;
  later_.push_back({due, std::move(frame)});
  watch(now);
}

void FaultLink::release(u64 now) {
  if (!held_.empty() && held_due_ns_ <= now) {
    OutFrame behind = std::move(held_.front());
    held_.clear();
    later_bytes_ -= size_of(behind);
    schedule(std::move(behind));
  }
  while (!later_.empty() && later_.front().due_ns <= now) {
    later_bytes_ -= size_of(later_.front().frame);
    inner_->post(std::move(later_.front().frame));
    later_.pop_front();
  }
}

bool FaultLink::progress(Sink& sink, u64 budget) {
  u64 now = monotonic_ns(), fired;
  [[maybe_unused]] auto got = ::read(timer_.get(), &fired, sizeof fired);
  armed_ns_ = 0;
  bool more = false;
  if (now >= faults_->stall_until_ns) {
    release(now);
    more = inner_->progress(sink, budget);
  }
  watch(now);
  return more;
}

/// While it stalls nothing of the inner link is looked at; else its descriptor, and the time of what waits.
void FaultLink::watch(u64 now) {
  if (inner_->fd() < 0) return;
  const bool stalled = now < faults_->stall_until_ns;
  const u32 wanted = stalled ? 0u : EPOLLIN | (inner_->wants_write() ? u32(EPOLLOUT) : 0u);
  if (wanted != watched_) {
    epoll_event event{};
    event.events = wanted;
    if (watched_ != ~0u && watched_ != 0) ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, inner_->fd(), nullptr);
    if (wanted != 0) ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, inner_->fd(), &event);
    watched_ = wanted;
  }
  u64 due = stalled ? faults_->stall_until_ns : 0;
  if (!stalled && !later_.empty()) due = later_.front().due_ns;
  if (!stalled && !held_.empty()) due = due == 0 ? held_due_ns_ : std::min(due, held_due_ns_);
  if (due != armed_ns_ && due != 0) arm_timer(due);
}

void FaultLink::arm_timer(u64 due_ns) {
  armed_ns_ = due_ns;
  itimerspec at{};
  at.it_value.tv_sec = static_cast<time_t>(due_ns / kSecondNs);
  at.it_value.tv_nsec = static_cast<long>(due_ns % kSecondNs);
  ::timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &at, nullptr);
}

}  // namespace fabric
