// Links over GPU memory between two real processes, on the fakes of CUDA and NCCL: bytes, deaths, stale memory, work that
// comes late, fails or never comes. What the fakes count has to be nothing at the end of each.
//
// The other process is this program again: `gpu_link_test peer FD KIND DEVICE`; it sends every chunk back.
#include <dlfcn.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <functional>

#include "core/clock.hpp"
#include "gpu/gpu_link.hpp"
#include "gpu/ipc_path.hpp"
#include "tests/check.hpp"

// The leak checker crashes on threads of a library that was opened late; what the fakes count is checked instead.
extern "C" const char* __asan_default_options();
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }

namespace fabric::gpu {
namespace {

constexpr u64 kSession = 0x5E5510, kBudget = 4 * 1024 * 1024, kWaitNs = 30'000'000'000;
constexpr u32 kChunk = wire::kChunkBytesMax;
using wire::FrameType;

const char* library(bool is_nccl) { return is_nccl ? FAKE_NCCL : FAKE_CUDA; }

template <class Function>
Function* control(bool is_nccl, const char* name) {
  void* opened = ::dlopen(library(is_nccl), RTLD_NOW | RTLD_LOCAL);
  CHECK(opened != nullptr);
  auto* found = reinterpret_cast<Function*>(::dlsym(opened, name));
  CHECK(found != nullptr);
  return found;
}
long live(bool is_nccl, int kind) { return control<long(int)>(is_nccl, "fake_cuda_live")(kind); }
void delay_us(bool is_nccl, std::int64_t us) { control<void(std::int64_t)>(is_nccl, "fake_cuda_delay_us")(us); }
void stall(bool is_nccl, bool is_stalled) { control<void(int)>(is_nccl, "fake_cuda_stall")(is_stalled); }

std::vector<u8> pattern(u64 n, u32 size) {
  std::vector<u8> bytes(size);
  for (u32 i = 0; i < size; ++i) bytes[i] = u8(n * 131 + i * 7 + (i >> 8));
  return bytes;
}

class Keep final : public Sink {
 public:
  u8* place(const wire::FrameHeader& header) override {
    memory.resize(header.body_len);
    return memory.data();
  }
  bool deliver(const wire::FrameHeader& header, const u8* body) override {
    if (on_frame) on_frame(header, body);
    ++taken;
    return true;
  }
  void sent(u64) override { ++cookies; }
  void broken(const std::string& why) override { reason = why; }
  std::function<void(const wire::FrameHeader&, const u8*)> on_frame;
  std::vector<u8> memory;
  std::string reason;
  u64 taken = 0, cookies = 0, calls = 0;
};

PathOptions options_of(const std::string& kind, int device, u64 deadline_ns = kWaitNs) {
  const bool is_nccl = kind == "nccl";
  return {kind, library(is_nccl), FAKE_NCCL, device, deadline_ns};
}

std::unique_ptr<GpuLink> make(int fd, const PathOptions& options) {
  std::string why;
  auto link = std::make_unique<GpuLink>(fd, kSession, options, why);
  if (!why.empty()) std::fprintf(stderr, "%s\n", why.c_str());
  CHECK(why.empty());
  return link;
}

void post_chunk(Link& link, u64 n, u32 size) {
  OutFrame frame;
  frame.header.type = u8(FrameType::chunk);
  frame.header.a = n;
  frame.owned = pattern(n, size);
  frame.cookie = n + 1;
  link.post(std::move(frame));
}

/// Sleeps on the descriptor, as an engine does. @return false at the deadline
bool run_until(Link& link, Keep& sink, const std::function<bool()>& is_done, u64 wait_ns = kWaitNs) {
  const u64 until = monotonic_ns() + wait_ns;
  while (!is_done()) {
    if (monotonic_ns() > until) return false;
    ++sink.calls;
    if (sink.reason.empty() && link.progress(sink, kBudget)) continue;
    if (is_done()) return true;
    pollfd polled{link.fd(), POLLIN, 0};
    ::poll(&polled, sink.reason.empty() ? 1u : 0u, 50);
  }
  return true;
}

/// This program again, at the other end of a socket; killed at the end if it still runs.
struct Peer {
  Peer(const std::string& kind, int device) {
    int fd[2];
    CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd) == 0);
    const std::string there = std::to_string(::dup(fd[1])), number = std::to_string(device);
    pid = ::fork();
    if (pid == 0) {
      ::execl("/proc/self/exe", "gpu_link_test", "peer", there.c_str(), kind.c_str(), number.c_str(), nullptr);
      ::_exit(127);
    }
    ::close(fd[1]);
    ::close(std::stoi(there));
    socket = fd[0];
  }
  ~Peer() { end(SIGKILL); }
  int end(int signal) {
    if (pid <= 0) return 0;
    if (signal != 0) ::kill(pid, signal);
    int status = 0;
    CHECK(::waitpid(pid, &status, 0) == pid);
    pid = 0;
    return status;
  }
  pid_t pid = 0;
  int socket = -1;
};

