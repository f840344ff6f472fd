// Frames on a connection between two nodes (docs/WIRE.md §3, §4): the header codec, nothing else.
//
// Pure functions over bytes, callable from any thread. A frame is a 64-byte header, optional header
// extensions, then `body_len` bytes. Nothing read from a peer is used before `parse_header` said ok.
#pragma once

#include <cstring>
#include <span>

#include "core/layout.hpp"

namespace fabric::wire {

inline constexpr u32 kFrameMagic = 0x46424146;  // "FABF"
inline constexpr u8 kFrameVersion = 1;
inline constexpr u32 kFrameHeaderBytes = 64;
inline constexpr u32 kFrameHeaderBytesMax = 248;      // with extensions; header_len8 ≤ 31
inline constexpr u32 kControlBodyBytesMax = 64 * 1024;
inline constexpr u32 kChunkBytesMax = 1024 * 1024;
inline constexpr u32 kChunkBytesSmall = 256 * 1024;   // transfers up to 4 MiB are cut this fine
inline constexpr u64 kTransferBytesMax = 1ULL << 31;

enum class FrameType : u8 {
  eager = 1,      // body: one record
  announce = 2,   // a: transfer, b: total bytes; body: record (header, extensions, table, inline)
  grant = 3,      // a: transfer; body: received ranges {u64 offset, u64 length}
  chunk = 4,      // a: transfer, b: offset in the destination; body: payload
  chunk_ack = 5,  // body: ChunkAck…
  refuse = 6,     // a: flow, b: flow_seq, flags: RefuseReason
  report = 7,     // a: number of the first entry; body: ReturnEntry…
  hop_ack = 8,    // a: last report number taken over; body: FlowAck…
  cancel = 9,     // a: transfer; body: tombstone record
  ping = 10,      // a: sender's clock
  pong = 11,      // a: echoed
  goodbye = 12,   // the session ends here on purpose
  resume = 13,    // a: flow, b: last flow_seq taken over: send again from the next
};
inline constexpr u8 kFrameTypeMax = 13;

enum class RefuseReason : u8 { unknown_flow = 1 };  // what breaks the rules ends the connection instead

struct FrameHeader {
  u32 magic;
  u8 version;
  u8 header_len8;    // header + extensions, in units of 8 bytes
  u8 type;           // FrameType
  u8 flags;
  u32 features;      // bits the reader must know to understand this frame; unknown: refused
  u32 body_len;
  u64 session;       // bound to both incarnations by the handshake
  u64 sequence;      // 1, 2, 3 … per connection and direction
  u64 a;
  u64 b;
  u32 body_crc;      // crc32c of the body, 0 when body_len == 0 or the chunk is plain
  u32 reserved;      // 0
  u32 reserved2;     // 0
  u32 header_crc;    // crc32c of header and extensions with this field zero
};
static_assert(sizeof(FrameHeader) == kFrameHeaderBytes);

struct ChunkAck { u64 transfer; u64 offset; u32 length; u32 status; };  // status: low byte 0 taken, 1 send again; above: the rail
static_assert(sizeof(ChunkAck) == 24);
inline constexpr u32 ack_status(const ChunkAck& ack) { return ack.status & 0xff; }
inline constexpr u32 ack_rail(const ChunkAck& ack) { return ack.status >> 8; }   ///< that brought the chunk
struct FlowAck { u64 flow; u64 flow_seq; };
struct Range { u64 offset; u64 length; };

enum class Parse : u8 { ok, more, bad_magic, bad_version, bad_length, bad_crc, bad_type, bad_feature,
                        bad_session, bad_sequence };

/// A CHUNK whose body has no checksum: both operators said that the network's own will do (WIRE.md §5).
inline constexpr u32 kFeaturePlainChunks = 1;
/// Features this build understands in `FrameHeader::features`; a connection takes those its handshake agreed on.
inline constexpr u32 kFeaturesKnown = kFeaturePlainChunks;

/// Read one header from the front of `bytes`. `ok`: `out` holds it and `header_bytes` its whole
/// length with extensions. `more`: not enough bytes yet. Anything else breaks the connection.
Parse parse_header(std::span<const u8> bytes, FrameHeader& out, u32& header_bytes);

/// Fill magic, version, lengths and the header checksum. `body_crc` and `sequence` are set before.
void seal_header(FrameHeader& header);

const char* name(Parse result);

/// The body of a record-carrying frame, with the fixed part copied out once and every length checked:
/// header ≤ total ≤ kRecordBytesMax, table and extensions inside, `total_len == body size`, segments ≤ 64, the sum
/// of lengths equal to payload_bytes − inline bytes; a skip record has neither.
struct RecordView {
  RecordHeader head;
  std::span<const u8> extensions;
  std::span<const u8> table;    // segment_count × 48
  std::span<const u8> inline_bytes;
  u64 segment_bytes;            // Σ length
};
bool view_record(std::span<const u8> bytes, RecordView& out);

inline SegmentEntry segment_at(const RecordView& view, u32 index) {
  SegmentEntry entry;
  std::memcpy(&entry, view.table.data() + index * sizeof(SegmentEntry), sizeof entry);
  return entry;
}

/// Where segment `index` lies in the destination slot (WIRE.md §4.3): each starts at the next
/// multiple of 64 after the one before. Both sides compute it; it never travels.
inline u64 align64(u64 value) { return (value + 63) & ~u64{63}; }

}  // namespace fabric::wire
