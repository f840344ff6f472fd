#include "paths/rail_scheduler.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace fabric::paths {
namespace {

constexpr u64 kNever = ~u64{0};
constexpr double kPenaltyForgiven = 1.5;            // one failure is an accident, two in a few seconds are a habit
constexpr u64 kHoldUnitNs = 100'000'000;
constexpr double kFasterBy = 0.7;                   // what is whole moves to another rail only for this much less latency

u64 as_ns(double bytes, double rate) { return static_cast<u64>(bytes * 1e9 / std::max(rate, 1.0)); }

}  // namespace

const char* name(RailState state) {
  constexpr const char* kNames[] = {"absent", "up", "suspect", "held", "down", "left_out"};
  return kNames[static_cast<u8>(state)];
}

const char* name(Why why) {
  constexpr const char* kNames[] = {"earliest", "only", "pinned", "no_room", "no_rail", "resent"};
  return kNames[static_cast<u8>(why)];
}

// ------------------------------------------------------------------ rails
void RailScheduler::move(u32 number, RailState to, const char* reason, u64 now) {
  Rail& rail = rails_[number];
  if (rail.state == to) return;
  if (changes_.size() < kDecisionsKept) changes_.push_back({now, number, rail.state, to, reason});
  rail.state = to;
}

double RailScheduler::decayed(const Rail& rail, u64 now) const {
  const double past = static_cast<double>(now - std::min(now, rail.penalty_ns));
  return rail.penalty * std::exp2(-past / static_cast<double>(kPenaltyHalfNs));
}

void RailScheduler::fail(u32 number, RailState to, const char* reason, u64 now) {
  Rail& rail = rails_[number];
  if (rail.state == RailState::up || rail.state == RailState::held) {
    rail.penalty = decayed(rail, now) + 1;
    rail.penalty_ns = now;
    ++rail.failures;
  }
  move(number, to, reason, now);
}

void RailScheduler::rail_up(u32 number, u64 now) {
  Rail& rail = rails_[number];
  if (rail.state == RailState::suspect || rail.state == RailState::up) rail_down(number, now, "replaced");
  if (rail.down_ns != 0 && now >= rail.down_ns + kForgetNs) rail.estimate.forget();
  rail.estimate.reconnect();
  rail.alive_ns = rail.empty_ns = now;
  // A connection that ends over a damaged frame and is there again at once: to hold its rail back would cost more than the loss.
  const bool is_brief = rail.broke_off && now < rail.down_ns + kBriefNs;
  rail.asked_ns = rail.down_ns = 0;
  rail.reset_told = rail.broke_off = false;
  rail.delivered_before = rail.delivered;
  if (is_brief) {
    rail.penalty = std::max(0.0, decayed(rail, now) - 1);
    rail.penalty_ns = now;
  }
  const double penalty = decayed(rail, now);
  rail.held_until = 0;
  if (penalty < kPenaltyForgiven || is_brief || is_last(number)) {
    move(number, RailState::up, "connected", now);
  } else {  // it flaps: every failure doubles the wait
    rail.held_until = now + std::min(kHoldMaxNs, static_cast<u64>(static_cast<double>(kHoldUnitNs) * std::exp2(penalty)));
    move(number, RailState::held, "it failed repeatedly", now);
  }
  next_ns_ = std::min(next_ns_, now + kTickNs);
}

void RailScheduler::rail_down(u32 number, u64 now, const char* reason, u64 received) {
  Rail& rail = rails_[number];
  if (rail.state == RailState::absent || rail.state == RailState::down) return;
  give_back(rail, lost_);
  rail.broke_off = rail.state == RailState::up && carried(number) + received >= kCarriedBytes;
  rail.down_ns = now;
  fail(number, RailState::down, reason, now);
  if (!lost_.empty()) next_ns_ = now;
}

void RailScheduler::remove(u32 number) {
  give_back(rails_[number], lost_);
  if (!lost_.empty()) next_ns_ = 0;
  rails_[number] = Rail{};
}

