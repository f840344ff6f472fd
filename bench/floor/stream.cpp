#include "stream.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "checksum.hpp"
#include "links/frame.hpp"
#include "links/tcp_link.hpp"

namespace floors {
namespace {

constexpr u64 kSmallTransferBytes = 4 * 1024 * 1024;  // up to here the fabric cuts finer

struct ChunkHead {
  u64 offset;
  u32 bytes;
  u32 crc;
  u8 rest[fabric::wire::kFrameHeaderBytes - 16];
};
static_assert(sizeof(ChunkHead) == fabric::wire::kFrameHeaderBytes);

void set_option(const Fd& fd, int level, int name, int value, const char* what) {
  check(::setsockopt(fd.get(), level, name, &value, sizeof value) == 0, what);
}

bool set_congestion(const Fd& fd, const std::string& name) {
  return ::setsockopt(fd.get(), IPPROTO_TCP, TCP_CONGESTION, name.data(), static_cast<socklen_t>(name.size())) == 0;
}

u64 chunk_bytes(u64 whole) {
  return whole <= kSmallTransferBytes ? fabric::wire::kChunkBytesSmall : fabric::wire::kChunkBytesMax;
}

/// Sends all of `parts`, which are used up.
void gather_all(int fd, iovec* parts, std::size_t count) {
  while (count != 0) {
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = count;
    const ssize_t sent = ::sendmsg(fd, &message, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    check(sent >= 0, "sendmsg");
    auto left = static_cast<std::size_t>(sent);
    for (; count != 0 && left >= parts->iov_len; ++parts, --count) left -= parts->iov_len;
    if (count == 0) return;
    parts->iov_base = static_cast<u8*>(parts->iov_base) + left;
    parts->iov_len -= left;
  }
}

/// Fills `parts` in order; returns when the first `need` bytes are there, with what came in all.
u64 scatter(int fd, u8* body, u64 need, u8* next, u64 next_bytes) {
  u64 done = 0;
  while (done < need) {
    iovec parts[2] = {{body + done, need - done}, {next, next_bytes}};
    const ssize_t came = ::readv(fd, parts, 2);
    if (came < 0 && errno == EINTR) continue;
    check(came >= 0, "readv");
    if (came == 0) throw std::runtime_error("the other half has gone");
    done += static_cast<u64>(came);
  }
  return done;
}

}  // namespace

// ------------------------------------------------------------------ plain streams
StreamEnd::StreamEnd(Role role, const std::string& folder, bool is_tcp)
    : meeting_(role, folder), fd_(is_tcp ? meeting_.connect_tcp() : meeting_.connect_unix(folder)) {
  if (is_tcp) set_option(fd_, IPPROTO_TCP, TCP_NODELAY, 1, "TCP_NODELAY");
}

void StreamEnd::prepare(const Order& order) {
  message_.assign(order.message_bytes(), 0);
  batch_.assign(order.message_bytes() * order.count("batch", 1), 0);
  if (!order.has_arrays()) return;
  array_bytes_ = order.count("size");
  if (memory_.size() != array_bytes_) memory_ = Memory(array_bytes_);
}

void StreamEnd::send_many(std::span<const u8> message, u64 count) {
  std::vector<iovec> parts(count, {const_cast<u8*>(message.data()), message.size()});
  gather_all(fd_.get(), parts.data(), parts.size());
}

u64 StreamEnd::receive_many(u64 most, std::span<const u8>& last) {
  const u64 size = message_.size();
  ssize_t came;
  do came = ::recv(fd_.get(), batch_.data(), most * size, 0);
  while (came < 0 && errno == EINTR);
  check(came >= 0, "recv");
  if (came == 0) throw std::runtime_error("the other half has gone");
  const u64 count = (static_cast<u64>(came) + size - 1) / size;
  receive_all(fd_.get(), batch_.data() + came, count * size - static_cast<u64>(came));
  last = {batch_.data() + (count - 1) * size, size};
  return count;
}

std::span<const u8> StreamEnd::receive_array() {
  receive_all(fd_.get(), memory_.data(), array_bytes_);
  return memory_.part(0, array_bytes_);
}

// ------------------------------------------------------------------ chunks
BulkEnd::BulkEnd(Role role, const std::string& folder, const Order& options)
    : meeting_(role, folder), fd_(meeting_.connect_tcp()), checks_(options.flag("crc")) {
  set_option(fd_, IPPROTO_TCP, TCP_NODELAY, 1, "TCP_NODELAY");
  set_option(fd_, IPPROTO_TCP, TCP_NOTSENT_LOWAT, fabric::kTcpNotSentLowatBulkBytes, "TCP_NOTSENT_LOWAT");
  const std::string congestion = options.text("congestion");
  if (congestion.empty()) {
    set_congestion(fd_, "cubic") || set_congestion(fd_, "reno");
  } else {
    check(set_congestion(fd_, congestion), "TCP_CONGESTION");
  }
  if (options.has("send_buffer")) set_option(fd_, SOL_SOCKET, SO_SNDBUF, int(options.count("send_buffer")), "SO_SNDBUF");
  if (options.has("receive_buffer")) set_option(fd_, SOL_SOCKET, SO_RCVBUF, int(options.count("receive_buffer")), "SO_RCVBUF");
}

void BulkEnd::prepare(const Order& order) {
  message_.assign(order.message_bytes(), 0);
  if (!order.has_arrays()) return;
  array_bytes_ = order.count("size");
  turn_ = 0;
  loans_ = meeting_.role() == Role::far ? 1 : order.text("run") == "bulk" ? 0 : order.count("window", 1);
  if (memory_.size() == array_bytes_ * loans_) return;
  memory_ = Memory();
  memory_ = Memory(array_bytes_ * loans_);
}

void BulkEnd::send_array(std::span<const u8> data) {
  const u64 step = chunk_bytes(data.size());
  for (u64 at = 0; at < data.size(); at += step) {
    const std::span<const u8> body = data.subspan(at, std::min(step, data.size() - at));
    ChunkHead head{at, static_cast<u32>(body.size()), checks_ ? crc32c(body) : 0, {}};
    iovec parts[2] = {{&head, sizeof head}, {const_cast<u8*>(body.data()), body.size()}};
    gather_all(fd_.get(), parts, 2);
  }
}

std::span<const u8> BulkEnd::receive_array() {
  const std::span<u8> array = memory_.part(0, array_bytes_);
  ChunkHead head, next;
  u64 head_bytes = 0;  // of a head that was read along with the body before it
  for (u64 done = 0; done < array.size();) {
    receive_all(fd_.get(), reinterpret_cast<u8*>(&head) + head_bytes, sizeof head - head_bytes);
    if (head.offset != done || head.bytes == 0 || head.bytes > array.size() - done) {
      throw std::runtime_error("a chunk of another transfer came");
    }
    const std::span<u8> body = array.subspan(done, head.bytes);
    done += body.size();
    const u64 ahead = done < array.size() ? sizeof next : 0;  // what follows the last is not of this array
    head_bytes = scatter(fd_.get(), body.data(), body.size(), reinterpret_cast<u8*>(&next), ahead) - body.size();
    if (checks_ && crc32c(body) != head.crc) throw std::runtime_error("a chunk came damaged");
    std::memcpy(&head, &next, head_bytes);
  }
  return array;
}

}  // namespace floors
