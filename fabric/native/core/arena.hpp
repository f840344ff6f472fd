// Slots of shared memory: the owner's arena and a reader's view of other arenas.
//
// Arena: one owner object, under its lock; segments are added whole, one size class each. Slot
// generations live in the segment (odd = taken), who still needs a slot is private to the owner:
// the message it belongs to and any number of readers, one per flow.
// SegmentMap: what a reader has mapped; Segment objects are shared so that views outlive a drop.
#pragma once

#include <memory>
#include <unordered_map>
#include <vector>

#include "core/memory.hpp"

namespace fabric {

class Segment {
 public:
  /// Maps and checks `fd` as segment number `segment`.
  static Status open(u32 segment, int fd, bool writable, std::shared_ptr<Segment>& out);
  u32 number() const { return number_; }
  u64 slot_bytes() const { return slot_bytes_; }
  u32 slot_count() const { return slot_count_; }
  u8* slot(u32 index) const { return data_ + index * slot_bytes_; }
  u32 generation(u32 index) const;    ///< acquire
  /// Address of a piece: ranges checked, generation equal and odd; stale otherwise.
  Status resolve(const SegmentEntry& entry, const u8*& out) const;
  /// Does the generation still hold? Call after reading (acquire fence inside).
  bool holds(const SegmentEntry& entry) const;
  SegmentLayout* layout() const { return mapping_.as<SegmentLayout>(); }

  std::atomic<bool> touched{true};    ///< a reader asked for it since the last look (drop_unused_readers)

 private:
  Mapping mapping_;
  u8* data_ = nullptr;
  u64 slot_bytes_ = 0;
  u32 slot_count_ = 0, number_ = 0;
};

using SegmentMap = std::unordered_map<u32, std::shared_ptr<Segment>>;

struct SlotRef {
  u32 segment = 0;
  u32 slot = 0;
  u32 generation = 0;                 ///< 0 = no slot
  explicit operator bool() const { return generation != 0; }
};

/// Segments of one group never serve the other: bulk cannot take the slots of tokens.
inline constexpr u32 kArenaGroups = 2;
inline constexpr u64 kHugePageBytes = 2 * 1024 * 1024;
inline constexpr u64 kPopulateBytesMin = 64 * 1024;  ///< below this a few faults cost no more than the call
constexpr u32 arena_group(u8 klass) { return klass >= static_cast<u8>(Class::embedding) ? 1 : 0; }

class Arena {
 public:
  /// Own, writable segment. Slots that are odd (a former life) stay taken until reclaim().
  Status add(u32 segment, int fd, u32 group = 0);
  Status drop(u32 segment);           ///< refused (capacity) while a slot is taken
  /// A slot of at least `bytes`; need_segment when no fitting segment of the group has a free one.
  Status allocate(u64 bytes, SlotRef& out, u32 group = 0);
  u8* address(const SlotRef& ref) const;
  SegmentEntry entry(const SlotRef& ref, u64 offset, u64 length) const;

  /// Bytes of a taken slot that its owner has not given pages yet: for populate(), before they are written. The owner's
  /// lock is not needed meanwhile: the slot is its taker's alone.
  struct Absent { u8* at = nullptr; u64 bytes = 0; };
  /// What is absent of [from, until); from now on it counts as present. Nothing where it is not worth a call.
  Absent take_absent(const SlotRef& ref, u64 from, u64 until);

  // A slot is given back when neither its message nor any reader needs it.
  void hold_message(const SlotRef& ref);            ///< allocate() holds it for the writer already
  void drop_message(const SlotRef& ref);
  void hold_reader(const SlotRef& ref, u64 flow);   ///< one hold a flow; `flow` is not 0
  bool drop_reader(u32 segment, u32 slot, u32 generation, u64 flow);  ///< false: not such a reader
  void drop_readers_of(u64 flow);                   ///< that reader is dead; free when it holds nothing
  bool has_readers(u64 flow) const { return holds_.count(flow) != 0; }
  void free(const SlotRef& ref);                    ///< writer, message and readers at once

  std::vector<u32> idle() const;      ///< segments with every slot free
  bool owns(u32 segment) const { return segments_.count(segment) != 0; }
  u64 taken_slots() const { return taken_; }
  u32 segment_count() const { return static_cast<u32>(segments_.size()); }
  std::shared_ptr<Segment> find(u32 segment) const;
  bool valid(const SlotRef& ref) const;

 private:
  struct Use {
    u64 reader = 0;                   ///< a flow that reads it; most slots have one reader
    std::vector<u64> more;            ///< the others
    bool message = false;
    u64 present = 0;                  ///< bytes of the slot, from its beginning, that have pages
    bool idle() const { return !message && reader == 0; }
    bool remove(u64 flow);
  };
  struct Own {
    std::shared_ptr<Segment> segment;
    u32 group = 0;
    std::vector<u32> free;
    std::vector<Use> use;
  };
  void give_back(Own& own, u32 slot);
  void unhold(u64 flow);
  std::unordered_map<u32, Own> segments_;
  std::unordered_map<u64, u32> holds_;  ///< flow → slots it reads
  u64 taken_ = 0;
};

}  // namespace fabric
