// Hand-made rails around a scheduler: pipes of a rate and a latency, its ticks, what comes back posted again.
#pragma once

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>

#include "paths/rail_scheduler.hpp"
#include "tests/check.hpp"

namespace fabric::paths {

inline constexpr u64 kMs = 1'000'000, kUs = 1'000, kSecond = 1'000'000'000;
inline constexpr u64 kMiB = 1 << 20;

/// Pipes of a rate and a latency around a scheduler, with its ticks; what comes back is posted again.
struct Pipes {
  /// `batch_ns`: acknowledgements leave together, so often.
  /// `wire`: whose rate and queue it uses; `turn_ns`: what that loses when another pipe had it before.
  struct Pipe { double rate = 125e6; u64 latency = 100 * kUs, free_ns = 0; bool silent = false; u32 wire = kNoRail, turn_ns = 0, last = kNoRail; u64 batch_ns = 0; };
  struct Ack { u64 ticket, tag; u32 rail, bytes; };
  RailScheduler scheduler;
  std::array<Pipe, kRailsMax> pipe;
  std::array<u64, kRailsMax> carried{}, last_post{};
  std::multimap<u64, Ack> acks;
  std::map<u64, u32> waiting;          // tags to post again → bytes
  std::map<u64, u32> sent;             // tag → bytes
  std::vector<u32> resets;
  u64 now = 1, left = 0, next_tag = 1, delivered = 0, again = 0;

  void up(std::initializer_list<double> rates) {
    u32 number = 0;
    for (const double rate : rates) {
      pipe[number].rate = rate;
      scheduler.rail_up(number++, now);
    }
  }
  u64 pending() const {
    u64 sum = left;
    for (const auto& [tag, bytes] : waiting) sum += bytes;
    return sum;
  }
  void post(u32 rail, u32 bytes, u64 tag) {
    Pipe& own = pipe[rail];
    Pipe& on = own.wire == kNoRail ? own : pipe[own.wire];
    const u64 ticket = scheduler.posted(rail, bytes, tag, now);
    sent[tag] = bytes;
    carried[rail] += bytes;
    last_post[rail] = now;
    const u64 turn = on.last == rail || on.last == kNoRail ? 0 : own.turn_ns;
    on.last = rail;
    on.free_ns = std::max(on.free_ns, now) + turn + static_cast<u64>(bytes * 1e9 / on.rate);
    const u64 leaves = own.batch_ns == 0 ? on.free_ns : (on.free_ns / own.batch_ns + 1) * own.batch_ns;
    if (!own.silent) acks.insert({leaves + own.latency, {ticket, tag, rail, bytes}});
  }
  void pump() {
    while (!waiting.empty()) {
      const auto [tag, bytes] = *waiting.begin();
      const Pick pick = scheduler.pick(bytes, pending(), now);
      if (pick.rail == kNoRail) return;
      waiting.erase(waiting.begin());
      post(pick.rail, bytes, tag);
    }
    while (left > 0) {
      const Pick pick = scheduler.pick(left, pending(), now);
      if (pick.rail == kNoRail) return;
      left -= pick.bytes;
      post(pick.rail, pick.bytes, next_tag++);
    }
  }
  void tick() {
    std::vector<u64> back;
    scheduler.tick(now, back, resets);
    again += back.size();
    for (const u64 tag : back) waiting[tag] = sent[tag];
  }
  /// Until then, or until nothing is left to do.
  void run(u64 until) {
    pump();
    while (now < until) {
      const u64 ack = acks.empty() ? ~u64{0} : acks.begin()->first;
      const u64 next = std::min({ack, scheduler.next_ns(), until});
      now = std::max(now, next);
      if (next == ack) {
        const Ack got = acks.begin()->second;
        acks.erase(acks.begin());
        if (pipe[got.rail].silent) continue;
        scheduler.delivered(got.ticket, now);
        delivered += got.bytes;
      } else if (next != until) {
        tick();
      }
      pump();
    }
  }
  void send(u64 bytes) { left += bytes; }
  /// @return how long `bytes` take until the last acknowledgement.
  u64 finish(u64 bytes) {
    const u64 begin = now, target = delivered + bytes;
    send(bytes);
    while (delivered < target) {
      CHECK(now < begin + 100 * kSecond);
      run(now + 100 * kUs);
    }
    return now - begin;
  }
};

}  // namespace fabric::paths
