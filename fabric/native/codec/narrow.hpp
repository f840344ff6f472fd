// Floats to and from 8 and 16 bits: branch-free bodies that compilers turn into vectors.
//
// Numbers of fewer bits as in IEEE 754 and, for fp8, OCP 8-bit Floating Point (OFP8) 1.0: e4m3 without infinities.
#pragma once

#include <bit>
#include <cstring>

#include "codec/vectors.hpp"
#include "core/layout.hpp"

namespace fabric::codec {

/// Rounds to nearest even in a format of kExponent and kMantissa bits; `x` is at most its largest number in size.
template <u32 kExponent, u32 kMantissa> FABRIC_INLINE u32 narrowed(float x) {
  constexpr u32 kBias = (1u << (kExponent - 1)) - 1, kShift = 23 - kMantissa;
  constexpr u32 kSubnormal = (127 - kBias + 1) << 23;                      // below its smallest normal number
  constexpr u32 kMagic = ((127 - kBias) + kShift + 1) << 23;               // adding it rounds at the last bit of those
  const u32 bits = std::bit_cast<u32>(x), size = bits & 0x7fffffff;
  const u32 small = std::bit_cast<u32>(std::bit_cast<float>(size) + std::bit_cast<float>(kMagic)) - kMagic;
  const u32 odd = size >> kShift & 1;
  const u32 normal = (size - ((127 - kBias) << 23) + ((1u << (kShift - 1)) - 1) + odd) >> kShift;
  return (size < kSubnormal ? small : normal) | (bits >> 31) << (kExponent + kMantissa);
}

/// The float of such a number; infinities and NaN of f16 as such where kSpecial.
template <u32 kExponent, u32 kMantissa, bool kSpecial> FABRIC_INLINE float widened(u32 bits) {
  constexpr u32 kBias = (1u << (kExponent - 1)) - 1, kShift = 23 - kMantissa, kTop = kExponent + kMantissa;
  constexpr u32 kRebias = (127 - kBias) << 23, kOne = 1u << 23;
  const u32 size = (bits & ((1u << kTop) - 1)) << kShift;
  const u32 special = kSpecial && size >= ((1u << kExponent) - 1) << 23 ? (128u - kBias - 1) << 23 : 0;
  const float small = std::bit_cast<float>(size + kRebias + kOne) - std::bit_cast<float>(kRebias + kOne);
  const u32 found = size < kOne ? std::bit_cast<u32>(small) : size + kRebias + special;
  return std::bit_cast<float>(found | (bits >> kTop & 1) << 31);
}

FABRIC_INLINE float from_bf16(u16 bits) { return std::bit_cast<float>(u32{bits} << 16); }
FABRIC_INLINE u16 to_bf16(float x) {
  const u32 bits = std::bit_cast<u32>(x);
  return static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace fabric::codec
