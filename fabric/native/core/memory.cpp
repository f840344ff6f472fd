#include "core/memory.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14
#endif

namespace fabric {
namespace {

constexpr std::size_t kPageBytes = 4096;
constexpr std::size_t kPopulateStepBytes = 4 * 1024 * 1024;  // who wants to map or unmap meanwhile waits for one step

}  // namespace

Status system_failure(const char* what) {
  return Status::fail(Code::internal, std::string(what) + ": " + std::strerror(errno));
}

Fd& Fd::operator=(Fd&& other) noexcept {
  if (this != &other) {
    reset();
    fd_ = other.release();
  }
  return *this;
}

void Fd::reset() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

Fd Fd::duplicate(int fd) { return Fd(::fcntl(fd, F_DUPFD_CLOEXEC, 3)); }

Mapping::Mapping(Mapping&& other) noexcept : base_(other.base_), size_(other.size_) { other.forget(); }

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  if (this != &other) {
    reset();
    base_ = other.base_;
    size_ = other.size_;
    other.forget();
  }
  return *this;
}

void Mapping::reset() {
  if (base_ != nullptr) ::munmap(base_, size_);
  forget();
}

void Mapping::keep_from_children() {
  if (base_ != nullptr) ::madvise(base_, size_, MADV_DONTFORK);
}

void Mapping::prefer_huge_pages() {
  if (base_ != nullptr) ::madvise(base_, size_, MADV_HUGEPAGE);
}

Status Mapping::map(int fd, std::size_t bytes_min, bool writable, Mapping& out) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) return system_failure("fstat of a segment");
  const auto size = static_cast<std::size_t>(info.st_size);
  if (size < bytes_min || size == 0) {
    return Status::fail(Code::protocol, "segment has " + std::to_string(size) + " bytes, needs " +
                                            std::to_string(bytes_min));
  }
  const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  void* base = ::mmap(nullptr, size, protection, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED) return system_failure("mmap of a segment");
  out.reset();
  out.base_ = static_cast<u8*>(base);
  out.size_ = size;
  return Status::success();
}

void populate(u8* at, u64 bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(at) & ~std::uintptr_t{kPageBytes - 1};
  const auto end = reinterpret_cast<std::uintptr_t>(at) + bytes;
  for (auto next = begin; next < end; next += kPopulateStepBytes) {
    const std::size_t part = std::min<std::size_t>(kPopulateStepBytes, end - next);
    if (::madvise(reinterpret_cast<void*>(next), part, MADV_POPULATE_WRITE) != 0) return;
  }
}

bool Written::at(u64 offset) {
  if (offset >= from_ && offset < until_) return is_written_;
  const off_t data = ::lseek(fd_, static_cast<off_t>(offset), SEEK_DATA);
  from_ = offset;
  if (data < 0) {  // nothing behind, or a file system that cannot say: then all of it counts as written
    is_written_ = errno != ENXIO;
    until_ = ~u64{0};
    return is_written_;
  }
  is_written_ = static_cast<u64>(data) <= offset;
  const off_t hole = is_written_ ? ::lseek(fd_, data, SEEK_HOLE) : data;
  until_ = hole < 0 ? offset + 1 : static_cast<u64>(hole);
  return is_written_;
}

u64 Written::next(u64 offset, u64 end) {
  while (offset < end && !at(offset)) offset = until_;
  return std::min(offset, end);
}

Status create_memfd(const char* name, std::size_t bytes, Fd& out) {
  Fd fd(::memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (fd.get() < 0) return system_failure("memfd_create");
  if (::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) return system_failure("ftruncate");
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0) {
    return system_failure("sealing a segment");
  }
  out = std::move(fd);
  return Status::success();
}

Status create_state(u64 port, u64 incarnation, u32 tenant, Fd& out) {
  Status status = create_memfd("fabric-state", sizeof(StateLayout), out);
  if (!status.ok()) return status;
  Mapping mapping;
  status = Mapping::map(out.get(), sizeof(StateLayout), true, mapping);
  if (!status.ok()) return status;
  StateHead& head = mapping.as<StateLayout>()->head;
  head.magic = kStateMagic;
  head.version = 1;
  head.tenant = tenant;
  head.port = port;
  head.incarnation = incarnation;
  return Status::success();
}

Status create_doorbell(Fd& out) { return create_memfd("fabric-doorbell", sizeof(DoorbellLayout), out); }

Status create_lane_pair(u32 klass, const u64 port[2], const u64 incarnation[2], Fd& out) {
  if (port[0] >= port[1]) return Status::fail(Code::invalid, "side 0 must have the smaller port id");
  Status status = create_memfd("fabric-lane", sizeof(LanePairLayout), out);
  if (!status.ok()) return status;
  Mapping mapping;
  status = Mapping::map(out.get(), sizeof(LanePairLayout), true, mapping);
  if (!status.ok()) return status;
  LaneHead& head = mapping.as<LanePairLayout>()->head;
  head = {kLaneMagic, 1, klass, {port[0], port[1]}, {incarnation[0], incarnation[1]},
          kLaneBytes, kReturnEntries};
  return Status::success();
}

Status create_segment(u32 segment, u64 port, u64 incarnation, u32 tenant, u64 slot_bytes,
                      u32 slot_count, Fd& out) {
  if (slot_count == 0 || slot_count > kSlotsPerSegmentMax || slot_bytes == 0 || slot_bytes % 64 != 0) {
    return Status::fail(Code::invalid, "slots: 1.." + std::to_string(kSlotsPerSegmentMax) +
                                           " of a multiple of 64 bytes");
  }
  const u64 data_offset = (sizeof(SegmentLayout) + 4095) & ~u64{4095};
  Status status = create_memfd("fabric-segment", data_offset + slot_bytes * slot_count, out);
  if (!status.ok()) return status;
  Mapping mapping;
  status = Mapping::map(out.get(), data_offset, true, mapping);
  if (!status.ok()) return status;
  auto* layout = mapping.as<SegmentLayout>();
  layout->magic = kSegmentMagic;
  layout->version = 1;
  layout->segment = segment;
  layout->port = port;
  layout->incarnation = incarnation;
  layout->tenant = tenant;
  layout->numa_node = 0xffff;
  layout->slot_bytes = slot_bytes;
  layout->slot_count = slot_count;
  layout->data_offset = data_offset;
  return Status::success();
}

Status seal_segment(int fd) {
  if (::fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) != 0) {
    return system_failure("sealing a segment against later writers");
  }
  return Status::success();
}

}  // namespace fabric
