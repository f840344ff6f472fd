// One session over several rails: all carry payload, any may slow down, fall silent, go and come back.
#include "tests/rail_relay.hpp"

using namespace fabric;
using namespace fabric::test;

namespace {

constexpr u64 kMiB = 1 << 20;

std::function<u64(u64)> always(u64 bytes) {
  return [bytes](u64) { return bytes; };
}

void both_rails_carry_a_large_transfer() {
  Railed pair(2);
  for (u32 rail = 0; rail < 2; ++rail) pair.relay[rail]->rate = 60 * kMiB / kSlower;  // rails, not processors, are short
  for (int i = 0; i < 4; ++i) pair.send(0, 8 * kMiB);
  pair.settle(always(8 * kMiB));
  u64 first = 0, second = 0;
  CHECK(eventually([&] {                                // the last acknowledgements come behind the last message's end
    first = pair.rail(0, 0).terms.delivered;
    second = pair.rail(0, 1).terms.delivered;
    return first + second >= 32 * kMiB;
  }));
  CHECK(first > 10 * kMiB / kSlower && second > 10 * kMiB / kSlower);
}

void faster_rail_carries_more() {
  Railed pair(2);
  pair.relay[0]->rate = 80 * kMiB;
  pair.relay[1]->rate = 10 * kMiB;
  for (int i = 0; i < 4; ++i) pair.send(0, 8 * kMiB);
  pair.settle(always(8 * kMiB));
  CHECK(pair.rail(0, 0).terms.delivered > 3 * pair.rail(0, 1).terms.delivered);
}

/// `fault` strikes while the sixth of sixteen transfers is under way; small messages come back meanwhile.
void survives(const std::function<void(Railed&)>& fault) {
  Railed pair(2);
  for (u32 rail = 0; rail < 2; ++rail) pair.relay[rail]->rate = 60 * kMiB;
  const auto size = always(4 * kMiB);
  for (int i = 0; i < 16; ++i) {
    pair.send(0, 4 * kMiB);
    if (i != 5) continue;
    CHECK(eventually([&] { pair.look(size); return pair.got[0] >= 2; }));
    fault(pair);
  }
  pair.settle(size);
}

void rail_that_is_cut_loses_nothing(u32 rail) {
  survives([rail](Railed& pair) { pair.relay[rail]->cut(); });
}

void rail_that_swallows_everything_loses_nothing(u32 rail) {
  survives([rail](Railed& pair) { pair.relay[rail]->rate = 0; });
}

void records_that_a_silent_rail_carried_go_over_the_other() {
  Railed pair(2);
  const auto size = always(100);
  for (int i = 0; i < 50; ++i) pair.send(i % 2, 100);
  pair.settle(size);
  const u32 lead = pair.rail(0, 0).is_primary ? 0 : 1;
  pair.relay[lead]->rate = 0;
  for (int i = 0; i < 50; ++i) pair.send(i % 2, 100);
  pair.settle(size);  // within the patience of the test, far above that of the engines
}

void silent_rail_is_given_up_and_a_new_one_is_used() {
  Railed pair(2);
  for (u32 rail = 0; rail < 2; ++rail) pair.relay[rail]->rate = 60 * kMiB;
  const auto size = always(4 * kMiB);
  pair.relay[1]->rate = 0;
  for (int i = 0; i < 8; ++i) pair.send(0, 4 * kMiB);
  const auto is_down = [&](int side, u32 group) {
    const std::vector<GroupStats> groups = pair.node(side).engine.stats().sessions.at(0).groups;
    for (const GroupStats& found : groups)
      if (found.group == group) return !found.up;
    return true;
  };
  CHECK(eventually([&] {
    pair.look(size);
    if (pair.sent[0] < 200 && pair.sent[0] - pair.got[0] < 4) pair.send(0, 4 * kMiB);
    return is_down(0, group_of(1, 1)) && is_down(0, group_of(1, 0));
  }));
  pair.join(1);
  const u64 before = pair.rail(0, 1).terms.delivered;
  CHECK(eventually([&] {
    pair.look(size);
    if (pair.sent[0] - pair.got[0] < 4) pair.send(0, 4 * kMiB);
    return pair.rail(0, 1).terms.delivered > before + kMiB;
  }));
  pair.settle(size);
}

void pinned_rail_carries_alone() {
  Railed pair(2);
  must(pair.a.engine.pin(kSession, 1u << 1));
  for (int i = 0; i < 4; ++i) pair.send(0, 4 * kMiB);
  pair.settle(always(4 * kMiB));
  CHECK(eventually([&] { return pair.rail(0, 1).terms.delivered >= 16 * kMiB; }));
  CHECK(pair.rail(0, 0).terms.delivered == 0);
  CHECK(!pair.a.engine.pin(kSession, 1u << paths::kRailsMax).ok());
}

void records_go_over_a_pinned_rail_and_over_another_only_while_none_is_up() {
  Railed pair(2);
  const auto size = always(100);
  must(pair.a.engine.pin(kSession, 1u << 1));
  CHECK(eventually([&] { return pair.rail(0, 1).is_primary; }));
  pair.send(0, 100);
  pair.settle(size);
  must(pair.a.engine.lose_rail(kSession, 1, "the interface is down"));
  CHECK(eventually([&] { return pair.rail(0, 0).is_primary; }));
  pair.send(0, 100);
  pair.settle(size);
  pair.join(1);
  CHECK(eventually([&] { pair.look(size); return pair.rail(0, 1).is_primary; }));
  must(pair.a.engine.pin(kSession, 0));
  CHECK(pair.rail(0, 1).is_primary);
}

void lost_interface_gives_its_rail_up_at_once() {
  survives([](Railed& pair) {
    must(pair.a.engine.lose_rail(kSession, 0, "the interface is down"));
    CHECK(pair.rail(0, 0).terms.state == paths::RailState::down || pair.rail(0, 0).terms.state == paths::RailState::absent);
    CHECK(!pair.rail(0, 0).is_primary);
  });
}

void corrupted_chunks_are_sent_again_on_any_rail() {
  Railed pair(2);
  ::setenv("FABRIC_FAULTS", "1", 1);
  for (u64 n = 3; n < 20; n += 5) {
    must(pair.b.engine.inject("corrupt_chunk", n));
    pair.send(0, 4 * kMiB);
    pair.settle(always(4 * kMiB));
  }
  CHECK(pair.count(1).crc_errors >= 3);
}

void changes_of_a_rail_are_told() {
  Railed pair(2);
  pair.relay[1]->cut();
  CHECK(eventually([&] {
    pair.look(always(100));
    for (const EngineEvent& event : pair.a.seen)
      if (event.kind == EngineEvent::Kind::rail && event.b == 1 && event.reason.starts_with("up>down")) return true;
    return false;
  }));
}

}  // namespace

int main() {
  both_rails_carry_a_large_transfer();
  faster_rail_carries_more();
  for (u32 rail = 0; rail < 2; ++rail) rail_that_is_cut_loses_nothing(rail);
  for (u32 rail = 0; rail < 2; ++rail) rail_that_swallows_everything_loses_nothing(rail);
  records_that_a_silent_rail_carried_go_over_the_other();
  silent_rail_is_given_up_and_a_new_one_is_used();
  pinned_rail_carries_alone();
  records_go_over_a_pinned_rail_and_over_another_only_while_none_is_up();
  lost_interface_gives_its_rail_up_at_once();
  corrupted_chunks_are_sent_again_on_any_rail();
  changes_of_a_rail_are_told();
  std::puts("engine_rails_test: ok");
  return 0;
}
