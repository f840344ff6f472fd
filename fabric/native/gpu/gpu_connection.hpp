// One connection whose large bodies go over GPUs: order, turns of slots, deadlines. How they go is a BodyPath's matter.
//
// One thread at a time. Everything but large bodies goes over the handshaken socket, which also tells of the peer's end. A
// large frame waits for a slot, is staged into it, and is told of once it lies there; frames behind it wait. The reader
// copies it out, compares it with what it was told, hands it over and gives the slot back. Nothing waits in the driver.
#pragma once

#include "gpu/body_path.hpp"
#include "gpu/frame_socket.hpp"

namespace fabric::gpu {

inline constexpr u32 kSmallBytesMax = wire::kControlBodyBytesMax;  // bodies up to this go over the socket
inline constexpr u64 kHeldBytesMax = 2 * 1024 * 1024;    // of small frames behind a large one; then no more is read
inline constexpr u64 kWatchNs = 50'000'000;              // between looks at work that is not done

class GpuConnection {
 public:
  /// Takes the socket. @param why empty, or why there is no connection
  GpuConnection(int fd, u64 session, const PathOptions& options, std::string& why);
  GpuConnection(const GpuConnection&) = delete;
  GpuConnection& operator=(const GpuConnection&) = delete;
  void post(OutFrame frame);
  bool progress(Sink& sink, u64 budget);
  int fd() const { return epoll_.get(); }
  u64 backlog() const { return backlog_; }
  const LinkSample& counters() const { return counters_; }

  /// What has to outlive the connection, till the peer has let go of it.
  struct Remains { std::unique_ptr<BodyPath> path; Fd socket, event; };
  Remains end();

 private:
  struct Outgoing { OutFrame frame; u64 size; u32 slot; bool is_large; };
  struct Held { wire::FrameHeader header; std::vector<u8> body; u32 slot, length; u64 generation; bool is_begun; };
  struct Told { u32 slot, length; u64 generation; };
  struct Slot { u64 generation = 0; bool is_used = false; };
  static constexpr u32 kNoSlot = ~0u;

  bool work(bool may_read);
  void look_at_descriptors();
  void make_ready();
  void stage_waiting();
  u32 stage(Outgoing& outgoing);
  void send_waiting();
  void send_own(u64 kind, std::span<const u8> body);
  void read();
  void take(const wire::FrameHeader& header, std::span<const u8> body);
  void take_own(const wire::FrameHeader& header, std::span<const u8> body);
  void take_told(wire::FrameHeader header, std::span<const u8> body);
  void take_back(std::span<const u8> body);
  void fetch_held();
  bool deliver_held();
  void deliver(const wire::FrameHeader& header, const u8* body, u32 length);
  void watch();
  void wake_in(u64 ns);
  void fail(std::string reason);
  bool is_failed() const { return !failure_.empty(); }

  Fd epoll_, event_, timer_;
  FrameSocket socket_;
  std::unique_ptr<BodyPath> path_;
  u64 deadline_ns_, began_ns_, seq_out_ = 0, seq_in_ = 0, backlog_ = 0, held_bytes_ = 0, wakes_ns_ = 0, budget_ = 0;
  std::deque<Outgoing> out_;
  std::deque<Held> held_;                 // in order, behind the first whose body is not here
  Slot mine_[kSlots], theirs_[kSlots];
  bool is_met_ = false, is_ready_ = false, is_ended_ = false, is_broken_ = false, is_timed_ = false;
  u32 watched_ = 0;
  Sink* sink_ = nullptr;                  // in `progress`
  std::string failure_;
  LinkSample counters_{};
};

}  // namespace fabric::gpu
