// File descriptors, mappings and the creation of shared segments.
//
// Every created fd is a memfd with SHRINK|GROW sealed, close-on-exec. Owners: Fd and Mapping close
// and unmap; both move, neither copies. Thread-safe as far as each object is used by one thread.
#pragma once

#include "core/status.hpp"

namespace fabric {

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(other.release()) {}
  Fd& operator=(Fd&& other) noexcept;
  ~Fd() { reset(); }
  int get() const { return fd_; }
  int release() { int fd = fd_; fd_ = -1; return fd; }
  void reset();
  static Fd duplicate(int fd);  ///< close-on-exec; get() < 0 on failure

 private:
  int fd_ = -1;
};

class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping() { reset(); }
  void reset();
  u8* base() const { return base_; }
  std::size_t size() const { return size_; }
  explicit operator bool() const { return base_ != nullptr; }
  template <class T> T* as() const { return reinterpret_cast<T*>(base_); }
  void keep_from_children();  ///< MADV_DONTFORK: a forked child has no mapping here
  void prefer_huge_pages();   ///< where the system gives them to shared memory that asks (shmem_enabled: advise)
  void forget() { base_ = nullptr; size_ = 0; }  ///< without unmapping (forked child)

  /// Maps all of `fd`; refused when it is smaller than `bytes_min`. The fd stays the caller's.
  static Status map(int fd, std::size_t bytes_min, bool writable, Mapping& out);

 private:
  u8* base_ = nullptr;
  std::size_t size_ = 0;
};

/// Gives a range of a writable mapping its pages with few calls: one fault for each costs twice as much. What cannot be
/// had (an older kernel, no memory) is left to the faults of who writes there.
void populate(u8* at, u64 bytes);

/// Which bytes of a segment somebody has written. Reading a page that nobody wrote makes it: memory for nothing.
class Written {
 public:
  explicit Written(int fd) : fd_(fd) {}  ///< stays the caller's
  bool at(u64 offset);
  /// The first offset from `offset` on that was written, by pages; `end` where none is below it.
  u64 next(u64 offset, u64 end);

 private:
  int fd_;
  u64 from_ = 0, until_ = 0;             ///< what was asked last: [from, until) is all written, or all not
  bool is_written_ = false;
};

/// The rows of a table, from byte `first` on, that begin in a page which was written; `visit` returns false to stop.
template <class Row, class Visit>
void visit_written(Written& written, u8* base, u64 first, u64 count, Visit&& visit) {
  const u64 end = first + count * sizeof(Row);
  for (u64 at = first; at < end;) {
    const u64 next = written.next(at, end);
    if (next > at) {
      at = first + (next - first + sizeof(Row) - 1) / sizeof(Row) * sizeof(Row);
      continue;
    }
    if (!visit(*reinterpret_cast<Row*>(base + at))) return;
    at += sizeof(Row);
  }
}

Status create_memfd(const char* name, std::size_t bytes, Fd& out);
Status create_state(u64 port, u64 incarnation, u32 tenant, Fd& out);
Status create_doorbell(Fd& out);
Status create_lane_pair(u32 klass, const u64 port[2], const u64 incarnation[2], Fd& out);
Status create_segment(u32 segment, u64 port, u64 incarnation, u32 tenant, u64 slot_bytes,
                      u32 slot_count, Fd& out);
/// FUTURE_WRITE|SEAL: after the one writer has mapped; every later writable mapping fails.
Status seal_segment(int fd);

}  // namespace fabric
