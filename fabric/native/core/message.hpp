// A drained message: one private block with header, extensions, segment table and inline bytes.
//
// Counted references: the port's queue and the endpoint's view each hold one. Blocks come from the
// port's pool and go back to it under the port's lock; a block outlives its port if a view does.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "core/arena.hpp"
#include "core/flow.hpp"
#include "core/record.hpp"

namespace fabric {

struct MessageCore {
  RecordHeader header;
  RecordFields fields;
  u8* inline_data = nullptr;          ///< 64-byte aligned, inside this block
  u32 inline_size = 0;
  u32 block_bytes = 0;
  u32 held = 0;
  bool ended = false;                 ///< the end was reported
  bool handed = false;
  bool credited = false;              ///< its credit went back while it was queued (drop_oldest)
  bool slots_held = false;            ///< the sender's slots are still ours to read
  std::span<SegmentEntry> segments;
  FlowRef flow;
  std::shared_ptr<Segment> mapped[2]; ///< resolved so far: the first and the last segment
  MessageCore* next = nullptr;
  MessageCore *prev = nullptr, *next_of_flow = nullptr;  ///< in the queue of a receiver that drops its oldest
};

/// Where meta and tensors lie; a checked reading of InlineHead.
struct InlineLayout {
  u32 meta_offset = 0;
  u32 meta_bytes = 0;
  u32 tensor_count = 0;
  u32 tensors_offset = 0;             ///< of the tensor area when the tensors are inline
};

/// nullptr when `bytes`, the inline bytes of a record with these flags, are what they have to be.
const char* read_inline(u16 flags, const u8* bytes, u64 size, InlineLayout& out);
inline u64 inline_tensor_size(const u8* bytes, u32 index) {
  u64 size = 0;
  __builtin_memcpy(&size, bytes + sizeof(InlineHead) + 8 * index, 8);
  return size;
}

/// The payload of a message that is nothing but its meta, in the record; nothing for any other.
inline std::optional<std::span<const u8>> plain_meta(const MessageCore& message) {
  if ((message.header.flags & kFlagBare) == 0 || !message.segments.empty()) return std::nullopt;
  return std::span<const u8>(message.inline_data, message.inline_size);
}

/// Blocks of two sizes, kept for reuse up to a bound.
class MessagePool {
 public:
  static constexpr u32 kSmall = 1024, kLarge = 16 * 1024, kKept = 512;
  ~MessagePool();
  /// Copies `span` out of the ring once, then checks the copy; nullptr with `why` set when it lies.
  MessageCore* copy(const RecordSpan& span, const char*& why);
  void put(MessageCore* message);
  static void destroy(MessageCore* message);

 private:
  MessageCore* take(u32 bytes);
  std::vector<void*> small_, large_;
};

}  // namespace fabric
