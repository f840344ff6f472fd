// Built-in routing policies: which of several targets gets the next message.
//
// No IO, no clock, no allocation: values in, an index out, so that the same code serves senders, tests and the
// conformance suite. One sender's, used under its port's lock. The policies of routes/fabric_routes say the same in Python.
#pragma once

#include <span>
#include <string_view>

#include "core/layout.hpp"

namespace fabric {

enum class RouteKind : u8 {
  none,               ///< the pattern chooses
  round_robin, least_outstanding, hash_key, weighted, locality, failover, deadline,
};

struct RouteOptions {
  double load_factor = 1.25;          ///< hash_key: of the mean load, what one target may have
  u64 spill = 0;                      ///< locality: from so many messages on a near target is passed over; 0: never
  u64 seed = 1;                       ///< least_outstanding: of its draws
};

/// What the daemon says of a target.
struct RouteRow { double weight = 1.0; u32 rank = 0, distance = 0; u64 load = 0; };

/// One target as policies see it.
struct RouteTarget {
  u64 target_endpoint = 0;
  u64 outstanding = 0;                ///< messages of this sender that have not ended
  RouteRow row;
  u64 service_ns = 0;                 ///< of one message there, measured; 0: not known
  double turn = 0.0;                  ///< weighted: what it is owed
  u64 busy() const { return outstanding + row.load; }
};

/// How long a target takes for a message, from when messages end there. Ends come in bunches: a sample spans
/// at least kSampleNs.
class ServiceTime {
 public:
  void begin(u64 now_ns) { from_ns_ = now_ns; ends_ = 0; }  ///< it was idle until now
  /// @return the new estimate, 0 as long as there is none
  u64 end(u64 now_ns);
  /// Nothing ended for so long that what is known may be wrong: it is asked anew.
  bool is_stale(u64 now_ns) const { return last_ns_ != 0 && now_ns - last_ns_ > kStaleNs; }
  void forget() { estimate_ns_ = 0, last_ns_ = 0; }

  static constexpr u64 kSampleNs = 1'000'000, kStaleNs = 500'000'000;

 private:
  u64 from_ns_ = 0, last_ns_ = 0, ends_ = 0, estimate_ns_ = 0;
};

class RouteKernel {
 public:
  RouteKernel() = default;
  RouteKernel(RouteKind kind, RouteOptions options) : kind_(kind), options_(options), draws_(options.seed | 1) {}
  RouteKind kind() const { return kind_; }
  /// A target without room is waited for: no other takes its place.
  bool is_strict() const { return kind_ == RouteKind::failover; }
  /// What has ended lately matters to it.
  bool looks_at_load() const {
    return kind_ == RouteKind::least_outstanding || kind_ == RouteKind::hash_key || kind_ == RouteKind::locality || measures();
  }
  bool measures() const { return kind_ == RouteKind::deadline; }
  /// Index of the chosen one; `targets` is not empty. Without a key `key_hash` is 0.
  std::size_t choose(std::span<RouteTarget* const> targets, u64 key_hash);

 private:
  using Targets = std::span<RouteTarget* const>;
  std::size_t next_in_turn(Targets targets);
  std::size_t less_of_two(Targets targets);
  std::size_t by_key(Targets targets, u64 key_hash) const;
  std::size_t by_weight(Targets targets) const;
  std::size_t nearest(Targets targets) const;
  std::size_t first_in_rank(Targets targets) const;
  std::size_t earliest(Targets targets) const;
  u64 draw();

  RouteKind kind_ = RouteKind::none;
  RouteOptions options_;
  u64 last_ = 0;                      // round_robin: the endpoint that was chosen last
  u64 draws_ = 1;                     // xorshift64*
};

/// none where there is no policy of this name.
RouteKind route_kind(std::string_view name);

}  // namespace fabric
