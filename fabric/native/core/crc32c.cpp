#include "core/crc32c.hpp"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace fabric {
namespace {

constexpr u32 kPolynomial = 0x82f63b78;  // reflected 0x1EDC6F41

using Tables = std::array<std::array<u32, 256>, 8>;

constexpr Tables make_tables() {
  Tables tables{};
  for (u32 i = 0; i < 256; ++i) {
    u32 crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? kPolynomial : 0);
    tables[0][i] = crc;
  }
  for (u32 i = 0; i < 256; ++i) {
    for (std::size_t t = 1; t < 8; ++t) {
      tables[t][i] = (tables[t - 1][i] >> 8) ^ tables[0][tables[t - 1][i] & 0xff];
    }
  }
  return tables;
}
constexpr Tables kTables = make_tables();

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) u32 crc32c_sse42(const u8* at, std::size_t bytes, u32 crc) {
  u64 state = crc;
  while (bytes >= 8) {
    u64 word;
    std::memcpy(&word, at, 8);
    state = _mm_crc32_u64(state, word);
    at += 8;
    bytes -= 8;
  }
  while (bytes-- > 0) state = _mm_crc32_u8(static_cast<u32>(state), *at++);
  return static_cast<u32>(state);
}
#endif

u32 crc32c_slices(const u8* at, std::size_t bytes, u32 crc) {
  while (bytes >= 8) {
    u64 word;
    std::memcpy(&word, at, 8);
    word ^= crc;
    crc = 0;
    for (std::size_t t = 0; t < 8; ++t) crc ^= kTables[7 - t][(word >> (8 * t)) & 0xff];
    at += 8;
    bytes -= 8;
  }
  while (bytes-- > 0) crc = (crc >> 8) ^ kTables[0][(crc ^ *at++) & 0xff];
  return crc;
}

}  // namespace

u32 crc32c_table(const void* data, std::size_t bytes, u32 seed) {
  return ~crc32c_slices(static_cast<const u8*>(data), bytes, ~seed);
}

u32 crc32c(const void* data, std::size_t bytes, u32 seed) {
#if defined(__x86_64__)
  static const bool fast = __builtin_cpu_supports("sse4.2") != 0;
  if (fast) return ~crc32c_sse42(static_cast<const u8*>(data), bytes, ~seed);
#endif
  return crc32c_table(data, bytes, seed);
}

}  // namespace fabric
