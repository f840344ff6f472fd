// Whether a wait of the engine is worth spinning, learnt from the waits before it. Pure: no clock, no IO.
//
// Spinning pays in a round trip: a record goes out and one comes back, tens of microseconds later. It does not in a stream,
// where a thread that sleeps meanwhile finds more at once. So a spin has paid when it brought a record the other way.
#pragma once

#include "core/layout.hpp"

namespace fabric {

class SpinPolicy {
 public:
  /// What was done since the wait before: records read from lanes and put into them; `held`: something is kept back.
  struct Moved { u32 read = 0, published = 0; bool held = false; };

  /// Is the next wait worth it? Asked once before each.
  bool worth(const Moved& moved);
  void ended(bool came);              ///< the wait was spun
  bool is_patient() const { return skips_ == 0; }  ///< would the next wait be spun, if it is for an answer?

 private:
  enum class Awaited : u8 { nothing, peer, port };
  void miss();

  Awaited awaited_ = Awaited::nothing;
  bool spun_ = false;
  u32 misses_ = 0, skips_ = 0;        // for nothing, in a row; waits that are left out
};

}  // namespace fabric
