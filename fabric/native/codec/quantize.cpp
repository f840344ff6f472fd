#include "codec/quantize.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "codec/narrow.hpp"

namespace fabric::codec {
namespace {

constexpr std::size_t kChunk = 512;          // numbers that are worked on at once, as f32
constexpr u32 kInfinityBits = 0x7f800000;
constexpr float kScaleMin = 1e-35f;          // a smaller one has no reciprocal: all its numbers become 0
constexpr double kNormMin = 1e-24;           // of a row, squared: below, squares vanish in f32 and nothing was measured
constexpr float kRound = 12582912.0f;        // 1.5 * 2^23: adding it rounds to an integer

struct I8 {
  static constexpr float kMost = 127;
  static FABRIC_INLINE u8 code(float x) {
    return static_cast<u8>(std::bit_cast<u32>(x + kRound) - std::bit_cast<u32>(kRound));
  }
  static FABRIC_INLINE float number(u8 code) { return static_cast<float>(static_cast<std::int8_t>(code)); }
};
struct E4M3 {
  static constexpr float kMost = 448;
  static FABRIC_INLINE u8 code(float x) { return static_cast<u8>(narrowed<4, 3>(x)); }
  static FABRIC_INLINE float number(u8 code) { return widened<4, 3, false>(code); }
};
struct E5M2 {
  static constexpr float kMost = 57344;
  static FABRIC_INLINE u8 code(float x) { return static_cast<u8>(narrowed<5, 2>(x)); }
  static FABRIC_INLINE float number(u8 code) { return widened<5, 2, false>(code); }
};

struct F32 {
  using Bits = u32;
  static FABRIC_INLINE float in(u32 bits) { return std::bit_cast<float>(bits); }
  static FABRIC_INLINE u32 out(float x) { return std::bit_cast<u32>(x); }
};
struct F16 {
  using Bits = u16;
  static FABRIC_INLINE float in(u16 bits) { return widened<5, 10, true>(bits); }
  static FABRIC_INLINE u16 out(float x) {
    const u32 bits = std::bit_cast<u32>(x), most = std::bit_cast<u32>(65504.0f);
    return static_cast<u16>(narrowed<5, 10>(std::bit_cast<float>(std::min(bits & 0x7fffffff, most) | (bits & 0x80000000))));
  }
};
struct Bf16 {
  using Bits = u16;
  static FABRIC_INLINE float in(u16 bits) { return from_bf16(bits); }
  static FABRIC_INLINE u16 out(float x) { return to_bf16(x); }
};

template <class N> FABRIC_INLINE void read(const u8* __restrict from, std::size_t n, float* __restrict to) {
  for (std::size_t i = 0; i < n; ++i) {
    typename N::Bits bits;
    std::memcpy(&bits, from + i * sizeof bits, sizeof bits);
    to[i] = N::in(bits);
  }
}

template <class N> FABRIC_INLINE void write(const float* __restrict from, std::size_t n, u8* __restrict to) {
  for (std::size_t i = 0; i < n; ++i) {
    const typename N::Bits bits = N::out(from[i]);
    std::memcpy(to + i * sizeof bits, &bits, sizeof bits);
  }
}

FABRIC_INLINE u32 size_bits(float x) { return std::bit_cast<u32>(x) & 0x7fffffff; }

/// The largest size as bits: floats without sign are ordered as their bits are, NaN above infinity.
FABRIC_INLINE u32 largest(const float* __restrict x, std::size_t n) {
  u32 most = 0;
  for (std::size_t i = 0; i < n; ++i) most = std::max(most, size_bits(x[i]));
  return most;
}

template <class C> FABRIC_INLINE float scale_of(u32 most) {
  const float scale = std::bit_cast<float>(most) / C::kMost;
  return scale >= kScaleMin ? scale : 0;
}

/// Sums in 16 lanes: a sum in one variable has an order, which vectors would change.
struct Sums {
  float error2[16] = {}, norm2[16] = {};
};

FABRIC_INLINE void add(const float* __restrict x, std::size_t n, float (&sums)[16]) {
  float lane[16];
  std::copy_n(sums, 16, lane);
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (std::size_t k = 0; k < 16; ++k) lane[k] += x[i + k] * x[i + k];
  }
  for (; i < n; ++i) lane[i % 16] += x[i] * x[i];
  std::copy_n(lane, 16, sums);
}

/// At most kChunk numbers that share a scale, or (kColumns) have one each. The largest times its inverse is at most a
/// rounding above kMost, and becomes that: nothing is to be clamped.
template <class C, bool kColumns>
FABRIC_INLINE void code_many(const float* __restrict x, std::size_t n, const float* __restrict scale,
                             const float* __restrict inverse, u8* __restrict out, Sums& sums) {
  alignas(64) float error[kChunk];
  for (std::size_t i = 0; i < n; ++i) {
    const u8 code = C::code(x[i] * inverse[kColumns ? i : 0]);
    out[i] = code;
    error[i] = x[i] - C::number(code) * scale[kColumns ? i : 0];
  }
  add(error, n, sums.error2);
  add(x, n, sums.norm2);
}

FABRIC_INLINE void add_row(const Sums& sums, u32 most, Loss& loss) {
  double error2 = 0, norm2 = 0;
  for (std::size_t k = 0; k < 16; ++k) {
    error2 += sums.error2[k];
    norm2 += sums.norm2[k];
  }
  loss.error2 += error2;
  loss.norm2 += norm2;
  if (most == 0) return;
  const bool measured = norm2 >= kNormMin && std::isfinite(norm2) && std::isfinite(error2);
  loss.worst_row = std::max(loss.worst_row, measured ? error2 / norm2 : 1.0);  // squared until the end
}

template <class N, class C>
FABRIC_INLINE void by_group(const u8* in, const Matrix& m, u8* codes, float* scales, Loss& loss) {
  alignas(64) float x[kChunk];
  for (std::size_t row = 0; row < m.rows; ++row) {
    Sums sums;
    u32 row_most = 0;
    for (std::size_t begin = 0; begin < m.columns; begin += m.group) {
      const std::size_t end = std::min(m.columns, begin + m.group);
      const u8* row_in = in + row * m.columns * sizeof(typename N::Bits);
      u32 most = 0;
      for (std::size_t at = begin; at < end; at += kChunk) {
        const std::size_t n = std::min(kChunk, end - at);
        read<N>(row_in + at * sizeof(typename N::Bits), n, x);
        most = std::max(most, largest(x, n));
      }
      if (most >= kInfinityBits) loss.finite = false;
      row_most = std::max(row_most, most);
      const float scale = scale_of<C>(most), inverse = scale > 0 ? 1 / scale : 0;
      *scales++ = scale;
      for (std::size_t at = begin; at < end; at += kChunk) {
        const std::size_t n = std::min(kChunk, end - at);
        if (end - begin > kChunk) read<N>(row_in + at * sizeof(typename N::Bits), n, x);
        code_many<C, false>(x, n, &scale, &inverse, codes + row * m.columns + at, sums);
      }
    }
    add_row(sums, row_most, loss);
  }
}

/// Columns in bands of kChunk, each band's rows one after another: what is counted of a band stays close.
template <class N, class C>
FABRIC_INLINE void by_column(const u8* in, const Matrix& m, u8* codes, float* scales, Loss& loss) {
  alignas(64) float x[kChunk];
  alignas(64) u32 most[kChunk];
  const std::size_t size = sizeof(typename N::Bits);
  for (std::size_t begin = 0; begin < m.columns; begin += kChunk) {
    const std::size_t n = std::min(kChunk, m.columns - begin);
    std::fill_n(most, n, 0);
    for (std::size_t row = 0; row < m.rows; ++row) {
      read<N>(in + (row * m.columns + begin) * size, n, x);
      for (std::size_t i = 0; i < n; ++i) most[i] = std::max(most[i], size_bits(x[i]));
    }
    for (std::size_t i = 0; i < n; ++i) {
      if (most[i] >= kInfinityBits) loss.finite = false;
      scales[begin + i] = scale_of<C>(most[i]);
    }
  }
  alignas(64) float inverse[kChunk];
  for (std::size_t row = 0; row < m.rows; ++row) {
    Sums sums;
    u32 row_most = 0;
    for (std::size_t begin = 0; begin < m.columns; begin += kChunk) {
      const std::size_t n = std::min(kChunk, m.columns - begin);
      if (row == 0 || m.columns > kChunk) {
        for (std::size_t i = 0; i < n; ++i) inverse[i] = scales[begin + i] > 0 ? 1 / scales[begin + i] : 0;
      }
      read<N>(in + (row * m.columns + begin) * size, n, x);
      row_most = std::max(row_most, largest(x, n));
      code_many<C, true>(x, n, scales + begin, inverse, codes + row * m.columns + begin, sums);
    }
    add_row(sums, row_most, loss);
  }
}

template <class N, class C>
FABRIC_INLINE void back(const u8* __restrict codes, const Matrix& m, const float* __restrict scales, u8* out) {
  alignas(64) float x[kChunk];
  const std::size_t band = m.group == 0 ? kChunk : std::min(m.group, kChunk);
  for (std::size_t row = 0; row < m.rows; ++row) {
    const float* row_scales = m.group == 0 ? scales : scales + row * m.groups();
    for (std::size_t begin = 0; begin < m.columns;) {
      // A group longer than a chunk is several; one never reaches into the next.
      const std::size_t edge = m.group == 0 ? m.columns : std::min(m.columns, (begin / m.group + 1) * m.group);
      const std::size_t n = std::min(band, edge - begin);
      const u8* __restrict from = codes + row * m.columns + begin;
      if (m.group == 0) {
        for (std::size_t i = 0; i < n; ++i) x[i] = C::number(from[i]) * row_scales[begin + i];
      } else {
        const float scale = row_scales[begin / m.group];
        for (std::size_t i = 0; i < n; ++i) x[i] = C::number(from[i]) * scale;
      }
      write<N>(x, n, out + (row * m.columns + begin) * sizeof(typename N::Bits));
      begin += n;
    }
  }
}

template <class N, class C>
FABRIC_INLINE void forth(const u8* in, const Matrix& m, u8* codes, float* scales, Loss& loss) {
  m.group == 0 ? by_column<N, C>(in, m, codes, scales, loss) : by_group<N, C>(in, m, codes, scales, loss);
}

#define FABRIC_EACH_NUMBER(number, call, code)          \
  switch (number) {                                     \
    case Number::f32: call(F32, code); break;           \
    case Number::f16: call(F16, code); break;           \
    case Number::bf16: call(Bf16, code); break;         \
  }
#define FABRIC_EACH(number, code, call)                                     \
  switch (code) {                                                           \
    case Code8::i8: FABRIC_EACH_NUMBER(number, call, I8) break;             \
    case Code8::e4m3: FABRIC_EACH_NUMBER(number, call, E4M3) break;         \
    case Code8::e5m2: FABRIC_EACH_NUMBER(number, call, E5M2) break;         \
  }

FABRIC_INLINE void quantize_any(const u8* in, Number number, const Matrix& m, Code8 code, u8* codes, float* scales,
                                Loss& loss) {
#define FABRIC_FORTH(N, C) forth<N, C>(in, m, codes, scales, loss)
  FABRIC_EACH(number, code, FABRIC_FORTH)
}

FABRIC_INLINE void dequantize_any(const u8* codes, Code8 code, const Matrix& m, const float* scales, Number number,
                                  u8* out) {
#define FABRIC_BACK(N, C) back<N, C>(codes, m, scales, out)
  FABRIC_EACH(number, code, FABRIC_BACK)
}

FABRIC_WIDEST(quantize_best, quantize_any,
              (const u8* in, Number number, const Matrix& m, Code8 code, u8* codes, float* scales, Loss& loss),
              (in, number, m, code, codes, scales, loss))
FABRIC_WIDEST(dequantize_best, dequantize_any,
              (const u8* codes, Code8 code, const Matrix& m, const float* scales, Number number, u8* out),
              (codes, code, m, scales, number, out))

}  // namespace

Loss quantize(const void* numbers, Number number, const Matrix& matrix, Code8 code, u8* codes, float* scales) {
  Loss loss;
  quantize_best(static_cast<const u8*>(numbers), number, matrix, code, codes, scales, loss);
  loss.worst_row = std::sqrt(loss.worst_row);
  return loss;
}

void dequantize(const u8* codes, Code8 code, const Matrix& matrix, const float* scales, Number number, void* numbers) {
  dequantize_best(codes, code, matrix, scales, number, static_cast<u8*>(numbers));
}

}  // namespace fabric::codec
