// NVIDIA's driver API through dlopen: the few functions that links need, declared here, so that no toolkit is.
//
// A library is opened once for a path and never closed (it has threads). Any thread. Every call's result goes through
// `failed`, which says what was asked and the driver's name for the error.
#pragma once

#include <string>

#include "core/layout.hpp"

namespace fabric::gpu {

using CuResult = int;
using CuDevice = int;
using CuContext = void*;
using CuStream = void*;
using CuEvent = void*;
using CuPointer = u64;                    // CUdeviceptr
using CuHostFunction = void (*)(void*);
struct CuIpcHandle { u8 bytes[64]; };     // CUipcMemHandle
struct CuUuid { u8 bytes[16]; };

inline constexpr CuResult kCuSuccess = 0, kCuNotReady = 600;
inline constexpr u32 kCuStreamNonBlocking = 1, kCuHostPortable = 1, kCuIpcLazyPeerAccess = 1, kCuEventNoTiming = 2;
inline constexpr int kCuAttributeContext = 1, kCuAttributeMemoryType = 2, kCuAttributeOrdinal = 9;

struct CudaDriver {
  CuResult (*init)(u32 flags);
  CuResult (*driver_version)(int* version);
  CuResult (*device_count)(int* count);
  CuResult (*device)(CuDevice* device, int ordinal);
  CuResult (*device_name)(char* name, int length, CuDevice device);
  CuResult (*device_uuid)(CuUuid* uuid, CuDevice device);
  CuResult (*context_retain)(CuContext* context, CuDevice device);
  CuResult (*context_release)(CuDevice device);
  CuResult (*context_set)(CuContext context);
  CuResult (*context_get)(CuContext* context);
  CuResult (*memory_alloc)(CuPointer* pointer, std::size_t bytes);
  CuResult (*memory_free)(CuPointer pointer);
  CuResult (*host_alloc)(void** pointer, std::size_t bytes, u32 flags);
  CuResult (*host_free)(void* pointer);
  CuResult (*copy_async)(CuPointer to, CuPointer from, std::size_t bytes, CuStream stream);
  CuResult (*pointer_attribute)(void* value, int attribute, CuPointer pointer);
  CuResult (*stream_create)(CuStream* stream, u32 flags);
  CuResult (*stream_destroy)(CuStream stream);
  CuResult (*stream_query)(CuStream stream);
  CuResult (*stream_wait)(CuStream stream, CuEvent event, u32 flags);
  CuResult (*event_create)(CuEvent* event, u32 flags);
  CuResult (*event_record)(CuEvent event, CuStream stream);
  CuResult (*event_destroy)(CuEvent event);
  CuResult (*host_function)(CuStream stream, CuHostFunction function, void* argument);
  CuResult (*ipc_export)(CuIpcHandle* handle, CuPointer pointer);
  CuResult (*ipc_open)(CuPointer* pointer, CuIpcHandle handle, u32 flags);
  CuResult (*ipc_close)(CuPointer pointer);
  CuResult (*error_name)(CuResult result, const char** name);

  /// Opens and initialises `path` ("libcuda.so.1"). @return null, and why
  static const CudaDriver* load(const std::string& path, std::string& why);
  /// Empty when `result` is success, else e.g. "cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY (2)".
  std::string failed(const char* what, CuResult result) const;
};

/// A device of a driver with its primary context, which frameworks use too. Copies share nothing but the context.
class Device {
 public:
  Device() = default;
  Device(Device&& other) noexcept;
  Device& operator=(Device&& other) noexcept;
  ~Device();
  std::string open(const CudaDriver* driver, int ordinal);  ///< @return why not, or empty
  std::string make_current() const;                         ///< for the calling thread
  const CudaDriver& cuda() const { return *driver_; }
  int ordinal() const { return ordinal_; }
  const CuUuid& uuid() const { return uuid_; }
  explicit operator bool() const { return context_ != nullptr; }

 private:
  const CudaDriver* driver_ = nullptr;
  CuDevice device_ = 0;
  int ordinal_ = -1;
  CuContext context_ = nullptr;
  CuUuid uuid_{};
};

/// Makes a device's context the calling thread's for a scope; a caller's own comes back afterwards.
class CurrentDevice {
 public:
  explicit CurrentDevice(const Device& device);
  ~CurrentDevice();
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  const std::string& why() const { return why_; }

 private:
  const CudaDriver& cuda_;
  CuContext before_ = nullptr;
  std::string why_;
};

}  // namespace fabric::gpu
