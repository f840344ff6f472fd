// Ends on their way to a local sender: one that finds its return ring full is told as soon as there is room, and a port that
// sleeps for a message only is woken for many of them.
#include "tests/raw_peer.hpp"

using namespace fabric;
using namespace fabric::test;

namespace {

void an_end_that_found_the_return_ring_full_is_told_once_it_is_read() {
  Pair pair(Transport::tcp);
  pair.connect();
  u64 sent = 0, received = 0;
  CHECK(eventually([&] {
    while (sent < kReturnEntries && sent < received + 64 && pair.a.send(kFlow, sent + 1, pattern(8, 1), false)) ++sent;
    Got got;
    while (pair.b.receive(got)) pair.b.finish(got), ++received;
    return received == kReturnEntries;
  }));
  CHECK(eventually([&] { return pair.a.end.returns_in.head() == kReturnEntries; }));  // nobody reads: full
  must(pair.a.engine.inject("drop_connection", 1));
  CHECK(pair.a.send(kFlow, sent + 1, pattern(8, 1), false, monotonic_ns() + 30'000'000));
  std::this_thread::sleep_for(std::chrono::milliseconds(200));  // it expires meanwhile
  CHECK(pair.a.returns().size() == kReturnEntries);
  std::vector<ReturnEntry> ends;
  CHECK(eventually([&] { ends = pair.a.returns(); return !ends.empty(); }, 5));
  CHECK(ends.size() == 1 && ends[0].a == sent + 1 && ends[0].reason == u8(Reason::expired));
}

void a_port_that_sleeps_for_a_message_is_woken_for_many_ends_alone() {
  constexpr u64 kSession = 7, kBackFlow = 1;
  Node node(2);
  RawPeer peer(node, kSession, 1);
  must(node.engine.add_forward(kBackFlow, 1, kSession));
  Doorbell bell;
  must(bell.attach(node.local.bell.get(), node.local.event.get()));
  const auto sleeps = [&] { return bell.layout()->state.load() == u32(Wake::messages); };
  bell.prepare(Wake::messages);
  ReturnEntry credit{};
  credit.flow = kBackFlow;
  credit.kind = u8(ReturnKind::credit);
  u64 told = 0;
  const auto tell = [&] {
    Bytes body;
    append(body, &credit, sizeof credit);
    peer.post(0, wire::FrameType::report, ++told, 0, body);
    CHECK(eventually([&] { return node.end.returns_in.head() == told; }));
    peer.settle(0);                   // the engine has rung by then
  };
  tell();
  CHECK(sleeps() && bell.any_ready());
  while (told < kReturnsUnheardMax) tell();
  CHECK(sleeps());
  tell();
  CHECK(eventually([&] { return !sleeps(); }));
  bell.prepare(Wake::futex);
  tell();                             // who waits for ends is woken by the first
  CHECK(eventually([&] { return bell.layout()->state.load() == u32(Wake::awake); }));
}

}  // namespace

int main() {
  ::setenv("FABRIC_FAULTS", "1", 1);
  an_end_that_found_the_return_ring_full_is_told_once_it_is_read();
  a_port_that_sleeps_for_a_message_is_woken_for_many_ends_alone();
  std::puts("engine_ends_test: ok");
}
