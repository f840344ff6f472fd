#include "sim/sender.hpp"

#include <algorithm>
#include <cmath>

namespace fabric::sim {

Sender::Sender(const Plan& plan, Events& events, Transport& transport)
    : plan_(plan), events_(events), transport_(transport), rails_(plan.rails.size()) {
  if (plan.trial_us != 0) scheduler_.first_trial_after(plan.trial_us * 1000);
  for (u32 i = 0; i < rails_.size(); ++i) events_.at(0, Kind::dial, i);
  events_.at(kAskEveryNs, Kind::ping);
}

u32 Sender::offer(u64 bytes, u32 klass) {
  transfers_.push_back({bytes, 0, 0, events_.now(), 0, 0, klass});
  unacked_ += bytes;
  return static_cast<u32>(transfers_.size() - 1);
}

void Sender::granted(u32 number) {
  SentTransfer& transfer = transfers_[number];
  transfer.granted_ns = events_.now();
  queues_[transfer.klass].push_back(number);
  pending_ += transfer.bytes;
  pump();
}

// ------------------------------------------------------------------ chunks
void Sender::pump() {
  while (post_again() || post_next()) {}
  plan_tick();
}

u32 Sender::usable(u32 besides) const {
  u32 mask = 0;
  for (u32 i = 0; i < rails_.size(); ++i)
    if (scheduler_.carries(i)) mask |= 1u << i;
  return mask & ~besides;
}

u32 Sender::full() const {
  u32 mask = 0;
  for (u32 i = 0; i < rails_.size(); ++i)
    if (transport_.unsent(i) >= kBacklogFull) mask |= 1u << i;
  return mask;
}

/// What came back goes before what is new, over another rail where there is one.
bool Sender::post_again() {
  while (!again_.empty() && chunks_[again_.front()].acked) {
    chunks_[again_.front()].queued = false;
    pending_ -= chunks_[again_.front()].bytes;
    again_.pop_front();
  }
  if (again_.empty()) return false;
  const u32 number = again_.front();
  SentChunk& chunk = chunks_[number];
  const u32 tried = usable(chunk.tried) != 0 ? chunk.tried : 0;
  const paths::Pick pick = scheduler_.pick(chunk.bytes, pending_, events_.now(), full() | tried);
  if (pick.rail == paths::kNoRail) return false;
  again_.pop_front();
  chunk.queued = false;
  post(pick.rail, number);
  return true;
}

/// The highest class, a lower one every so often; transfers of a class take turns.
SentTransfer* Sender::next_transfer(u32& number) {
  std::deque<u32>*high = nullptr, *low = nullptr;
  for (auto& queue : queues_) {
    if (queue.empty()) continue;
    if (high == nullptr) high = &queue;
    low = &queue;
  }
  if (high == nullptr) return nullptr;
  std::deque<u32>& queue = high != low && ++turn_ % kLowerClassEvery == 0 ? *low : *high;
  number = queue.front();
  queue.pop_front();
  return &transfers_[number];
}

bool Sender::post_next() {
  u32 number = 0;
  SentTransfer* transfer = next_transfer(number);
  if (transfer == nullptr) return false;
  const paths::Pick pick = scheduler_.pick(transfer->bytes - transfer->cut, pending_, events_.now(), full());
  if (pick.rail == paths::kNoRail) {
    queues_[transfer->klass].push_front(number);
    return false;
  }
  if (pick.bytes == 0 || pick.bytes > transfer->bytes - transfer->cut) broken_ = "a pick of more than there is";
  transfer->cut += pick.bytes;
  if (transfer->cut < transfer->bytes) queues_[transfer->klass].push_back(number);
  chunks_.push_back({number, pick.bytes, 0, false, false});
  post(pick.rail, static_cast<u32>(chunks_.size() - 1));
  return true;
}

void Sender::post(u32 rail, u32 number) {
  SentChunk& chunk = chunks_[number];
  if (!transport_.is_open(rail)) broken_ = "a rail without a connection was picked";
  chunk.tried |= 1u << rail;
  pending_ -= chunk.bytes;
  posted_bytes_ += chunk.bytes;
  const u64 ticket = scheduler_.posted(rail, chunk.bytes, number, events_.now());
  posts_.push_back({ticket, number, rail, chunk.bytes, true});
  rails_[rail].ledger += chunk.bytes;
  log_ = (log_ ^ (events_.now() << 4 ^ rail ^ u64{chunk.bytes} << 32)) * 1099511628211ULL;
  const paths::RailTerms terms = scheduler_.terms(rail, 0, events_.now());
  if (terms.inflight > chunk.bytes && terms.inflight > std::max(terms.window, paths::kWindowUnknown) + chunk.bytes)
    broken_ = "more is in flight on a rail than its window";
  transport_.write(rail, posts_.size() - 1, chunk.bytes);
}

void Sender::answered(u32 rail, u64 number, bool is_bad) {
  Post& post = posts_[number];
  SentChunk& chunk = chunks_[post.chunk];
  const u64 now = events_.now();
  rails_[rail].heard_ns = now;
  scheduler_.delivered(post.ticket, now);              // bad ones too: the rail carried them
  if (post.counted) rails_[rail].ledger -= post.bytes;
  post.counted = false;
  if (is_bad) {
    chunk.tried = 0;                                   // corruption says nothing about where else it should go
    come_back(post.chunk);
  } else if (!chunk.acked) {
    chunk.acked = true;
    SentTransfer& transfer = transfers_[chunk.transfer];
    transfer.acked += chunk.bytes;
    unacked_ -= chunk.bytes;
    if (transfer.acked == transfer.bytes) transfer.done_ns = now;
  }
  pump();
}

void Sender::come_back(u32 number) {
  SentChunk& chunk = chunks_[number];
  if (chunk.acked || chunk.queued) return;
  chunk.queued = true;
  pending_ += chunk.bytes;
  again_.push_back(number);
}

// ------------------------------------------------------------------ time and rails
void Sender::plan_tick() {
  const u64 due = scheduler_.next_ns();
  if (due == ~u64{0} || due >= tick_ns_) return;
  tick_ns_ = std::max(due, events_.now());
  events_.at(tick_ns_, Kind::tick, 0, tick_ns_);
}

void Sender::tick() {
  tick_ns_ = ~u64{0};
  back_.clear();
  reset_.clear();
  scheduler_.tick(events_.now(), back_, reset_);
  look_at_changes();
  for (const u64 tag : back_) come_back(static_cast<u32>(tag));
  for (const u32 rail : reset_) break_rail(rail, "silent");
  pump();
}

/// A rail that is suspect or down has given everything back: nothing is in flight there as far as the scheduler goes.
void Sender::look_at_changes() {
  for (const paths::Change& change : scheduler_.take_changes()) {
    log_ = (log_ ^ (change.at_ns << 8 ^ u64{change.rail} << 4 ^ static_cast<u8>(change.to))) * 1099511628211ULL;
    if (change.to != paths::RailState::suspect && change.to != paths::RailState::down) continue;
    rails_[change.rail].ledger = 0;
    for (Post& post : posts_)
      if (post.rail == change.rail) post.counted = false;
  }
}

void Sender::break_rail(u32 rail, const char* reason) {
  if (!transport_.is_open(rail)) return;
  transport_.close(rail);
  scheduler_.rail_down(rail, events_.now(), reason);
  look_at_changes();
  events_.at(events_.now() + 1'000'000, Kind::dial, rail);
  plan_tick();
}

void Sender::outage(u32 rail, bool begins) {
  rails_[rail].cable = !begins;
  if (begins) break_rail(rail, "the interface is down");
  else events_.at(events_.now() + 1'000'000, Kind::dial, rail);
}

/// One attempt at a time; without a cable none.
void Sender::dial(u32 rail) {
  OnRail& on = rails_[rail];
  if (on.dialling || !on.cable || transport_.is_open(rail)) return;
  on.dialling = true;
  ++on.attempt;
  const u64 took = transport_.passes(rail) ? transport_.round_trip_ns(rail) : kNeverNs;
  const u64 needs = took > kDialGivenUpNs / 3 ? kDialGivenUpNs : 3 * took / 2 + 500'000;
  events_.at(events_.now() + needs, Kind::dialled, rail, on.attempt, needs < kDialGivenUpNs ? 1 : 0);
}

void Sender::dialled(u32 rail, u64 worked) {
  OnRail& on = rails_[rail];
  on.dialling = false;
  if (!on.cable) return;
  if (worked == 0 || !transport_.passes(rail)) {
    events_.at(events_.now() + (worked == 0 ? 0 : kDialGivenUpNs), Kind::dial, rail);
    return;
  }
  transport_.open(rail);
  on.heard_ns = events_.now();
  on.asked_ns = 0;
  scheduler_.rail_up(rail, events_.now());
  const u64 trip = transport_.round_trip_ns(rail);     // of what is asked as soon as it is there
  for (u32 i = 0; i < paths::kIdleTripsMin && trip != kNeverNs; ++i) scheduler_.round_trip(rail, trip, events_.now());
  look_at_changes();
  pump();
}

/// While something is under way every rail is asked, so that an idle one that died is known; one at a time, on the
/// control connection: behind what waits for the wire, and lost with it.
void Sender::watch() {
  const u64 now = events_.now();
  events_.at(now + kAskEveryNs, Kind::ping);
  for (u32 i = 0; i < rails_.size(); ++i) {
    if (!transport_.is_open(i)) continue;
    if (unacked_ == 0) rails_[i].heard_ns = now;
    else if (now > rails_[i].heard_ns + kSilentNs) break_rail(i, "silent");
    else if (rails_[i].asked_ns == 0) ask(i);
  }
  pump();                                              // a link may have room again
}

void Sender::ask(u32 rail) {
  const u64 now = events_.now(), trip = transport_.round_trip_ns(rail);
  rails_[rail].asked_ns = now;
  if (usable(1u << rail) != 0) scheduler_.asked(rail, now);
  u64 after = trip;                                    // what is lost goes again after a time-out that doubles
  if (!transport_.passes(rail) || trip == kNeverNs) after = kTimeoutMinNs;
  events_.at(now + after, Kind::pong, rail, now, after == trip ? 0 : 1, 0, transport_.epoch(rail));
}

void Sender::pong(u32 rail, u64 left_ns, u32 epoch, u64 tries) {
  if (!transport_.is_open(rail) || transport_.epoch(rail) != epoch) return;
  const u64 now = events_.now(), trip = transport_.round_trip_ns(rail);
  if (!transport_.passes(rail)) tries = std::max<u64>(tries, 1);
  if (tries != 0 && (!transport_.passes(rail) || trip == kNeverNs)) {
    events_.at(now + std::min(kTimeoutMaxNs, kTimeoutMinNs << std::min<u64>(tries, 8)), Kind::pong, rail, left_ns, tries + 1, 0, epoch);
    return;
  }
  rails_[rail].heard_ns = now;
  rails_[rail].asked_ns = 0;
  scheduler_.round_trip(rail, now - left_ns, now);
  pump();
}

// ------------------------------------------------------------------ audit
std::string Sender::audit(bool is_last) const {
  if (!broken_.empty()) return broken_;
  for (u32 i = 0; i < rails_.size(); ++i) {
    const paths::RailTerms terms = scheduler_.terms(i, 65'536, events_.now());
    if (terms.inflight != rails_[i].ledger)
      return "rail " + std::to_string(i) + ": " + std::to_string(terms.inflight) + " bytes in flight by the scheduler, " +
             std::to_string(rails_[i].ledger) + " by the sender's ledger";
    const double values[] = {terms.rate, terms.rate_now, terms.penalty};
    for (const double value : values)
      if (!std::isfinite(value) || value < 0 || value > paths::kRateMax) return "rail " + std::to_string(i) + ": an estimate is not finite";
    if (terms.rate < 1 || terms.rate_now < 1 || terms.rate_now > terms.rate * 1.001) return "rail " + std::to_string(i) + ": a rate below 1 byte/s or above itself";
    if (terms.window < paths::kWindowMin || terms.window > paths::kWindowMax) return "rail " + std::to_string(i) + ": window out of bounds";
  }
  if (scheduler_.decisions().size() > paths::kDecisionsKept) return "decisions are kept without bound";
  if (again_.size() > chunks_.size()) return "a chunk waits twice";
  if (is_last && unacked_ == 0 && (pending_ != 0 || !again_.empty())) {
    for (const u32 number : again_)
      if (!chunks_[number].acked) return "something waits although everything is acknowledged";
  }
  return {};
}

}  // namespace fabric::sim
