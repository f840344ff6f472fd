// Two nodes with messages both ways, each checked against what was sent, each end counted.
#pragma once

#include "tests/engine_fixture.hpp"

namespace fabric::test {

/// Flow kFlow runs a → b, kBack b → a; the n-th message of side s is `pattern(size_of(n), 2 n + s)`.
struct BothWays : Pair {
  static constexpr u64 kBack = (u64{2} << 48) | 8;
  using Sizes = std::function<u64(u64)>;
  u64 sent[2] = {0, 0}, got[2] = {0, 0}, ended[2] = {0, 0};

  explicit BothWays(Transport kind) : Pair(kind) {
    must(b.engine.add_forward(kBack, 1, kSession));
    must(a.engine.add_deliver(kBack, 1, kSession, 0));
  }
  virtual ~BothWays() = default;

  virtual void tend() { serve(); }     ///< what a daemon does between two looks
  Node& node(int side) { return side == 0 ? a : b; }
  static u64 flow(int side) { return side == 0 ? kFlow : kBack; }
  SessionCounters count(int side) { return node(side).engine.stats().sessions.at(0).count; }

  void send(int side, u64 size) {
    const u64 seq = ++sent[side];
    CHECK(eventually([&] { return node(side).send(flow(side), seq, pattern(size, seq * 2 + u64(side)), size > 2048); }));
  }
  /// What has come is checked and ended, ends are counted.
  void look(const Sizes& size_of) {
    tend();
    for (int side = 0; side < 2; ++side) {
      Got message;
      while (node(1 - side).receive(message)) {
        CHECK(message.flow == flow(side) && message.seq == ++got[side] && message.kind == 0);
        CHECK(message.payload == pattern(size_of(message.seq), message.seq * 2 + u64(side)));
        node(1 - side).finish(message);
      }
      for (const ReturnEntry& entry : node(side).returns()) {
        CHECK(entry.flow == flow(side) && entry.end == u8(End::delivered));
        CHECK(entry.a == entry.b && entry.a == ++ended[side]);
      }
    }
  }
  bool all_there() const { return got[0] == sent[0] && got[1] == sent[1] && ended[0] == sent[0] && ended[1] == sent[1]; }
  bool clean(int side) {
    const EngineStats stats = node(side).engine.stats();
    const SessionStats& session = stats.sessions.at(0);
    return node(side).engine.drained(1) && session.transfers_in == 0 && session.transfers_out == 0 &&
           session.reports_unacked == 0 && session.reports_blocked == 0 && stats.slots_taken == 0 &&
           stats.orphan_returns == 0 && stats.unknown_flows == 0 && node(side).arena.taken_slots() == 0;
  }
  void settle(const Sizes& size_of, u64 seconds = 60 * kSlower) {
    CHECK(eventually([&] { look(size_of); return all_there(); }, seconds));
    CHECK(eventually([&] { look(size_of); return clean(0) && clean(1); }));
  }
};

}  // namespace fabric::test