void RailScheduler::round_trip(u32 number, u64 ns, u64 now) {
  Rail& rail = rails_[number];
  const bool was_idle = rail.asked_ns == 0 ? rail.estimate.inflight() == 0 : rail.asked_idle;
  was_idle ? rail.estimate.idle_round_trip(ns, now) : rail.estimate.round_trip(ns, now);
  rail.alive_ns = std::max(rail.alive_ns, now);
  rail.asked_ns = 0;
}

void RailScheduler::asked(u32 number, u64 now) {
  Rail& rail = rails_[number];
  if (rail.asked_ns == 0) {
    rail.asked_ns = now;
    rail.asked_idle = rail.estimate.inflight() == 0;
  }
  next_ns_ = std::min(next_ns_, now + kTickNs);
}

void RailScheduler::take_lost(std::vector<u64>& again) {
  again.insert(again.end(), lost_.begin(), lost_.end());
  lost_.clear();
}

void RailScheduler::give_back(Rail& rail, std::vector<u64>& again) {
  for (Posted& chunk : rail.posted) {
    if (chunk.done) continue;
    if (!chunk.again) again.push_back(chunk.tag);
    rail.resent += chunk.again ? 0 : chunk.bytes;
    rail.estimate.withdrawn(chunk.bytes);
    chunk.done = true;
  }
  rail.first += rail.posted.size();
  rail.posted.clear();
}

// ------------------------------------------------------------------ scores
u64 RailScheduler::first_bytes(const Rail& rail) { return rail.posted.empty() ? 0 : rail.posted.front().bytes; }

u64 RailScheduler::finish(const Rail& rail, u64 bytes, u64 now) const {
  const double rate = rail.estimate.rate_now(first_bytes(rail), now);
  return rail.estimate.base_ns() + as_ns(static_cast<double>(rail.estimate.inflight() + bytes), rate);
}

/// Acknowledgements that are late because the hosts are late are late on every rail: of those that are busy, the least.
u64 RailScheduler::lateness() const {
  u64 least = kNever;
  for (const Rail& rail : rails_)
    if (rail.state == RailState::up && rail.estimate.is_known() && rail.estimate.inflight() != 0) least = std::min(least, rail.estimate.gap_ns());
  return least;
}

u64 RailScheduler::window(const Rail& rail, u64 now, u64 late_ns) const {
  if (!rail.estimate.is_known()) return kWindowUnknown;
  const double rate = rail.estimate.rate_now(first_bytes(rail), now);
  // What this rail alone is late by may be how it acknowledges; where it was throttled or loses, more in flight is more lost.
  const u64 of_hosts = std::min(rail.estimate.gap_ns(), late_ns);
  const u64 own = rail.estimate.is_falling() ? 0 : std::min(rail.estimate.gap_ns(), kOwnGapMaxNs);
  const u64 gap = std::min(static_cast<u64>(kGapShare * static_cast<double>(std::max(of_hosts, own))), kGapMaxNs);
  const double wanted = kWindowGain * rate * static_cast<double>(rail.estimate.base_ns() + std::max(kQueueTargetNs, gap)) / 1e9;
  const u64 bytes = std::min(static_cast<u64>(wanted), kWindowUnknown + rail.estimate.learnt_from());
  return std::clamp(bytes, std::max<u64>(kWindowMin, 2 * chunk_bytes(rail, kWindowMax)), kWindowMax);
}

/// What a new rail lets through at once says little of its rate (a token bucket): its window doubles with each round trip.
u32 RailScheduler::chunk_bytes(const Rail& rail, u64 left) {
  const double known = static_cast<double>(kWindowUnknown + rail.estimate.learnt_from()) / 4;
  const double wanted = std::min(known, rail.estimate.rate() * static_cast<double>(kChunkNs) / 1e9);
  u32 bytes = kChunkMin;
  while (bytes < kChunkMax && bytes * 1.5 < wanted) bytes *= 2;
  return static_cast<u32>(std::min<u64>(left, bytes));
}

u32 RailScheduler::fastest() const {
  u32 best = kNoRail;
  for (u32 i = 0; i < kRailsMax; ++i) {
    if (rails_[i].state != RailState::up || (pinned_ != 0 && (pinned_ >> i & 1) == 0)) continue;
    const auto latency = [&](u32 rail) { return static_cast<double>(rails_[rail].estimate.base_ns()); };
    if (best == kNoRail || latency(i) < kFasterBy * latency(best)) best = i;
  }
  return best;
}

