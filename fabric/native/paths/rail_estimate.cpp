#include "paths/rail_estimate.hpp"

#include <algorithm>
#include <cmath>

namespace fabric::paths {

void RailEstimate::posted(u64 bytes, u64 now) {
  if (inflight_ == 0) mark_ns_ = now + base_ns();
  inflight_ += bytes;
}

// A round trip holds the time that the bytes themselves and those ahead of them took: that is no latency, and kept as such
// it would grow with the window that it widens. Taken off at the fastest of what is known and seen, so rather too little.
void RailEstimate::delivered(u64 bytes, u64 was_posted, u64 now, u64 ahead) {
  inflight_ -= std::min(bytes, inflight_);
  learnt_from_ += bytes;
  const double least_ns = static_cast<double>(bytes) * 1e9 / kRateMax;
  const double took_ns = std::max(now > mark_ns_ ? static_cast<double>(now - mark_ns_) : 0.0, least_ns);
  const double kept = std::exp(-took_ns / static_cast<double>(kRateTauNs));
  const double before = rate_;
  bytes_ = bytes_ * kept + static_cast<double>(bytes);
  busy_ns_ = busy_ns_ * kept + took_ns;
  gaps_ = gaps_ * kept + took_ns * took_ns;
  rate_ = std::clamp(bytes_ * 1e9 / busy_ns_, 1.0, kRateMax);
  settled_ = before == 0 ? rate_ : settled_ + (rate_ - settled_) * (1 - std::exp(-took_ns / static_cast<double>(kSettledTauNs)));
  mark_ns_ = std::max(mark_ns_, now);
  if (now <= was_posted) return;
  idle_ = std::min(idle_, now - was_posted);
  const double fastest = std::max({before, rate_, static_cast<double>(bytes) * 1e9 / took_ns});
  const double trip = static_cast<double>(now - was_posted);
  const double queued = static_cast<double>(ahead + bytes) * 1e9 / fastest;
  round_trip(static_cast<u64>(std::max(trip * kBaseLeastShare, trip - queued)), now);
}

void RailEstimate::withdrawn(u64 bytes) { inflight_ -= std::min(bytes, inflight_); }

void RailEstimate::round_trip(u64 ns, u64 now) {
  if (now >= base_since_ + kBaseWindowNs) {
    base_before_ = now >= base_since_ + 2 * kBaseWindowNs ? ~u64{0} : base_now_;
    base_now_ = ~u64{0};
    base_since_ = now;
  }
  base_now_ = std::min(base_now_, ns);
}

void RailEstimate::idle_round_trip(u64 ns, u64 now) {
  round_trip(ns, now);
  if (idle_trips_ == 0 || now >= idle_since_ + kBaseWindowNs) {
    idle_ = ns;
    idle_since_ = now;
  }
  idle_ = std::min(idle_, ns);
  ++idle_trips_;
}

void RailEstimate::forget() { *this = RailEstimate{}; }

void RailEstimate::reconnect() { inflight_ = mark_ns_ = 0; }

u64 RailEstimate::base_ns() const {
  const u64 least = std::min(base_now_, base_before_);
  if (least == ~u64{0}) return kBaseUnknownNs;
  // What acknowledgements say while the rail is full is too little by what is on its way: on a far rail most of it.
  return idle_trips_ >= kIdleTripsMin && idle_ >= kFarNs ? std::max(least, idle_) : least;
}

double RailEstimate::rate_now(u64 next, u64 now) const {
  const double known = rate();
  if (inflight_ == 0 || now <= mark_ns_ || next == 0) return known;
  const double silent_ns = static_cast<double>(now - mark_ns_);
  // Acknowledgements come in bursts: twice the time that the next one should have taken says nothing yet.
  const double grace_ns = 2e9 * static_cast<double>(next) / known + static_cast<double>(base_ns()) + 2e6;
  if (silent_ns <= grace_ns) return known;
  return std::max(1.0, known * grace_ns / silent_ns);
}

void RailEstimate::excuse_until(u64 now) {
  if (inflight_ != 0) mark_ns_ = std::max(mark_ns_, now);
}

}  // namespace fabric::paths
