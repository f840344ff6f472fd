#include "gpu/gpu_connection.hpp"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "core/clock.hpp"

namespace fabric::gpu {
namespace {

constexpr u64 kSecondNs = 1'000'000'000;
constexpr u64 kUnsentBytesMax = 256 * 1024;              // given to the socket beyond what it takes
enum Watched : u64 { kSocket = 1, kEvent = 2, kTimer = 3 };
enum Own : u64 { kIntroduction = 1, kGivenBack = 2 };     // `a` of frames of the link's own

void watch_fd(int epoll, int operation, int fd, u32 events, u64 what) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = what;
  ::epoll_ctl(epoll, operation, fd, &event);
}

}  // namespace

GpuConnection::GpuConnection(int fd, u64 session, const PathOptions& options, std::string& why)
    : epoll_(::epoll_create1(EPOLL_CLOEXEC)), event_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)),
      timer_(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)), socket_(fd, session),
      deadline_ns_(options.deadline_ns), began_ns_(monotonic_ns()), watched_(EPOLLIN) {
  path_ = make_path(options, event_.get(), why);
  if (path_ == nullptr) return;
  watch_fd(epoll_.get(), EPOLL_CTL_ADD, fd, EPOLLIN, kSocket);
  watch_fd(epoll_.get(), EPOLL_CTL_ADD, event_.get(), EPOLLIN, kEvent);
  watch_fd(epoll_.get(), EPOLL_CTL_ADD, timer_.get(), EPOLLIN, kTimer);
  send_own(kIntroduction, path_->introduction());
  wake_in(1);  // the engine's first call may be long after this
}

GpuConnection::Remains GpuConnection::end() { return {std::move(path_), socket_.take(), std::move(event_)}; }

void GpuConnection::fail(std::string reason) {
  if (failure_.empty()) failure_ = std::move(reason);
}

// ------------------------------------------------------------------ out
void GpuConnection::post(OutFrame frame) {
  if (is_broken_) return;
  if (!frame.owned.empty()) frame.body_len = static_cast<u32>(frame.owned.size());
  if (frame.header.sequence == 0) frame.header.sequence = ++seq_out_;
  const u64 size = wire::kFrameHeaderBytes + frame.body_len;
  const bool is_large = frame.body_len > kSmallBytesMax;
  backlog_ += size;
  ++counters_.frames_out;
  out_.push_back({std::move(frame), size, kNoSlot, is_large});
}

void GpuConnection::send_own(u64 kind, std::span<const u8> body) {
  OutFrame frame;
  frame.header.type = u8(wire::FrameType::eager);
  frame.header.flags = kOwnFrame;
  frame.header.a = kind;
  frame.owned.assign(body.begin(), body.end());
  frame.body_len = static_cast<u32>(body.size());
  socket_.put(std::move(frame));
}

/// Large frames get slots in their order, so the first of them never waits for one that a later one has.
void GpuConnection::stage_waiting() {
  if (!is_ready_) return;
  for (Outgoing& outgoing : out_) {
    if (!outgoing.is_large || outgoing.slot != kNoSlot) continue;
    outgoing.slot = stage(outgoing);
    if (outgoing.slot == kNoSlot) return;
  }
}

u32 GpuConnection::stage(Outgoing& outgoing) {
  Slot* const free = std::find_if(mine_, mine_ + kSlots, [](const Slot& slot) { return !slot.is_used; });
  if (free == mine_ + kSlots || is_failed()) return kNoSlot;
  OutFrame& frame = outgoing.frame;
  const u32 slot = static_cast<u32>(free - mine_);
  const u8* body = frame.owned.empty() ? frame.body : frame.owned.data();
  if (std::string why = path_->stage(slot, ++free->generation, body, frame.body_len); !why.empty()) fail(std::move(why));
  free->is_used = true;
  if (frame.cookie != 0) sink_->sent(frame.cookie);
  frame.keep.reset();
  frame.body = nullptr;
  frame.owned.clear();
  return slot;
}

void GpuConnection::send_waiting() {
  while (!out_.empty() && !is_failed() && socket_.unsent() < kUnsentBytesMax) {
    Outgoing& front = out_.front();
    if (front.frame.cut_after != ~u64{0}) return fail("fault injected: cut");
    if (front.is_large && (front.slot == kNoSlot || !path_->staged(front.slot))) return;
    if (front.is_large) {
      const Told told{front.slot, front.frame.body_len, mine_[front.slot].generation};
      OutFrame frame;
      frame.header = front.frame.header;  // with the checksum of the body that it tells of
      frame.header.flags |= kOwnFrame;
      frame.owned.resize(sizeof told);
      frame.body_len = sizeof told;
      std::memcpy(frame.owned.data(), &told, sizeof told);
      socket_.put(std::move(frame));
      counters_.bytes_out += told.length;
      if (std::string why = path_->told(told.slot); !why.empty()) fail(std::move(why));
    } else {
      socket_.put(std::move(front.frame));
    }
    backlog_ -= front.size;
    out_.pop_front();
  }
}

