// An end that the engine itself decides while the sender's return ring is full: told as soon as there is room.
#include "tests/engine_fixture.hpp"

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

}  // namespace

int main() {
  ::setenv("FABRIC_FAULTS", "1", 1);
  an_end_that_found_the_return_ring_full_is_told_once_it_is_read();
  std::puts("engine_ends_test: ok");
}
