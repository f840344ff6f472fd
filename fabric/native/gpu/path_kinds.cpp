#include "gpu/ipc_path.hpp"
#include "gpu/nccl_path.hpp"

namespace fabric::gpu {
namespace {

template <class Path>
std::unique_ptr<BodyPath> opened(const PathOptions& options, int event_fd, std::string& why) {
  auto path = std::make_unique<Path>();
  why = path->open(options, event_fd);
  if (why.empty()) return path;
  why = options.kind + ": " + why;
  return nullptr;
}

}  // namespace

std::unique_ptr<BodyPath> make_path(const PathOptions& options, int event_fd, std::string& why) {
  if (options.kind == "cuda_ipc") return opened<IpcPath>(options, event_fd, why);
  if (options.kind == "nccl") return opened<NcclPath>(options, event_fd, why);
  why = "there is no link over GPU memory called '" + options.kind + "': cuda_ipc and nccl are";
  return nullptr;
}

}  // namespace fabric::gpu
