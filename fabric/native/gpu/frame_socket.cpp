#include "gpu/frame_socket.hpp"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace fabric::gpu {
namespace {

constexpr std::size_t kBufferBytes = 256 * 1024;
constexpr std::size_t kBufferBytesMax = wire::kChunkBytesMax + wire::kFrameHeaderBytesMax + kBufferBytes;
constexpr int kGatherMax = 64;

bool is_later() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

}  // namespace

FrameSocket::FrameSocket(int fd, u64 session) : fd_(fd), session_(session), buffer_(kBufferBytes) {
  ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
  const int one = 1;  // fails harmlessly on a socket pair, which tests use
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

void FrameSocket::put(OutFrame frame) {
  frame.header.session = session_;
  frame.header.body_len = frame.body_len;
  wire::seal_header(frame.header);
  const u64 size = wire::kFrameHeaderBytes + frame.body_len;
  unsent_ += size;
  out_.push_back({std::move(frame), size, 0});
}

std::string FrameSocket::write(LinkSample& counters, const std::function<void(u64 cookie)>& sent) {
  while (!out_.empty()) {
    iovec gather[kGatherMax];
    int count = 0;
    for (auto it = out_.begin(); it != out_.end() && count + 2 <= kGatherMax; ++it) {
      const u64 head = wire::kFrameHeaderBytes, skip = it->done > head ? it->done - head : 0;
      if (it->done < head) gather[count++] = {reinterpret_cast<u8*>(&it->frame.header) + it->done, std::size_t(head - it->done)};
      const u8* body = it->frame.owned.empty() ? it->frame.body : it->frame.owned.data();
      if (it->frame.body_len > skip) gather[count++] = {const_cast<u8*>(body) + skip, std::size_t(it->frame.body_len - skip)};
    }
    msghdr message{};
    message.msg_iov = gather;
    message.msg_iovlen = static_cast<std::size_t>(count);
    const ssize_t written = ::sendmsg(fd_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (written < 0) return is_later() ? std::string{} : std::string("send: ") + std::strerror(errno);
    counters.bytes_out += static_cast<u64>(written);
    unsent_ -= static_cast<u64>(written);
    for (u64 left = static_cast<u64>(written); !out_.empty();) {
      Pending& front = out_.front();
      const u64 part = std::min(left, front.size - front.done);
      front.done += part;
      left -= part;
      if (front.done < front.size) break;
      const u64 cookie = front.frame.cookie;
      out_.pop_front();
      if (cookie != 0) sent(cookie);
    }
  }
  return {};
}

std::string FrameSocket::read(u64& budget, LinkSample& counters) {
  if (begin_ > 0) {
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  if (end_ == buffer_.size()) buffer_.resize(std::min(2 * buffer_.size(), kBufferBytesMax));
  const std::size_t room = buffer_.size() - end_;
  const ssize_t count = ::recv(fd_.get(), buffer_.data() + end_, room, MSG_DONTWAIT);
  is_drained_ = count < static_cast<ssize_t>(room);
  if (count == 0) return "closed by peer";
  if (count < 0) return is_later() ? std::string{} : std::string("recv: ") + std::strerror(errno);
  end_ += static_cast<std::size_t>(count);
  counters.bytes_in += static_cast<u64>(count);
  budget -= std::min<u64>(budget, static_cast<u64>(count));
  return {};
}

std::string FrameSocket::next(bool& is_one, wire::FrameHeader& header, std::span<const u8>& body) {
  is_one = false;
  u32 header_bytes = 0;
  const wire::Parse parse = wire::parse_header({buffer_.data() + begin_, end_ - begin_}, header, header_bytes);
  if (parse == wire::Parse::more) return {};
  if (parse != wire::Parse::ok) return std::string("peer protocol: ") + wire::name(parse);
  if (header.session != session_) return "peer protocol: frame of another session";
  if (end_ - begin_ < u64{header_bytes} + header.body_len) return {};
  body = {buffer_.data() + begin_ + header_bytes, header.body_len};
  begin_ += header_bytes + header.body_len;
  is_one = true;
  return {};
}

}  // namespace fabric::gpu
