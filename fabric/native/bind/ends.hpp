// How messages ended, as Python sees it.
#pragma once

#include <nanobind/nanobind.h>

#include "core/layout.hpp"

namespace fabric::bind {

/// (end, reason) -> messages, of those that are not 0. `counts` is indexed by end and reason.
template <class Counts>
nanobind::dict ends_dict(const Counts& counts) {
  nanobind::dict out;
  for (int end = 0; end < 4; ++end) {
    for (int reason = 0; reason < static_cast<int>(Reason::count); ++reason) {
      if (counts[end][reason] != 0) out[nanobind::make_tuple(end, reason)] = counts[end][reason];
    }
  }
  return out;
}

}  // namespace fabric::bind
