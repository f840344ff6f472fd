// A lane ring with hostile bytes: the reader and the message copier must refuse or survive.
//
// Input: u16 of the head cursor in units of 8, u8 of flags (bit 0: begin near the wrap), then ring bytes.
#include <cstdlib>
#include <cstring>
#include <memory>

#include "core/message.hpp"

using namespace fabric;

namespace {

struct Ground {
  RingCursors cursors{};
  alignas(64) u8 data[kLaneBytes];
};

void read_everything(const MessageCore& message) {
  InlineLayout layout;
  if (read_inline(message.header.flags, message.inline_data, message.inline_size, layout) != nullptr) return;
  volatile u8 sink = 0;
  for (u32 i = 0; i < layout.meta_bytes; ++i) sink = message.inline_data[layout.meta_offset + i];
  for (u32 i = 0; i < layout.tensor_count; ++i) {
    if (inline_tensor_size(message.inline_data, i) == 1) sink = 1;
  }
  for (u8 byte : message.fields.key) sink = byte;
  (void)sink;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 3) return 0;
  static auto ground = std::make_unique<Ground>();
  static MessagePool pool;
  u16 head = 0;
  std::memcpy(&head, data, sizeof head);
  const u64 begin = (data[2] & 1) != 0 ? kLaneBytes - 128 : 0;
  data += 3;
  size -= 3;
  if (size > kLaneBytes / 2) size = kLaneBytes / 2;
  std::memset(ground->data, 0, 4 * kRecordBytesMax);
  for (std::size_t i = 0; i < size; ++i) ground->data[(begin + i) & (kLaneBytes - 1)] = data[i];
  ground->cursors.tail.value = begin;
  ground->cursors.head.value = begin + u64{head} * 8;
  RecordReader reader;
  reader.attach(&ground->cursors, ground->data);
  RecordSpan span;
  while (reader.peek(span) == Peek::item) {
    if (span.end <= span.begin || span.end > reader.head()) std::abort();
    const char* why = nullptr;
    MessageCore* message = pool.copy(span, why);
    if ((message == nullptr) == (why == nullptr)) std::abort();
    if (message != nullptr) {
      read_everything(*message);
      pool.put(message);
    }
    reader.advance(span);
  }
  return 0;
}
