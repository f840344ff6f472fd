// Sending: layout, slots, commit, loans.
#include "core/sender.hpp"

#include <algorithm>
#include <cstring>

#include "core/clock.hpp"
#include "core/steps.hpp"

namespace fabric {
namespace {

constexpr u64 kWarmSlotBytes = 256 * 1024;

std::string text(u64 value) { return std::to_string(value); }

u64 tensor_area(std::span<const Piece> tensors) {
  u64 bytes = 0;
  for (const Piece& piece : tensors) bytes = align_up(bytes, u64{64}) + piece.bytes;
  return bytes;
}

void copy_tensors(u8* area, std::span<const Piece> tensors) {
  u64 at = 0;
  for (const Piece& piece : tensors) {
    at = align_up(at, u64{64});
    if (piece.bytes != 0) std::memcpy(area + at, piece.data, piece.bytes);
    at += piece.bytes;
  }
}

// Nothing but meta that fits the ring: it goes without a head.
bool is_bare(const SendRequest& request) {
  return request.tensors.empty() && !request.loan && request.meta.size() <= kInlineBytesMax - sizeof(InlineHead);
}

u32 head_bytes(const SendRequest& request) {
  const u64 head = is_bare(request) ? 0 : sizeof(InlineHead) + 8 * request.tensors.size();
  return static_cast<u32>(head + request.meta.size());
}

// InlineHead, sizes, meta; @return the bytes written.
u32 write_head(u8* out, const SendRequest& request) {
  if (is_bare(request)) {
    if (!request.meta.empty()) std::memcpy(out, request.meta.data(), request.meta.size());
    return static_cast<u32>(request.meta.size());
  }
  const InlineHead head{static_cast<u32>(request.meta.size()), static_cast<u32>(request.tensors.size())};
  std::memcpy(out, &head, sizeof head);
  u32 at = sizeof head;
  for (const Piece& piece : request.tensors) {
    std::memcpy(out + at, &piece.bytes, 8);
    at += 8;
  }
  if (!request.meta.empty()) std::memcpy(out + at, request.meta.data(), request.meta.size());
  return at + static_cast<u32>(request.meta.size());
}

}  // namespace

u64 hash_key(std::span<const u8> key) {
  u64 hash = 0xcbf29ce484222325ULL;
  for (u8 byte : key) hash = (hash ^ byte) * 0x100000001b3ULL;
  hash ^= hash >> 32;
  hash *= 0xd6e8feb86659fd93ULL;
  return hash ^ hash >> 32;
}

namespace {

constexpr u64 kRetainedFirst = 16;

/// The entries that the row's former sender accepted, and no others: a page that nobody wrote takes no memory. What it
/// began without accepting it has revoked.
void clear_entries(SenderLedger& row) {
  const u64 used = std::min<u64>(row.accepted.load(std::memory_order_relaxed), kOutstandingPerEndpoint);
  for (u64 number = 1; number <= used; ++number) {
    OutEntry& entry = row.outstanding[number & (kOutstandingPerEndpoint - 1)];
    entry.word.store(out_word(OutState::empty), std::memory_order_relaxed);
    entry.sequence.store(0, std::memory_order_relaxed);
  }
}

}  // namespace

SenderCore::SenderCore(Port& port, u64 endpoint, u32 channel, u32 type, Pattern pattern, Delivery delivery,
                       u8 klass, Overflow overflow, SenderLedger* row)
    : port_(port), endpoint_(endpoint), channel_(channel), type_(type), pattern_(pattern),
      delivery_(delivery), klass_(klass), overflow_(overflow), retained_(kRetainedFirst),
      retained_mask_(kRetainedFirst - 1) {
  clear_entries(*row);
  row->channel = channel;
  row->pattern = static_cast<u8>(pattern);
  row->delivery = static_cast<u8>(delivery);
  row->klass = klass;
  row->accepted = 0;
  row->active = 0;
  std::memset(row->fold, 0, sizeof row->fold);
  for (auto& count : row->aside) count = 0;
  std::atomic_thread_fence(std::memory_order_release);
  row->endpoint = endpoint;
  ledger_.attach(row);
}

// ------------------------------------------------------------------ layout and slots
// A slot of `bytes`; makes progress once before it asks for a new segment. A large one is worth a look first: the slot
// that came back last is still in the cache, and is filled twice as fast as one that was not used for a while.
Status SenderCore::place(u64 bytes, SlotRef& out, Room& room) {
  if (bytes >= kWarmSlotBytes) port_.progress_locked();
  Status status = port_.arena().allocate(bytes, out, arena_group(klass_));
  if (status.code == Code::need_segment) {
    port_.progress_locked();
    status = port_.arena().allocate(bytes, out, arena_group(klass_));
  }
  if (status.ok()) room = {port_.arena().address(out), port_.arena().take_absent(out, 0, bytes)};
  return status;
}

// Where meta and tensors go, and how much that is; no slot is taken.
void SenderCore::measure(const SendRequest& request, Prepared& out) const {
  const u32 head = head_bytes(request);
  const u64 area = tensor_area(request.tensors);
  if (request.has_key) out.key_hash = hash_key(request.key);
  out.meta_inline = head <= kInlineBytesMax;
  out.tensors_inline = out.meta_inline && !request.loan &&
                       (area == 0 || align_up(u64{head}, u64{64}) + area <= kInlineBytesMax);
  out.inline_size = !out.meta_inline ? 0 : head;
  if (out.tensors_inline && area != 0) out.inline_size = align_up(head, 64u) + static_cast<u32>(area);
  const bool area_in_slot = request.loan || (area != 0 && !out.tensors_inline);
  out.payload = out.inline_size + (out.meta_inline ? 0 : head) + (area_in_slot ? area : 0);
}

Status SenderCore::prepare(Operation& operation, const SendRequest& request, bool may_wait, Prepared& out) {
  if (request.tensors.size() > kTensorsPerMessageMax) {
    return Status::fail(Code::capacity, "a message has at most " + text(kTensorsPerMessageMax) + " tensors");
  }
  if (request.key.size() > kKeyBytesMax) {
    return Status::fail(Code::capacity, "a key has at most " + text(kKeyBytesMax) + " bytes");
  }
  measure(request, out);
  const u32 head = head_bytes(request);
  const u64 area = tensor_area(request.tensors);
  Room meta, tensors;
  Status status;
  if (!out.meta_inline) status = place(head, out.slots[0], meta);
  if (status.ok() && area != 0 && !out.tensors_inline && !request.loan) status = place(area, out.slots[1], tensors);
  if (!status.ok()) {
    give_up(request, out);
    return status;
  }
  if (request.loan) out.slots[1] = request.loan;
  if (meta.at != nullptr) out.table[out.segments++] = port_.arena().entry(out.slots[0], 0, head);
  if (out.slots[1]) out.table[out.segments++] = port_.arena().entry(out.slots[1], 0, area);
  if (meta.at == nullptr && tensors.at == nullptr) return status;
  // The slot is ours alone: large copies keep nobody waiting. A call that may not wait copies inside, for
  // it could not come back in, not even to free the slot, if an audit froze the port meanwhile.
  if (may_wait) operation.leave();
  if (meta.at != nullptr) {
    populate(meta.absent.at, meta.absent.bytes);
    write_head(meta.at, request);
  }
  if (tensors.at != nullptr) {
    populate(tensors.absent.at, tensors.absent.bytes);
    copy_tensors(tensors.at, request.tensors);
  }
  if (may_wait && !operation.enter()) return operation.status();
  return status;
}

void SenderCore::give_up(const SendRequest& request, Prepared& prepared) {
  for (SlotRef& slot : prepared.slots) {
    if (slot && !(request.loan && slot.segment == request.loan.segment && slot.slot == request.loan.slot)) {
      port_.arena().free(slot);
    }
    slot = {};
  }
}

// ------------------------------------------------------------------ commit
Full SenderCore::try_commit(const SendRequest& request, Prepared& prepared, Batch& batch, FlowOut*& blocked) {
  if (!waiting_.empty()) {
    redeliver();
    if (!waiting_.empty() && (pattern_ != Pattern::stream || flows_.empty())) return Full::redelivery;
  }
  if (pattern_ == Pattern::broadcast && request.flow == 0) return fan_out(request, prepared, batch, blocked);
  if (!table_room(batch, 1)) return Full::table;
  FlowOut* flow = nullptr;
  Full full = choose({request.flow, request.asks, request.has_key, prepared.key_hash, prepared.payload}, flow);
  blocked = flow;
  if (full != Full::none) return full;
  if (!waiting_.empty() && is_behind(request, prepared.key_hash, *flow)) return Full::redelivery;
  return write_record(request, prepared, *flow, batch, (batch.last != 0 ? batch.last : ledger_.accepted()) + 1);
}

// The record of a new message, committed in its lane and not published; nullptr when the lane is full.
u8* SenderCore::put_record(const SendRequest& request, const Prepared& prepared, FlowOut& flow, u64 entry, u32& total) {
  const RecordExtras extras{{}, request.key, request.has_key, {request.correlation, request.reply_flow},
                            {prepared.table, prepared.segments}};
  const u32 prefix = record_prefix_bytes(extras);
  total = prefix + prepared.inline_size;
  RecordWriter& writer = flow.lane->end.records_out;
  u8* at = writer.reserve(total);
  if (at == nullptr) return nullptr;
  ledger_.begin(entry, flow.id, flow.last_seq + 1, writer.reserved_at(), prepared.payload);
  step("send.pending");
  RecordHeader header;
  header.version = kRecordVersion;
  header.header_len8 = static_cast<u8>((prefix - prepared.segments * sizeof(SegmentEntry)) / 8);
  header.total_len = total;
  header.flags = static_cast<u16>((request.flags & ~kFlagBare) | (prepared.meta_inline ? 0 : kFlagMetaInSegment) |
                                  (is_bare(request) ? kFlagBare : 0));
  header.flow = flow.id;
  header.flow_seq = flow.last_seq + 1;
  header.sequence = number_ + 1;
  header.deadline_ns = request.expires_ns;
  header.channel = channel_;
  header.type = type_;
  header.generation = flow.generation;
  header.klass = klass_;
  header.kind = static_cast<u8>(RecordKind::message);
  header.segment_count = static_cast<u16>(prepared.segments);
  header.payload_bytes = prepared.payload;
  store_header(at, header);
  u8* inline_at = prefix == kRecordHeaderBytes ? at + prefix : write_extras(at, extras);
  if (prepared.meta_inline) {
    const u32 head = write_head(inline_at, request);
    if (head < prepared.inline_size) {
      const u32 area = align_up(head, 64u);
      std::memset(inline_at + head, 0, area - head);
      copy_tensors(inline_at + area, request.tensors);
    }
  }
  writer.commit();
  return at;
}

// The flow's side of a record that is in its lane.
void SenderCore::take_on(const SendRequest& request, const Prepared& prepared, FlowOut& flow, u64 entry,
                         const u8* record, u32 total) {
  if (entry - ledger_.tail() > retained_mask_) [[unlikely]] retain_upto(entry);
  Retained& kept = retained(entry);
  kept.number = number_ + 1;
  kept.payload_bytes = prepared.payload;
  kept.expires_ns = request.expires_ns;
  kept.handed = false;
  kept.has_key = request.has_key;
  kept.key_hash = prepared.key_hash;
  if (delivery_ == Delivery::at_least_once) kept.record.assign(record, record + total);
  for (int i = 0; i < 2; ++i) {
    kept.slots[i] = prepared.slots[i];
    if (prepared.slots[i]) port_.arena().hold_reader(prepared.slots[i], flow.id);
  }
  port_.saw_message(prepared.payload);
  ++flow.last_seq;
  flow.sequences.put(flow.last_seq, entry);
  ++flow.outstanding;
  flow.credit.send(prepared.payload);
}

Full SenderCore::write_record(const SendRequest& request, Prepared& prepared, FlowOut& flow, Batch& batch, u64 entry) {
  if (batch.lane != flow.lane) seal(batch);
  u32 total = 0;
  const u8* record = put_record(request, prepared, flow, entry, total);
  if (record == nullptr) {
    seal(batch);
    if (total > kRecordBytesMax) return Full::too_large;
    return port_.is_lying(*flow.lane) ? Full::broken : Full::lane;
  }
  take_on(request, prepared, flow, entry, record, total);
  ++number_;
  if (delivery_ == Delivery::at_most_once) {
    for (const SlotRef& slot : prepared.slots) {
      if (slot) port_.arena().drop_message(slot);  // only its reader needs it now
    }
  }
  if (batch.lane == nullptr) {
    batch.lane = flow.lane;
    batch.first = entry;
  }
  batch.last = entry;
  return Full::none;
}

// Lane head, entries, ledger; the doorbell's ready bit. The wake comes last, once.
void SenderCore::seal(Batch& batch) {
  if (batch.lane == nullptr) return;
  batch.lane->end.records_out.publish();
  step("send.published");
  ledger_.accept(batch.first, batch.last);
  step("send.accepted");
  port_.counters().records_out += batch.last - batch.first + 1;
  port_.heard_of(batch.lane);
  batch.lane->peer.ring(batch.lane->number);
  batch = {nullptr, 0, batch.last};  // `last` is accepted now, and the next one follows it
}

// Room for more entries. A few messages that live long while thousands behind them have ended hold up nothing: they
// move behind the youngest.
bool SenderCore::table_room(Batch& batch, u64 entries) {
  const u64 last = batch.last != 0 ? batch.last : ledger_.accepted();
  if (ledger_.fits(last + entries)) [[likely]] return true;
  fold(1);
  if (ledger_.fits(last + entries)) return true;
  seal(batch);
  batch = {};
  u64 live = waiting_.size();
  for (const FlowOut* flow : flows_) live += flow->outstanding;
  if (live + entries >= kOutstandingPerEndpoint) return false;
  while (!ledger_.fits(ledger_.accepted() + entries)) {
    relocate_oldest();
    ledger_.fold();
  }
  return true;
}

/// Everything behind the tail keeps its place by number.
void SenderCore::retain_upto(u64 entry) {
  const u64 tail = ledger_.tail();
  u64 size = retained_.size();
  while (entry - tail >= size && size < kOutstandingPerEndpoint) size *= 2;
  std::vector<Retained> larger(size);
  for (u64 each = tail + 1; each < entry; ++each) std::swap(larger[each & (size - 1)], retained(each));
  retained_.swap(larger);
  retained_mask_ = size - 1;
}

void SenderCore::relocate_oldest() {
  const u64 from = ledger_.tail() + 1, to = ledger_.relocate();
  std::swap(retained(from), retained(to));
  const OutEntry& entry = ledger_.entry(to);
  if (FlowOut* flow = entry.flow != 0 ? find(entry.flow) : nullptr) flow->sequences.put(entry.flow_seq, to);
  std::replace(waiting_.begin(), waiting_.end(), from, to);
}

// ------------------------------------------------------------------ calls
Status SenderCore::send(const SendRequest& request, u64 deadline_ns, bool may_wait, u64& number) {
  u64 accepted = 0;
  return send_many({&request, 1}, deadline_ns, may_wait, accepted, &number);
}

Status SenderCore::send_many(std::span<const SendRequest> requests, u64 deadline_ns, bool may_wait, u64& accepted,
                             u64* last_number) {
  Operation operation(port_, may_wait);
  if (!operation.ok()) return operation.status();
  if (route_.looks_at_load()) port_.progress_locked();  // ends wait in the rings until somebody reads them
  Batch batch;
  Status status;
  for (const SendRequest& request : requests) {
    if (is_bare(request) && !closed_ && commit_bare(request, batch)) [[likely]] {
      ++accepted;
      continue;
    }
    Status sent = send_one(operation, request, batch, deadline_ns, may_wait, accepted == 0);
    if (!sent.ok()) [[unlikely]] {
      status = std::move(sent);
      break;
    }
    ++accepted;
  }
  if (operation.ok()) seal(batch);
  if (last_number != nullptr && status.ok()) *last_number = number_;
  return status;
}

// The common case, without a word about how it went: false, and send_one() finds out why.
bool SenderCore::commit_bare(const SendRequest& request, Batch& batch) {
  if (request.key.size() > kKeyBytesMax) return false;
  Prepared prepared;
  measure(request, prepared);
  FlowOut* blocked = nullptr;
  return try_commit(request, prepared, batch, blocked) == Full::none;
}

Status SenderCore::send_one(Operation& operation, const SendRequest& request, Batch& batch, u64 deadline_ns,
                            bool may_wait, bool is_first) {
  if (closed_) return Status::fail(Code::closed, "sender of channel " + text(channel_) + " is closed");
  Prepared prepared;
  const bool copies = !request.loan && tensor_area(request.tensors) + align_up(head_bytes(request), 64u) > kInlineBytesMax;
  if (copies) {  // A batch is never left open over a copy or a wait.
    seal(batch);
    batch = {};
    FlowOut* blocked = nullptr;
    if (const Full full = look(request, prepared, blocked); full != Full::none) {  // nobody takes it: no copy, no slot
      return overflow(request, prepared, full, blocked, is_first);
    }
  }
  Status status = prepare(operation, request, may_wait, prepared);
  if (!status.ok()) return status;
  for (bool& progressed = prepared.progressed;;) {
    FlowOut* blocked = nullptr;
    const Full full = try_commit(request, prepared, batch, blocked);
    if (full == Full::none) return status;
    seal(batch);
    batch = {};
    if (!progressed) {
      progressed = true;
      port_.progress_locked();
      continue;
    }
    if (overflows(full)) return overflow(request, prepared, full, blocked, is_first);
    progressed = false;
    status = wait_or_fail(operation, full, blocked, deadline_ns, may_wait);
    if (!status.ok()) break;
  }
  if (operation.ok() || operation.enter()) give_up(request, prepared);  // after a signal: in again
  return status;
}

// ------------------------------------------------------------------ loans
Status SenderCore::loan(std::span<const u64> sizes, SlotRef& slot, u8*& address, std::vector<u64>& offsets) {
  if (sizes.size() > kTensorsPerMessageMax) {
    return Status::fail(Code::capacity, "a message has at most " + text(kTensorsPerMessageMax) + " tensors");
  }
  u64 bytes = 0;
  for (u64 size : sizes) {
    bytes = align_up(bytes, u64{64});
    offsets.push_back(bytes);
    bytes += size;
  }
  Operation operation(port_);
  if (!operation.ok()) return operation.status();
  if (closed_) return Status::fail(Code::closed, "sender of channel " + text(channel_) + " is closed");
  Room room;
  Status status = place(std::max<u64>(bytes, 64), slot, room);
  if (!status.ok()) return status;
  address = room.at;
  operation.leave();                  // new pages take a while, and the slot is the caller's
  populate(room.absent.at, room.absent.bytes);
  return status;
}

void SenderCore::discard(const SlotRef& slot) {
  Operation operation(port_);
  if (operation.ok()) port_.arena().free(slot);
}

}  // namespace fabric
