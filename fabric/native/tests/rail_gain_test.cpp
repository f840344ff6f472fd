// A rail that adds nothing is left out, one that adds something is not, and finding out costs next to nothing.
#include <cstdio>

#include "tests/rail_pipes.hpp"

namespace fabric::paths {
namespace {

constexpr u64 kEver = u64{1} << 44;

/// Two pipes over one wire of 125 MB/s that loses 300 µs whenever it turns from one to the other.
void share(Pipes& pipes, u32 turn_us) {
  pipes.pipe[1].wire = 0;
  for (u32 rail = 0; rail < 2; ++rail) pipes.pipe[rail].turn_ns = turn_us * 1000;
}

bool is_left_out(const Pipes& pipes, u32 rail) { return !pipes.scheduler.terms(rail, 1, pipes.now).left_out.empty(); }

u32 left_out(const Pipes& pipes) {
  u32 count = 0;
  for (u32 rail = 0; rail < kRailsMax; ++rail) count += is_left_out(pipes, rail) ? 1 : 0;
  return count;
}

/// bytes/s over `ns` from now on.
double rate(Pipes& pipes, u64 ns) {
  const u64 before = pipes.delivered;
  pipes.run(pipes.now + ns);
  return static_cast<double>(pipes.delivered - before) * 1e9 / static_cast<double>(ns);
}

void a_rail_that_makes_the_others_slower_is_left_out() {
  Pipes pipes;
  pipes.up({125e6, 125e6});
  share(pipes, 300);
  pipes.send(kEver);
  pipes.run(kSecond);
  CHECK(rate(pipes, 500 * kMs) < 0.85 * 125e6);        // sharing costs
  pipes.run(4 * kSecond);
  CHECK(left_out(pipes) == 1);
  CHECK(rate(pipes, 500 * kMs) > 0.99 * 125e6);
}

void a_rail_that_only_shares_is_left_out_too() {
  Pipes pipes;
  pipes.up({125e6, 125e6});
  share(pipes, 0);
  pipes.send(kEver);
  pipes.run(5 * kSecond);
  CHECK(left_out(pipes) == 1);
  CHECK(rate(pipes, 500 * kMs) > 0.99 * 125e6);
}

void rails_of_their_own_are_kept_at_less_than_one_percent() {
  for (const double second : {125e6, 62.5e6, 12.5e6}) {
    Pipes pipes;
    pipes.up({125e6, second});
    pipes.send(kEver);
    pipes.run(500 * kMs);
    const u64 before = pipes.delivered;
    double least = 1;
    for (int i = 0; i < 120; ++i) {
      least = std::min(least, rate(pipes, 500 * kMs) / (125e6 + second));
      CHECK(left_out(pipes) == 0);
    }
    CHECK(least > 0.965);                               // a trial is short
    CHECK(static_cast<double>(pipes.delivered - before) > 0.99 * 60 * (125e6 + second));
  }
}

void a_bottleneck_that_goes_away_is_noticed() {
  Pipes pipes;
  pipes.up({125e6, 125e6});
  share(pipes, 300);
  pipes.send(kEver);
  pipes.run(6 * kSecond);
  CHECK(left_out(pipes) == 1);
  pipes.pipe[1].wire = kNoRail;
  pipes.run(pipes.now + kGainRetryMaxNs + 2 * kSecond);
  CHECK(left_out(pipes) == 0);
  CHECK(rate(pipes, kSecond) > 0.98 * 250e6);
}

void a_rail_that_still_adds_nothing_is_asked_ever_less_often() {
  Pipes pipes;
  pipes.up({125e6, 125e6});
  share(pipes, 300);
  pipes.send(kEver);
  pipes.run(10 * kSecond);
  CHECK(left_out(pipes) == 1);
  CHECK(rate(pipes, 60 * kSecond) > 0.99 * 125e6);      // trials included
}

void what_was_left_out_is_used_when_the_other_goes() {
  Pipes pipes;
  pipes.up({125e6, 125e6});
  share(pipes, 300);
  pipes.send(kEver);
  pipes.run(5 * kSecond);
  const u32 out = is_left_out(pipes, 0) ? 0 : 1;
  CHECK(is_left_out(pipes, out));
  const u64 before = pipes.carried[out];
  pipes.pipe[1 - out].silent = true;
  pipes.scheduler.rail_down(1 - out, pipes.now, "cut");
  CHECK(pipes.scheduler.carries(out));
  pipes.run(pipes.now + 5 * kMs);
  CHECK(pipes.carried[out] > before && left_out(pipes) == 0);
}

void what_was_left_out_is_used_when_the_other_becomes_slow() {
  Pipes pipes;
  pipes.up({125e6, 125e6});
  share(pipes, 300);
  pipes.send(kEver);
  pipes.run(5 * kSecond);
  CHECK(left_out(pipes) == 1);
  for (Pipes::Pipe& pipe : pipes.pipe) pipe.wire = kNoRail;
  pipes.pipe[is_left_out(pipes, 0) ? 1 : 0].rate = 12.5e6;
  pipes.run(pipes.now + 400 * kMs);
  CHECK(left_out(pipes) == 0);
  CHECK(rate(pipes, 500 * kMs) > 0.93 * 137.5e6);
}

void of_two_that_share_and_one_that_does_not_one_of_the_two_is_left_out() {
  Pipes pipes;
  pipes.up({125e6, 125e6, 125e6});
  share(pipes, 300);
  pipes.send(kEver);
  pipes.run(20 * kSecond);
  CHECK(left_out(pipes) == 1 && !is_left_out(pipes, 2));
  CHECK(rate(pipes, kSecond) > 0.98 * 250e6);
}

void nothing_is_tried_while_little_is_sent() {
  Pipes pipes;
  pipes.up({125e6, 125e6});
  share(pipes, 300);
  for (int i = 0; i < 400; ++i) {                       // 8 MB every 100 ms: half of what one alone carries
    pipes.send(6'000'000);
    pipes.run(pipes.now + 100 * kMs);
    CHECK(left_out(pipes) == 0);
  }
}

void nothing_is_tried_soon_after_a_failure() {
  Pipes pipes;
  pipes.up({125e6, 125e6});
  share(pipes, 300);
  pipes.send(kEver);
  u64 now = 0;
  for (int i = 0; i < 10; ++i) {                        // twice within the time that a failure is remembered for
    pipes.run(now += 2 * kSecond);
    pipes.scheduler.rail_down(1, pipes.now, "cut");
    pipes.run(now += 2 * kBriefNs);
    pipes.scheduler.rail_up(1, pipes.now);
    CHECK(left_out(pipes) == 0);
  }
}

void being_left_out_is_told_with_its_figures() {
  Pipes pipes;
  pipes.up({125e6, 125e6});
  share(pipes, 300);
  pipes.send(kEver);
  pipes.run(5 * kSecond);
  pipes.pipe[1].wire = kNoRail;
  pipes.run(pipes.now + kGainRetryMaxNs + 2 * kSecond);
  std::vector<Change> told = pipes.scheduler.take_changes();
  std::erase_if(told, [](const Change& change) { return change.from != RailState::left_out && change.to != RailState::left_out; });
  CHECK(told.size() == 2 && told[0].rail == told[1].rail);
  CHECK(told[0].from == RailState::up && told[0].reason.find("adds nothing (without it 12") == 0);
  CHECK(told[1].to == RailState::up && told[1].reason.find("it adds (without it 12") == 0);
}

}  // namespace
}  // namespace fabric::paths

int main() {
  using namespace fabric::paths;
  a_rail_that_makes_the_others_slower_is_left_out();
  a_rail_that_only_shares_is_left_out_too();
  rails_of_their_own_are_kept_at_less_than_one_percent();
  a_bottleneck_that_goes_away_is_noticed();
  a_rail_that_still_adds_nothing_is_asked_ever_less_often();
  what_was_left_out_is_used_when_the_other_goes();
  what_was_left_out_is_used_when_the_other_becomes_slow();
  of_two_that_share_and_one_that_does_not_one_of_the_two_is_left_out();
  nothing_is_tried_while_little_is_sent();
  nothing_is_tried_soon_after_a_failure();
  being_left_out_is_told_with_its_figures();
  std::puts("rail gain: ok");
}
