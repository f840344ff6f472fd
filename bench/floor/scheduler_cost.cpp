// What the rail scheduler takes for one chunk at 8 rails, beside an uncontended atomic add. Prints one line of JSON.
//
// A chunk's life as the engine drives it: pick, posted, delivered, and the share of a tick that falls on it. Rails have
// different rates, acknowledgements come in the order in which the simulated rails finish.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <queue>
#include <vector>

#include "paths/rail_scheduler.hpp"

namespace {

using namespace fabric;
using namespace fabric::paths;

constexpr u32 kRails = 8;
constexpr u32 kChunks = 200'000;
constexpr int kRounds = 9;
constexpr u64 kLatencyNs = 100'000;

u64 wall_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<u64>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

struct Flight {
  u64 done_ns, ticket;
  bool operator>(const Flight& other) const { return done_ns > other.done_ns; }
};

struct Run { u64 posts = 0, ns = 0; };

/// Sends `kChunks` over rails that exist only as a time at which each is free again.
Run chunks() {
  RailScheduler scheduler;
  u64 now = 1'000'000'000;
  std::array<u64, kRails> free{};
  std::priority_queue<Flight, std::vector<Flight>, std::greater<>> flying;
  std::vector<u64> again;
  std::vector<u32> reset;
  for (u32 rail = 0; rail < kRails; ++rail) scheduler.rail_up(rail, now);
  Run run;
  u64 inside = 0;
  while (run.posts < kChunks) {
    u64 begun = wall_ns();
    const Pick pick = scheduler.pick(1 << 20, 64ULL << 20, now);
    u64 ticket = 0;
    if (pick.rail != kNoRail) ticket = scheduler.posted(pick.rail, pick.bytes, run.posts, now);
    inside += wall_ns() - begun;
    if (pick.rail != kNoRail) {
      const u64 rate = 1'250'000'000ULL / (1 + pick.rail);  // bytes/s: 10 Gbit/s and fractions of it
      free[pick.rail] = std::max(free[pick.rail], now) + u64{pick.bytes} * 1'000'000'000ULL / rate;
      flying.push({free[pick.rail] + kLatencyNs, ticket});
      ++run.posts;
      continue;
    }
    const u64 due = flying.empty() ? ~u64{0} : flying.top().done_ns;
    const bool is_tick = scheduler.next_ns() <= due;
    now = std::max(now, is_tick ? scheduler.next_ns() : due);
    begun = wall_ns();
    if (is_tick) {
      again.clear();
      reset.clear();
      scheduler.tick(now, again, reset);
    } else {
      scheduler.delivered(flying.top().ticket, now);
    }
    inside += wall_ns() - begun;
    if (!is_tick) flying.pop();
  }
  run.ns = inside;
  return run;
}

double atomic_ns() {
  std::atomic<u64> total{0};
  const u64 begun = wall_ns();
  for (u32 i = 0; i < 64 * kChunks; ++i) total.fetch_add(1, std::memory_order_relaxed);
  const u64 took = wall_ns() - begun;
  return static_cast<double>(took) / static_cast<double>(total.load());
}

/// Whatever else the machine does only adds: the least of the rounds is what it costs.
double least(const std::vector<double>& values) { return *std::min_element(values.begin(), values.end()); }

}  // namespace

int main() {
  std::vector<double> chunk, add;
  for (int round = 0; round < kRounds; ++round) {
    const Run run = chunks();
    chunk.push_back(static_cast<double>(run.ns) / static_cast<double>(run.posts));
    add.push_back(atomic_ns());
  }
  // Clock readings are left in: two pieces for each chunk at least, so the figure is an upper bound.
  std::printf("{\"ns\": %.1f, \"atomic_ns\": %.2f}\n", least(chunk), least(add));
  return 0;
}
