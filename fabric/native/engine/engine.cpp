#include "engine/engine.hpp"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/clock.hpp"

namespace fabric {
namespace {

constexpr u64 kDoorbellTag = 1, kKickTag = 2;
constexpr int kBlockedRetryMs = 5;                   // a full local ring has no event of its own
constexpr u64 kFrozenSliceNs = 50'000'000;
constexpr std::chrono::milliseconds kStallSlice{5};  // fault injection only

void watch(int epoll, int fd, u64 tag) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = tag;
  ::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

}  // namespace

Engine::~Engine() { stop(0); }

Status Engine::open(const EngineOptions& options) {
  port_ = options.port;
  incarnation_ = options.incarnation;
  Status status = Mapping::map(options.state_fd, sizeof(StateLayout), true, state_);
  if (status.ok()) status = doorbell_.attach(options.doorbell_fd, options.event_fd);
  if (!status.ok()) return status;
  state_.keep_from_children();
  state_.as<StateLayout>()->head.busy.store(0, std::memory_order_seq_cst);  // a former life may have died inside
  epoll_ = Fd(::epoll_create1(EPOLL_CLOEXEC));
  kick_fd_ = Fd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  events_fd_ = Fd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (epoll_.get() < 0 || kick_fd_.get() < 0 || events_fd_.get() < 0) return system_failure("engine fds");
  watch(epoll_.get(), doorbell_.event_fd(), kDoorbellTag);
  watch(epoll_.get(), kick_fd_.get(), kKickTag);
  return Status::success();
}

Status Engine::start() {
  if (thread_.joinable()) return Status::fail(Code::invalid, "the engine runs already");
  stopping_.store(false);
  thread_ = std::thread([this] { run(); });
  return Status::success();
}

void Engine::kick() {
  const u64 one = 1;
  [[maybe_unused]] auto written = ::write(kick_fd_.get(), &one, sizeof one);
}

void Engine::run() {
  while (!stopping_.load(std::memory_order_acquire)) {
    const bool more = operate(monotonic_ns());
    // A public call that waits for the lock goes first; it holds it for microseconds.
    while (callers_.load(std::memory_order_acquire) > 0) std::this_thread::yield();
    int timeout_ms = 0;
    if (!more) {
      std::lock_guard guard(lock_);
      timeout_ms = wait_timeout_ms(monotonic_ns());
    }
    hold_nothing_ = false;
    if (timeout_ms != 0) {
      const bool held = moved_.held;
      if (spin()) continue;
      if (held) {                       // what was kept back goes before this thread sleeps
        hold_nothing_ = true;
        continue;
      }
      doorbell_.prepare(Wake::eventfd);
      if (doorbell_.any_ready()) timeout_ms = 0;
    }
    collect(timeout_ms);
    wakeups_.fetch_add(1, std::memory_order_relaxed);
    doorbell_.cancel();
  }
}

bool Engine::operate(u64 now) {
  std::unique_lock guard(lock_);
  StateHead& head = state_.as<StateLayout>()->head;
  head.heartbeat_ns.store(now, std::memory_order_relaxed);
  head.busy.store(1, std::memory_order_seq_cst);
  std::atomic_thread_fence(std::memory_order_seq_cst);  // Dekker with freeze_port
  if (is_frozen(head)) {
    head.busy.store(0, std::memory_order_seq_cst);
    guard.unlock();
    park_while_frozen(head, now + kFrozenSliceNs);
    return true;
  }
  const bool stalled = faults_.stall_until_ns > now;
  const bool more = stalled || step(now);
  head.busy.store(0, std::memory_order_release);
  guard.unlock();
  if (stalled) std::this_thread::sleep_for(kStallSlice);
  return more;
}

bool Engine::step(u64 now) {
  if (!removals_.empty()) apply_removals();
  take_up(now);
  std::vector<u64> tags;
  tags.swap(ready_tags_);
  for (u64 tag : tags) handle_tag(tag);
  for (auto& [id, session] : sessions_)
    for (u32 live = session->live; live != 0; live &= live - 1) {
      const u32 group = static_cast<u32>(__builtin_ctz(live));
      if (session->connection[group].more) progress_link(*session, group, kReadBudgetBytes);
    }
  std::vector<EngineLane*> ready;
  if (recheck_) {
    recheck_ = false;
    for (auto& [number, lane] : lanes_) ready.push_back(lane.get());
    for (u32 word = 0; word < Doorbell::kWords; ++word) doorbell_.take_ready(word);
  }
  for (u32 word = 0; word < Doorbell::kWords; ++word) {
    for (u64 bits = doorbell_.take_ready(word); bits != 0; bits &= bits - 1) {
      const auto& lanes = lanes_by_bit_[word * 64 + static_cast<u32>(__builtin_ctzll(bits))];
      ready.insert(ready.end(), lanes.begin(), lanes.end());
    }
  }
  for (EngineLane* lane : ready) {
    read_returns(*lane);  // frees slots and lane room before more is taken
    read_lane(*lane, now);
  }
  expire(now);
  if (watch_ns_ != 0 && now >= watch_ns_) watch_links(now);
  if (blocked_retry_ || !ready.empty()) retry_blocked(now);
  ring_dirty();  // who waits for a message goes first: what peers are told takes kernel calls
  bool more = false;
  acks_due_ns_ = rails_due_ns_ = ~u64{0};
  for (auto& [id, session] : sessions_) {
    pump_session(*session, now);
    for (u32 live = session->live; live != 0; live &= live - 1)
      more |= session->connection[__builtin_ctz(live)].more;
    more |= has_room_unused(*session);
  }
  ring_dirty();
  return more;
}

void Engine::take_up(u64 now) {
  std::vector<std::pair<u32, u64>> rereads;
  rereads.swap(rereads_due_);
  std::sort(rereads.begin(), rereads.end());
  rereads.erase(std::unique(rereads.begin(), rereads.end()), rereads.end());
  for (const auto& [number, flow] : rereads) {
    const auto found = lanes_.find(number);
    if (found == lanes_.end()) continue;
    EngineLane& lane = *found->second;
    std::vector<u64> due;
    for (u64 i = 0; i < lane.readings.size(); ++i)
      if (!lane.readings[i].done && lane.readings[i].entry.flow == flow) due.push_back(lane.readings_base + i);
    for (u64 reading : due) take_return(lane, reading);
  }
  if (std::exchange(slots_due_, false)) retry_slots();
  std::vector<u32> gone;
  gone.swap(gone_due_);
  for (u32 segment : gone) fail_waiters(segment, now);
  std::vector<u64> pumps;
  pumps.swap(pumps_due_);
  for (u64 id : pumps)
    if (const auto flow = flows_out_.find(id); flow != flows_out_.end()) pump_flow(flow->second, now);
}

/// A segment that is gone took the message's bytes with it: the message ends instead of waiting for them.
void Engine::fail_waiters(u32 segment, u64 now) {
  const auto found = segment_waiters_.find(segment);
  if (found == segment_waiters_.end()) return;
  const std::set<std::pair<u64, u64>> waiters = std::move(found->second);
  segment_waiters_.erase(found);
  for (const auto& [session_id, transfer_id] : waiters) {
    Session* session = find_session(session_id);
    if (session == nullptr) continue;
    const auto transfer = session->out_transfers.find(transfer_id);
    if (transfer == session->out_transfers.end() || transfer->second->owner == nullptr) continue;
    Outgoing& owner = *transfer->second->owner;
    emit(EngineEvent::Kind::stale, owner.flow_id, owner.flow_seq, "the segment is gone");
    end_here(owner, End::failed, Reason::corrupted, now);
  }
}

void Engine::retry_blocked(u64) {
  blocked_retry_ = false;
  for (auto& [number, lane] : lanes_) {
    if (is_lying(*lane)) {              // it will never have room
      for (const HeldReturn& held : lane->return_backlog) acknowledge_report(held.session, held.number);
      lane->return_backlog.clear();
      continue;
    }
    if (!lane->return_backlog.empty()) flush_backlog(*lane);
    while (!lane->ends_due.empty() && publish_end(*lane->ends_due.front())) lane->ends_due.pop_front();
    release_front(*lane);
    std::vector<u64> blocked;
    blocked.swap(lane->blocked_flows);
    for (u64 id : blocked) {
      const auto flow = flows_in_.find(id);
      if (flow == flows_in_.end()) continue;
      flow->second.lane_blocked = false;
      publish_flow(flow->second);
    }
    blocked_retry_ |= !lane->return_backlog.empty() || !lane->ends_due.empty() || !lane->blocked_flows.empty();
  }
}

void Engine::blame(EngineLane& lane, const char* why) {
  if (!lane.broken) emit(EngineEvent::Kind::lane_corrupt, lane.number, 0, why);
  lane.broken = true;
}

bool Engine::is_lying(EngineLane& lane) {
  const char* why = lane.end.records_out.fault();
  if (why == nullptr) why = lane.end.returns_out.fault();
  if (why != nullptr) blame(lane, why);
  return why != nullptr;
}

void Engine::mark_dirty(EngineLane& lane, Ring what) {
  if (what == Ring::message) lane.has_message = true;
  if (lane.dirty) return;
  lane.dirty = true;
  dirty_.push_back(lane.number);
}

void Engine::ring_dirty() {
  for (u32 number : dirty_) {
    const auto lane = lanes_.find(number);
    if (lane == lanes_.end() || !lane->second->dirty) continue;
    lane->second->dirty = false;
    ring(*lane->second);
  }
  dirty_.clear();
}

/// A port that sleeps for a message learns of ends with it, or at its next service tick; not so where many have gathered.
void Engine::ring(EngineLane& lane) {
  if (std::exchange(lane.has_message, false) || lane.wakes_owed >= kReturnsUnheardMax) {
    lane.ringer.ring(lane.number);
    lane.wakes_owed = 0;
    return;
  }
  lane.ringer.mark(lane.number);
  lane.wakes_owed = lane.ringer.wake_for_returns() ? 0 : lane.wakes_owed + 1;
}

int Engine::wait_timeout_ms(u64 now) const {
  if (!ready_tags_.empty() || recheck_ || slots_due_ || !pumps_due_.empty() || !gone_due_.empty() || !rereads_due_.empty()) return 0;
  int timeout = blocked_retry_ ? kBlockedRetryMs : -1;
  u64 first = timers_.empty() ? ~u64{0} : timers_.begin()->first;
  if (watch_ns_ != 0) first = std::min(first, watch_ns_);
  first = std::min({first, acks_due_ns_, rails_due_ns_});
  if (first != ~u64{0}) {
    const u64 left_ms = first > now ? std::min<u64>((first - now) / 1'000'000 + 1, 60'000) : 0;
    if (timeout < 0 || left_ms < static_cast<u64>(timeout)) timeout = static_cast<int>(left_ms);
  }
  return timeout;
}

int Engine::collect(int timeout_ms) {
  epoll_event ready[64];
  const int count = ::epoll_wait(epoll_.get(), ready, 64, timeout_ms);
  for (int i = 0; i < count; ++i) {
    const u64 tag = ready[i].data.u64;
    u64 value;
    if (tag == kDoorbellTag) {
      doorbell_.drain_event();
    } else if (tag == kKickTag) {
      [[maybe_unused]] auto got = ::read(kick_fd_.get(), &value, sizeof value);
    } else {
      ready_tags_.push_back(tag);
    }
  }
  return count;
}

void Engine::handle_tag(u64 tag) {
  const auto found = tags_.find(tag);
  if (found == tags_.end()) return;
  if (Session* session = find_session(found->second.first))
    progress_link(*session, found->second.second, kReadBudgetBytes);
}

void Engine::emit(EngineEvent::Kind kind, u64 a, u64 b, std::string reason) {
  // Requests and losses are few by nature and always told; observations are dropped beyond the limit.
  const bool observation = kind == EngineEvent::Kind::flow_unknown || kind == EngineEvent::Kind::stale ||
                           kind == EngineEvent::Kind::corrupt || kind == EngineEvent::Kind::transfer_stalled ||
                           kind == EngineEvent::Kind::rail;
  if (observation && events_.size() >= kEngineEventsMax) return;
  // The same unknown flow is one fact, however many records name it; so is a limit that one peer met.
  if (kind == EngineEvent::Kind::flow_unknown || kind == EngineEvent::Kind::limit)
    for (const EngineEvent& event : events_)
      if (event.kind == kind && event.a == a && event.reason == reason) return;
  events_.push_back({kind, a, b, std::move(reason)});
  const u64 one = 1;
  [[maybe_unused]] auto written = ::write(events_fd_.get(), &one, sizeof one);
}

}  // namespace fabric
