// One body, compiled for several widths of vectors; the widest that this processor has is chosen once.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define FABRIC_INLINE inline __attribute__((always_inline))
#define FABRIC_AVX512 "avx512f,avx512bw,avx512vl,avx512dq,avx2,bmi,bmi2,lzcnt,fma,f16c,prefer-vector-width=512"
#define FABRIC_AVX2 "avx2,bmi,bmi2,lzcnt,fma,f16c"

namespace fabric::codec {
enum class Vectors { plain, avx2, avx512 };
Vectors widest_vectors();  ///< what this processor has, FABRIC_VECTORS=plain|avx2 in the environment limits it (for tests)
}  // namespace fabric::codec

/// Defines `name(parameters)`, which calls `body`, always inlined, in code made for the processor at hand.
#define FABRIC_WIDEST(name, body, parameters, arguments)                                                     \
  __attribute__((target(FABRIC_AVX512))) void name##_avx512 parameters { body arguments; }                   \
  __attribute__((target(FABRIC_AVX2))) void name##_avx2 parameters { body arguments; }                       \
  void name##_plain parameters { body arguments; }                                                           \
  void name parameters {                                                                                     \
    const Vectors widest = widest_vectors();                                                                 \
    if (widest == Vectors::avx512) return name##_avx512 arguments;                                           \
    if (widest == Vectors::avx2) return name##_avx2 arguments;                                               \
    return name##_plain arguments;                                                                           \
  }
#else
#define FABRIC_INLINE inline
#define FABRIC_WIDEST(name, body, parameters, arguments) \
  void name parameters { body arguments; }
#endif
