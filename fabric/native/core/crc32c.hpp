// CRC-32C (Castagnoli, RFC 3720 §B.4): SSE4.2 where the processor has it, a table elsewhere.
#pragma once

#include <cstddef>

#include "core/layout.hpp"

namespace fabric {

u32 crc32c(const void* data, std::size_t bytes, u32 seed = 0);
u32 crc32c_table(const void* data, std::size_t bytes, u32 seed = 0);  ///< the fallback, for its test

}  // namespace fabric
