// Deliberate wrongness for the audit's own tests: refused unless FABRIC_FAULTS=1.
#pragma once

#include <cstdlib>
#include <string>

#include "core/status.hpp"

namespace fabric {

struct Faults {
  u64 lose_drained = 0;     ///< take a record over without queueing it
  u64 repeat_drained = 0;   ///< hold a record twice
  u64 miscount_fold = 0;    ///< count one end twice
  u64 corrupt_cursor = 0;   ///< move a lane's tail beyond its head

  /// Arms `fault` for the next `count` occasions.
  Status inject(const std::string& fault, u64 count) {
    const char* allowed = std::getenv("FABRIC_FAULTS");
    if (allowed == nullptr || std::string(allowed) != "1") {
      return Status::fail(Code::invalid, "faults are refused: FABRIC_FAULTS is not 1");
    }
    if (fault == "lose_drained") lose_drained = count;
    else if (fault == "repeat_drained") repeat_drained = count;
    else if (fault == "miscount_fold") miscount_fold = count;
    else if (fault == "corrupt_cursor") corrupt_cursor = count;
    else return Status::fail(Code::invalid, "no fault is called " + fault);
    return Status::success();
  }
  static bool take(u64& counter) {
    if (counter == 0) [[likely]] return false;
    --counter;
    return true;
  }
};

}  // namespace fabric
