// The frame codec at its bounds: what is accepted, what breaks, what is skipped.
#include <sys/socket.h>

#include "core/crc32c.hpp"
#include "links/tcp_link.hpp"
#include "tests/engine_fixture.hpp"

using namespace fabric;
using namespace fabric::test;
using wire::Parse;

namespace {

wire::FrameHeader sealed(wire::FrameType type, u32 body_len = 0) {
  wire::FrameHeader header{};
  header.type = u8(type);
  header.session = 1;
  header.sequence = 1;
  header.body_len = body_len;
  wire::seal_header(header);
  return header;
}

Parse parse(const wire::FrameHeader& header, std::size_t bytes = sizeof(wire::FrameHeader)) {
  wire::FrameHeader out;
  u32 length = 0;
  return wire::parse_header({reinterpret_cast<const u8*>(&header), bytes}, out, length);
}

wire::FrameHeader resealed(wire::FrameHeader header) {
  header.header_crc = 0;
  header.header_crc = crc32c(&header, sizeof header, 0);
  return header;
}

void a_sealed_header_is_accepted_and_every_flipped_bit_is_not() {
  const wire::FrameHeader good = sealed(wire::FrameType::ping);
  CHECK(parse(good) == Parse::ok);
  CHECK(parse(good, 63) == Parse::more);
  for (u32 bit = 0; bit < 64 * 8; ++bit) {
    wire::FrameHeader bad = good;
    reinterpret_cast<u8*>(&bad)[bit / 8] ^= u8(1u << (bit % 8));
    const Parse result = parse(bad);
    // A longer header length is incomplete; everything else is refused.
    CHECK(result != Parse::ok);
  }
}

void lengths_are_bounded_by_type() {
  CHECK(parse(sealed(wire::FrameType::chunk, wire::kChunkBytesMax)) == Parse::ok);
  CHECK(parse(sealed(wire::FrameType::chunk, wire::kChunkBytesMax + 1)) == Parse::bad_length);
  CHECK(parse(sealed(wire::FrameType::eager, wire::kControlBodyBytesMax)) == Parse::ok);
  CHECK(parse(sealed(wire::FrameType::eager, wire::kControlBodyBytesMax + 1)) == Parse::bad_length);
}

void unknown_types_features_and_versions_are_refused() {
  wire::FrameHeader header = sealed(wire::FrameType::ping);
  header.type = wire::kFrameTypeMax + 1;
  CHECK(parse(resealed(header)) == Parse::bad_type);
  header = sealed(wire::FrameType::ping);
  header.features = 1u << 31;
  CHECK(parse(resealed(header)) == Parse::bad_feature);
  header = sealed(wire::FrameType::ping);
  header.version = 2;
  CHECK(parse(resealed(header)) == Parse::bad_version);
}

struct Recorder final : Sink {
  std::vector<u8> types;
  std::string why;
  u8* place(const wire::FrameHeader&) override { return nullptr; }
  bool deliver(const wire::FrameHeader& header, const u8*) override {
    types.push_back(header.type);
    return true;
  }
  void sent(u64) override {}
  void broken(const std::string& reason) override { why = reason; }
};

/// Writes raw bytes into a link and returns what came of them.
Recorder feed(const std::vector<u8>& bytes, u64 session = 1) {
  int fds[2];
  CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
  Fd writer(fds[1]);
  TcpLink link(fds[0], session);
  Recorder sink;
  CHECK(::send(writer.get(), bytes.data(), bytes.size(), 0) == ssize_t(bytes.size()));
  while (link.progress(sink, 1 << 20)) {}
  return sink;
}

std::vector<u8> bytes_of(const wire::FrameHeader& header) {
  const u8* from = reinterpret_cast<const u8*>(&header);
  return {from, from + sizeof header};
}

void header_extensions_are_skipped() {
  wire::FrameHeader header = sealed(wire::FrameType::ping);
  header.header_len8 = 10;
  header.header_crc = 0;
  const std::vector<u8> extension(16, 0xab);
  header.header_crc = crc32c(extension.data(), extension.size(), crc32c(&header, sizeof header, 0));
  std::vector<u8> stream = bytes_of(header);
  stream.insert(stream.end(), extension.begin(), extension.end());
  wire::FrameHeader second = sealed(wire::FrameType::pong);
  second.sequence = 2;
  for (u8 byte : bytes_of(resealed(second))) stream.push_back(byte);
  const Recorder got = feed(stream);
  CHECK((got.types == std::vector<u8>{u8(wire::FrameType::ping), u8(wire::FrameType::pong)}) && got.why.empty());
}

void a_frame_of_another_session_breaks_the_connection() {
  const Recorder got = feed(bytes_of(sealed(wire::FrameType::ping)), 2);
  CHECK(got.types.empty() && got.why.find("session") != std::string::npos);
}

void a_repeated_or_skipped_hop_sequence_breaks_the_connection() {
  std::vector<u8> twice = bytes_of(sealed(wire::FrameType::ping));
  for (u8 byte : bytes_of(sealed(wire::FrameType::ping))) twice.push_back(byte);
  const Recorder got = feed(twice);
  CHECK(got.types.size() == 1 && got.why.find("sequence") != std::string::npos);
}

void records_are_checked_before_use() {
  Node node(1);
  CHECK(node.send(kFlow, 1, pattern(100, 1), false));
  // The record lies in the lane that the engine reads; take a copy through the same reader.
  RecordReader reader;
  LanePairLayout* layout = node.end.layout();
  reader.attach(&layout->direction[1].records, layout->records[1]);
  RecordSpan span;
  CHECK(reader.peek(span) == Peek::item);
  std::vector<u8> record(span.bytes, span.bytes + span.header.total_len);
  wire::RecordView view;
  CHECK(wire::view_record(record, view) && view.inline_bytes.size() == 100);
  const auto refused = [&](auto change) {
    std::vector<u8> bad = record;
    RecordHeader head;
    std::memcpy(&head, bad.data(), sizeof head);
    change(head);
    std::memcpy(bad.data(), &head, sizeof head);
    wire::RecordView out;
    return !wire::view_record(bad, out);
  };
  CHECK(refused([](RecordHeader& head) { head.version = 2; }));
  CHECK(refused([](RecordHeader& head) { head.header_len8 = 7; }));
  CHECK(refused([](RecordHeader& head) { head.header_len8 = 255; }));
  CHECK(refused([](RecordHeader& head) { head.total_len += 1; }));
  CHECK(refused([](RecordHeader& head) { head.segment_count = 65; }));
  CHECK(refused([](RecordHeader& head) { head.segment_count = 64; }));
  CHECK(refused([](RecordHeader& head) { head.flow = 0; }));
  CHECK(refused([](RecordHeader& head) { head.flow_seq = 0; }));
  CHECK(refused([](RecordHeader& head) { head.klass = 4; }));
  CHECK(refused([](RecordHeader& head) { head.kind = 2; }));
  CHECK(refused([](RecordHeader& head) { head.flags |= kFlagPad; }));
  node.engine.stop(0);
}

}  // namespace

int main() {
  a_sealed_header_is_accepted_and_every_flipped_bit_is_not();
  lengths_are_bounded_by_type();
  unknown_types_features_and_versions_are_refused();
  header_extensions_are_skipped();
  a_frame_of_another_session_breaks_the_connection();
  a_repeated_or_skipped_hop_sequence_breaks_the_connection();
  records_are_checked_before_use();
  std::puts("wire_test: ok");
}
