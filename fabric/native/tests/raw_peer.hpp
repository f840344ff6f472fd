// A peer engine played by hand over socket pairs: any byte, any order, any lie.
#pragma once

#include <poll.h>
#include <unistd.h>

#include "core/crc32c.hpp"
#include "core/record.hpp"
#include "tests/engine_fixture.hpp"

namespace fabric::test {

using Bytes = std::vector<u8>;

inline void append(Bytes& to, const void* from, std::size_t size) {
  const u8* bytes = static_cast<const u8*>(from);
  to.insert(to.end(), bytes, bytes + size);
}

/// A record of `flow`; `pieces` are lengths of segments, nothing of them travels in it.
inline Bytes record_of(u64 flow, u64 seq, const Bytes& inline_bytes, const std::vector<u64>& pieces = {}) {
  std::vector<SegmentEntry> table;
  RecordParts parts;
  parts.header.payload_bytes = inline_bytes.size();
  for (u64 length : pieces) {
    SegmentEntry entry{};
    entry.segment = entry.generation = 1;
    entry.length = length;
    parts.header.payload_bytes += length;
    table.push_back(entry);
  }
  parts.header.flow = flow;
  parts.header.flow_seq = parts.header.sequence = seq;
  parts.header.klass = 3;
  parts.producer = {1, 1};
  parts.segments = {table.data(), table.size()};
  Bytes out(record_prefix_bytes(parts) + inline_bytes.size());
  u8* at = write_record_prefix(out.data(), parts, u32(inline_bytes.size()));
  if (!inline_bytes.empty()) std::memcpy(at, inline_bytes.data(), inline_bytes.size());
  return out;
}

struct Frame { wire::FrameHeader header; Bytes body; };

struct RawPeer {
  Node& node;
  u64 session;
  int fd[2] = {-1, -1};
  u64 sequence[2] = {0, 0};
  bool answers = true;                 ///< pings

  RawPeer(Node& of, u64 id, u32 number) : node(of), session(id) {
    must(node.engine.open_session(session, number, number * 100 + 1));
    connect(0);
    connect(1);
  }
  RawPeer(const RawPeer&) = delete;
  ~RawPeer() {
    for (int each : fd)
      if (each >= 0) ::close(each);
  }
  void connect(u32 group) {
    if (fd[group] >= 0) ::close(fd[group]);
    int fds[2];
    CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    must(node.engine.add_connection(session, fds[0], group));
    fd[group] = fds[1];
    sequence[group] = 0;
  }
  Bytes frame(u32 group, wire::FrameType type, u64 a = 0, u64 b = 0, const Bytes& body = {}, u8 flags = 0) {
    wire::FrameHeader header{};
    header.type = u8(type);
    header.flags = flags;
    header.session = session;
    header.sequence = ++sequence[group];
    header.a = a;
    header.b = b;
    header.body_len = u32(body.size());
    header.body_crc = body.empty() ? 0 : crc32c(body.data(), body.size(), 0);
    wire::seal_header(header);
    Bytes out;
    append(out, &header, sizeof header);
    append(out, body.data(), body.size());
    return out;
  }
  void send(u32 group, const Bytes& bytes, std::size_t count = ~std::size_t{0}) {
    count = std::min(count, bytes.size());
    for (std::size_t done = 0; done < count;) {
      const ssize_t part = ::send(fd[group], bytes.data() + done, count - done, MSG_NOSIGNAL);
      if (part <= 0) return;  // the engine closed it: what it refused is the test's subject
      done += std::size_t(part);
    }
  }
  void post(u32 group, wire::FrameType type, u64 a = 0, u64 b = 0, const Bytes& body = {}, u8 flags = 0) {
    send(group, frame(group, type, a, b, body, flags));
  }
  bool readable(u32 group, int ms) {
    pollfd wait{fd[group], POLLIN, 0};
    return ::poll(&wait, 1, ms) > 0;
  }
  /// false: the engine closed the connection, or said nothing for so long.
  bool read(u32 group, Frame& out, int ms = 10'000) {
    if (!readable(group, ms)) return false;
    if (::recv(fd[group], &out.header, sizeof out.header, MSG_WAITALL) != ssize_t(sizeof out.header)) return false;
    out.body.resize(out.header.body_len);
    if (!out.body.empty() && ::recv(fd[group], out.body.data(), out.body.size(), MSG_WAITALL) != ssize_t(out.body.size()))
      return false;
    if (out.header.type == u8(wire::FrameType::ping) && answers) post(group, wire::FrameType::pong, out.header.a);
    return true;
  }
  /// The next frame of this type; others are read over.
  bool await(u32 group, wire::FrameType type, Frame& out, int ms = 10'000) {
    while (read(group, out, ms))
      if (out.header.type == u8(type)) return true;
    return false;
  }
  /// As `await`, of what lies there already.
  bool poll(u32 group, wire::FrameType type, Frame& out) {
    while (readable(group, 0) && read(group, out))
      if (out.header.type == u8(type)) return true;
    return false;
  }
  bool closed(u32 group) {
    Frame frame;
    while (read(group, frame)) {}
    char byte;
    return ::recv(fd[group], &byte, 1, MSG_DONTWAIT) == 0;
  }
  /// What was posted before has been taken.
  void settle(u32 group) {
    post(group, wire::FrameType::ping, 1);
    Frame pong;
    CHECK(await(group, wire::FrameType::pong, pong));
  }
};

inline bool told(Node& node, EngineEvent::Kind kind, const std::string& word, u64 seconds = 20 * kSlower) {
  return eventually([&] {
    node.serve();
    for (const EngineEvent& event : node.seen)
      if (event.kind == kind && event.reason.find(word) != std::string::npos) return true;
    return false;
  }, seconds);
}

}  // namespace fabric::test
