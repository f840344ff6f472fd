// A stand-in for libcuda.so.1: enough of the driver API that links over GPU memory run without a GPU, and strict where the
// real driver is undefined.
//
// Device memory is a memfd, so that another process opens it by a handle as CUDA IPC does; a stream is a thread that works
// later. What a program must not do is an error here: use memory that is freed, open its own handle, call the driver
// without a context or from a host function, free what a stream still uses. Freed memory is cleared first, so that
// who still reads it sees that. FAKE_CUDA_* at cuInit, or the functions fake_cuda_* at any time, choose what goes wrong.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

namespace {

using Pointer = std::uint64_t;
enum Result : int {
  kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kNotInitialized = 3, kInvalidDevice = 101, kInvalidContext = 201,
  kInvalidHandle = 400, kNotReady = 600, kIllegalAddress = 700, kNotPermitted = 800, kNotSupported = 801,
};
enum class Kind { device, pinned, opened, freed };
struct Allocation { std::uint64_t size; Kind kind; int fd, device; std::uint64_t id; };
struct Handle { std::uint64_t magic, size, id; std::int32_t pid, fd; std::uint8_t rest[32]; };
static_assert(sizeof(Handle) == 64);
constexpr std::uint64_t kMagic = 0x454b4146'41445543;

struct Event { std::atomic<bool> is_done{true}; };
using SharedEvent = std::shared_ptr<Event>;

struct State {
  std::mutex lock;                          // of the map, and of every copy: nothing is freed under one
  std::map<Pointer, Allocation> memory;
  std::uint64_t ids = 0;
  std::atomic<int> devices{0};
  std::atomic<std::int64_t> delay_us{0};
  std::atomic<bool> is_stalled{false}, has_no_ipc{false};
  std::atomic<int> fail_copies_with{0};
  std::condition_variable_any stalled;
};
State& state() {
  static State& state = *new State;        // stream threads outlive main
  return state;
}
thread_local void* current_context = nullptr;
thread_local bool in_host_function = false;
int contexts[64];

int guard(bool needs_context) {
  if (state().devices == 0) return kNotInitialized;
  if (in_host_function) return kNotPermitted;
  return needs_context && current_context == nullptr ? kInvalidContext : kSuccess;
}
int current_device() { return static_cast<int>(static_cast<int*>(current_context) - contexts); }

/// The allocation that holds all of a range; null: none of ours. A range that leaves its allocation, or lies in a freed one, is `bad`.
const Allocation* find(Pointer at, std::uint64_t bytes, bool& bad) {
  auto& memory = state().memory;
  auto after = memory.upper_bound(at);
  if (after == memory.begin()) return nullptr;
  const auto& [base, found] = *std::prev(after);
  if (at >= base + found.size) return nullptr;
  bad = bad || found.kind == Kind::freed || at + bytes > base + found.size;
  return &found;
}

class Stream {
 public:
  Stream() : thread_([this] { run(); }) {}
  ~Stream() {
    give(nullptr);
    thread_.join();
  }
  void give(std::function<void(Stream&)> work) {
    std::lock_guard guard(lock_);
    work_.push_back(std::move(work));
    wake_.notify_one();
  }
  int query() {
    std::lock_guard guard(lock_);
    return error_ != 0 ? error_.load() : work_.empty() && !is_working_ ? kSuccess : kNotReady;
  }
  void copy(Pointer to, Pointer from, std::uint64_t bytes) {
    std::lock_guard guard(state().lock);
    bool bad = false;
    find(to, bytes, bad);
    find(from, bytes, bad);
    if (const int wanted = state().fail_copies_with; wanted != 0) error_ = wanted;
    if (bad) error_ = kIllegalAddress;
    if (error_ == 0) std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes);
  }
  bool is_failed() const { return error_ != 0; }

 private:
  void pause() {
    std::unique_lock guard(state().lock);
    state().stalled.wait(guard, [] { return !state().is_stalled; });
    const auto delay = std::chrono::microseconds(state().delay_us.load());
    guard.unlock();
    if (delay.count() > 0) std::this_thread::sleep_for(delay);
  }
  void run() {
    for (;;) {
      std::unique_lock guard(lock_);
      wake_.wait(guard, [this] { return !work_.empty(); });
      auto work = std::move(work_.front());
      work_.pop_front();
      is_working_ = true;
      guard.unlock();
      if (!work) return;
      pause();
      if (!is_failed()) work(*this);       // after an error nothing runs, host functions neither
      guard.lock();
      is_working_ = false;
    }
  }
  std::mutex lock_;
  std::condition_variable wake_;
  std::deque<std::function<void(Stream&)>> work_;
  std::atomic<int> error_{0};
  bool is_working_ = false;
  std::thread thread_;
};

std::string memory_name(int pid, std::uint64_t id) { return "fake-cuda:" + std::to_string(pid) + ":" + std::to_string(id); }

