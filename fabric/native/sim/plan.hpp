// A schedule: what the rails are like, when they change, what is sent over them. Text in and out, or drawn from a seed.
//
// One line each, `word key=value …`, `#` begins a comment; times in microseconds, rates in bytes/s, chances per million.
#pragma once

#include <string>
#include <vector>

#include "core/layout.hpp"

namespace fabric::sim {

inline constexpr u64 kTransfersMax = 1'000'000;      // of one plan
inline constexpr u64 kLinesMax = 100'000;
inline constexpr u64 kTransferBytesMax = 1ULL << 40;

struct RateStep { u64 at_us = 0, rate = 0; };
struct Outage { u64 from_us = 0, to_us = 0; bool told = false; };  ///< told: the interface says so at both ends

struct RailPlan {
  u64 rate = 125'000'000;
  u64 delay_us = 50;                  ///< one way
  u64 queue = 1 << 20;                ///< bytes before what comes is dropped
  u64 burst = 0;                      ///< bytes that pass at once after a pause (a token bucket)
  u64 wire = 0;                       ///< number of the rail whose rate and queue it shares; its own: none
  u64 switch_us = 0;                  ///< what its wire loses when it serves another rail than before
  u64 split_us = 0;                   ///< from then on it has the wire to itself that its own rate and queue describe; 0: never
  u64 loss = 0, corrupt = 0;          ///< per million: segments, chunks
  u64 repeated_acks = 0, late_acks = 0;  ///< per million
  u64 acks_us = 0;                    ///< the receiver collects its acknowledgements this long
  std::vector<RateStep> rates;
  std::vector<Outage> outages;
};

struct Load { u64 at_us = 0, bytes = 0, klass = 3, count = 1; };
struct Pause { u64 from_us = 0, to_us = 0; };        ///< the sender's process stands still

struct Plan {
  u64 seed = 1;
  u64 slots = 4;                      ///< transfers that the receiver has room for
  u64 hold_us = 0;                    ///< the application keeps a message at most this long
  u64 stop_us = 0;                    ///< 0: until everything is delivered
  u64 trial_us = 0;                   ///< all rails busy so long before one is left out for a trial; 0: as in the engine
  std::vector<RailPlan> rails;
  std::vector<Load> loads;
  std::vector<Pause> pauses;

  bool is_calm() const;               ///< nothing fails, is dropped or changes its rate
  u64 bytes() const;
  u64 last_change_us() const;
  u64 wire_of(u64 rail) const;        ///< the rail whose rate and queue it uses
};

std::string to_text(const Plan& plan);
/// @return empty, or what is wrong and in which line.
std::string parse(const std::string& text, Plan& plan);
/// A schedule of rates, losses, failures and returns in which at least one rail works in the end.
Plan random_plan(u64 seed);

}  // namespace fabric::sim
