// Rails between two engines, as sockets through a thread that throttles, swallows or cuts them.
#pragma once

#include <fcntl.h>
#include <poll.h>

#include <atomic>
#include <memory>
#include <mutex>

#include "tests/engine_fixture.hpp"

namespace fabric::test {

/// One rail's two connections. `rate` in bytes/s holds for each direction of both together; 0: none gets through.
struct RailRelay {
  std::atomic<u64> rate{~u64{0}};
  std::atomic<u64> moved{0};           ///< bytes, both directions
  std::atomic<bool> stop{false};
  std::thread thread;

  struct Pipe { int from, to; std::vector<u8> held; bool is_ended = false; };
  std::vector<Pipe> pipes;
  std::vector<Fd> owned;

  /// @return the engines' ends, [kind][side]
  std::array<std::array<int, 2>, 2> open() {
    std::array<std::array<int, 2>, 2> ends{};
    for (u32 kind = 0; kind < 2; ++kind) {
      int left[2], right[2];
      CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, left) == 0);
      CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, right) == 0);
      ends[kind] = {left[0], right[0]};
      owned.emplace_back(left[1]);
      owned.emplace_back(right[1]);
      pipes.push_back({left[1], right[1], {}, false});
      pipes.push_back({right[1], left[1], {}, false});
    }
    thread = std::thread([this] { run(); });
    return ends;
  }
  void run() {
    u64 credit[2] = {0, 0}, last = monotonic_ns();
    while (!stop.load()) {
      const u64 now = monotonic_ns(), speed = rate.load();
      for (u64& left : credit) {
        if (speed == ~u64{0}) left = 1 << 20;
        else left = std::min<u64>(left + speed * (now - last) / 1'000'000'000, std::max<u64>(speed / 500, 4096));
        if (speed == 0) left = 0;
      }
      last = now;
      bool any = false;
      for (std::size_t i = 0; i < pipes.size(); ++i) any |= pump(pipes[i], credit[i % 2]);
      if (!any) std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  }
  bool pump(Pipe& pipe, u64& credit) {
    if (pipe.held.empty() && credit > 0 && !pipe.is_ended) {
      pipe.held.resize(std::min<u64>(credit, 64 * 1024));
      const ssize_t got = ::read(pipe.from, pipe.held.data(), pipe.held.size());
      pipe.is_ended = got == 0;
      pipe.held.resize(got > 0 ? std::size_t(got) : 0);
      credit -= pipe.held.size();
      moved += pipe.held.size();
    }
    if (pipe.is_ended) ::shutdown(pipe.to, SHUT_WR);
    if (pipe.held.empty()) return false;
    const ssize_t put = ::send(pipe.to, pipe.held.data(), pipe.held.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (put > 0) pipe.held.erase(pipe.held.begin(), pipe.held.begin() + put);
    return put > 0;
  }
  void cut() {
    stop = true;
    if (thread.joinable()) thread.join();
    owned.clear();
  }
  ~RailRelay() { cut(); }
};

/// Two nodes that several rails join, messages both ways, every one checked.
struct Railed : Pair {
  static constexpr u64 kBack = (u64{2} << 48) | 8;
  std::unique_ptr<RailRelay> relay[paths::kRailsMax];
  u64 sent[2] = {0, 0}, got[2] = {0, 0}, ended[2] = {0, 0};

  explicit Railed(u32 rails) : Pair(Transport::tcp) {
    must(b.engine.add_forward(kBack, 1, kSession));
    must(a.engine.add_deliver(kBack, 1, kSession, 0));
    for (u32 rail = 0; rail < rails; ++rail) join(rail);
  }
  void join(u32 rail) {
    relay[rail] = std::make_unique<RailRelay>();
    const auto ends = relay[rail]->open();
    for (u32 kind = 0; kind < 2; ++kind) {
      must(a.engine.add_connection(kSession, ends[kind][0], group_of(rail, kind), 0));
      must(b.engine.add_connection(kSession, ends[kind][1], group_of(rail, kind), 0));
    }
  }
  Node& node(int side) { return side == 0 ? a : b; }
  static u64 flow(int side) { return side == 0 ? kFlow : kBack; }
  void send(int side, u64 size) {
    const u64 seq = ++sent[side];
    CHECK(eventually([&] { return node(side).send(flow(side), seq, pattern(size, seq * 2 + u64(side)), size > 2048); }));
  }
  void look(const std::function<u64(u64)>& size_of) {
    serve();
    for (int side = 0; side < 2; ++side) {
      Got message;
      while (node(1 - side).receive(message)) {
        CHECK(message.flow == flow(side) && message.seq == ++got[side] && message.kind == 0);
        CHECK(message.payload == pattern(size_of(message.seq), message.seq * 2 + u64(side)));
        node(1 - side).finish(message);
      }
      for (const ReturnEntry& entry : node(side).returns()) {
        CHECK(entry.flow == flow(side) && entry.end == u8(End::delivered) && entry.a == ++ended[side]);
      }
    }
  }
  bool all_there() const { return got[0] == sent[0] && got[1] == sent[1] && ended[0] == sent[0] && ended[1] == sent[1]; }
  void settle(const std::function<u64(u64)>& size_of, u64 seconds = 30 * kSlower) {
    CHECK(eventually([&] { look(size_of); return all_there(); }, seconds));
    CHECK(eventually([&] {
      look(size_of);
      for (int side = 0; side < 2; ++side) {
        const EngineStats stats = node(side).engine.stats();
        const SessionStats& session = stats.sessions.at(0);
        if (!node(side).engine.drained(1) || session.transfers_in + session.transfers_out + session.reports_unacked != 0) return false;
        if (stats.slots_taken != 0 || node(side).arena.taken_slots() != 0) return false;
      }
      return true;
    }));
  }
  RailStats rail(int side, u32 number) {
    for (const RailStats& found : node(side).engine.rails(kSession, 1 << 20))
      if (found.rail == number) return found;
    return {number, {}, false};
  }
  SessionCounters count(int side) { return node(side).engine.stats().sessions.at(0).count; }
};

}  // namespace fabric::test
