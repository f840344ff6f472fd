#include "bind/plain_encoder.hpp"

#include <algorithm>
#include <bit>
#include <cctype>
#include <cmath>
#include <cstring>

#include "bind/slots.hpp"

namespace nb = nanobind;

namespace fabric {

/// MessagePack into a bounded buffer; false where it is full.
class PlainEncoder::Writer {
 public:
  explicit Writer(std::span<u8> out) : out_(out.data()), room_(out.size()) {}
  std::size_t size() const { return at_; }
  bool array(std::size_t items) { return items < 16 ? byte(0x90 | items) : tagged(0xdc, items, 2); }
  bool nothing() { return byte(0xc0); }
  bool truth(bool value) { return byte(value ? 0xc3 : 0xc2); }
  bool number(double value) { return tagged(0xcb, std::bit_cast<u64>(value), 8); }
  bool integer(long long value) {
    const u64 bits = static_cast<u64>(value);
    if (value >= 0) {
      if (value < 128) return byte(bits);
      if (value <= 0xff) return tagged(0xcc, bits, 1);
      if (value <= 0xffff) return tagged(0xcd, bits, 2);
      return value <= 0xffffffffLL ? tagged(0xce, bits, 4) : tagged(0xcf, bits, 8);
    }
    if (value >= -32) return byte(bits & 0xff);
    if (value >= -0x80) return tagged(0xd0, bits, 1);
    if (value >= -0x8000) return tagged(0xd1, bits, 2);
    return value >= -0x80000000LL ? tagged(0xd2, bits, 4) : tagged(0xd3, bits, 8);
  }
  bool text(const char* data, std::size_t size) {
    return (size < 32 ? byte(0xa0 | size) : size < 256 ? tagged(0xd9, size, 1) : tagged(0xda, size, 2)) && raw(data, size);
  }
  /// What is encoded already.
  bool raw(const void* data, std::size_t size) {
    if (room_ - at_ < size) return false;
    if (size != 0) std::memcpy(out_ + at_, data, size);
    at_ += size;
    return true;
  }
  bool bytes(const char* data, std::size_t size) {
    return (size < 256 ? tagged(0xc4, size, 1) : tagged(0xc5, size, 2)) && raw(data, size);
  }

