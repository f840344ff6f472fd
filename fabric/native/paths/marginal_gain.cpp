#include "paths/marginal_gain.hpp"

#include <algorithm>
#include <bit>
#include <cstdio>

namespace fabric::paths {
namespace {

bool has(u32 mask, u32 rail) { return (mask >> rail & 1) != 0; }

std::string in_words(const char* what, double without, double with) {
  char text[96];
  std::snprintf(text, sizeof text, "%s (without it %.1f MB/s, with it %.1f MB/s)", what, without / 1e6, with / 1e6);
  return text;
}

}  // namespace

void MarginalGain::look(const RailReadings& rails, u64 now, std::vector<GainVerdict>& verdicts) {
  u32 up = 0;
  for (u32 i = 0; i < kRailsMax; ++i) up |= rails[i].is_up ? 1u << i : 0;
  if (up != up_) {
    up_ = up;
    return begin_anew(rails, now, "the rails beside it changed", verdicts);
  }
  if (std::popcount(up) < 2) return;
  const Seen found = seen(rails, now);
  switch (phase_) {
    case Phase::watching: return watch(found, rails, now, verdicts);
    case Phase::draining: return drain(rails, now);
    case Phase::without: return compare(found, rails, now);
    case Phase::back: return come_back(found, rails, now, verdicts);
  }
}

// ------------------------------------------------------------------ what was carried
void MarginalGain::begin_span(const RailReadings& rails, u64 now) {
  span_ns_ = now;
  for (u32 i = 0; i < kRailsMax; ++i) {
    span_delivered_[i] = rails[i].delivered;
    span_idle_[i] = rails[i].idle_ns;
  }
}

/// Since the span began, of the rails in use.
MarginalGain::Seen MarginalGain::seen(const RailReadings& rails, u64 now) const {
  Seen found;
  found.ns = now - std::min(now, span_ns_);
  if (found.ns == 0) return found;
  double idle = 0;
  for (u32 i = 0; i < kRailsMax; ++i) {
    if (!has(up_ & ~avoided_, i)) continue;
    found.by_rail[i] = static_cast<double>(rails[i].delivered - span_delivered_[i]) * 1e9 / static_cast<double>(found.ns);
    found.rate += found.by_rail[i];
    idle += found.by_rail[i] * static_cast<double>(rails[i].idle_ns - span_idle_[i]) / static_cast<double>(found.ns);
  }
  found.is_busy = found.rate > 0 && idle <= kGainIdleMax * found.rate;
  return found;
}

void MarginalGain::note_window(const Seen& found) {
  busy_ns_ += found.ns;
  windows_[windows_seen_++ % kGainWindows] = found;
  mean_ = {};
  const double count = std::min(windows_seen_, kGainWindows);
  for (u32 window = 0; window < std::min(windows_seen_, kGainWindows); ++window) {
    mean_.rate += windows_[window].rate / count;
    for (u32 i = 0; i < kRailsMax; ++i) mean_.by_rail[i] += windows_[window].by_rail[i] / count;
  }
}

u64 MarginalGain::least_ns(const RailReadings& rails) const {
  u64 base = 0;
  for (u32 i = 0; i < kRailsMax; ++i)
    if (has(up_, i)) base = std::max(base, rails[i].base_ns);
  return std::max(kGainLeastNs, 4 * base);
}

bool MarginalGain::is_settled(const RailReadings& rails) const {
  for (u32 i = 0; i < kRailsMax; ++i)
    if (has(up_, i) && !rails[i].is_calm) return false;
  return true;
}

// ------------------------------------------------------------------ phases
void MarginalGain::enter(Phase phase, u32 rail, const RailReadings& rails, u64 now) {
  phase_ = phase;
  rail_ = rail;
  phase_ns_ = now;
  is_back_settled_ = false;
  avoided_ = left_out_;
  if (phase == Phase::draining || phase == Phase::without) avoided_ |= 1u << rail;
  if (phase == Phase::back) avoided_ &= ~(1u << rail);
  if (phase == Phase::watching) windows_seen_ = fallen_ = 0;
  begin_span(rails, now);
}

/// Every rail is used, nothing is known of their worth.
void MarginalGain::begin_anew(const RailReadings& rails, u64 now, const char* reason, std::vector<GainVerdict>& verdicts) {
  for (u32 i = 0; i < kRailsMax; ++i) {
    if (has(left_out_, i)) verdicts.push_back({i, false, reason});
    reasons_[i].clear();
  }
  left_out_ = 0;
  busy_ns_ = next_trial_ns_ = 0;
  tried_ = {};
  enter(Phase::watching, 0, rails, now);
}

void MarginalGain::watch(const Seen& found, const RailReadings& rails, u64 now, std::vector<GainVerdict>& verdicts) {
  if (found.ns < kGainWindowNs) return;
  begin_span(rails, now);
  if (!found.is_busy) {
    windows_seen_ = fallen_ = 0;
    return;
  }
  note_window(found);
  fallen_ = left_out_ != 0 && found.rate < kGainFallen * judged_ ? fallen_ + 1 : 0;
  if (fallen_ >= 2) return begin_anew(rails, now, "the rails beside it carry less", verdicts);
  if (windows_seen_ >= kGainWindows && is_settled(rails)) choose(rails, now);
}

/// Of the rails whose time has come: first one that was left out, else the one that carries least. The best one never.
void MarginalGain::choose(const RailReadings& rails, u64 now) {
  u32 least = kRailsMax, best = kRailsMax;
  for (u32 i = 0; i < kRailsMax; ++i) {
    if (!has(up_, i)) continue;
    if (has(left_out_, i)) {
      if (now < tried_[i].retry_at_ns) continue;
      without_ = mean_.rate;
      return enter(Phase::back, i, rails, now);
    }
    if (best == kRailsMax || mean_.by_rail[i] > mean_.by_rail[best]) best = i;
  }
  for (u32 i = 0; i < kRailsMax; ++i) {
    const u64 wait = std::max(tried_[i].wait_ns, first_ns_);
    if (!has(up_ & ~left_out_, i) || i == best || busy_ns_ < tried_[i].at_ns + wait) continue;
    if (mean_.by_rail[i] < kGainShareLeast * mean_.rate) continue;
    if (least == kRailsMax || mean_.by_rail[i] < mean_.by_rail[least]) least = i;
  }
  if (least == kRailsMax) return;
  const double cost_ns = mean_.by_rail[least] / mean_.rate * static_cast<double>(least_ns(rails));
  if (static_cast<double>(busy_ns_ - std::min(busy_ns_, next_trial_ns_)) * kGainCostMax < cost_ns) return;
  enter(Phase::draining, least, rails, now);
}

void MarginalGain::drain(const RailReadings& rails, u64 now) {
  if (rails[rail_].inflight == 0) return enter(Phase::without, rail_, rails, now);
  if (now >= phase_ns_ + kGainDrainNs + least_ns(rails)) enter(Phase::watching, 0, rails, now);
}

/// A rail that carries nothing of its own is missed by nobody. The first look allows for much, the last for next to nothing.
void MarginalGain::compare(const Seen& found, const RailReadings& rails, u64 now) {
  const u64 least = least_ns(rails), whole = std::max(kGainTrialNs, 2 * least);
  if (found.ns < least) return;
  if (!found.is_busy || !is_settled(rails)) return enter(Phase::watching, 0, rails, now);
  const double left = 1 - std::min(1.0, static_cast<double>(found.ns) / static_cast<double>(whole));
  const double needed = (1 - kGainHysteresis) * mean_.rate - left * mean_.by_rail[rail_] / 2;
  if (found.rate < needed) return keep((1 - std::min(1.0, found.rate / mean_.rate)) * static_cast<double>(found.ns), rails, now);
  if (found.ns < whole) return;
  without_ = found.rate;
  enter(Phase::back, rail_, rails, now);
}

void MarginalGain::come_back(const Seen& found, const RailReadings& rails, u64 now, std::vector<GainVerdict>& verdicts) {
  if (!is_settled(rails)) return enter(Phase::watching, 0, rails, now);
  if (!is_back_settled_) {
    if (found.ns < std::max(kGainSettleNs, least_ns(rails))) return;
    is_back_settled_ = true;
    return begin_span(rails, now);
  }
  if (found.ns < least_ns(rails)) return;
  const bool harms = found.rate < (1 - kGainHarm) * without_;
  if (found.ns < kGainBackNs && !harms) return;
  if (!found.is_busy && !harms) return enter(Phase::watching, 0, rails, now);
  if (found.rate <= (1 + kGainHysteresis) * without_) return leave_out(found.rate, rails, now, verdicts);
  if (has(left_out_, rail_)) verdicts.push_back({rail_, false, in_words("it adds", without_, found.rate)});
  left_out_ &= ~(1u << rail_);
  reasons_[rail_].clear();
  keep(0, rails, now);
}

/// It is worth its use: the next trial comes later. @param lost_ns of the goodput, by this one
void MarginalGain::keep(double lost_ns, const RailReadings& rails, u64 now) {
  Tried& tried = tried_[rail_];
  tried.wait_ns = std::min(kGainLongestNs, 2 * std::max(tried.wait_ns, first_ns_));
  tried.at_ns = busy_ns_;
  tried.retry_ns = 0;
  next_trial_ns_ = busy_ns_ + static_cast<u64>(lost_ns / kGainCostMax);
  enter(Phase::watching, 0, rails, now);
}

void MarginalGain::leave_out(double with, const RailReadings& rails, u64 now, std::vector<GainVerdict>& verdicts) {
  Tried& tried = tried_[rail_];
  tried.retry_ns = std::clamp(2 * tried.retry_ns, kGainRetryNs, kGainRetryMaxNs);
  tried.retry_at_ns = now + tried.retry_ns;
  reasons_[rail_] = in_words("adds nothing", without_, with);
  if (!has(left_out_, rail_)) verdicts.push_back({rail_, true, reasons_[rail_]});
  left_out_ |= 1u << rail_;
  judged_ = without_;
  enter(Phase::watching, 0, rails, now);
}

}  // namespace fabric::paths
