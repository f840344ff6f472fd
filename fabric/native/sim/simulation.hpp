// One schedule, run to its end: two hosts, their rails, what must hold after every event.
#pragma once

#include <string>
#include <vector>

#include "sim/receiver.hpp"
#include "sim/sender.hpp"
#include "sim/transport.hpp"

namespace fabric::sim {

inline constexpr u64 kProgressNs = 10'000'000'000;   // while a rail works, something is delivered within this
inline constexpr u64 kWorksRate = 1'000'000;         // bytes/s: a rail this fast works
inline constexpr u64 kWorksLoss = 20'000;            // per million
inline constexpr u64 kAfterNs = 2'000'000'000;       // what is late may still arrive when all is delivered
inline constexpr u64 kEventsMax = 200'000'000;

struct Options {
  u64 bucket_ns = 50'000'000;                        // of Result::buckets
  Receiver::Rules rules;
};

struct Result {
  std::string violation;                             // empty: everything held
  u64 at_ns = 0;                                     // of the violation, or of the last delivery
  u64 events = 0, delivered = 0, posted = 0, resent = 0, scratch = 0, corrupt = 0;  // bytes but the first and the last
  u64 gap_ns = 0;                                    // longest time without a byte placed, from the first to the last
  u64 log = 0;                                       // two runs of a plan have the same
  std::vector<u64> buckets;                          // verified bytes by time
  std::vector<u64> took_ns;                          // by transfer: from its grant until it was handed over
  std::vector<paths::RailTerms> rails;
};

class Simulation : private Arrivals {
 public:
  Simulation(const Plan& plan, Options options);
  Result run();

 private:
  void handle(const Event& event);
  void handle_sender(const Event& event);
  bool waits_for_the_sender(const Event& event);
  void watch_rails(const Event& event);
  void check();
  bool is_done() const { return offered_ == plan_.loads.size() && sender_.unacked() == 0; }
  u64 allowed_again() const;
  void fail(const std::string& what);
  void finish();

  void piece(u32 rail, u64 post, u32 offset, u32 bytes, bool is_last) override;
  void answered(u32 rail, u64 post, bool is_bad) override;
  void hand_over(u32 transfer);

  const Plan plan_;
  const Options options_;
  Random random_;
  Events events_;
  Transport transport_;
  Receiver receiver_;
  Sender sender_;
  Result result_;
  std::vector<u64> works_since_;                     // by rail; kNeverNs: it does not
  std::vector<u64> rates_, windows_;                 // by rail
  u64 offered_ = 0, progress_ns_ = 0, placed_ns_ = 0, done_ns_ = 0;
};

}  // namespace fabric::sim
