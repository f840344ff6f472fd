// Encodes the messages of one type natively, as long as nothing about them is unusual.
//
// It writes what fabric/messages/codec.py would write, for plain scalars and for numpy arrays of a dtype and shape that
// codec.py has checked before (the same dict). Whatever it is not sure of it leaves to codec.py, errors too.
#pragma once

#include <nanobind/nanobind.h>

#include <vector>

#include "bind/arrays.hpp"
#include "bind/buffers.hpp"

namespace fabric {

class PlainEncoder {
 public:
  static constexpr std::size_t kMetaBytesMax = 1024;  ///< longer ones are encoded in Python
  /// `plan` is codec.py's NativePlan, or None: then nothing is encoded here. Throws on another.
  void attach(nanobind::handle plan);
  /// The meta in `out`, the arrays behind those in `buffers`; 0: Python encodes it. The interpreter's lock is held.
  std::size_t encode(PyObject* message, std::span<u8> out, Buffers& buffers);

 private:
  enum class Kind : char { integer = 'i', number = 'f', truth = 'b', text = 's', bytes = 'y', tensor = 't' };
  static constexpr u32 kAxesMax = 32;                 ///< named ones of a type; native_plan.py AXES_MAX
  struct Axis { u32 name; int axis; };                ///< those of one name have one size within a message
  struct Field {
    Kind kind;
    bool is_optional = false;
    nanobind::object name, slot, known;
    std::vector<Axis> axes;
    ArrayLayout last;                 ///< of the last array, and its descriptor as it is written
    u8 text[3 + 9 * (1 + kRankMax)];
    std::size_t text_bytes = 0;
  };
  class Writer;
  struct Made;
  Field field_of(nanobind::handle planned) const;
  static nanobind::object value_of(const Field& field, PyObject* message, bool is_view);
  static bool write(Field& field, PyObject* value, Made& made);
  static bool write_tensor(Field& field, PyObject* value, Made& made);
  static bool recall(Field& field, const ArrayView& array);
  nanobind::object class_, view_;
  std::vector<Field> fields_;
};

}  // namespace fabric
