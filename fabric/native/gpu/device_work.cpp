#include "gpu/device_work.hpp"

#include <sys/eventfd.h>

#include "core/clock.hpp"

namespace fabric::gpu {

std::string DeviceMemory::allocate(const Device& device, u64 bytes) {
  cuda_ = &device.cuda();
  return cuda_->failed("cuMemAlloc", cuda_->memory_alloc(&pointer_, bytes));
}

std::string DeviceMemory::handle(CuIpcHandle& out) const {
  return cuda_->failed("cuIpcGetMemHandle", cuda_->ipc_export(&out, pointer_));
}

void DeviceMemory::reset() {
  if (pointer_ != 0) cuda_->memory_free(pointer_);
  pointer_ = 0;
}

std::string PinnedMemory::allocate(const Device& device, u64 bytes) {
  cuda_ = &device.cuda();
  return cuda_->failed("cuMemHostAlloc", cuda_->host_alloc(&memory_, bytes, kCuHostPortable));
}

void PinnedMemory::reset() {
  if (memory_ != nullptr) cuda_->host_free(memory_);
  memory_ = nullptr;
}

Stream::~Stream() {
  if (stream_ != nullptr) cuda_->stream_destroy(stream_);
}

std::string Stream::open(const Device& device, int event_fd) {
  cuda_ = &device.cuda();
  event_fd_ = event_fd;
  return cuda_->failed("cuStreamCreate", cuda_->stream_create(&stream_, kCuStreamNonBlocking));
}

std::string Stream::copy(CuPointer to, CuPointer from, u64 bytes) {
  return cuda_->failed("cuMemcpyAsync", cuda_->copy_async(to, from, bytes, stream_));
}

std::string Stream::wait_for(CuStream other) {
  CuEvent event = nullptr;
  std::string why = cuda_->failed("cuEventCreate", cuda_->event_create(&event, kCuEventNoTiming));
  if (!why.empty()) return why;
  why = cuda_->failed("cuEventRecord", cuda_->event_record(event, other));
  if (why.empty()) why = cuda_->failed("cuStreamWaitEvent", cuda_->stream_wait(stream_, event, 0));
  cuda_->event_destroy(event);  // the driver keeps it until it has come
  return why;
}

std::string Stream::tell(Completion& completion) {
  completion.done.store(false, std::memory_order_relaxed);
  completion.stream = this;
  completion.began_ns = monotonic_ns();
  pending_.fetch_add(1, std::memory_order_relaxed);
  const std::string why = cuda_->failed("cuLaunchHostFunc", cuda_->host_function(stream_, &completed, &completion));
  if (!why.empty()) pending_.fetch_sub(1, std::memory_order_relaxed);
  return why;
}

/// On a thread of the driver, which allows no call of its own here. The last touch is the count: then all may go.
void Stream::completed(void* argument) {
  Completion& completion = *static_cast<Completion*>(argument);
  Stream& stream = *completion.stream;
  completion.done.store(true, std::memory_order_release);
  ::eventfd_write(stream.event_fd_, 1);
  stream.pending_.fetch_sub(1, std::memory_order_release);
}

std::string Stream::error() const {
  const CuResult result = cuda_->stream_query(stream_);
  return result == kCuNotReady ? std::string{} : cuda_->failed("the stream", result);
}

}  // namespace fabric::gpu
