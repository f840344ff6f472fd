#include "codec/byte_planes.hpp"

#include <bit>
#include <cstring>

#include "codec/vectors.hpp"

namespace fabric::codec {
namespace {

template <class Word, bool kRotated>
FABRIC_INLINE void split(const u8* __restrict in, std::size_t n, u8* const* planes) {
  if constexpr (sizeof(Word) == 2) {  // two targets known apart: one pass, in vectors
    u8* __restrict low = planes[0];
    u8* __restrict high = planes[1];
    for (std::size_t i = 0; i < n; ++i) {
      Word word;
      std::memcpy(&word, in + i * sizeof word, sizeof word);
      if (kRotated) word = static_cast<Word>(word << 1 | word >> 15);
      low[i] = static_cast<u8>(word);
      high[i] = static_cast<u8>(word >> 8);
    }
  } else {
    for (u32 k = 0; k < sizeof(Word); ++k) {
      u8* __restrict plane = planes[k];
      for (std::size_t i = 0; i < n; ++i) {
        Word word;
        std::memcpy(&word, in + i * sizeof word, sizeof word);
        if (kRotated) word = std::rotl(word, 1);
        plane[i] = static_cast<u8>(word >> (8 * k));
      }
    }
  }
}

template <class Word, bool kRotated>
FABRIC_INLINE void merge(const u8* const* planes, std::size_t n, u8* __restrict out) {
  if constexpr (sizeof(Word) == 2) {
    const u8* __restrict low = planes[0];
    const u8* __restrict high = planes[1];
    for (std::size_t i = 0; i < n; ++i) {
      Word word = static_cast<Word>(low[i] | high[i] << 8);
      if (kRotated) word = static_cast<Word>(word >> 1 | word << 15);
      std::memcpy(out + i * sizeof word, &word, sizeof word);
    }
  } else {
    for (std::size_t i = 0; i < n; ++i) {
      Word word = 0;
      for (u32 k = 0; k < sizeof(Word); ++k) word = static_cast<Word>(word | Word{planes[k][i]} << (8 * k));
      if (kRotated) word = std::rotr(word, 1);
      std::memcpy(out + i * sizeof word, &word, sizeof word);
    }
  }
}

FABRIC_INLINE void split_any(const u8* in, std::size_t n, u32 width, bool rotated, u8* const* planes) {
  if (width == 1) std::memcpy(planes[0], in, n);
  if (width == 2) rotated ? split<u16, true>(in, n, planes) : split<u16, false>(in, n, planes);
  if (width == 4) rotated ? split<u32, true>(in, n, planes) : split<u32, false>(in, n, planes);
  if (width == 8) rotated ? split<u64, true>(in, n, planes) : split<u64, false>(in, n, planes);
}

FABRIC_INLINE void merge_any(const u8* const* planes, std::size_t n, u32 width, bool rotated, u8* out) {
  if (width == 1) std::memcpy(out, planes[0], n);
  if (width == 2) rotated ? merge<u16, true>(planes, n, out) : merge<u16, false>(planes, n, out);
  if (width == 4) rotated ? merge<u32, true>(planes, n, out) : merge<u32, false>(planes, n, out);
  if (width == 8) rotated ? merge<u64, true>(planes, n, out) : merge<u64, false>(planes, n, out);
}

FABRIC_INLINE void shift_any(u8* __restrict plane, std::size_t n, const u8* __restrict base, std::size_t row, bool back) {
  for (std::size_t begin = 0; begin < n; begin += row) {
    const std::size_t here = row < n - begin ? row : n - begin;
    u8* __restrict at = plane + begin;
    if (back) {
      for (std::size_t i = 0; i < here; ++i) at[i] = static_cast<u8>(at[i] + base[i]);
    } else {
      for (std::size_t i = 0; i < here; ++i) at[i] = static_cast<u8>(at[i] - base[i]);
    }
  }
}

FABRIC_WIDEST(split_best, split_any, (const u8* in, std::size_t n, u32 width, bool rotated, u8* const* planes),
              (in, n, width, rotated, planes))
FABRIC_WIDEST(merge_best, merge_any, (const u8* const* planes, std::size_t n, u32 width, bool rotated, u8* out),
              (planes, n, width, rotated, out))
FABRIC_WIDEST(shift_best, shift_any, (u8* plane, std::size_t n, const u8* base, std::size_t row, bool back),
              (plane, n, base, row, back))

}  // namespace

void split_planes(const u8* elements, std::size_t n, u32 width, bool rotated, u8* const* planes) {
  split_best(elements, n, width, rotated, planes);
}

void merge_planes(const u8* const* planes, std::size_t n, u32 width, bool rotated, u8* elements) {
  merge_best(planes, n, width, rotated, elements);
}

void shift_rows(u8* plane, std::size_t n, const u8* base, std::size_t row, bool back) {
  shift_best(plane, n, base, row, back);
}

void count_bytes(const u8* plane, std::size_t n, Counts& counts) {
  // Four tables: counting a byte does not wait for the same byte just before it.
  std::array<Counts, 4> part{};
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    u64 word;
    std::memcpy(&word, plane + i, sizeof word);
    for (u32 k = 0; k < 8; ++k) ++part[k & 3][(word >> (8 * k)) & 0xff];
  }
  for (; i < n; ++i) ++part[0][plane[i]];
  for (u32 symbol = 0; symbol < 256; ++symbol) {
    counts[symbol] = part[0][symbol] + part[1][symbol] + part[2][symbol] + part[3][symbol];
  }
}

}  // namespace fabric::codec
