// The built-in bytes type: a message that is its payload. Plain CPython types, for one call a message.
#pragma once

#include <nanobind/nanobind.h>

namespace fabric {

void bind_bytes(nanobind::module_& module);

}  // namespace fabric
