#include "bind/arrays.hpp"

#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#include <numpy/arrayobject.h>

#include <algorithm>
#include <string>
#include <unordered_map>

#include "bind/errors.hpp"

namespace nb = nanobind;

namespace fabric {
namespace {

static_assert(sizeof(npy_intp) == sizeof(Py_ssize_t));

void load_numpy() {
  if (PyArray_API == nullptr && _import_array() < 0) throw nb::python_error();
}

struct DType {
  PyObject* dtype;
  u64 item_bytes;
};

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

// Descriptors live as long as the interpreter; the table is bounded by numpy's names. The name that was asked for last is
// told by its address: most messages of a process are of one type.
const DType& last_dtype(nb::handle name) {
  static PyObject* last = nullptr;    // held, so that no other text can lie there
  static const DType* found = nullptr;
  if (name.ptr() == last) return *found;
  found = &find_dtype(name);
  Py_XDECREF(last);
  last = Py_NewRef(name.ptr());
  return *found;
}

}  // namespace

bool ArrayLayout::matches(const ArrayView& array) const {
  return array.dtype == dtype.ptr() && array.rank == rank && std::equal(sizes, sizes + rank, array.sizes);
}

void ArrayLayout::take(const ArrayView& array) {
  dtype = nb::borrow(array.dtype);
  rank = array.rank;
  bytes = array.piece.bytes;
  std::copy_n(array.sizes, rank, sizes);
}

bool is_array(PyObject* object) {
  load_numpy();
  return PyArray_CheckExact(object);
}

bool view_array(PyObject* object, ArrayView& out) {
  if (!is_array(object)) return false;
  auto* array = reinterpret_cast<PyArrayObject*>(object);
  if (!PyArray_IS_C_CONTIGUOUS(array) || PyArray_NDIM(array) > kRankMax) return false;
  out = {reinterpret_cast<PyObject*>(PyArray_DESCR(array)), PyArray_NDIM(array), PyArray_DIMS(array),
         {static_cast<const u8*>(PyArray_DATA(array)), static_cast<u64>(PyArray_NBYTES(array))}};
  return true;
}

PyObject* make_array(const ArrayLayout& layout, const u8* data, PyObject* owner) {
  load_numpy();
  auto* dtype = reinterpret_cast<PyArray_Descr*>(Py_NewRef(layout.dtype.ptr()));  // taken, also by a failure
  PyObject* made = PyArray_NewFromDescr(&PyArray_Type, dtype, layout.rank, layout.sizes, nullptr, const_cast<u8*>(data),
                                        NPY_ARRAY_CARRAY_RO, nullptr);
  if (made == nullptr) return nullptr;
  if (PyArray_SetBaseObject(reinterpret_cast<PyArrayObject*>(made), Py_NewRef(owner)) == 0) return made;
  Py_DECREF(made);
  return nullptr;
}

nb::object array_over(nb::handle owner, const Piece& piece, nb::handle dtype, nb::handle shape) {
  const DType& type = last_dtype(dtype);
  ArrayLayout layout;
  layout.dtype = nb::borrow(type.dtype);
  layout.bytes = type.item_bytes;
  nb::object sizes = nb::steal(PySequence_Tuple(shape.ptr()));
  if (!sizes.is_valid()) throw nb::python_error();
  const Py_ssize_t rank = PyTuple_GET_SIZE(sizes.ptr());
  if (rank > kRankMax) throw nb::value_error("the shape of a tensor has at most 16 sizes");
  layout.rank = static_cast<int>(rank);
  for (Py_ssize_t i = 0; i < rank; ++i) {
    const u64 size = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(sizes.ptr(), i));
    if (PyErr_Occurred() != nullptr) throw nb::python_error();
    layout.sizes[i] = static_cast<Py_ssize_t>(size);
    if (__builtin_mul_overflow(layout.bytes, size, &layout.bytes)) layout.bytes = ~u64{0};
  }
  if (layout.bytes != piece.bytes) {
    raise(Status::fail(Code::protocol, "a tensor has " + std::to_string(piece.bytes) + " bytes, dtype and shape need " +
                                           std::to_string(layout.bytes)));
  }
  nb::object array = nb::steal(make_array(layout, piece.data, owner.ptr()));
  if (!array.is_valid()) throw nb::python_error();
  return array;
}

}  // namespace fabric
