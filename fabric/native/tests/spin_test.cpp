// When the engine's thread waits awake: in round trips, not in streams, and less often each time it was for nothing.
#include "engine/spin.hpp"
#include "tests/check.hpp"

#include <cstdio>
#include <cstdlib>

namespace fabric {
namespace {

constexpr SpinPolicy::Moved kNothing{}, kRead{1, 0, false}, kPublished{0, 1, false}, kHeld{0, 0, true};

/// Waits until one is spun; @return how many were not.
int waits_left_out(SpinPolicy& policy) {
  for (int waits = 0;; ++waits) {
    CHECK(waits <= 1024);
    if (policy.worth(kNothing)) return waits;
  }
}

void a_thread_that_moved_nothing_sleeps() {
  SpinPolicy policy;
  for (int i = 0; i < 10; ++i) CHECK(!policy.worth(kNothing));
}

void a_round_trip_is_spun_all_the_time() {
  SpinPolicy policy;
  for (int i = 0; i < 1000; ++i) {
    CHECK(policy.worth(i % 2 == 0 ? kRead : kPublished));
    policy.ended(true);
    if (i % 5 == 0) {                 // the end of a message comes before its answer
      CHECK(policy.worth(kHeld));
      policy.ended(true);
    }
  }
}

void a_stream_is_soon_left_to_sleep() {
  SpinPolicy policy;
  int spun = 0;
  for (int i = 0; i < 10'000; ++i) {
    if (!policy.worth(kRead)) continue;
    policy.ended(true);
    ++spun;
  }
  CHECK(spun <= 20);
}

void many_records_at_once_are_a_stream() {
  SpinPolicy policy;
  CHECK(!policy.worth({64, 0, false}));
  CHECK(!policy.is_patient());
}

void a_wait_for_nothing_leaves_out_twice_as_many() {
  SpinPolicy policy;
  CHECK(policy.worth(kRead));
  int expected = 1;
  for (int i = 0; i < 15; ++i) {
    policy.ended(false);
    CHECK(!policy.is_patient());
    expected = expected < 1024 ? expected * 2 : expected;
    CHECK(waits_left_out(policy) == expected);
  }
  policy.ended(true);
  CHECK(policy.worth(kPublished));    // it paid: the next one is spun at once
}

}  // namespace
}  // namespace fabric

int main() {
  fabric::a_thread_that_moved_nothing_sleeps();
  fabric::a_round_trip_is_spun_all_the_time();
  fabric::a_stream_is_soon_left_to_sleep();
  fabric::many_records_at_once_are_a_stream();
  fabric::a_wait_for_nothing_leaves_out_twice_as_many();
  return 0;
}