// ------------------------------------------------------------------ in
void GpuConnection::read() {
  while (budget_ > 0 && !is_failed() && held_bytes_ < kHeldBytesMax) {
    wire::FrameHeader header;
    std::span<const u8> body;
    bool is_one = false;
    if (std::string why = socket_.next(is_one, header, body); !why.empty()) return fail(std::move(why));
    if (is_one) {
      take(header, body);
      continue;
    }
    if (is_ended_) return;
    if (std::string why = socket_.read(budget_, counters_); !why.empty()) {
      if (why != "closed by peer") return fail(std::move(why));
      is_ended_ = true;  // what had come before is taken first
      return;
    }
    if (socket_.is_drained()) {
      // One more look at what came; the descriptor tells of more.
      while (!is_failed() && held_bytes_ < kHeldBytesMax) {
        if (std::string why = socket_.next(is_one, header, body); !why.empty()) return fail(std::move(why));
        if (!is_one) return;
        take(header, body);
      }
      return;
    }
  }
}

void GpuConnection::take(const wire::FrameHeader& header, std::span<const u8> body) {
  if (header.sequence == 0 && header.flags == kOwnFrame) return take_own(header, body);
  if (header.sequence != seq_in_ + 1) return fail("peer protocol: gap in frame sequence");
  ++seq_in_;
  ++counters_.frames_in;
  if (header.flags & kOwnFrame) return take_told(header, body);
  if (held_.empty()) return deliver(header, body.data(), header.body_len);
  held_bytes_ += wire::kFrameHeaderBytes + body.size();
  held_.push_back({header, {body.begin(), body.end()}, kNoSlot, header.body_len, 0, true});
}

void GpuConnection::take_own(const wire::FrameHeader& header, std::span<const u8> body) {
  if (header.a == kGivenBack) return take_back(body);
  if (header.a != kIntroduction || is_met_ || body.size() > kIntroductionBytesMax)
    return fail("peer protocol: a frame of the link's own that does not belong here");
  is_met_ = true;
  if (std::string why = path_->meet(body); !why.empty()) fail(std::move(why));
}

void GpuConnection::take_told(wire::FrameHeader header, std::span<const u8> body) {
  Told told{};
  if (body.size() != sizeof told || !is_met_) return fail("peer protocol: told of a body that cannot be");
  std::memcpy(&told, body.data(), sizeof told);
  const bool is_sound = told.slot < kSlots && told.length > kSmallBytesMax && told.length <= wire::kChunkBytesMax &&
                        !theirs_[told.slot].is_used && told.generation == theirs_[told.slot].generation + 1;
  if (!is_sound) return fail("peer protocol: told of a slot that is not its turn");
  theirs_[told.slot] = {told.generation, true};
  header.flags &= u8(~kOwnFrame);
  header.body_len = told.length;
  held_.push_back({header, {}, told.slot, told.length, told.generation, false});
  fetch_held();
}

/// Both sides become ready by themselves: a peer may tell of a body before this one is.
void GpuConnection::fetch_held() {
  if (!is_ready_) return;
  for (Held& held : held_) {
    if (held.is_begun || is_failed()) continue;
    held.is_begun = true;
    if (std::string why = path_->fetch(held.slot, held.generation, held.length); !why.empty()) fail(std::move(why));
  }
}

void GpuConnection::take_back(std::span<const u8> body) {
  Told told{};
  if (body.size() == sizeof told) std::memcpy(&told, body.data(), sizeof told);
  if (body.size() != sizeof told || told.slot >= kSlots || !mine_[told.slot].is_used ||
      mine_[told.slot].generation != told.generation)
    return fail("peer protocol: gives back a slot that it does not have");
  mine_[told.slot].is_used = false;
}

