// Two engines over links that lose, repeat, reorder, corrupt, delay, throttle, stall and are cut: every message once.
#include <algorithm>
#include <numeric>

#include "tests/both_ways.hpp"
#include "tests/raw_peer.hpp"

using namespace fabric;
using namespace fabric::test;

namespace {

constexpr u64 kBackFlow = (u64{2} << 48) | 8;

/// With a hand that dials again whatever is down.
struct Lasting : BothWays {
  explicit Lasting(Transport kind) : BothWays(kind) { connect(); }
  void tend() override {
    bool is_down[2] = {false, false};
    for (int side = 0; side < 2; ++side) {
      node(side).serve();
      const std::vector<SessionStats> sessions = node(side).engine.stats().sessions;
      for (u32 group = 0; group < 2; ++group) is_down[group] |= !sessions.at(0).groups[group].up;
    }
    for (u32 group = 0; group < 2; ++group)
      if (is_down[group]) connect(group);
  }
};

u64 mixed(u64 seq) { return seq % 3 == 0 ? 300'000 + seq : seq % 500; }

void traffic(Lasting& pair, u64 messages) {
  for (u64 i = 0; i < messages; ++i) {
    for (int side = 0; side < 2; ++side) pair.send(side, mixed(pair.sent[side] + 1));
    pair.look(mixed);
  }
  pair.settle(mixed);
}

void every_message_comes_once_although_the_links_misbehave(Transport transport) {
  const std::vector<std::pair<const char*, u64>> faults = {
      {"link_lose", 23}, {"link_repeat", 19}, {"link_reorder", 17}, {"link_corrupt", 29}, {"link_delay_us", 300},
      {"link_rate_bytes", 20'000'000}, {"link_cut_at", 150'000}};
  for (const auto& [fault, argument] : faults) {
    Lasting pair(transport);
    must(pair.a.engine.inject(fault, argument));
    must(pair.b.engine.inject(fault, argument));
    traffic(pair, 40);
    const std::string name = fault;
    const u64 breaks = pair.count(0).breaks + pair.count(1).breaks;
    if (name == "link_delay_us" || name == "link_rate_bytes") CHECK(breaks == 0);
    else CHECK(breaks > 0);
    if (name == "link_corrupt") CHECK(pair.count(0).crc_errors + pair.count(1).crc_errors > 0);
    must(pair.a.engine.inject("link_none", 0));
    must(pair.b.engine.inject("link_none", 0));
    traffic(pair, 5);
  }
}

/// A lost chunk shows nowhere in the hop sequence, as on a path of several rails: the stall deadline finds it.
void a_chunk_that_is_lost_alone_is_sent_again_after_the_stall_deadline() {
  Lasting pair(Transport::tcp);
  pair.send(0, 10);
  pair.settle([](u64) { return 10; });
  const u64 before = pair.count(0).breaks;
  // Frames of a from here on: announce, chunk. The second one is lost.
  must(pair.a.engine.inject("link_lose", 2));
  const auto sizes = [](u64 seq) { return seq == 1 ? 10 : 50'000; };
  pair.send(0, 50'000);
  for (u64 from = monotonic_ns(); monotonic_ns() < from + 200'000'000;) pair.look(sizes);
  must(pair.a.engine.inject("link_none", 0));
  CHECK(pair.got[0] == 1);
  CHECK(eventually([&] { pair.look(sizes); return pair.count(0).transfers_stalled == 1; }));
  pair.settle(sizes);
  CHECK(pair.count(0).breaks == before && pair.count(0).retransmits >= 1);
}

void a_stalled_link_is_broken_within_its_limit_and_dialled_again(Transport transport) {
  Lasting pair(transport);
  traffic(pair, 3);
  const u64 from = monotonic_ns();
  must(pair.a.engine.inject("link_stall", 60'000));
  CHECK(eventually([&] {
    pair.a.serve();
    pair.b.serve();
    return pair.count(0).silent_breaks == 2 && pair.count(1).silent_breaks + pair.count(1).breaks >= 2;
  }));
  CHECK(monotonic_ns() - from < (u64{kLinkSilentMs} + 1000) * 1'000'000 * kSlower);
  CHECK(told(pair.a, EngineEvent::Kind::link_silent, "does not answer", 1));
  must(pair.a.engine.inject("link_none", 0));
  pair.connect();
  traffic(pair, 3);
}

void a_slow_link_is_not_taken_for_a_silent_one() {
  Lasting pair(Transport::tcp);
  must(pair.a.engine.inject("link_rate_bytes", 150'000));
  pair.send(0, 700'000);  // almost five seconds, in chunks of 256 KiB
  pair.settle([](u64) { return 700'000; });
  CHECK(pair.count(0).breaks == 0 && pair.count(1).breaks == 0);
}

/// The peer's socket is open, nobody reads or answers: a node that was cut off without a word.
void a_peer_that_never_answers_is_broken_within_the_limit() {
  Node node(2);
  RawPeer peer(node, kSession, 1);
  peer.answers = false;
  CHECK(told(node, EngineEvent::Kind::link_silent, "does not answer"));
  CHECK(eventually([&] { return node.engine.stats().sessions.at(0).count.silent_breaks == 2; }));
  CHECK(!node.engine.stats().sessions.at(0).groups[0].up);
  node.engine.stop(0);
}

/// It talks all the time and takes nothing.
void a_peer_that_reads_nothing_is_broken_within_the_limit() {
  Node node(2);
  RawPeer peer(node, kSession, 1);
  must(node.engine.add_forward(kBackFlow, 1, kSession));
  CHECK(node.send(kBackFlow, 1, Bytes(8 << 20, 7), true));
  Frame frame;
  CHECK(peer.await(1, wire::FrameType::announce, frame));
  peer.post(0, wire::FrameType::grant, frame.header.a);
  CHECK(eventually([&] { node.serve(); return node.engine.stats().sessions.at(0).groups[1].backlog > 0; }));
  CHECK(eventually([&] {
    peer.post(1, wire::FrameType::pong, 1);
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    return !node.engine.stats().sessions.at(0).groups[1].up;
  }));
  CHECK(told(node, EngineEvent::Kind::link_silent, "takes nothing", 1));
  node.engine.stop(0);
}

/// Both sides post about 2 KiB for a message of each kind in both directions: the connection that carries byte n ends there.
void a_connection_cut_at_every_byte_loses_and_repeats_nothing(Transport transport, int side) {
  Lasting pair(transport);
  const auto sizes = [](u64 seq) { return seq % 2 == 1 ? u64{30} : u64{2100}; };
  u64 cuts = 0;
  constexpr u64 kStep = kSlower == 1 ? 1 : 7;  // a sanitizer takes every seventh
  for (u64 at = 0;; at += kStep) {
    const u64 before = pair.count(side).breaks;
    must(pair.node(side).engine.inject("link_cut_at", at));
    for (int i = 0; i < 2; ++i)
      for (int from = 0; from < 2; ++from) pair.send(from, sizes(pair.sent[from] + 1));
    pair.settle(sizes);
    if (pair.count(side).breaks == before) break;  // everything was said in fewer bytes
    ++cuts;
  }
  CHECK(cuts * kStep > 2500);
  must(pair.node(side).engine.inject("link_none", 0));
}

/// The peer reads slowly; a bulk transfer is on its way when an embedding one begins.
void a_higher_class_passes_a_long_transfer() {
  Node node(2);
  RawPeer peer(node, kSession, 1);
  must(node.engine.add_forward(kBackFlow, 1, kSession));
  PortFds second(node.local.port + 1, 9);
  Fd lane;
  LaneEnd end;
  const u64 ports[2] = {node.gateway.port, second.port}, lives[2] = {node.gateway.incarnation, second.incarnation};
  must(create_lane_pair(u32(Class::embedding), ports, lives, lane));
  must(end.attach(lane.get(), 1));
  must(node.engine.add_lane({2, lane.get(), 0, u32(Class::embedding), second.port, second.incarnation, second.bell.get(), second.event.get()}));
  must(node.engine.add_forward(kBackFlow + 1, 2, kSession));
  constexpr u64 kBulk = 64 << 20;
  CHECK(node.send(kBackFlow, 1, Bytes(kBulk, 7), true));
  Frame frame;
  CHECK(peer.await(1, wire::FrameType::announce, frame));
  peer.post(0, wire::FrameType::grant, frame.header.a);
  CHECK(eventually([&] { node.serve(); return node.engine.stats().sessions.at(0).groups[1].backlog > 0; }));
  // Now the embedding, announced and granted behind all that.
  const Bytes small = record_of(kBackFlow + 1, 1, Bytes(100, 1));
  RecordHeader head;
  std::memcpy(&head, small.data(), sizeof head);
  head.klass = u8(Class::embedding);
  u8* room = end.records_out.reserve(u32(small.size()));
  CHECK(room != nullptr);
  std::memcpy(room, small.data(), small.size());
  std::memcpy(room, &head, sizeof head);
  end.records_out.commit();
  end.records_out.publish();
  node.to_engine.ring(2);
  u64 passed = 0;
  for (;;) {
    CHECK(peer.read(1, frame));
    if (frame.header.type == u8(wire::FrameType::eager)) break;
    if (frame.header.type != u8(wire::FrameType::chunk)) continue;
    passed += frame.body.size();
    const wire::ChunkAck ack{frame.header.a, frame.header.b, u32(frame.body.size()), 0};
    Bytes body(sizeof ack);
    std::memcpy(body.data(), &ack, sizeof ack);
    peer.post(0, wire::FrameType::chunk_ack, 0, 0, body);
  }
  CHECK(passed < kBulk / 8);  // what the link had taken before, and no more
  node.engine.stop(0);
}

/// While an audit reads, configuration may change and no cursor moves.
void a_call_during_a_freeze_moves_no_cursor() {
  Pair pair(Transport::tcp);
  pair.connect();
  CHECK(pair.a.send(kFlow, 1, pattern(100'000, 1), true));
  CHECK(pair.a.send(kFlow, 2, pattern(10, 2), false));
  EngineEvent grow{};
  CHECK(eventually([&] {
    pair.a.serve();
    for (const EngineEvent& event : pair.b.engine.take_events())
      if (event.kind == EngineEvent::Kind::grow) grow = event;
    return grow.a != 0;
  }));
  // Complete but for a slot. The lane holds nothing yet; then the engine is frozen and given the slot.
  Status status;
  CHECK(freeze_port(pair.b.gateway.state.get(), monotonic_ns() + 5'000'000'000, status));
  const u64 before = pair.b.end.records_in.head(), returned = pair.b.end.returns_out.head();
  Fd fd;
  must(create_segment(77, pair.b.gateway.port, pair.b.gateway.incarnation, 0, 1 << 20, 4, fd));
  std::shared_ptr<Segment> mapped;
  must(Segment::open(77, fd.get(), false, mapped));
  pair.b.readable[77] = mapped;
  must(pair.b.engine.add_segment(77, fd.get(), true));
  must(pair.b.engine.add_forward(kBackFlow, 1, kSession));
  must(pair.b.engine.add_deliver(kFlow + 5, 1, kSession, 0));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  CHECK(pair.b.end.records_in.head() == before && pair.b.end.returns_out.head() == returned);
  CHECK(pair.b.engine.stats().slots_taken == 0);
  must(thaw_port(pair.b.gateway.state.get()));
  Got got;
  CHECK(eventually([&] { pair.serve(); return pair.b.receive(got); }));
  CHECK(got.payload == pattern(100'000, 1));
}

/// Records in a lane and views in a table keep their slots over a restart; all others are free again.
void a_restarted_engine_frees_exactly_the_slots_that_nobody_reads() {
  Pair pair(Transport::tcp);
  pair.connect();
  for (u64 seq = 1; seq <= 3; ++seq) CHECK(pair.a.send(kFlow, seq, pattern(10'000, seq), true));
  CHECK(eventually([&] { pair.serve(); return pair.b.engine.stats().sessions.at(0).count.messages_in == 3; }));
  Got viewed;
  CHECK(pair.b.receive(viewed));  // the second and third stay in the lane
  CHECK(pair.a.send(kFlow, 4, pattern(400'000, 4), true));
  must(pair.a.engine.inject("link_stall", 60'000));  // announced at most: its slot is a former engine's
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  pair.serve();
  const u32 segment = viewed.slots.at(0).segment;
  Fd lost;
  must(create_segment(901, pair.b.gateway.port, pair.b.gateway.incarnation, 0, 8192, 4, lost));
  Arena former;
  must(former.add(901, lost.get()));
  SlotRef nobody;
  must(former.allocate(100, nobody));
  pair.b.engine.stop(0);
  Engine successor;
  Node& b = pair.b;
  must(successor.open({b.gateway.port, 999, b.gateway.state.get(), b.gateway.bell.get(), b.gateway.event.get()}));
  must(successor.add_segment(901, lost.get(), true));
  must(successor.add_segment(segment, b.gateway_fds.at(segment).get(), true));
  must(successor.add_lane({1, b.pair.get(), 0, 3, b.local.port, b.local.incarnation, b.local.bell.get(), b.local.event.get()}));
  CHECK(successor.reclaim(901, {}) == 1);
  const SegmentEntry& view = viewed.slots.at(0);
  CHECK(successor.reclaim(segment, {{view.slot, view.generation, kFlow, 1}}) == 0);
  CHECK(successor.stats().slots_taken == 3);
  must(successor.start());
  b.finish(viewed);
  CHECK(eventually([&] { return successor.stats().slots_taken == 2; }));
  for (u64 seq = 2; seq <= 3; ++seq) {
    Got got;
    CHECK(b.receive(got) && got.seq == seq && got.payload == pattern(10'000, seq));
    b.finish(got);
  }
  CHECK(eventually([&] { return successor.stats().slots_taken == 0; }));
  successor.stop(0);
}

}  // namespace

int main(int count, char** arguments) {
  ::setenv("FABRIC_FAULTS", "1", 1);
  const std::vector<std::function<void()>> tests = {
      [] { every_message_comes_once_although_the_links_misbehave(Transport::tcp); },
      [] { every_message_comes_once_although_the_links_misbehave(Transport::inproc); },
      a_chunk_that_is_lost_alone_is_sent_again_after_the_stall_deadline,
      [] { a_stalled_link_is_broken_within_its_limit_and_dialled_again(Transport::tcp); },
      [] { a_stalled_link_is_broken_within_its_limit_and_dialled_again(Transport::inproc); },
      a_slow_link_is_not_taken_for_a_silent_one,
      a_peer_that_never_answers_is_broken_within_the_limit,
      a_peer_that_reads_nothing_is_broken_within_the_limit,
      [] { a_connection_cut_at_every_byte_loses_and_repeats_nothing(Transport::tcp, 0); },
      [] { a_connection_cut_at_every_byte_loses_and_repeats_nothing(Transport::tcp, 1); },
      [] { a_connection_cut_at_every_byte_loses_and_repeats_nothing(Transport::inproc, 0); },
      [] { a_connection_cut_at_every_byte_loses_and_repeats_nothing(Transport::inproc, 1); },
      a_higher_class_passes_a_long_transfer,
      a_call_during_a_freeze_moves_no_cursor,
      a_restarted_engine_frees_exactly_the_slots_that_nobody_reads,
  };
  for (std::size_t i = 0; i < tests.size(); ++i)
    if (count < 2 || std::size_t(std::atoi(arguments[1])) == i + 1) tests[i]();
  std::puts("engine_fault_test: ok");
}
