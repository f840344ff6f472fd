// CLOCK_MONOTONIC in nanoseconds: the only clock that decisions use.
#pragma once

#include <ctime>

#include "core/layout.hpp"

namespace fabric {

inline u64 monotonic_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<u64>(now.tv_sec) * 1'000'000'000ULL + static_cast<u64>(now.tv_nsec);
}

/// To some milliseconds, for a fifth of the price.
inline u64 monotonic_coarse_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return static_cast<u64>(now.tv_sec) * 1'000'000'000ULL + static_cast<u64>(now.tv_nsec);
}

}  // namespace fabric
