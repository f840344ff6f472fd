// Named steps of the native protocols, at which a test can kill or stop the process (fabric/steps.py).
//
// `step("name")` costs one predictable branch unless FABRIC_FAULTS=1 and a step is armed.
#pragma once

namespace fabric {

extern const bool steps_armed;
void reach_step(const char* name);

inline void step(const char* name) {
  if (steps_armed) [[unlikely]] reach_step(name);
}

}  // namespace fabric
