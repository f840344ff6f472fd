// Every way to use a port, under every way to wait: one message a call, batches, loans; threads that wait for messages
// beside threads that wait for room and an event loop. Contents are checked, and nothing is held at the end.
//
// Both ports are in this process; what the sanitizers see here is each port's own locking and lifetimes.
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "core/clock.hpp"
#include "core/receiver.hpp"
#include "core/sender.hpp"
#include "tests/check.hpp"

namespace fabric {
namespace {

constexpr u64 kWindow = 16, kSlotBytes = 8192, kSlots = 64;
constexpr WaitPolicy kPolicies[] = {WaitPolicy::adaptive, WaitPolicy::poll, WaitPolicy::sleep};

void must(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "failed: %s\n", status.message.c_str());
  std::exit(1);
}

u64 soon(u64 ms = 60'000) { return monotonic_ns() + ms * 1'000'000; }

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

/// Two ports, a channel each way: `there` from a to b, `back` from b to a.
struct Joined {
  Side a{1}, b{2};
  Fd lane, segment;
  std::shared_ptr<SenderCore> there, back;
  std::shared_ptr<ReceiverCore> at_b, at_a;
  explicit Joined(WaitPolicy policy, Delivery delivery, u64 window = kWindow) {
    const u64 ports[2] = {1, 2}, lives[2] = {1, 1};
    must(a.port->set_wait(policy));
    must(b.port->set_wait(policy));
    must(create_lane_pair(1, ports, lives, lane));
    must(a.port->add_lane(1, lane.get(), 0, 1, 2, 1, b.bell.get(), b.event.get()));
    must(b.port->add_lane(1, lane.get(), 1, 1, 1, 1, a.bell.get(), a.event.get()));
    must(create_segment(5, 1, 1, 0, kSlotBytes, kSlots, segment));
    must(a.port->add_segment(5, segment.get(), true));
    must(b.port->add_segment(5, segment.get(), false));
    must(a.port->open_sender(11, 7, 9, Pattern::queue, delivery, 1, Overflow::block, there));
    must(b.port->open_receiver(21, 7, 9, Pattern::queue, delivery, Overflow::block, at_b));
    must(b.port->open_sender(12, 8, 9, Pattern::queue, Delivery::at_most_once, 1, Overflow::block, back));
    must(a.port->open_receiver(22, 8, 9, Pattern::queue, Delivery::at_most_once, Overflow::block, at_a));
    must(b.port->add_flow_in(21, 1, 1, 1, window, 1 << 20));
    must(a.port->add_flow_out(11, 1, 1, 21, window, 1 << 20, 1, false));
    must(a.port->add_flow_in(22, 2, 1, 2, window, 1 << 20));
    must(b.port->add_flow_out(12, 2, 1, 22, window, 1 << 20, 1, false));
  }
  void nothing_is_left(u64 count) {
    bool flushed = false;
    must(there->flush(soon(), true, flushed));
    CHECK(flushed);
    EndCounts counts{};
    must(there->counts(counts));
    CHECK(counts[static_cast<int>(End::delivered)][static_cast<int>(Reason::none)] == count);
    PortStats stats;
    must(b.port->stats(stats));
    CHECK(stats.held == 0);
    for (const u64 until = soon(); stats.slots_taken != 0 || stats.held != 0; std::this_thread::yield()) {
      CHECK(monotonic_ns() < until);
      u64 handled = 0;
      must(b.port->progress(handled));
      must(a.port->progress(handled));
      must(a.port->stats(stats));
    }
  }
};

// ------------------------------------------------------------------ contents: the number, and where it has room, often
std::span<const u8> bytes_of(const u64& number) { return {reinterpret_cast<const u8*>(&number), sizeof number}; }

u64 size_of(u64 number) { return 100 + number * 37 % (kSlotBytes - 200); }

void fill(u8* at, u64 number) {
  std::memset(at, static_cast<int>(number & 0xff), size_of(number));
}

u64 number_in(std::span<const u8> meta) {
  CHECK(meta.size() == sizeof(u64));
  u64 number = 0;
  std::memcpy(&number, meta.data(), sizeof number);
  return number;
}

u64 read(ReceiverCore& in, MessageCore& message) {
  const u8* data = nullptr;
  u64 bytes = 0;
  must(in.meta(message, data, bytes));
  const u64 number = number_in({data, bytes});
  if (number % 3 != 2) return number;
  must(in.tensor(message, 0, data, bytes));
  CHECK(bytes == size_of(number));
  for (u64 i = 0; i < bytes; ++i) CHECK(data[i] == (number & 0xff));
  return number;
}

// ------------------------------------------------------------------ ways to send and to receive
void send_one(SenderCore& out, u64 number) {
  SendRequest request;
  request.meta = bytes_of(number);
  u64 sequence = 0;
  must(out.send(request, soon(), true, sequence));
}

void send_batch(SenderCore& out, u64 first, u64 count) {
  std::vector<u64> numbers(count);
  std::vector<SendRequest> requests(count);
  for (u64 i = 0; i < count; ++i) {
    numbers[i] = first + i;
    requests[i].meta = bytes_of(numbers[i]);
  }
  for (u64 done = 0; done < count;) {
    u64 accepted = 0;
    must(out.send_many(std::span<const SendRequest>(requests).subspan(done), soon(), true, accepted));
    done += accepted;
  }
}

void send_loan(SenderCore& out, u64 number, bool discards) {
  const u64 size = size_of(number);
  SlotRef slot;
  u8* address = nullptr;
  std::vector<u64> offsets;
  for (Status status;; std::this_thread::yield()) {  // every slot is out: one comes back
    status = out.loan({&size, 1}, slot, address, offsets);
    if (status.ok()) break;
    CHECK(status.code == Code::need_segment);
    bool flushed = false;
    must(out.flush(soon(1), true, flushed));
  }
  fill(address + offsets[0], number);
  if (discards) {
    out.discard(slot);
    return;
  }
  const Piece piece{nullptr, size};
  SendRequest request;
  request.meta = bytes_of(number);
  request.tensors = {&piece, 1};
  request.loan = slot;
  u64 sequence = 0;
  must(out.send(request, soon(), true, sequence));
}

// Numbers 3n and 3n + 1 go as batches or one by one, 3n + 2 is written in place.
void send_all(SenderCore& out, u64 count) {
  for (u64 number = 0; number < count; number += 3) {
    if (number % 2 == 0) {
      send_batch(out, number, 2);
    } else {
      send_one(out, number);
      send_one(out, number + 1);
    }
    if (number % 4 == 0) send_loan(out, number + 2, true);
    send_loan(out, number + 2, false);
  }
}

void done(ReceiverCore& in, MessageCore* message) {
  if (in.delivery() == Delivery::at_least_once) must(in.ack(*message, true));
  must(in.release(*message, true));
  in.collect(message);
}

/// What one call got; `turn` chooses the call.
std::vector<u64> take(ReceiverCore& in, u64 turn, u64 deadline_ns) {
  std::vector<u64> numbers;
  std::vector<MessageCore*> messages;
  if (turn % 3 == 0) {
    PlainCopies plain;
    must(in.receive_plain(8, deadline_ns, true, plain));
    const u8* at = plain.bytes.data();
    for (const u32 size : plain.sizes) {
      numbers.push_back(number_in({at, size}));
      at += size;
    }
    if (plain.other != nullptr) messages.push_back(plain.other);
  } else if (turn % 3 == 1) {
    MessageCore* message = nullptr;
    must(in.receive_one(deadline_ns, true, message));
    if (message != nullptr) messages.push_back(message);
  } else {
    must(in.receive(8, deadline_ns, true, messages));
  }
  for (MessageCore* message : messages) {
    numbers.push_back(read(in, *message));
    done(in, message);
  }
  return numbers;
}

// ------------------------------------------------------------------ tests
void every_use_keeps_order_and_contents(WaitPolicy policy, Delivery delivery) {
  constexpr u64 kCount = 3000;
  Joined joined(policy, delivery);
  std::thread sender([&] { send_all(*joined.there, kCount); });
  u64 next = 0;
  for (u64 turn = 0; next < kCount; ++turn) {
    for (const u64 number : take(*joined.at_b, turn, soon())) CHECK(number == next++);
  }
  sender.join();
  joined.nothing_is_left(kCount);
}

void several_senders_and_readers_share_a_port(WaitPolicy policy) {
  constexpr u64 kCount = 600, kEach = 3;
  Joined joined(policy, Delivery::at_least_once);
  std::vector<std::atomic<u32>> seen(kCount);
  std::atomic<u64> got{0};
  std::vector<std::thread> threads;
  for (u64 i = 0; i < kEach; ++i) {
    threads.emplace_back([&] { send_all(*joined.there, kCount); });
    threads.emplace_back([&, i] {
      for (u64 turn = i; got.load() < kCount * kEach; ++turn) {
        for (const u64 number : take(*joined.at_b, turn, soon(20))) {
          seen[number].fetch_add(1);
          got.fetch_add(1);
        }
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& count : seen) CHECK(count.load() == kEach);
  joined.nothing_is_left(kCount * kEach);
}

// On port a one thread waits for room, one for replies, and an event loop for both; b answers every message.
void waits_for_messages_and_for_room_go_on_beside_each_other(WaitPolicy policy) {
  constexpr u64 kCount = 1500;
  Joined joined(policy, Delivery::at_most_once, 2);
  std::atomic<bool> stop{false};
  std::atomic<u64> fired{0};
  std::thread echo([&] {
    for (u64 got = 0, turn = 0; got < kCount; ++turn) {
      for (const u64 number : take(*joined.at_b, turn, soon())) {
        send_one(*joined.back, number - number % 3);  // without a tensor
        ++got;
      }
    }
  });
  std::thread replies([&] {
    for (u64 got = 0, turn = 0; got < kCount; ++turn) got += take(*joined.at_a, turn, soon()).size();
  });
  std::thread loop([&] {
    while (!stop.load()) {
      bool armed = false;
      must(joined.a.port->arm(armed));
      if (!armed) continue;
      pollfd ready{joined.a.port->event_fd(), POLLIN, 0};
      if (::poll(&ready, 1, 20) == 1) fired.fetch_add(1);
      must(joined.a.port->disarm());
    }
  });
  send_all(*joined.there, kCount);
  echo.join();
  replies.join();
  stop = true;
  loop.join();
  joined.nothing_is_left(kCount);
  CHECK(fired.load() != 0);
}

void policies_change_under_traffic() {
  constexpr u64 kCount = 3000;
  Joined joined(WaitPolicy::adaptive, Delivery::at_least_once);
  std::atomic<bool> stop{false};
  std::thread changer([&] {
    for (u64 i = 0; !stop.load(); ++i) {
      must(joined.a.port->set_wait(kPolicies[i % 3]));
      must(joined.b.port->set_wait(kPolicies[(i + 1) % 3]));
      std::this_thread::sleep_for(std::chrono::microseconds(300));
    }
  });
  std::thread sender([&] { send_all(*joined.there, kCount); });
  u64 next = 0;
  for (u64 turn = 0; next < kCount; ++turn) {
    for (const u64 number : take(*joined.at_b, turn, soon())) CHECK(number == next++);
  }
  sender.join();
  stop = true;
  changer.join();
  joined.nothing_is_left(kCount);
}

void waits_end_at_their_deadline_and_with_their_port(WaitPolicy policy) {
  Joined joined(policy, Delivery::at_most_once, 1);
  const u64 begun = monotonic_ns();
  for (u64 turn = 0; turn < 3; ++turn) CHECK(take(*joined.at_b, turn, soon(20)).empty());
  CHECK(monotonic_ns() - begun >= 60'000'000);
  send_one(*joined.there, 0);
  SendRequest request;
  u64 sequence = 0;
  CHECK(joined.there->send(request, soon(20), true, sequence).code == Code::deadline);
  std::atomic<u64> ended{0};
  std::vector<std::thread> threads;
  threads.emplace_back([&] {
    SendRequest late;
    u64 number = 0;
    CHECK(joined.there->send(late, soon(), true, number).code == Code::closed);
    ++ended;
  });
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      MessageCore* message = nullptr;
      CHECK(joined.at_a->receive_one(soon(), true, message).code == Code::closed);
      ++ended;
    });
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(ended.load() == 0);
  joined.a.port->close();
  for (auto& thread : threads) thread.join();
}

}  // namespace
}  // namespace fabric

int main() {
  using namespace fabric;
  for (const WaitPolicy policy : kPolicies) {
    every_use_keeps_order_and_contents(policy, Delivery::at_most_once);
    every_use_keeps_order_and_contents(policy, Delivery::at_least_once);
    several_senders_and_readers_share_a_port(policy);
    waits_for_messages_and_for_room_go_on_beside_each_other(policy);
    waits_end_at_their_deadline_and_with_their_port(policy);
  }
  policies_change_under_traffic();
  std::puts("uses_test: passed");
  return 0;
}
