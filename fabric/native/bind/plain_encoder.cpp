#include "bind/plain_encoder.hpp"

#include <bit>
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

void PlainEncoder::attach(nb::handle plan) {
  fields_.clear();
  if (plan.is_none()) return;
  class_ = plan.attr("cls");
  for (nb::handle each : plan.attr("fields")) {
    const auto kind = nb::cast<char>(each[1]);
    if (std::strchr("ifbsyt", kind) == nullptr) throw nb::value_error("a plan has an unknown kind of field");
    fields_.emplace_back();
    fields_.back().kind = static_cast<Kind>(kind);
    fields_.back().slot = class_.attr("__dict__")[each[0]];
    fields_.back().known = nb::borrow(each[2]);
    if (!is_slot(fields_.back().slot.ptr())) throw nb::type_error("a plan names what is no slot of its class");
    if (static_cast<Kind>(kind) == Kind::tensor && !PyDict_CheckExact(fields_.back().known.ptr())) {
      throw nb::type_error("a tensor's plan has a dict");
    }
  }
}

std::size_t PlainEncoder::encode(PyObject* message, std::span<u8> out, Buffers& buffers) {
  const std::size_t before = buffers.size();
  if (fields_.empty() || reinterpret_cast<PyObject*>(Py_TYPE(message)) != class_.ptr()) return 0;
  Writer writer(out);
  bool good = writer.array(fields_.size());
  for (Field& field : fields_) {
    nb::object value = nb::steal(read_slot(field.slot.ptr(), message));
    good = good && value.is_valid() && write(field, value.ptr(), writer, buffers);
    if (!good) {
      PyErr_Clear();
      buffers.clear(before);
      return 0;
    }
  }
  return writer.size();
}

bool PlainEncoder::write(Field& field, PyObject* value, Writer& writer, Buffers& buffers) {
  switch (field.kind) {
    case Kind::integer: {
      int overflow = 0;
      if (!PyLong_CheckExact(value)) return false;
      const long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
      return overflow == 0 && writer.integer(number);
    }
    case Kind::number:
      return PyFloat_CheckExact(value) && std::isfinite(PyFloat_AS_DOUBLE(value)) && writer.number(PyFloat_AS_DOUBLE(value));
    case Kind::truth:
      return PyBool_Check(value) && writer.truth(value == Py_True);
    case Kind::text: {
      Py_ssize_t size = 0;
      const char* text = PyUnicode_CheckExact(value) ? PyUnicode_AsUTF8AndSize(value, &size) : nullptr;
      return text != nullptr && writer.text(text, static_cast<std::size_t>(size));
    }
    case Kind::bytes:
      return PyBytes_CheckExact(value) &&
             writer.bytes(PyBytes_AS_STRING(value), static_cast<std::size_t>(PyBytes_GET_SIZE(value)));
    case Kind::tensor: return write_tensor(field, value, writer, buffers);
  }
  return false;
}

// codec.py has checked an array of this dtype and shape, and remembers its descriptor; so does this for the last one.
bool PlainEncoder::write_tensor(Field& field, PyObject* value, Writer& writer, Buffers& buffers) {
  ArrayView array;
  if (!view_array(value, array)) return false;
  if (!field.last.matches(array) && !recall(field, array)) return false;
  if (!writer.raw(field.text, field.text_bytes)) return false;
  buffers.add_array(value, array.piece);
  return true;
}

bool PlainEncoder::recall(Field& field, const ArrayView& array) {
  nb::object shape = nb::steal(PyTuple_New(array.rank));
  if (!shape.is_valid()) return false;
  for (int i = 0; i < array.rank; ++i) {
    PyObject* size = PyLong_FromSsize_t(array.sizes[i]);
    if (size == nullptr) return false;
    PyTuple_SET_ITEM(shape.ptr(), i, size);
  }
  nb::object key = nb::steal(PyTuple_Pack(2, array.dtype, shape.ptr()));
  if (!key.is_valid()) return false;
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
  field.last.take(array);
  return true;
}

}  // namespace fabric
