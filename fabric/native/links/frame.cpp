#include "links/frame.hpp"

#include "core/crc32c.hpp"

namespace fabric::wire {

Parse parse_header(std::span<const u8> bytes, FrameHeader& out, u32& header_bytes) {
  if (bytes.size() < kFrameHeaderBytes) return Parse::more;
  std::memcpy(&out, bytes.data(), sizeof out);
  if (out.magic != kFrameMagic) return Parse::bad_magic;
  if (out.version != kFrameVersion) return Parse::bad_version;
  header_bytes = u32{out.header_len8} * 8;
  if (header_bytes < kFrameHeaderBytes || header_bytes > kFrameHeaderBytesMax) return Parse::bad_length;
  if (bytes.size() < header_bytes) return Parse::more;
  FrameHeader zeroed = out;
  zeroed.header_crc = 0;
  u32 crc = crc32c(&zeroed, sizeof zeroed, 0);
  // Extensions are covered by the checksum and otherwise skipped: none is known to version 1.
  if (header_bytes > kFrameHeaderBytes)
    crc = crc32c(bytes.data() + kFrameHeaderBytes, header_bytes - kFrameHeaderBytes, crc);
  if (crc != out.header_crc) return Parse::bad_crc;
  if (out.type == 0 || out.type > kFrameTypeMax) return Parse::bad_type;
  if (out.features & ~kFeaturesKnown) return Parse::bad_feature;
  const u32 limit = out.type == u8(FrameType::chunk) ? kChunkBytesMax : kControlBodyBytesMax;
  if (out.body_len > limit) return Parse::bad_length;
  return Parse::ok;
}

void seal_header(FrameHeader& header) {
  header.magic = kFrameMagic;
  header.version = kFrameVersion;
  header.header_len8 = kFrameHeaderBytes / 8;
  header.reserved = header.reserved2 = 0;
  header.header_crc = 0;
  header.header_crc = crc32c(&header, sizeof header, 0);
}

const char* name(Parse result) {
  switch (result) {
    case Parse::ok: return "ok";
    case Parse::more: return "incomplete header";
    case Parse::bad_magic: return "frame magic";
    case Parse::bad_version: return "frame version";
    case Parse::bad_length: return "frame length";
    case Parse::bad_crc: return "frame header checksum";
    case Parse::bad_type: return "frame type";
    case Parse::bad_feature: return "unknown frame feature";
    case Parse::bad_session: return "frame of another session";
    case Parse::bad_sequence: return "gap in frame sequence";
  }
  return "?";
}

namespace {

/// Each extension lies inside its room; what it says is its reader's to check.
bool extensions_fit(std::span<const u8> bytes) {
  for (std::size_t at = 0; at + sizeof(ExtensionHead) <= bytes.size();) {
    ExtensionHead head;
    std::memcpy(&head, bytes.data() + at, sizeof head);
    const std::size_t whole = sizeof head + head.len;
    if (whole > bytes.size() - at) return false;
    at += (whole + 7) & ~std::size_t{7};
  }
  return true;
}

}  // namespace

bool view_record(std::span<const u8> bytes, RecordView& out) {
  if (bytes.size() < kRecordHeaderBytes || bytes.size() > kRecordBytesMax) return false;
  std::memcpy(&out.head, bytes.data(), sizeof out.head);
  const RecordHeader& head = out.head;
  const u32 fixed = u32{head.header_len8} * 8;
  const u64 table = u64{head.segment_count} * sizeof(SegmentEntry);
  if (head.version != kRecordVersion || head.total_len != bytes.size()) return false;
  if (fixed < kRecordHeaderBytes || head.segment_count > kSegmentsPerRecordMax) return false;
  if (fixed + table > bytes.size() || (head.flags & kFlagPad) || head.klass > u8(Class::bulk)) return false;
  if (head.kind > 1 || head.flow == 0 || head.flow_seq == 0) return false;
  out.extensions = bytes.subspan(kRecordHeaderBytes, fixed - kRecordHeaderBytes);
  out.table = bytes.subspan(fixed, table);
  out.inline_bytes = bytes.subspan(fixed + table);
  out.segment_bytes = 0;
  for (u32 i = 0; i < head.segment_count; ++i) {
    const SegmentEntry entry = segment_at(out, i);
    if (entry.length > kTransferBytesMax || entry.offset > kTransferBytesMax) return false;
    out.segment_bytes += entry.length;
  }
  if (out.segment_bytes > kTransferBytesMax || !extensions_fit(out.extensions)) return false;
  if (head.kind == u8(RecordKind::skip)) return head.segment_count == 0 && out.inline_bytes.empty();
  return head.payload_bytes == out.inline_bytes.size() + out.segment_bytes;
}

}  // namespace fabric::wire
