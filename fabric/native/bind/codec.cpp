// Kernels of codecs over plain buffers; fabric/kernels.py is their documented face.
#include <nanobind/nanobind.h>

#include <string>

#include "bind/endpoints.hpp"
#include "bind/errors.hpp"
#include "bind/gil.hpp"
#include "codec/float_codec.hpp"
#include "codec/quantize.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace fabric {
namespace {

/// A C-contiguous buffer for the length of one call.
class Held {
 public:
  Held(nb::handle object, bool writable) {
    if (PyObject_GetBuffer(object.ptr(), &view_, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) != 0) throw nb::python_error();
  }
  Held(const Held&) = delete;
  ~Held() { PyBuffer_Release(&view_); }
  u8* data() const { return static_cast<u8*>(view_.buf); }
  u64 bytes() const { return static_cast<u64>(view_.len); }

 private:
  Py_buffer view_;
};

void refuse(const char* why) {
  if (why != nullptr) raise(Status::fail(Code::invalid, why));
}

codec::FloatLayout layout_of(u32 width, bool rotated, u32 row) {
  if (width != 1 && width != 2 && width != 4 && width != 8) refuse("width is 1, 2, 4 or 8 bytes");
  return {width, rotated, row <= codec::kRowMax ? row : 0};
}

u64 float_encode_max(u64 bytes, u32 width, u32 row) {
  return codec::encoded_floats_max(bytes, layout_of(width, false, row));
}

u64 float_encode(nb::handle data, nb::handle out, u32 width, bool rotated, u32 row) {
  const Held from(data, false), to(out, true);
  const codec::FloatLayout layout = layout_of(width, rotated, row);
  if (to.bytes() < codec::encoded_floats_max(from.bytes(), layout)) refuse("out is smaller than float_encode_max says");
  const bind::ReleasedGil released;
  return codec::encode_floats(from.data(), from.bytes(), layout, to.data());
}

u64 float_decoded_bytes(nb::handle data) {
  const Held from(data, false);
  const char* why = nullptr;
  const u64 bytes = codec::decoded_floats_bytes(from.data(), from.bytes(), why);
  refuse(why);
  return bytes;
}

void float_decode(nb::handle data, nb::handle out) {
  const Held from(data, false), to(out, true);
  const char* why = nullptr;
  {
    const bind::ReleasedGil released;
    why = codec::decode_floats(from.data(), from.bytes(), to.data(), to.bytes());
  }
  refuse(why);
}

constexpr u64 kBytesOf[] = {4, 2, 2};  // codec::Number

/// Checks that the buffers are what the matrix needs.
codec::Matrix matrix_of(u64 rows, u64 columns, u64 group, u32 number, u32 code, u64 numbers, u64 codes, u64 scales) {
  const codec::Matrix matrix{rows, columns, group};
  if (number > 2 || code > 2) refuse("number or code is unknown");
  if (columns != 0 && rows > (u64{1} << 48) / columns) refuse("the matrix is too large");
  if (numbers != rows * columns * kBytesOf[number]) refuse("the numbers are not as many as the matrix has");
  if (codes != rows * columns) refuse("the codes are not as many as the matrix has");
  if (scales != matrix.scales() * sizeof(float)) refuse("the scales are not as many as the matrix has groups or columns");
  return matrix;
}

nb::tuple quantize(nb::handle numbers, nb::handle codes, nb::handle scales, u32 number, u32 code, u64 rows, u64 columns,
                   u64 group) {
  const Held from(numbers, false), to(codes, true), by(scales, true);
  const codec::Matrix matrix = matrix_of(rows, columns, group, number, code, from.bytes(), to.bytes(), by.bytes());
  codec::Loss loss;
  {
    const bind::ReleasedGil released;
    loss = codec::quantize(from.data(), static_cast<codec::Number>(number), matrix, static_cast<codec::Code8>(code),
                           to.data(), reinterpret_cast<float*>(by.data()));
  }
  return nb::make_tuple(loss.error2, loss.norm2, loss.worst_row, loss.finite);
}

void dequantize(nb::handle codes, nb::handle scales, nb::handle numbers, u32 code, u32 number, u64 rows, u64 columns,
                u64 group) {
  const Held from(codes, false), by(scales, false), to(numbers, true);
  const codec::Matrix matrix = matrix_of(rows, columns, group, number, code, to.bytes(), from.bytes(), by.bytes());
  const bind::ReleasedGil released;
  codec::dequantize(from.data(), static_cast<codec::Code8>(code), matrix, reinterpret_cast<const float*>(by.data()),
                    static_cast<codec::Number>(number), to.data());
}

}  // namespace

void bind_codec(nb::module_& module) {
  module.def("float_encode_max", float_encode_max, "bytes"_a, "width"_a, "row"_a);
  module.def("float_encode", float_encode, "data"_a, "out"_a, "width"_a, "rotated"_a, "row"_a,
             nb::sig("def float_encode(data: Buffer, out: Buffer, width: int, rotated: bool, row: int) -> int"));
  module.def("float_decoded_bytes", float_decoded_bytes, "data"_a,
             nb::sig("def float_decoded_bytes(data: Buffer) -> int"));
  module.def("float_decode", float_decode, "data"_a, "out"_a,
             nb::sig("def float_decode(data: Buffer, out: Buffer) -> None"));
  module.def("quantize", quantize, "numbers"_a, "codes"_a, "scales"_a, "number"_a, "code"_a, "rows"_a, "columns"_a,
             "group"_a,
             nb::sig("def quantize(numbers: Buffer, codes: Buffer, scales: Buffer, number: int, code: int, rows: int, "
                     "columns: int, group: int) -> tuple[float, float, float, bool]"));
  module.def("dequantize", dequantize, "codes"_a, "scales"_a, "numbers"_a, "code"_a, "number"_a, "rows"_a, "columns"_a,
             "group"_a,
             nb::sig("def dequantize(codes: Buffer, scales: Buffer, numbers: Buffer, code: int, number: int, rows: int, "
                     "columns: int, group: int) -> None"));
}

}  // namespace fabric
