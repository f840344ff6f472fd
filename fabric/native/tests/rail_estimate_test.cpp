// What a rail delivers, learnt from acknowledgements: over busy time only, in bursts too, felt when it stands still.
#include "paths/rail_estimate.hpp"
#include "tests/check.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <deque>

namespace fabric::paths {
namespace {

constexpr u64 kMs = 1'000'000, kUs = 1'000;
constexpr u64 kBytes = 64 * 1024;

bool is_near(double value, double expected, double share) { return std::abs(value - expected) <= share * expected; }

u64 time_of(u64 bytes, double rate) { return static_cast<u64>(static_cast<double>(bytes) * 1e9 / rate); }

/// Keeps `deep` chunks in flight for `ns` over a pipe of `rate`, acknowledged `burst` at a time; @return the time afterwards.
u64 stream(RailEstimate& estimate, double rate, u64 latency, u64 begin, u64 ns, u32 deep = 4, u32 burst = 1) {
  struct Sent { u64 at, arrives, ahead; };
  std::deque<Sent> sent;
  u64 now = begin, free = 0;
  const auto post = [&] {
    const u64 ahead = estimate.inflight();
    estimate.posted(kBytes, now);
    free = std::max(free, now) + time_of(kBytes, rate);
    sent.push_back({now, free + latency, ahead});
  };
  for (u32 i = 0; i < deep; ++i) post();
  while (!sent.empty()) {
    const std::size_t count = std::min<std::size_t>(burst, sent.size());
    now = sent[count - 1].arrives;
    for (std::size_t i = 0; i < count; ++i) {
      estimate.delivered(kBytes, sent.front().at, now, sent.front().ahead);
      sent.pop_front();
    }
    while (now < begin + ns && sent.size() < deep) post();
  }
  return now;
}

void a_rail_that_was_never_used_is_taken_for_a_gigabit() {
  const RailEstimate estimate;
  CHECK(!estimate.is_known());
  CHECK(estimate.rate() == kRateUnknown && estimate.rate_now(kBytes, 5) == kRateUnknown);
  CHECK(estimate.base_ns() == kBaseUnknownNs && estimate.silent_since() == 0);
}

void the_rate_is_learnt_from_a_stream() {
  for (const double rate : {1.25e6, 12.5e6, 125e6, 1.25e9, 25e9}) {
    RailEstimate estimate;
    const u32 deep = std::max<u32>(4, static_cast<u32>(2 * rate * 1e-4 / kBytes));
    stream(estimate, rate, 100 * kUs, 1, 500 * kMs, deep);
    CHECK(is_near(estimate.rate(), rate, 0.05));
  }
}

void idle_time_is_no_slowness() {
  RailEstimate estimate;
  u64 now = 1;
  for (int i = 0; i < 20; ++i) now = stream(estimate, 125e6, 100 * kUs, now, 10 * kMs) + 200 * kMs;
  CHECK(is_near(estimate.rate(), 125e6, 0.05));
}

void chunks_one_at_a_time_do_not_make_a_rail_look_faster_than_it_is() {
  RailEstimate estimate;
  u64 now = 1;
  for (int i = 0; i < 2000; ++i) {
    const u64 took = 100 * kUs + time_of(kBytes, 125e6);
    estimate.posted(kBytes, now);
    estimate.delivered(kBytes, now, now + took);
    now += took + kMs;
  }
  CHECK(estimate.rate() <= 1.5 * 125e6);
  CHECK(estimate.rate() >= 0.5 * 125e6);
}

void a_burst_of_acknowledgements_weighs_what_it_is_worth() {
  RailEstimate estimate;
  stream(estimate, 125e6, 100 * kUs, 1, 400 * kMs, 16, 8);
  CHECK(is_near(estimate.rate(), 125e6, 0.1));
}

void a_throttled_rail_is_felt_within_fifty_milliseconds_of_its_busy_time() {
  RailEstimate estimate;
  u64 now = stream(estimate, 125e6, 100 * kUs, 1, 500 * kMs);
  stream(estimate, 12.5e6, 100 * kUs, now, 50 * kMs);
  CHECK(estimate.rate() < 0.5 * 125e6);
  now = stream(estimate, 12.5e6, 100 * kUs, now + 60 * kMs, 200 * kMs);
  CHECK(is_near(estimate.rate(), 12.5e6, 0.15));
  stream(estimate, 125e6, 100 * kUs, now, 200 * kMs);
  CHECK(estimate.rate() > 0.9 * 125e6);
}

void silence_lowers_the_rate_of_now_and_not_what_was_learnt() {
  RailEstimate estimate;
  const u64 now = stream(estimate, 125e6, 100 * kUs, 1, 300 * kMs);
  estimate.posted(kBytes, now);
  const double known = estimate.rate();
  CHECK(estimate.rate_now(kBytes, now + kMs) == known);
  double before = known;
  for (u64 ms = 10; ms <= 100; ms += 10) {
    const double lower = estimate.rate_now(kBytes, now + ms * kMs);
    CHECK(lower < before && lower >= 1);
    before = lower;
  }
  CHECK(before < 0.1 * known);
  CHECK(estimate.rate() == known);
}

void silence_while_nothing_is_in_flight_says_nothing() {
  RailEstimate estimate;
  const u64 now = stream(estimate, 125e6, 100 * kUs, 1, 300 * kMs);
  CHECK(estimate.inflight() == 0 && estimate.silent_since() == 0);
  CHECK(estimate.rate_now(kBytes, now + 60'000 * kMs) == estimate.rate());
}

void silence_that_was_our_own_is_excused() {
  RailEstimate estimate;
  const u64 now = stream(estimate, 125e6, 100 * kUs, 1, 300 * kMs);
  estimate.posted(kBytes, now);
  CHECK(estimate.rate_now(kBytes, now + 500 * kMs) < 0.1 * estimate.rate());
  estimate.excuse_until(now + 500 * kMs);
  CHECK(estimate.rate_now(kBytes, now + 500 * kMs) == estimate.rate());
  CHECK(estimate.silent_since() == now + 500 * kMs);
}

void the_base_latency_is_the_least_and_an_old_one_is_forgotten() {
  RailEstimate estimate;
  estimate.round_trip(300 * kUs, 1);
  estimate.round_trip(90 * kUs, 2);
  estimate.round_trip(500 * kUs, 3);
  CHECK(estimate.base_ns() == 90 * kUs);
  u64 now = 3;
  for (int i = 0; i < 3; ++i) estimate.round_trip(400 * kUs, now += kBaseWindowNs);
  CHECK(estimate.base_ns() == 400 * kUs);
}

/// What is on its way over a far rail is as much as a queue there would be: the full rail alone cannot tell them apart.
void a_far_rail_keeps_the_latency_that_it_had_idle() {
  constexpr double kRate = 125e6;
  RailEstimate estimate;
  u64 now = 1;
  for (u32 i = 0; i < kIdleTripsMin; ++i) estimate.idle_round_trip(20 * kMs, now += 20 * kMs);
  CHECK(estimate.base_ns() == 20 * kMs);
  now = stream(estimate, kRate, 20 * kMs, now, 12 * kBaseWindowNs / 5, 60);
  CHECK(estimate.base_ns() == 20 * kMs);
  CHECK(is_near(estimate.rate(), kRate, 0.02));
  RailEstimate unknown;
  stream(unknown, kRate, 20 * kMs, 1, kBaseWindowNs, 60);
  CHECK(unknown.base_ns() < 10 * kMs);
}

void an_idle_trip_that_met_a_busy_host_makes_no_rail_far() {
  RailEstimate estimate;
  u64 now = 1;
  estimate.idle_round_trip(30 * kMs, now += kMs);
  CHECK(estimate.base_ns() == 30 * kMs);                       // all that is known
  now = stream(estimate, 125e6, 100 * kUs, now, 100 * kMs);
  CHECK(estimate.base_ns() < kFarNs);
  for (u32 i = 0; i < kIdleTripsMin; ++i) estimate.idle_round_trip(i == 1 ? 200 * kUs : 30 * kMs, now += kMs);
  CHECK(estimate.base_ns() < kFarNs);
}

void bytes_in_flight_never_wrap() {
  RailEstimate estimate;
  estimate.posted(100, 1);
  estimate.withdrawn(1000);
  CHECK(estimate.inflight() == 0);
  estimate.delivered(1000, 1, 2);
  CHECK(estimate.inflight() == 0);
}

void estimates_stay_finite_whatever_they_are_told() {
  RailEstimate estimate;
  const u64 sizes[] = {0, 1, kBytes, u64{1} << 40};
  u64 now = 0;
  for (u64 i = 0; i < 4000; ++i) {
    const u64 bytes = sizes[i * 7 % 4];
    estimate.posted(bytes, now);
    now += i % 3 == 0 ? 0 : i % 5 == 0 ? 3'600'000 * kMs : i;
    if (i % 11 == 0) estimate.excuse_until(now);
    estimate.delivered(bytes, i % 2 == 0 ? 0 : now, now);
    const double rates[] = {estimate.rate(), estimate.rate_now(bytes, now + i)};
    for (const double rate : rates) CHECK(std::isfinite(rate) && rate >= 1 && rate <= kRateMax);
  }
}

void a_forgotten_rail_is_a_new_one() {
  RailEstimate estimate;
  stream(estimate, 1.25e6, 5 * kMs, 1, 300 * kMs);
  estimate.posted(5, 1);
  estimate.forget();
  CHECK(!estimate.is_known() && estimate.inflight() == 0 && estimate.base_ns() == kBaseUnknownNs);
}

}  // namespace
}  // namespace fabric::paths

int main() {
  using namespace fabric::paths;
  a_rail_that_was_never_used_is_taken_for_a_gigabit();
  the_rate_is_learnt_from_a_stream();
  idle_time_is_no_slowness();
  chunks_one_at_a_time_do_not_make_a_rail_look_faster_than_it_is();
  a_burst_of_acknowledgements_weighs_what_it_is_worth();
  a_throttled_rail_is_felt_within_fifty_milliseconds_of_its_busy_time();
  silence_lowers_the_rate_of_now_and_not_what_was_learnt();
  silence_while_nothing_is_in_flight_says_nothing();
  silence_that_was_our_own_is_excused();
  the_base_latency_is_the_least_and_an_old_one_is_forgotten();
  a_far_rail_keeps_the_latency_that_it_had_idle();
  an_idle_trip_that_met_a_busy_host_makes_no_rail_far();
  bytes_in_flight_never_wrap();
  estimates_stay_finite_whatever_they_are_told();
  a_forgotten_rail_is_a_new_one();
  std::puts("rail estimate: ok");
}
