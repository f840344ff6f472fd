// Quantisation: every code of every format and back, bounds of the loss, and no byte outside of what was given.
#include "codec/quantize.hpp"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "codec/narrow.hpp"
#include "tests/check.hpp"

using namespace fabric;
using namespace fabric::codec;

namespace {

/// What the bits of a small float mean, from the definition.
double meaning(u32 bits, int exponent, int mantissa) {
  const int bias = (1 << (exponent - 1)) - 1;
  const int e = static_cast<int>(bits >> mantissa) & ((1 << exponent) - 1), m = static_cast<int>(bits) & ((1 << mantissa) - 1);
  const double size = e == 0 ? std::ldexp(m, 1 - bias - mantissa) : std::ldexp(m + (1 << mantissa), e - bias - mantissa);
  return bits >> (exponent + mantissa) & 1 ? -size : size;
}

void fp8_numbers_are_what_their_definition_says() {
  for (u32 bits = 0; bits < 256; ++bits) {
    if ((bits & 0x7f) != 0x7f) {
      CHECK((widened<4, 3, false>(bits)) == static_cast<float>(meaning(bits, 4, 3)));
      CHECK((narrowed<4, 3>(widened<4, 3, false>(bits))) == bits);
    }
    if ((bits & 0x7f) < 0x7c) {
      CHECK((widened<5, 2, false>(bits)) == static_cast<float>(meaning(bits, 5, 2)));
      CHECK((narrowed<5, 2>(widened<5, 2, false>(bits))) == bits);
    }
  }
  for (u32 bits = 0; bits < 65536; ++bits) {
    if ((bits & 0x7fff) >= 0x7c00) continue;
    CHECK((widened<5, 10, true>(bits)) == static_cast<float>(meaning(bits, 5, 10)));
    CHECK((narrowed<5, 10>(widened<5, 10, true>(bits))) == bits);
  }
  CHECK(std::isinf(widened<5, 10, true>(0x7c00)) && std::isnan(widened<5, 10, true>(0x7e00)));
}

void rounding_goes_to_the_nearest() {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> any(-448, 448);
  for (int round = 0; round < 100'000; ++round) {
    const float x = any(random) * std::exp2(static_cast<float>(-(round % 20)));
    const u32 code = narrowed<4, 3>(x);
    const double error = std::abs(meaning(code, 4, 3) - x);
    for (const u32 other : {code + 1, code - 1}) {
      if ((other & 0x7f) < 0x7f && (other ^ code) < 128) CHECK(error <= std::abs(meaning(other & 0xff, 4, 3) - x));
    }
  }
}

std::vector<float> normal(std::size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> draw;
  std::vector<float> out(n);
  for (float& x : out) x = draw(random);
  return out;
}

/// Both ways over buffers of exactly the right size; returns the loss, checked against one computed here.
Loss there_and_back(const std::vector<float>& x, const Matrix& m, Code8 code) {
  std::vector<u8> codes(x.size());
  std::vector<float> scales(m.scales()), back(x.size());
  const Loss loss = quantize(x.data(), Number::f32, m, code, codes.data(), scales.data());
  dequantize(codes.data(), code, m, scales.data(), Number::f32, back.data());
  double error2 = 0, norm2 = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double error = x[i] - back[i];
    error2 += error * error;
    norm2 += double{x[i]} * x[i];
    if (code == Code8::i8) {
      const std::size_t at = m.group == 0 ? i % m.columns : i / m.columns * m.groups() + i % m.columns / m.group;
      CHECK(scales[at] == 0 || std::abs(error) <= scales[at] * 0.5001);
    }
  }
  CHECK(std::abs(error2 - loss.error2) <= 1e-3 * norm2 + 1e-30);
  CHECK(std::abs(norm2 - loss.norm2) <= 1e-4 * norm2 + 1e-30);
  return loss;
}

void losses_are_measured_and_small() {
  for (const std::size_t columns : {1, 15, 16, 17, 192, 512, 513, 1400}) {
    for (const std::size_t group : {0, 1, 16, 100, 128, 600, 5000}) {
      const std::vector<float> x = normal(columns * 37, static_cast<unsigned>(columns + group));
      for (const Code8 code : {Code8::i8, Code8::e4m3, Code8::e5m2}) {
        const Loss loss = there_and_back(x, {37, columns, group}, code);
        const double relative = std::sqrt(loss.error2 / loss.norm2);
        CHECK(loss.finite && relative < (code == Code8::i8 ? 0.015 : code == Code8::e4m3 ? 0.035 : 0.07));
        CHECK(loss.worst_row >= relative * 0.99);
      }
    }
  }
}

void a_row_of_outliers_costs_others_nothing_in_groups() {
  std::vector<float> x = normal(64 * 512, 4);
  for (std::size_t i = 0; i < 512; ++i) x[7 * 512 + i] *= 25'000;
  CHECK(there_and_back(x, {64, 512, 128}, Code8::i8).worst_row < 0.025);
  CHECK(there_and_back(x, {64, 512, 0}, Code8::i8).worst_row > 0.9);
}

void what_has_no_scale_is_said_or_zero() {
  std::vector<float> x(64);
  CHECK(there_and_back(x, {4, 16, 8}, Code8::e4m3).worst_row == 0);
  for (float& each : x) each = 1e-40f;
  CHECK(there_and_back(x, {4, 16, 0}, Code8::i8).worst_row > 0.99);
  for (const float bad : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    x[5] = bad;
    std::vector<u8> codes(64);
    std::vector<float> scales(16);
    CHECK(!quantize(x.data(), Number::f32, {4, 16, 0}, Code8::i8, codes.data(), scales.data()).finite);
    CHECK(!quantize(x.data(), Number::f32, {4, 16, 4}, Code8::i8, codes.data(), scales.data()).finite);
  }
  CHECK(quantize(nullptr, Number::f32, {0, 16, 4}, Code8::i8, nullptr, nullptr).norm2 == 0);
}

}  // namespace

int main() {
  fp8_numbers_are_what_their_definition_says();
  rounding_goes_to_the_nearest();
  losses_are_measured_and_small();
  a_row_of_outliers_costs_others_nothing_in_groups();
  what_has_no_scale_is_said_or_zero();
  return 0;
}
