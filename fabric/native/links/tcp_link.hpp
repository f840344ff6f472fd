// TCP between two engines: non-blocking, gathered writes, payload received into its destination.
//
// Engine thread only. Takes a connected, handshaken socket and owns it. A connection never carries
// more unsent bytes in the kernel than TCP_NOTSENT_LOWAT, so that what is posted first leaves soon.
#pragma once

#include <deque>

#include "core/memory.hpp"
#include "links/link.hpp"

namespace fabric {

inline constexpr u32 kTcpNotSentLowatBytes = 128 * 1024;
inline constexpr u32 kTcpNotSentLowatBulkBytes = 1024 * 1024;  // a writer that is woken for every 128 KiB takes twice the time

class TcpLink final : public Link {
 public:
  TcpLink(int fd, u64 session, u32 notsent_lowat_bytes = kTcpNotSentLowatBytes);
  ~TcpLink() override { close(); }
  void post(OutFrame frame) override;
  bool progress(Sink& sink, u64 budget) override;
  int fd() const override { return fd_.get(); }
  bool wants_write() const override { return !out_.empty(); }
  u64 backlog() const override { return backlog_; }
  LinkCapabilities capabilities() const override;
  LinkSample sample() override;
  void close() override;

 private:
  enum class Step : u8 { again, idle, broken };
  struct Pending { wire::FrameHeader header; OutFrame frame; u64 size, done = 0; };

  Step write_some(Sink& sink);
  Step account_written(Sink& sink, u64 bytes);
  Step read_some(Sink& sink, u64& budget);
  Step fill_buffer(Sink& sink, u64& budget);
  Step fill_body(Sink& sink, u64& budget);
  Step parse_buffer(Sink& sink);
  Step take_body_from_buffer(Sink& sink);
  Step finish_chunk(Sink& sink);
  Step fail(Sink& sink, std::string reason);
  Step received(Sink& sink, long count, u64 asked, u64& budget);

  Fd fd_;
  u64 session_, seq_in_ = 0, seq_out_ = 0, backlog_ = 0, acked_before_ = 0;
  std::deque<Pending> out_;
  std::vector<u8> buffer_;
  std::size_t begin_ = 0, end_ = 0;      // unread bytes of buffer_
  wire::FrameHeader current_{};          // the chunk being received
  bool in_body_ = false, scattered_ = false, broken_ = false;
  bool drained_ = false;                 // the last read took all there was
  u64 body_done_ = 0;
  LinkSample counters_{};
};

}  // namespace fabric
