// Prefix codes over bytes: lengths that are optimal up to kCodeBitsMax bits, canonical, read from the low end of a word.
//
// Pure functions and plain values; nothing here allocates. What is decoded may be hostile: every read and write is bounded.
#pragma once

#include <array>
#include <cstddef>

#include "core/layout.hpp"

namespace fabric::codec {

inline constexpr u32 kCodeBitsMax = 11;                 ///< five codes and a started byte fit a word of 64 bits
inline constexpr u32 kCodeWindow = 1u << kCodeBitsMax;  ///< entries of the decoding table
inline constexpr u32 kStreams = 4;                      ///< of one plane, coded side by side: they do not wait for each other
inline constexpr std::size_t kSlack = 8;                ///< writable bytes behind what `encode_symbols` and `decode_symbols` fill

using Counts = std::array<u32, 256>;
using Lengths = std::array<u8, 256>;  ///< bits of the code of each symbol; 0: it has none

/// Lengths whose codes are complete, so that any bits can be decoded. At least two symbols have a count.
void choose_lengths(const Counts& counts, Lengths& lengths);
/// Bits that symbols with these counts take.
u64 coded_bits(const Counts& counts, const Lengths& lengths);

struct EncodeTable {
  std::array<u32, 256> entry;  ///< code << 8 | bits
  explicit EncodeTable(const Lengths& lengths);
};

/// Several symbols at a look: what a window of bits begins with.
struct DecodeTable {
  struct Entry {
    u8 symbols[6];
    u8 count;
    u8 bits;  ///< of all of them
  };
  std::array<Entry, kCodeWindow> entry;
  std::array<u8, kCodeWindow> first_bits;  ///< of the first symbol alone
  /// False: the lengths are no complete code.
  [[nodiscard]] bool build(const Lengths& lengths);
};

/// Symbols of stream `i` of `n`: the first streams have ceil(n / kStreams) each.
inline std::size_t stream_begin(std::size_t n, u32 stream) {
  const std::size_t each = (n + kStreams - 1) / kStreams;
  return each * stream < n ? each * stream : n;
}

/// Writes the streams one behind the other, their sizes to `sizes`; returns the bytes of all.
/// `out` has room for `coded_bits / 8 + kStreams * (kSlack + 1)` bytes.
std::size_t encode_symbols(const u8* symbols, std::size_t n, const EncodeTable& table, u8* out, u32 (&sizes)[kStreams]);
/// Reads `n` symbols into `out` (room for kSlack more). False: the streams are not what was written.
[[nodiscard]] bool decode_symbols(const u8* in, const u32 (&sizes)[kStreams], std::size_t n, const DecodeTable& table,
                                  u8* out);

}  // namespace fabric::codec
