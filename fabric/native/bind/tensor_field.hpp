// TensorField: what stands for a tensor in the class of received messages.
//
// Reading it makes the array of a native message, once, when dtype and shape are like those of an array that was made
// before. Everything else is left to the property that it is made of, which knows the declaration: checks, errors,
// missing segments, other messages.
#pragma once

#include <nanobind/nanobind.h>

namespace fabric {

void bind_tensor_field(nanobind::module_& module);

}  // namespace fabric
