// What a sender sends: random contents, made once and kept over the orders.
#pragma once

#include "system.hpp"

namespace floors {

inline constexpr u64 kSources = 4;  // taken in turn, so that none is in the cache only because it was just sent

class Sources {
 public:
  /// `count` arrays of `size` bytes, each random from its own seed.
  void prepare(u64 size, u64 count) {
    if (size == size_ && parts_.size() >= count) return;
    parts_.clear();
    for (u64 seed = 0; seed < count; ++seed) {
      parts_.emplace_back(size);
      fill_random(parts_.back().part(0, size), seed);
    }
    size_ = size;
  }
  std::span<const u8> operator[](u64 number) const { return parts_[number % parts_.size()].part(0, size_); }

 private:
  std::vector<Memory> parts_;
  u64 size_ = 0;
};

}  // namespace floors
