// What one rail delivers, learnt from acknowledgements alone. Sans-IO: every call is given `now`.
//
// Owner: a RailScheduler, one per peer. Rate is acknowledged bytes over *busy* time: both are decayed sums, so that a
// burst of acknowledgements weighs what it is worth. Busy time begins one base latency after the rail was idle.
#pragma once

#include "core/layout.hpp"

namespace fabric::paths {

inline constexpr u64 kRateTauNs = 40'000'000;      // what lies this far back in busy time weighs 1/e
inline constexpr u64 kSettledTauNs = 400'000'000;  // the same for the rate that a fall is told by
inline constexpr double kFalling = 0.6;            // of it
inline constexpr u64 kBaseWindowNs = 5'000'000'000;  // the least latency is looked for in the last one to two of these
inline constexpr u64 kBaseUnknownNs = 200'000;
inline constexpr double kBaseLeastShare = 0.25;    // of a round trip is latency at least, whatever the rate is thought to be
inline constexpr u64 kFarNs = 4'000'000;            // from this latency on it must be known; less may be that of busy hosts, whose rails are near
inline constexpr u32 kIdleTripsMin = 3;            // idle round trips that say so: a single one may have met a busy host
inline constexpr double kRateUnknown = 125e6;      // bytes/s: 1 Gbit/s, until the first acknowledgement
inline constexpr double kRateMax = 400e9;

class RailEstimate {
 public:
  /// `bytes` begin their way. @param now monotonic, ns.
  void posted(u64 bytes, u64 now);
  /// The peer has them. @param was_posted when they left, ns; @param ahead what was in flight before them then, bytes.
  void delivered(u64 bytes, u64 was_posted, u64 now, u64 ahead = 0);
  /// They are not waited for any more.
  void withdrawn(u64 bytes);
  /// A round trip of next to no bytes.
  void round_trip(u64 ns, u64 now);
  /// The same with nothing in flight beside it: latency and nothing else.
  void idle_round_trip(u64 ns, u64 now);
  /// The path is a new one: latency and rate are to be learnt again.
  void forget();
  /// Nothing is in flight any more; what is known of the path stands.
  void reconnect();

  u64 inflight() const { return inflight_; }
  u64 learnt_from() const { return learnt_from_; }  ///< bytes acknowledged since the path is this one
  bool is_known() const { return busy_ns_ > 0; }
  double rate() const { return is_known() ? rate_ : kRateUnknown; }
  /// Rate, and not more than the silence since the last acknowledgement leaves possible. @param next bytes awaited first.
  double rate_now(u64 next, u64 now) const;
  /// It carries much less than a moment ago: throttled, or losing.
  bool is_falling() const { return rate_ < kFalling * settled_; }
  u64 base_ns() const;
  /// How long acknowledgements stay out, seen at a moment of busy time taken at random: batches count by their length.
  u64 gap_ns() const { return busy_ns_ > 0 ? static_cast<u64>(gaps_ / busy_ns_) : 0; }
  /// Since when nothing was acknowledged of what is in flight; 0: nothing is in flight.
  u64 silent_since() const { return inflight_ == 0 ? 0 : mark_ns_; }
  void excuse_until(u64 now);           ///< silence before `now` was ours

 private:
  u64 inflight_ = 0, mark_ns_ = 0, learnt_from_ = 0;
  double bytes_ = 0, busy_ns_ = 0, rate_ = 0, settled_ = 0, gaps_ = 0;   // gaps_: squares of the times between acknowledgements
  u64 base_now_ = ~u64{0}, base_before_ = ~u64{0}, base_since_ = 0;
  u64 idle_ = ~u64{0}, idle_since_ = 0;                                  // least idle round trip of this window, or what went below it
  u32 idle_trips_ = 0;
};

}  // namespace fabric::paths
