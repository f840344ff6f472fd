// A peer that sends what no honest engine sends: refused and told, the state clean, the session resumed.
#include "tests/raw_peer.hpp"

using namespace fabric;
using namespace fabric::test;
using wire::FrameType;

namespace {

constexpr u64 kOtherSession = kSession + 2;

/// Node 2 with one flow in from the peer (node 1) and one flow out to it.
struct Bench {
  static constexpr u64 kBack = (u64{2} << 48) | 9;
  Node node{2};
  RawPeer peer{node, kSession, 1};
  u64 seq = 0;

  Bench() {
    must(node.engine.add_deliver(kFlow, 1, kSession, 0));
    must(node.engine.add_forward(kBack, 1, kSession));
  }
  ~Bench() { node.engine.stop(0); }
  /// Both directions work: a message comes in, and its end goes back.
  void works() {
    const Bytes text = pattern(40, ++seq);
    peer.post(0, FrameType::eager, 0, 0, record_of(kFlow, seq, text));
    Got got;
    CHECK(eventually([&] { node.serve(); return node.receive(got); }));
    CHECK(got.seq == seq && got.payload == text);
    node.finish(got);
    Frame report;
    CHECK(peer.await(0, FrameType::report, report));
    Bytes ack;
    const wire::FlowAck none{};
    append(ack, &none, 0);
    peer.post(0, FrameType::hop_ack, report.header.a + report.body.size() / sizeof(ReturnEntry) - 1, 0, ack);
    peer.settle(0);
  }
  void is_clean() {
    const EngineStats stats = node.engine.stats();
    CHECK(stats.sessions.at(0).transfers_in == 0 && stats.slots_taken == 0);
    CHECK(stats.orphan_returns == 0 && stats.unknown_flows == 0 && stats.slot_waits == 0);
  }
};

Bytes chunk_acks(u64 transfer) {
  Bytes body;
  const wire::ChunkAck ack{transfer, 0, 100, 0};
  append(body, &ack, sizeof ack);
  return body;
}

Bytes flow_ack() {
  Bytes body;
  const wire::FlowAck ack{Bench::kBack, 0};
  append(body, &ack, sizeof ack);
  return body;
}

Bytes an_end() {
  Bytes body;
  const ReturnEntry entry{Bench::kBack, 0, 0, u8(ReturnKind::credit), 0, 0, 0, 0};
  append(body, &entry, sizeof entry);
  return body;
}

/// One valid frame of every type. Those with records name the next message.
Bytes sample(Bench& bench, u32 group, FrameType type) {
  RawPeer& peer = bench.peer;
  switch (type) {
    case FrameType::eager: return peer.frame(group, type, 0, 0, record_of(kFlow, bench.seq + 1, pattern(8, 1)));
    case FrameType::announce: return peer.frame(group, type, 77, 100, record_of(kFlow, bench.seq + 1, {}, {100}));
    case FrameType::cancel: return peer.frame(group, type, 77, 0, record_of(kFlow, bench.seq + 1, {}));
    case FrameType::chunk: return peer.frame(group, type, 77, 0, pattern(100, 3));
    case FrameType::chunk_ack: return peer.frame(group, type, 0, 0, chunk_acks(5));
    case FrameType::hop_ack: return peer.frame(group, type, 0, 0, flow_ack());
    case FrameType::report: return peer.frame(group, type, 1, 0, an_end());
    case FrameType::grant: return peer.frame(group, type, 5, 0, Bytes(16));
    default: return peer.frame(group, type, 1, 1);
  }
}

void a_frame_cut_at_every_byte_changes_nothing() {
  Bench bench;
  bench.works();
  u64 cuts = 0;
  for (u8 type = 1; type <= wire::kFrameTypeMax; ++type) {
    const std::size_t size = sample(bench, 0, FrameType(type)).size();
    for (std::size_t cut = 0; cut < size; ++cut, ++cuts) {
      bench.peer.connect(0);
      bench.peer.send(0, sample(bench, 0, FrameType(type)), cut);
      ::shutdown(bench.peer.fd[0], SHUT_WR);
      CHECK(bench.peer.closed(0));
    }
    bench.peer.connect(0);
    bench.works();
    bench.is_clean();
  }
  CHECK(cuts > 13 * 64);
}

/// Everything but a whole, sealed, next frame breaks the connection, and only that.
void a_frame_that_is_not_right_breaks_the_connection_and_nothing_else() {
  Bench bench;
  const auto sealed = [](Bytes frame, const std::function<void(wire::FrameHeader&)>& change) {
    wire::FrameHeader header;
    std::memcpy(&header, frame.data(), sizeof header);
    change(header);
    header.header_crc = 0;
    header.header_crc = crc32c(&header, sizeof header, 0);
    std::memcpy(frame.data(), &header, sizeof header);
    return frame;
  };
  const std::vector<std::pair<const char*, std::function<void(wire::FrameHeader&)>>> lies = {
      {"magic", [](auto& header) { header.magic ^= 1; }},
      {"version", [](auto& header) { header.version = 2; }},
      {"version", [](auto& header) { header.version = 0; }},
      {"type", [](auto& header) { header.type = wire::kFrameTypeMax + 1; }},
      {"type", [](auto& header) { header.type = 0; }},
      {"feature", [](auto& header) { header.features = 1u << 31; }},
      {"refused", [](auto& header) { header.features = wire::kFeaturePlainChunks; }},
      {"length", [](auto& header) { header.body_len = wire::kControlBodyBytesMax + 1; }},
      {"length", [](auto& header) { header.header_len8 = 7; }},
      {"another session", [](auto& header) { header.session += 2; }},
      {"sequence", [](auto& header) { header.sequence += 1; }},
      {"sequence", [](auto& header) { header.sequence = 0; }},
      {"refused", [](auto& header) { header.body_crc ^= 1; }},
  };
  u64 broken = 0;
  for (const auto& [word, lie] : lies) {
    bench.peer.connect(0);
    bench.node.serve();
    bench.node.seen.clear();
    bench.peer.send(0, sealed(sample(bench, 0, FrameType::eager), lie));
    CHECK(bench.peer.closed(0));
    CHECK(told(bench.node, EngineEvent::Kind::link_down, word));
    ++broken;
    bench.peer.connect(0);
    bench.works();
    bench.is_clean();
  }
  CHECK(bench.node.engine.stats().sessions.at(0).count.protocol_breaks == broken);
}

void a_replayed_frame_is_refused() {
  Bench bench;
  const Bytes first = sample(bench, 0, FrameType::ping);
  bench.peer.send(0, first);
  bench.peer.send(0, first);
  CHECK(bench.peer.closed(0));
  CHECK(told(bench.node, EngineEvent::Kind::link_down, "gap in frame sequence"));
  bench.peer.connect(0);
  bench.works();
}

void a_record_that_cannot_be_true_is_refused() {
  const std::vector<std::function<void(RecordHeader&, Bytes&)>> lies = {
      [](RecordHeader& head, Bytes&) { head.payload_bytes += 1; },
      [](RecordHeader& head, Bytes&) { head.total_len += 8; },
      [](RecordHeader& head, Bytes&) { head.segment_count = 65; },
      [](RecordHeader& head, Bytes&) { head.header_len8 = 255; },
      [](RecordHeader& head, Bytes&) { head.klass = 4; },
      [](RecordHeader& head, Bytes&) { head.kind = 2; },
      [](RecordHeader& head, Bytes&) { head.kind = 1; },       // a skip record with a payload
      [](RecordHeader& head, Bytes&) { head.flow_seq = 0; },
      [](RecordHeader&, Bytes& body) { body[kRecordHeaderBytes + 2] = 0xff; },  // an extension beyond the header
  };
  Bench bench;
  for (const auto& lie : lies) {
    Bytes body = record_of(kFlow, bench.seq + 1, pattern(16, 1));
    RecordHeader head;
    std::memcpy(&head, body.data(), sizeof head);
    lie(head, body);
    std::memcpy(body.data(), &head, sizeof head);
    bench.peer.post(0, FrameType::eager, 0, 0, body);
    CHECK(bench.peer.closed(0));
    bench.peer.connect(0);
    bench.works();
    bench.is_clean();
  }
}

// ------------------------------------------------------------------ late chunks
struct Granted { u64 transfer, seq; };

/// Announces `bytes` and waits for the grant.
Granted announce(Bench& bench, u64 transfer, u64 bytes) {
  bench.peer.post(1, FrameType::announce, transfer, bytes, record_of(kFlow, ++bench.seq, {}, {bytes}));
  Frame grant;
  CHECK(eventually([&] {
    bench.node.serve();
    return bench.peer.poll(0, FrameType::grant, grant) && grant.header.a == transfer;
  }));
  return {transfer, bench.seq};
}

void a_chunk_that_comes_after_its_slot_was_used_again_goes_nowhere() {
  Bench bench;
  const u64 size = 200'000;
  const Granted first = announce(bench, 71, size);
  // Half of the first chunk is under way in its slot when its message is withdrawn.
  const Bytes late = bench.peer.frame(1, FrameType::chunk, 71, 0, Bytes(size, 0xee));
  bench.peer.send(1, late, late.size() / 2);
  CHECK(eventually([&] { return bench.node.engine.stats().sessions.at(0).groups[1].sample.bytes_in >= late.size() / 2; }));
  Bytes skip = record_of(kFlow, first.seq, {});
  skip[53] = u8(RecordKind::skip);
  bench.peer.post(0, FrameType::cancel, 71, 0, skip);
  bench.peer.settle(0);
  Got got;
  CHECK(eventually([&] { return bench.node.receive(got); }));
  CHECK(got.kind == u8(RecordKind::skip));
  // The next message of that size gets the slot; all its bytes come over a fresh connection's chunks … after the rest.
  bench.peer.post(0, FrameType::announce, 72, size, record_of(kFlow, ++bench.seq, {}, {size}));
  Frame grant;
  CHECK(bench.peer.await(0, FrameType::grant, grant));
  CHECK(bench.node.engine.stats().slots_taken == 1);
  bench.peer.send(1, Bytes(late.begin() + std::ptrdiff_t(late.size() / 2), late.end()));
  const Bytes payload = pattern(size, 5);
  bench.peer.post(1, FrameType::chunk, 72, 0, Bytes(payload.begin(), payload.begin() + 100'000));
  bench.peer.post(1, FrameType::chunk, 71, 100'000, Bytes(50'000, 0xee));            // late, of the old transfer
  bench.peer.post(1, FrameType::chunk, 72, 0, Bytes(100'000, 0xee));                 // again, other bytes: verified stays
  bench.peer.post(1, FrameType::chunk, 72, 100'000, Bytes(payload.begin() + 100'000, payload.end()));
  CHECK(eventually([&] { bench.node.serve(); return bench.node.receive(got); }));
  CHECK(got.payload == payload);
  CHECK(bench.node.engine.stats().sessions.at(0).count.chunks_late >= 3);
  bench.node.finish(got);
  CHECK(eventually([&] { return bench.node.engine.stats().slots_taken == 0; }));
}

void a_corrupted_chunk_is_asked_for_again_and_never_handed_on() {
  Bench bench;
  announce(bench, 81, 1000);
  Bytes frame = bench.peer.frame(1, FrameType::chunk, 81, 0, pattern(1000, 1));
  frame[700] ^= 1;
  bench.peer.send(1, frame);
  Frame answer;
  CHECK(bench.peer.await(0, FrameType::chunk_ack, answer));
  wire::ChunkAck ack;
  std::memcpy(&ack, answer.body.data(), sizeof ack);
  CHECK(ack.status == 1 && ack.transfer == 81);
  Got got;
  CHECK(!bench.node.receive(got));
  bench.peer.post(1, FrameType::chunk, 81, 0, pattern(1000, 1));
  CHECK(eventually([&] { return bench.node.receive(got); }));
  CHECK(got.payload == pattern(1000, 1));
}

void chunks_outside_their_piece_go_nowhere() {
  Bench bench;
  bench.peer.post(1, FrameType::announce, 91, 228, record_of(kFlow, ++bench.seq, {}, {100, 100}));
  Frame grant;
  CHECK(eventually([&] {
    bench.node.serve();
    return bench.peer.poll(0, FrameType::grant, grant);
  }));
  for (const auto& [offset, length] : std::vector<std::pair<u64, u64>>{{100, 10}, {90, 20}, {228, 1}, {~u64{0} - 5, 10}, {0, 229}})
    bench.peer.post(1, FrameType::chunk, 91, offset, Bytes(length, 0xee));
  bench.peer.post(1, FrameType::chunk, 91, 0, pattern(100, 1));
  bench.peer.post(1, FrameType::chunk, 91, 128, pattern(100, 2));
  Bytes whole = pattern(100, 1);
  const Bytes second = pattern(100, 2);
  append(whole, second.data(), second.size());
  Got got;
  CHECK(eventually([&] { return bench.node.receive(got); }));
  CHECK(got.payload == whole);
}

// ------------------------------------------------------------------ bounds and claims
void a_report_is_bound_to_its_session() {
  Bench bench;
  RawPeer other(bench.node, kOtherSession, 3);
  CHECK(bench.node.send(Bench::kBack, 1, pattern(10, 1), false));
  Frame eager;
  CHECK(bench.peer.await(1, FrameType::eager, eager));
  Bytes lie;
  const ReturnEntry entry{Bench::kBack, 1, 1, u8(ReturnKind::end), u8(End::delivered), 0, 0, 0};
  append(lie, &entry, sizeof entry);
  const ReturnEntry credit{Bench::kBack, 1000, 1 << 30, u8(ReturnKind::credit), 0, 0, 0, 0};
  append(lie, &credit, sizeof credit);
  other.post(0, FrameType::report, 1, 0, lie);
  other.settle(0);
  bench.node.serve();
  CHECK(bench.node.returns().empty());
  u64 foreign = 0;
  for (const SessionStats& stats : bench.node.engine.stats().sessions) foreign += stats.count.foreign;
  CHECK(foreign == 2);
  Bytes truth;
  append(truth, &entry, sizeof entry);
  bench.peer.post(0, FrameType::report, 1, 0, truth);
  CHECK(eventually([&] { return bench.node.returns().size() == 1; }));
}

void reports_of_unknown_flows_are_bounded() {
  Bench bench;
  Bytes body;
  constexpr std::size_t kBatch = wire::kControlBodyBytesMax / sizeof(ReturnEntry);
  u64 number = 1;
  for (std::size_t i = 0; i < kBatch; ++i) {
    const ReturnEntry entry{(u64{2} << 48) | (5000 + i), 1, 1, u8(ReturnKind::end), u8(End::delivered), 0, 0, 0};
    append(body, &entry, sizeof entry);
  }
  for (u64 sent = 0; sent <= kReportsUnackedMax; sent += kBatch, number += kBatch)
    bench.peer.post(0, FrameType::report, number, 0, body);
  CHECK(told(bench.node, EngineEvent::Kind::limit, "REPORTS_UNACKED_MAX"));
  const EngineStats stats = bench.node.engine.stats();
  CHECK(stats.orphan_returns == kReportsUnackedMax && stats.limits_hit >= 1);
  bench.node.engine.close_session(kSession);
  CHECK(bench.node.engine.stats().orphan_returns == 0);
}

void flows_that_nobody_set_up_are_bounded() {
  Bench bench;
  bench.peer.answers = false;
  std::thread reader([&] {  // the refusals want to be read
    Frame frame;
    while (bench.peer.read(0, frame)) {}
  });
  for (u64 i = 0; i <= kUnknownFlowsMax; ++i)
    bench.peer.post(1, FrameType::eager, 0, 0, record_of((u64{1} << 48) | (100'000 + i), 1, pattern(8, i)));
  CHECK(told(bench.node, EngineEvent::Kind::limit, "UNKNOWN_FLOWS_MAX"));
  CHECK(bench.node.engine.stats().unknown_flows == kUnknownFlowsMax);
  bench.node.engine.close_session(kSession);
  reader.join();
  CHECK(bench.node.engine.stats().unknown_flows == 0);
}

void records_behind_a_transfer_are_bounded_by_what_a_lane_holds() {
  Bench bench;
  announce(bench, 61, 1000);  // its chunks never come
  const Bytes text(4000);
  for (u64 sent = 0; sent < kFlowPendingMax + 2 * text.size(); sent += text.size())
    bench.peer.post(1, FrameType::eager, 0, 0, record_of(kFlow, ++bench.seq, text));
  CHECK(told(bench.node, EngineEvent::Kind::limit, "FLOW_PENDING_MAX"));
}

void a_slot_is_given_back_by_its_reader_only() {
  Bench bench;
  announce(bench, 51, 1000);
  bench.peer.post(1, FrameType::chunk, 51, 0, pattern(1000, 1));
  Got got;
  CHECK(eventually([&] { bench.node.serve(); return bench.node.receive(got); }));
  const SegmentEntry& slot = got.slots.at(0);
  const u64 stranger = kFlow + 1;
  bench.node.give({stranger, u64{slot.segment} << 32 | slot.slot, slot.generation, u8(ReturnKind::release), 0, 0, 0, 0});
  CHECK(eventually([&] { return bench.node.engine.stats().releases_refused == 1; }));
  CHECK(bench.node.engine.stats().slots_taken == 1);
  bench.node.finish(got);
  CHECK(eventually([&] { return bench.node.engine.stats().slots_taken == 0; }));
}

}  // namespace

int main(int count, char** arguments) {
  const std::vector<void (*)()> tests = {
      a_frame_cut_at_every_byte_changes_nothing,
      a_frame_that_is_not_right_breaks_the_connection_and_nothing_else,
      a_replayed_frame_is_refused,
      a_record_that_cannot_be_true_is_refused,
      a_chunk_that_comes_after_its_slot_was_used_again_goes_nowhere,
      a_corrupted_chunk_is_asked_for_again_and_never_handed_on,
      chunks_outside_their_piece_go_nowhere,
      a_report_is_bound_to_its_session,
      reports_of_unknown_flows_are_bounded,
      flows_that_nobody_set_up_are_bounded,
      records_behind_a_transfer_are_bounded_by_what_a_lane_holds,
      a_slot_is_given_back_by_its_reader_only,
  };
  for (std::size_t i = 0; i < tests.size(); ++i)
    if (count < 2 || std::size_t(std::atoi(arguments[1])) == i + 1) tests[i]();
  std::puts("engine_peer_test: ok");
}
