#include "ucx/ucx_link.hpp"

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

namespace fabric::ucx {
namespace {

/// Ends connections, one after another. Its thread begins with the first and waits for what is left when the process ends.
class Reaper {
 public:
  static Reaper& instance() {
    static Reaper reaper;
    return reaper;
  }
  void take(std::unique_ptr<UcxConnection> connection) {
    std::lock_guard guard(lock_);
    ending_.push_back(std::move(connection));
    if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
    wake_.notify_one();
  }
  ~Reaper() {
    {
      std::lock_guard guard(lock_);
      is_over_ = true;
    }
    wake_.notify_one();
    if (thread_.joinable()) thread_.join();
  }

 private:
  void run() {
    std::unique_lock guard(lock_);
    for (;;) {
      wake_.wait(guard, [this] { return is_over_ || !ending_.empty(); });
      if (ending_.empty()) return;
      std::unique_ptr<UcxConnection> connection = std::move(ending_.front());
      ending_.pop_front();
      guard.unlock();
      connection.reset();
      guard.lock();
    }
  }

  std::mutex lock_;
  std::condition_variable wake_;
  std::deque<std::unique_ptr<UcxConnection>> ending_;
  bool is_over_ = false;
  std::thread thread_;
};

}  // namespace

UcxLink::UcxLink(int fd, u64 session, const Options& options, std::string& why)
    : connection_(std::make_unique<UcxConnection>(fd, session, options, why)) {}

void UcxLink::post(OutFrame frame) {
  if (connection_ != nullptr) connection_->post(std::move(frame));
}

bool UcxLink::progress(Sink& sink, u64 budget) {
  return connection_ != nullptr && connection_->progress(sink, budget);
}

LinkCapabilities UcxLink::capabilities() const {
  return {"ucx", true, false, 1u << u32(MemoryKind::host), wire::kChunkBytesMax};
}

LinkSample UcxLink::sample() { return connection_ == nullptr ? last_ : connection_->counters(); }

void UcxLink::close() {
  if (connection_ == nullptr) return;
  last_ = connection_->counters();
  Reaper::instance().take(std::move(connection_));
}

}  // namespace fabric::ucx
