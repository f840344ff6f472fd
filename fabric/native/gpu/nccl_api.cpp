#include "gpu/nccl_api.hpp"

#include <dlfcn.h>

#include <map>
#include <memory>
#include <mutex>

namespace fabric::gpu {
namespace {

template <class Function>
void find(void* library, const char* name, Function& function, std::string& missing) {
  function = reinterpret_cast<Function>(::dlsym(library, name));
  if (function == nullptr && missing.empty()) missing = name;
}

std::string open_library(const std::string& path, NcclApi& nccl, int& number) {
  void* library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* said = ::dlerror();
    return std::string(said != nullptr ? said : "it cannot be opened") + ": pip install nvidia-nccl-cu12";
  }
  std::string missing;
  find(library, "ncclGetVersion", nccl.version, missing);
  find(library, "ncclGetUniqueId", nccl.unique_id, missing);
  find(library, "ncclCommInitRankConfig", nccl.join, missing);
  find(library, "ncclCommGetAsyncError", nccl.state, missing);
  find(library, "ncclCommAbort", nccl.abort, missing);
  find(library, "ncclSend", nccl.send, missing);
  find(library, "ncclRecv", nccl.receive, missing);
  find(library, "ncclGetErrorString", nccl.error_text, missing);
  if (!missing.empty()) return path + " has no " + missing + ": use nvidia-nccl-cu12 of 2.17 or later";
  if (nccl.version(&number) != kNcclSuccess || number < kNcclVersionMin)
    return path + " is NCCL " + std::to_string(number) + ": use nvidia-nccl-cu12 of 2.17 or later";
  return {};
}

}  // namespace

const NcclApi* NcclApi::load(const std::string& path, int& number, std::string& why) {
  struct Known { NcclApi nccl{}; std::string why; int number = 0; };
  static std::mutex lock;
  static auto& known = *new std::map<std::string, std::unique_ptr<Known>>;  // used by threads till the process ends
  std::lock_guard guard(lock);
  std::unique_ptr<Known>& found = known[path];
  if (found == nullptr) {
    found = std::make_unique<Known>();
    found->why = open_library(path, found->nccl, found->number);
  }
  why = found->why;
  number = found->number;
  return why.empty() ? &found->nccl : nullptr;
}

std::string NcclApi::failed(const char* what, NcclResult result) const {
  if (result == kNcclSuccess || result == kNcclInProgress) return {};
  return std::string("nccl: ") + what + ": " + error_text(result) + " (" + std::to_string(result) + ")";
}

}  // namespace fabric::gpu