/// Bit per rail that chunks may go over. One that adds nothing is used all the same where no other is left.
u32 RailScheduler::carrying() const {
  u32 up = 0;
  for (u32 i = 0; i < kRailsMax; ++i) up |= rails_[i].state == RailState::up ? 1u << i : 0;
  if (pinned_ != 0) up &= pinned_;
  return (up & ~gain_.avoided()) != 0 ? up & ~gain_.avoided() : up;
}

// ------------------------------------------------------------------ chunks
// All rails work while much is pending. Towards its end a chunk waits for a fast rail rather than being the last one on a
// slow one: nothing goes where it would finish later than all that is pending could be finished by the rails together.
Pick RailScheduler::pick(u64 left, u64 pending, u64 now, u32 avoid) {
  std::array<u64, kRailsMax> finishes{};
  std::array<u32, kRailsMax> bytes{};
  double rates = 0, waiting = static_cast<double>(pending);
  const u32 candidates = carrying() & ~avoid;
  u32 usable_rails = 0;
  u64 earliest = kNever;
  for (u32 i = 0; i < kRailsMax; ++i) {
    const Rail& rail = rails_[i];
    if ((candidates >> i & 1) == 0) continue;
    ++usable_rails;
    bytes[i] = chunk_bytes(rail, left);
    finishes[i] = finish(rail, bytes[i], now);
    earliest = std::min(earliest, finishes[i]);
    rates += rail.estimate.rate_now(first_bytes(rail), now);
    waiting += static_cast<double>(rail.estimate.inflight());
  }
  if (usable_rails == 0) return {};
  const u64 horizon = std::max(earliest, as_ns(waiting, rates));
  Pick best;
  const u64 late_ns = lateness();
  for (u32 i = 0; i < kRailsMax; ++i) {
    if (finishes[i] == 0 || finishes[i] > horizon) continue;
    const u64 inflight = rails_[i].estimate.inflight();
    if (inflight != 0 && inflight + bytes[i] > window(rails_[i], now, late_ns)) continue;
    if (best.rail == kNoRail || finishes[i] < finishes[best.rail]) best = {i, bytes[i]};
  }
  if (best.rail == kNoRail) return {};
  const bool expected = finishes[best.rail] == earliest;
  if (!expected || picks_++ % kDecisionEvery == 0) {
    Why why = usable_rails == 1 ? Why::only : expected ? Why::earliest : Why::no_room;
    if (pinned_ != 0) why = Why::pinned;
    if (avoid != 0) why = Why::resent;
    Decision decision{now, pending, best.bytes, best.rail, why, finishes};
    if (decisions_.size() >= kDecisionsKept) decisions_.pop_front();
    decisions_.push_back(decision);
  }
  return best;
}

u64 RailScheduler::posted(u32 number, u32 bytes, u64 tag, u64 now) {
  Rail& rail = rails_[number];
  const u64 due = now + finish(rail, bytes, now);
  if (rail.estimate.inflight() == 0) rail.idle_ns += now - std::min(now, rail.empty_ns);
  rail.estimate.posted(bytes, now);
  rail.posted.push_back({tag, now, due, rail.estimate.inflight() - bytes, bytes, false, false});
  next_ns_ = std::min(next_ns_, now + kTickNs);
  return u64{number} << (64 - kTicketRailBits) | (rail.first + rail.posted.size() - 1);
}

void RailScheduler::delivered(u64 ticket, u64 now) {
  const u32 number = rail_of_ticket(ticket);
  if (number >= kRailsMax) return;
  Rail& rail = rails_[number];
  rail.alive_ns = std::max(rail.alive_ns, now);
  Posted* chunk = find(ticket);
  if (chunk == nullptr) return;
  chunk->done = true;
  rail.estimate.delivered(chunk->bytes, chunk->at_ns, now, chunk->ahead);
  if (rail.estimate.inflight() == 0) rail.empty_ns = now;
  note_slow(rail, now - std::min(now, chunk->at_ns), now);
  rail.delivered += chunk->bytes;
  delivered_ += chunk->bytes;
  drop_done(rail);
}

