// The float codec: what comes back is what went in, whatever the bytes, and nothing that is decoded reaches outside.
#include "codec/float_codec.hpp"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "codec/prefix_code.hpp"
#include "tests/check.hpp"

using namespace fabric;
using namespace fabric::codec;

namespace {

using Bytes = std::vector<u8>;

/// bf16 values of normal distribution, each column with its own scale: what keys of attention look like.
Bytes keys(std::size_t rows, u32 row, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Bytes out(rows * row * 2);
  for (std::size_t i = 0; i < rows * row; ++i) {
    const float value = normal(random) * std::exp2(static_cast<float>(i % row % 11));
    std::memcpy(&out[2 * i], reinterpret_cast<const char*>(&value) + 2, 2);
  }
  return out;
}

Bytes encoded(const Bytes& raw, const FloatLayout& layout) {
  // Exactly as large as promised, so that AddressSanitizer sees a write behind it.
  Bytes out(encoded_floats_max(raw.size(), layout));
  out.resize(encode_floats(raw.data(), raw.size(), layout, out.data()));
  out.shrink_to_fit();
  return out;
}

const char* decoded(const Bytes& in, Bytes& raw) { return decode_floats(in.data(), in.size(), raw.data(), raw.size()); }

void returns(const Bytes& raw, const FloatLayout& layout) {
  const Bytes in = encoded(raw, layout);
  Bytes back(raw.size());
  const char* why = nullptr;
  CHECK(decoded_floats_bytes(in.data(), in.size(), why) == raw.size() && why == nullptr);
  CHECK(decoded(in, back) == nullptr);
  CHECK(back == raw);
}

void every_length_and_layout_returns() {
  for (const u32 width : {1u, 2u, 4u, 8u}) {
    for (const u32 row : {0u, 1u, 7u, 192u, 40000u}) {
      for (const std::size_t bytes : {0, 1, 2, 7, 8, 9, 63, 64, 500, 4096, 4097, 300'001, 1 << 20}) {
        Bytes raw = keys(bytes / 384 + 1, 192, static_cast<unsigned>(bytes));
        raw.resize(bytes);
        returns(raw, {width, true, row});
        returns(raw, {width, false, row});
      }
    }
  }
}

void every_kind_of_content_returns() {
  std::mt19937 random(1);
  Bytes noise(700'001), zeros(700'001), steep(700'001), single(700'001);
  for (u8& byte : noise) byte = static_cast<u8>(random());
  for (u8& byte : steep) byte = static_cast<u8>(__builtin_clz(static_cast<u32>(random()) | 1));  // codes of 1 to 30 bits
  single[350'000] = 1;
  for (const Bytes* raw : {&noise, &zeros, &steep, &single}) {
    for (const u32 width : {1u, 2u, 4u}) returns(*raw, {width, width > 1, 0});
  }
  CHECK(encoded(noise, {2, true}).size() <= noise.size() + 200);
  CHECK(encoded(zeros, {2, true}).size() < 200);
}

void columns_of_their_own_scale_pay() {
  const Bytes raw = keys(2000, 192, 3);
  const std::size_t flat = encoded(raw, {2, true, 0}).size(), by_column = encoded(raw, {2, true, 192}).size();
  CHECK(flat < raw.size() * 0.8);
  CHECK(by_column < flat * 0.95);
}

void a_code_is_complete_and_short_enough() {
  std::mt19937 random(5);
  for (int round = 0; round < 2000; ++round) {
    Counts counts{};
    const u32 symbols = 2 + random() % 255;
    for (u32 i = 0; i < symbols; ++i) counts[random() % 256] = 1 + (random() >> (random() % 32));
    counts[3] += 1;
    counts[7] += 1;
    Lengths lengths;
    choose_lengths(counts, lengths);
    for (u32 i = 0; i < 256; ++i) CHECK((lengths[i] > 0) == (counts[i] > 0) && lengths[i] <= kCodeBitsMax);
    CHECK(std::make_unique<DecodeTable>()->build(lengths));
  }
}

void damage_is_refused_or_harmless() {
  const Bytes raw = keys(400, 192, 9), good = encoded(raw, {2, true, 192});
  Bytes back(raw.size());
  for (std::size_t cut = 0; cut < good.size(); cut += 1 + cut / 8) {
    const Bytes shorter(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(cut));
    CHECK(decoded(shorter, back) != nullptr);
  }
  std::mt19937 random(11);
  int refused = 0;
  for (int round = 0; round < 3000; ++round) {
    Bytes bad = good;
    const std::size_t reach = round % 2 == 0 ? 300 : bad.size();  // header, columns and sizes, or anywhere
    for (u32 i = 0; i <= random() % 4; ++i) bad[random() % reach] = static_cast<u8>(random());
    refused += decoded(bad, back) != nullptr;
  }
  CHECK(refused > 300);
  Bytes longer = good;
  longer.push_back(0);
  CHECK(decoded(longer, back) != nullptr);
}

}  // namespace

int main() {
  every_length_and_layout_returns();
  every_kind_of_content_returns();
  columns_of_their_own_scale_pay();
  a_code_is_complete_and_short_enough();
  damage_is_refused_or_harmless();
  return 0;
}
