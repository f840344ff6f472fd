#include "bind/errors.hpp"

#include <nanobind/stl/string.h>

#include "core/port.hpp"

namespace nb = nanobind;

namespace fabric {
namespace {

PyObject* need_segment_class = nullptr;

const char* class_name(Code code) {
  switch (code) {
    case Code::closed: return "ClosedError";
    case Code::deadline: return "DeadlineExceeded";
    case Code::would_block: return "WouldBlock";
    case Code::stale: return "StaleHandleError";
    case Code::capacity: return "CapacityError";
    case Code::protocol: return "PeerProtocolError";
    case Code::peer_lost: return "PeerLostError";
    case Code::credit: return "CreditExhaustedError";
    case Code::path_broken: return "PathBrokenError";
    case Code::rejected: return "RejectedError";
    default: return "InternalError";
  }
}

bool check_signals() {
  nb::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

}  // namespace

void raise(const Status& status) {
  if (status.code == Code::interrupted) throw nb::python_error();  // the handler's exception is set
  if (status.code == Code::need_segment) {
    nb::object args = nb::make_tuple(status.detail[0], status.detail[1], status.detail[2]);
    PyErr_SetObject(need_segment_class, args.ptr());
    throw nb::python_error();
  }
  if (status.code == Code::invalid) throw nb::value_error(status.message.c_str());
  nb::object error = nb::module_::import_("fabric.errors").attr(class_name(status.code));
  PyErr_SetObject(error.ptr(), error(status.message).ptr());
  throw nb::python_error();
}

void bind_errors(nb::module_& module) {
  need_segment_class = PyErr_NewExceptionWithDoc(
      "fabric._native.NeedSegment",
      "A segment is needed before the call can be repeated. ``args`` is ``(size_bytes, 0, group)`` for a sender (ask "
      "the daemon for a segment of that slot size, ``add_segment`` with that group) or ``(0, segment_id, 0)`` for a "
      "reader (fetch that segment's fd, ``add_segment``).",
      PyExc_Exception, nullptr);
  module.attr("NeedSegment") = nb::handle(need_segment_class);
  interrupt_hook = check_signals;
}

}  // namespace fabric
