#include "gpu/cuda_driver.hpp"

#include <dlfcn.h>

#include <map>
#include <memory>
#include <mutex>
#include <utility>

namespace fabric::gpu {
namespace {

template <class Function>
void find(void* library, const char* name, Function& function, std::string& missing) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  if (function == nullptr && missing.empty()) missing = name;
}

std::string find_all(void* library, CudaDriver& cuda) {
  std::string missing;
  find(library, "cuInit", cuda.init, missing);
  find(library, "cuDriverGetVersion", cuda.driver_version, missing);
  find(library, "cuDeviceGetCount", cuda.device_count, missing);
  find(library, "cuDeviceGet", cuda.device, missing);
  find(library, "cuDeviceGetName", cuda.device_name, missing);
  find(library, "cuDeviceGetUuid", cuda.device_uuid, missing);
  find(library, "cuDevicePrimaryCtxRetain", cuda.context_retain, missing);
  find(library, "cuDevicePrimaryCtxRelease_v2", cuda.context_release, missing);
  find(library, "cuCtxSetCurrent", cuda.context_set, missing);
  find(library, "cuCtxGetCurrent", cuda.context_get, missing);
  find(library, "cuMemAlloc_v2", cuda.memory_alloc, missing);
  find(library, "cuMemFree_v2", cuda.memory_free, missing);
  find(library, "cuMemHostAlloc", cuda.host_alloc, missing);
  find(library, "cuMemFreeHost", cuda.host_free, missing);
  find(library, "cuMemcpyAsync", cuda.copy_async, missing);
  find(library, "cuPointerGetAttribute", cuda.pointer_attribute, missing);
  find(library, "cuStreamCreate", cuda.stream_create, missing);
  find(library, "cuStreamDestroy_v2", cuda.stream_destroy, missing);
  find(library, "cuStreamQuery", cuda.stream_query, missing);
  find(library, "cuStreamWaitEvent", cuda.stream_wait, missing);
  find(library, "cuEventCreate", cuda.event_create, missing);
  find(library, "cuEventRecord", cuda.event_record, missing);
  find(library, "cuEventDestroy_v2", cuda.event_destroy, missing);
  find(library, "cuLaunchHostFunc", cuda.host_function, missing);
  find(library, "cuIpcGetMemHandle", cuda.ipc_export, missing);
  find(library, "cuIpcOpenMemHandle_v2", cuda.ipc_open, missing);
  find(library, "cuIpcCloseMemHandle", cuda.ipc_close, missing);
  find(library, "cuGetErrorName", cuda.error_name, missing);
  return missing;
}

std::string open_library(const std::string& path, CudaDriver& cuda) {
  void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* said = ::dlerror();
    return said != nullptr ? said : "cannot be opened";
  }
  if (const std::string missing = find_all(library, cuda); !missing.empty())
    return path + " has no " + missing + ": the driver is older than CUDA 11, or no driver";
  return cuda.failed("cuInit", cuda.init(0));
}

}  // namespace

const CudaDriver* CudaDriver::load(const std::string& path, std::string& why) {
  struct Known { CudaDriver cuda{}; std::string why; };
  static std::mutex lock;
  static auto& known = *new std::map<std::string, std::unique_ptr<Known>>;  // used by threads till the process ends
  std::lock_guard guard(lock);
  std::unique_ptr<Known>& found = known[path];
  if (found == nullptr) {
    found = std::make_unique<Known>();
    found->why = open_library(path, found->cuda);
  }
  why = found->why;
  return why.empty() ? &found->cuda : nullptr;
}

std::string CudaDriver::failed(const char* what, CuResult result) const {
  if (result == kCuSuccess) return {};
  const char* name = nullptr;
  if (error_name(result, &name) != kCuSuccess || name == nullptr) name = "unknown error";
  return std::string(what) + ": " + name + " (" + std::to_string(result) + ")";
}

// ------------------------------------------------------------------ device
Device::Device(Device&& other) noexcept { *this = std::move(other); }

Device& Device::operator=(Device&& other) noexcept {
  std::swap(driver_, other.driver_);
  std::swap(device_, other.device_);
  std::swap(ordinal_, other.ordinal_);
  std::swap(context_, other.context_);
  std::swap(uuid_, other.uuid_);
  return *this;
}

Device::~Device() {
  if (context_ != nullptr) driver_->context_release(device_);
}

std::string Device::open(const CudaDriver* driver, int ordinal) {
  driver_ = driver;
  ordinal_ = ordinal;
  int count = 0;
  std::string why = driver->failed("cuDeviceGetCount", driver->device_count(&count));
  if (why.empty() && (ordinal < 0 || ordinal >= count))
    why = "there is no GPU " + std::to_string(ordinal) + ": the driver shows " + std::to_string(count);
  if (why.empty()) why = driver->failed("cuDeviceGet", driver->device(&device_, ordinal));
  if (why.empty()) why = driver->failed("cuDeviceGetUuid", driver->device_uuid(&uuid_, device_));
  if (why.empty()) why = driver->failed("cuDevicePrimaryCtxRetain", driver->context_retain(&context_, device_));
  return why;
}

CurrentDevice::CurrentDevice(const Device& device) : cuda_(device.cuda()) {
  cuda_.context_get(&before_);
  why_ = device.make_current();
}

CurrentDevice::~CurrentDevice() { cuda_.context_set(before_); }

std::string Device::make_current() const {
  return driver_->failed("cuCtxSetCurrent", driver_->context_set(context_));
}

}  // namespace fabric::gpu
