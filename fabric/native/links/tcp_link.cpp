#include "links/tcp_link.hpp"

#include <fcntl.h>
#include <netinet/in.h>
#include <linux/tcp.h>  // with tcpi_bytes_acked, which the C library's may lack
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace fabric {
namespace {

constexpr std::size_t kBufferBytes = 2 * (wire::kControlBodyBytesMax + wire::kFrameHeaderBytesMax);
constexpr std::size_t kBehindChunkBytes = 4096;
constexpr int kGatherMax = 64;

std::string system_reason(const char* what) { return std::string(what) + ": " + std::strerror(errno); }

}  // namespace

TcpLink::TcpLink(int fd, u64 session, u32 notsent_lowat_bytes) : fd_(fd), session_(session), buffer_(kBufferBytes) {
  ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
  // Both fail harmlessly on a socket pair, which tests use.
  const int one = 1, lowat = static_cast<int>(notsent_lowat_bytes);
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  ::setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &lowat, sizeof lowat);
  tcp_info info{};
  socklen_t size = sizeof info;  // the handshake's bytes are not ours
  if (::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0) acked_before_ = info.tcpi_bytes_acked;
}

void TcpLink::close() {
  fd_.reset();
  out_.clear();
  backlog_ = 0;
}

LinkCapabilities TcpLink::capabilities() const {
  return {"tcp", true, true, 1u << u32(MemoryKind::host), wire::kChunkBytesMax};
}

LinkSample TcpLink::sample() {
  tcp_info info{};
  socklen_t size = sizeof info;
  if (fd_.get() >= 0 && ::getsockopt(fd_.get(), IPPROTO_TCP, TCP_INFO, &info, &size) == 0) {
    counters_.rtt_ns = u64{info.tcpi_rtt} * 1000;
    counters_.retransmits = info.tcpi_total_retrans;
    counters_.acked = info.tcpi_bytes_acked - std::min<u64>(acked_before_, info.tcpi_bytes_acked);
  } else {
    counters_.acked = counters_.bytes_out;
  }
  return counters_;
}

void TcpLink::post(OutFrame frame) {
  if (broken_ || fd_.get() < 0) return;
  if (!frame.owned.empty()) {
    frame.body = nullptr;  // set when written: the vector moves with the frame
    frame.body_len = static_cast<u32>(frame.owned.size());
  }
  const u64 whole = wire::kFrameHeaderBytes + frame.body_len;
  Pending pending{frame.header, std::move(frame), 0, 0};
  pending.size = std::min(whole, pending.frame.cut_after);
  pending.header.session = session_;
  if (pending.header.sequence == 0) pending.header.sequence = ++seq_out_;
  pending.header.body_len = pending.frame.body_len;
  wire::seal_header(pending.header);
  backlog_ += pending.size;
  ++counters_.frames_out;
  out_.push_back(std::move(pending));
}

bool TcpLink::progress(Sink& sink, u64 budget) {
  if (broken_ || fd_.get() < 0) return false;
  Step step = Step::again;
  while (step == Step::again && !out_.empty()) step = write_some(sink);
  if (step == Step::broken) return false;
  step = Step::again;
  drained_ = false;
  while (step == Step::again && budget > 0) step = read_some(sink, budget);
  return step == Step::again;
}

TcpLink::Step TcpLink::fail(Sink& sink, std::string reason) {
  if (!broken_) {
    broken_ = true;
    sink.broken(reason);
  }
  return Step::broken;
}

