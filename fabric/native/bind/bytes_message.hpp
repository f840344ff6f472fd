// A received message of the built-in bytes type, as Python holds it.
//
// The payload is the meta of a small message; a larger one (or an empty one) is its only tensor, beside a meta of one
// byte, kBytesTag: no message of this type has an empty meta.
#pragma once

#include <nanobind/nanobind.h>

#include "core/receiver.hpp"

namespace fabric {

inline constexpr u8 kBytesTag = 1;    ///< fabric/messages/raw.py TAG
/// The longest payload that travels as meta, inline.
inline constexpr u64 kPlainBytesMax = kInlineBytesMax - sizeof(InlineHead);

/// Where the payload lies; need_segment, stale, protocol (it is no message of this type).
Status find_bytes(ReceiverCore& receiver, MessageCore& message, const u8*& data, u64& bytes);

/// A view that owns `core`; `owner` keeps `receiver`. On failure nullptr with an exception set, `core` collected.
PyObject* make_bytes_message(PyObject* owner, ReceiverCore& receiver, MessageCore* core, const u8* data, u64 bytes);
/// Lets Python map the segment that `status` (need_segment) asks for: provide(NeedSegment). Throws what that raises.
void provide_segment(PyObject* provide, const Status& status);
void bind_bytes_message(nanobind::module_& module);
void bind_sending_end(nanobind::module_& module);
void bind_receiving_end(nanobind::module_& module);

/// Runs `call` as nanobind would: what C++ throws becomes the Python exception, and the answer nullptr.
template <class Call>
PyObject* guarded(Call&& call) {
  try {
    return call();
  } catch (nanobind::python_error& error) {
    error.restore();
  } catch (const nanobind::builtin_exception& error) {
    PyErr_SetString(error.type() == nanobind::exception_type::type_error ? PyExc_TypeError : PyExc_ValueError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

}  // namespace fabric
