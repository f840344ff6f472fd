// The outcome of a native operation: no exceptions in core; bind/errors.cpp is the only translator.
#pragma once

#include <string>
#include <utility>

#include "core/layout.hpp"

namespace fabric {

enum class Code : u8 {
  ok = 0,
  closed,
  deadline,
  would_block,
  stale,
  capacity,
  protocol,
  internal,
  peer_lost,
  credit,
  path_broken,
  need_segment,  ///< detail = {size, 0, group} for a writer, {0, segment, 0} for a reader
  invalid,       ///< the caller's argument
  interrupted,   ///< a signal handler of the interpreter raised
  frozen,        ///< an audit cut is in progress: repeat where waiting is allowed
  rejected,      ///< overflow policy `reject`, and no room
  undecided,     ///< a routing policy has to be asked where this message goes
};

/// Success costs nothing but a byte; a failure says what, on what and what was found.
struct [[nodiscard]] Status {
  Code code = Code::ok;
  std::string message;
  u64 detail[3] = {0, 0, 0};

  bool ok() const { return code == Code::ok; }
  static Status success() { return {}; }
  static Status fail(Code code, std::string message) { return {code, std::move(message), {0, 0, 0}}; }
  static Status need_segment(u64 size, u64 segment, u64 group = 0) {
    return {Code::need_segment, "a segment is needed", {size, segment, group}};
  }
};

/// `what: strerror(errno)` as an internal failure.
Status system_failure(const char* what);

}  // namespace fabric
