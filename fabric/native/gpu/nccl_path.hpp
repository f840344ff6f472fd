// NCCL: a communicator of two ranks for each direction, so that no side's send waits for its own receive.
//
// A send is posted once its receiver has been told, a receive when it is; both in the order of the socket. NCCL has no
// descriptor: while a call of it is not done it is asked again every millisecond, never waited for. What hangs is aborted,
// by the keeper of remains, since an abort may take its time.
#pragma once

#include <deque>

#include "gpu/nccl_api.hpp"
#include "gpu/staged_path.hpp"

namespace fabric::gpu {

class NcclPath final : public StagedPath {
 public:
  ~NcclPath() override;
  std::string open(const PathOptions& options, int event_fd);
  const char* name() const override { return "nccl"; }
  std::vector<u8> introduction() override;
  std::string meet(std::span<const u8> introduction) override;
  std::string ready(bool& is_ready) override;
  std::string stage(u32 slot, u64 generation, const u8* body, u32 length) override;
  std::string told(u32 slot) override;
  std::string fetch(u32 slot, u64 generation, u32 length) override;
  std::string fetched(u32 slot, bool& is_done) override;
  std::string watch(u64 now, u64 deadline_ns) override;
  u64 ask_again_ns() const override;
  bool retire() override;

 private:
  struct Introduction { u64 magic, key; NcclUniqueId id; CuUuid device; };
  struct Call { u32 slot, length; u64 since_ns; };
  struct Way {                            // one direction
    NcclComm comm = nullptr;
    bool is_posted = false;                 // the front is posted, and not decided
    std::deque<Call> calls;               // in their order
  };
  std::string join(Way& way, const NcclUniqueId& id, int rank);
  std::string decided(Way& way, bool& is_decided);
  std::string post_sends();
  std::string post_receives();
  void abort();

  const NcclApi* nccl_ = nullptr;
  NcclUniqueId id_{};
  DeviceMemory in_memory_;
  Way to_, from_;
  u32 lengths_[kSlots] = {};
  bool is_joining_ = false;
};

}  // namespace fabric::gpu
