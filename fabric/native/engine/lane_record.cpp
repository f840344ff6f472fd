#include "engine/lane_record.hpp"

#include <cstring>

#include "core/record.hpp"

namespace fabric {

// The checked header counts, not what the ring holds by now.
bool copy_record(const RecordSpan& span, const ProducerExtension& producer, std::vector<u8>& out) {
  constexpr u32 kNamedBytes = 24;     // head, port, incarnation, padding
  struct { ExtensionHead head; u32 producer[4], padding; } named{};
  static_assert(sizeof named == kNamedBytes);
  named.head = {static_cast<u16>(Extension::producer), sizeof(ProducerExtension)};
  std::memcpy(named.producer, &producer, sizeof producer);
  RecordHeader header = span.header;
  ExtensionHead first{};
  if (header_bytes(header) >= kRecordHeaderBytes + kNamedBytes) {
    std::memcpy(&first, span.bytes + kRecordHeaderBytes, sizeof first);
  }
  const bool is_named = first.type == named.head.type && first.len == named.head.len;
  const u8 *rest = span.bytes + kRecordHeaderBytes + (is_named ? kNamedBytes : 0), *end = span.bytes + header.total_len;
  if (!is_named && (header.header_len8 > 255 - kNamedBytes / 8 || header.total_len > kRecordBytesMax - kNamedBytes)) {
    out.assign(span.bytes, end);
    return false;
  }
  header.header_len8 = static_cast<u8>(header.header_len8 + (is_named ? 0 : kNamedBytes / 8));
  header.total_len += is_named ? 0 : kNamedBytes;
  out.resize(header.total_len);
  std::memcpy(out.data(), &header, sizeof header);
  std::memcpy(out.data() + sizeof header, &named, sizeof named);
  std::memcpy(out.data() + sizeof header + sizeof named, rest, static_cast<std::size_t>(end - rest));
  return true;
}

}  // namespace fabric
