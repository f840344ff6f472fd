// Two engines of one process joined by bounded queues: the reference that other links are held to.
//
// Each end belongs to one engine thread; the queues between them are locked. Frames go through the
// same header codec as on a socket, so that a test over inproc tests the wire format too.
#pragma once

#include <deque>
#include <mutex>

#include "core/memory.hpp"
#include "links/link.hpp"

namespace fabric {

inline constexpr u64 kInprocQueueBytes = 1024 * 1024;

class InprocLink final : public Link {
 public:
  struct Wire;  ///< both queues

  InprocLink(std::shared_ptr<Wire> wire, int side, u64 session);
  ~InprocLink() override { close(); }
  static std::shared_ptr<Wire> make_wire();
  void post(OutFrame frame) override;
  bool progress(Sink& sink, u64 budget) override;
  int fd() const override;
  bool wants_write() const override { return false; }  // the eventfd also says that there is room
  u64 backlog() const override { return backlog_; }
  LinkCapabilities capabilities() const override;
  LinkSample sample() override { return counters_; }
  void close() override;

 private:
  using Bytes = std::vector<u8>;
  bool move_out(Sink& sink);
  bool take_in(Sink& sink, Bytes& frame);
  bool fail(Sink& sink, std::string reason);

  std::shared_ptr<Wire> wire_;
  int side_;
  u64 session_, seq_in_ = 0, seq_out_ = 0, backlog_ = 0;
  struct Encoded { Bytes bytes; u64 cookie; bool is_cut; };
  std::deque<Encoded> out_;
  bool broken_ = false, closed_ = false;
  LinkSample counters_{};
};

/// Ids by which the binding hands both ends of a fresh wire to two engines; each id is used once.
std::pair<u64, u64> inproc_make_pair();
std::unique_ptr<Link> inproc_take(u64 id, u64 session);

}  // namespace fabric