void RailScheduler::withdrawn(u64 ticket) {
  Posted* chunk = find(ticket);
  if (chunk == nullptr) return;
  Rail& rail = rails_[rail_of_ticket(ticket)];
  chunk->done = true;
  rail.estimate.withdrawn(chunk->bytes);
  if (rail.estimate.inflight() == 0) rail.empty_ns = std::max(rail.empty_ns, ticked_ns_);
  drop_done(rail);
}

RailScheduler::Posted* RailScheduler::find(u64 ticket) {
  const u64 number = rail_of_ticket(ticket), index = ticket & (~u64{0} >> kTicketRailBits);
  if (number >= kRailsMax) return nullptr;
  Rail& rail = rails_[number];
  if (index < rail.first || index - rail.first >= rail.posted.size()) return nullptr;
  Posted& chunk = rail.posted[index - rail.first];
  return chunk.done ? nullptr : &chunk;
}

void RailScheduler::drop_done(Rail& rail) {
  while (!rail.posted.empty() && rail.posted.front().done) {
    rail.posted.pop_front();
    ++rail.first;
  }
}

// ------------------------------------------------------------------ time
u64 RailScheduler::evidence_of_others(u32 number) const {
  u64 newest = 0;
  for (u32 i = 0; i < kRailsMax; ++i)
    if (i != number && rails_[i].state == RailState::up) newest = std::max(newest, rails_[i].alive_ns);
  return newest;
}

void RailScheduler::tick(u64 now, std::vector<u64>& again, std::vector<u32>& reset) {
  if (ticked_ns_ != 0 && next_ns_ != kNever && now > next_ns_ + kOwnPauseNs) {
    for (Rail& rail : rails_) {
      rail.estimate.excuse_until(now);
      if (rail.asked_ns != 0) rail.asked_ns = now;
    }
  }
  ticked_ns_ = now;
  take_lost(again);
  next_ns_ = kNever;
  for (u32 i = 0; i < kRailsMax; ++i) {
    judge(i, now, evidence_of_others(i), again, reset);
    if (rails_[i].state == RailState::up) look_for_overdue(i, now, again);
    const RailState state = rails_[i].state;
    const bool waits = rails_[i].estimate.inflight() != 0 || (rails_[i].asked_ns != 0 && state == RailState::up);
    if (waits || state == RailState::suspect || state == RailState::held)
      next_ns_ = std::min(next_ns_, now + kTickNs);
  }
  weigh(now);
}

/// A rail that the others are no slower without gets no chunks.
void RailScheduler::weigh(u64 now) {
  RailReadings readings;
  for (u32 i = 0; i < kRailsMax; ++i) {
    const Rail& rail = rails_[i];
    const bool is_allowed = pinned_ == 0 || (pinned_ >> i & 1) != 0;
    if (rail.state != RailState::up || !is_allowed) continue;
    const u64 idle = rail.estimate.inflight() == 0 ? now - std::min(now, rail.empty_ns) : 0;
    const bool is_calm = rail.estimate.is_known() && decayed(rail, now) < kCalmPenalty;
    readings[i] = {true, is_calm, rail.delivered, rail.estimate.inflight(), rail.idle_ns + idle, rail.estimate.base_ns()};
  }
  std::vector<GainVerdict> verdicts;
  gain_.look(readings, now, verdicts);
  for (GainVerdict& verdict : verdicts) {
    if (rails_[verdict.rail].state != RailState::up || changes_.size() >= kDecisionsKept) continue;
    const RailState from = verdict.is_left_out ? RailState::up : RailState::left_out;
    const RailState to = verdict.is_left_out ? RailState::left_out : RailState::up;
    changes_.push_back({now, verdict.rail, from, to, std::move(verdict.reason)});
  }
}

bool RailScheduler::is_last(u32 number) const {
  for (u32 i = 0; i < kRailsMax; ++i)
    if (i != number && rails_[i].state == RailState::up) return false;
  return true;
}