TcpLink::Step TcpLink::write_some(Sink& sink) {
  iovec gather[kGatherMax];
  int count = 0;
  for (auto it = out_.begin(); it != out_.end() && count + 2 <= kGatherMax; ++it) {
    const u64 head = std::min<u64>(wire::kFrameHeaderBytes, it->size), body_len = it->size - head;
    if (it->done < head)
      gather[count++] = {reinterpret_cast<u8*>(&it->header) + it->done, std::size_t(head - it->done)};
    const u64 skip = it->done > head ? it->done - head : 0;
    if (body_len > skip) {
      const u8* body = it->frame.owned.empty() ? it->frame.body : it->frame.owned.data();
      gather[count++] = {const_cast<u8*>(body) + skip, std::size_t(body_len - skip)};
    }
    if (it->frame.cut_after != ~u64{0}) break;
  }
  msghdr message{};
  message.msg_iov = gather;
  message.msg_iovlen = static_cast<std::size_t>(count);
  const ssize_t written = ::sendmsg(fd_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (written < 0) {
    if (errno == EINTR) return Step::again;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return Step::idle;
    return fail(sink, system_reason("send"));
  }
  return account_written(sink, static_cast<u64>(written));
}

TcpLink::Step TcpLink::account_written(Sink& sink, u64 bytes) {
  counters_.bytes_out += bytes;
  backlog_ -= bytes;
  while (!out_.empty()) {
    Pending& front = out_.front();
    const u64 part = std::min(bytes, front.size - front.done);
    front.done += part;
    bytes -= part;
    if (front.done < front.size) break;
    if (front.frame.cut_after != ~u64{0}) return fail(sink, "fault injected: cut");
    const u64 cookie = front.frame.cookie;
    out_.pop_front();
    if (cookie != 0) sink.sent(cookie);
  }
  return Step::again;
}

TcpLink::Step TcpLink::read_some(Sink& sink, u64& budget) {
  if (in_body_ && begin_ == end_) return drained_ ? Step::idle : fill_body(sink, budget);
  Step step = in_body_ ? take_body_from_buffer(sink) : parse_buffer(sink);
  if (step != Step::idle || drained_) return step;
  return fill_buffer(sink, budget);  // idle: the buffer holds no whole header or small frame
}

TcpLink::Step TcpLink::received(Sink& sink, long count, u64 asked, u64& budget) {
  if (count == 0) return fail(sink, "closed by peer");
  if (count < 0) {
    if (errno == EINTR) return Step::again;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return Step::idle;
    return fail(sink, system_reason("recv"));
  }
  counters_.bytes_in += static_cast<u64>(count);
  drained_ = static_cast<u64>(count) < asked;  // what comes now is told by the descriptor
  budget -= std::min(budget, static_cast<u64>(count));
  return Step::again;
}

TcpLink::Step TcpLink::fill_buffer(Sink& sink, u64& budget) {
  if (begin_ > 0) {
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  const std::size_t room = buffer_.size() - end_;
  const ssize_t count = ::recv(fd_.get(), buffer_.data() + end_, room, MSG_DONTWAIT);
  const Step step = received(sink, count, room, budget);
  if (step == Step::again && count > 0) end_ += static_cast<std::size_t>(count);
  return step;
}

TcpLink::Step TcpLink::fill_body(Sink& sink, u64& budget) {
  // Asked before every slice: a withdrawn destination must not be written again.
  u8* target = sink.place(current_);
  begin_ = end_ = 0;
  const u64 want = current_.body_len - body_done_;
  if (target == nullptr) {
    scattered_ = true;
    const u64 asked = std::min<u64>(want, buffer_.size());
    const ssize_t count = ::recv(fd_.get(), buffer_.data(), asked, MSG_DONTWAIT);
    const Step step = received(sink, count, asked, budget);
    if (step == Step::again && count > 0) body_done_ += static_cast<u64>(count);
    if (step == Step::again && body_done_ == current_.body_len) return finish_chunk(sink);
    return step;
  }
  // Behind the chunk comes the next one's header; more of it would be copied once too often.
  iovec parts[2] = {{target + body_done_, std::size_t(want)}, {buffer_.data(), kBehindChunkBytes}};
  const ssize_t count = ::readv(fd_.get(), parts, 2);
  const Step step = received(sink, count, want + kBehindChunkBytes, budget);
  if (step != Step::again || count <= 0) return step;
  const u64 mine = std::min(want, static_cast<u64>(count));
  body_done_ += mine;
  end_ = static_cast<std::size_t>(static_cast<u64>(count) - mine);
  return body_done_ == current_.body_len ? finish_chunk(sink) : Step::again;
}

TcpLink::Step TcpLink::parse_buffer(Sink& sink) {
  wire::FrameHeader header;
  u32 header_bytes = 0;
  const wire::Parse parse =
      wire::parse_header({buffer_.data() + begin_, end_ - begin_}, header, header_bytes);
  if (parse == wire::Parse::more) return Step::idle;
  if (parse != wire::Parse::ok) return fail(sink, std::string("peer protocol: ") + wire::name(parse));
  if (header.session != session_) return fail(sink, "peer protocol: frame of another session");
  const bool chunk = header.type == u8(wire::FrameType::chunk);
  if (!chunk && end_ - begin_ < header_bytes + header.body_len) return Step::idle;
  if (header.sequence != seq_in_ + 1) return fail(sink, "peer protocol: gap in frame sequence");
  ++seq_in_;
  ++counters_.frames_in;
  begin_ += header_bytes;
  if (chunk) {
    current_ = header;
    in_body_ = true;
    scattered_ = false;
    body_done_ = 0;
    return header.body_len == 0 ? finish_chunk(sink) : Step::again;
  }
  const u8* body = buffer_.data() + begin_;
  begin_ += header.body_len;
  if (!sink.deliver(header, body)) return fail(sink, "peer protocol: frame refused");
  return Step::again;
}

TcpLink::Step TcpLink::take_body_from_buffer(Sink& sink) {
  const u64 part = std::min<u64>(end_ - begin_, current_.body_len - body_done_);
  u8* target = sink.place(current_);
  if (target != nullptr)
    std::memcpy(target + body_done_, buffer_.data() + begin_, part);
  else
    scattered_ = true;
  begin_ += part;
  body_done_ += part;
  return body_done_ == current_.body_len ? finish_chunk(sink) : Step::again;
}

TcpLink::Step TcpLink::finish_chunk(Sink& sink) {
  in_body_ = false;
  const u8* body = scattered_ ? nullptr : sink.place(current_);
  if (!sink.deliver(current_, body)) return fail(sink, "peer protocol: chunk refused");
  return Step::again;
}

}  // namespace fabric
