// Numbers that a seed decides, the same on every machine.
#pragma once

#include "core/layout.hpp"

namespace fabric::sim {

/// splitmix64 (Steele, Lea, Flood 2014).
class Random {
 public:
  explicit Random(u64 seed) : state_(seed) {}
  u64 next() {
    u64 z = (state_ += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }
  u64 below(u64 bound) { return bound == 0 ? 0 : next() % bound; }
  u64 between(u64 least, u64 most) { return least + below(most - least + 1); }  ///< both may come
  bool one_in(u64 count) { return below(count) == 0; }
  bool happens(u64 per_million) { return below(1'000'000) < per_million; }

 private:
  u64 state_;
};

}  // namespace fabric::sim
