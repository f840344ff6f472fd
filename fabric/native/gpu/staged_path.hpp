// What every way over GPUs shares: slots in device memory with host memory beside them, a stream each way.
//
// A body goes host → own slot (stream `out_`); how it gets from there into the peer's host memory is the way's own.
#pragma once

#include "gpu/body_path.hpp"

namespace fabric::gpu {

class StagedPath : public BodyPath {
 public:
  ~StagedPath() override;
  std::string stage(u32 slot, u64 generation, const u8* body, u32 length) override;
  bool staged(u32 slot) const override { return staged_[slot].done.load(std::memory_order_acquire); }
  std::string fetched(u32 slot, bool& is_done) override;
  std::string body(u32 slot, u64 generation, u32 length, const u8*& body) override;
  std::string watch(u64 now, u64 deadline_ns) override;
  bool retire() override;

 protected:
  static constexpr u64 kSlotBytes = kSlotHeadBytes + 1024 * 1024;  // a chunk at most
  std::string open(const PathOptions& options, int event_fd);
  std::string land(u32 slot, CuPointer from, u32 length);  ///< device memory → host memory of a slot, told when done
  CuPointer out_at(u32 slot) const { return out_memory_.at(slot * kSlotBytes); }
  const Device& device() const { return device_; }

  Device device_;
  DeviceMemory out_memory_;
  Stream out_, in_;
  u64 key_ = 0, peer_key_ = 0;            // of what each side writes

 private:
  PinnedMemory out_host_, in_host_;
  Completion staged_[kSlots], fetched_[kSlots];
  bool is_staging_[kSlots] = {}, is_fetching_[kSlots] = {};
};

u64 process_nonce();                       ///< random, the same in all of this process, another one after a fork

}  // namespace fabric::gpu
