// Memory of a device and of its host side, and a stream whose work tells when it is done: through an event descriptor,
// so that nobody waits in the driver.
//
// One thread at a time, with the device's context current. `Completion` is written by a thread of the driver; what it
// refers to stays until `Stream::pending` is 0.
#pragma once

#include <atomic>

#include "core/memory.hpp"
#include "gpu/cuda_driver.hpp"

namespace fabric::gpu {

class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory() { reset(); }
  std::string allocate(const Device& device, u64 bytes);
  std::string handle(CuIpcHandle& out) const;  ///< for other processes; the one that made it cannot open it
  void reset();
  void forget() { pointer_ = 0; }              ///< without freeing
  CuPointer at(u64 offset = 0) const { return pointer_ + offset; }
  explicit operator bool() const { return pointer_ != 0; }

 private:
  const CudaDriver* cuda_ = nullptr;
  CuPointer pointer_ = 0;
};

/// Host memory that the device reaches by itself.
class PinnedMemory {
 public:
  PinnedMemory() = default;
  PinnedMemory(const PinnedMemory&) = delete;
  PinnedMemory& operator=(const PinnedMemory&) = delete;
  ~PinnedMemory() { reset(); }
  std::string allocate(const Device& device, u64 bytes);
  void reset();
  u8* at(u64 offset = 0) const { return static_cast<u8*>(memory_) + offset; }

 private:
  const CudaDriver* cuda_ = nullptr;
  void* memory_ = nullptr;
};

class Stream;

/// Of work given to a stream: `done` once all before it is.
struct Completion {
  std::atomic<bool> done{false};
  Stream* stream = nullptr;
  u64 began_ns = 0;
};

class Stream {
 public:
  Stream() = default;
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  ~Stream();                                    ///< pending() == 0, or never called
  std::string open(const Device& device, int event_fd);
  std::string copy(CuPointer to, CuPointer from, u64 bytes);
  std::string wait_for(CuStream other);         ///< what `other` was given till now comes first
  std::string tell(Completion& completion);     ///< after what was given: `done`, and the descriptor is readable
  std::string error() const;                    ///< of work that will not be done; empty while all is well
  u32 pending() const { return pending_.load(std::memory_order_acquire); }
  CuStream raw() const { return stream_; }

 private:
  static void completed(void* argument);
  const CudaDriver* cuda_ = nullptr;
  CuStream stream_ = nullptr;
  int event_fd_ = -1;
  std::atomic<u32> pending_{0};
};

inline CuPointer pointer_of(const void* memory) { return reinterpret_cast<CuPointer>(memory); }

}  // namespace fabric::gpu
