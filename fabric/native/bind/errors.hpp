// Native outcomes as Python exceptions: the only place where a Status becomes one.
#pragma once

#include <nanobind/nanobind.h>

#include "core/status.hpp"

namespace fabric {

/// Raises the class of fabric.errors that belongs to `status.code` (NeedSegment for need_segment).
[[noreturn]] void raise(const Status& status);
inline void check(const Status& status) {
  if (!status.ok()) [[unlikely]] raise(status);
}
void bind_errors(nanobind::module_& module);

}  // namespace fabric
