#include "codec/vectors.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#include <cstdlib>
#include <string_view>

namespace fabric::codec {
namespace {

bool has_avx2() {
  return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("bmi") != 0 &&
         __builtin_cpu_supports("bmi2") != 0 && __builtin_cpu_supports("fma") != 0;
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
         __builtin_cpu_supports("avx512vl") != 0 && __builtin_cpu_supports("avx512dq") != 0;
}

Vectors look() {
  const char* text = std::getenv("FABRIC_VECTORS");
  const std::string_view wish = text != nullptr ? text : "";
  if (wish == "plain" || !has_avx2()) return Vectors::plain;
  return wish == "avx2" || !has_avx512() ? Vectors::avx2 : Vectors::avx512;
}

}  // namespace

Vectors widest_vectors() {
  static const Vectors widest = look();
  return widest;
}

}  // namespace fabric::codec
#endif
