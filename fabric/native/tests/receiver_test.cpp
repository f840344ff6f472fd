// Receivers under traffic: the native thread that drops the oldest, closing with what was not handed, lying peers.
//
// Both ports are in this process; what the sanitizers see here is each port's own locking and lifetimes.
#include <sys/eventfd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "core/clock.hpp"
#include "core/receiver.hpp"
#include "core/sender.hpp"
#include "tests/check.hpp"

namespace fabric {
namespace {

constexpr u64 kWindow = 16;

void must(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "failed: %s\n", status.message.c_str());
  std::exit(1);
}

u64 soon(u64 ms = 20'000) { return monotonic_ns() + ms * 1'000'000; }

struct Side {
  Fd state, bell, event;
  std::shared_ptr<Port> port;
  explicit Side(u64 id) {
    must(create_state(id, 1, 0, state));
    must(create_doorbell(bell));
    event = Fd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    must(Port::open(id, 1, state.get(), bell.get(), event.get(), false, true, port));
  }
};

struct Joined {
  Side a{1}, b{2};
  Fd lane;
  std::shared_ptr<SenderCore> out;
  u64 flows = 0;
  explicit Joined(Delivery delivery) {
    const u64 ports[2] = {1, 2}, lives[2] = {1, 1};
    must(create_lane_pair(1, ports, lives, lane));
    must(a.port->add_lane(1, lane.get(), 0, 1, 2, 1, b.bell.get(), b.event.get()));
    must(b.port->add_lane(1, lane.get(), 1, 1, 1, 1, a.bell.get(), a.event.get()));
    must(a.port->open_sender(11, 7, 9, Pattern::queue, delivery, 1, Overflow::block, out));
  }
  std::shared_ptr<ReceiverCore> receiver(u64 endpoint, Delivery delivery, Overflow overflow) {
    std::shared_ptr<ReceiverCore> in;
    must(b.port->open_receiver(endpoint, 7, 9, Pattern::queue, delivery, overflow, in));
    return in;
  }
  u64 flow(u64 endpoint) {
    must(b.port->add_flow_in(endpoint, ++flows, 1, 1, kWindow, 1 << 20));
    must(a.port->add_flow_out(11, flows, 1, endpoint, kWindow, 1 << 20, 1, false));
    return flows;
  }
  void send(u64 count) {
    for (u64 i = 0; i < count; ++i) {
      SendRequest request;
      u64 sequence = 0;
      must(out->send(request, soon(), true, sequence));
    }
  }
};

u64 count_of(SenderCore& out, End end, Reason reason) {
  EndCounts counts{};
  must(out.counts(counts));
  return counts[static_cast<int>(end)][static_cast<int>(reason)];
}

u64 take(ReceiverCore& in, std::vector<MessageCore*>& got, u64 wait_ms) {
  must(in.receive(8, soon(wait_ms), true, got));
  return got.size();
}

// Two readers lead and follow at the doorbell, pause, and let the native thread lead; the sender never waits long.
void oldest_go_while_readers_come_and_go() {
  Joined joined(Delivery::at_most_once);
  auto in = joined.receiver(21, Delivery::at_most_once, Overflow::drop_oldest);
  joined.flow(21);
  constexpr u64 kCount = 6000;
  std::atomic<u64> handed{0};
  std::atomic<bool> done{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      while (!done.load()) {
        std::vector<MessageCore*> got;
        handed += take(*in, got, 5);
        for (MessageCore* message : got) in->collect(message);
        if (handed.load() % 7 == static_cast<u64>(t)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        std::vector<HeldView> views;
        must(joined.b.port->views(views));
      }
    });
  }
  joined.send(kCount);
  done = true;
  for (auto& thread : threads) thread.join();
  std::vector<MessageCore*> rest;
  for (u64 before = 1; before != rest.size();) {
    before = rest.size();
    must(in->receive(rest.size() + 64, 0, true, rest));
  }
  for (MessageCore* message : rest) in->collect(message);
  bool flushed = false;
  must(joined.out->flush(soon(), true, flushed));
  CHECK(flushed);
  CHECK(count_of(*joined.out, End::delivered, Reason::none) == handed.load() + rest.size());
  const u64 dropped = count_of(*joined.out, End::dropped, Reason::overflow_oldest);
  CHECK(dropped + handed.load() + rest.size() == kCount);
}

// A receiver closes under traffic, handing back; another gets what it was not handed, and nothing ends twice.
void closing_under_traffic_hands_back() {
  Joined joined(Delivery::at_least_once);
  auto first = joined.receiver(21, Delivery::at_least_once, Overflow::block);
  auto second = joined.receiver(22, Delivery::at_least_once, Overflow::block);
  const u64 flow = joined.flow(21);
  joined.flow(22);
  constexpr u64 kCount = 3000;
  std::atomic<u64> acked{0};
  std::vector<MessageCore*> kept;
  const auto consume = [&](ReceiverCore& in, bool keep) {
    while (acked.load() < kCount) {
      std::vector<MessageCore*> got;
      const Status status = in.receive(8, soon(5), true, got);
      for (MessageCore* message : got) {
        if (keep && kept.size() < 3) {
          kept.push_back(message);
          continue;
        }
        must(in.ack(*message, true));
        in.collect(message);
        acked.fetch_add(1);
      }
      if (status.code == Code::closed) return;
      must(status);
    }
  };
  std::thread one([&] { consume(*first, true); }), two([&] { consume(*second, false); });
  std::thread sender([&] { joined.send(kCount); });
  while (acked.load() < kCount / 4) std::this_thread::yield();
  std::thread closer([&] { must(first->close(true)); });
  must(first->close(true));
  closer.join();
  one.join();
  for (MessageCore* message : kept) {   // what was handed is still the old consumer's to acknowledge
    must(first->ack(*message, true));
    first->collect(message);
    acked.fetch_add(1);
  }
  u64 handled = 0;
  must(joined.b.port->progress(handled));
  must(joined.a.port->close_flow_out(flow));
  must(joined.a.port->lose_flow_out(flow, ~u64{0} >> 1, Reason::closed));
  must(joined.b.port->close_flow_in(flow, false));
  sender.join();
  two.join();
  bool flushed = false;
  must(joined.out->flush(soon(), true, flushed));
  CHECK(flushed && count_of(*joined.out, End::delivered, Reason::none) == kCount);
  PortStats stats;
  must(joined.b.port->stats(stats));
  CHECK(stats.held == 0 && stats.receivers == 1 && stats.flows_in == 1);
}

void receivers_open_and_close_beside_traffic() {
  Joined joined(Delivery::at_most_once);
  auto steady = joined.receiver(20, Delivery::at_most_once, Overflow::block);
  joined.flow(20);
  std::thread opener([&] {
    for (u64 i = 0; i < 300; ++i) {
      auto in = joined.receiver(1000 + i, Delivery::at_most_once, i % 2 == 0 ? Overflow::drop_oldest : Overflow::block);
      must(in->close(i % 3 == 0));
    }
  });
  std::thread reader([&] {
    for (u64 got = 0; got < 2000;) {
      std::vector<MessageCore*> messages;
      got += take(*steady, messages, 50);
      for (MessageCore* message : messages) steady->collect(message);
    }
  });
  joined.send(2000);
  opener.join();
  reader.join();
  PortStats stats;
  must(joined.b.port->stats(stats));
  CHECK(stats.receivers == 1);
}

}  // namespace
}  // namespace fabric

int main() {
  using namespace fabric;
  oldest_go_while_readers_come_and_go();
  closing_under_traffic_hands_back();
  receivers_open_and_close_beside_traffic();
  std::puts("receiver_test: passed");
  return 0;
}
