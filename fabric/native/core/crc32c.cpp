#include "core/crc32c.hpp"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
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
u64 load(const u8* at) {
  u64 word;
  std::memcpy(&word, at, 8);
  return word;
}

__attribute__((target("sse4.2"))) u32 crc32c_sse42(const u8* at, std::size_t bytes, u32 crc) {
  u64 state = crc;
  for (; bytes >= 8; at += 8, bytes -= 8) state = _mm_crc32_u64(state, load(at));
  while (bytes-- > 0) state = _mm_crc32_u8(static_cast<u32>(state), *at++);
  return static_cast<u32>(state);
}

/// x^n modulo the polynomial, reflected.
constexpr u32 power_of_x(u32 n) {
  u32 value = 0x80000000;
  while (n-- > 0) value = (value >> 1) ^ ((value & 1) != 0 ? kPolynomial : 0);
  return value;
}

// One crc32 instruction waits three cycles for the one before it: three runs beside each other use each of them.
// Products of reflected numbers come out shifted by one, and crc32 multiplies by x^32: hence 8 n - 33.
constexpr std::size_t kRunBytes = 1024;
constexpr u64 kSkipOne = power_of_x(8 * kRunBytes - 33), kSkipTwo = power_of_x(16 * kRunBytes - 33);

__attribute__((target("sse4.2,pclmul"))) u64 skip(u64 crc, u64 factor) {
  const __m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128(static_cast<long long>(crc)),
                                               _mm_cvtsi64_si128(static_cast<long long>(factor)), 0);
  return _mm_crc32_u64(0, static_cast<u64>(_mm_cvtsi128_si64(product)));
}

__attribute__((target("sse4.2,pclmul"))) u32 crc32c_three(const u8* at, std::size_t bytes, u32 crc) {
  u64 first = crc;
  for (; bytes >= 3 * kRunBytes; at += 3 * kRunBytes, bytes -= 3 * kRunBytes) {
    u64 second = 0, third = 0;
    for (std::size_t i = 0; i < kRunBytes; i += 8) {
      first = _mm_crc32_u64(first, load(at + i));
      second = _mm_crc32_u64(second, load(at + kRunBytes + i));
      third = _mm_crc32_u64(third, load(at + 2 * kRunBytes + i));
    }
    first = skip(first, kSkipTwo) ^ skip(second, kSkipOne) ^ third;
  }
  return crc32c_sse42(at, bytes, static_cast<u32>(first));
}

// Folding: 128 bits move D bits onwards by a product with x^(D+32) for their first half and x^(D-32) for their second.
constexpr std::size_t kFoldBytes = 256;
constexpr long long kFold[5][2] = {  // by 128, 256, 384, 512 and 2048 bits
    {static_cast<long long>(u64{power_of_x(160)} << 1), static_cast<long long>(u64{power_of_x(96)} << 1)},
    {static_cast<long long>(u64{power_of_x(288)} << 1), static_cast<long long>(u64{power_of_x(224)} << 1)},
    {static_cast<long long>(u64{power_of_x(416)} << 1), static_cast<long long>(u64{power_of_x(352)} << 1)},
    {static_cast<long long>(u64{power_of_x(544)} << 1), static_cast<long long>(u64{power_of_x(480)} << 1)},
    {static_cast<long long>(u64{power_of_x(2080)} << 1), static_cast<long long>(u64{power_of_x(2016)} << 1)}};

#define FABRIC_WIDE "avx512f,avx512dq,vpclmulqdq,pclmul,sse4.2"

__attribute__((target(FABRIC_WIDE))) inline __m512i fold(__m512i value, __m512i factors, __m512i next) {
  return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(value, factors, 0x00),
                                   _mm512_clmulepi64_epi128(value, factors, 0x11), next, 0x96);
}

__attribute__((target(FABRIC_WIDE))) inline __m128i fold(__m128i value, int by) {
  const __m128i factors = _mm_set_epi64x(kFold[by][1], kFold[by][0]);
  return _mm_xor_si128(_mm_clmulepi64_si128(value, factors, 0x00), _mm_clmulepi64_si128(value, factors, 0x11));
}

/// At least 2 × kFoldBytes.
__attribute__((target(FABRIC_WIDE))) u32 crc32c_wide(const u8* at, std::size_t bytes, u32 crc) {
  __m512i a = _mm512_loadu_si512(at), b = _mm512_loadu_si512(at + 64);
  __m512i c = _mm512_loadu_si512(at + 128), d = _mm512_loadu_si512(at + 192);
  a = _mm512_xor_si512(a, _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(crc))));
  const __m512i far = _mm512_broadcast_i64x2(_mm_set_epi64x(kFold[4][1], kFold[4][0]));
  for (at += kFoldBytes, bytes -= kFoldBytes; bytes >= kFoldBytes; at += kFoldBytes, bytes -= kFoldBytes) {
    a = fold(a, far, _mm512_loadu_si512(at));
    b = fold(b, far, _mm512_loadu_si512(at + 64));
    c = fold(c, far, _mm512_loadu_si512(at + 128));
    d = fold(d, far, _mm512_loadu_si512(at + 192));
  }
  const __m512i near = _mm512_broadcast_i64x2(_mm_set_epi64x(kFold[3][1], kFold[3][0]));
  a = fold(fold(fold(a, near, b), near, c), near, d);
  const __m128i one = _mm_xor_si128(
      _mm_xor_si128(fold(_mm512_extracti64x2_epi64(a, 0), 2), fold(_mm512_extracti64x2_epi64(a, 1), 1)),
      _mm_xor_si128(fold(_mm512_extracti64x2_epi64(a, 2), 0), _mm512_extracti64x2_epi64(a, 3)));
  u64 state = _mm_crc32_u64(0, static_cast<u64>(_mm_extract_epi64(one, 0)));
  state = _mm_crc32_u64(state, static_cast<u64>(_mm_extract_epi64(one, 1)));
  return crc32c_sse42(at, bytes, static_cast<u32>(state));
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

Crc32cWay best_way() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("vpclmulqdq") != 0) return Crc32cWay::wide;
  if (__builtin_cpu_supports("sse4.2") != 0 && __builtin_cpu_supports("pclmul") != 0) return Crc32cWay::three;
#endif
  return Crc32cWay::table;
}

}  // namespace

u32 crc32c(const void* data, std::size_t bytes, u32 seed) {
  static const Crc32cWay best = best_way();
  return crc32c_by(best, data, bytes, seed);
}

bool crc32c_can(Crc32cWay way) { return way <= best_way(); }

u32 crc32c_by(Crc32cWay way, const void* data, std::size_t bytes, u32 seed) {
  const u8* at = static_cast<const u8*>(data);
#if defined(__x86_64__)
  if (way == Crc32cWay::wide && bytes >= 2 * kFoldBytes) return ~crc32c_wide(at, bytes, ~seed);
  if (way != Crc32cWay::table) return ~crc32c_three(at, bytes, ~seed);
#endif
  return ~crc32c_slices(at, bytes, ~seed);
}

}  // namespace fabric
