// Schedules drawn from a seed. Rail 0 … n-1 may do anything; one of them, drawn too, works in the end.
#include <algorithm>

#include "paths/rail_scheduler.hpp"
#include "sim/plan.hpp"
#include "sim/random.hpp"

namespace fabric::sim {
namespace {

constexpr u64 kSpanUs = 4'000'000;                   // changes lie in this
constexpr u64 kRates[] = {1'250'000, 12'500'000, 25'000'000, 62'500'000, 125'000'000, 312'500'000, 1'250'000'000, 6'250'000'000};

RailPlan draw_rail(Random& random, u64 number) {
  RailPlan rail;
  rail.rate = kRates[random.below(std::size(kRates))];
  rail.delay_us = random.one_in(8) ? random.between(1'000, 20'000) : random.between(5, 500);
  rail.queue = std::max<u64>(64 * 1024, rail.rate / 1000 * random.between(2, 40));
  rail.burst = random.one_in(2) ? 256 * 1024 : 0;
  rail.wire = number > 0 && random.one_in(8) ? random.below(number) : number;
  rail.acks_us = random.one_in(3) ? random.between(100, 4'000) : 0;
  return rail;
}

void draw_faults(Random& random, RailPlan& rail) {
  if (random.one_in(4)) rail.loss = random.between(100, 20'000);
  if (random.one_in(4)) rail.corrupt = random.between(1'000, 50'000);
  if (random.one_in(3)) rail.repeated_acks = random.between(1'000, 100'000);
  if (random.one_in(4)) rail.late_acks = random.between(1'000, 50'000);
}

void draw_rates(Random& random, RailPlan& rail) {
  const u64 steps = random.one_in(2) ? 0 : random.between(1, 6);
  for (u64 i = 0; i < steps; ++i) {
    const u64 factor = random.between(0, 20);          // 0: it stands still, nothing is lost
    rail.rates.push_back({random.below(kSpanUs), rail.rate / 20 * factor});
  }
  std::sort(rail.rates.begin(), rail.rates.end(), [](const RateStep& a, const RateStep& b) { return a.at_us < b.at_us; });
}

void draw_outages(Random& random, RailPlan& rail) {
  const bool flaps = random.one_in(6);
  u64 at = random.below(kSpanUs);
  const u64 count = random.one_in(2) ? 0 : flaps ? random.between(4, 12) : random.between(1, 3);
  for (u64 i = 0; i < count && at < kSpanUs; ++i) {
    const u64 lasts = flaps ? random.between(50'000, 400'000) : random.between(1'000, 3'500'000);
    rail.outages.push_back({at, at + lasts, random.one_in(2)});
    at += lasts + (flaps ? random.between(50'000, 400'000) : random.between(10'000, 2'000'000));
  }
}

/// Its last state is a working one: as fast as at first, or nearly.
void let_work(RailPlan& rail) {
  if (!rail.rates.empty()) rail.rates.push_back({kSpanUs, std::max<u64>(rail.rate, 12'500'000)});
  else rail.rate = std::max<u64>(rail.rate, 12'500'000);
  rail.loss = std::min<u64>(rail.loss, 5'000);
}

/// Rails that share a wire may cost each other something, and may be parted; trials of what a rail adds come soon, and
/// sometimes there is enough to send for a few of them.
void draw_sharing(Random& random, Plan& plan) {
  plan.trial_us = random.one_in(2) ? random.between(1'000, 300'000) : 0;
  const bool is_tried = plan.trial_us != 0 && random.one_in(4);
  if (is_tried && plan.rails.size() > 1) plan.rails[1].wire = 0;
  u64 rates = 0;
  for (const RailPlan& rail : plan.rails) rates += rail.rate;
  if (is_tried) plan.loads.push_back({0, std::clamp<u64>(rates / 20, 1 << 16, 4 << 20), 3, 60});
  for (u64 i = 0; i < plan.rails.size(); ++i) {
    if (plan.wire_of(i) == i) continue;
    const u64 wire = plan.wire_of(i);
    if (random.one_in(2)) plan.rails[i].switch_us = plan.rails[wire].switch_us = random.between(20, 400);
    if (random.one_in(4)) plan.rails[i].split_us = random.between(1, kSpanUs);
  }
}

void draw_loads(Random& random, Plan& plan) {
  u64 left = u64{1} << random.between(20, 24);
  if (random.one_in(16)) left <<= 2;
  const std::size_t most = plan.loads.size() + 64;
  while (left > 0 && plan.loads.size() < most) {
    Load load;
    const u64 size = random.between(1, u64{1} << random.between(8, 23));
    load.bytes = std::min(left, size);
    load.at_us = random.one_in(3) ? 0 : random.below(kSpanUs);
    load.klass = random.one_in(4) ? random.below(4) : 3;
    left -= load.bytes;
    plan.loads.push_back(load);
  }
  if (left > 0) plan.loads.push_back({0, left, 3, 1});
}

}  // namespace

Plan random_plan(u64 seed) {
  Random random(seed * 0x9e3779b97f4a7c15ULL + 1);
  Plan plan;
  plan.seed = seed;
  plan.slots = random.between(1, 6);
  plan.hold_us = random.one_in(3) ? 0 : random.between(1, 50'000);
  const u64 rails = random.between(1, random.one_in(3) ? paths::kRailsMax : 4);
  const bool calm = random.one_in(5);
  for (u64 i = 0; i < rails; ++i) {
    RailPlan rail = draw_rail(random, i);
    if (calm && random.one_in(2)) {
      rail.rate = std::max<u64>(rail.rate, 12'500'000);
      rail.queue = std::max<u64>(rail.queue, 1 << 20);
    }
    if (!calm) {
      draw_faults(random, rail);
      draw_rates(random, rail);
      draw_outages(random, rail);
    }
    plan.rails.push_back(rail);
  }
  if (!calm) draw_sharing(random, plan);
  const u64 works = random.below(rails);
  let_work(plan.rails[works]);
  if (plan.wire_of(works) != works) let_work(plan.rails[plan.wire_of(works)]);
  if (!calm && random.one_in(4)) {
    const u64 from = random.below(kSpanUs);
    plan.pauses.push_back({from, from + random.between(10'000, 800'000)});
  }
  draw_loads(random, plan);
  return plan;
}

}  // namespace fabric::sim
