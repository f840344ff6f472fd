// Building and checking of one lane record (layout.hpp RecordHeader); no ring, no shared state.
//
// Readers work on a private copy: what came from shared memory is copied once, then checked.
#pragma once

#include <span>

#include "core/layout.hpp"

namespace fabric {

inline constexpr u32 align_up(u32 value, u32 step) { return (value + step - 1) & ~(step - 1); }
inline constexpr u64 align_up(u64 value, u64 step) { return (value + step - 1) & ~(step - 1); }

/// What precedes the inline bytes of a record.
struct RecordParts {
  RecordHeader header{};              ///< version, header_len8, total_len, segment_count are filled in
  ProducerExtension producer{};       ///< written when its port is not 0, that is, not the peer of the lane
  std::span<const u8> key{};          ///< at most kKeyBytesMax
  bool has_key = false;
  CorrelationExtension correlation{}; ///< written when id or reply_flow is not 0
  std::span<const SegmentEntry> segments{};
};

/// Bytes before the inline part.
u32 record_prefix_bytes(const RecordParts& parts);
/// Writes header, extensions and table at `out`; the caller appends `inline_bytes` bytes there.
/// @return the address of the inline part.
u8* write_record_prefix(u8* out, RecordParts& parts, u32 inline_bytes);

/// The fields of a checked private copy; spans point into that copy.
struct RecordFields {
  ProducerExtension producer{};       ///< port 0: not named
  std::span<const u8> key{};
  bool has_key = false;
  CorrelationExtension correlation{};
};

/// nullptr when the fixed header can be true, else what is wrong with it.
const char* check_header(const RecordHeader& header);
inline u32 header_bytes(const RecordHeader& header) { return header.header_len8 * 8u; }
inline u32 table_bytes(const RecordHeader& header) { return header.segment_count * 48u; }
inline u32 inline_bytes(const RecordHeader& header) {
  return header.total_len - header_bytes(header) - table_bytes(header);
}
/// Reads the extensions in [begin, begin + bytes), a private copy. Same answer as check_header.
const char* parse_extensions(const u8* begin, u32 bytes, RecordFields& out);
/// nullptr when every entry of the private copy of the table can be true.
const char* check_segments(std::span<const SegmentEntry> segments, u64 payload_bytes, u32 inline_size);

}  // namespace fabric
