// One connection over UCX: every frame is one active message, its header sealed as on any link.
//
// One thread at a time: made by one, used by the engine's, ended by the reaper's (ucx_link.hpp). It owns a handshaken socket over which both sides said where their
// workers are; it stays open, and its end is the end of the peer's process. Small bodies come with their message, large
// ones are fetched into buffers of the link and copied from there: a destination may be withdrawn while UCX writes.
// Messages may overtake each other; frames are delivered by their sequence.
#pragma once

#include <deque>
#include <map>

#include "core/memory.hpp"
#include "links/link.hpp"
#include "ucx/address_exchange.hpp"
#include "ucx/ucx_endpoint.hpp"

namespace fabric::ucx {

/// Behind a body that the peer has not fetched, no more than this is sent: what it holds for order is bounded.
inline constexpr u64 kAheadBytesMax = 8 * 1024 * 1024;
inline constexpr u64 kAheadFramesMax = 4096;
inline constexpr u64 kHeldBytesMax = 2 * kAheadBytesMax;  // more than a peer that keeps to that can have us hold
inline constexpr std::size_t kFetchesMax = 4;             // at once, each with a buffer
inline constexpr u64 kGapNs = 100'000'000;                // a frame that others overtook this long ago does not come

class UcxConnection final : private Events {
 public:
  /// Takes the socket. @param why empty, or why there is no connection
  UcxConnection(int fd, u64 session, const Options& options, std::string& why);
  ~UcxConnection();                      ///< bounded, some milliseconds; nothing is read from what was posted afterwards
  UcxConnection(const UcxConnection&) = delete;
  UcxConnection& operator=(const UcxConnection&) = delete;
  void post(OutFrame frame);
  bool progress(Sink& sink, u64 budget);
  int fd() const { return epoll_.get(); }
  u64 backlog() const { return backlog_; }
  const LinkSample& counters() const { return counters_; }

 private:
  struct MessageHead { u64 key; wire::FrameHeader frame; };
  struct Sending : Operation { OutFrame frame; u64 size = 0, posted_before = 0; bool done = false; };
  struct Held : Operation {              // came before its turn, or is being fetched
    wire::FrameHeader header;
    std::vector<u8> body;
    void* ticket = nullptr;              // to be fetched
    bool is_fetched = false;             // into a buffer of the pool
    bool is_ready = false;
  };

  void arrived(std::span<const u8> header, std::span<const u8> body) override;
  bool announced(std::span<const u8> header, u64 body_bytes, void* ticket) override;
  void fetched(Operation& fetch, const char* error) override;
  void sent(Operation& send, const char* error) override;
  void failed(const char* error) override;

  bool accept(std::span<const u8> header, u64 body_bytes, wire::FrameHeader& frame);
  Held* hold(const wire::FrameHeader& frame);
  void deliver(const wire::FrameHeader& frame, const u8* body);
  bool deliver_held();
  bool fetch_held();
  void send_waiting();
  bool may_send() const;
  void count_sent();
  bool write();
  bool work();
  bool step();
  bool wait_for_more(bool moved);
  u64 watch_gap();
  void look_at_descriptors();
  void look_at_socket();
  void exchange_addresses();
  void watch_worker(bool wanted);
  void wake_in(u64 ns);
  void fail(std::string reason);

  Fd socket_, epoll_, timer_;
  AddressExchange exchange_;
  Endpoint endpoint_{*this};
  u64 session_, key_ = 0, seq_out_ = 0, next_in_ = 1, backlog_ = 0, posted_ = 0;
  std::deque<OutFrame> out_;             // sealed, not given to UCX
  std::deque<Sending> sending_;          // given to UCX, in order; the front is not done
  std::map<u64, Held> held_;             // by sequence
  u64 held_bytes_ = 0, gap_since_ns_ = 0, gap_at_ = 0, backoff_ns_ = 0;
  std::size_t fetches_ = 0, to_fetch_ = 0;
  std::vector<std::vector<u8>> buffers_; // free ones
  Sink* sink_ = nullptr;                 // in `progress`
  u64 budget_ = 0;                       // what it may still deliver
  std::string failure_;
  bool connected_ = false, ended_ = false, broken_ = false, closing_ = false;
  bool armed_ = false, watches_worker_ = false, watches_writing_ = false;
  LinkSample counters_{};
};

}  // namespace fabric::ucx
