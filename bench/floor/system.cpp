#include "system.hpp"

#include <sys/mman.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <sstream>
#include <system_error>

namespace floors {
namespace {

constexpr std::size_t kPageBytes = 4096;

void on_deadline(int) {
  constexpr char text[] = "floor: the order's deadline passed; the other half is gone or stuck\n";
  [[maybe_unused]] const auto written = ::write(2, text, sizeof text - 1);
  ::_exit(3);
}

}  // namespace

void fail(const std::string& what) { throw std::system_error(errno, std::generic_category(), what); }

u64 cpu_ns_of(pid_t process) {
  clockid_t clock = CLOCK_PROCESS_CPUTIME_ID;
  if (process != 0 && ::clock_getcpuclockid(process, &clock) != 0) return 0;
  return clock_ns(clock);
}

void use_cpus(const std::string& list) {
  if (list.empty()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  std::istringstream stream(list);
  for (std::string part; std::getline(stream, part, ',');) CPU_SET(std::stoi(part), &set);
  check(::sched_setaffinity(0, sizeof set, &set) == 0, "sched_setaffinity");
}

void set_deadline(u64 seconds) {
  ::signal(SIGALRM, on_deadline);
  ::alarm(static_cast<unsigned>(seconds));
}

Memory::Memory(std::size_t bytes, int fd) : bytes_(bytes) {
  if (bytes == 0) return;
  const int kind = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  void* base = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, kind, fd, 0);
  check(base != MAP_FAILED, "mmap");
  base_ = static_cast<u8*>(base);
  // Touched for writing, unchanged: the other half may have written to shared pages already.
  for (std::size_t at = 0; at < bytes; at += kPageBytes) {
    auto* word = reinterpret_cast<std::atomic<u8>*>(base_ + at);
    word->fetch_or(0, std::memory_order_relaxed);
  }
}

Memory::~Memory() {
  if (base_ != nullptr) ::munmap(base_, bytes_);
}

Fd make_memfd(std::size_t bytes) {
  Fd fd(::memfd_create("floor", MFD_CLOEXEC));
  check(fd.get() >= 0, "memfd_create");
  check(::ftruncate(fd.get(), static_cast<off_t>(bytes)) == 0, "ftruncate");
  return fd;
}

void fill_random(std::span<u8> out, u64 seed) {
  u64 state = seed * 0x9e3779b97f4a7c15ULL + 1;
  for (std::size_t at = 0; at < out.size(); at += 8) {  // splitmix64
    u64 word = state += 0x9e3779b97f4a7c15ULL;
    word = (word ^ word >> 30) * 0xbf58476d1ce4e5b9ULL;
    word = (word ^ word >> 27) * 0x94d049bb133111ebULL;
    word ^= word >> 31;
    std::memcpy(out.data() + at, &word, std::min<std::size_t>(8, out.size() - at));
  }
}

}  // namespace floors
