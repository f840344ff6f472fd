// What the native bases of endpoints share: arguments, deadlines, errors by the channel's name, calls back into Python.
#pragma once

#include <nanobind/nanobind.h>

#include "bind/endpoints.hpp"
#include "core/clock.hpp"

namespace fabric::ends {

inline constexpr u64 kLater = ~u64{0};  ///< a deadline for attempts that do not wait

/// Of waits, from fabric/limits.py.
struct Limits { u64 default_ns; double seconds_max; };

using Fast = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t, PyObject*);
inline PyCFunction fast(Fast call) { return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call)); }
inline constexpr int kFastCall = METH_FASTCALL | METH_KEYWORDS;

/// Positional and named arguments in one order.
struct Arguments {
  PyObject* value[3] = {nullptr, nullptr, nullptr};
  /// False: not for these names; Python says what is wrong.
  bool take(PyObject* const* args, Py_ssize_t count, PyObject* names, const char* const (&known)[3]) {
    if (count > 3) return false;
    for (Py_ssize_t i = 0; i < count; ++i) value[i] = args[i];
    for (Py_ssize_t i = 0; names != nullptr && i < PyTuple_GET_SIZE(names); ++i) {
      int at = 0;
      while (at < 3 && (known[at] == nullptr || PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, i), known[at]) != 0)) ++at;
      if (at == 3 || value[at] != nullptr) return false;
      value[at] = args[count + i];
    }
    for (PyObject*& each : value) {
      if (each == Py_None) each = nullptr;
    }
    return true;
  }
};

// A timeout in seconds as nanoseconds; false: Python says what is wrong with it.
inline bool timeout_of(PyObject* seconds, const Limits& limits, u64& out) {
  if (seconds == nullptr) {
    out = limits.default_ns;
    return true;
  }
  double value = -1;
  if (PyFloat_Check(seconds)) value = PyFloat_AS_DOUBLE(seconds);
  else if (PyLong_Check(seconds) && !PyBool_Check(seconds)) value = PyLong_AsDouble(seconds);
  if (!(value >= 0 && value <= limits.seconds_max)) {
    PyErr_Clear();
    return false;
  }
  out = static_cast<u64>(value * 1e9);
  return true;
}

// As an absolute deadline; 0 stays 0: not to wait.
inline bool deadline_of(PyObject* seconds, const Limits& limits, u64& out) {
  if (!timeout_of(seconds, limits, out)) return false;
  if (out != 0) out += monotonic_ns();
  return true;
}

inline PyObject* python_call(PyObject* self, const char* name, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  PyObject* method = PyObject_GetAttrString(self, name);
  if (method == nullptr) return nullptr;
  PyObject* answer = PyObject_Vectorcall(method, args, static_cast<std::size_t>(count), names);
  Py_DECREF(method);
  return answer;
}

// Raises what `status` says; the channel is named by its name.
[[noreturn]] inline void raise_named(PyObject* self, const Status& status) {
  try {
    raise(status);
  } catch (nanobind::python_error& error) {
    if (status.code != Code::interrupted) nanobind::handle(self).attr("name_error")(error.value());
    throw;
  }
}

template <class End>
PyObject* make(PyTypeObject* type, PyObject*, PyObject*) {
  PyObject* object = type->tp_alloc(type, 0);
  if (object != nullptr) new (&reinterpret_cast<End*>(object)->held) decltype(End::held)();
  return object;
}

template <class End>
void unmake(PyObject* object) {
  using Held = decltype(End::held);
  reinterpret_cast<End*>(object)->held.~Held();
  PyTypeObject* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

inline nanobind::object add_type(nanobind::module_& module, const char* name, PyType_Spec& spec, PyObject* base = nullptr) {
  nanobind::object bases;
  if (base != nullptr) bases = nanobind::make_tuple(nanobind::handle(base));
  nanobind::object type = nanobind::steal(PyType_FromSpecWithBases(&spec, bases.ptr()));
  if (!type.is_valid()) throw nanobind::python_error();
  module.attr(name) = type;
  return type;
}

}  // namespace fabric::ends
