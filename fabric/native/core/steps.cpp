// What happens at an armed step: the process signals itself, once in all processes that share the mark.
#include "core/steps.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>
#include <string>

namespace fabric {
namespace {

constexpr std::size_t kPageBytes = 256;  // PAGE_BYTES of fabric/steps.py

struct Trap {
  std::mutex mutex;
  std::string text, name, mark;
  const char* page = nullptr;
  int signal = 0;
  long left = 0;
  std::set<std::string> seen;

  void arm(std::string to) {
    text = std::move(to);
    const auto colon = text.find(':');
    name = text.substr(0, colon);
    seen.clear();
    signal = 0;
    if (colon == std::string::npos) return;
    const std::string rest = text.substr(colon + 1);
    const auto second = rest.find(':');
    const std::string action = rest.substr(0, second);
    signal = action == "kill" ? SIGKILL : action == "stop" ? SIGSTOP : action == "term" ? SIGTERM : 0;
    left = second == std::string::npos ? 1 : std::max(1L, std::strtol(rest.c_str() + second + 1, nullptr, 10));
  }
};

Trap& trap() {
  static Trap it;
  return it;
}

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string() : std::string(value);
}

bool set_up() {
  if (variable("FABRIC_FAULTS") != "1") return false;
  const std::string path = variable("FABRIC_STEP_PAGE");
  if (path.empty()) {
    trap().mark = variable("FABRIC_STEP_MARK");
    trap().arm(variable("FABRIC_STEP"));
    return trap().signal != 0;
  }
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  void* page = ::mmap(nullptr, kPageBytes, PROT_READ, MAP_SHARED, fd, 0);
  ::close(fd);
  if (page == MAP_FAILED) return false;
  trap().page = static_cast<const char*>(page);
  trap().mark = path + ".done";
  return true;
}

bool is_first(const std::string& mark) {
  if (mark.empty()) return true;
  const int fd = ::open(mark.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0) return false;
  char pid[16];
  const int bytes = std::snprintf(pid, sizeof pid, "%d", static_cast<int>(::getpid()));
  [[maybe_unused]] const auto written = ::write(fd, pid, static_cast<std::size_t>(bytes));
  ::close(fd);
  return true;
}

void record(Trap& it, const char* name) {
  if (!it.seen.insert(name).second) return;
  const std::string path = it.mark.substr(0, it.mark.size() - std::strlen(".done")) + ".seen";
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (fd < 0) return;
  const std::string line = std::string(name) + "\n";
  [[maybe_unused]] const auto written = ::write(fd, line.data(), line.size());
  ::close(fd);
}

}  // namespace

const bool steps_armed = set_up();

void reach_step(const char* name) {
  Trap& it = trap();
  std::lock_guard lock(it.mutex);
  if (it.page != nullptr) {
    const std::string text(it.page, ::strnlen(it.page, kPageBytes));
    if (text != it.text) it.arm(text);
    if (text == "*") record(it, name);
  }
  if (it.signal == 0 || it.name != name || --it.left != 0) return;
  if (is_first(it.mark)) ::kill(::getpid(), it.signal);
}

}  // namespace fabric
