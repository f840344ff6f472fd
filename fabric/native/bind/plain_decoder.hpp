// Decodes the messages of one type natively, as long as nothing about them is unusual.
//
// It makes what the msgspec decoder of the type's view class would, for plain scalars and the descriptors of tensors;
// whatever it is not sure of it leaves to that decoder, errors too. A text or descriptor like the last one of its field is
// not made anew: it is the same object, by which TensorField knows a descriptor.
#pragma once

#include <nanobind/nanobind.h>

#include <span>
#include <vector>

#include "core/layout.hpp"

namespace fabric {

class PlainDecoder {
 public:
  static constexpr std::size_t kMetaBytesMax = 1024;  ///< longer ones are decoded in Python
  /// `plan` is native_plan.py's DecodePlan, or None: then nothing is decoded here. Throws on another.
  void attach(nanobind::handle plan);
  /// The view of `native`, which `source` received. nullptr without an exception: Python decodes it. `meta` must be memory
  /// that nobody else writes. The interpreter's lock is held.
  PyObject* decode(std::span<const u8> meta, PyObject* native, PyObject* source);

 private:
  static constexpr std::size_t kFieldsMax = 64;       ///< fabric/limits.py FIELDS_PER_TYPE_MAX
  enum class Kind : char { integer = 'i', number = 'f', truth = 'b', text = 's', bytes = 'y', tensor = 't' };
  struct Field {
    Kind kind;
    bool is_optional;
    nanobind::object last;            ///< a short value that came last, and how it was written
    std::size_t written_bytes = 0;
    u8 written[64];
  };
  class Reader;
  static PyObject* read(Field& field, Reader& reader);
  static PyObject* read_as_last(Field& field, Reader& reader);
  nanobind::object view_;
  std::vector<Field> fields_;
};

}  // namespace fabric
