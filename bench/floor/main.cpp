// floor NAME near|far FOLDER OPTIONS CPUS: one half of a floor; orders and answers as those of bench/side.py, but flat.
//
//   ring_spin, ring_futex    messages through shared memory; "spin_us": how long ring_futex spins before it sleeps (0)
//   unix_socket, tcp_socket  messages and arrays through blocking calls
//   two_engines              module, ring, engine, tcp, engine, ring, module; "spin_us" (0)
//   tcp_bulk                 arrays in the fabric's chunks; "crc", "congestion", "send_buffer", "receive_buffer"
//   memcpy                   arrays copied once into shared slots; "nt" past the cache, "spin_us" (40)
//   fan_out                  one copy and a wake-up for each of the order's "receivers"
//
// Option of all: "deadline_s" (120), after which an order ends its process with status 3. `cpu_ns` of an answer counts
// the measured part alone, with the processes that a half started.
#include <cstdio>
#include <iostream>
#include <stdexcept>

#include "copy_end.hpp"
#include "engines.hpp"
#include "fan_out.hpp"
#include "ring_end.hpp"
#include "stream.hpp"
#include "workloads.hpp"

namespace floors {
namespace {

constexpr u64 kDeadlineSeconds = 120;

void say(const Answer& answer) { std::cout << answer.line() << std::flush; }

template <class End>
int serve(End& end, Role role, const Order& options) {
  say(Answer().add_true("connected").add("pid", static_cast<u64>(::getpid())).add("can", abilities<End>()));
  Sources sources;
  for (std::string line; std::getline(std::cin, line);) {
    if (role == Role::far) say(Answer().add_true("armed"));
    Answer answer;
    try {
      const Order order(line);
      set_deadline(options.count("deadline_s", kDeadlineSeconds) + order.count("seconds", 0));
      answer = Work<End>(end, sources, role, order).run();
    } catch (const std::exception& error) {
      answer = Answer().add_text("error", error.what()).add("cpu_ns", 0);
    }
    set_deadline(0);
    say(answer);
  }
  return 0;
}

int start(const std::string& name, Role role, const std::string& folder, const Order& options) {
  if (name == "ring_spin") { RingEnd<false> end(role, folder, options); return serve(end, role, options); }
  if (name == "ring_futex") { RingEnd<true> end(role, folder, options); return serve(end, role, options); }
  if (name == "unix_socket") { StreamEnd end(role, folder, false); return serve(end, role, options); }
  if (name == "tcp_socket") { StreamEnd end(role, folder, true); return serve(end, role, options); }
  if (name == "two_engines") { EnginesEnd end(role, folder, options); return serve(end, role, options); }
  if (name == "tcp_bulk") { BulkEnd end(role, folder, options); return serve(end, role, options); }
  if (name == "memcpy") { CopyEnd end(role, folder, options); return serve(end, role, options); }
  if (name == "fan_out") { FanOutEnd end(role, folder, options); return serve(end, role, options); }
  throw std::runtime_error("no floor is called \"" + name + "\"");
}

}  // namespace
}  // namespace floors

int main(int count, char** arguments) {
  using namespace floors;
  if (count != 6 || (std::string(arguments[2]) != "near" && std::string(arguments[2]) != "far")) {
    std::fputs("usage: floor NAME near|far FOLDER OPTIONS CPUS\n", stderr);
    return 2;
  }
  try {
    use_cpus(arguments[5]);
    return start(arguments[1], std::string(arguments[2]) == "near" ? Role::near : Role::far, arguments[3],
                 Order(arguments[4]));
  } catch (const std::exception& error) {
    say(Answer().add_text("error", error.what()));
    return 1;
  }
}
