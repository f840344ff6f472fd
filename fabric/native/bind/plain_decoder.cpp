#include "bind/plain_decoder.hpp"

#include <bit>
#include <cctype>
#include <cmath>
#include <cstring>

#include "bind/arrays.hpp"

namespace nb = nanobind;

namespace fabric {

/// MessagePack, of which it knows what encoders of plain values write. Objects are new references; nullptr, with an
/// exception or without, where it is something else.
class PlainDecoder::Reader {
 public:
  explicit Reader(std::span<const u8> bytes) : at_(bytes.data()), end_(bytes.data() + bytes.size()) {}
  bool nothing() {
    if (left() == 0 || *at_ != 0xc0) return false;
    ++at_;
    return true;
  }
  bool is_at_end() const { return at_ == end_; }
  const u8* at() const { return at_; }
  /// Goes over `bytes` if they come next.
  bool skip(std::span<const u8> bytes) {
    if (bytes.empty() || bytes.size() > left() || std::memcmp(at_, bytes.data(), bytes.size()) != 0) return false;
    at_ += bytes.size();
    return true;
  }
  /// The number of items; ~0 where no array begins.
  u64 array() {
    if (left() == 0) return ~u64{0};
    const u8 tag = *at_++;
    return (tag & 0xf0) == 0x90 ? tag & 0x0f : tag == 0xdc ? big(2) : ~u64{0};
  }
  PyObject* integer() {
    if (left() == 0) return nullptr;
    const u8 tag = *at_++;
    if (tag < 0x80) return PyLong_FromLong(tag);
    if (tag >= 0xe0) return PyLong_FromLong(static_cast<signed char>(tag));
    if (tag < 0xcc || tag > 0xd3) return nullptr;
    const int width = 1 << ((tag - 0xcc) & 3);
    if (left() < static_cast<std::size_t>(width)) return nullptr;
    const u64 value = big(width);
    if (tag <= 0xcf) return PyLong_FromUnsignedLongLong(value);
    const int unused = 64 - 8 * width;
    return PyLong_FromLongLong(static_cast<long long>(value << unused) >> unused);
  }
  PyObject* number() {
    if (left() < 9 || *at_ != 0xcb) return nullptr;
    ++at_;
    const double value = std::bit_cast<double>(big(8));
    return std::isfinite(value) ? PyFloat_FromDouble(value) : nullptr;
  }
  PyObject* truth() {
    if (left() == 0 || (*at_ & 0xfe) != 0xc2) return nullptr;
    return PyBool_FromLong(*at_++ & 1);
  }
  PyObject* text() {
    std::span<const u8> found;
    if (left() != 0 && (*at_ & 0xe0) == 0xa0) {
      const std::size_t size = *at_++ & 0x1f;
      if (!take(size, found)) return nullptr;
    } else if (!sized(0xd9, found)) {
      return nullptr;
    }
    return PyUnicode_DecodeUTF8(reinterpret_cast<const char*>(found.data()), static_cast<Py_ssize_t>(found.size()), nullptr);
  }
  PyObject* bytes() {
    std::span<const u8> found;
    if (!sized(0xc4, found)) return nullptr;
    return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(found.data()), static_cast<Py_ssize_t>(found.size()));
  }
  /// Of a tensor: a tuple of integers.
  PyObject* descriptor() {
    const u64 items = array();
    if (items > 1 + kRankMax) return nullptr;
    PyObject* made = PyTuple_New(static_cast<Py_ssize_t>(items));
    for (u64 i = 0; made != nullptr && i < items; ++i) {
      PyObject* item = integer();
      if (item != nullptr) PyTuple_SET_ITEM(made, static_cast<Py_ssize_t>(i), item);
      else Py_CLEAR(made);
    }
    return made;
  }

 private:
  std::size_t left() const { return static_cast<std::size_t>(end_ - at_); }
  u64 big(int width) {
    if (left() < static_cast<std::size_t>(width)) return ~u64{0};
    u64 value = 0;
    for (int i = 0; i < width; ++i) value = value << 8 | *at_++;
    return value;
  }
  bool take(std::size_t size, std::span<const u8>& out) {
    if (size > left()) return false;
    out = {at_, size};
    at_ += size;
    return true;
  }
  // With a size of one byte behind `tag`, or of two behind the next tag.
  bool sized(u8 tag, std::span<const u8>& out) {
    if (left() == 0 || (*at_ != tag && *at_ != tag + 1)) return false;
    const int width = *at_++ == tag ? 1 : 2;
    return take(big(width), out);
  }
  const u8 *at_, *end_;
};

void PlainDecoder::attach(nb::handle plan) {
  fields_.clear();
  if (plan.is_none()) return;
  const nb::object view = plan.attr("view");
  for (nb::handle each : plan.attr("kinds")) {
    const auto letter = nb::cast<char>(each);
    const int kind = std::tolower(static_cast<unsigned char>(letter));
    if (std::strchr("ifbsyt", kind) == nullptr) throw nb::value_error("a plan has an unknown kind of field");
    // A descriptor may always be None: the property says what is wrong with that.
    const bool is_optional = letter != kind || kind == 't';
    fields_.push_back({static_cast<Kind>(kind), is_optional, {}, 0, {}});
  }
  if (fields_.size() > kFieldsMax) throw nb::value_error("a plan has too many fields");
  view_ = view;
}

PyObject* PlainDecoder::read(Field& field, Reader& reader) {
  if (field.is_optional && reader.nothing()) Py_RETURN_NONE;
  switch (field.kind) {
    case Kind::integer: return reader.integer();
    case Kind::number: return reader.number();
    case Kind::truth: return reader.truth();
    case Kind::bytes: return reader.bytes();
    case Kind::text:
    case Kind::tensor: return read_as_last(field, reader);
  }
  return nullptr;
}

PyObject* PlainDecoder::read_as_last(Field& field, Reader& reader) {
  if (reader.skip({field.written, field.written_bytes})) return Py_NewRef(field.last.ptr());
  const u8* start = reader.at();
  PyObject* value = field.kind == Kind::text ? reader.text() : reader.descriptor();
  const std::size_t bytes = static_cast<std::size_t>(reader.at() - start);
  if (value != nullptr && bytes <= sizeof field.written) {
    std::memcpy(field.written, start, bytes);
    field.written_bytes = bytes;
    field.last = nb::borrow(value);
  }
  return value;
}

PyObject* PlainDecoder::decode(std::span<const u8> meta, PyObject* native, PyObject* source) {
  const std::size_t count = fields_.size();
  if (count == 0 || meta.size() > kMetaBytesMax) return nullptr;
  Reader reader(meta);
  PyObject* values[1 + kFieldsMax + 2];  // the first one is the callee's to use
  std::size_t made = 0;
  bool good = reader.array() == count;
  for (; good && made < count; made += good) {
    values[1 + made] = read(fields_[made], reader);
    good = values[1 + made] != nullptr;
  }
  PyObject* view = nullptr;
  if (good && reader.is_at_end()) {
    values[1 + count] = native;
    values[2 + count] = source;
    view = PyObject_Vectorcall(view_.ptr(), values + 1, (count + 2) | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr);
  }
  for (std::size_t i = 0; i < made; ++i) Py_DECREF(values[1 + i]);
  if (view == nullptr) PyErr_Clear();
  return view;
}

}  // namespace fabric
