// The extension module: declares the binders, nothing else.
#include <nanobind/nanobind.h>

#include "bind/bytes_message.hpp"
#include "bind/endpoints.hpp"
#include "bind/message.hpp"
#include "bind/tensor_field.hpp"

namespace nb = nanobind;

namespace fabric {
void bind_inspect(nb::module_& module) __attribute__((weak));
void bind_engine(nb::module_& module) __attribute__((weak));
void bind_codec(nb::module_& module);
void bind_sample(nb::module_& module);
void bind_simulation(nb::module_& module);
void bind_rail_scheduler(nb::module_& module);
}  // namespace fabric

NB_MODULE(_native, module) {
  nb::set_leak_warnings(false);  // Views may outlive the interpreter: their memory is the node's.
  module.attr("record_version") = static_cast<int>(fabric::kRecordVersion);
  module.attr("has_tcp") = fabric::bind_engine != nullptr;
  fabric::bind_errors(module);
  fabric::bind_buffers(module);
  fabric::bind_segments(module);
  fabric::bind_port(module);
  fabric::bind_sender(module);
  fabric::bind_route(module);
  fabric::bind_message(module);
  fabric::bind_tensor_field(module);
  fabric::bind_receiver(module);
  fabric::bind_bytes_message(module);
  fabric::bind_sending_end(module);
  fabric::bind_receiving_end(module);
  if (fabric::bind_inspect != nullptr) fabric::bind_inspect(module);
  fabric::bind_codec(module);
  fabric::bind_sample(module);
  fabric::bind_simulation(module);
  fabric::bind_rail_scheduler(module);
  if (fabric::bind_engine != nullptr) fabric::bind_engine(module);
}
