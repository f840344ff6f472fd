// What the floors ask of the kernel: clocks, memory, futexes, processors.
#pragma once

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <ctime>
#include <span>
#include <string>

#include "order.hpp"

namespace floors {

[[noreturn]] void fail(const std::string& what);  ///< std::system_error of errno
inline void check(bool ok, const char* what) { if (!ok) fail(what); }

inline u64 clock_ns(clockid_t clock) {
  timespec at;
  ::clock_gettime(clock, &at);
  return static_cast<u64>(at.tv_sec) * 1'000'000'000 + static_cast<u64>(at.tv_nsec);
}
inline u64 now_ns() { return clock_ns(CLOCK_MONOTONIC); }
u64 cpu_ns_of(pid_t process);  ///< of all its threads; 0 is this one

void use_cpus(const std::string& list);  ///< "0,1"; empty leaves it to the kernel

/// Ends the process with a message when one order takes longer than `seconds`: covers spins, sleeps and calls alike,
/// and costs the measured path nothing. 0 disarms.
void set_deadline(u64 seconds);

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd() { if (fd_ >= 0) ::close(fd_); }
  int get() const { return fd_; }

 private:
  int fd_ = -1;
};

/// Mapped memory, private (fd -1) or of a memfd, with every page touched.
class Memory {
 public:
  Memory() = default;
  explicit Memory(std::size_t bytes, int fd = -1);
  Memory(Memory&& other) noexcept { *this = std::move(other); }
  Memory& operator=(Memory&& other) noexcept {
    std::swap(base_, other.base_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Memory();
  u8* data() const { return base_; }
  std::size_t size() const { return bytes_; }
  std::span<u8> part(std::size_t at, std::size_t bytes) const { return {base_ + at, bytes}; }

 private:
  u8* base_ = nullptr;
  std::size_t bytes_ = 0;
};

Fd make_memfd(std::size_t bytes);
void fill_random(std::span<u8> out, u64 seed);

inline void futex_wait(std::atomic<u32>* word, u32 expected) {
  ::syscall(SYS_futex, word, FUTEX_WAIT, expected, nullptr, nullptr, 0);
}
inline void futex_wake(std::atomic<u32>* word) { ::syscall(SYS_futex, word, FUTEX_WAKE, 1, nullptr, nullptr, 0); }

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  asm volatile("yield");
#endif
}

/// Sleeps until `ready`; the other side calls wake() after making it so.
template <class Ready>
void sleep_until(Ready ready, std::atomic<u32>& asleep) {
  while (true) {
    asleep.store(1, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (ready()) break;
    futex_wait(&asleep, 1);
    if (ready()) break;
  }
  asleep.store(0, std::memory_order_relaxed);
}

inline void wake(std::atomic<u32>& asleep) {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (asleep.load(std::memory_order_relaxed) == 0) return;
  asleep.store(0, std::memory_order_relaxed);
  futex_wake(&asleep);
}

}  // namespace floors
