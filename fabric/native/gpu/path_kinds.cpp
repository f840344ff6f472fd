#include "gpu/ipc_path.hpp"

namespace fabric::gpu {

std::unique_ptr<BodyPath> make_path(const PathOptions& options, int event_fd, std::string& why) {
  if (options.kind != "cuda_ipc") {
    why = "there is no link over GPU memory called " + options.kind;
    return nullptr;
  }
  auto path = std::make_unique<IpcPath>();
  why = path->open(options, event_fd);
  if (!why.empty()) {
    why = "cuda_ipc: " + why;
    return nullptr;
  }
  return path;
}

}  // namespace fabric::gpu
