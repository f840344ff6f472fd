// The futex system call with absolute CLOCK_MONOTONIC deadlines.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>

#include "core/layout.hpp"

namespace fabric {

/// Sleeps while *word == expected, until woken or `deadline_ns`. Spurious returns are possible.
/// @return true when a signal ended the sleep.
inline bool futex_wait(std::atomic<u32>* word, u32 expected, u64 deadline_ns, bool shared) {
  const timespec until{static_cast<time_t>(deadline_ns / 1'000'000'000ULL),
                       static_cast<long>(deadline_ns % 1'000'000'000ULL)};
  const int operation = FUTEX_WAIT_BITSET | (shared ? 0 : FUTEX_PRIVATE_FLAG);
  return ::syscall(SYS_futex, word, operation, expected, &until, nullptr, FUTEX_BITSET_MATCH_ANY) != 0 &&
         errno == EINTR;
}

inline void futex_wake(std::atomic<u32>* word, int count, bool shared) {
  ::syscall(SYS_futex, word, FUTEX_WAKE | (shared ? 0 : FUTEX_PRIVATE_FLAG), count, nullptr, nullptr, 0);
}

}  // namespace fabric
