// Is a rail worth using? What the receiver acknowledges with it, beside what it acknowledges without it.
//
// Sans-IO, one per RailScheduler, asked at its ticks. Two rails may share a bottleneck, a port or a processor, that is
// made worse by sharing: then the better one alone is faster. Now and then, while all rails are busy, one is left out for
// a moment. Where the sum falls that is seen within milliseconds, and it is used again.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "core/layout.hpp"

namespace fabric::paths {

inline constexpr u32 kRailsMax = 8;                  // of one peer; RAILS_PER_PEER_MAX
inline constexpr u64 kGainWindowNs = 100'000'000;    // rates are looked at over these; idle ones do not count
inline constexpr u32 kGainWindows = 5;               // a trial is compared with the mean of so many
inline constexpr u64 kGainFirstNs = 2'000'000'000;   // all busy this long before a rail is tried; doubles with each trial that it passes
inline constexpr u64 kGainLongestNs = 64'000'000'000;
inline constexpr u64 kGainLeastNs = 10'000'000;      // of a trial, before anything is concluded; four base latencies where that is more
inline constexpr u64 kGainTrialNs = 200'000'000;     // without the rail, where the sum does not fall
inline constexpr u64 kGainBackNs = 100'000'000;      // then with it again: what changed meanwhile is not its doing
inline constexpr u64 kGainSettleNs = 20'000'000;     // until it carries its part again
inline constexpr u64 kGainDrainNs = 50'000'000;      // what is under way on it is awaited at most this long
inline constexpr u64 kGainRetryNs = 1'000'000'000;   // a rail that was left out is tried again; doubles
inline constexpr u64 kGainRetryMaxNs = 8'000'000'000;
inline constexpr double kGainHysteresis = 0.03;      // of the sum: less is no difference
inline constexpr double kGainHarm = 0.1;             // a rail that takes this much away is not waited for
inline constexpr double kGainIdleMax = 0.05;         // of the time, weighted by rate: with more, what is offered is the limit and no rail
inline constexpr double kGainCostMax = 0.005;        // of the goodput, for trials
inline constexpr double kGainShareLeast = 0.03;      // a rail that carries less is not tried: nobody would see the difference
inline constexpr double kGainFallen = 0.75;          // what is left carries this much of what it did: all are needed

/// One rail at a tick.
struct RailReading {
  bool is_up = false;                  ///< chunks may go over it
  bool is_calm = true;                 ///< its rate is known, and it did not fail of late
  u64 delivered = 0, inflight = 0;     ///< bytes
  u64 idle_ns = 0;                     ///< so far, with nothing in flight
  u64 base_ns = 0;
};
using RailReadings = std::array<RailReading, kRailsMax>;

struct GainVerdict { u32 rail; bool is_left_out; std::string reason; };

class MarginalGain {
 public:
  /// Looks at the rails. @param verdicts what is left out from now on, and what is used again.
  void look(const RailReadings& rails, u64 now, std::vector<GainVerdict>& verdicts);
  u32 avoided() const { return avoided_; }             ///< bit per rail: left out, or in a trial
  const std::string& left_out(u32 rail) const { return reasons_[rail]; }  ///< why; empty: it is not
  void first_trial_after(u64 ns) { first_ns_ = ns; }

 private:
  enum class Phase : u8 { watching, draining, without, back };
  struct Seen { u64 ns = 0; double rate = 0; std::array<double, kRailsMax> by_rail{}; bool is_busy = false; };
  struct Tried { u64 wait_ns = 0, at_ns = 0, retry_ns = 0, retry_at_ns = 0; };  // at: in busy time

  Seen seen(const RailReadings& rails, u64 now) const;
  void begin_span(const RailReadings& rails, u64 now);
  void begin_anew(const RailReadings& rails, u64 now, const char* reason, std::vector<GainVerdict>& verdicts);
  void enter(Phase phase, u32 rail, const RailReadings& rails, u64 now);
  void watch(const Seen& found, const RailReadings& rails, u64 now, std::vector<GainVerdict>& verdicts);
  void choose(const RailReadings& rails, u64 now);
  void drain(const RailReadings& rails, u64 now);
  void compare(const Seen& found, const RailReadings& rails, u64 now);
  void come_back(const Seen& found, const RailReadings& rails, u64 now, std::vector<GainVerdict>& verdicts);
  void keep(double lost_ns, const RailReadings& rails, u64 now);
  void leave_out(double with, const RailReadings& rails, u64 now, std::vector<GainVerdict>& verdicts);
  void note_window(const Seen& found);
  u64 least_ns(const RailReadings& rails) const;
  bool is_settled(const RailReadings& rails) const;

  Phase phase_ = Phase::watching;
  u32 up_ = 0, left_out_ = 0, avoided_ = 0, rail_ = 0;  // bits, but for the rail in a trial
  u64 phase_ns_ = 0, span_ns_ = 0, busy_ns_ = 0, next_trial_ns_ = 0;  // since when; the last two in busy time
  u64 first_ns_ = kGainFirstNs;
  std::array<u64, kRailsMax> span_delivered_{}, span_idle_{};
  std::array<Seen, kGainWindows> windows_{};
  u32 windows_seen_ = 0, fallen_ = 0;
  Seen mean_;
  double without_ = 0, judged_ = 0;    // bytes/s: of this trial, when the last rail was left out
  bool is_back_settled_ = false;
  std::array<Tried, kRailsMax> tried_{};
  std::array<std::string, kRailsMax> reasons_;
};

}  // namespace fabric::paths
