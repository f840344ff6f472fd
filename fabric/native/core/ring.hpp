// The two rings of a lane direction: byte records one way, fixed return entries the other.
//
// One producer object and one consumer object per ring and process; each is used by one thread at a
// time (the caller's lock). Cursors only grow. A consumer's private read cursor may run ahead of the
// shared tail: what lies between is read but still owned here (a gateway waits for the hop
// acknowledgement); a restart begins again at the tail. The peer can write every cursor: each object
// trusts its private copy of its own, and one that it reads is checked against that.
#pragma once

#include "core/memory.hpp"
#include "core/record.hpp"

namespace fabric {

enum class Peek : u8 { empty = 0, item = 1, corrupt = 2 };

class RecordWriter {
 public:
  void attach(RingCursors* cursors, u8* data);
  /// Contiguous room for one record of `bytes`, or nullptr while the ring is too full. Padding to the
  /// wrap is written as needed. Nothing is visible before publish().
  u8* reserve(u32 bytes);
  /// The reserved record is complete; @return the cursor at which it begins.
  u64 commit();
  u64 reserved_at() const { return reserved_at_; }  ///< cursor at which the reserved record begins
  void publish();                     ///< release: everything committed becomes visible
  void abandon();                     ///< forgets what was committed after the last publish
  u64 head() const { return head_; }  ///< committed, maybe not yet visible
  const char* fault() const { return fault_; }  ///< the reader's cursor cannot be true

 private:
  void look_at_tail();
  RingCursors* cursors_ = nullptr;
  u8* data_ = nullptr;
  u64 head_ = 0, published_ = 0, tail_seen_ = 0, reserved_at_ = 0;
  u32 reserved_ = 0;
  const char* fault_ = nullptr;
};

/// A record as it lies in the ring. `header` is a private copy and was checked; `bytes` is the ring's
/// memory, header included: copy header.total_len bytes of it once, then check what was copied.
struct RecordSpan {
  RecordHeader header;
  const u8* bytes;
  u64 begin;
  u64 end;
};

class RecordReader {
 public:
  void attach(RingCursors* cursors, const u8* data);
  Peek peek(RecordSpan& out);         ///< the record at the read cursor; wrap padding is skipped
  void advance(const RecordSpan& span) { read_ = span.end; }
  void release(u64 upto);             ///< release: the producer may reuse everything below
  void release() { release(read_); }
  u64 read_cursor() const { return read_; }
  u64 tail() const { return released_; }
  u64 head() const;
  void rewind() { read_ = released_; }
  const char* fault() const { return fault_; }  ///< why peek said corrupt

 private:
  Peek corrupt(const char* why) { fault_ = why; return Peek::corrupt; }
  RingCursors* cursors_ = nullptr;
  const u8* data_ = nullptr;
  u64 read_ = 0, released_ = 0, top_ = 0;  // top_: as far as records were seen; its line is the writer's
  const char* fault_ = nullptr;
};

class ReturnWriter {
 public:
  void attach(RingCursors* cursors, ReturnEntry* entries);
  bool push(const ReturnEntry& entry);  ///< false when full; visible after publish()
  /// The last entry pushed and not yet published (a range may still be extended), or nullptr. It is private until then:
  /// the line that it goes to has entries that the reader looks at meanwhile.
  ReturnEntry* unpublished() { return head_ == published_ ? nullptr : &last_; }
  void publish();
  u64 head() const { return head_; }
  const char* fault() const { return fault_; }  ///< the reader's cursor cannot be true

 private:
  void settle();                        ///< the last entry goes to its place
  RingCursors* cursors_ = nullptr;
  ReturnEntry* entries_ = nullptr;
  ReturnEntry last_{};
  u64 head_ = 0, published_ = 0, tail_seen_ = 0;
  const char* fault_ = nullptr;
};

class ReturnReader {
 public:
  void attach(RingCursors* cursors, const ReturnEntry* entries);
  Peek next(ReturnEntry& out);        ///< copies one entry and moves the read cursor behind it
  void release(u64 upto);
  void release() { release(read_); }
  u64 read_cursor() const { return read_; }
  u64 tail() const { return released_; }
  u64 head() const;

 private:
  RingCursors* cursors_ = nullptr;
  const ReturnEntry* entries_ = nullptr;
  u64 read_ = 0, released_ = 0;
};

/// One side's four ring ends of a lane pair segment.
class LaneEnd {
 public:
  /// Maps `fd` and checks its head. `side` is this port's: 0 has the smaller port id.
  Status attach(int fd, int side);
  const LaneHead& head() const { return layout_->head; }
  LanePairLayout* layout() const { return layout_; }
  Mapping& mapping() { return mapping_; }

  RecordWriter records_out;
  RecordReader records_in;
  ReturnWriter returns_out;           ///< about records_in
  ReturnReader returns_in;            ///< about records_out

 private:
  Mapping mapping_;
  LanePairLayout* layout_ = nullptr;
};

/// nullptr when both cursors can be true for a ring of `size` units and `step`-sized items.
const char* check_cursors(u64 head, u64 tail, u64 size, u64 step);

}  // namespace fabric
