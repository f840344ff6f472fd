#include "checksum.hpp"

#include <cstring>

#if defined(__SSE4_2__)
#include <nmmintrin.h>
#endif

namespace floors {
namespace {

constexpr u32 kPolynomial = 0x82f63b78;  // reflected 0x1EDC6F41
constexpr std::size_t kThreeWayMin = 1024;

u32 word_step(u32 crc, const u8* at) {
#if defined(__SSE4_2__)
  u64 word;
  std::memcpy(&word, at, 8);
  return static_cast<u32>(_mm_crc32_u64(crc, word));
#else
  for (int i = 0; i < 8; ++i) {
    crc ^= at[i];
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
  }
  return crc;
#endif
}

u32 byte_step(u32 crc, u8 byte) {
  crc ^= byte;
  for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
  return crc;
}

/// a · b modulo the polynomial; the first coefficient is the highest bit.
u32 multiply(u32 a, u32 b) {
  u32 product = 0;
  for (u32 bit = 1u << 31; bit != 0; bit >>= 1) {
    if ((a & bit) != 0) product ^= b;
    b = (b >> 1) ^ ((b & 1) != 0 ? kPolynomial : 0);
  }
  return product;
}

/// x^(8 · bytes): what a checksum is multiplied with when so many bytes follow.
u32 power_of_bytes(u64 bytes) {
  u32 result = 1u << 31, square = 1u << 23;  // 1 and x^8
  for (; bytes != 0; bytes >>= 1) {
    if ((bytes & 1) != 0) result = multiply(result, square);
    square = multiply(square, square);
  }
  return result;
}

}  // namespace

u32 crc32c(std::span<const u8> data) {
  const u8* at = data.data();
  std::size_t left = data.size();
  u32 crc = ~u32{0};
  if (left >= kThreeWayMin) {
    const std::size_t part = left / 24 * 8;
    static u64 power_bytes = 0;  // chunks are of one length nearly always
    static u32 power = 0;
    if (power_bytes != part) power = power_of_bytes(power_bytes = part);
    u32 second = 0, third = 0;
    for (std::size_t i = 0; i < part; i += 8) {
      crc = word_step(crc, at + i);
      second = word_step(second, at + part + i);
      third = word_step(third, at + 2 * part + i);
    }
    crc = multiply(multiply(crc, power) ^ second, power) ^ third;
    at += 3 * part;
    left -= 3 * part;
  }
  for (; left >= 8; at += 8, left -= 8) crc = word_step(crc, at);
  for (; left != 0; ++at, --left) crc = byte_step(crc, *at);
  return ~crc;
}

u64 sum_of_words(std::span<const u8> data) {
  const auto* words = reinterpret_cast<const u64*>(data.data());  // pages: aligned
  u64 sum = 0;
  for (std::size_t i = 0; i < data.size() / 8; ++i) sum += words[i];
  return sum;
}

}  // namespace floors
