#include "core/route_kernel.hpp"

#include <algorithm>
#include <cmath>

namespace fabric {
namespace {

struct Named { std::string_view name; RouteKind kind; };
constexpr Named kNames[] = {
    {"round_robin", RouteKind::round_robin}, {"least_outstanding", RouteKind::least_outstanding},
    {"hash_key", RouteKind::hash_key},       {"weighted", RouteKind::weighted},
    {"locality", RouteKind::locality},       {"failover", RouteKind::failover},
    {"deadline", RouteKind::deadline},
};

// The finaliser of splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
u64 mix(u64 value) {
  value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9ULL;
  value = (value ^ value >> 27) * 0x94d049bb133111ebULL;
  return value ^ value >> 31;
}

template <class Better>
std::size_t best(std::span<RouteTarget* const> targets, Better better) {
  std::size_t found = 0;
  for (std::size_t i = 1; i < targets.size(); ++i) {
    if (better(*targets[i], *targets[found])) found = i;
  }
  return found;
}

bool less_busy(const RouteTarget& a, const RouteTarget& b) {
  return a.busy() != b.busy() ? a.busy() < b.busy() : a.target_endpoint < b.target_endpoint;
}

}  // namespace

RouteKind route_kind(std::string_view name) {
  for (const Named& each : kNames) {
    if (each.name == name) return each.kind;
  }
  return RouteKind::none;
}

u64 ServiceTime::end(u64 now_ns) {
  ++ends_;
  last_ns_ = now_ns;
  if (now_ns - from_ns_ < kSampleNs) return estimate_ns_;
  const u64 sample = std::max<u64>((now_ns - from_ns_) / ends_, 1);
  estimate_ns_ = estimate_ns_ == 0 ? sample : (3 * estimate_ns_ + sample) / 4;
  begin(now_ns);
  return estimate_ns_;
}

std::size_t RouteKernel::choose(Targets targets, u64 key_hash) {
  switch (kind_) {
    case RouteKind::round_robin: return next_in_turn(targets);
    case RouteKind::least_outstanding: return less_of_two(targets);
    case RouteKind::hash_key: return by_key(targets, key_hash);
    case RouteKind::weighted: return by_weight(targets);
    case RouteKind::locality: return nearest(targets);
    case RouteKind::failover: return first_in_rank(targets);
    case RouteKind::deadline: return earliest(targets);
    default: return best(targets, less_busy);
  }
}

// The next larger endpoint, else the smallest: what comes or goes does not reset the turn.
std::size_t RouteKernel::next_in_turn(Targets targets) {
  const u64 last = last_;
  const std::size_t found = best(targets, [last](const RouteTarget& a, const RouteTarget& b) {
    const bool a_later = a.target_endpoint > last, b_later = b.target_endpoint > last;
    return a_later != b_later ? a_later : a.target_endpoint < b.target_endpoint;
  });
  last_ = targets[found]->target_endpoint;
  return found;
}

u64 RouteKernel::draw() {
  draws_ ^= draws_ >> 12;
  draws_ ^= draws_ << 25;
  draws_ ^= draws_ >> 27;
  return (draws_ * 0x2545f4914f6cdd1dULL) >> 32;
}

// Power of two choices (Mitzenmacher, "The power of two choices in randomized load balancing", 2001).
std::size_t RouteKernel::less_of_two(Targets targets) {
  const std::size_t count = targets.size();
  if (count == 1) return 0;
  const std::size_t first = draw() % count;
  std::size_t second = draw() % (count - 1);
  second += second >= first;
  return targets[second]->busy() < targets[first]->busy() ? second : first;
}

// Highest random weight (Thaler and Ravishankar, 1998) among those below the bound on load (Mirrokni, Thorup and
// Zadimoghaddam, "Consistent hashing with bounded loads", 2018). One of them always is: the bound is above the mean.
std::size_t RouteKernel::by_key(Targets targets, u64 key_hash) const {
  u64 total = 1;
  for (const RouteTarget* target : targets) total += target->busy();
  const double bound = std::ceil(options_.load_factor * static_cast<double>(total) / static_cast<double>(targets.size()));
  std::size_t found = 0;
  u64 heaviest = 0;
  bool any = false;
  for (std::size_t i = 0; i < targets.size(); ++i) {
    if (static_cast<double>(targets[i]->busy()) >= bound) continue;
    const u64 weight = mix(key_hash ^ mix(targets[i]->target_endpoint));
    if (any && weight <= heaviest) continue;
    any = true;
    heaviest = weight;
    found = i;
  }
  return found;
}

// Smooth weighted round robin: each earns its weight, the richest is chosen and pays the sum.
std::size_t RouteKernel::by_weight(Targets targets) const {
  double sum = 0.0;
  for (const RouteTarget* target : targets) sum += target->row.weight;
  if (sum <= 0.0) return best(targets, less_busy);
  for (RouteTarget* target : targets) target->turn += target->row.weight;
  const std::size_t found = best(targets, [](const RouteTarget& a, const RouteTarget& b) {
    const bool a_may = a.row.weight > 0.0, b_may = b.row.weight > 0.0;
    if (a_may != b_may) return a_may;
    return a.turn != b.turn ? a.turn > b.turn : a.target_endpoint < b.target_endpoint;
  });
  targets[found]->turn -= sum;
  return found;
}

std::size_t RouteKernel::nearest(Targets targets) const {
  const u64 spill = options_.spill == 0 ? ~u64{0} : options_.spill;
  return best(targets, [spill](const RouteTarget& a, const RouteTarget& b) {
    const bool a_open = a.busy() < spill, b_open = b.busy() < spill;
    if (a_open != b_open) return a_open;
    if (a_open && a.row.distance != b.row.distance) return a.row.distance < b.row.distance;
    return less_busy(a, b);
  });
}

// By rank, then the one that was opened first.
std::size_t RouteKernel::first_in_rank(Targets targets) const {
  return best(targets, [](const RouteTarget& a, const RouteTarget& b) {
    if (a.row.rank != b.row.rank) return a.row.rank < b.row.rank;
    const u32 a_count = static_cast<u32>(a.target_endpoint), b_count = static_cast<u32>(b.target_endpoint);
    return a_count != b_count ? a_count < b_count : a.target_endpoint < b.target_endpoint;
  });
}

// Of one that was not measured it is assumed that it is as fast as the fastest: so it is tried.
std::size_t RouteKernel::earliest(Targets targets) const {
  u64 fastest = 0;
  for (const RouteTarget* target : targets) {
    if (target->service_ns != 0 && (fastest == 0 || target->service_ns < fastest)) fastest = target->service_ns;
  }
  fastest = std::max<u64>(fastest, 1);
  const auto finish = [fastest](const RouteTarget& target) {
    return (target.busy() + 1) * (target.service_ns != 0 ? target.service_ns : fastest);
  };
  return best(targets, [&finish](const RouteTarget& a, const RouteTarget& b) {
    const u64 a_ns = finish(a), b_ns = finish(b);
    return a_ns != b_ns ? a_ns < b_ns : a.target_endpoint < b.target_endpoint;
  });
}

}  // namespace fabric
