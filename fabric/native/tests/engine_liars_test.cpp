// One port or node that names the flows of another: it harms neither their messages nor the engine.
#include <unistd.h>

#include "tests/engine_fixture.hpp"

using namespace fabric;
using namespace fabric::test;

namespace {

/// A second local port of a node, on lane 2.
struct Intruder {
  Node& node;
  PortFds fds;
  Fd pair;
  LaneEnd end;

  explicit Intruder(Node& of) : node(of), fds(of.local.port + 1, of.local.incarnation + 1) {
    const u64 ports[2] = {node.gateway.port, fds.port}, lives[2] = {node.gateway.incarnation, fds.incarnation};
    must(create_lane_pair(3, ports, lives, pair));
    must(end.attach(pair.get(), 1));
    must(node.engine.add_lane({2, pair.get(), 0, 3, fds.port, fds.incarnation, fds.bell.get(), fds.event.get()}));
  }
  void send(u64 flow, u64 seq, const std::vector<u8>& bytes) {
    RecordParts parts;
    parts.header.flow = flow;
    parts.header.flow_seq = parts.header.sequence = seq;
    parts.header.payload_bytes = bytes.size();
    parts.header.klass = 3;
    parts.producer = {fds.port, fds.incarnation};
    u8* room = end.records_out.reserve(record_prefix_bytes(parts) + u32(bytes.size()));
    CHECK(room != nullptr);
    std::memcpy(write_record_prefix(room, parts, u32(bytes.size())), bytes.data(), bytes.size());
    end.records_out.commit();
    end.records_out.publish();
    node.to_engine.ring(2);
  }
};

bool blamed(Node& node, u32 lane) {
  return eventually([&] {
    node.serve();
    for (const EngineEvent& event : node.seen)
      if (event.kind == EngineEvent::Kind::lane_corrupt && event.a == lane) return true;
    return false;
  }, 5);
}

void a_record_in_the_flow_of_another_port_is_not_sent() {
  Pair pair(Transport::tcp);
  Intruder intruder(pair.a);
  intruder.send(kFlow, 1, pattern(10, 99));
  CHECK(blamed(pair.a, 2));
  pair.a.engine.remove_lane(2);
  CHECK(pair.a.send(kFlow, 1, pattern(10, 1), false));
  pair.connect();
  Got got;
  CHECK(eventually([&] { return pair.b.receive(got); }));
  CHECK(got.payload == pattern(10, 1));
  pair.b.finish(got);
}

void a_record_in_a_flow_that_another_port_is_given_later_is_not_sent() {
  constexpr u64 later = kFlow + 1;
  Pair pair(Transport::tcp);
  Intruder intruder(pair.a);
  intruder.send(later, 1, pattern(10, 99));
  CHECK(eventually([&] {
    pair.serve();
    for (const EngineEvent& event : pair.a.seen)
      if (event.kind == EngineEvent::Kind::flow_unknown && event.a == later) return true;
    return false;
  }));
  must(pair.a.engine.add_forward(later, 1, kSession));
  must(pair.b.engine.add_deliver(later, 1, kSession, 0));
  CHECK(blamed(pair.a, 2));
  pair.a.engine.remove_lane(2);
  CHECK(pair.a.send(later, 1, pattern(10, 1), false));
  pair.connect();
  Got got;
  CHECK(eventually([&] { return pair.b.receive(got); }));
  CHECK(got.payload == pattern(10, 1));
}

void an_end_from_a_port_that_did_not_get_the_message_counts_for_nothing() {
  Pair pair(Transport::tcp);
  pair.connect();
  Intruder intruder(pair.b);
  CHECK(pair.a.send(kFlow, 1, pattern(10, 1), false));
  Got got;
  CHECK(eventually([&] { return pair.b.receive(got); }));
  CHECK(intruder.end.returns_out.push({kFlow, 1, 1, u8(ReturnKind::end), u8(End::delivered), 0, 0, 0}));
  intruder.end.returns_out.publish();
  pair.b.to_engine.ring(2);
  CHECK(blamed(pair.b, 2));
  pair.b.give({kFlow, 1, 1, u8(ReturnKind::end), u8(End::failed), u8(Reason::consumer_error), 0, 0});
  std::vector<ReturnEntry> ends;
  CHECK(eventually([&] { ends = pair.a.returns(); return !ends.empty(); }));
  CHECK(ends.size() == 1 && ends[0].end == u8(End::failed));
}

/// A third node's control connection, played by hand.
struct OtherNode {
  static constexpr u64 kOther = kSession + 100;
  int fd = -1;
  u64 sequence = 0;

