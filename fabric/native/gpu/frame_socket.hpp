// Frames over a socket, without an opinion about them: headers sealed and checked, bodies whole. For links whose large
// bodies go elsewhere, so one copy of a body is no matter here.
//
// Engine thread only. Owns the socket. Frames of the link's own have `kOwnFrame` in their flags, which no other has.
#pragma once

#include <deque>
#include <functional>

#include "core/memory.hpp"
#include "links/link.hpp"

namespace fabric::gpu {

inline constexpr u8 kOwnFrame = 0x80;

class FrameSocket {
 public:
  FrameSocket(int fd, u64 session);
  /// Its header's sequence is the caller's; `frame.body` stays alive through `keep` until `sent`.
  void put(OutFrame frame);
  std::string write(LinkSample& counters, const std::function<void(u64 cookie)>& sent);
  bool wants_write() const { return !out_.empty(); }
  u64 unsent() const { return unsent_; }
  /// Reads what there is, once. @return why it ends, or empty
  std::string read(u64& budget, LinkSample& counters);
  /// The next whole frame; `body` until the next call of either.
  std::string next(bool& is_one, wire::FrameHeader& header, std::span<const u8>& body);
  bool is_drained() const { return is_drained_; }
  int fd() const { return fd_.get(); }
  Fd take() { return std::move(fd_); }

 private:
  struct Pending { OutFrame frame; u64 size, done; };
  Fd fd_;
  u64 session_, unsent_ = 0;
  std::deque<Pending> out_;
  std::vector<u8> buffer_;
  std::size_t begin_ = 0, end_ = 0;
  bool is_drained_ = false;
};

}  // namespace fabric::gpu
