// The sending side: slots with several readers, entries that move, broadcasts, returns that lie.
#include <sys/eventfd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "core/adopter.hpp"
#include "core/clock.hpp"
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

void slot_goes_back_when_the_last_reader_and_the_message_let_go() {
  Fd fd;
  must(create_segment(5, 1, 1, 0, 4096, 4, fd));
  Arena arena;
  must(arena.add(5, fd.get(), 1));
  SlotRef a, b;
  CHECK(arena.allocate(100, a).code == Code::need_segment);
  must(arena.allocate(100, a, 1));
  must(arena.allocate(100, b, 1));
  for (u64 flow = 1; flow <= 4; ++flow) arena.hold_reader(a, flow);
  arena.hold_reader(a, 3);  // a flow holds a slot once
  arena.hold_reader(b, 2);
  arena.drop_message(a);
  CHECK(!arena.drop_reader(a.segment, a.slot, a.generation, 9));
  CHECK(!arena.drop_reader(a.segment, a.slot, a.generation + 2, 1));
  CHECK(arena.drop_reader(a.segment, a.slot, a.generation, 3));
  CHECK(!arena.drop_reader(a.segment, a.slot, a.generation, 3));
  CHECK(arena.drop_reader(a.segment, a.slot, a.generation, 1));
  CHECK(arena.taken_slots() == 2 && arena.valid(a));
  arena.drop_readers_of(2);
  CHECK(!arena.has_readers(2) && arena.has_readers(4) && arena.valid(b));
  arena.drop_readers_of(4);
  CHECK(!arena.valid(a) && arena.taken_slots() == 1);
  arena.hold_reader(b, 7);
  arena.hold_reader(b, 8);
  arena.free(b);
  CHECK(arena.taken_slots() == 0 && !arena.has_readers(7) && !arena.has_readers(8));
  must(arena.drop(5));
}

struct Book {  // a ledger without a port
  Fd state;
  Mapping mapping;
  Ledger ledger;
  Book() {
    must(create_state(1, 1, 0, state));
    must(Mapping::map(state.get(), sizeof(StateLayout), true, mapping));
    SenderLedger& row = mapping.as<StateLayout>()->ledger[0];
    row.endpoint = 11;
    row.delivery = 1;
    ledger.attach(&row);
  }
  void fill(u64 entries) {
    for (u64 n = 1; n <= entries; ++n) ledger.begin(n, 1, n, 0, 8);
    ledger.accept(1, entries);
  }
  InspectedLedger look() const {
    InspectedState seen{};
    must(inspect_state(state.get(), seen));
    return seen.ledgers.at(0);
  }
};

u64 sum(const u64 (&counts)[4][static_cast<int>(Reason::count)]) {
  u64 all = 0;
  for (const auto& row : counts) {
    for (u64 count : row) all += count;
  }
  return all;
}

void entry_that_moves_is_one_message_to_an_auditor() {
  Book book;
  book.fill(100);
  for (u64 n = 2; n <= 100; ++n) book.ledger.end(n, End::delivered, Reason::none);
  CHECK(book.ledger.fold() == 0);
  CHECK(book.ledger.relocate() == 101 && book.ledger.live(101) && !book.ledger.live(1));
  InspectedLedger seen = book.look();
  CHECK(seen.accepted == 100 && seen.tail == 0 && sum(seen.counts) == 0 && seen.outstanding.size() == 100);
  CHECK(book.ledger.fold() == 100 && book.ledger.outstanding() == 1);
  book.ledger.aside(Aside::rejected, 2);
  seen = book.look();
  CHECK(seen.accepted == 102 && seen.tail == 101 && sum(seen.counts) == 101 && seen.outstanding.size() == 1);
  CHECK(seen.outstanding[0].sequence == 102 && seen.outstanding[0].flow_seq == 1);
  const EndCounts counts = book.ledger.counts();
  CHECK(counts[0][0] == 0 && counts[1][0] == 99 && counts[3][static_cast<int>(Reason::rejected)] == 2);
}