/// @return true when anything was.
bool GpuConnection::deliver_held() {
  bool any = false;
  for (; !held_.empty() && budget_ > 0 && !is_failed(); any = true) {
    Held& front = held_.front();
    const u8* body = front.body.data();
    if (!front.is_begun) return any;
    if (front.slot != kNoSlot) {
      bool is_done = false;
      std::string why = path_->fetched(front.slot, is_done);
      if (why.empty() && !is_done) return any;
      if (why.empty()) why = path_->body(front.slot, front.generation, front.length, body);
      if (!why.empty()) {
        fail(std::move(why));
        return any;
      }
      counters_.bytes_in += front.length;
    } else {
      held_bytes_ -= wire::kFrameHeaderBytes + front.body.size();
    }
    deliver(front.header, body, front.length);
    if (front.slot != kNoSlot) {
      theirs_[front.slot].is_used = false;
      const Told told{front.slot, front.length, front.generation};
      send_own(kGivenBack, {reinterpret_cast<const u8*>(&told), sizeof told});
    }
    held_.pop_front();
  }
  return any;
}

void GpuConnection::deliver(const wire::FrameHeader& header, const u8* body, u32 length) {
  budget_ -= std::min<u64>(budget_, length);
  if (header.type == u8(wire::FrameType::chunk)) {
    u8* target = sink_->place(header);
    if (target != nullptr && length > 0) std::memcpy(target, body, length);
    body = target;
  }
  if (!sink_->deliver(header, body)) fail("peer protocol: frame refused");
}

// ------------------------------------------------------------------ progress
bool GpuConnection::progress(Sink& sink, u64 budget) {
  if (is_broken_) return false;
  sink_ = &sink;
  budget_ = budget;
  const bool more = work(budget > 0);
  sink_ = nullptr;
  if (!is_failed()) return more;
  is_broken_ = true;
  sink.broken(failure_);
  return false;
}

bool GpuConnection::work(bool may_read) {
  if (may_read) {  // a call that only writes leaves its descriptor readable: what is done is for a call that takes it
    look_at_descriptors();
    make_ready();
    deliver_held();
    read();
    make_ready();
    while (budget_ > 0 && !is_failed() && deliver_held()) read();
  }
  if (!is_failed()) stage_waiting();
  send_waiting();
  // Also what was to be said before a failure: the peer may find its reason in it.
  if (std::string why = socket_.write(counters_, [this](u64 cookie) { sink_->sent(cookie); }); !why.empty()) fail(std::move(why));
  counters_.acked = counters_.bytes_out;
  if (is_ended_) fail("closed by peer");
  if (is_failed()) return false;
  watch();
  return may_read && budget_ == 0;
}

void GpuConnection::make_ready() {
  if (is_ready_ || is_failed()) return;
  if (is_met_)
    if (std::string why = path_->ready(is_ready_); !why.empty()) return fail(std::move(why));
  fetch_held();
  if (!is_ready_ && monotonic_ns() > began_ns_ + deadline_ns_)
    fail(std::string(path_->name()) + ": the peer's GPU was not joined within " + std::to_string(deadline_ns_ / 1'000'000) + " ms");
}

// ------------------------------------------------------------------ descriptors
void GpuConnection::look_at_descriptors() {
  epoll_event ready[4];
  const int count = ::epoll_wait(epoll_.get(), ready, 4, 0);
  for (int i = 0; i < count; ++i) {
    u64 fired;
    if (ready[i].data.u64 == kEvent) [[maybe_unused]] auto got = ::read(event_.get(), &fired, sizeof fired);
    if (ready[i].data.u64 == kTimer) {
      [[maybe_unused]] auto got = ::read(timer_.get(), &fired, sizeof fired);
      is_timed_ = false;
      if (std::string why = path_->watch(monotonic_ns(), deadline_ns_); !why.empty()) fail(std::move(why));
    }
  }
}

void GpuConnection::watch() {
  const bool may_read = held_bytes_ < kHeldBytesMax && !is_ended_;
  const u32 wanted = (may_read ? u32(EPOLLIN) : 0u) | (socket_.wants_write() ? u32(EPOLLOUT) : 0u);
  if (wanted != watched_) watch_fd(epoll_.get(), EPOLL_CTL_MOD, socket_.fd(), wanted, kSocket);
  watched_ = wanted;
  const bool has_work = !is_ready_ || !held_.empty() || !out_.empty();
  const u64 asked = path_->ask_again_ns();
  if (asked != 0) wake_in(asked);
  else if (has_work && !is_timed_) wake_in(kWatchNs);
}

void GpuConnection::wake_in(u64 ns) {
  is_timed_ = true;
  itimerspec at{};
  at.it_value.tv_sec = static_cast<time_t>(ns / kSecondNs);
  at.it_value.tv_nsec = static_cast<long>(ns % kSecondNs);
  ::timerfd_settime(timer_.get(), 0, &at, nullptr);
}

}  // namespace fabric::gpu
