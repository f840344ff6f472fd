#include "gpu/staged_path.hpp"

#include <sys/random.h>
#include <unistd.h>

#include <cstring>

#include "core/clock.hpp"

namespace fabric::gpu {
namespace {

u64 random_number() {
  u64 number = 0;
  if (::getrandom(&number, sizeof number, 0) != sizeof number) number = monotonic_ns() ^ (u64(::getpid()) << 40);
  return number;
}

}  // namespace

u64 process_nonce() {
  static const pid_t first = ::getpid();
  static const u64 nonce = random_number();
  return nonce + static_cast<u64>(::getpid() - first);
}

std::string StagedPath::open(const PathOptions& options, int event_fd) {
  std::string why;
  const CudaDriver* driver = CudaDriver::load(options.cuda, why);
  if (driver != nullptr) why = device_.open(driver, options.device);
  if (!why.empty()) return why;
  CurrentDevice current(device_);
  key_ = random_number();
  why = current.why();
  if (why.empty()) why = out_memory_.allocate(device_, kSlots * kSlotBytes);
  if (why.empty()) why = out_host_.allocate(device_, kSlots * kSlotBytes);
  if (why.empty()) why = in_host_.allocate(device_, kSlots * kSlotBytes);
  if (why.empty()) why = out_.open(device_, event_fd);
  if (why.empty()) why = in_.open(device_, event_fd);
  return why;
}

/// Its members free what they hold: with the context that they belong to, on whichever thread that is.
StagedPath::~StagedPath() {
  if (!device_) return;
  CurrentDevice current(device_);
  out_memory_.reset();
  out_host_.reset();
  in_host_.reset();
}

std::string StagedPath::stage(u32 slot, u64 generation, const u8* body, u32 length) {
  u8* host = out_host_.at(slot * kSlotBytes);
  const SlotHead head{key_, generation, length, {}};
  std::memcpy(host, &head, sizeof head);
  std::memcpy(host + sizeof head, body, length);
  CurrentDevice current(device_);
  std::string why = out_.copy(out_at(slot), pointer_of(host), sizeof head + length);
  if (why.empty()) why = out_.tell(staged_[slot]);
  is_staging_[slot] = why.empty();
  return why;
}

std::string StagedPath::land(u32 slot, CuPointer from, u32 length) {
  CurrentDevice current(device_);
  std::string why = in_.copy(pointer_of(in_host_.at(slot * kSlotBytes)), from, kSlotHeadBytes + length);
  if (why.empty()) why = in_.tell(fetched_[slot]);
  is_fetching_[slot] = why.empty();
  return why;
}

std::string StagedPath::fetched(u32 slot, bool& is_done) {
  is_done = is_fetching_[slot] && fetched_[slot].done.load(std::memory_order_acquire);
  return {};
}

std::string StagedPath::body(u32 slot, u64 generation, u32 length, const u8*& body) {
  SlotHead head;
  std::memcpy(&head, in_host_.at(slot * kSlotBytes), sizeof head);
  body = in_host_.at(slot * kSlotBytes) + sizeof head;
  is_fetching_[slot] = false;
  if (head.key == peer_key_ && head.generation == generation && head.length == length) return {};
  return std::string(name()) + ": slot " + std::to_string(slot) + " does not hold generation " + std::to_string(generation) +
         " that it was told to hold: the peer's memory is another's by now";
}

std::string StagedPath::watch(u64 now, u64 deadline_ns) {
  if (out_.pending() + in_.pending() == 0) return {};
  CurrentDevice current(device_);
  for (const Stream* stream : {&out_, &in_})
    if (std::string why = stream->pending() > 0 ? stream->error() : std::string{}; !why.empty())
      return std::string(name()) + ": GPU " + std::to_string(device_.ordinal()) + ": " + why;
  for (u32 slot = 0; slot < kSlots; ++slot) {
    for (const auto& [is_used, work] : {std::pair{is_staging_[slot], &staged_[slot]}, {is_fetching_[slot], &fetched_[slot]}})
      if (is_used && !work->done.load(std::memory_order_acquire) && now > work->began_ns + deadline_ns)
        return std::string(name()) + ": a copy on GPU " + std::to_string(device_.ordinal()) + " is not done after " +
               std::to_string(deadline_ns / 1'000'000) + " ms";
  }
  return {};
}

bool StagedPath::retire() { return out_.pending() + in_.pending() == 0; }

}  // namespace fabric::gpu
