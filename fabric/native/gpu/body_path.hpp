// How the large bodies of a connection go from one process's GPU to the other's: the seam between GpuConnection, which
// keeps order and turns, and a way to do it (IpcPath, NcclPath).
//
// One thread at a time; nothing blocks. A body lies in a slot of its sender until its reader lets that go. Slots have
// numbers on both sides alike. Each call returns why it failed, or an empty string; after a failure only `retire` is called.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "gpu/device_work.hpp"

namespace fabric::gpu {

inline constexpr u32 kSlots = 4;                         // of one direction
inline constexpr u32 kSlotHeadBytes = 64;
inline constexpr u32 kIntroductionBytesMax = 1024;

/// What precedes a body in its slot. Whoever reads compares it with what it was told: memory that is another's by now differs.
struct SlotHead { u64 key, generation, length, reserved[5]; };
static_assert(sizeof(SlotHead) == kSlotHeadBytes);

class BodyPath {
 public:
  virtual ~BodyPath() = default;
  virtual const char* name() const = 0;
  virtual std::vector<u8> introduction() = 0;            ///< of this side, once
  virtual std::string meet(std::span<const u8> introduction) = 0;
  virtual std::string ready(bool& is_ready) = 0;         ///< after `meet`, until it is
  virtual std::string stage(u32 slot, u64 generation, const u8* body, u32 length) = 0;  ///< `body` is not needed afterwards
  virtual bool staged(u32 slot) const = 0;
  virtual std::string told(u32 slot) = 0;                ///< the peer has been told of a staged body
  virtual std::string fetch(u32 slot, u64 generation, u32 length) = 0;
  virtual std::string fetched(u32 slot, bool& is_done) = 0;
  virtual std::string body(u32 slot, u64 generation, u32 length, const u8*& body) = 0;  ///< what was fetched, compared with its head
  virtual std::string watch(u64 now, u64 deadline_ns) = 0;  ///< looks for errors, and work older than that
  virtual u64 ask_again_ns() const = 0;                  ///< call again after this long; 0: the descriptor tells
  virtual bool retire() = 0;                             ///< what the GPU works on is done, and nothing of the peer's is mapped
};

struct PathOptions {
  std::string kind;           ///< "cuda_ipc" or "nccl"
  std::string cuda, nccl;     ///< libraries
  int device = 0;
  u64 deadline_ns = 5'000'000'000;
};

/// @return null, and why. `event_fd` becomes readable when anything is done; the caller's, outliving the path.
std::unique_ptr<BodyPath> make_path(const PathOptions& options, int event_fd, std::string& why);

}  // namespace fabric::gpu
