// The float codec with hostile bytes: it refuses, or fills what was asked for and nothing else; and what it encodes
// itself comes back.
//
// Input: u8 of kind (even: the rest is decoded; odd: it is encoded, bits 1-2 the width, bit 3 rotated, bit 4 in rows of 16).
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "codec/float_codec.hpp"

using namespace fabric;
using namespace fabric::codec;

namespace {

constexpr u64 kRawMax = 1 << 20;

void decode(const std::uint8_t* data, std::size_t size) {
  const std::vector<u8> in(data, data + size);  // of exactly this size, for AddressSanitizer
  const char* why = nullptr;
  const u64 bytes = decoded_floats_bytes(in.data(), in.size(), why);
  if (why != nullptr || bytes > kRawMax) return;
  std::vector<u8> raw(bytes);
  (void)decode_floats(in.data(), in.size(), raw.data(), raw.size());
}

void there_and_back(std::uint8_t kind, const std::uint8_t* data, std::size_t size) {
  const FloatLayout layout{1u << (kind >> 1 & 3), (kind & 8) != 0, (kind & 16) != 0 ? 16u : 0u};
  const std::vector<u8> raw(data, data + size);
  std::vector<u8> out(encoded_floats_max(size, layout)), back(size);
  const u64 bytes = encode_floats(raw.data(), size, layout, out.data());
  if (bytes > out.size()) std::abort();
  if (decode_floats(out.data(), bytes, back.data(), size) != nullptr || back != raw) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 1) return 0;
  (data[0] & 1) != 0 ? there_and_back(data[0], data + 1, size - 1) : decode(data + 1, size - 1);
  return 0;
}
