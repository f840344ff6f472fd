#include "bind/tensor_field.hpp"

#include "bind/arrays.hpp"
#include "bind/bytes_message.hpp"
#include "bind/ends_common.hpp"
#include "bind/message.hpp"
#include "bind/slots.hpp"

namespace nb = nanobind;

namespace fabric {
namespace {

using namespace ends;

/// A descriptor as it stands in a slot before the array is made, and what the property made of it.
struct Seen {
  nb::object descriptor;
  ArrayLayout layout;
};

struct TensorField {
  PyObject_HEAD
  struct Held {
    nb::object property, slot, native;  ///< `native`: the slot of a view for its native message
    u32 index = 0;                      ///< among the tensors of a message
    Seen seen[4];
    unsigned next = 0;
  } held;
};

TensorField::Held& held_of(PyObject* object) { return reinterpret_cast<TensorField*>(object)->held; }

// The layout for a descriptor that was seen before: mostly the very same object, see PlainDecoder.
const ArrayLayout* recall(const TensorField::Held& field, PyObject* descriptor) {
  for (const Seen& each : field.seen) {
    if (each.descriptor.ptr() == descriptor) return &each.layout;
  }
  for (const Seen& each : field.seen) {
    if (!each.descriptor.is_valid()) break;
    const int equal = PyObject_RichCompareBool(each.descriptor.ptr(), descriptor, Py_EQ);
    if (equal < 0) PyErr_Clear();
    if (equal > 0) return &each.layout;
  }
  return nullptr;
}

void remember(TensorField::Held& field, PyObject* descriptor, PyObject* array) {
  ArrayView view;
  if (!view_array(array, view)) return;
  Seen& seen = field.seen[field.next++ % std::size(field.seen)];
  seen.layout.take(view);
  seen.descriptor = nb::borrow(descriptor);
}

// A new reference; nullptr without an exception where the property has to say what is wrong.
PyObject* make(const TensorField::Held& field, PyObject* view, PyObject** slot, const ArrayLayout& layout) {
  PyObject** native = slot_of(field.native.ptr(), view);
  const Message* message = native != nullptr && *native != nullptr ? as_message(*native) : nullptr;
  const u8* data = nullptr;
  u64 bytes = 0;
  if (message == nullptr || !message->receiver->tensor(*message->core, field.index, data, bytes).ok() || bytes != layout.bytes) {
    return nullptr;
  }
  PyObject* array = make_array(layout, data, *native);
  if (array == nullptr) PyErr_Clear();
  else Py_XSETREF(*slot, Py_NewRef(array));
  return array;
}

PyObject* get(PyObject* object, PyObject* view, PyObject* owner) {
  if (view == nullptr || view == Py_None) return Py_NewRef(object);
  return guarded([&]() -> PyObject* {
    TensorField::Held& field = held_of(object);
    PyObject** slot = slot_of(field.slot.ptr(), view);
    nb::object value = nb::borrow(slot != nullptr ? *slot : nullptr);
    const bool is_descriptor = value.is_valid() && PyTuple_CheckExact(value.ptr());
    if (is_descriptor) {
      const ArrayLayout* layout = recall(field, value.ptr());
      PyObject* array = layout != nullptr ? make(field, view, slot, *layout) : nullptr;
      if (array != nullptr) return array;
    } else if (value.is_valid() && !value.is_none() && is_array(value.ptr())) {
      return value.release().ptr();
    }
    PyObject* property = field.property.ptr();
    PyObject* found = Py_TYPE(property)->tp_descr_get(property, view, owner);
    if (found != nullptr && is_descriptor && is_array(found)) remember(field, value.ptr(), found);
    return found;
  });
}

int set(PyObject* object, PyObject* view, PyObject* value) {
  PyObject* property = held_of(object).property.ptr();
  return Py_TYPE(property)->tp_descr_set(property, view, value);
}

// There is nothing to clear: a cycle through a field goes through its class, which clears itself.
int traverse(PyObject* object, visitproc visit, void* arg) {
  TensorField::Held& field = held_of(object);
  Py_VISIT(Py_TYPE(object));
  Py_VISIT(field.property.ptr());
  Py_VISIT(field.slot.ptr());
  Py_VISIT(field.native.ptr());
  return 0;
}

void finalize(PyObject* object) {
  PyObject_GC_UnTrack(object);
  unmake<TensorField>(object);
}

// TensorField(property, slot, native, index): the property that it stands for, the slots that it reads.
PyObject* construct(PyTypeObject* type, PyObject* args, PyObject* names) {
  PyObject *property = nullptr, *slot = nullptr, *native = nullptr;
  unsigned int index = 0;
  if (names != nullptr && PyDict_GET_SIZE(names) != 0) {
    PyErr_SetString(PyExc_TypeError, "TensorField(property, slot, native, index) takes no names");
    return nullptr;
  }
  if (!PyArg_ParseTuple(args, "O!OOI", &PyProperty_Type, &property, &slot, &native, &index)) return nullptr;
  if (!is_slot(slot) || !is_slot(native)) {
    PyErr_SetString(PyExc_TypeError, "TensorField reads slots of a class, and nothing else");
    return nullptr;
  }
  PyObject* object = ends::make<TensorField>(type, args, names);
  if (object == nullptr) return nullptr;
  TensorField::Held& field = held_of(object);
  field.property = nb::borrow(property);
  field.slot = nb::borrow(slot);
  field.native = nb::borrow(native);
  field.index = index;
  return object;
}

PyObject* document(PyObject* object, void*) { return PyObject_GetAttrString(held_of(object).property.ptr(), "__doc__"); }

PyGetSetDef properties[] = {{"__doc__", document, nullptr, nullptr, nullptr}, {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyType_Slot slots[] = {{Py_tp_new, reinterpret_cast<void*>(construct)},
                       {Py_tp_dealloc, reinterpret_cast<void*>(finalize)},
                       {Py_tp_traverse, reinterpret_cast<void*>(traverse)},
                       {Py_tp_descr_get, reinterpret_cast<void*>(get)},
                       {Py_tp_descr_set, reinterpret_cast<void*>(set)},
                       {Py_tp_getset, properties},
                       {0, nullptr}};
PyType_Spec spec{"fabric._native.TensorField", sizeof(TensorField), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, slots};

}  // namespace

void bind_tensor_field(nb::module_& module) { add_type(module, "TensorField", spec); }

}  // namespace fabric
