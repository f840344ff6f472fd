// The engine over inproc and socket links: order, payload, ends, faults, cuts, deadlines, restarts.
#include "tests/engine_fixture.hpp"

using namespace fabric;
using namespace fabric::test;

namespace {

/// Sends `sizes` (bulk above the inline limit), receives them all, expects order, bytes and ends.
void send_all(Pair& pair, const std::vector<u64>& sizes, u64 first_seq = 1,
              const std::function<void(u64)>& during = [](u64) {}) {
  u64 sent = 0, received = 0, ended = 0;
  CHECK(eventually([&] {
    pair.serve();
    if (sent < sizes.size() && sent < received + 16 &&
        pair.a.send(kFlow, first_seq + sent, pattern(sizes[sent], first_seq + sent), sizes[sent] > 2048))
      during(++sent);
    Got got;
    while (pair.b.receive(got)) {
      CHECK(got.seq == first_seq + received);
      CHECK(got.payload == pattern(sizes[received], got.seq));
      ++received;
      pair.b.finish(got);
    }
    for (const ReturnEntry& entry : pair.a.returns()) {
      CHECK(entry.kind == u8(ReturnKind::end) && entry.end == u8(End::delivered) && entry.a == entry.b);
      ++ended;
    }
    return ended == sizes.size();
  }, 30 * kSlower));
}

bool quiet(Pair& pair) {
  return eventually([&] {
    pair.serve();
    pair.a.returns();
    return pair.a.engine.drained(1) && pair.b.engine.drained(1) && pair.a.arena.taken_slots() == 0;
  });
}

void records_and_payload_arrive_in_order(Transport transport) {
  Pair pair(transport);
  pair.connect();
  std::vector<u64> sizes;
  for (u64 i = 0; i < 300; ++i) sizes.push_back(i % 7 == 0 ? 300'000 + i : i);
  sizes.push_back(9 * 1024 * 1024 + 13);
  send_all(pair, sizes);
  CHECK(quiet(pair));
}

void a_cut_connection_loses_and_repeats_nothing(Transport transport, u32 group) {
  Pair pair(transport);
  pair.connect();
  std::vector<u64> sizes;
  for (u64 i = 0; i < 120; ++i) sizes.push_back(i % 3 == 0 ? 700'000 : 100);
  u64 cuts = 0;
  send_all(pair, sizes, 1, [&](u64 sent) {
    if (sent % 25 != 0) return;
    ::setenv("FABRIC_FAULTS", "1", 1);
    must((sent % 2 == 0 ? pair.a : pair.b).engine.inject("drop_connection", group));
    pair.connect(group);
    ++cuts;
  });
  CHECK(cuts >= 4);
  CHECK(quiet(pair));
}

void a_corrupted_chunk_is_sent_again() {
  Pair pair(Transport::tcp);
  pair.connect();
  must(pair.b.engine.inject("corrupt_chunk", 3));
  send_all(pair, {3'000'000, 3'000'000});
  u64 errors = 0, again = 0;
  for (const SessionStats& stats : pair.b.engine.stats().sessions) errors += stats.count.crc_errors;
  for (const SessionStats& stats : pair.a.engine.stats().sessions) again += stats.count.retransmits;
  CHECK(errors > 0 && again > 0);
}

void a_chunk_without_checksum_is_taken_as_it_comes_where_both_agreed() {
  Pair pair(Transport::tcp, wire::kFeaturePlainChunks);
  pair.connect();
  send_all(pair, {3'000'000, 100'000});
  must(pair.b.engine.inject("corrupt_chunk", 1));
  CHECK(pair.a.send(kFlow, 3, pattern(100'000, 3), true));
  Got got;
  CHECK(eventually([&] { pair.serve(); return pair.b.receive(got); }));
  CHECK(got.payload != pattern(100'000, 3));
  CHECK(pair.b.engine.stats().sessions.at(0).count.crc_errors == 0);
}

void a_flip_after_the_checksum_is_seen_by_the_reader() {
  Pair pair(Transport::inproc);
  pair.connect();
  must(pair.b.engine.inject("flip_after_checksum", 1));
  CHECK(pair.a.send(kFlow, 1, pattern(100'000, 1), true));
  Got got;
  CHECK(eventually([&] { pair.serve(); return pair.b.receive(got); }));
  CHECK(got.payload != pattern(100'000, 1));
}

void an_expired_message_ends_as_dropped_and_leaves_no_gap() {
  Pair pair(Transport::tcp);  // not connected: message 1 expires, 2 goes
  CHECK(pair.a.send(kFlow, 1, pattern(100'000, 1), true, monotonic_ns() + 30'000'000));
  CHECK(pair.a.send(kFlow, 2, pattern(50, 2), false));
  std::vector<ReturnEntry> ends;
  CHECK(eventually([&] { ends = pair.a.returns(); return !ends.empty(); }));
  CHECK(ends[0].end == u8(End::dropped) && ends[0].reason == u8(Reason::expired) && ends[0].a == 1);
  pair.connect();
  Got got;
  CHECK(eventually([&] { pair.serve(); return pair.b.receive(got); }));
  CHECK(got.seq == 1 && got.kind == u8(RecordKind::skip) && got.payload.empty());
  CHECK(eventually([&] { return pair.b.receive(got); }));
  CHECK(got.seq == 2 && got.kind == 0 && got.payload == pattern(50, 2));
  CHECK(quiet(pair));
}

void an_ungranted_transfer_expires_and_the_flow_goes_on() {
  Pair pair(Transport::tcp);
  pair.connect();
  CHECK(pair.a.send(kFlow, 1, pattern(100'000, 1), true, monotonic_ns() + 50'000'000));
  CHECK(pair.a.send(kFlow, 2, pattern(50, 2), false));  // no one serves grow: no slot for 1
  Got got;
  CHECK(eventually([&] { return pair.b.receive(got); }));
  CHECK(got.seq == 1 && got.kind == u8(RecordKind::skip));
  CHECK(eventually([&] { return pair.b.receive(got); }));
  CHECK(got.seq == 2);
  CHECK(quiet(pair));
}

void a_stale_slot_fails_and_is_never_delivered() {
  Pair pair(Transport::tcp);
  SlotRef used;
  CHECK(pair.a.send(kFlow, 1, pattern(100'000, 1), true, 0, &used));
  pair.a.arena.free(used);  // a broken sender: the slot is gone before it was read
  pair.connect();
  Got got;
  CHECK(eventually([&] { pair.serve(); return pair.b.receive(got); }));
  CHECK(got.kind == u8(RecordKind::skip));
  std::vector<ReturnEntry> ends;
  CHECK(eventually([&] { ends = pair.a.returns(); return !ends.empty(); }));
  CHECK(ends[0].end == u8(End::failed) && ends[0].reason == u8(Reason::corrupted));
}

void answers_dropped_without_a_control_connection_come_again() {
  Pair pair(Transport::tcp);
  pair.connect(1);
  int fds[2];
  CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
  must(pair.a.engine.add_connection(kSession, fds[0], 0));
  CHECK(pair.a.send(kFlow, 1, pattern(500'000, 1), true));
  CHECK(eventually([&] {  // announced over group 1, granted into the void
    pair.serve();
    return pair.b.engine.stats().sessions.at(0).transfers_in == 1;
  }));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  must(pair.b.engine.add_connection(kSession, fds[1], 0));
  Got got;
  CHECK(eventually([&] { pair.serve(); return pair.b.receive(got); }));
  CHECK(got.payload == pattern(500'000, 1));
  pair.b.finish(got);
  CHECK(quiet(pair));
}

u64 bulk_bytes_in(Node& node) {
  u64 bytes = 0;
  const EngineStats stats = node.engine.stats();
  for (const GroupStats& group : stats.sessions.at(0).groups)
    if (group.group == 1) bytes += group.sample.bytes_in;
  return bytes;
}

void a_rail_whose_acknowledgements_were_lost_carries_on_with_the_next_grant() {
  Pair pair(Transport::tcp);
  pair.connect();
  ::setenv("FABRIC_FAULTS", "1", 1);
  CHECK(pair.a.send(kFlow, 1, pattern(30'000'000, 1), true));
  CHECK(eventually([&] { pair.serve(); return bulk_bytes_in(pair.b) != 0; }));
  must(pair.b.engine.inject("drop_connection", 0));
  u64 before = 0, since = monotonic_ns();
  CHECK(eventually([&] {               // as far as it goes without an acknowledgement
    pair.serve();
    if (const u64 now = bulk_bytes_in(pair.b); now != before) before = now, since = monotonic_ns();
    return monotonic_ns() > since + 100'000'000;
  }));
  CHECK(before < 30'000'000);
  pair.connect(0);
  Got got;
  CHECK(eventually([&] { pair.serve(); return pair.b.receive(got); }));
  CHECK(got.payload == pattern(30'000'000, 1));
  pair.b.finish(got);
  CHECK(quiet(pair));
  CHECK(pair.a.engine.stats().sessions.at(0).count.retransmits == 0);
}

void a_full_lane_of_one_flow_waits_without_loss() {
  Pair pair(Transport::tcp);
  pair.connect();
  u64 sent = 0;
  // Far more than the lane holds; nobody reads until the sender is stuck.
  u64 progress = monotonic_ns();
  CHECK(eventually([&] {
    if (pair.a.send(kFlow, sent + 1, pattern(2000, sent + 1), false)) ++sent, progress = monotonic_ns();
    return sent == 2000 || monotonic_ns() > progress + 500'000'000;
  }));
  CHECK(sent > 100 && sent < 2000);
  u64 received = 0;
  CHECK(eventually([&] {
    if (sent < 2000 && pair.a.send(kFlow, sent + 1, pattern(2000, sent + 1), false)) ++sent;
    Got got;
    while (pair.b.receive(got)) CHECK(got.seq == ++received && got.payload == pattern(2000, got.seq));
    return received == 2000;
  }));
}

void an_unknown_flow_is_kept_until_it_is_known() {
  Pair pair(Transport::tcp);
  const u64 late = kFlow + 1;
  must(pair.a.engine.add_forward(late, 1, kSession));
  pair.connect();
  CHECK(pair.a.send(late, 1, pattern(64, 9), false));
  CHECK(eventually([&] {
    pair.serve();
    for (const EngineEvent& event : pair.b.seen)
      if (event.kind == EngineEvent::Kind::flow_unknown && event.a == late) return true;
    return false;
  }));
  Got got;
  CHECK(!pair.b.receive(got));
  must(pair.b.engine.add_deliver(late, 1, kSession, 0));
  CHECK(eventually([&] { return pair.b.receive(got); }));
  CHECK(got.flow == late && got.payload == pattern(64, 9));
}

/// An end of a flow that nobody knows keeps its place in the ring, and so everything behind it, until it is given up.
void what_is_kept_for_a_flow_that_is_given_up_holds_up_nothing() {
  Pair pair(Transport::inproc);
  pair.connect();
  CHECK(pair.a.send(kFlow, 1, pattern(64, 9), false));
  Got got;
  CHECK(eventually([&] { return pair.b.receive(got); }));
  Got stale = got;
  stale.flow = kFlow + 7;
  pair.b.finish(stale);
  pair.b.finish(got);
  CHECK(eventually([&] {
    pair.serve();
    for (const EngineEvent& event : pair.b.seen)
      if (event.kind == EngineEvent::Kind::flow_unknown && event.a == stale.flow) return true;
    return false;
  }));
  CHECK(!pair.b.engine.drained(1));
  pair.b.engine.remove_flow(stale.flow);
  CHECK(eventually([&] {
    pair.serve();
    return pair.b.engine.drained(1);
  }));
}

void a_lost_and_a_repeated_record_are_visible() {
  Pair pair(Transport::inproc);
  pair.connect();
  must(pair.b.engine.inject("lose_record", 2));
  must(pair.b.engine.inject("repeat_record", 2));
  for (u64 seq = 1; seq <= 3; ++seq) CHECK(pair.a.send(kFlow, seq, pattern(32, seq), false));
  std::vector<u64> seqs;
  CHECK(eventually([&] {
    Got got;
    while (pair.b.receive(got)) seqs.push_back(got.seq);
    return seqs.size() >= 3;
  }));
  CHECK((seqs == std::vector<u64>{1, 3, 3}));
}

void a_new_peer_incarnation_gets_what_was_not_taken_over() {
  Pair pair(Transport::tcp);
  pair.connect(0);  // no bulk connection: transfers cannot finish
  CHECK(pair.a.send(kFlow, 1, pattern(500'000, 1), true));
  CHECK(pair.a.send(kFlow, 2, pattern(10, 2), false));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  pair.serve();
  pair.a.engine.close_session(kSession);
  pair.b.engine.close_session(kSession);
  const u64 next = kSession + 1;
  must(pair.a.engine.open_session(next, 2, 202));
  must(pair.b.engine.open_session(next, 1, 101));
  must(pair.a.engine.add_forward(kFlow, 1, next));
  must(pair.b.engine.add_deliver(kFlow, 1, next, 0));
  for (u32 group = 0; group < 2; ++group) {
    int fds[2];
    CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    must(pair.a.engine.add_connection(next, fds[0], group));
    must(pair.b.engine.add_connection(next, fds[1], group));
  }
  Got got;
  CHECK(eventually([&] { pair.serve(); return pair.b.receive(got); }));
  CHECK(got.seq == 1 && got.payload == pattern(500'000, 1));
  pair.b.finish(got);
  CHECK(eventually([&] { return pair.b.receive(got); }));
  CHECK(got.seq == 2 && got.payload == pattern(10, 2));
  pair.b.finish(got);
  CHECK(quiet(pair));
}

void a_killed_sender_engine_is_continued_from_the_lane() {
  Pair pair(Transport::tcp);  // messages lie in the lane, the first engine never had a link
  for (u64 seq = 1; seq <= 5; ++seq) CHECK(pair.a.send(kFlow, seq, pattern(40, seq), seq % 2 == 0));
  pair.a.engine.stop(0);
  Engine successor;
  Node& a = pair.a;
  must(successor.open({a.gateway.port, 999, a.gateway.state.get(), a.gateway.bell.get(), a.gateway.event.get()}));
  must(successor.add_lane({1, a.pair.get(), 0, 3, a.local.port, a.local.incarnation, a.local.bell.get(), a.local.event.get()}));
  must(successor.open_session(kSession, 2, 201));
  must(successor.add_forward(kFlow, 1, kSession));
  must(successor.start());
  for (u32 group = 0; group < 2; ++group) {
    int fds[2];
    CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    must(successor.add_connection(kSession, fds[0], group));
    must(pair.b.engine.add_connection(kSession, fds[1], group));
  }
  u64 received = 0;
  CHECK(eventually([&] {
    pair.b.serve();
    for (const EngineEvent& event : successor.take_events())
      if (event.kind == EngineEvent::Kind::need_segment)
        must(successor.add_segment(u32(event.a), a.own_fds[u32(event.a)].get(), false));
    Got got;
    while (pair.b.receive(got)) CHECK(got.seq == ++received && got.payload == pattern(40, got.seq));
    return received == 5;
  }));
  successor.stop(0);
}

void an_idle_engine_wakes_to_ask_its_peer_and_for_nothing_else() {
  Pair pair(Transport::tcp);
  pair.connect();
  send_all(pair, {10, 100'000});
  CHECK(quiet(pair));
  const auto wakeups = [&] { return pair.a.engine.wakeups() + pair.b.engine.wakeups(); };
  u64 before = wakeups();
  CHECK(eventually([&] {  // what the traffic has caused comes to its end first, however late a thread is scheduled
    const u64 last = std::exchange(before, wakeups());
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    return before == last && wakeups() == last;
  }));
  constexpr u64 kSeconds = 2;
  std::this_thread::sleep_for(std::chrono::seconds(kSeconds));
  CHECK(wakeups() - before <= kSeconds * 8);  // two connections, asked and answered, at both ends
}

void a_frozen_engine_takes_nothing_until_thawed() {
  Pair pair(Transport::tcp);
  pair.connect();
  Status status;
  CHECK(freeze_port(pair.b.gateway.state.get(), monotonic_ns() + 5'000'000'000, status));
  CHECK(pair.a.send(kFlow, 1, pattern(10, 1), false));
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  Got got;
  CHECK(!pair.b.receive(got));
  must(thaw_port(pair.b.gateway.state.get()));
  CHECK(eventually([&] { return pair.b.receive(got); }));
}

}  // namespace

int main() {
  ::setenv("FABRIC_FAULTS", "1", 1);
  for (Transport transport : {Transport::inproc, Transport::tcp}) {
    records_and_payload_arrive_in_order(transport);
    a_cut_connection_loses_and_repeats_nothing(transport, 0);
    a_cut_connection_loses_and_repeats_nothing(transport, 1);
  }
  a_corrupted_chunk_is_sent_again();
  a_chunk_without_checksum_is_taken_as_it_comes_where_both_agreed();
  a_flip_after_the_checksum_is_seen_by_the_reader();
  an_expired_message_ends_as_dropped_and_leaves_no_gap();
  an_ungranted_transfer_expires_and_the_flow_goes_on();
  a_stale_slot_fails_and_is_never_delivered();
  answers_dropped_without_a_control_connection_come_again();
  a_rail_whose_acknowledgements_were_lost_carries_on_with_the_next_grant();
  a_full_lane_of_one_flow_waits_without_loss();
  an_unknown_flow_is_kept_until_it_is_known();
  what_is_kept_for_a_flow_that_is_given_up_holds_up_nothing();
  a_lost_and_a_repeated_record_are_visible();
  a_new_peer_incarnation_gets_what_was_not_taken_over();
  a_killed_sender_engine_is_continued_from_the_lane();
  an_idle_engine_wakes_to_ask_its_peer_and_for_nothing_else();
  a_frozen_engine_takes_nothing_until_thawed();
  std::puts("engine_test: ok");
}
