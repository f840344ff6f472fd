#include "gpu/device_copy.hpp"

#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "core/clock.hpp"

namespace fabric::gpu {
namespace {

constexpr u64 kLookNs = 100'000'000;                     // at whether the stream has failed, which no descriptor tells

/// One copy, in parts of which two are under way.
class Parts {
 public:
  explicit Parts(const Device& device) : device_(device) {}
  ~Parts() {
    CurrentDevice current(device_);
    pinned_.reset();
  }
  std::string open(u64 bytes, CuPointer after) {
    std::string why = pinned_.allocate(device_, 2 * std::min(bytes, kPartBytes));
    if (why.empty()) why = stream_.open(device_, event_.get());
    if (why.empty() && after != 0) why = stream_.wait_for(reinterpret_cast<CuStream>(after));
    return why;
  }
  u8* part(u64 number, u64 bytes) const { return pinned_.at(number % 2 * std::min(bytes, kPartBytes)); }
  std::string begin(u64 number, CuPointer to, CuPointer from, u64 bytes) {
    std::string why = stream_.copy(to, from, bytes);
    return why.empty() ? stream_.tell(done_[number % 2]) : why;
  }
  Copied wait(u64 number, u64 deadline_ns, std::string& why) {
    while (!done_[number % 2].done.load(std::memory_order_acquire)) {
      why = stream_.error();
      if (!why.empty()) return Copied::failed;
      const u64 now = monotonic_ns();
      if (now >= deadline_ns) return Copied::too_late;
      pollfd polled{event_.get(), POLLIN, 0};
      const u64 wait_ns = std::min(deadline_ns - now, kLookNs);
      ::poll(&polled, 1, static_cast<int>(wait_ns / 1'000'000 + 1));
      eventfd_t rung;
      ::eventfd_read(event_.get(), &rung);
    }
    return Copied::all;
  }
  bool is_idle() const { return stream_.pending() == 0; }

 private:
  const Device& device_;
  Fd event_{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
  PinnedMemory pinned_;
  Completion done_[2];
  Stream stream_;
};

/// `host` to `device`, or the other way.
Copied copy_parts(Parts& parts, u8* host, CuPointer device, u64 bytes, bool is_to_host, u64 deadline_ns, std::string& why) {
  const u64 count = (bytes + kPartBytes - 1) / kPartBytes;
  const auto size = [&](u64 part) { return std::min(kPartBytes, bytes - part * kPartBytes); };
  for (u64 begun = 0, done = 0; done < count; ++done) {
    for (; begun < std::min(done + 2, count); ++begun) {
      u8* const pinned = parts.part(begun, bytes);
      const CuPointer here = pointer_of(pinned), there = device + begun * kPartBytes;
      if (!is_to_host) std::memcpy(pinned, host + begun * kPartBytes, size(begun));
      why = is_to_host ? parts.begin(begun, here, there, size(begun)) : parts.begin(begun, there, here, size(begun));
      if (!why.empty()) return Copied::failed;
    }
    if (const Copied copied = parts.wait(done, deadline_ns, why); copied != Copied::all) return copied;
    if (is_to_host) std::memcpy(host + done * kPartBytes, parts.part(done, bytes), size(done));
  }
  return Copied::all;
}

/// What a copy leaves that was not done is kept for ever: rare, and the GPU is at fault.
Copied copy(const Device& device, u8* host, CuPointer pointer, u64 bytes, bool is_to_host, CuPointer after, u64 deadline_ns,
            std::string& why) {
  if (bytes == 0) return Copied::all;
  auto parts = std::make_unique<Parts>(device);
  why = parts->open(bytes, after);
  if (!why.empty()) return Copied::failed;
  const Copied copied = copy_parts(*parts, host, pointer, bytes, is_to_host, deadline_ns, why);
  while (copied == Copied::all && !parts->is_idle()) ::poll(nullptr, 0, 1);  // the last callback returns
  if (!parts->is_idle()) static_cast<void>(parts.release());
  return copied;
}

}  // namespace

Copied copy_to_host(const CudaDriver& cuda, u8* to, CuPointer from, u64 bytes, CuPointer after, u64 deadline_ns, std::string& why) {
  int ordinal = 0;
  why = cuda.failed("cuPointerGetAttribute", cuda.pointer_attribute(&ordinal, kCuAttributeOrdinal, from));
  if (!why.empty()) return Copied::failed;
  auto device = std::make_unique<Device>();
  why = device->open(&cuda, ordinal);
  if (!why.empty()) return Copied::failed;
  CurrentDevice current(*device);
  const Copied copied = copy(*device, to, from, bytes, true, after, deadline_ns, why);
  if (copied != Copied::all) static_cast<void>(device.release());  // what is kept belongs to it
  return copied;
}

Copied DeviceCopy::open(const CudaDriver& cuda, int ordinal, const u8* from, u64 bytes, u64 deadline_ns, std::string& why) {
  why = device_.open(&cuda, ordinal);
  if (!why.empty()) return Copied::failed;
  CurrentDevice current(device_);
  why = memory_.allocate(device_, std::max<u64>(bytes, 1));
  if (!why.empty()) return Copied::failed;
  const Copied copied = copy(device_, const_cast<u8*>(from), memory_.at(), bytes, false, 0, deadline_ns, why);
  if (copied == Copied::too_late) memory_.forget();  // freeing would wait for the GPU, and it does not answer
  return copied;
}

DeviceCopy::~DeviceCopy() {
  if (!device_) return;
  CurrentDevice current(device_);
  memory_.reset();
}

}  // namespace fabric::gpu