 private:
  bool byte(u64 value) {
    if (at_ == room_) return false;
    out_[at_++] = static_cast<u8>(value);
    return true;
  }
  bool tagged(u8 tag, u64 value, int width) {
    if (room_ - at_ < static_cast<std::size_t>(width) + 1) return false;
    out_[at_++] = tag;
    for (int shift = (width - 1) * 8; shift >= 0; shift -= 8) out_[at_++] = static_cast<u8>(value >> shift);
    return true;
  }
  u8* out_;
  std::size_t room_, at_ = 0;
};

/// What is made of one message.
struct PlainEncoder::Made {
  Made(std::span<u8> out, Buffers& buffers) : meta(out), buffers(buffers) { std::fill_n(sizes, kAxesMax, -1); }
  Writer meta;
  Buffers& buffers;
  Py_ssize_t sizes[kAxesMax];         ///< of named axes; -1 where none came yet
};

void PlainEncoder::attach(nb::handle plan) {
  fields_.clear();
  if (plan.is_none()) return;
  class_ = plan.attr("cls");
  view_ = plan.attr("view");
  for (nb::handle each : plan.attr("fields")) fields_.push_back(field_of(each));
}

PlainEncoder::Field PlainEncoder::field_of(nb::handle planned) const {
  Field field;
  const auto letter = nb::cast<char>(planned.attr("kind"));
  field.is_optional = std::isupper(static_cast<unsigned char>(letter)) != 0;
  field.kind = static_cast<Kind>(std::tolower(static_cast<unsigned char>(letter)));
  if (std::strchr("ifbsyt", static_cast<char>(field.kind)) == nullptr) throw nb::value_error("a plan has an unknown kind of field");
  field.name = planned.attr("name");
  field.slot = class_.attr("__dict__")[field.name];
  if (!is_slot(field.slot.ptr())) throw nb::type_error("a plan names what is no slot of its class");
  field.known = planned.attr("known");
  if (field.kind == Kind::tensor && !PyDict_CheckExact(field.known.ptr())) throw nb::type_error("a tensor's plan has a dict");
  for (nb::handle each : planned.attr("axes")) {
    const Axis axis{nb::cast<u32>(each[0]), nb::cast<int>(each[1])};
    if (axis.name >= kAxesMax) throw nb::value_error("a plan has too many named axes");
    field.axes.push_back(axis);
  }
  return field;
}

std::size_t PlainEncoder::encode(PyObject* message, std::span<u8> out, Buffers& buffers) {
  const bool is_view = Py_IS_TYPE(message, reinterpret_cast<PyTypeObject*>(view_.ptr()));
  if (fields_.empty() || !(is_view || Py_IS_TYPE(message, reinterpret_cast<PyTypeObject*>(class_.ptr())))) return 0;
  const std::size_t before = buffers.size();
  Made made(out, buffers);
  bool good = made.meta.array(fields_.size());
  for (std::size_t i = 0; good && i < fields_.size(); ++i) {
    const nb::object value = value_of(fields_[i], message, is_view);
    good = value.is_valid() && write(fields_[i], value.ptr(), made);
  }
  if (good) return made.meta.size();
  PyErr_Clear();
  buffers.clear(before);
  return 0;
}

// The arrays of a received message are made when they are asked for.
nb::object PlainEncoder::value_of(const Field& field, PyObject* message, bool is_view) {
  if (is_view && field.kind == Kind::tensor) return nb::steal(PyObject_GetAttr(message, field.name.ptr()));
  PyObject** slot = slot_of(field.slot.ptr(), message);
  return nb::borrow(slot != nullptr ? *slot : nullptr);
}

bool PlainEncoder::write(Field& field, PyObject* value, Made& made) {
  Writer& meta = made.meta;
  if (value == Py_None) {
    if (field.is_optional && field.kind == Kind::tensor) made.buffers.add_array(value, {nullptr, 0});
    return field.is_optional && meta.nothing();
  }
  switch (field.kind) {
    case Kind::integer: {
      int overflow = 0;
      if (!PyLong_CheckExact(value)) return false;
      const long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
      return overflow == 0 && meta.integer(number);
    }
    case Kind::number:
      return PyFloat_CheckExact(value) && std::isfinite(PyFloat_AS_DOUBLE(value)) && meta.number(PyFloat_AS_DOUBLE(value));
    case Kind::truth:
      return PyBool_Check(value) && meta.truth(value == Py_True);
    case Kind::text: {
      Py_ssize_t size = 0;
      const char* text = PyUnicode_CheckExact(value) ? PyUnicode_AsUTF8AndSize(value, &size) : nullptr;
      return text != nullptr && meta.text(text, static_cast<std::size_t>(size));
    }
    case Kind::bytes:
      return PyBytes_CheckExact(value) &&
             meta.bytes(PyBytes_AS_STRING(value), static_cast<std::size_t>(PyBytes_GET_SIZE(value)));
    case Kind::tensor: return write_tensor(field, value, made);
  }
  return false;
}

// codec.py has checked an array of this dtype and shape, and remembers its descriptor; so does this for the last one.
bool PlainEncoder::write_tensor(Field& field, PyObject* value, Made& made) {
  ArrayView array;
  if (!view_array(value, array)) return false;
  if (!field.last.matches(array)) {
    // Looking it up may let another thread in: what counts is how the array is then.
    if (!recall(field, array) || !view_array(value, array) || !field.last.matches(array)) return false;
  }
  for (const Axis& axis : field.axes) {
    const int at = axis.axis >= 0 ? axis.axis : array.rank + axis.axis;
    Py_ssize_t& size = made.sizes[axis.name];
    if (at < 0 || at >= array.rank || (size != -1 && size != array.sizes[at])) return false;
    size = array.sizes[at];
  }
  if (!made.meta.raw(field.text, field.text_bytes)) return false;
  made.buffers.add_array(value, array.piece);
  return true;
}

bool PlainEncoder::recall(Field& field, const ArrayView& array) {
  const nb::object dtype = nb::borrow(array.dtype);
  nb::object shape = nb::steal(PyTuple_New(array.rank));
  if (!shape.is_valid()) return false;
  ArrayLayout layout;
  layout.take(array);
  for (int i = 0; i < layout.rank; ++i) {
    PyObject* size = PyLong_FromSsize_t(layout.sizes[i]);
    if (size == nullptr) return false;
    PyTuple_SET_ITEM(shape.ptr(), i, size);
  }
  // Equal dtypes may differ in their metadata, where an fp8 array says what it is.
  nb::object metadata = nb::steal(PyObject_GetAttrString(dtype.ptr(), "metadata"));
  nb::object key = nb::steal(PyTuple_Pack(2, dtype.ptr(), shape.ptr()));
  if (!metadata.is_none() || !key.is_valid()) return false;
  PyObject* descriptor = PyDict_GetItemWithError(field.known.ptr(), key.ptr());
  if (descriptor == nullptr || !PyTuple_CheckExact(descriptor)) return false;
  Writer writer(field.text);
  const Py_ssize_t items = PyTuple_GET_SIZE(descriptor);
  field.last.dtype.reset();           // nothing matches until the text is whole
  if (!writer.array(static_cast<std::size_t>(items))) return false;
  for (Py_ssize_t i = 0; i < items; ++i) {
    const long long item = PyLong_AsLongLong(PyTuple_GET_ITEM(descriptor, i));
    if ((item == -1 && PyErr_Occurred() != nullptr) || !writer.integer(item)) return false;
  }
  field.text_bytes = writer.size();
  field.last = std::move(layout);
  return true;
}

}  // namespace fabric
