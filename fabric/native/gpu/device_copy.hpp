// Copies between memory of a GPU and the host's, through pinned memory, for callers that may sleep: not for an engine's thread.
//
// Any thread; each call has a stream and two pinned parts of its own, and sleeps on a descriptor until a part is there or
// its deadline. What is still under way then is never freed: the GPU may write there later.
#pragma once

#include "gpu/device_work.hpp"

namespace fabric::gpu {

inline constexpr u64 kPartBytes = 4 * 1024 * 1024;

enum class Copied : u8 { all, too_late, failed };

/// `pointer` belongs to the GPU that it is found on. @param after a stream whose work comes first, 0: none
Copied copy_to_host(const CudaDriver& cuda, u8* to, CuPointer from, u64 bytes, CuPointer after, u64 deadline_ns, std::string& why);

/// Memory of a GPU with what a host array holds, until it is gone.
class DeviceCopy {
 public:
  Copied open(const CudaDriver& cuda, int ordinal, const u8* from, u64 bytes, u64 deadline_ns, std::string& why);
  ~DeviceCopy();
  CuPointer pointer() const { return memory_.at(); }
  int ordinal() const { return device_.ordinal(); }

 private:
  Device device_;
  DeviceMemory memory_;
};

}  // namespace fabric::gpu
