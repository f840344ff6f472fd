// Elements taken apart into planes of bytes, and put together; the sizes of what is counted are those of one block.
//
// Pure functions over memory of the caller's. Each runs in the widest vectors that the processor has.
#pragma once

#include <cstddef>

#include "codec/prefix_code.hpp"

namespace fabric::codec {

inline constexpr u32 kWidthMax = 8;

/// Bytes of `n` elements of `width` (1, 2, 4, 8) bytes: byte k of element i goes to planes[k][i]. `rotated`: of each element
/// turned left by one bit first, which puts the exponent of bf16 and f32 into a byte of its own and the sign behind the mantissa.
void split_planes(const u8* elements, std::size_t n, u32 width, bool rotated, u8* const* planes);
/// The reverse.
void merge_planes(const u8* const* planes, std::size_t n, u32 width, bool rotated, u8* elements);
/// Subtracts `base[i % row]` from plane[i], modulo 256; with `back` adds it.
void shift_rows(u8* plane, std::size_t n, const u8* base, std::size_t row, bool back);
/// How often each byte is there.
void count_bytes(const u8* plane, std::size_t n, Counts& counts);

}  // namespace fabric::codec
