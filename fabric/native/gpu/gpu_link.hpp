// GPU memory as a link of the engine: a connection, and who ends it.
//
// Engine thread only, but for the constructor, which allocates on the GPU. A closed connection goes to the keeper of
// remains: what the peer may still read is freed once the peer has closed its side, or has ended.
#pragma once

#include "gpu/gpu_connection.hpp"

namespace fabric::gpu {

inline constexpr std::size_t kRemainsMax = 64;           // connections that peers do not let go of; then no more are made

class GpuLink final : public Link {
 public:
  /// Takes the socket. @param why empty, or why there is no link
  GpuLink(int fd, u64 session, const PathOptions& options, std::string& why);
  ~GpuLink() override { close(); }
  void post(OutFrame frame) override;
  bool progress(Sink& sink, u64 budget) override;
  int fd() const override { return connection_ == nullptr ? -1 : connection_->fd(); }
  bool wants_write() const override { return false; }  // its descriptor says that, too
  u64 backlog() const override { return connection_ == nullptr ? 0 : connection_->backlog(); }
  LinkCapabilities capabilities() const override;
  LinkSample sample() override;
  void close() override;

 private:
  const bool is_nccl_;
  std::unique_ptr<GpuConnection> connection_;
  LinkSample last_{};                    // of a closed one
};

/// Closed connections of this process whose memory is kept for a peer that has not let go of it.
std::size_t remains();

}  // namespace fabric::gpu
