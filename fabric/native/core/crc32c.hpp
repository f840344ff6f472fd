// CRC-32C (Castagnoli, RFC 3720 §B.4) in the fastest way that the processor has.
#pragma once

#include <cstddef>

#include "core/layout.hpp"

namespace fabric {

/// Each includes what is before it: a table; SSE4.2 in three runs; carry-less products of 512 bits.
enum class Crc32cWay : u8 { table, three, wide };

u32 crc32c(const void* data, std::size_t bytes, u32 seed = 0);
bool crc32c_can(Crc32cWay way);
u32 crc32c_by(Crc32cWay way, const void* data, std::size_t bytes, u32 seed = 0);  ///< all give the same; for tests

}  // namespace fabric