  explicit OtherNode(Engine& engine) {
    int fds[2];
    CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    must(engine.open_session(kOther, 3, 301));
    must(engine.add_connection(kOther, fds[0], 0));
    fd = fds[1];
  }
  ~OtherNode() { ::close(fd); }
  void post(wire::FrameType type, u64 a, u64 b) {
    wire::FrameHeader header{};
    header.type = u8(type);
    header.session = kOther;
    header.sequence = ++sequence;
    header.a = a;
    header.b = b;
    wire::seal_header(header);
    CHECK(::write(fd, &header, sizeof header) == sizeof header);
  }
  /// What was posted before has been taken.
  void settle() {
    post(wire::FrameType::ping, 1, 0);
    wire::FrameHeader header{};
    do {
      CHECK(::recv(fd, &header, sizeof header, MSG_WAITALL) == sizeof header);
      std::vector<u8> body(header.body_len);
      if (!body.empty()) CHECK(::recv(fd, body.data(), body.size(), MSG_WAITALL) == ssize_t(body.size()));
    } while (header.type != u8(wire::FrameType::pong));
  }
};

void another_node_can_neither_acknowledge_nor_refuse() {
  Pair pair(Transport::tcp);
  OtherNode other(pair.a.engine);
  CHECK(pair.a.send(kFlow, 1, pattern(10, 1), false));
  other.settle();
  other.post(wire::FrameType::resume, kFlow, 1);
  other.settle();
  pair.connect();
  Got got;
  CHECK(eventually([&] { return pair.b.receive(got); }, 5));
  CHECK(got.seq == 1);
  other.post(wire::FrameType::refuse, kFlow, 2);
  other.settle();
  CHECK(pair.a.send(kFlow, 2, pattern(10, 2), false));
  CHECK(eventually([&] { return pair.b.receive(got); }, 5));
  CHECK(got.seq == 2 && got.payload == pattern(10, 2));
}

/// A reader's tail that cannot be true: the lane is blamed, the engine sleeps, and other lanes go on.
void a_tail_that_cannot_be_true_is_not_waited_for() {
  constexpr u64 lost = kFlow + 1;
  Pair pair(Transport::tcp);
  pair.connect();
  Intruder intruder(pair.b);
  must(pair.a.engine.add_forward(lost, 1, kSession));
  must(pair.b.engine.add_deliver(lost, 2, kSession, 0));
  intruder.end.layout()->direction[0].records.tail.value.store(~u64{0} - 7);
  const std::vector<u8> bytes = pattern(4000, 1);
  for (u64 seq = 1; seq <= kLaneBytes / 4000 + 1; ++seq) CHECK(eventually([&] { return pair.a.send(lost, seq, bytes, false); }));
  CHECK(blamed(pair.b, 2));
  const u64 before = pair.b.engine.wakeups();
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  CHECK(pair.b.engine.wakeups() - before < 30);
  CHECK(pair.a.send(kFlow, 1, pattern(10, 1), false));
  Got got;
  CHECK(eventually([&] { return pair.b.receive(got); }, 5));
  CHECK(got.payload == pattern(10, 1));
}

/// A sender's return tail that cannot be true: what it cannot be told does not stay in the session.
void a_sender_that_lies_about_its_returns_does_not_fill_the_session() {
  constexpr u64 lost = kFlow + 1;
  Pair pair(Transport::tcp);
  pair.connect();
  Intruder intruder(pair.a);
  must(pair.a.engine.add_forward(lost, 2, kSession));
  must(pair.b.engine.add_deliver(lost, 1, kSession, 0));
  intruder.end.layout()->direction[1].returns.tail.value.store(~u64{0});
  for (u64 seq = 1; seq <= 2 * kReturnEntries; ++seq) {
    CHECK(eventually([&] { return pair.b.end.returns_out.push({lost, seq, seq, u8(ReturnKind::end), u8(End::delivered), 0, 0, 0}); }));
    pair.b.end.returns_out.publish();
    pair.b.to_engine.ring(1);
  }
  CHECK(blamed(pair.a, 2));
  CHECK(eventually([&] { return pair.b.end.returns_out.head() == pair.b.end.layout()->direction[0].returns.tail.value.load(); }));
  CHECK(pair.a.engine.stats().sessions[0].reports_blocked == 0);
}

/// Slots that are given back without end, faster than anybody reads: the engine does its other work, too.
void a_port_that_never_stops_writing_does_not_keep_the_engine() {
  Pair pair(Transport::tcp);
  pair.connect();
  Intruder intruder(pair.b);
  std::atomic<bool> stop{false};
  std::thread flood([&] {
    const u64 until = monotonic_ns() + 10'000'000'000 * kSlower;
    while (!stop.load() && monotonic_ns() < until) {
      for (int i = 0; i < 512; ++i) intruder.end.returns_out.push({kFlow, 1, 1, u8(ReturnKind::release), 0, 0, 0, 0});
      intruder.end.returns_out.publish();
      pair.b.to_engine.ring(2);
    }
  });
  bool all = true;
  for (u64 seq = 1; seq <= 20 && all; ++seq) {
    all = pair.a.send(kFlow, seq, pattern(10, seq), false);
    Got got;
    all = all && eventually([&] { return pair.b.receive(got); }, 5 * kSlower);
  }
  stop.store(true);
  flood.join();
  CHECK(all);
}

void a_flow_that_is_gone_is_remembered_while_its_slots_are_read() {
  Pair pair(Transport::tcp);
  pair.connect();
  CHECK(pair.a.send(kFlow, 1, pattern(9000, 1), true));
  Got got;
  CHECK(eventually([&] { pair.serve(); return pair.b.receive(got); }));
  for (u64 flow = kFlow + 1; flow < kFlow + 100; ++flow) must(pair.b.engine.add_deliver(flow, 1, kSession, 0));
  for (u64 flow = kFlow; flow < kFlow + 100; ++flow) pair.b.engine.remove_flow(flow);
  CHECK(eventually([&] { return pair.b.engine.stats().flows_seen == 1; }));
  pair.b.finish(got);
  CHECK(eventually([&] { return pair.b.engine.stats().flows_seen == 0; }));
  CHECK(pair.b.engine.stats().slots_taken == 0);
}

void the_producer_of_a_record_is_the_port_that_wrote_it() {
  Pair pair(Transport::tcp);
  pair.connect();
  const ProducerExtension mine{pair.a.local.port, pair.a.local.incarnation};
  const ProducerExtension says[] = {{0, 0}, mine, {mine.port + 7, 1}};
  for (u64 seq = 1; seq <= 3; ++seq) {
    pair.a.says_it_is = says[seq - 1];
    CHECK(pair.a.send(kFlow, seq, pattern(100, u32(seq)), seq == 2));
    Got got;
    CHECK(eventually([&] { pair.serve(); return pair.b.receive(got); }));
    CHECK(got.payload == pattern(100, u32(seq)));
    CHECK(got.producer.port == mine.port && got.producer.incarnation == mine.incarnation);
    pair.b.finish(got);
  }
}

}  // namespace

int main(int count, char** arguments) {
  const auto wanted = [&](int test) { return count < 2 || std::atoi(arguments[1]) == test; };
  if (wanted(1)) a_record_in_the_flow_of_another_port_is_not_sent();
  if (wanted(2)) a_record_in_a_flow_that_another_port_is_given_later_is_not_sent();
  if (wanted(3)) an_end_from_a_port_that_did_not_get_the_message_counts_for_nothing();
  if (wanted(4)) another_node_can_neither_acknowledge_nor_refuse();
  if (wanted(5)) a_tail_that_cannot_be_true_is_not_waited_for();
  if (wanted(6)) a_sender_that_lies_about_its_returns_does_not_fill_the_session();
  if (wanted(7)) a_port_that_never_stops_writing_does_not_keep_the_engine();
  if (wanted(8)) a_flow_that_is_gone_is_remembered_while_its_slots_are_read();
  if (wanted(9)) the_producer_of_a_record_is_the_port_that_wrote_it();
  std::puts("engine_liars_test: ok");
}
