// CUDA IPC: each side opens the other's slots and copies out of them; nobody ever writes into a peer's memory.
//
// A handle is opened once a connection and closed before its owner is told that it may free (gpu_link.cpp). In the process
// that made a handle the driver refuses it: there the memory is used as it is.
#pragma once

#include "gpu/staged_path.hpp"

namespace fabric::gpu {

class IpcPath final : public StagedPath {
 public:
  ~IpcPath() override { close_peer(); }
  std::string open(const PathOptions& options, int event_fd) { return StagedPath::open(options, event_fd); }
  const char* name() const override { return "cuda_ipc"; }
  std::vector<u8> introduction() override;
  std::string meet(std::span<const u8> introduction) override;
  std::string ready(bool& is_ready) override;
  std::string told(u32) override { return {}; }
  std::string fetch(u32 slot, u64 generation, u32 length) override;
  u64 ask_again_ns() const override { return 0; }
  bool retire() override;

 private:
  struct Introduction {
    u64 magic, process, key, base, slot_bytes, slots;
    CuUuid device;
    CuIpcHandle handle;
  };
  std::string open_peer(const Introduction& peer);
  void close_peer();
  CuPointer peer_ = 0;
  bool is_opened_ = false;
};

}  // namespace fabric::gpu
