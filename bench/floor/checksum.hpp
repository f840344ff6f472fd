// CRC-32C as fast as one core can: three streams of the instruction, joined.
#pragma once

#include "system.hpp"

namespace floors {

u32 crc32c(std::span<const u8> data);
u64 sum_of_words(std::span<const u8> data);  ///< of the whole 64-bit words, modulo 2^64

}  // namespace floors
