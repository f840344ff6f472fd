#include "core/record.hpp"

#include <cstring>

namespace fabric {
namespace {

u32 extension_bytes(std::size_t bytes) { return align_up(static_cast<u32>(sizeof(ExtensionHead) + bytes), 8u); }

u8* put_extension(u8* at, Extension type, const void* data, std::size_t bytes) {
  const ExtensionHead head{static_cast<u16>(type), static_cast<u16>(bytes)};
  const u32 whole = extension_bytes(bytes);
  std::memset(at + whole - 8, 0, 8);  // The padding must not leak former ring contents.
  std::memcpy(at, &head, sizeof head);
  if (bytes != 0) std::memcpy(at + sizeof head, data, bytes);
  return at + whole;
}

bool has_correlation(const RecordExtras& extras) {
  return extras.correlation.id != 0 || extras.correlation.reply_flow != 0;
}

}  // namespace

u32 record_prefix_bytes(const RecordExtras& extras) {
  u32 bytes = kRecordHeaderBytes;
  if (extras.producer.port != 0) bytes += extension_bytes(sizeof(ProducerExtension));
  if (extras.has_key) bytes += extension_bytes(extras.key.size());
  if (has_correlation(extras)) bytes += extension_bytes(sizeof(CorrelationExtension));
  return bytes + static_cast<u32>(extras.segments.size() * sizeof(SegmentEntry));
}

u8* write_extras(u8* out, const RecordExtras& extras) {
  u8* at = out + kRecordHeaderBytes;
  if (extras.producer.port != 0) at = put_extension(at, Extension::producer, &extras.producer, sizeof extras.producer);
  if (extras.has_key) at = put_extension(at, Extension::key, extras.key.data(), extras.key.size());
  if (has_correlation(extras)) {
    at = put_extension(at, Extension::correlation, &extras.correlation, sizeof extras.correlation);
  }
  const std::size_t table = extras.segments.size() * sizeof(SegmentEntry);
  if (table != 0) std::memcpy(at, extras.segments.data(), table);
  return at + table;
}

u8* write_record_prefix(u8* out, RecordParts& parts, u32 inline_size) {
  const u32 prefix = record_prefix_bytes(parts);
  const u32 table = static_cast<u32>(parts.segments.size() * sizeof(SegmentEntry));
  RecordHeader& header = parts.header;
  header.version = kRecordVersion;
  header.header_len8 = static_cast<u8>((prefix - table) / 8);
  header.total_len = prefix + inline_size;
  header.kind = 0;
  header.segment_count = static_cast<u16>(parts.segments.size());
  store_header(out, header);
  return write_extras(out, parts);
}

const char* check_header(const RecordHeader& header) {
  if (header.version != kRecordVersion) return "record version is unknown";
  if (header.kind > static_cast<u8>(RecordKind::skip)) return "record kind is reserved";
  if (header.kind != 0 && header.segment_count != 0) return "a skip record has segments";
  if (header.total_len > kRecordBytesMax) return "record is longer than the limit";
  if (header_bytes(header) < kRecordHeaderBytes) return "record header is too short";
  if (header.segment_count > kSegmentsPerRecordMax) return "record has too many segments";
  if (header_bytes(header) + table_bytes(header) > header.total_len) return "record parts exceed its length";
  if (inline_bytes(header) > header.payload_bytes) return "record payload is smaller than its inline bytes";
  if (header.flow == 0 || header.flow_seq == 0) return "record names no flow or sequence";
  if (header.klass > static_cast<u8>(Class::bulk)) return "record class is unknown";
  return nullptr;
}

const char* parse_extensions(const u8* begin, u32 bytes, RecordFields& out) {
  for (u32 at = 0; at + sizeof(ExtensionHead) <= bytes;) {
    ExtensionHead head;
    std::memcpy(&head, begin + at, sizeof head);
    const u32 room = bytes - at - static_cast<u32>(sizeof head);
    if (head.len > room) return "record extension exceeds the header";
    const u8* data = begin + at + sizeof head;
    switch (static_cast<Extension>(head.type)) {
      case Extension::producer:
        if (head.len != sizeof out.producer) return "producer extension has a wrong length";
        std::memcpy(&out.producer, data, sizeof out.producer);
        break;
      case Extension::key:
        if (head.len > kKeyBytesMax) return "key is longer than the limit";
        out.key = {data, head.len};
        out.has_key = true;
        break;
      case Extension::correlation:
        if (head.len != sizeof out.correlation) return "correlation extension has a wrong length";
        std::memcpy(&out.correlation, data, sizeof out.correlation);
        break;
      default: break;  // Unknown extensions are skipped.
    }
    at += extension_bytes(head.len);
  }
  return nullptr;
}

const char* check_segments(std::span<const SegmentEntry> segments, u64 payload_bytes, u32 inline_size) {
  u64 sum = inline_size;
  for (const SegmentEntry& entry : segments) {
    if (entry.length > payload_bytes) return "segment is longer than the payload";
    if (entry.offset + entry.length < entry.offset) return "segment range wraps";
    if (entry.memory_kind > static_cast<u8>(MemoryKind::foreign)) return "memory kind is unknown";
    if (entry.index_count != 0) return "index lists are not supported";
    if (entry.generation % 2 == 0) return "segment generation is that of a free slot";
    sum += entry.length;
    if (sum < entry.length) return "segment lengths wrap";
  }
  return sum == payload_bytes ? nullptr : "payload length is not the sum of its parts";
}

}  // namespace fabric
