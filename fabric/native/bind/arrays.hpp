// numpy arrays through numpy's C interface: made over memory that something else keeps, and looked into.
//
// numpy is loaded at first use, never with this module. The interpreter's lock is held.
#pragma once

#include <nanobind/nanobind.h>

#include "core/sender.hpp"

namespace fabric {

inline constexpr int kRankMax = 16;   ///< fabric/limits.py TENSOR_RANK_MAX

/// What the header of an array says; `dtype` and `sizes` are the array's own.
struct ArrayView {
  PyObject* dtype;
  int rank;
  const Py_ssize_t* sizes;
  Piece piece;
};

/// A header to be: one for many arrays.
struct ArrayLayout {
  nanobind::object dtype;
  int rank = 0;
  u64 bytes = 0;
  Py_ssize_t sizes[kRankMax] = {};
  bool matches(const ArrayView& array) const;
  void take(const ArrayView& array);
};

/// Whether it is of exactly numpy's type. Throws when numpy cannot be loaded.
bool is_array(PyObject* object);
/// Its header; false: it is not of exactly numpy's type, not C-contiguous, or of a rank that does not travel.
bool view_array(PyObject* object, ArrayView& out);
/// A read-only array over `data`, which `owner` keeps. nullptr with an exception set.
PyObject* make_array(const ArrayLayout& layout, const u8* data, PyObject* owner);
/// The same with a dtype by its name (bf16 as uint16) and a sequence of sizes; raises PeerProtocolError unless they need
/// just the bytes of `piece`.
nanobind::object array_over(nanobind::handle owner, const Piece& piece, nanobind::handle dtype, nanobind::handle shape);

}  // namespace fabric
