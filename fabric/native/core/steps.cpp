// What happens at an armed step: the process signals itself, once in all processes that share the mark.
#include "core/steps.hpp"

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <string>
#include <unistd.h>

namespace fabric {
namespace {

struct Armed {
  std::string name;
  int signal = 0;
  std::atomic<long> left{1};
};

Armed& armed() {
  static Armed step;
  return step;
}

bool arm() {
  const char* allowed = std::getenv("FABRIC_FAULTS");
  const char* text = std::getenv("FABRIC_STEP");
  if (allowed == nullptr || std::strcmp(allowed, "1") != 0 || text == nullptr) return false;
  const std::string whole = text;
  const auto colon = whole.find(':');
  if (colon == std::string::npos) return false;
  const std::string rest = whole.substr(colon + 1);
  const auto second = rest.find(':');
  const std::string action = rest.substr(0, second);
  Armed& step = armed();
  step.name = whole.substr(0, colon);
  step.signal = action == "kill" ? SIGKILL : action == "stop" ? SIGSTOP : action == "term" ? SIGTERM : 0;
  if (second != std::string::npos) step.left = std::max(1L, std::strtol(rest.c_str() + second + 1, nullptr, 10));
  return step.signal != 0;
}

bool is_first() {
  const char* mark = std::getenv("FABRIC_STEP_MARK");
  if (mark == nullptr || *mark == 0) return true;
  const int fd = ::open(mark, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) return false;
  char pid[16];
  const int bytes = std::snprintf(pid, sizeof pid, "%d", static_cast<int>(::getpid()));
  [[maybe_unused]] const auto written = ::write(fd, pid, static_cast<std::size_t>(bytes));
  ::close(fd);
  return true;
}

}  // namespace

const bool steps_armed = arm();

void reach_step(const char* name) {
  Armed& step = armed();
  if (step.name != name || step.left.fetch_sub(1) != 1) return;
  if (is_first()) ::kill(::getpid(), step.signal);
}

}  // namespace fabric