void drop(Pointer base, Allocation& allocation) {  // its addresses are not used again, so that late use is found out
  if (allocation.kind == Kind::device)
    ::fallocate(allocation.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(allocation.size));
  ::mmap(reinterpret_cast<void*>(base), allocation.size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
  if (allocation.fd >= 0) ::close(allocation.fd);
  allocation.fd = -1;
  allocation.kind = Kind::freed;
}

int free_memory(Pointer pointer, Kind kind) {
  std::lock_guard guard(state().lock);
  auto found = state().memory.find(pointer);
  if (found == state().memory.end() || found->second.kind != kind) return kInvalidValue;
  drop(pointer, found->second);
  return kSuccess;
}

int map_memory(int fd, std::uint64_t bytes, Kind kind, std::uint64_t id, Pointer* pointer) {
  void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) return kOutOfMemory;
  *pointer = reinterpret_cast<Pointer>(at);
  state().memory[*pointer] = {bytes, kind, fd, current_device(), id};
  return kSuccess;
}

int allocate(std::uint64_t bytes, Kind kind, Pointer* pointer) {
  std::lock_guard guard(state().lock);
  const std::uint64_t id = ++state().ids;
  const int fd = ::memfd_create(memory_name(::getpid(), id).c_str(), MFD_CLOEXEC);
  if (bytes == 0 || fd < 0 || ::ftruncate(fd, static_cast<off_t>(bytes)) != 0) return bytes == 0 ? kInvalidValue : kOutOfMemory;
  return map_memory(fd, bytes, kind, id, pointer);
}

long number(const char* name, long otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::atol(text) : otherwise;
}

}  // namespace

extern "C" {

// ---------------------------------------------------------------- what goes wrong
void fake_cuda_delay_us(std::int64_t us) { state().delay_us = us; }
void fake_cuda_no_ipc(int is_missing) { state().has_no_ipc = is_missing != 0; }
void fake_cuda_fail_copies(int result) { state().fail_copies_with = result; }
void fake_cuda_stall(int is_stalled) {
  std::lock_guard guard(state().lock);
  state().is_stalled = is_stalled != 0;
  state().stalled.notify_all();
}
/// Allocations of a kind that live: 0 device, 1 pinned, 2 opened from another process.
long fake_cuda_live(int kind) {
  std::lock_guard guard(state().lock);
  long count = 0;
  for (const auto& [base, each] : state().memory) count += each.kind == static_cast<Kind>(kind);
  return count;
}

// ---------------------------------------------------------------- devices
int cuInit(unsigned) {
  state().delay_us = number("FAKE_CUDA_DELAY_US", 0);
  state().has_no_ipc = number("FAKE_CUDA_NO_IPC", 0) != 0;
  state().devices = static_cast<int>(number("FAKE_CUDA_DEVICES", 2));
  return state().devices == 0 ? 100 : kSuccess;
}
int cuDriverGetVersion(int* version) { *version = 12040; return kSuccess; }
int cuDeviceGetCount(int* count) { *count = state().devices; return guard(false); }
int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ordinal >= 0 && ordinal < state().devices ? guard(false) : kInvalidDevice;
}
int cuDeviceGetName(char* name, int length, int device) {
  std::snprintf(name, static_cast<std::size_t>(length), "Fake GPU %d", device);
  return guard(false);
}
int cuDeviceGetUuid(std::uint8_t* uuid, int device) {
  std::memset(uuid, 0xFA, 16);
  uuid[15] = static_cast<std::uint8_t>(device);
  return guard(false);
}
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = &contexts[device]; return guard(false); }
int cuDevicePrimaryCtxRelease_v2(int) { return guard(false); }
int cuCtxSetCurrent(void* context) { current_context = context; return guard(false); }
int cuCtxGetCurrent(void** context) { *context = current_context; return guard(false); }
int cuGetErrorName(int result, const char** name) {
  static const std::map<int, const char*> names{
      {kInvalidValue, "CUDA_ERROR_INVALID_VALUE"}, {kOutOfMemory, "CUDA_ERROR_OUT_OF_MEMORY"}, {100, "CUDA_ERROR_NO_DEVICE"},
      {kInvalidDevice, "CUDA_ERROR_INVALID_DEVICE"}, {kInvalidContext, "CUDA_ERROR_INVALID_CONTEXT"},
      {kInvalidHandle, "CUDA_ERROR_INVALID_HANDLE"}, {kIllegalAddress, "CUDA_ERROR_ILLEGAL_ADDRESS"},
      {kNotPermitted, "CUDA_ERROR_NOT_PERMITTED"}, {kNotSupported, "CUDA_ERROR_NOT_SUPPORTED"}};
  const auto found = names.find(result);
  *name = found == names.end() ? nullptr : found->second;
  return found == names.end() ? kInvalidValue : kSuccess;
}

