// Encodes the messages of one type natively, as long as nothing about them is unusual.
//
// It writes what fabric/messages/codec.py would write, for plain scalars and for numpy arrays of a dtype and shape that
// codec.py has checked before (the same dict). Whatever it is not sure of it leaves to codec.py, errors too.
#pragma once

#include <nanobind/nanobind.h>

#include <vector>

#include "bind/buffers.hpp"

namespace fabric {

class PlainEncoder {
 public:
  static constexpr std::size_t kMetaBytesMax = 1024;  ///< longer ones are encoded in Python
  /// `plan` is codec.py's NativePlan, or None: then nothing is encoded here. Throws on another.
  void attach(nanobind::handle plan);
  /// The meta in `out`, the arrays in `buffers`; 0: Python encodes it. The interpreter's lock is held.
  std::size_t encode(PyObject* message, u8 (&out)[kMetaBytesMax], Buffers& buffers) const;

 private:
  enum class Kind : char { integer = 'i', number = 'f', truth = 'b', text = 's', bytes = 'y', tensor = 't' };
  struct Field { nanobind::object name, known; Kind kind; };
  class Writer;
  static bool write(const Field& field, PyObject* value, Writer& writer, Buffers& buffers);
  static bool write_tensor(const Field& field, PyObject* value, Writer& writer, Buffers& buffers);
  nanobind::object class_;
  std::vector<Field> fields_;
};

}  // namespace fabric
