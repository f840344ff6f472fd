// Two engines in one process, each with one local port played by the test through raw lane ends.
#pragma once

#include <sys/eventfd.h>
#include <sys/socket.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "core/clock.hpp"
#include "engine/engine.hpp"
#include "links/inproc_link.hpp"
#include "tests/check.hpp"

namespace fabric::test {

inline void must(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "failed: %s\n", status.message.c_str());
  std::exit(1);
}

// A sanitizer on a busy machine is that much slower; a deadline only ends what hangs.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline constexpr u64 kSlower = 3;
#else
inline constexpr u64 kSlower = 1;
#endif

inline bool eventually(const std::function<bool()>& done, u64 seconds = 20 * kSlower) {
  const u64 deadline = monotonic_ns() + seconds * 1'000'000'000;
  while (!done()) {
    if (monotonic_ns() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return true;
}

struct PortFds {
  Fd state, bell, event;
  u64 port, incarnation;
  PortFds(u64 id, u64 life) : port(id), incarnation(life) {
    must(create_state(id, life, 0, state));
    must(create_doorbell(bell));
    event = Fd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  }
};

struct Got {
  u64 flow, seq;
  u8 kind;
  std::vector<u8> payload;
  u64 deadline;
  std::vector<SegmentEntry> slots;
  ProducerExtension producer;
};

/// One node: an engine, and a port that the test drives by hand on lane 1.
struct Node {
  PortFds gateway, local;
  Fd pair;
  LaneEnd end;                       // the local port's end
  DoorbellRinger to_engine;
  Arena arena;                       // the local port's
  SegmentMap readable;               // the gateway's segments, mapped by the local port
  Engine engine;
  u32 next_segment;
  std::vector<EngineEvent> seen;

  explicit Node(u64 node, u32 lane_klass = 3)
      : gateway(node << 32 | 1, node * 100 + 1), local(node << 32 | 2, node * 100 + 2),
        next_segment(u32(node) * 1000) {
    const u64 ports[2] = {gateway.port, local.port}, lives[2] = {gateway.incarnation, local.incarnation};
    must(create_lane_pair(lane_klass, ports, lives, pair));
    must(end.attach(pair.get(), 1));
    must(to_engine.attach(gateway.bell.get(), gateway.event.get()));
    must(engine.open({gateway.port, gateway.incarnation, gateway.state.get(), gateway.bell.get(), gateway.event.get()}));
    must(engine.add_lane({1, pair.get(), 0, lane_klass, local.port, local.incarnation, local.bell.get(), local.event.get()}));
    must(engine.start());
  }

  /// Serves need_segment and grow as the daemon would.
  void serve() {
    for (EngineEvent& event : engine.take_events()) {
      if (event.kind == EngineEvent::Kind::grow) {
        Fd fd;
        must(create_segment(++next_segment, gateway.port, gateway.incarnation, 0, (event.a + 4095) & ~4095ULL, 4, fd));
        std::shared_ptr<Segment> mapped;
        must(Segment::open(next_segment, fd.get(), false, mapped));
        readable[next_segment] = mapped;
        must(engine.add_segment(next_segment, fd.get(), true));
        gateway_fds[next_segment] = std::move(fd);
      }
      if (event.kind == EngineEvent::Kind::need_segment) {
        const auto found = own_fds.find(u32(event.a));
        if (found != own_fds.end()) must(engine.add_segment(u32(event.a), found->second.get(), false));
      }
      seen.push_back(event);
    }
  }
  std::unordered_map<u32, Fd> own_fds, gateway_fds;

  SlotRef slot(u64 bytes) {
    SlotRef ref;
    if (!arena.allocate(bytes, ref).ok()) {
      Fd fd;
      must(create_segment(++next_segment, local.port, local.incarnation, 0, (bytes + 4095) & ~4095ULL, 4, fd));
      must(arena.add(next_segment, fd.get()));
      own_fds[next_segment] = std::move(fd);
      must(arena.allocate(bytes, ref));
    }
    return ref;
  }

  ProducerExtension says_it_is{};     ///< what its records name as their producer
  u32 channel = 0, klass = 3;         ///< and as their channel and class

  bool send(u64 flow, u64 seq, const std::vector<u8>& bytes, bool bulk, u64 deadline = 0, SlotRef* used = nullptr) {
    RecordParts parts;
    parts.header.flow = flow;
    parts.header.flow_seq = parts.header.sequence = seq;
    parts.header.payload_bytes = bytes.size();
    parts.header.channel = channel;
    parts.header.klass = static_cast<u8>(klass);
    parts.header.deadline_ns = deadline;
    parts.producer = says_it_is;
    SegmentEntry entry{};
    if (bulk) {
      const SlotRef ref = slot(bytes.size() > 0 ? bytes.size() : 1);
      std::memcpy(arena.address(ref), bytes.data(), bytes.size());
      arena.hold_reader(ref, flow);
      arena.drop_message(ref);
      entry = arena.entry(ref, 0, bytes.size());
      parts.segments = {&entry, 1};
      if (used != nullptr) *used = ref;
    }
    const u32 inline_size = bulk ? 0 : u32(bytes.size());
    u8* room = end.records_out.reserve(record_prefix_bytes(parts) + inline_size);
    if (room == nullptr) return false;
    u8* at = write_record_prefix(room, parts, inline_size);
    if (inline_size > 0) std::memcpy(at, bytes.data(), inline_size);
    end.records_out.commit();
    end.records_out.publish();
    to_engine.ring(1);
    return true;
  }

  /// Takes one record out of the lane, payload checked and copied.
  bool receive(Got& got) {
    RecordSpan span;
    const Peek peek = end.records_in.peek(span);
    CHECK(peek != Peek::corrupt);
    if (peek == Peek::empty) return false;
    wire::RecordView view;
    CHECK(wire::view_record({span.bytes, span.header.total_len}, view));
    got = {span.header.flow, span.header.flow_seq, span.header.kind,
           {view.inline_bytes.begin(), view.inline_bytes.end()}, span.header.deadline_ns, {}, {}};
    RecordFields fields;
    CHECK(parse_extensions(view.extensions.data(), u32(view.extensions.size()), fields) == nullptr);
    got.producer = fields.producer;
    for (u32 i = 0; i < view.head.segment_count; ++i) {
      const SegmentEntry entry = wire::segment_at(view, i);
      const u8* from = nullptr;
      CHECK(readable.count(entry.segment) != 0);
      must(readable[entry.segment]->resolve(entry, from));
      got.payload.insert(got.payload.end(), from, from + entry.length);
      got.slots.push_back(entry);
    }
    end.records_in.advance(span);
    end.records_in.release();
    return true;
  }

  void give(const ReturnEntry& entry) {
    CHECK(end.returns_out.push(entry));
    end.returns_out.publish();
    to_engine.ring(1);
  }
  void finish(const Got& got) {
    for (const SegmentEntry& entry : got.slots)
      give({got.flow, u64{entry.segment} << 32 | entry.slot, entry.generation, u8(ReturnKind::release), 0, 0, 0, 0});
    give({got.flow, got.seq, got.seq, u8(ReturnKind::end), u8(End::delivered), 0, 0, 0});
  }

  /// Reads what came back; frees own slots on release.
  std::vector<ReturnEntry> returns() {
    std::vector<ReturnEntry> out;
    ReturnEntry entry;
    while (end.returns_in.next(entry) == Peek::item) {
      if (entry.kind == u8(ReturnKind::release))
        arena.drop_reader(u32(entry.a >> 32), u32(entry.a), u32(entry.b), entry.flow);
      else
        out.push_back(entry);
    }
    end.returns_in.release();
    return out;
  }
};

inline constexpr u64 kSession = 0x5e5510;
inline constexpr u64 kFlow = (u64{1} << 48) | 7;

enum class Transport { inproc, tcp };

/// Two nodes and a session; flow kFlow runs a → b.
struct Pair {
  Node a{1}, b{2};
  Transport transport;
  u32 features;                         ///< agreed on by a and b, over tcp
  explicit Pair(Transport kind, u32 agreed = 0) : transport(kind), features(agreed) {
    must(a.engine.open_session(kSession, 2, 201));
    must(b.engine.open_session(kSession, 1, 101));
    must(a.engine.add_forward(kFlow, 1, kSession));
    must(b.engine.add_deliver(kFlow, 1, kSession, 0));
  }
  void connect(u32 group) {
    if (transport == Transport::inproc) {
      const auto [first, second] = inproc_make_pair();
      must(a.engine.add_inproc(kSession, first, group));
      must(b.engine.add_inproc(kSession, second, group));
      return;
    }
    int fds[2];
    CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    must(a.engine.add_connection(kSession, fds[0], group, features));
    must(b.engine.add_connection(kSession, fds[1], group, features));
  }
  void connect() { connect(0); connect(1); }
  void serve() { a.serve(); b.serve(); }
  ~Pair() { a.engine.stop(0); b.engine.stop(0); }
};

inline std::vector<u8> pattern(u64 bytes, u64 seed) {
  std::vector<u8> out(bytes);
  u64 x = seed * 0x9e3779b97f4a7c15ULL + 1;
  for (u8& value : out) {
    x ^= x << 13; x ^= x >> 7; x ^= x << 17;
    value = u8(x);
  }
  return out;
}

}  // namespace fabric::test
