// Fields of a message class, read and written where its objects keep them. The interpreter's lock is held.
#pragma once

#include <Python.h>
#include <structmember.h>

namespace fabric {

/// Whether `object` is what a class has for one of its slots.
inline bool is_slot(PyObject* object) {
  return Py_IS_TYPE(object, &PyMemberDescr_Type) &&
         reinterpret_cast<PyMemberDescrObject*>(object)->d_member->type == T_OBJECT_EX;
}

/// The value of a slot, nullptr inside where it is empty. nullptr for an object of another class.
inline PyObject** slot_of(PyObject* slot, PyObject* object) {
  const auto* member = reinterpret_cast<PyMemberDescrObject*>(slot);
  if (!PyObject_TypeCheck(object, member->d_common.d_type)) return nullptr;
  return reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + member->d_member->offset);
}

}  // namespace fabric
