#include "copy_end.hpp"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace floors {

void copy_past_cache(u8* to, const u8* from, std::size_t bytes) {
#if defined(__AVX2__)
  const std::size_t whole = bytes / 32 * 32;  // slots begin at a page
  for (std::size_t at = 0; at < whole; at += 32) {
    const __m256i part = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + at));
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + at), part);
  }
  _mm_sfence();
  std::memcpy(to + whole, from + whole, bytes - whole);
#else
  std::memcpy(to, from, bytes);
#endif
}

}  // namespace floors