// ---------------------------------------------------------------- memory
int cuMemAlloc_v2(Pointer* pointer, std::size_t bytes) {
  const int wrong = guard(true);
  return wrong != 0 ? wrong : allocate(bytes, Kind::device, pointer);
}
int cuMemFree_v2(Pointer pointer) {
  const int wrong = guard(true);
  return wrong != 0 ? wrong : free_memory(pointer, Kind::device);
}
int cuMemHostAlloc(void** pointer, std::size_t bytes, unsigned) {
  const int wrong = guard(true);
  return wrong != 0 ? wrong : allocate(bytes, Kind::pinned, reinterpret_cast<Pointer*>(pointer));
}
int cuMemFreeHost(void* pointer) {
  const int wrong = guard(true);
  return wrong != 0 ? wrong : free_memory(reinterpret_cast<Pointer>(pointer), Kind::pinned);
}
int cuPointerGetAttribute(void* value, int attribute, Pointer pointer) {
  std::lock_guard held(state().lock);
  bool bad = false;
  const Allocation* found = find(pointer, 1, bad);
  if (found == nullptr || bad) return kInvalidValue;
  if (attribute == 2) *static_cast<unsigned*>(value) = found->kind == Kind::pinned ? 1 : 2;
  else if (attribute == 9) *static_cast<int*>(value) = found->device;
  else return kInvalidValue;
  return guard(false);
}
int cuIpcGetMemHandle(Handle* handle, Pointer pointer) {
  if (const int wrong = guard(true)) return wrong;
  if (state().has_no_ipc) return kNotSupported;
  std::lock_guard held(state().lock);
  const auto found = state().memory.find(pointer);
  if (found == state().memory.end() || found->second.kind != Kind::device) return kInvalidValue;
  *handle = {kMagic, found->second.size, found->second.id, ::getpid(), found->second.fd, {}};
  return kSuccess;
}
int cuIpcOpenMemHandle_v2(Pointer* pointer, Handle handle, unsigned) {
  if (const int wrong = guard(true)) return wrong;
  if (handle.magic != kMagic) return kInvalidValue;
  if (handle.pid == ::getpid()) return kInvalidContext;
  const std::string path = "/proc/" + std::to_string(handle.pid) + "/fd/" + std::to_string(handle.fd);
  char name[256] = {};
  if (::readlink(path.c_str(), name, sizeof name - 1) < 0) return kInvalidHandle;
  if (std::string(name) != "/memfd:" + memory_name(handle.pid, handle.id) + " (deleted)") return kInvalidHandle;
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return kInvalidHandle;
  std::lock_guard held(state().lock);
  return map_memory(fd, handle.size, Kind::opened, handle.id, pointer);
}
int cuIpcCloseMemHandle(Pointer pointer) {
  const int wrong = guard(true);
  return wrong != 0 ? wrong : free_memory(pointer, Kind::opened);
}

// ---------------------------------------------------------------- streams and events
int cuStreamCreate(Stream** stream, unsigned) {
  if (const int wrong = guard(true)) return wrong;
  *stream = new Stream;
  return kSuccess;
}
int cuStreamDestroy_v2(Stream* stream) { delete stream; return guard(false); }
int cuStreamQuery(Stream* stream) {
  const int wrong = guard(true);
  return wrong != 0 ? wrong : stream->query();
}
int cuMemcpyAsync(Pointer to, Pointer from, std::size_t bytes, Stream* stream) {
  if (const int wrong = guard(true)) return wrong;
  stream->give([=](Stream& own) { own.copy(to, from, bytes); });
  return kSuccess;
}
int cuLaunchHostFunc(Stream* stream, void (*function)(void*), void* argument) {
  if (const int wrong = guard(true)) return wrong;
  stream->give([=](Stream&) {
    in_host_function = true;
    function(argument);
    in_host_function = false;
  });
  return kSuccess;
}
int cuEventCreate(SharedEvent** event, unsigned) {
  if (const int wrong = guard(true)) return wrong;
  *event = new SharedEvent(std::make_shared<Event>());
  return kSuccess;
}
int cuEventDestroy_v2(SharedEvent* event) { delete event; return guard(false); }
int cuEventRecord(SharedEvent* event, Stream* stream) {
  if (const int wrong = guard(true)) return wrong;
  if (reinterpret_cast<std::uintptr_t>(stream) <= 2) return kSuccess;  // a default stream: nothing is ever given to it here
  (*event)->is_done = false;
  stream->give([shared = *event](Stream&) { shared->is_done = true; });
  return kSuccess;
}
int cuStreamWaitEvent(Stream* stream, SharedEvent* event, unsigned) {
  if (const int wrong = guard(true)) return wrong;
  stream->give([shared = *event](Stream&) {
    while (!shared->is_done) std::this_thread::sleep_for(std::chrono::microseconds(50));
  });
  return kSuccess;
}

}  // extern "C"
