// NCCL through dlopen: the few functions that a link needs, declared here, so that no header is.
//
// A library is opened once for a path and never closed. The functions may be called by any thread, a communicator by one at
// a time. Communicators are never blocking: a call that is not done says so, and is asked about later.
#pragma once

#include <string>

#include "core/layout.hpp"
#include "gpu/cuda_driver.hpp"

namespace fabric::gpu {

using NcclResult = int;
using NcclComm = void*;
struct NcclUniqueId { char bytes[128]; };
/// ncclConfig_t as of 2.17; the library takes what is behind its `version` from its defaults.
struct NcclConfig {
  std::size_t size = sizeof(NcclConfig);
  u32 magic = 0xcafebeef, version = 21700;
  int blocking = 0, cluster_size = kUndefined, blocks_min = kUndefined, blocks_max = kUndefined;
  const char* network = nullptr;
  int split_share = kUndefined;
  static constexpr int kUndefined = -2147483647 - 1;
};
inline constexpr NcclResult kNcclSuccess = 0, kNcclInProgress = 7;
inline constexpr int kNcclVersionMin = 21700, kNcclUint8 = 1;

struct NcclApi {
  NcclResult (*version)(int* version);
  NcclResult (*unique_id)(NcclUniqueId* id);
  NcclResult (*join)(NcclComm* comm, int ranks, NcclUniqueId id, int rank, NcclConfig* config);
  NcclResult (*state)(NcclComm comm, NcclResult* state);
  NcclResult (*abort)(NcclComm comm);
  NcclResult (*send)(const void* from, std::size_t count, int type, int peer, NcclComm comm, CuStream stream);
  NcclResult (*receive)(void* to, std::size_t count, int type, int peer, NcclComm comm, CuStream stream);
  const char* (*error_text)(NcclResult result);

  /// @return null, and why. `number`: of the library, such as 22903
  static const NcclApi* load(const std::string& path, int& number, std::string& why);
  /// Empty when `result` is success or not decided yet.
  std::string failed(const char* what, NcclResult result) const;
};

}  // namespace fabric::gpu
