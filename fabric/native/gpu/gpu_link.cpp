#include "gpu/gpu_link.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <mutex>
#include <thread>

#include "core/clock.hpp"

namespace fabric::gpu {
namespace {

constexpr int kLookMsMax = 200;                          // at work of the GPU that does not end; soon at first
constexpr u64 kRoomNs = 1'000'000'000;                   // what a new connection waits for old ones to be gone

/// Keeps what closed connections leave. In this order: our copies end, our mapping of the peer's memory goes, the peer is
/// told (our half of the socket), the peer tells us (its half, or its death), our memory goes. Its thread begins with the
/// first and never ends: a process that ends frees all of it.
class Keeper {
 public:
  static Keeper& instance() {
    static Keeper& keeper = *new Keeper;
    return keeper;
  }
  std::size_t count() const { return count_.load(std::memory_order_acquire); }
  void take(GpuConnection::Remains remains) {
    std::lock_guard guard(lock_);
    count_.fetch_add(1, std::memory_order_acq_rel);
    fresh_.push_back({std::move(remains), false});
    if (!is_running_) std::thread([this] { run(); }).detach();
    is_running_ = true;
    ::eventfd_write(wake_.get(), 1);
  }

 private:
  struct Kept { GpuConnection::Remains remains; bool is_told; };

  void run() {
    for (int look_ms = 1;;) {
      {
        std::lock_guard guard(lock_);
        if (!fresh_.empty()) look_ms = 1;
        for (Kept& each : fresh_) kept_.push_back(std::move(each));
        fresh_.clear();
      }
      bool is_working = false;
      for (std::size_t i = 0; i < kept_.size();) {
        if (is_over(kept_[i])) {
          kept_.erase(kept_.begin() + static_cast<long>(i));
          count_.fetch_sub(1, std::memory_order_acq_rel);
          continue;
        }
        is_working |= !kept_[i++].is_told;
      }
      look_ms = is_working ? std::min(2 * look_ms, kLookMsMax) : 1;
      wait(is_working ? look_ms : -1);
    }
  }

  static bool is_over(Kept& kept) {
    if (!kept.is_told) {
      if (!kept.remains.path->retire()) return false;
      ::shutdown(kept.remains.socket.get(), SHUT_WR);
      kept.is_told = true;
    }
    u8 scratch[4096];
    ssize_t count;
    while ((count = ::recv(kept.remains.socket.get(), scratch, sizeof scratch, MSG_DONTWAIT)) > 0) {}
    return count == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
  }

  void wait(int wait_ms) {
    std::vector<pollfd> polled{{wake_.get(), POLLIN, 0}};
    for (const Kept& each : kept_)
      polled.push_back({each.is_told ? each.remains.socket.get() : each.remains.event.get(), POLLIN, 0});
    ::poll(polled.data(), polled.size(), wait_ms);
    eventfd_t rung;
    ::eventfd_read(wake_.get(), &rung);
    for (const Kept& each : kept_) ::eventfd_read(each.is_told ? -1 : each.remains.event.get(), &rung);
  }

  Fd wake_{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
  std::mutex lock_;
  std::vector<Kept> fresh_, kept_;
  std::atomic<std::size_t> count_{0};
  bool is_running_ = false;
};

}  // namespace

std::size_t remains() { return Keeper::instance().count(); }

GpuLink::GpuLink(int fd, u64 session, const PathOptions& options, std::string& why)
    : is_nccl_(options.kind == "nccl") {
  Fd owned(fd);
  for (const u64 until = monotonic_ns() + kRoomNs; remains() >= kRemainsMax && monotonic_ns() < until;) ::poll(nullptr, 0, 5);
  if (remains() >= kRemainsMax) {
    why = std::to_string(kRemainsMax) + " closed connections are held by peers that do not let go of this side's memory: end those";
    return;
  }
  connection_ = std::make_unique<GpuConnection>(owned.release(), session, options, why);
  if (!why.empty()) connection_.reset();  // nothing was shown to the peer
}

void GpuLink::post(OutFrame frame) {
  if (connection_ != nullptr) connection_->post(std::move(frame));
}

bool GpuLink::progress(Sink& sink, u64 budget) { return connection_ != nullptr && connection_->progress(sink, budget); }

LinkCapabilities GpuLink::capabilities() const {
  return {is_nccl_ ? "nccl" : "cuda_ipc", true, false, 1u << u32(MemoryKind::host), wire::kChunkBytesMax};
}

LinkSample GpuLink::sample() { return connection_ == nullptr ? last_ : connection_->counters(); }

void GpuLink::close() {
  if (connection_ == nullptr) return;
  last_ = connection_->counters();
  Keeper::instance().take(connection_->end());
  connection_.reset();
}

}  // namespace fabric::gpu
