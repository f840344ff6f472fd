// The scheduler of one peer's rails, driven by hand-made pipes: which rail carries a chunk, what goes again, who is suspect.
#include <cstdio>

#include "tests/rail_pipes.hpp"

namespace fabric::paths {
namespace {

double share(const Pipes& pipes, u32 rail, u64 of) { return static_cast<double>(pipes.carried[rail]) / static_cast<double>(of); }

// ------------------------------------------------------------------ picks
void chunks_go_where_they_finish_first() {
  Pipes pipes;
  pipes.up({125e6, 50e6});
  pipes.finish(8 * kMiB);
  pipes.carried = {};
  pipes.finish(64 * kMiB);
  CHECK(share(pipes, 0, 64 * kMiB) > 0.68 && share(pipes, 0, 64 * kMiB) < 0.76);  // 125 of 175
}

void uneven_rails_are_as_fast_as_their_sum() {
  Pipes pipes;
  pipes.up({125e6, 62.5e6, 25e6, 12.5e6});
  pipes.finish(32 * kMiB);
  const double took = static_cast<double>(pipes.finish(128 * kMiB));
  CHECK(128.0 * kMiB * 1e9 / 225e6 > 0.95 * took);
}

void the_end_of_a_transfer_never_waits_for_a_slow_rail() {
  Pipes pipes;
  pipes.up({125e6, 1.25e6});
  pipes.finish(16 * kMiB);
  for (int i = 0; i < 20; ++i) {
    const u64 took = pipes.finish(kMiB);
    CHECK(static_cast<double>(took) < 1.25 * kMiB * 1e9 / 125e6 + 1e6);
  }
}

void what_is_in_flight_stays_within_the_window() {
  Pipes pipes;
  pipes.up({125e6, 12.5e6});
  pipes.send(64 * kMiB);
  for (int i = 0; i < 300; ++i) {
    pipes.run(pipes.now + kMs);
    for (u32 rail = 0; rail < 2; ++rail) {
      const RailTerms terms = pipes.scheduler.terms(rail, kMiB, pipes.now);
      CHECK(terms.inflight <= terms.window + kChunkMax);
      if (i > 200 && rail == 0) CHECK(terms.window <= 512 * 1024);
    }
  }
}

u64 window(const Pipes& pipes, u32 rail) { return pipes.scheduler.terms(rail, 1, pipes.now).window; }

void windows_widen_where_every_rail_is_acknowledged_late() {
  Pipes pipes;
  pipes.up({125e6, 125e6});
  for (u32 rail = 0; rail < 2; ++rail) pipes.pipe[rail].batch_ns = 20 * kMs;  // it is the hosts that are late
  pipes.send(u64{1} << 40);
  pipes.run(3 * kSecond);
  CHECK(window(pipes, 0) > 2'000'000 && window(pipes, 1) > 2'000'000);
  const u64 before = pipes.delivered;
  pipes.run(pipes.now + kSecond);
  CHECK(static_cast<double>(pipes.delivered - before) > 0.95 * 250e6);
}

void a_rail_that_is_throttled_and_acknowledged_late_gets_no_wider_window() {
  Pipes pipes;
  pipes.up({125e6, 125e6});
  pipes.send(u64{1} << 40);
  pipes.run(kSecond);
  const u64 before = window(pipes, 1);
  pipes.pipe[1].rate = 12.5e6;
  pipes.pipe[1].batch_ns = 40 * kMs;                    // a byte stream that lost something: all at once when the hole is filled
  for (int i = 0; i < 60; ++i) {
    pipes.run(pipes.now + 5 * kMs);
    CHECK(window(pipes, 1) <= before + before / 4);
  }
}

void a_rail_that_acknowledges_in_batches_is_used_all_the_same() {
  Pipes pipes;
  pipes.up({125e6, 125e6});
  pipes.pipe[1].batch_ns = 6 * kMs;
  pipes.send(u64{1} << 40);
  pipes.run(2 * kSecond);
  const u64 before = pipes.delivered;
  pipes.run(pipes.now + kSecond);
  CHECK(static_cast<double>(pipes.delivered - before) > 0.95 * 250e6);
}

void a_chunk_keeps_its_rail_busy_for_half_a_millisecond() {
  Pipes pipes;
  pipes.up({125e6, 12.5e9});
  pipes.finish(256 * kMiB);
  pipes.scheduler.pin(1);
  CHECK(pipes.scheduler.pick(64 * kMiB, 64 * kMiB, pipes.now).bytes == 64 * 1024);
  pipes.scheduler.pin(2);
  CHECK(pipes.scheduler.pick(64 * kMiB, 64 * kMiB, pipes.now).bytes == kChunkMax);
  CHECK(pipes.scheduler.pick(1000, 1000, pipes.now).bytes == 1000);
}

void no_rail_is_picked_while_none_is_up() {
  RailScheduler scheduler;
  CHECK(scheduler.pick(kMiB, kMiB, 5).rail == kNoRail && scheduler.fastest() == kNoRail);
  scheduler.rail_up(3, 6);
  CHECK(scheduler.pick(kMiB, kMiB, 7).rail == 3 && scheduler.fastest() == 3);
  CHECK(scheduler.pick(kMiB, kMiB, 7, 1u << 3).rail == kNoRail);
  scheduler.rail_down(3, 8, "test");
  CHECK(scheduler.pick(kMiB, kMiB, 9).rail == kNoRail && !scheduler.usable(3));
}

void a_pin_keeps_to_its_rails() {
  Pipes pipes;
  pipes.up({125e6, 125e6, 125e6});
  pipes.scheduler.pin(0b110);
  pipes.finish(16 * kMiB);
  CHECK(pipes.carried[0] == 0 && pipes.carried[1] > 0 && pipes.carried[2] > 0);
  CHECK(pipes.scheduler.fastest() != 0);
  CHECK(pipes.scheduler.decisions().back().why == Why::pinned);
  pipes.scheduler.pin(0);
  pipes.finish(16 * kMiB);
  CHECK(pipes.carried[0] > 0);
}

void what_goes_whole_takes_the_rail_of_least_latency() {
  RailScheduler scheduler;
  for (u32 rail = 0; rail < 3; ++rail) scheduler.rail_up(rail, 1);
  scheduler.round_trip(0, 400 * kUs, 2);
  scheduler.round_trip(1, 90 * kUs, 2);
  scheduler.round_trip(2, 80 * kUs, 2);
  CHECK(scheduler.fastest() == 1);      // not much better is no reason to move
  scheduler.rail_down(1, 4, "test");
  CHECK(scheduler.fastest() == 2);
}

// ------------------------------------------------------------------ throttle
void a_throttled_rail_is_left_within_fifty_milliseconds_and_used_again() {
  Pipes pipes;
  pipes.up({125e6, 125e6});
  pipes.send(u64{1} << 40);
  pipes.run(kSecond);
  pipes.pipe[1].rate = 12.5e6;
  pipes.run(pipes.now + 50 * kMs);
  const u64 before = pipes.carried[0] + pipes.carried[1], slow = pipes.carried[1];
  pipes.run(pipes.now + 500 * kMs);
  CHECK(static_cast<double>(pipes.carried[0] + pipes.carried[1] - before) > 0.93 * 0.5 * 137.5e6);
  CHECK(static_cast<double>(pipes.carried[1] - slow) < 1.2 * 0.5 * 12.5e6);
  pipes.pipe[1].rate = 125e6;
  pipes.run(pipes.now + kSecond);
  const u64 again = pipes.delivered;
  pipes.run(pipes.now + 500 * kMs);
  CHECK(static_cast<double>(pipes.delivered - again) > 0.95 * 0.5 * 250e6);
}

// ------------------------------------------------------------------ stalls
u64 silence(Pipes& pipes, u32 rail, u64 ns) {
  pipes.pipe[rail].silent = true;
  const u64 from = pipes.now;
  pipes.run(pipes.now + ns);
  return from;
}

void a_rail_that_stalls_while_others_move_is_suspect_and_gives_its_chunks_back() {
  Pipes pipes;
  pipes.up({125e6, 125e6});
  pipes.send(u64{1} << 40);
  pipes.run(500 * kMs);
  silence(pipes, 1, 45 * kMs);
  CHECK(pipes.scheduler.terms(1, 1, pipes.now).state == RailState::suspect);
  CHECK(pipes.scheduler.terms(1, 1, pipes.now).inflight == 0 && pipes.again > 0);
  CHECK(pipes.scheduler.terms(0, 1, pipes.now).state == RailState::up);
  CHECK(pipes.resets.empty());
  pipes.run(pipes.now + kResetNs + 20 * kMs);
  CHECK(pipes.resets == std::vector<u32>{1});         // once
}

void a_suspect_rail_that_answers_is_used_again() {
  Pipes pipes;
  pipes.up({125e6, 125e6});
  pipes.send(u64{1} << 40);
  pipes.run(500 * kMs);
  silence(pipes, 1, 60 * kMs);
  CHECK(!pipes.scheduler.usable(1));
  pipes.pipe[1].silent = false;
  pipes.scheduler.round_trip(1, 100 * kUs, pipes.now + 1);
  pipes.run(pipes.now + 10 * kMs);
  CHECK(pipes.scheduler.usable(1) && pipes.resets.empty());
}

void a_peer_that_stands_still_makes_no_rail_suspect() {
  Pipes pipes;
  pipes.up({125e6, 125e6});
  pipes.send(u64{1} << 40);
  pipes.run(500 * kMs);
  pipes.pipe[0].silent = true;
  silence(pipes, 1, 400 * kMs);
  CHECK(pipes.scheduler.usable(0) && pipes.scheduler.usable(1) && pipes.resets.empty());
}

void a_rail_alone_is_never_suspect() {
  Pipes pipes;
  pipes.up({125e6});
  pipes.send(u64{1} << 40);
  pipes.run(500 * kMs);
  silence(pipes, 0, 2 * kSecond);
  CHECK(pipes.scheduler.usable(0) && pipes.again == 0);
}

void our_own_pause_blames_nobody() {
  Pipes pipes;
  pipes.up({125e6, 125e6});
  pipes.send(u64{1} << 40);
  pipes.run(500 * kMs);
  pipes.now += 700 * kMs;              // the process stood still: what came in the meantime is read only now
  pipes.tick();
  CHECK(pipes.scheduler.usable(0) && pipes.scheduler.usable(1) && pipes.again == 0);
  pipes.run(pipes.now + 100 * kMs);
  CHECK(pipes.scheduler.usable(0) && pipes.scheduler.usable(1));
}

void an_idle_rail_is_not_suspect() {
  Pipes pipes;
  pipes.up({125e6, 125e6});
  pipes.finish(8 * kMiB);
  pipes.scheduler.pin(1);
  pipes.send(u64{1} << 40);
  pipes.run(pipes.now + 2 * kSecond);
  CHECK(pipes.scheduler.usable(1));
}

// ------------------------------------------------------------------ again
void an_overdue_chunk_goes_again_once_and_within_two_percent() {
  Pipes pipes;
  pipes.up({125e6, 125e6});
  pipes.send(u64{1} << 40);
  pipes.run(kSecond);
  std::map<u64, int> times;
  for (int i = 0; i < 2000; ++i) {      // one rail hesitates again and again, not long enough to be suspect
    pipes.pipe[1].free_ns = std::max(pipes.pipe[1].free_ns, pipes.now) + (i % 10 == 0 ? 22 * kMs : 0);
    pipes.run(pipes.now + 5 * kMs);
    for (const auto& [tag, bytes] : pipes.waiting) ++times[tag];
  }
  CHECK(pipes.again > 0);
  for (const auto& [tag, count] : times) CHECK(count <= 1 || pipes.waiting.count(tag) != 0);
  const double allowed = kResentShareMax * static_cast<double>(pipes.scheduler.delivered_bytes()) + kResentFreeBytes;
  CHECK(static_cast<double>(pipes.scheduler.resent_bytes()) <= allowed);
}

void nothing_goes_again_while_nothing_fails() {
  Pipes pipes;
  pipes.up({125e6, 62.5e6, 12.5e6});
  pipes.finish(16 * kMiB);               // until the rates are known a slow rail may be thought overdue
  const u64 again = pipes.again;
  CHECK(pipes.scheduler.resent_bytes() <= kResentFreeBytes / 2);
  for (int i = 0; i < 30; ++i) pipes.finish(i % 3 == 0 ? 16 * kMiB : 100'000);
  CHECK(pipes.again == again);
}

// ------------------------------------------------------------------ coming and going
void a_rail_that_goes_gives_everything_back_at_the_next_tick() {
  Pipes pipes;
  pipes.up({125e6, 125e6});
  pipes.send(u64{1} << 40);
  pipes.run(200 * kMs);
  const u64 inflight = pipes.scheduler.terms(1, 1, pipes.now).inflight;
  CHECK(inflight > 0);
  pipes.pipe[1].silent = true;
  pipes.scheduler.rail_down(1, pipes.now, "cut");
  CHECK(pipes.scheduler.next_ns() <= pipes.now);
  pipes.waiting.clear();
  pipes.tick();
  u64 back = 0;
  for (const auto& [tag, bytes] : pipes.waiting) back += bytes;
  CHECK(back == inflight && pipes.scheduler.terms(1, 1, pipes.now).inflight == 0);
  pipes.scheduler.rail_down(1, pipes.now, "cut");      // a second time: nothing
  pipes.waiting.clear();
  pipes.tick();
  CHECK(pipes.waiting.empty());
}

void a_ticket_of_before_a_replacement_changes_nothing() {
  RailScheduler scheduler;
  scheduler.rail_up(0, 1);
  const u64 old = scheduler.posted(0, 1000, 7, 2);
  scheduler.rail_up(0, 3);              // the connection was replaced
  std::vector<u64> again;
  std::vector<u32> reset;
  scheduler.tick(4, again, reset);
  CHECK(again == std::vector<u64>{7});
  const u64 fresh = scheduler.posted(0, 500, 8, 5);
  scheduler.delivered(old, 6);
  scheduler.withdrawn(old);
  CHECK(scheduler.terms(0, 1, 6).inflight == 500 && scheduler.delivered_bytes() == 0);
  scheduler.delivered(fresh, 7);
  scheduler.delivered(fresh, 8);
  CHECK(scheduler.terms(0, 1, 8).inflight == 0 && scheduler.delivered_bytes() == 500);
  scheduler.delivered(~u64{0}, 9);      // of no rail
  scheduler.withdrawn(u64{9} << 56);
}

void what_is_withdrawn_is_not_waited_for() {
  RailScheduler scheduler;
  scheduler.rail_up(0, 1);
  const u64 first = scheduler.posted(0, 1000, 1, 2), second = scheduler.posted(0, 500, 2, 2);
  scheduler.withdrawn(second);
  CHECK(scheduler.terms(0, 1, 3).inflight == 1000);
  scheduler.withdrawn(first);
  CHECK(scheduler.terms(0, 1, 3).inflight == 0);
  std::vector<u64> again;
  std::vector<u32> reset;
  scheduler.rail_down(0, 4, "cut");
  scheduler.tick(5, again, reset);
  CHECK(again.empty());
}

void a_rail_that_flaps_is_held_longer_each_time_and_forgiven() {
  RailScheduler scheduler;
  scheduler.rail_up(1, 1);
  std::vector<u64> again, held;
  std::vector<u32> reset;
  u64 now = 1;
  for (int i = 0; i < 8; ++i) {
    scheduler.rail_down(0, now, "cut");
    scheduler.rail_up(0, now += 10 * kMs);
    const RailTerms terms = scheduler.terms(0, 1, now);
    held.push_back(terms.state == RailState::held ? terms.held_until - now : 0);
    scheduler.tick(now, again, reset);
    now += 300 * kMs;
    scheduler.tick(now, again, reset);
  }
  CHECK(held[0] == 0 && held[1] == 0);  // at first, and after one failure, it is used at once
  CHECK(held[4] > 0 && held.back() > held[4] && held.back() <= kHoldMaxNs);
  now += kHoldMaxNs;
  scheduler.tick(now, again, reset);
  CHECK(scheduler.usable(0));           // it held
  now += 10 * kPenaltyHalfNs;
  scheduler.rail_down(0, now, "cut");
  scheduler.rail_up(0, now + kMs);
  CHECK(scheduler.usable(0));           // long ago is forgotten
}

void a_rail_that_breaks_off_in_the_middle_of_its_work_is_used_at_once() {
  Pipes pipes;
  pipes.up({125e6, 125e6});
  pipes.send(u64{1} << 40);
  pipes.run(500 * kMs);
  const u64 before = pipes.delivered, begin = pipes.now;
  for (u32 i = 0; i < 40; ++i) {        // one after the other, each 20 MB a damaged frame
    pipes.run(pipes.now + 80 * kMs);
    const u32 rail = i % 2;
    pipes.pipe[rail].silent = true;
    pipes.scheduler.rail_down(rail, pipes.now, "frame refused");
    pipes.tick();
    pipes.run(pipes.now + 8 * kMs);
    std::erase_if(pipes.acks, [&](const auto& ack) { return ack.second.rail == rail; });  // of the connection that is gone
    pipes.pipe[rail].silent = false;
    pipes.pipe[rail].free_ns = 0;
    pipes.scheduler.rail_up(rail, pipes.now);
    CHECK(pipes.scheduler.usable(rail));
  }
  const double rate = static_cast<double>(pipes.delivered - before) * 1e9 / static_cast<double>(pipes.now - begin);
  CHECK(rate > 0.9 * 250e6);
}

void changes_are_told_once_with_their_reason() {
  RailScheduler scheduler;
  scheduler.rail_up(0, 1);
  scheduler.rail_down(0, 2, "cut");
  const std::vector<Change> changes = scheduler.take_changes();
  CHECK(changes.size() == 2 && changes[1].to == RailState::down && std::string(changes[1].reason) == "cut");
  CHECK(scheduler.take_changes().empty());
  scheduler.remove(0);
  CHECK(scheduler.terms(0, 1, 3).state == RailState::absent);
}

void decisions_are_kept_within_their_limit_with_the_alternatives() {
  Pipes pipes;
  pipes.up({125e6, 50e6});
  pipes.finish(256 * kMiB);
  CHECK(pipes.scheduler.decisions().size() <= kDecisionsKept && !pipes.scheduler.decisions().empty());
  const Decision& last = pipes.scheduler.decisions().back();
  CHECK(last.finish_ns[0] != 0 && last.finish_ns[1] != 0 && last.finish_ns[2] == 0);
}

}  // namespace
}  // namespace fabric::paths

int main() {
  using namespace fabric::paths;
  chunks_go_where_they_finish_first();
  uneven_rails_are_as_fast_as_their_sum();
  the_end_of_a_transfer_never_waits_for_a_slow_rail();
  what_is_in_flight_stays_within_the_window();
  windows_widen_where_every_rail_is_acknowledged_late();
  a_rail_that_is_throttled_and_acknowledged_late_gets_no_wider_window();
  a_rail_that_acknowledges_in_batches_is_used_all_the_same();
  a_chunk_keeps_its_rail_busy_for_half_a_millisecond();
  no_rail_is_picked_while_none_is_up();
  a_pin_keeps_to_its_rails();
  what_goes_whole_takes_the_rail_of_least_latency();
  a_throttled_rail_is_left_within_fifty_milliseconds_and_used_again();
  a_rail_that_stalls_while_others_move_is_suspect_and_gives_its_chunks_back();
  a_suspect_rail_that_answers_is_used_again();
  a_peer_that_stands_still_makes_no_rail_suspect();
  a_rail_alone_is_never_suspect();
  our_own_pause_blames_nobody();
  an_idle_rail_is_not_suspect();
  an_overdue_chunk_goes_again_once_and_within_two_percent();
  nothing_goes_again_while_nothing_fails();
  a_rail_that_goes_gives_everything_back_at_the_next_tick();
  a_ticket_of_before_a_replacement_changes_nothing();
  what_is_withdrawn_is_not_waited_for();
  a_rail_that_flaps_is_held_longer_each_time_and_forgiven();
  a_rail_that_breaks_off_in_the_middle_of_its_work_is_used_at_once();
  changes_are_told_once_with_their_reason();
  decisions_are_kept_within_their_limit_with_the_alternatives();
  std::puts("rail scheduler: ok");
}