void RailScheduler::note_slow(Rail& rail, u64 took_ns, u64 now) {
  const double past = static_cast<double>(now - std::min(now, rail.slow_at_ns));
  const double left = rail.slow_ns * std::exp(-past / static_cast<double>(kSlowTauNs));
  rail.slow_ns = std::max(left, static_cast<double>(took_ns));
  rail.slow_at_ns = now;
}

bool RailScheduler::is_silent(const Rail& rail, u64 now, u64 newest) const {
  const u64 slow = std::min(static_cast<u64>(kSlowShare * rail.slow_ns), kSlowMaxNs);
  const u64 chunk = as_ns(static_cast<double>(first_bytes(rail)), rail.estimate.rate());
  const u64 patience = std::max({3 * rail.estimate.base_ns(), 4 * chunk, slow});
  const auto too_long = [&](u64 since, u64 least) {
    const u64 wait = std::max(least, patience);
    return since != 0 && now >= since + wait && newest >= since + wait / 2;
  };
  return too_long(rail.estimate.silent_since(), rail.estimate.is_known() ? kStallNs : kStallUnknownNs) || too_long(rail.asked_ns, kAskedNs);
}

// A rail is suspect when it is silent while others are not: where all are, it is the peer that stands still.
void RailScheduler::judge(u32 number, u64 now, u64 newest, std::vector<u64>& again, std::vector<u32>& reset) {
  Rail& rail = rails_[number];
  if (rail.state == RailState::held && (now >= rail.held_until || is_last(number))) move(number, RailState::up, "it held", now);
  if (rail.state == RailState::up) {
    if (!is_silent(rail, now, newest)) return;
    rail.suspect_ns = now;
    rail.silent_ns = std::max(rail.estimate.silent_since(), rail.asked_ns);
    rail.asked_ns = 0;
    give_back(rail, again);
    fail(number, RailState::suspect, "nothing was acknowledged while other rails moved", now);
    return;
  }
  if (rail.state != RailState::suspect) return;
  if (rail.alive_ns > rail.suspect_ns) {  // slow, and not dead: next time it is waited for longer. What is known of it stands: were it forgotten, a slow rail would be flooded again
    note_slow(rail, now - std::min(now, rail.silent_ns), now);
    rail.penalty = std::max(0.0, decayed(rail, now) - 1);
    rail.penalty_ns = rail.empty_ns = now;
    move(number, RailState::up, "it answered", now);
  } else if (now >= rail.suspect_ns + kResetNs && !rail.reset_told) {
    rail.reset_told = true;
    reset.push_back(number);
  }
}

void RailScheduler::look_for_overdue(u32 number, u64 now, std::vector<u64>& again) {
  Rail& rail = rails_[number];
  for (Posted& chunk : rail.posted) {
    if (chunk.done || chunk.again) continue;
    if (now < chunk.due_ns + std::max(kOverdueNs, chunk.due_ns - chunk.at_ns)) break;
    const u64 here = finish(rail, 0, now);
    u64 elsewhere = kNever;
    for (u32 i = 0; i < kRailsMax; ++i)
      if (i != number && carries(i)) elsewhere = std::min(elsewhere, finish(rails_[i], chunk.bytes, now));
    const double allowed = kResentShareMax * static_cast<double>(delivered_) + static_cast<double>(kResentFreeBytes);
    if (elsewhere >= here || static_cast<double>(resent_ + chunk.bytes) > allowed) break;
    chunk.again = true;
    resent_ += chunk.bytes;
    rail.resent += chunk.bytes;
    again.push_back(chunk.tag);
  }
}

// ------------------------------------------------------------------ asked by people
RailTerms RailScheduler::terms(u32 number, u64 bytes, u64 now) const {
  const Rail& rail = rails_[number];
  const u64 since = rail.estimate.silent_since();
  return {rail.state, rail.estimate.rate(), rail.estimate.rate_now(first_bytes(rail), now), rail.estimate.base_ns(),
          rail.estimate.inflight(), window(rail, now, lateness()), finish(rail, bytes, now), since == 0 || since > now ? 0 : now - since,
          rail.delivered, rail.resent, rail.failures, decayed(rail, now), rail.held_until, gain_.left_out(number)};
}

std::vector<Change> RailScheduler::take_changes() { return std::exchange(changes_, {}); }

}  // namespace fabric::paths
