// Rails between two engines, as sockets through a thread that throttles, swallows or cuts them.
#pragma once

#include <fcntl.h>
#include <poll.h>

#include <atomic>
#include <memory>
#include <mutex>

#include "tests/both_ways.hpp"

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

/// Two nodes that several rails join.
struct Railed : BothWays {
  std::unique_ptr<RailRelay> relay[paths::kRailsMax];

  explicit Railed(u32 rails) : BothWays(Transport::tcp) {
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
  RailStats rail(int side, u32 number) {
    for (const RailStats& found : node(side).engine.rails(kSession, 1 << 20))
      if (found.rail == number) return found;
    return {number, {}, false};
  }
};

}  // namespace fabric::test
