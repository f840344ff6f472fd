// Python buffers in and windows of shared memory out.
#pragma once

#include <nanobind/nanobind.h>

#include <vector>

#include "core/sender.hpp"

namespace fabric {

/// C-contiguous buffers held for the length of one call.
class Buffers {
 public:
  Buffers() = default;
  Buffers(const Buffers&) = delete;
  ~Buffers() { clear(); }
  /// Adds every item of `sequence`; raises what the buffer protocol raises.
  void add_all(nanobind::handle sequence);
  void add(nanobind::handle object);
  /// The whole of a C-contiguous numpy array, which costs more through the buffer protocol.
  void add_array(PyObject* array, const Piece& piece);
  /// Of what was added so far; good until the next.
  std::span<const Piece> pieces(std::size_t from = 0) const {
    return std::span(used_ <= kFast ? few_ : many_.data(), used_).subspan(from);
  }
  std::size_t size() const { return used_; }
  void clear(std::size_t from = 0);   ///< all behind the first `from`

 private:
  static constexpr std::size_t kFast = 8;
  struct Held { Py_buffer* view; PyObject* array; };  ///< one of both
  void hold(const Held& held, const Piece& piece);
  Py_buffer fast_[kFast];
  Held held_[kFast];
  std::vector<Held> more_;            // behind the first ones; these views are on the heap
  std::size_t used_ = 0;
  Piece few_[kFast];
  std::vector<Piece> many_;           // all of them, when they are more than few
};

/// Memory that `owner` keeps alive, through the buffer protocol.
struct Window {
  nanobind::object owner;
  u8* data;
  u64 bytes;
  bool writable;
};

nanobind::object memory_view(nanobind::handle owner, u8* data, u64 bytes, bool writable);
void bind_buffers(nanobind::module_& module);

}  // namespace fabric
