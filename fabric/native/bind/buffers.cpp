#include "bind/buffers.hpp"

namespace nb = nanobind;

namespace fabric {
namespace {

int window_get(PyObject* self, Py_buffer* view, int flags) {
  auto* window = nb::inst_ptr<Window>(nb::handle(self));
  return PyBuffer_FillInfo(view, self, window->data, static_cast<Py_ssize_t>(window->bytes), window->writable ? 0 : 1,
                           flags);
}

int window_traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  if (nb::inst_ready(self)) Py_VISIT(nb::inst_ptr<Window>(nb::handle(self))->owner.ptr());
  return 0;
}

int window_clear(PyObject* self) {
  nb::inst_ptr<Window>(nb::handle(self))->owner.reset();
  return 0;
}

PyType_Slot window_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(window_get)},
                              {Py_tp_traverse, reinterpret_cast<void*>(window_traverse)},
                              {Py_tp_clear, reinterpret_cast<void*>(window_clear)},
                              {0, nullptr}};

}  // namespace

void Buffers::add(nb::handle object) {
  Py_buffer* view = used_ < kFast ? &fast_[used_] : new Py_buffer;
  if (PyObject_GetBuffer(object.ptr(), view, PyBUF_SIMPLE) != 0) {
    if (used_ >= kFast) delete view;
    throw nb::python_error();
  }
  hold({view, nullptr}, {static_cast<const u8*>(view->buf), static_cast<u64>(view->len)});
}

void Buffers::add_array(PyObject* array, const Piece& piece) {
  hold({nullptr, Py_NewRef(array)}, piece);  // numpy does not resize what something else refers to
}

void Buffers::hold(const Held& held, const Piece& piece) {
  if (used_ < kFast) {
    held_[used_] = held;
    few_[used_] = piece;
  } else {
    if (used_ == kFast) many_.assign(few_, few_ + kFast);
    more_.push_back(held);
    many_.push_back(piece);
  }
  ++used_;
}

void Buffers::add_all(nb::handle sequence) {
  PyObject* fast = PySequence_Fast(sequence.ptr(), "tensors must be a sequence of buffers");
  if (fast == nullptr) throw nb::python_error();
  nb::object keep = nb::steal(fast);
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(fast);
  for (Py_ssize_t i = 0; i < count; ++i) add(PySequence_Fast_GET_ITEM(fast, i));
}

void Buffers::clear(std::size_t from) {
  while (used_ > from) {
    const bool is_more = --used_ >= kFast;
    const Held held = is_more ? more_.back() : held_[used_];
    if (held.array != nullptr) Py_DECREF(held.array);
    else PyBuffer_Release(held.view);
    if (!is_more) continue;
    delete held.view;
    more_.pop_back();
    many_.pop_back();
  }
}

nb::object memory_view(nb::handle owner, u8* data, u64 bytes, bool writable) {
  nb::object window = nb::cast(Window{nb::borrow(owner), data, bytes, writable});
  PyObject* view = PyMemoryView_FromObject(window.ptr());
  if (view == nullptr) throw nb::python_error();
  return nb::steal(view);
}

void bind_buffers(nb::module_& module) {
  nb::class_<Window>(module, "_Window", nb::type_slots(window_slots));
}

}  // namespace fabric
