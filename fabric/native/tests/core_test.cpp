// Rings, arena, doorbell, ledger and two ports on one mapping: what TSan and ASan look at.
#include <sys/eventfd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "core/adopter.hpp"
#include "core/clock.hpp"
#include "core/crc32c.hpp"
#include "core/inspect.hpp"
#include "core/receiver.hpp"
#include "core/sender.hpp"
#include "tests/check.hpp"

namespace fabric {
namespace {

void must(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "failed: %s\n", status.message.c_str());
  std::exit(1);
}

u64 soon(u64 ms = 20'000) { return monotonic_ns() + ms * 1'000'000; }

u8* put_record(RecordWriter& writer, u64 seq, u32 inline_size) {
  RecordParts parts;
  parts.header.flow = 1;
  parts.header.flow_seq = seq;
  parts.header.sequence = seq;
  parts.header.payload_bytes = inline_size;
  u8* at = writer.reserve(record_prefix_bytes(parts) + inline_size);
  if (at == nullptr) return nullptr;
  u8* inline_at = write_record_prefix(at, parts, inline_size);
  std::memset(inline_at, static_cast<int>(seq & 0xff), inline_size);
  writer.commit();
  return at;
}

struct Ring {
  Fd fd;
  Mapping mapping;
  RecordWriter writer;
  RecordReader reader;
  ReturnWriter returns_out;
  ReturnReader returns_in;
  Ring() {
    const u64 ports[2] = {1, 2}, lives[2] = {1, 1};
    must(create_lane_pair(0, ports, lives, fd));
    must(Mapping::map(fd.get(), sizeof(LanePairLayout), true, mapping));
    auto* lane = mapping.as<LanePairLayout>();
    writer.attach(&lane->direction[0].records, lane->records[0]);
    reader.attach(&lane->direction[0].records, lane->records[0]);
    returns_out.attach(&lane->direction[0].returns, lane->returns[0]);
    returns_in.attach(&lane->direction[0].returns, lane->returns[0]);
  }
};

void records_cross_threads_in_order_over_many_wraps() {
  Ring ring;
  constexpr u64 kCount = 40'000;
  std::thread producer([&] {
    for (u64 seq = 1; seq <= kCount;) {
      if (put_record(ring.writer, seq, static_cast<u32>(seq * 97 % 4000)) == nullptr) {
        std::this_thread::yield();
        continue;
      }
      ring.writer.publish();
      ++seq;
    }
  });
  RecordSpan span;
  for (u64 seq = 1; seq <= kCount;) {
    const Peek peek = ring.reader.peek(span);
    CHECK(peek != Peek::corrupt);
    if (peek == Peek::empty) {
      std::this_thread::yield();
      continue;
    }
    CHECK(span.header.flow_seq == seq);
    const u32 size = inline_bytes(span.header);
    CHECK(size == seq * 97 % 4000);
    if (size != 0) CHECK(span.bytes[span.header.total_len - 1] == static_cast<u8>(seq));
    ring.reader.advance(span);
    ring.reader.release();
    ++seq;
  }
  producer.join();
}

void unpublished_records_are_invisible_and_can_be_abandoned() {
  Ring ring;
  RecordSpan span;
  CHECK(put_record(ring.writer, 1, 8) != nullptr);
  CHECK(ring.reader.peek(span) == Peek::empty);
  ring.writer.abandon();
  CHECK(put_record(ring.writer, 2, 8) != nullptr);
  ring.writer.publish();
  CHECK(ring.reader.peek(span) == Peek::item && span.header.flow_seq == 2);
}

void read_cursor_ahead_of_tail_keeps_the_bytes() {
  Ring ring;
  u64 seq = 0;
  while (put_record(ring.writer, seq + 1, 4000) != nullptr) ++seq;
  ring.writer.publish();
  RecordSpan span;
  u64 first_end = 0;
  for (u64 i = 1; i <= seq; ++i) {
    CHECK(ring.reader.peek(span) == Peek::item && span.header.flow_seq == i);
    if (i == 2) first_end = span.end;
    ring.reader.advance(span);
  }
  CHECK(put_record(ring.writer, seq + 1, 4000) == nullptr);
  ring.reader.release(first_end);
  CHECK(put_record(ring.writer, seq + 1, 4000) != nullptr);
  ring.reader.rewind();
  CHECK(ring.reader.peek(span) == Peek::item && span.header.flow_seq == 3);
}

void return_ring_fills_and_empties_across_threads() {
  Ring ring;
  std::thread writer([&] {
    for (u64 i = 1; i <= 50'000;) {
      if (ring.returns_out.push({1, i, i, 1, 1, 0, 0, 0})) {
        ring.returns_out.publish();
        ++i;
      } else {
        std::this_thread::yield();
      }
    }
  });
  ReturnEntry entry;
  for (u64 i = 1; i <= 50'000;) {
    const Peek peek = ring.returns_in.next(entry);
    CHECK(peek != Peek::corrupt);
    if (peek == Peek::empty) {
      std::this_thread::yield();
      continue;
    }
    CHECK(entry.a == i++);
    ring.returns_in.release();
  }
  writer.join();
}

void arena_generations_fence_a_reader() {
  Fd fd;
  must(create_segment(5, 1, 1, 0, 4096, 2, fd));
  Arena arena;
  must(arena.add(5, fd.get()));
  must(seal_segment(fd.get()));
  std::shared_ptr<Segment> reader;
  must(Segment::open(5, fd.get(), false, reader));
  std::shared_ptr<Segment> writer;
  CHECK(!Segment::open(5, fd.get(), true, writer).ok());
  SlotRef a, b, c;
  must(arena.allocate(100, a));
  must(arena.allocate(4096, b));
  CHECK(arena.allocate(1, c).code == Code::need_segment);
  const SegmentEntry entry = arena.entry(a, 0, 100);
  const u8* data = nullptr;
  must(reader->resolve(entry, data));
  arena.hold_reader(a, 9);
  arena.drop_message(a);
  CHECK(reader->holds(entry));
  CHECK(!arena.drop_reader(5, a.slot, a.generation, 8));
  CHECK(arena.drop_reader(5, a.slot, a.generation, 9));
  CHECK(!reader->holds(entry) && reader->resolve(entry, data).code == Code::stale);
  must(arena.allocate(1, c));
  CHECK(c.slot == a.slot && c.generation == a.generation + 2);
  SegmentEntry outside = arena.entry(c, 4000, 97);
  CHECK(reader->resolve(outside, data).code == Code::protocol);
}

void checksum_paths_agree() {
  std::vector<u8> bytes(20'000);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<u8>(i * 31 ^ i >> 7);
  for (Crc32cWay way : {Crc32cWay::three, Crc32cWay::wide}) {
    if (!crc32c_can(way)) continue;
    for (std::size_t n = 0; n < bytes.size() - 64; n += 1 + n / 16)
      for (std::size_t from : {std::size_t{0}, n % 64})
        CHECK(crc32c_by(way, bytes.data() + from, n, u32(n)) == crc32c_by(Crc32cWay::table, bytes.data() + from, n, u32(n)));
  }
  CHECK(crc32c(bytes.data() + 999, 9'001, crc32c(bytes.data(), 999)) == crc32c(bytes.data(), 10'000));
  CHECK(crc32c("123456789", 9) == 0xe3069283);
}

struct End {
  Fd state, bell, event;
  u64 number;
  std::shared_ptr<Port> port;
  explicit End(u64 id) : number(id) {
    must(create_state(id, 1, 0, state));
    must(create_doorbell(bell));
    event = Fd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    must(Port::open(id, 1, state.get(), bell.get(), event.get(), false, true, port));
  }
};

// Both ports are in this process; TSan sees each mapping as separate memory, so it checks the ports'
// own locking here, and the ring protocol above, where both ends share one mapping.
void two_ports_exchange_from_many_threads_and_settle() {
  End a(1), b(2);
  const u64 ports[2] = {1, 2}, lives[2] = {1, 1};
  Fd lane;
  must(create_lane_pair(1, ports, lives, lane));
  must(a.port->add_lane(1, lane.get(), 0, 1, 2, 1, b.bell.get(), b.event.get()));
  must(b.port->add_lane(1, lane.get(), 1, 1, 1, 1, a.bell.get(), a.event.get()));
  Fd segment;
  must(create_segment(1, 1, 1, 0, 8192, 64, segment));
  must(a.port->add_segment(1, segment.get(), true));
  must(b.port->add_segment(1, segment.get(), false));
  std::shared_ptr<SenderCore> out;
  std::shared_ptr<ReceiverCore> in;
  must(a.port->open_sender(11, 7, 9, Pattern::stream, Delivery::at_least_once, 1, Overflow::block, out));
  must(b.port->open_receiver(21, 7, 9, Pattern::stream, Delivery::at_least_once, Overflow::block, in));
  must(b.port->add_flow_in(21, 1, 1, 1, 32, 1 << 20));
  must(a.port->add_flow_out(11, 1, 1, 21, 32, 1 << 20, 1, false));
  constexpr int kThreads = 3, kEach = 2000;
  std::vector<u8> tensor(5000, 7);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        const Piece piece{tensor.data(), i % 3 == 0 ? 5000u : 64u};
        SendRequest request;
        request.tensors = {&piece, 1};
        u64 sequence = 0;
        must(out->send(request, soon(), t == 0, sequence).code == Code::would_block
                 ? out->send(request, soon(), true, sequence)
                 : Status::success());
      }
    });
  }
  std::atomic<u64> got{0}, last{0};
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&] {
      while (got.load() < kThreads * kEach) {
        MessageCore* message = nullptr;
        must(in->receive_one(monotonic_ns() + 20'000'000, true, message));
        if (message == nullptr) continue;
        const u8* data = nullptr;
        u64 bytes = 0;
        must(in->tensor(*message, 0, data, bytes));
        CHECK(data[bytes - 1] == 7);
        must(in->ack(*message, true));
        in->collect(message);
        got.fetch_add(1);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  bool flushed = false;
  must(out->flush(soon(), true, flushed));
  CHECK(flushed && got.load() == kThreads * kEach);
  EndCounts counts{};
  must(out->counts(counts));
  CHECK(counts[1][0] == kThreads * kEach);
  std::vector<u32> idle;
  must(a.port->idle_segments(idle));
  CHECK(idle.size() == 1);
  a.port->close();
  b.port->close();
}

// A kill between any two steps of the commit order leaves one of these states behind.
void adopter_decides_pending_entries_by_the_lane_head() {
  Fd state, lane;
  must(create_state(1, 1, 0, state));
  const u64 ports[2] = {1, 2}, lives[2] = {1, 1};
  must(create_lane_pair(1, ports, lives, lane));
  Mapping mapping;
  must(Mapping::map(state.get(), sizeof(StateLayout), true, mapping));
  SenderLedger& row = mapping.as<StateLayout>()->ledger[0];
  row.endpoint = 11;
  Ledger ledger;
  ledger.attach(&row);
  LaneEnd end;
  must(end.attach(lane.get(), 0));
  for (u64 seq = 1; seq <= 3; ++seq) {
    ledger.begin(seq, 1, seq, end.records_out.head(), 8);
    if (seq <= 2) CHECK(put_record(end.records_out, seq, 16) != nullptr);
    if (seq == 1) {
      end.records_out.publish();
      ledger.accept(1, 1);
    }
  }
  end.records_out.publish();          // record 2 is visible, its entry pending; 3 has no record
  InspectedState before{};
  must(inspect_state(state.get(), before));
  CHECK(before.ledgers[0].accepted == 1 && before.ledgers[0].outstanding.size() == 3);
  Adopter adopter;
  must(adopter.open(state.get()));
  must(adopter.add_lane(lane.get(), 0, 1));
  CHECK(adopter.step() == 2);
  adopter.finish(Reason::sender_lost);
  InspectedState after{};
  must(inspect_state(state.get(), after));
  CHECK(after.ledgers[0].accepted == 2 && after.ledgers[0].tail == 2);
  CHECK(after.ledgers[0].counts[3][static_cast<int>(Reason::sender_lost)] == 2);
}

}  // namespace
}  // namespace fabric

int main() {
  using namespace fabric;
  records_cross_threads_in_order_over_many_wraps();
  unpublished_records_are_invisible_and_can_be_abandoned();
  read_cursor_ahead_of_tail_keeps_the_bytes();
  return_ring_fills_and_empties_across_threads();
  arena_generations_fence_a_reader();
  checksum_paths_agree();
  adopter_decides_pending_entries_by_the_lane_head();
  two_ports_exchange_from_many_threads_and_settle();
  std::puts("core_test: passed");
  return 0;
}
