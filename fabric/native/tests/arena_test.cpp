// Pages of slots: each is asked for once, before it is first written, and none outside the slot.
#include <cstdio>
#include <cstdlib>

#include "core/arena.hpp"
#include "tests/check.hpp"

namespace fabric {
namespace {

constexpr u64 kMiB = 1024 * 1024, kSlotBytes = 4 * kMiB, kDataOffset = 4096 * ((sizeof(SegmentLayout) + 4095) / 4096);
constexpr u32 kSegment = 7;

struct Fixture {
  Fd fd;
  Arena arena;
  SlotRef slot;
  Fixture() {
    CHECK(create_segment(kSegment, 1, 1, 0, kSlotBytes, 2, fd).ok());
    CHECK(arena.add(kSegment, fd.get()).ok());
    CHECK(arena.allocate(kSlotBytes, slot).ok());
  }
  bool was_written(u64 offset) { return Written(fd.get()).at(kDataOffset + slot.slot * kSlotBytes + offset); }
};

void a_slot_is_absent_once() {
  Fixture f;
  const Arena::Absent first = f.arena.take_absent(f.slot, 0, kMiB);
  CHECK(first.at == f.arena.address(f.slot) && first.bytes == kMiB);
  CHECK(f.arena.take_absent(f.slot, 0, kMiB).bytes == 0);
  const Arena::Absent more = f.arena.take_absent(f.slot, 0, 3 * kMiB);
  CHECK(more.at == first.at + kMiB && more.bytes == 2 * kMiB);
  f.arena.free(f.slot);
  CHECK(f.arena.allocate(kSlotBytes, f.slot).ok());
  CHECK(f.arena.take_absent(f.slot, 0, 3 * kMiB).bytes == 0);
}

void what_comes_out_of_order_is_asked_for_by_itself() {
  Fixture f;
  const Arena::Absent last = f.arena.take_absent(f.slot, 3 * kMiB, 4 * kMiB);
  CHECK(last.at == f.arena.address(f.slot) + 3 * kMiB && last.bytes == kMiB);
  CHECK(f.arena.take_absent(f.slot, 0, kMiB).bytes == kMiB);
}

void no_page_outside_the_slot_is_asked_for() {
  Fixture f;
  const Arena::Absent all = f.arena.take_absent(f.slot, 0, 100 * kMiB);
  CHECK(all.bytes == kSlotBytes);
  CHECK(f.arena.take_absent(f.slot, 100 * kMiB, 101 * kMiB).bytes == 0);
  f.arena.free(f.slot);
  CHECK(f.arena.take_absent(f.slot, 0, kMiB).at == nullptr);
}

void a_few_pages_are_left_to_faults() {
  Fixture f;
  CHECK(f.arena.take_absent(f.slot, 0, kPopulateBytesMin - 1).bytes == 0);
  CHECK(f.arena.take_absent(f.slot, 0, kPopulateBytesMin).bytes == kPopulateBytesMin);
}

void populated_memory_is_there_and_zero() {
  Fixture f;
  const Arena::Absent part = f.arena.take_absent(f.slot, 0, kMiB);
  CHECK(!f.was_written(0));
  populate(part.at, part.bytes);
  if (!f.was_written(0)) return;  // a kernel before 5.14
  CHECK(f.was_written(kMiB - 1) && !f.was_written(kMiB + 4096));
  for (u64 i = 0; i < kMiB; ++i) CHECK(part.at[i] == 0);
  populate(nullptr, 0);
}

}  // namespace
}  // namespace fabric

int main() {
  fabric::a_slot_is_absent_once();
  fabric::what_comes_out_of_order_is_asked_for_by_itself();
  fabric::no_page_outside_the_slot_is_asked_for();
  fabric::a_few_pages_are_left_to_faults();
  fabric::populated_memory_is_there_and_zero();
  return 0;
}
