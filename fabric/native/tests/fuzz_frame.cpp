// Fuzz entry for everything that is parsed off a connection: frame headers, record bodies, and both links' readers.
//
// Input: a byte stream as a peer would send it. Properties: no crash, no read outside the input, a record that
// was accepted keeps its promises, and a stream ends in `broken` or waits for more.
#include <sys/socket.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <vector>

#include "core/crc32c.hpp"
#include "links/tcp_link.hpp"

using namespace fabric;

namespace {

#define REQUIRE(condition) do { if (!(condition)) std::abort(); } while (0)

void check_record(std::span<const u8> body) {
  wire::RecordView view;
  if (!wire::view_record(body, view)) return;
  REQUIRE(view.head.total_len == body.size() && body.size() <= kRecordBytesMax);
  REQUIRE(view.head.segment_count <= kSegmentsPerRecordMax);
  REQUIRE(view.extensions.size() + view.table.size() + view.inline_bytes.size() + kRecordHeaderBytes == body.size());
  u64 sum = 0;
  for (u32 i = 0; i < view.head.segment_count; ++i) sum += wire::segment_at(view, i).length;
  REQUIRE(sum == view.segment_bytes && sum <= wire::kTransferBytesMax);
}

class CountingSink final : public Sink {
 public:
  u8* place(const wire::FrameHeader& header) override {
    REQUIRE(header.body_len <= wire::kChunkBytesMax);
    // Every other transfer has a destination; the rest goes to scratch, and may change in between.
    return (header.a + asked_++ / 3) % 2 == 0 ? memory_.data() : nullptr;
  }
  bool deliver(const wire::FrameHeader& header, const u8* body) override {
    if (header.type == u8(wire::FrameType::chunk)) return true;
    REQUIRE(header.body_len <= wire::kControlBodyBytesMax);
    if (header.body_len > 0) check_record({body, header.body_len});
    return true;
  }
  void sent(u64) override {}
  void broken(const std::string&) override { REQUIRE(++broken_ == 1); }

 private:
  static inline std::vector<u8> memory_ = std::vector<u8>(wire::kChunkBytesMax);
  u64 asked_ = 0;
  int broken_ = 0;
};

/// The mutator cannot guess checksums: the stream's own header checksums are made right on the way.
std::vector<u8> repaired(const u8* data, std::size_t size) {
  std::vector<u8> out(data, data + size);
  u64 sequence = 0;
  for (std::size_t at = 0; at + wire::kFrameHeaderBytes <= out.size();) {
    wire::FrameHeader header;
    std::memcpy(&header, out.data() + at, sizeof header);
    const u32 whole = u32{header.header_len8} * 8;
    if (whole < wire::kFrameHeaderBytes || at + whole > out.size()) break;
    header.magic = wire::kFrameMagic;
    header.version = wire::kFrameVersion;
    header.session = 1;
    header.sequence = ++sequence;
    header.features = 0;
    header.type = static_cast<u8>(header.type % (wire::kFrameTypeMax + 2));
    header.header_crc = 0;
    u32 crc = crc32c(&header, sizeof header, 0);
    if (whole > sizeof header) crc = crc32c(out.data() + at + sizeof header, whole - sizeof header, crc);
    header.header_crc = crc;
    std::memcpy(out.data() + at, &header, sizeof header);
    at += whole + header.body_len;
  }
  return out;
}

void feed(std::span<const u8> bytes) {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) return;
  TcpLink link(fds[0], 1);
  CountingSink sink;
  std::size_t sent = 0;
  for (std::size_t step = 1; sent < bytes.size(); step = step * 3 + 1) {
    const std::size_t part = std::min(step, bytes.size() - sent);
    const ssize_t done = ::send(fds[1], bytes.data() + sent, part, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (done <= 0) break;
    sent += static_cast<std::size_t>(done);
    for (int i = 0; i < 8 && link.progress(sink, 1 << 20); ++i) {}
  }
  ::close(fds[1]);
  for (int i = 0; i < 64 && link.progress(sink, 1 << 20); ++i) {}
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  wire::FrameHeader header;
  u32 header_bytes = 0;
  if (wire::parse_header({data, size}, header, header_bytes) == wire::Parse::ok) {
    REQUIRE(header_bytes <= size && header_bytes >= wire::kFrameHeaderBytes);
    REQUIRE(header.body_len <= wire::kChunkBytesMax);
  }
  check_record({data, size});
  feed({data, size});
  feed(repaired(data, size));
  return 0;
}
