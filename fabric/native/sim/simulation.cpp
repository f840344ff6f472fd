#include "sim/simulation.hpp"

#include <algorithm>

namespace fabric::sim {

Simulation::Simulation(const Plan& plan, Options options)
    : plan_(plan), options_(options), random_(plan.seed), transport_(plan_, events_, random_, *this),
      receiver_(plan.slots, static_cast<u32>(plan.rails.size()), options.rules), sender_(plan_, events_, transport_),
      works_since_(plan.rails.size(), 0), rates_(plan.rails.size()), windows_(plan.rails.size(), paths::kWindowUnknown) {
  for (u32 i = 0; i < rates_.size(); ++i) rates_[i] = plan_.rails[i].rate;
  for (u32 i = 0; i < works_since_.size(); ++i) watch_rails({0, 0, Kind::rate, i, 0, rates_[i], 0, 0});
  for (u64 i = 0; i < plan_.loads.size(); ++i) events_.at(plan_.loads[i].at_us * 1000, Kind::offered, 0, i);
}

Result Simulation::run() {
  const u64 stop_ns = plan_.stop_us == 0 ? kNeverNs : plan_.stop_us * 1000;
  Event event;
  while (result_.violation.empty()) {
    if (!events_.next(event)) {
      if (!is_done()) fail("nothing more would happen, and not everything is delivered");
      break;
    }
    if (event.at >= stop_ns || (done_ns_ != 0 && event.at > done_ns_ + kAfterNs)) break;
    if (waits_for_the_sender(event)) continue;
    handle(event);
    check();
    if (done_ns_ == 0 && is_done()) done_ns_ = std::max<u64>(events_.now(), 1);
  }
  finish();
  return result_;
}

/// What reaches the sender while its process stands still is seen when it goes on, in the order in which it came.
bool Simulation::waits_for_the_sender(const Event& event) {
  switch (event.kind) {
    case Kind::acked: case Kind::offered: case Kind::granted: case Kind::tick: case Kind::dial: case Kind::dialled:
    case Kind::ping: case Kind::pong: break;
    default: return false;
  }
  for (const Pause& pause : plan_.pauses) {
    if (event.at < pause.from_us * 1000 || event.at >= pause.to_us * 1000) continue;
    events_.at(pause.to_us * 1000, event.kind, event.who, event.a, event.b, event.c, event.epoch);
    return true;
  }
  return false;
}

void Simulation::handle(const Event& event) {
  switch (event.kind) {
    case Kind::rate: case Kind::split: case Kind::outage:
      transport_.handle(event);
      watch_rails(event);
      if (event.kind == Kind::outage && event.b != 0) sender_.outage(event.who, event.a != 0);
      return;
    case Kind::freed: {
      const u32 next = receiver_.free_slot(static_cast<u32>(event.a));
      if (next != kNone) events_.at(events_.now() + 200'000, Kind::granted, 0, next);
      return;
    }
    case Kind::offered: case Kind::granted: case Kind::tick: case Kind::dial: case Kind::dialled: case Kind::ping: case Kind::pong:
      return handle_sender(event);
    default: return transport_.handle(event);
  }
}

void Simulation::handle_sender(const Event& event) {
  if (event.kind == Kind::offered) {
    const Load& load = plan_.loads[event.a];
    ++offered_;
    if (sender_.unacked() == 0) progress_ns_ = events_.now();
    for (u64 i = 0; i < load.count; ++i) {
      const u32 transfer = sender_.offer(load.bytes, static_cast<u32>(load.klass));
      if (receiver_.announce(transfer, load.bytes)) events_.at(events_.now() + 200'000, Kind::granted, 0, transfer);
    }
    return;
  }
  if (event.kind == Kind::granted) return sender_.granted(static_cast<u32>(event.a));
  if (event.kind == Kind::dial) return sender_.dial(event.who);
  if (event.kind == Kind::dialled) return sender_.dialled(event.who, event.b);
  if (event.kind == Kind::ping) return sender_.watch();
  if (event.kind == Kind::pong) return sender_.pong(event.who, event.a, event.epoch, event.b);
  if (event.kind == Kind::tick && event.a == sender_.tick_ns()) return sender_.tick();
}

void Simulation::watch_rails(const Event& event) {
  if (event.kind == Kind::rate) rates_[event.who] = event.a;
  for (u32 i = 0; i < works_since_.size(); ++i) {
    const bool works = transport_.passes(i) && rates_[transport_.wire(i)] >= kWorksRate && plan_.rails[i].loss <= kWorksLoss;
    if (!works) works_since_[i] = kNeverNs;
    else if (works_since_[i] == kNeverNs) works_since_[i] = events_.now();
  }
}

// ------------------------------------------------------------------ receiver
void Simulation::piece(u32 rail, u64 number, u32 offset, u32 bytes, bool is_last) {
  const Post& post = sender_.post(number);
  const bool is_corrupt = is_last && random_.happens(plan_.rails[rail].corrupt);
  const ChunkOnWire chunk{sender_.chunk(post.chunk).transfer, post.chunk, is_corrupt};
  const bool was_complete = receiver_.is_complete(chunk.transfer);
  const u64 placed = receiver_.placed_bytes(), verified = receiver_.verified_bytes(), now = events_.now();
  const Receiver::Verdict verdict = receiver_.piece(rail, number, chunk, bytes, offset == 0, is_last);
  if (receiver_.placed_bytes() != placed) {
    if (placed_ns_ != 0) result_.gap_ns = std::max(result_.gap_ns, now - placed_ns_);
    placed_ns_ = now;
  }
  if (receiver_.verified_bytes() != verified) {
    progress_ns_ = now;
    const std::size_t bucket = now / options_.bucket_ns;
    if (result_.buckets.size() <= bucket) result_.buckets.resize(bucket + 1);
    result_.buckets[bucket] += receiver_.verified_bytes() - verified;
  }
  if (!was_complete && receiver_.is_complete(chunk.transfer)) hand_over(chunk.transfer);
  if (verdict != Receiver::Verdict::more) transport_.answer(rail, number, verdict == Receiver::Verdict::bad);
}

void Simulation::hand_over(u32 transfer) {
  const u64 held = plan_.hold_us == 0 ? 0 : random_.below(plan_.hold_us * 1000);
  if (result_.took_ns.size() <= transfer) result_.took_ns.resize(transfer + 1);
  result_.took_ns[transfer] = events_.now() - sender_.transfers()[transfer].granted_ns;
  events_.at(events_.now() + held, Kind::freed, 0, receiver_.slot_of(transfer));
}

void Simulation::answered(u32 rail, u64 post, bool is_bad) { sender_.answered(rail, post, is_bad); }

// ------------------------------------------------------------------ what must hold
void Simulation::check() {
  if (!receiver_.violation().empty()) return fail(receiver_.violation());
  const std::string broken = sender_.audit(false);
  if (!broken.empty()) return fail(broken);
  for (u32 i = 0; i < windows_.size(); ++i) {
    windows_[i] = std::max(windows_[i], sender_.scheduler().terms(i, 0, events_.now()).window);
    if (transport_.backlog(i) > 2 * windows_[i] + 2 * paths::kChunkMax) return fail("the backlog of a connection has no bound");
  }
  if (events_.handled() > kEventsMax) return fail("no end after " + std::to_string(kEventsMax) + " events");
  if (sender_.unacked() == 0) return;
  u64 since = *std::min_element(works_since_.begin(), works_since_.end());
  if (since == kNeverNs) return;
  since = std::max(since, progress_ns_);
  for (const Pause& pause : plan_.pauses)
    if (pause.from_us * 1000 <= events_.now()) since = std::max(since, pause.to_us * 1000);
  if (events_.now() > since + kProgressNs && receiver_.verified_bytes() < plan_.bytes())
    fail("a rail works and nothing was delivered for " + std::to_string((events_.now() - since) / 1'000'000) + " ms");
}

void Simulation::fail(const std::string& what) {
  if (result_.violation.empty()) result_.violation = what;
}

/// Where nothing fails: a share, what is free of it, and what a rail gives back that was misjudged once while it was learnt.
u64 Simulation::allowed_again() const {
  u64 misjudged = 0;
  for (u32 i = 0; i < plan_.rails.size(); ++i)
    if (sender_.scheduler().terms(i, 0, events_.now()).failures != 0) ++misjudged;
  return plan_.bytes() / 50 + paths::kResentFreeBytes + misjudged * paths::kChunkMax;
}

void Simulation::finish() {
  if (result_.violation.empty() && plan_.stop_us == 0) {
    if (receiver_.verified_bytes() != plan_.bytes()) fail("what was delivered is not what was sent");
    const std::string broken = sender_.audit(true);
    if (!broken.empty()) fail(broken);
  }
  result_.delivered = receiver_.verified_bytes();
  result_.posted = sender_.posted_bytes();
  const u64 unique = std::min(result_.posted, plan_.stop_us == 0 ? plan_.bytes() : result_.delivered);
  result_.resent = plan_.stop_us == 0 ? result_.posted - unique : sender_.scheduler().resent_bytes();
  if (plan_.is_calm() && result_.violation.empty() && result_.resent > allowed_again())
    fail(std::to_string(result_.resent) + " bytes were sent again although nothing failed");
  result_.at_ns = result_.violation.empty() && done_ns_ != 0 ? done_ns_ : events_.now();
  result_.events = events_.handled();
  result_.scratch = receiver_.scratch_bytes();
  result_.corrupt = receiver_.corrupt_chunks();
  result_.log = sender_.log() ^ (result_.events << 1);
  for (u32 i = 0; i < plan_.rails.size(); ++i) result_.rails.push_back(sender_.scheduler().terms(i, 1 << 20, events_.now()));
}

}  // namespace fabric::sim