// relocate() killed between any two of its stores.
void adopter_finds_an_entry_that_was_moving_in_one_place() {
  for (int steps = 0; steps <= 2; ++steps) {
    Book book;
    book.fill(3);
    book.ledger.end(2, End::delivered, Reason::none);
    OutEntry& to = book.ledger.entry(4);
    to.flow = to.flow_seq = 1;
    to.sequence = 4;
    to.word = out_word(OutState::moving);
    if (steps >= 1) book.ledger.entry(1).word = out_word(OutState::ended, End::none);
    if (steps >= 2) to.word = out_word(OutState::accepted);
    Adopter adopter;
    must(adopter.open(book.state.get()));
    CHECK(adopter.step() == 2);
    adopter.finish(Reason::sender_lost);
    const InspectedLedger seen = book.look();
    CHECK(seen.accepted == 3 && seen.tail == 3 && sum(seen.counts) == 3);
    CHECK(seen.counts[1][0] == 1 && seen.counts[3][static_cast<int>(Reason::sender_lost)] == 2);
  }
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

Fd join(End& a, End& b, u32 number) {
  const u64 ports[2] = {a.number, b.number}, lives[2] = {1, 1};
  Fd lane;
  must(create_lane_pair(1, ports, lives, lane));
  must(a.port->add_lane(number, lane.get(), 0, 1, b.number, 1, b.bell.get(), b.event.get()));
  must(b.port->add_lane(number, lane.get(), 1, 1, a.number, 1, a.bell.get(), a.event.get()));
  return lane;
}

void flow_between(End& a, End& b, u64 sender, u64 receiver, u64 flow, u32 lane) {
  must(b.port->add_flow_in(receiver, flow, lane, a.number, 32, 1 << 20));
  must(a.port->add_flow_out(sender, flow, lane, receiver, 32, 1 << 20, 1, false));
}

// Two threads send, two receivers in two ports read; slots are shared.
void broadcast_from_many_threads_reaches_every_receiver() {
  End a(1), b(2), c(3);
  const Fd first = join(a, b, 1), second = join(a, c, 2);
  Fd segment;
  must(create_segment(1, 1, 1, 0, 8192, 64, segment));
  must(a.port->add_segment(1, segment.get(), true));
  std::shared_ptr<SenderCore> out;
  must(a.port->open_sender(11, 7, 9, Pattern::broadcast, Delivery::at_most_once, 1, Overflow::block, out));
  constexpr int kThreads = 2, kEach = 1500;
  std::vector<std::thread> threads;
  std::vector<u8> tensor(5000, 7);
  for (End* place : {&b, &c}) {
    must(place->port->add_segment(1, segment.get(), false));
    std::shared_ptr<ReceiverCore> in;
    must(place->port->open_receiver(21 + place->number, 7, 9, Pattern::broadcast, Delivery::at_most_once, Overflow::block, in));
    flow_between(a, *place, 11, 21 + place->number, place->number, static_cast<u32>(place->number - 1));
    threads.emplace_back([in] {
      u64 last = 0;
      for (int got = 0; got < kThreads * kEach; ++got) {
        MessageCore* message = nullptr;
        must(in->receive_one(soon(), true, message));
        CHECK(message != nullptr && message->header.sequence == ++last);
        const u8* data = nullptr;
        u64 bytes = 0;
        must(in->tensor(*message, 0, data, bytes));
        CHECK(data[bytes - 1] == 7);
        in->collect(message);
      }
    });
  }
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < kEach; ++i) {
        const Piece piece{tensor.data(), i % 3 == 0 ? 5000u : 64u};
        SendRequest request;
        request.tensors = {&piece, 1};
        u64 number = 0;
        for (Status status = Status::need_segment(0, 0); !status.ok();) {
          status = out->send(request, soon(), true, number);
          if (status.code == Code::need_segment) std::this_thread::yield();
          else must(status);
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  bool flushed = false;
  must(out->flush(soon(), true, flushed));
  EndCounts counts{};
  must(out->counts(counts));
  CHECK(flushed && counts[1][0] == 2 * kThreads * kEach);
  std::vector<u32> idle;
  must(a.port->idle_segments(idle));
  CHECK(idle.size() == 1);
  for (End* place : {&a, &b, &c}) place->port->close();
}

// A consumer that keeps one message and acknowledges all others: what both sides keep of the flow is bounded.
void message_that_never_ends_stops_its_flow_at_the_span() {
  End a(1), b(2);
  const Fd lane = join(a, b, 1);
  std::shared_ptr<SenderCore> out;
  std::shared_ptr<ReceiverCore> in;
  must(a.port->open_sender(11, 7, 9, Pattern::queue, Delivery::at_least_once, 1, Overflow::block, out));
  must(b.port->open_receiver(21, 7, 9, Pattern::queue, Delivery::at_least_once, Overflow::block, in));
  flow_between(a, b, 11, 21, 1, 1);
  MessageCore* kept = nullptr;
  Status status;
  u64 sent = 0;
  for (; sent <= kFlowSpanMax; ++sent) {
    u64 number = 0;
    status = out->send(SendRequest{}, soon(sent == kFlowSpanMax ? 20 : 20'000), true, number);
    if (!status.ok()) break;
    MessageCore* message = nullptr;
    must(in->receive_one(soon(), true, message));
    CHECK(message != nullptr && message->header.sequence == sent + 1);
    if (kept == nullptr) {
      kept = message;
      continue;
    }
    must(in->ack(*message, true));
    in->collect(message);
  }
  CHECK(status.code == Code::deadline && sent == kFlowSpanMax);
  CHECK(status.message.find("its oldest message has not ended") != std::string::npos);
  must(in->ack(*kept, true));
  in->collect(kept);
  u64 number = 0;
  must(out->send(SendRequest{}, soon(), true, number));
  CHECK(number == kFlowSpanMax + 1);
  a.port->close();
  b.port->close();
}

// c is a peer that writes what it likes about the flow of b.
void peer_has_no_say_in_the_flows_of_another() {
  for (const ReturnKind kind : {ReturnKind::end, ReturnKind::credit, ReturnKind::release}) {
    End a(1), b(2);
    const Fd first = join(a, b, 1);
    const u64 ports[2] = {1, 3}, lives[2] = {1, 1};
    Fd lane, bell, event(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)), segment;
    must(create_lane_pair(1, ports, lives, lane));
    must(create_doorbell(bell));
    must(a.port->add_lane(2, lane.get(), 0, 1, 3, 1, bell.get(), event.get()));
    LaneEnd liar;
    must(liar.attach(lane.get(), 1));
    must(create_segment(1, 1, 1, 0, 8192, 1, segment));
    must(a.port->add_segment(1, segment.get(), true));
    std::shared_ptr<SenderCore> out;
    std::shared_ptr<ReceiverCore> in;
    must(a.port->open_sender(11, 7, 9, Pattern::stream, Delivery::at_most_once, 1, Overflow::block, out));
    must(b.port->open_receiver(21, 7, 9, Pattern::stream, Delivery::at_most_once, Overflow::block, in));
    flow_between(a, b, 11, 21, 1, 1);
    std::vector<u8> tensor(5000, 7);
    const Piece piece{tensor.data(), 5000};
    SendRequest request;
    request.tensors = {&piece, 1};
    u64 number = 0;
    must(out->send(request, soon(), true, number));
    ReturnEntry lie{1, 1, 1, static_cast<u8>(kind), 0, 0, 0, 0};
    if (kind == ReturnKind::end) lie.end = static_cast<u8>(fabric::End::delivered);
    if (kind == ReturnKind::credit) lie.a = lie.b = 1 << 20;
    if (kind == ReturnKind::release) lie.a = u64{1} << 32;
    CHECK(liar.returns_out.push(lie));
    liar.returns_out.publish();
    DoorbellRinger ringer;
    must(ringer.attach(a.bell.get(), a.event.get()));
    ringer.ring(2);
    u64 handled = 0;
    must(a.port->progress(handled));
    PortStats stats;
    must(a.port->stats(stats));
    CHECK(stats.lying == 1 && stats.slots_taken == 1);
    std::vector<FlowInfo> flows;
    must(out->flows(flows));
    CHECK(flows[0].outstanding == 1 && flows[0].credit_messages == 31);
    a.port->close();
    b.port->close();
  }
}

}  // namespace
}  // namespace fabric

int main() {
  using namespace fabric;
  slot_goes_back_when_the_last_reader_and_the_message_let_go();
  entry_that_moves_is_one_message_to_an_auditor();
  adopter_finds_an_entry_that_was_moving_in_one_place();
  broadcast_from_many_threads_reaches_every_receiver();
  peer_has_no_say_in_the_flows_of_another();
  message_that_never_ends_stops_its_flow_at_the_span();
  std::puts("sender_test: passed");
  return 0;
}
