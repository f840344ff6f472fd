#include "core/message.hpp"

#include <cstring>
#include <new>

namespace fabric {
namespace {

constexpr u32 kCoreBytes = (sizeof(MessageCore) + 63) / 64 * 64;

}  // namespace

const char* read_inline(u16 flags, const u8* bytes, u64 size, InlineLayout& out) {
  if ((flags & kFlagBare) != 0) {
    out.meta_bytes = static_cast<u32>(size);
    return nullptr;
  }
  InlineHead head;
  if (size < sizeof head) return "inline part has no head";
  std::memcpy(&head, bytes, sizeof head);
  if (head.tensor_count > kTensorsPerMessageMax) return "message has too many tensors";
  const u64 meta_offset = sizeof head + 8ull * head.tensor_count;
  if (meta_offset + head.meta_bytes > size) return "meta exceeds the inline part";
  out.meta_offset = static_cast<u32>(meta_offset);
  out.meta_bytes = head.meta_bytes;
  out.tensor_count = head.tensor_count;
  out.tensors_offset = static_cast<u32>(align_up(meta_offset + head.meta_bytes, u64{64}));
  return nullptr;
}

MessagePool::~MessagePool() {
  for (void* block : small_) ::operator delete(block, std::align_val_t{64});
  for (void* block : large_) ::operator delete(block, std::align_val_t{64});
}

MessageCore* MessagePool::take(u32 bytes) {
  const u32 size = bytes <= kSmall ? kSmall : kLarge;
  auto& kept = bytes <= kSmall ? small_ : large_;
  void* block = nullptr;
  if (!kept.empty()) {
    block = kept.back();
    kept.pop_back();
  } else {
    block = ::operator new(size, std::align_val_t{64});
  }
  auto* message = new (block) MessageCore;
  message->block_bytes = size;
  return message;
}

void MessagePool::put(MessageCore* message) {
  const u32 size = message->block_bytes;
  message->flow.let_go_locked();
  message->~MessageCore();
  auto& kept = size == kSmall ? small_ : large_;
  if (kept.size() < kKept) kept.push_back(message);
  else ::operator delete(message, std::align_val_t{64});
}

void MessagePool::destroy(MessageCore* message) {
  message->~MessageCore();
  ::operator delete(message, std::align_val_t{64});
}

MessageCore* MessagePool::copy(const RecordSpan& span, const char*& why) {
  const RecordHeader& header = span.header;  // copied and checked by the ring reader
  const u32 extensions = header_bytes(header) - kRecordHeaderBytes;
  const u32 table = table_bytes(header), inline_size = inline_bytes(header);
  const u32 table_at = kCoreBytes, extensions_at = table_at + table;
  const u32 inline_at = align_up(extensions_at + extensions, 64u);
  MessageCore* message = take(inline_at + inline_size);
  u8* base = reinterpret_cast<u8*>(message);
  const u8* from = span.bytes + kRecordHeaderBytes;
  if (extensions != 0) std::memcpy(base + extensions_at, from, extensions);
  if (table != 0) std::memcpy(base + table_at, from + extensions, table);
  std::memcpy(base + inline_at, from + extensions + table, inline_size);
  message->header = header;
  message->segments = {reinterpret_cast<SegmentEntry*>(base + table_at), header.segment_count};
  message->inline_data = base + inline_at;
  message->inline_size = inline_size;
  why = parse_extensions(base + extensions_at, extensions, message->fields);
  // A skip record names the payload that ended elsewhere and carries none of it.
  if (why == nullptr && header.kind == static_cast<u8>(RecordKind::message)) {
    why = check_segments(message->segments, header.payload_bytes, inline_size);
  }
  if (why == nullptr) return message;
  put(message);
  return nullptr;
}

}  // namespace fabric
