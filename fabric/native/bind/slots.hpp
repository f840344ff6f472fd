// Fields of a message class, read and written past the lookup by name. The interpreter's lock is held.
#pragma once

#include <Python.h>

namespace fabric {

/// Whether `object` is what a class has for one of its slots.
inline bool is_slot(PyObject* object) { return Py_IS_TYPE(object, &PyMemberDescr_Type); }

/// A new reference; nullptr with AttributeError where the slot is empty, with TypeError for an object of another class.
inline PyObject* read_slot(PyObject* slot, PyObject* object) {
  return Py_TYPE(slot)->tp_descr_get(slot, object, reinterpret_cast<PyObject*>(Py_TYPE(object)));
}

/// -1 with an exception set for an object of another class.
inline int write_slot(PyObject* slot, PyObject* object, PyObject* value) {
  return Py_TYPE(slot)->tp_descr_set(slot, object, value);
}

}  // namespace fabric
