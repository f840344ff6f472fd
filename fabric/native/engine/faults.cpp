// Faults on purpose, for tests: refused unless FABRIC_FAULTS=1.
#include <cstdlib>
#include <cstring>

#include "core/clock.hpp"
#include "engine/access.hpp"

namespace fabric {
namespace {

bool faults_are_allowed() {
  const char* allowed = std::getenv("FABRIC_FAULTS");
  return allowed != nullptr && std::strcmp(allowed, "1") == 0;
}

}  // namespace

/// Every link can be faulted where faults are allowed at all, so that a fault holds for those that are up already.
std::unique_ptr<Link> Engine::wrapped(std::unique_ptr<Link> link) {
  if (!faults_are_allowed()) return link;
  return std::make_unique<FaultLink>(std::move(link), link_faults_);
}

bool Engine::inject_link(const std::string& fault, u64 argument) {
  LinkFaults& faults = *link_faults_;
  if (fault == "link_none") faults = {};
  else if (fault == "link_delay_us") faults.delay_ns = argument * 1000;
  else if (fault == "link_rate_bytes") faults.rate_bytes = argument;
  else if (fault == "link_lose") faults.lose.arm(argument);
  else if (fault == "link_repeat") faults.repeat.arm(argument);
  else if (fault == "link_reorder") faults.reorder.arm(argument);
  else if (fault == "link_corrupt") faults.corrupt.arm(argument);
  else if (fault == "link_stall") faults.stall_until_ns = monotonic_ns() + argument * 1'000'000;
  else if (fault == "link_cut_at") faults.cut_armed = true, faults.cut_left = argument;
  else return false;
  for (auto& [id, session] : sessions_)
    for (Connection& connection : session->connection) connection.more = connection.link != nullptr;
  return true;
}

Status Engine::inject(const std::string& fault, u64 argument) {
  if (!faults_are_allowed())
    return Status::fail(Code::invalid, "faults are refused unless FABRIC_FAULTS=1 is in the environment");
  Access access(*this, true);
  if (fault == "flip_after_checksum") faults_.flip_after_checksum = argument;
  else if (fault == "zero_after_checksum") faults_.zero_after_checksum = argument;
  else if (fault == "corrupt_chunk") faults_.corrupt_chunk = argument;
  else if (fault == "lose_record") faults_.lose_record = argument;
  else if (fault == "repeat_record") faults_.repeat_record = argument;
  else if (fault == "stall") faults_.stall_until_ns = monotonic_ns() + argument * 1'000'000;
  else if (fault == "drop_connection") {
    for (auto& [id, session] : sessions_)
      if (argument < kGroups) break_link(*session, static_cast<u32>(argument), "fault injected");
  } else if (!inject_link(fault, argument)) {
    return Status::fail(Code::invalid, "no such fault: " + fault);
  }
  return Status::success();
}

}  // namespace fabric
