#include "engines.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <memory>
#include <thread>

namespace floors {
namespace {

constexpr int kModuleSide = 0, kEngineSide = 1;

/// Ring → socket: records leave as they lie there.
void pump_out(DuplexMemory* memory, u64 spin_ns, int fd) {
  const auto ring = std::make_unique<RingReader<true>>(&memory->rings[kModuleSide], Patience(memory, kEngineSide, spin_ns));
  while (true) {
    if (ring->is_empty()) ring->wait_for_message();
    const std::span<const u8> records = ring->run();
    send_all(fd, records.data(), records.size());
    ring->consume(records.size());
  }
}

/// Socket → ring.
void pump_in(DuplexMemory* memory, u64 spin_ns, int fd) {
  RingWriter<true> ring(&memory->rings[kEngineSide], Patience(memory, kEngineSide, spin_ns));
  std::vector<u8> buffer(kRingBytes);
  std::size_t filled = 0;
  while (true) {
    const ssize_t came = ::recv(fd, buffer.data() + filled, buffer.size() - filled, 0);
    if (came < 0 && errno == EINTR) continue;
    if (came <= 0) return;
    filled += static_cast<std::size_t>(came);
    std::size_t at = 0;
    while (filled - at >= kRecordHead) {
      u32 length;
      std::memcpy(&length, buffer.data() + at, sizeof length);
      if (filled - at < record_bytes(length)) break;
      ring.put({buffer.data() + at + kRecordHead, length});
      at += record_bytes(length);
    }
    if (at == 0) continue;
    ring.publish();
    std::memmove(buffer.data(), buffer.data() + at, filled - at);
    filled -= at;
  }
}

[[noreturn]] void serve_engine(DuplexMemory* memory, u64 spin_ns, int fd) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  try {
    std::thread([=] {
      try {
        pump_out(memory, spin_ns, fd);
      } catch (const std::exception&) {  // the other engine has gone: so has this one's purpose
        ::_exit(0);
      }
    }).detach();
    pump_in(memory, spin_ns, fd);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "floor: engine: %s\n", error.what());
  }
  ::_exit(0);
}

}  // namespace

EnginesEnd::EnginesEnd(Role role, const std::string& folder, const Order& options)
    : meeting_(role, folder), memfd_(make_memfd(sizeof(DuplexMemory))), memory_(sizeof(DuplexMemory), memfd_.get()),
      duplex_(reinterpret_cast<DuplexMemory*>(memory_.data()), kModuleSide, options.count("spin_us", 0) * 1000) {
  const Fd fd = meeting_.connect_tcp();
  const int one = 1;
  check(::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0, "TCP_NODELAY");
  engine_ = ::fork();
  check(engine_ >= 0, "fork");
  if (engine_ == 0) {
    serve_engine(reinterpret_cast<DuplexMemory*>(memory_.data()), options.count("spin_us", 0) * 1000, fd.get());
  }
}

EnginesEnd::~EnginesEnd() {
  if (engine_ <= 0) return;
  ::kill(engine_, SIGKILL);
  ::waitpid(engine_, nullptr, 0);
}

}  // namespace floors
