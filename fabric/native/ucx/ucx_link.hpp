// UCX as a link of the engine: a connection, and who ends it.
//
// Engine thread only, but for the constructor. UCX takes milliseconds to let go of its devices: a connection is ended on
// a thread of its own, so that the loss of one peer is no pause for the others. What it was to send stays alive till then.
#pragma once

#include <memory>

#include "ucx/ucx_connection.hpp"

namespace fabric::ucx {

class UcxLink final : public Link {
 public:
  /// Takes the socket. @param why empty, or why there is no link
  UcxLink(int fd, u64 session, const Options& options, std::string& why);
  ~UcxLink() override { close(); }
  void post(OutFrame frame) override;
  bool progress(Sink& sink, u64 budget) override;
  int fd() const override { return connection_ == nullptr ? -1 : connection_->fd(); }
  bool wants_write() const override { return false; }  // its descriptor says that, too
  u64 backlog() const override { return connection_ == nullptr ? 0 : connection_->backlog(); }
  LinkCapabilities capabilities() const override;
  LinkSample sample() override;
  void close() override;

 private:
  std::unique_ptr<UcxConnection> connection_;
  LinkSample last_{};                    // of a closed one
};

}  // namespace fabric::ucx
