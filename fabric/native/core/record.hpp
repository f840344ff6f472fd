// Building and checking of one lane record (layout.hpp RecordHeader); no ring, no shared state.
//
// Readers work on a private copy: what came from shared memory is copied once, then checked.
#pragma once

#include <span>

#include "core/layout.hpp"

namespace fabric {

inline constexpr u32 align_up(u32 value, u32 step) { return (value + step - 1) & ~(step - 1); }
inline constexpr u64 align_up(u64 value, u64 step) { return (value + step - 1) & ~(step - 1); }

/// What lies between the header of a record and its inline bytes.
struct RecordExtras {
  ProducerExtension producer{};       ///< written when its port is not 0, that is, not the peer of the lane
  std::span<const u8> key{};          ///< at most kKeyBytesMax
  bool has_key = false;
  CorrelationExtension correlation{}; ///< written when id or reply_flow is not 0
  std::span<const SegmentEntry> segments{};
};

/// What precedes the inline bytes of a record.
struct RecordParts : RecordExtras {
  RecordHeader header{};              ///< version, header_len8, total_len, segment_count are filled in
};

/// Bytes before the inline part.
u32 record_prefix_bytes(const RecordExtras& extras);
/// Writes a header at `out`, a multiple of 8, word by word.
inline void store_header(u8* out, const RecordHeader& header) {
  store_word(out, u64{header.version} | u64{header.header_len8} << 8 | u64{header.flags} << 16 | u64{header.total_len} << 32);
  store_word(out + 8, header.flow);
  store_word(out + 16, header.flow_seq);
  store_word(out + 24, header.sequence);
  store_word(out + 32, header.deadline_ns);
  store_word(out + 40, u64{header.channel} | u64{header.type} << 32);
  store_word(out + 48, u64{header.generation} | u64{header.klass} << 32 | u64{header.kind} << 40 |
                           u64{header.segment_count} << 48);
  store_word(out + 56, header.payload_bytes);
}
/// Writes extensions and table behind the header of the record at `out`; @return the address of the inline part.
u8* write_extras(u8* out, const RecordExtras& extras);
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
