#include "core/ring.hpp"

#include <cstring>

namespace fabric {

const char* check_cursors(u64 head, u64 tail, u64 size, u64 step) {
  if (head < tail) return "head lies before tail";
  if (head - tail > size) return "more lies in the ring than it can hold";
  if (head % step != 0 || tail % step != 0) return "cursor is not aligned";
  return nullptr;
}

// ------------------------------------------------------------------ records
void RecordWriter::attach(RingCursors* cursors, u8* data) {
  cursors_ = cursors;
  data_ = data;
  head_ = published_ = cursors->head.value.load(std::memory_order_acquire) & ~u64{7};
  tail_seen_ = cursors->tail.value.load(std::memory_order_acquire);
  reserved_ = 0;
}

void RecordWriter::look_at_tail() {
  const u64 tail = cursors_->tail.value.load(std::memory_order_acquire);
  const bool possible = tail >= tail_seen_ && tail <= head_ && head_ - tail <= kLaneBytes && (tail & 7) == 0;
  if (!possible) fault_ = "lane tail cannot be true";
  tail_seen_ = tail;
}

u8* RecordWriter::reserve(u32 bytes) {
  const u32 padded = align_up(bytes, 8u);
  if (bytes < kRecordHeaderBytes || padded > kRecordBytesMax) return nullptr;
  const u32 to_wrap = kLaneBytes - static_cast<u32>(head_ & (kLaneBytes - 1));
  const u32 need = padded <= to_wrap ? padded : to_wrap + padded;
  if (kLaneBytes - (head_ - tail_seen_) < need || head_ - tail_seen_ > kLaneBytes) {
    look_at_tail();
    if (fault_ != nullptr || kLaneBytes - (head_ - tail_seen_) < need) return nullptr;
  }
  if (padded > to_wrap) {
    u8* at = data_ + (head_ & (kLaneBytes - 1));
    const u8 head[4] = {kRecordVersion, 0, static_cast<u8>(kFlagPad & 0xff), static_cast<u8>(kFlagPad >> 8)};
    std::memcpy(at, head, sizeof head);
    std::memcpy(at + 4, &to_wrap, sizeof to_wrap);
    head_ += to_wrap;
  }
  reserved_at_ = head_;
  reserved_ = padded;
  return data_ + (head_ & (kLaneBytes - 1));
}

u64 RecordWriter::commit() {
  head_ = reserved_at_ + reserved_;
  reserved_ = 0;
  return reserved_at_;
}

void RecordWriter::publish() {
  published_ = head_;
  cursors_->head.value.store(head_, std::memory_order_release);
}

void RecordWriter::abandon() { head_ = published_; }

void RecordReader::attach(RingCursors* cursors, const u8* data) {
  cursors_ = cursors;
  data_ = data;
  read_ = released_ = top_ = cursors->tail.value.load(std::memory_order_relaxed);
}

u64 RecordReader::head() const { return cursors_->head.value.load(std::memory_order_acquire); }

Peek RecordReader::peek(RecordSpan& out) {
  for (;;) {
    if (read_ >= top_) top_ = head();
    const u64 top = top_;
    if (read_ == top) return Peek::empty;
    if (top < read_ || top - released_ > kLaneBytes || ((top | read_) & 7) != 0) {
      return corrupt("lane head cannot be true");
    }
    const u64 available = top - read_;
    const u32 to_wrap = kLaneBytes - static_cast<u32>(read_ & (kLaneBytes - 1));
    const u8* at = data_ + (read_ & (kLaneBytes - 1));
    struct { u8 version, header_len8; u16 flags; u32 total_len; } first;
    std::memcpy(&first, at, sizeof first);
    if ((first.flags & kFlagPad) != 0) {
      if (first.total_len != to_wrap || to_wrap > available) return corrupt("wrap padding cannot be true");
      read_ += to_wrap;
      continue;
    }
    if (available < kRecordHeaderBytes || to_wrap < kRecordHeaderBytes) return corrupt("record is cut off");
    std::memcpy(&out.header, at, sizeof out.header);
    if (const char* why = check_header(out.header)) return corrupt(why);
    const u32 padded = align_up(out.header.total_len, 8u);
    if (padded > available || padded > to_wrap) return corrupt("record exceeds the ring");
    out.bytes = at;
    out.begin = read_;
    out.end = read_ + padded;
    return Peek::item;
  }
}

void RecordReader::release(u64 upto) {
  released_ = upto;
  cursors_->tail.value.store(upto, std::memory_order_release);
}

// ------------------------------------------------------------------ returns
void ReturnWriter::attach(RingCursors* cursors, ReturnEntry* entries) {
  cursors_ = cursors;
  entries_ = entries;
  head_ = published_ = cursors->head.value.load(std::memory_order_acquire);
  tail_seen_ = cursors->tail.value.load(std::memory_order_acquire);
}

bool ReturnWriter::push(const ReturnEntry& entry) {
  if (head_ - tail_seen_ >= kReturnEntries) {
    const u64 tail = cursors_->tail.value.load(std::memory_order_acquire);
    if (tail < tail_seen_ || tail > head_ || head_ - tail > kReturnEntries) fault_ = "return ring tail cannot be true";
    tail_seen_ = tail;
    if (fault_ != nullptr || head_ - tail_seen_ >= kReturnEntries) return false;
  }
  settle();
  last_ = entry;
  ++head_;
  return true;
}

void ReturnWriter::settle() {
  if (head_ != published_) entries_[(head_ - 1) & (kReturnEntries - 1)] = last_;
}

void ReturnWriter::publish() {
  settle();
  published_ = head_;
  cursors_->head.value.store(head_, std::memory_order_release);
}

void ReturnReader::attach(RingCursors* cursors, const ReturnEntry* entries) {
  cursors_ = cursors;
  entries_ = entries;
  read_ = released_ = cursors->tail.value.load(std::memory_order_relaxed);
}

u64 ReturnReader::head() const { return cursors_->head.value.load(std::memory_order_acquire); }

Peek ReturnReader::next(ReturnEntry& out) {
  const u64 top = head();
  if (top == read_) return Peek::empty;
  if (top < read_ || top - released_ > kReturnEntries) return Peek::corrupt;
  std::memcpy(&out, &entries_[read_ & (kReturnEntries - 1)], sizeof out);
  ++read_;
  return Peek::item;
}

void ReturnReader::release(u64 upto) {
  released_ = upto;
  cursors_->tail.value.store(upto, std::memory_order_release);
}

// ------------------------------------------------------------------ lane end
Status LaneEnd::attach(int fd, int side) {
  if (side != 0 && side != 1) return Status::fail(Code::invalid, "a lane has sides 0 and 1");
  Status status = Mapping::map(fd, sizeof(LanePairLayout), true, mapping_);
  if (!status.ok()) return status;
  layout_ = mapping_.as<LanePairLayout>();
  const LaneHead head = layout_->head;
  if (head.magic != kLaneMagic || head.version != 1 || head.lane_bytes != kLaneBytes ||
      head.return_entries != kReturnEntries) {
    return Status::fail(Code::protocol, "not a lane pair of this version");
  }
  LaneDirection& out = layout_->direction[side];
  LaneDirection& in = layout_->direction[1 - side];
  records_out.attach(&out.records, layout_->records[side]);
  returns_in.attach(&out.returns, layout_->returns[side]);
  records_in.attach(&in.records, layout_->records[1 - side]);
  returns_out.attach(&in.returns, layout_->returns[1 - side]);
  return Status::success();
}

}  // namespace fabric
