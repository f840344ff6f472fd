#include "bind/buffers.hpp"

#include <string>
#include <unordered_map>

#include "bind/errors.hpp"

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

struct DType {
  PyObject* dtype;
  u64 item_bytes;
};

// Descriptors live as long as the interpreter; the table is bounded by numpy's names. The name that was asked for last is
// told by its address: most messages of a process are of one type.
const DType& find_dtype(nb::handle name);

const DType& last_dtype(nb::handle name) {
  static PyObject* last = nullptr;    // held, so that no other text can lie there
  static const DType* found = nullptr;
  if (name.ptr() == last) return *found;
  found = &find_dtype(name);
  Py_XDECREF(last);
  last = Py_NewRef(name.ptr());
  return *found;
}

const DType& find_dtype(nb::handle name) {
  static auto* known = new std::unordered_map<std::string, DType>;
  Py_ssize_t length = 0;
  const char* text = PyUnicode_AsUTF8AndSize(name.ptr(), &length);
  if (text == nullptr) throw nb::python_error();
  std::string key(text, static_cast<std::size_t>(length));
  auto it = known->find(key);
  if (it != known->end()) return it->second;
  const char* numpy_name = key == "bf16" || key == "bfloat16" ? "uint16" : key.c_str();
  nb::object dtype = nb::module_::import_("numpy").attr("dtype")(numpy_name);
  const u64 item = nb::cast<u64>(dtype.attr("itemsize"));
  return known->emplace(std::move(key), DType{dtype.release().ptr(), item}).first->second;
}

}  // namespace

PyObject* ndarray_type() {
  static PyObject* type = nb::object(nb::module_::import_("numpy").attr("ndarray")).release().ptr();
  return type;
}

void Buffers::add(nb::handle object) {
  Py_buffer* view = nullptr;
  if (used_ < kFast) {
    view = &fast_[used_];
  } else {
    more_.push_back(std::make_unique<Py_buffer>());
    view = more_.back().get();
  }
  if (PyObject_GetBuffer(object.ptr(), view, PyBUF_SIMPLE) != 0) {
    if (used_ >= kFast) more_.pop_back();
    throw nb::python_error();
  }
  const Piece piece{static_cast<const u8*>(view->buf), static_cast<u64>(view->len)};
  if (used_ < kFast) {
    few_[used_] = piece;
  } else {
    if (used_ == kFast) many_.assign(few_, few_ + kFast);
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

void Buffers::clear() {
  for (std::size_t i = 0; i < used_ && i < kFast; ++i) PyBuffer_Release(&fast_[i]);
  for (auto& view : more_) PyBuffer_Release(view.get());
  more_.clear();
  many_.clear();
  used_ = 0;
}

nb::object memory_view(nb::handle owner, u8* data, u64 bytes, bool writable) {
  nb::object window = nb::cast(Window{nb::borrow(owner), data, bytes, writable});
  PyObject* view = PyMemoryView_FromObject(window.ptr());
  if (view == nullptr) throw nb::python_error();
  return nb::steal(view);
}

nb::object array_over(nb::handle owner, Piece& exported, const Piece& piece, nb::handle dtype, nb::handle shape) {
  const DType& type = last_dtype(dtype);
  u64 need = type.item_bytes;
  PyObject* sizes = PySequence_Tuple(shape.ptr());
  if (sizes == nullptr) throw nb::python_error();
  nb::object keep = nb::steal(sizes);
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(sizes); ++i) {
    const u64 size = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(sizes, i));
    if (PyErr_Occurred() != nullptr) throw nb::python_error();
    if (__builtin_mul_overflow(need, size, &need)) need = ~u64{0};
  }
  if (need != piece.bytes) {
    raise(Status::fail(Code::protocol, "a tensor has " + std::to_string(piece.bytes) + " bytes, dtype and shape need " +
                                           std::to_string(need)));
  }
  // From here to numpy's look at the buffer no Python code runs: shape is a tuple of integers by now.
  exported = piece;
  PyObject* arguments[4] = {nullptr, sizes, type.dtype, owner.ptr()};
  PyObject* array = PyObject_Vectorcall(ndarray_type(), arguments + 1, 3 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
  if (array == nullptr) throw nb::python_error();
  return nb::steal(array);
}

void bind_buffers(nb::module_& module) {
  nb::class_<Window>(module, "_Window", nb::type_slots(window_slots));
}

}  // namespace fabric
