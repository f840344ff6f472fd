// A received message as the native core knows it: what a view holds, and what keeps the memory of its arrays.
#pragma once

#include <nanobind/nanobind.h>

#include "core/receiver.hpp"

namespace fabric {

/// The Python object: no registry of instances, no counted pointer.
struct Message {
  PyObject_HEAD
  PyObject* owner;                    ///< keeps `receiver`
  ReceiverCore* receiver;
  MessageCore* core;                  ///< collected with this object
};

/// Takes `core`; on failure nullptr with an exception set, `core` collected.
PyObject* make_message(PyObject* owner, ReceiverCore& receiver, MessageCore* core);
/// nullptr when it is none.
Message* as_message(PyObject* object);
void bind_message(nanobind::module_& module);

}  // namespace fabric
