// The lossless codec of arrays of numbers: planes of bytes, each entropy-coded where that pays.
//
// Format (little-endian), version 1:
//   16 bytes  magic "fbc" u8[3], version u8, width u8, flags u8 (1: rotated, 2: base rows), row u16, raw bytes u64
//   row bytes with flag 2: what was subtracted from the highest plane, by position in the row
//   blocks    of kBlockElements elements (whole rows), the last of what is left, each:
//               width × u32: mode << 30 | bytes of the plane; then the planes, lowest first
//               mode 0 raw: the bytes · 1 same: one byte · 2 coded: first symbol u8, symbols - 1 u8, their code lengths
//               (4 bits each, lowest first), sizes of the first three streams u32[3], streams
//   rest      raw bytes % width bytes as they are
// Pure functions over memory of the caller's, from any thread. What is decoded may be hostile.
#pragma once

#include "core/layout.hpp"

namespace fabric::codec {

inline constexpr u8 kFloatCodecVersion = 1;
inline constexpr u32 kBlockElements = 128 * 1024;
inline constexpr u32 kRowMax = 32 * 1024;

struct FloatLayout {
  u32 width;         ///< bytes of an element: 1, 2, 4 or 8
  bool rotated;      ///< the exponent begins below the highest bit: bf16, f16, f32
  u32 row = 0;       ///< elements after which columns repeat, if they are to be looked at; 0: not
};

/// Bytes that `encode_floats` needs at most, slack included.
u64 encoded_floats_max(u64 raw_bytes, const FloatLayout& layout);
/// Returns the bytes written to `out`, which has room for `encoded_floats_max`.
u64 encode_floats(const u8* raw, u64 raw_bytes, const FloatLayout& layout, u8* out);
/// Raw bytes that a header promises; `why` is set when it is none of ours.
u64 decoded_floats_bytes(const u8* in, u64 bytes, const char*& why);
/// Fills `raw`; returns what is wrong, or nullptr.
const char* decode_floats(const u8* in, u64 bytes, u8* raw, u64 raw_bytes);

}  // namespace fabric::codec