bool eventually(const std::function<bool()>& holds) {
  for (const u64 until = monotonic_ns() + kWaitNs; monotonic_ns() < until; ::usleep(1000))
    if (holds()) return true;
  return false;
}

void check_nothing_is_left(bool is_nccl) {
  CHECK(eventually([] { return remains() == 0; }));
  for (int kind = 0; kind < 3; ++kind) CHECK(live(is_nccl, kind) == 0);
}

int echo(int fd, const PathOptions& options) {
  auto link = make(fd, options);
  Keep sink;
  sink.on_frame = [&](const wire::FrameHeader& header, const u8* body) {
    OutFrame frame;
    frame.header.type = header.type;
    frame.header.a = header.a;
    frame.owned.assign(body, body + header.body_len);
    frame.body_len = header.body_len;
    link->post(std::move(frame));
  };
  run_until(*link, sink, [&] { return !sink.reason.empty(); });
  link->close();
  const bool is_clean = eventually([] { return remains() == 0; });
  const bool is_end = sink.reason == "closed by peer" || sink.reason.find("remote process exited") != std::string::npos;
  if (!is_end) std::fprintf(stderr, "peer: %s\n", sink.reason.c_str());
  return is_end && is_clean ? 0 : 1;
}

// ------------------------------------------------------------------ what must hold
void chunks_go_there_and_back_between_processes(const std::string& kind, std::int64_t late_us) {
  const bool is_nccl = kind == "nccl";
  Peer peer(kind, 1);
  auto link = make(peer.socket, options_of(kind, 0));
  delay_us(is_nccl, late_us);
  const u32 sizes[] = {kChunk, 100, kSmallBytesMax, kSmallBytesMax + 1, 0, 300'000, kChunk - 1};
  Keep sink;
  sink.on_frame = [&](const wire::FrameHeader& header, const u8* body) {
    const u32 size = sizes[header.a % std::size(sizes)];
    CHECK(header.a == sink.taken && header.body_len == size);  // in order, once
    CHECK(size == 0 || std::memcmp(body, pattern(header.a, size).data(), size) == 0);
  };
  constexpr u64 kFrames = 70;
  for (u64 n = 0; n < kFrames; ++n) post_chunk(*link, n, sizes[n % std::size(sizes)]);
  CHECK(run_until(*link, sink, [&] { return sink.taken == kFrames || !sink.reason.empty(); }));
  if (!sink.reason.empty()) std::fprintf(stderr, "%s\n", sink.reason.c_str());
  CHECK(sink.reason.empty() && sink.cookies == kFrames && link->backlog() == 0);
  CHECK(live(is_nccl, 2) == (is_nccl ? 0 : 1));  // its memory is opened once
  delay_us(is_nccl, 0);
  link->close();
  CHECK(peer.end(0) == 0);
  check_nothing_is_left(is_nccl);
}

void a_killed_peer_is_noticed_and_leaves_nothing(const std::string& kind) {
  const bool is_nccl = kind == "nccl";
  Peer peer(kind, 1);
  auto link = make(peer.socket, options_of(kind, 0));
  Keep sink;
  for (u64 n = 0; n < 40; ++n) post_chunk(*link, n, kChunk);
  CHECK(run_until(*link, sink, [&] { return sink.taken >= 3 || !sink.reason.empty(); }));
  peer.end(SIGKILL);
  CHECK(run_until(*link, sink, [&] { return !sink.reason.empty(); }));
  link->close();
  check_nothing_is_left(is_nccl);
}

void memory_is_kept_for_a_peer_that_is_stopped() {
  Peer peer("cuda_ipc", 1);
  auto link = make(peer.socket, options_of("cuda_ipc", 0));
  Keep sink;
  post_chunk(*link, 0, kChunk);
  CHECK(run_until(*link, sink, [&] { return sink.taken == 1; }));
  ::kill(peer.pid, SIGSTOP);
  link->close();
  CHECK(eventually([] { return live(false, 2) == 0; }));  // what is the peer's is let go of at once
  ::usleep(100'000);                                      // time to do wrong in
  CHECK(remains() == 1 && live(false, 0) == 1);           // what it may read is not
  ::kill(peer.pid, SIGCONT);
  CHECK(peer.end(0) == 0);
  check_nothing_is_left(false);
}

void work_that_never_ends_breaks_the_link_without_busy_waiting() {
  Peer peer("cuda_ipc", 1);
  auto link = make(peer.socket, options_of("cuda_ipc", 0, 300'000'000));
  Keep sink;
  post_chunk(*link, 0, 10);
  CHECK(run_until(*link, sink, [&] { return sink.taken == 1; }));
  stall(false, true);
  post_chunk(*link, 1, kChunk);
  sink.calls = 0;
  CHECK(run_until(*link, sink, [&] { return !sink.reason.empty(); }));
  CHECK(sink.reason == "cuda_ipc: a copy on GPU 0 is not done after 300 ms");
  CHECK(sink.calls < 40);                                 // of 50 ms and the looks at the clock: not a loop
  link->close();
  ::usleep(50'000);
  CHECK(remains() == 1 && live(false, 1) == 2);           // the GPU may still write there
  stall(false, false);
  CHECK(peer.end(0) == 0);
  check_nothing_is_left(false);
}

void a_gpu_that_fails_is_named() {
  Peer peer("cuda_ipc", 1);
  auto link = make(peer.socket, options_of("cuda_ipc", 0));
  Keep sink;
  post_chunk(*link, 0, 10);
  CHECK(run_until(*link, sink, [&] { return sink.taken == 1; }));
  auto* fail = control<void(int)>(false, "fake_cuda_fail_copies");
  fail(700);
  post_chunk(*link, 1, kChunk);
  CHECK(run_until(*link, sink, [&] { return !sink.reason.empty(); }));
  CHECK(sink.reason == "cuda_ipc: GPU 0: the stream: CUDA_ERROR_ILLEGAL_ADDRESS (700)");
  fail(0);
}

/// A slot that was used again, a handle whose memory is freed, and one of a process that is gone: refused, never data.
void stale_memory_is_never_data() {
  Fd event(::dup(2));
  IpcPath one, two;
  CHECK(one.open(options_of("cuda_ipc", 0), event.get()).empty() && two.open(options_of("cuda_ipc", 1), event.get()).empty());
  CHECK(one.meet(two.introduction()).empty() && two.meet(one.introduction()).empty());
  const std::vector<u8> body = pattern(1, kChunk);
  CHECK(one.stage(2, 7, body.data(), kChunk).empty() && eventually([&] { return one.staged(2); }));
  const u8* read = nullptr;
  const auto fetched = [&](u64 generation, u32 length) {
    CHECK(two.fetch(2, generation, length).empty());
    CHECK(eventually([&] { bool is_done; return two.fetched(2, is_done).empty() && is_done; }));
    return two.body(2, generation, length, read);
  };
  CHECK(fetched(7, kChunk).empty() && std::memcmp(read, body.data(), kChunk) == 0);
  CHECK(fetched(6, kChunk) == "cuda_ipc: slot 2 does not hold generation 6 that it was told to hold: the peer's memory is another's by now");
  CHECK(!fetched(7, kChunk - 1).empty());
  CHECK(!two.meet({}).empty() && !two.meet(std::vector<u8>(8)).empty());
}

void a_handle_of_memory_that_is_gone_is_refused() {
  Fd event(::dup(2));
  std::vector<u8> introduction;
  {
    IpcPath gone;
    CHECK(gone.open(options_of("cuda_ipc", 0), event.get()).empty());
    introduction = gone.introduction();
  }
  IpcPath path;
  CHECK(path.open(options_of("cuda_ipc", 0), event.get()).empty());
  introduction[8] ^= 1;                                   // of another process, then
  const std::string why = path.meet(introduction);
  CHECK(why.find("the peer's memory cannot be opened (cuIpcOpenMemHandle: CUDA_ERROR_INVALID_CONTEXT (201))") != std::string::npos);
  introduction[offsetof(CuIpcHandle, bytes) + introduction.size() - sizeof(CuIpcHandle)] ^= 1;
  CHECK(path.meet(introduction).find("CUDA_ERROR_INVALID_VALUE (1)") != std::string::npos);
}

void a_rank_that_never_joins_breaks_the_link_in_time() {
  control<void(int)>(true, "fake_nccl_join_never")(1);
  Peer peer("nccl", 1);
  auto link = make(peer.socket, options_of("nccl", 0, 300'000'000));
  Keep sink;
  post_chunk(*link, 0, kChunk);
  CHECK(run_until(*link, sink, [&] { return !sink.reason.empty(); }));
  CHECK(sink.reason == "nccl: the peer's GPU was not joined within 300 ms");
  link->close();
  CHECK(peer.end(0) == 0);
  check_nothing_is_left(true);
  control<void(int)>(true, "fake_nccl_join_never")(0);
}

void one_gpu_is_no_two_ranks() {
  Peer peer("nccl", 0);
  auto link = make(peer.socket, options_of("nccl", 0));
  Keep sink;
  CHECK(run_until(*link, sink, [&] { return !sink.reason.empty(); }));
  CHECK(sink.reason.find("both ends use the same GPU") != std::string::npos);
}

void what_is_not_here_is_said() {
  std::string why;
  const auto refused = [&](PathOptions options, const char* part) {
    int fd[2];
    CHECK(::socketpair(AF_UNIX, SOCK_STREAM, 0, fd) == 0);
    { GpuLink link(fd[0], kSession, options, why); }
    u8 byte;
    CHECK(why.find(part) != std::string::npos && ::recv(fd[1], &byte, 1, 0) == 0);  // the socket was taken
    ::close(fd[1]);
  };
  refused(options_of("cuda_ipc", 9), "cuda_ipc: there is no GPU 9: the driver shows 2");
  refused({"cuda_ipc", "libno-such.so.1", "", 0, kWaitNs}, "libno-such.so.1");
  refused({"nccl", FAKE_CUDA, FAKE_CUDA, 0, kWaitNs}, "has no ncclGetVersion");
  refused({"warp", FAKE_CUDA, "", 0, kWaitNs}, "no link over GPU memory called 'warp'");
}

void lies_of_a_peer_break_the_link() {
  const auto broken_by = [](u8 flags, u64 sequence, u64 a, std::vector<u8> body) {
    int fd[2];
    CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd) == 0);
    auto link = make(fd[0], options_of("cuda_ipc", 0));
    FrameSocket peer(fd[1], kSession);
    OutFrame frame;
    frame.header.type = u8(FrameType::chunk);
    frame.header.flags = flags;
    frame.header.sequence = sequence;
    frame.header.a = a;
    frame.body_len = static_cast<u32>(body.size());
    frame.owned = std::move(body);
    peer.put(std::move(frame));
    LinkSample counters{};
    CHECK(peer.write(counters, [](u64) {}).empty());
    Keep sink;
    CHECK(run_until(*link, sink, [&] { return !sink.reason.empty(); }));
    CHECK(sink.taken == 0);
    return sink.reason;
  };
  CHECK(broken_by(kOwnFrame, 0, 9, {}).find("does not belong here") != std::string::npos);
  CHECK(broken_by(kOwnFrame, 0, 2, std::vector<u8>(16)).find("gives back a slot") != std::string::npos);
  CHECK(broken_by(kOwnFrame, 0, 1, std::vector<u8>(100)).find("introduction") != std::string::npos);
  CHECK(broken_by(kOwnFrame, 1, 0, std::vector<u8>(16)).find("told of a body") != std::string::npos);
  CHECK(broken_by(0, 2, 0, {}).find("gap in frame sequence") != std::string::npos);
}

void run_all() {
  what_is_not_here_is_said();
  stale_memory_is_never_data();
  a_handle_of_memory_that_is_gone_is_refused();
  lies_of_a_peer_break_the_link();
  for (const char* kind : {"cuda_ipc", "nccl"}) {
    chunks_go_there_and_back_between_processes(kind, 0);
    chunks_go_there_and_back_between_processes(kind, 500);
    a_killed_peer_is_noticed_and_leaves_nothing(kind);
  }
  memory_is_kept_for_a_peer_that_is_stopped();
  work_that_never_ends_breaks_the_link_without_busy_waiting();
  a_rank_that_never_joins_breaks_the_link_in_time();
  one_gpu_is_no_two_ranks();
  a_gpu_that_fails_is_named();
}

}  // namespace
}  // namespace fabric::gpu

int main(int argc, char** argv) {
  using namespace fabric::gpu;
  if (argc == 5 && std::string(argv[1]) == "peer") return echo(std::stoi(argv[2]), options_of(argv[3], std::stoi(argv[4])));
  run_all();
  return 0;
}
