#include "core/arena.hpp"

#include <algorithm>

namespace fabric {
namespace {

// A small message may take a slot of a larger class, but not a bulk slot.
bool fits(u64 slot_bytes, u64 bytes) {
  return slot_bytes >= bytes && (slot_bytes <= 4 * bytes || slot_bytes <= 64 * 1024);
}

}  // namespace

Status Segment::open(u32 segment, int fd, bool writable, std::shared_ptr<Segment>& out) {
  auto opened = std::make_shared<Segment>();
  Status status = Mapping::map(fd, sizeof(SegmentLayout), writable, opened->mapping_);
  if (!status.ok()) return status;
  const SegmentLayout* layout = opened->layout();
  const u64 slot_bytes = layout->slot_bytes, data_offset = layout->data_offset;
  const u32 slot_count = layout->slot_count;
  if (layout->magic != kSegmentMagic || layout->version != 1 || layout->segment != segment) {
    return Status::fail(Code::protocol, "not arena segment " + std::to_string(segment));
  }
  const u64 size = opened->mapping_.size();
  if (slot_count == 0 || slot_count > kSlotsPerSegmentMax || slot_bytes == 0 || data_offset > size ||
      data_offset < sizeof(SegmentLayout) || slot_bytes > (size - data_offset) / slot_count) {
    return Status::fail(Code::protocol, "arena segment " + std::to_string(segment) + " is inconsistent");
  }
  opened->data_ = opened->mapping_.base() + data_offset;
  opened->slot_bytes_ = slot_bytes;
  opened->slot_count_ = slot_count;
  opened->number_ = segment;
  if (writable && slot_bytes >= kHugePageBytes) opened->mapping_.prefer_huge_pages();
  out = std::move(opened);
  return Status::success();
}

u32 Segment::generation(u32 index) const {
  return layout()->slots[index].generation.load(std::memory_order_acquire);
}

Status Segment::resolve(const SegmentEntry& entry, const u8*& out) const {
  if (entry.segment != number_ || entry.slot >= slot_count_ || entry.offset > slot_bytes_ ||
      entry.length > slot_bytes_ - entry.offset) {
    return Status::fail(Code::protocol, "segment " + std::to_string(entry.segment) + " slot " +
                                            std::to_string(entry.slot) + ": range lies outside");
  }
  const u32 now = generation(entry.slot);
  if (now != entry.generation || now % 2 == 0) {
    return Status::fail(Code::stale, "segment " + std::to_string(entry.segment) + " slot " +
                                         std::to_string(entry.slot) + ": generation " +
                                         std::to_string(now) + ", the message has " +
                                         std::to_string(entry.generation));
  }
  out = slot(entry.slot) + entry.offset;
  return Status::success();
}

bool Segment::holds(const SegmentEntry& entry) const {
  std::atomic_thread_fence(std::memory_order_acquire);  // the payload was read before this
  return entry.slot < slot_count_ && generation(entry.slot) == entry.generation;
}

Status Arena::add(u32 segment, int fd, u32 group) {
  if (segments_.count(segment) != 0) return Status::success();
  if (group >= kArenaGroups) return Status::fail(Code::invalid, "a segment's group is 0 or 1");
  Own own;
  own.group = group;
  Status status = Segment::open(segment, fd, true, own.segment);
  if (!status.ok()) return status;
  own.use.resize(own.segment->slot_count());
  for (u32 i = own.segment->slot_count(); i-- > 0;) {
    if (own.segment->generation(i) % 2 == 0) own.free.push_back(i);
    else ++taken_;
  }
  segments_.emplace(segment, std::move(own));
  return status;
}

Status Arena::drop(u32 segment) {
  auto it = segments_.find(segment);
  if (it == segments_.end()) return Status::success();
  if (it->second.free.size() != it->second.use.size()) {
    return Status::fail(Code::capacity, "segment " + std::to_string(segment) + " has taken slots");
  }
  segments_.erase(it);
  return Status::success();
}

Status Arena::allocate(u64 bytes, SlotRef& out, u32 group) {
  Own* best = nullptr;
  for (auto& [number, own] : segments_) {
    if (own.group != group || own.free.empty() || !fits(own.segment->slot_bytes(), bytes)) continue;
    if (best == nullptr || own.segment->slot_bytes() < best->segment->slot_bytes()) best = &own;
  }
  if (best == nullptr) return Status::need_segment(bytes, 0, group);
  const u32 slot = best->free.back();
  best->free.pop_back();
  best->use[slot].message = true;
  auto& generation = best->segment->layout()->slots[slot].generation;
  const u32 next = generation.load(std::memory_order_relaxed) + 1;
  generation.store(next, std::memory_order_release);
  std::atomic_thread_fence(std::memory_order_release);  // new bytes come after the new generation
  out = {best->segment->number(), slot, next};
  ++taken_;
  return Status::success();
}

bool Arena::valid(const SlotRef& ref) const {
  auto it = segments_.find(ref.segment);
  return it != segments_.end() && ref.slot < it->second.use.size() && ref.generation % 2 == 1 &&
         it->second.segment->generation(ref.slot) == ref.generation;
}

u8* Arena::address(const SlotRef& ref) const {
  return valid(ref) ? segments_.at(ref.segment).segment->slot(ref.slot) : nullptr;
}

SegmentEntry Arena::entry(const SlotRef& ref, u64 offset, u64 length) const {
  const SegmentLayout* layout = segments_.at(ref.segment).segment->layout();
  SegmentEntry entry{};
  entry.memory_kind = static_cast<u8>(MemoryKind::host);
  entry.numa_node = static_cast<u16>(layout->numa_node);
  entry.tenant = layout->tenant;
  entry.segment = ref.segment;
  entry.slot = ref.slot;
  entry.generation = ref.generation;
  entry.offset = offset;
  entry.length = length;
  return entry;
}

Arena::Absent Arena::take_absent(const SlotRef& ref, u64 from, u64 until) {
  if (!valid(ref)) return {};
  Own& own = segments_.at(ref.segment);
  u64& present = own.use[ref.slot].present;
  until = std::min(until, own.segment->slot_bytes());
  const u64 begin = std::max(from, present);
  if (until < begin + kPopulateBytesMin) return {};
  if (from <= present) present = until;
  return {own.segment->slot(ref.slot) + begin, until - begin};
}

// ------------------------------------------------------------------ who needs a slot
bool Arena::Use::remove(u64 flow) {
  if (reader == flow && flow != 0) {
    reader = more.empty() ? 0 : more.back();
    if (!more.empty()) more.pop_back();
    return true;
  }
  const auto at = std::find(more.begin(), more.end(), flow);
  if (at == more.end()) return false;
  *at = more.back();
  more.pop_back();
  return true;
}

void Arena::unhold(u64 flow) {
  const auto it = holds_.find(flow);
  if (it != holds_.end() && --it->second == 0) holds_.erase(it);
}

void Arena::give_back(Own& own, u32 slot) {
  own.segment->layout()->slots[slot].generation.fetch_add(1, std::memory_order_acq_rel);
  own.free.push_back(slot);
  --taken_;
}

void Arena::hold_message(const SlotRef& ref) {
  if (valid(ref)) segments_.at(ref.segment).use[ref.slot].message = true;
}

void Arena::drop_message(const SlotRef& ref) {
  if (!valid(ref)) return;
  Own& own = segments_.at(ref.segment);
  own.use[ref.slot].message = false;
  if (own.use[ref.slot].idle()) give_back(own, ref.slot);
}

void Arena::hold_reader(const SlotRef& ref, u64 flow) {
  if (flow == 0 || !valid(ref)) return;
  Use& use = segments_.at(ref.segment).use[ref.slot];
  if (use.reader == flow || std::find(use.more.begin(), use.more.end(), flow) != use.more.end()) return;
  if (use.reader == 0) use.reader = flow;
  else use.more.push_back(flow);
  ++holds_[flow];
}

bool Arena::drop_reader(u32 segment, u32 slot, u32 generation, u64 flow) {
  if (!valid({segment, slot, generation})) return false;
  Own& own = segments_.at(segment);
  if (!own.use[slot].remove(flow)) return false;
  unhold(flow);
  if (own.use[slot].idle()) give_back(own, slot);
  return true;
}

void Arena::drop_readers_of(u64 flow) {
  const auto held = holds_.find(flow);
  if (held == holds_.end()) return;
  u32 left = held->second;
  holds_.erase(held);
  for (auto& [number, own] : segments_) {
    for (u32 slot = 0; slot < own.use.size() && left != 0; ++slot) {
      if (!own.use[slot].remove(flow)) continue;
      --left;
      if (own.use[slot].idle()) give_back(own, slot);
    }
  }
}

void Arena::free(const SlotRef& ref) {
  if (!valid(ref)) return;
  Own& own = segments_.at(ref.segment);
  Use& use = own.use[ref.slot];
  if (use.reader != 0) unhold(use.reader);
  for (u64 flow : use.more) unhold(flow);
  use.more.clear();
  use.reader = 0;
  use.message = false;
  give_back(own, ref.slot);
}

std::vector<u32> Arena::idle() const {
  std::vector<u32> out;
  for (const auto& [number, own] : segments_) {
    if (own.free.size() == own.use.size()) out.push_back(number);
  }
  return out;
}

std::shared_ptr<Segment> Arena::find(u32 segment) const {
  auto it = segments_.find(segment);
  return it == segments_.end() ? nullptr : it->second.segment;
}

}  // namespace fabric
