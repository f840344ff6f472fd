// Handing over, ending, releasing, and reading what a message points to.
#include "core/receiver.hpp"

#include <algorithm>

#include "core/clock.hpp"
#include "core/steps.hpp"

namespace fabric {
namespace {

constexpr u64 kGrantParts = 2, kSmallGrantParts = 8;  ///< of the window, to one grant

std::string text(u64 value) { return std::to_string(value); }

}  // namespace

// ------------------------------------------------------------------ the queue
MessageCore* ReceiverCore::pop() {
  MessageCore* message = first_;
  if (message == nullptr) return nullptr;
  if (drops_oldest()) [[unlikely]] {
    unlink(message);
    return message;
  }
  first_ = message->next;
  if (first_ == nullptr) last_ = nullptr;
  message->next = nullptr;
  --queued_;
  return message;
}

// Takes the oldest message of its flow out of the queue.
void ReceiverCore::unlink(MessageCore* message) {
  (message->prev == nullptr ? first_ : message->prev->next) = message->next;
  (message->next == nullptr ? last_ : message->next->prev) = message->prev;
  message->next = message->prev = nullptr;
  --queued_;
  FlowInState::Queue& queue = message->flow->queue;
  queue.first = message->next_of_flow;
  if (queue.first == nullptr) queue.last = nullptr;
  --queue.messages;
  queue.bytes -= message->header.payload_bytes;
}

// drop_oldest: nobody reads, so the oldest go before the window is full and their credit comes back in time. The newest
// stays; where it fills the window alone, its credit comes back at once, or nothing could ever follow it.
void ReceiverCore::keep_newest(MessageCore* message) {
  FlowInState& flow = *message->flow;
  FlowInState::Queue& queue = flow.queue;
  (queue.last == nullptr ? queue.first : queue.last->next_of_flow) = message;
  queue.last = message;
  ++queue.messages;
  const u64 size = message->header.payload_bytes;
  queue.bytes += size;
  if (!flow.credit.crowded(queue.messages, queue.bytes, size)) return;
  while (queue.first != message && flow.credit.crowded(queue.messages, queue.bytes, size)) {
    MessageCore* oldest = queue.first;
    unlink(oldest);
    ++port_.counters().overflowed;
    port_.end_message(*oldest, End::dropped, Reason::overflow_oldest);
    port_.release_slots(*oldest);
    port_.drop_message(oldest);
  }
  if (queue.first == message && flow.credit.crowded(queue.messages, queue.bytes, size)) {
    flow.credit.consume(size);
    message->credited = true;
  }
  grant(flow, false);
}

// The next message that has not expired, as handed; nullptr when there is none (that is plain).
MessageCore* ReceiverCore::hand_next(bool only_plain) {
  while (first_ != nullptr && !(only_plain && !plain_meta(*first_))) {
    MessageCore* message = pop();
    FlowInState& flow = *message->flow;
    const u64 seq = message->header.flow_seq;
    const u64 expires = message->header.deadline_ns;
    if (expires != 0 && monotonic_ns() >= expires) {
      ++port_.counters().expired;
      port_.end_message(*message, End::dropped, Reason::expired);
      port_.release_slots(*message);
      flow.row->handed.store(seq, std::memory_order_release);
      grant(flow, false);
      port_.drop_message(message);
      continue;
    }
    flow.row->handed.store(seq, std::memory_order_release);
    step("receive.handed");
    message->handed = true;
    if (delivery_ == Delivery::at_least_once || message->slots_held) {
      port_.held().handed_at(message->held, monotonic_coarse_ns());
    }
    if (delivery_ == Delivery::at_most_once) {
      port_.end_message(*message, End::delivered, Reason::none);
      grant(flow, false);
    } else {
      port_.held().set(message->held, HeldState::handed, message->header.segment_count);
    }
    return message;
  }
  return nullptr;
}

void ReceiverCore::grant(FlowInState& flow, bool even_small) {
  if (flow.lane == nullptr || flow.closing) return;
  if (closed_) return port_.wake_owed(*flow.lane, true);  // nothing more is asked for
  // Where the oldest are dropped at three quarters, half a window would be asked for too late.
  if (!flow.credit.due(drops_oldest() ? kSmallGrantParts : kGrantParts) && !(even_small && flow.credit.any())) {
    if (queued_ == 0) port_.wake_owed(*flow.lane, true);
    return;
  }
  const Grant next = flow.credit.next();
  port_.push_return(*flow.lane, {flow.id, next.messages, next.bytes, static_cast<u8>(ReturnKind::credit), 0, 0, 0, 0},
                    kNotHeld, false);
  flow.credit.granted();
  port_.wake_owed(*flow.lane, true);
}

void ReceiverCore::grant_all() {
  for (FlowInState* flow : flows_) {
    if (flow->credit.any()) grant(*flow, true);
  }
}

void ReceiverCore::remove_flow(FlowInState* flow) { std::erase(flows_, flow); }

// Refuses what is queued, of one flow or of all.
void ReceiverCore::drop_queue(const FlowInState* only, Refusal how) {
  MessageCore* rest = first_;
  first_ = last_ = nullptr;
  queued_ = 0;
  for (FlowInState* flow : flows_) flow->queue = {};
  while (rest != nullptr) {
    MessageCore* message = rest;
    rest = rest->next;
    message->next = message->next_of_flow = nullptr;
    if (only != nullptr && message->flow.get() != only) {
      push(message);
      continue;
    }
    port_.refuse_message(message, how);
  }
}

// ------------------------------------------------------------------ receiving
Status ReceiverCore::receive_one(u64 deadline_ns, bool may_wait, MessageCore*& out) {
  Operation operation(port_, may_wait);
  return next(operation, deadline_ns, may_wait, out);
}

// A lane that lies is told of once while others bring messages, and at every call when none is left.
Status ReceiverCore::take_fault() {
  const char* why = fault_;
  const auto works = [](const FlowInState* flow) { return flow->lane != nullptr && !flow->lane->broken; };
  if (std::any_of(flows_.begin(), flows_.end(), works)) fault_ = nullptr;
  return Status::fail(Code::protocol, "channel " + text(channel_) + ": " + why);
}

// The operation may have been left and entered again; at a message it holds the port.
Status ReceiverCore::next(Operation& operation, u64 deadline_ns, bool may_wait, MessageCore*& out) {
  out = nullptr;
  if (!operation.ok()) return operation.status();
  for (;;) {
    if (closed_) return Status::fail(Code::closed, "receiver of channel " + text(channel_) + " is closed");
    out = hand_next();
    if (out != nullptr) return Status::success();
    if (port_.progress_locked() != 0 && queued_ != 0) continue;
    if (fault_ != nullptr) return take_fault();
    grant_all();
    if (deadline_ns == 0) {
      port_.flush_wakes();
      return Status::success();
    }
    if (!may_wait) return Status::fail(Code::would_block, {});
    if (monotonic_ns() >= deadline_ns) return Status::success();
    port_.wait_for_news(operation, deadline_ns, Port::News::messages);
    if (!operation.ok()) return operation.status();
  }
}

Status ReceiverCore::receive(u64 count, u64 deadline_ns, bool may_wait, std::vector<MessageCore*>& out) {
  Operation operation(port_, may_wait);
  MessageCore* message = nullptr;
  Status status = next(operation, deadline_ns, may_wait, message);
  while (status.ok() && message != nullptr) {
    out.push_back(message);
    if (out.size() >= count) break;
    message = hand_next();
    if (message == nullptr && port_.progress_locked() != 0) message = hand_next();
  }
  return status;
}

// Copies a message that was handed over, and ends it; false when it is not plain.
bool ReceiverCore::take_plain(MessageCore* message, PlainCopies& out) {
  const auto meta = plain_meta(*message);
  if (!meta) return false;
  out.bytes.insert(out.bytes.end(), meta->begin(), meta->end());
  out.sizes.push_back(static_cast<u32>(meta->size()));
  if (delivery_ == Delivery::at_least_once) {
    port_.end_message(*message, End::delivered, Reason::none);
    if (message->flow->row != nullptr) grant(*message->flow, false);
  }
  port_.drop_message(message);
  return true;
}

Status ReceiverCore::receive_plain(u64 count, u64 deadline_ns, bool may_wait, PlainCopies& out) {
  Operation operation(port_, may_wait);
  MessageCore* message = nullptr;
  Status status = next(operation, deadline_ns, may_wait, message);
  out.clear();
  while (status.ok() && message != nullptr) {
    if (!take_plain(message, out)) {
      out.other = message;
      break;
    }
    if (out.sizes.size() >= count) break;
    message = hand_next(true);
    if (message == nullptr && port_.progress_locked() != 0) message = hand_next(true);
  }
  return status;
}

Status ReceiverCore::pending(u64& out) {
  Operation operation(port_);
  if (!operation.ok()) return operation.status();
  port_.progress_locked();
  out = queued_;
  return Status::success();
}

Status ReceiverCore::close(bool hand_back) {
  Operation operation(port_);
  if (!operation.ok()) return operation.status();
  if (closed_) return Status::success();
  port_.progress_locked();
  closed_ = true;
  const Refusal how = hand_back && delivery_ == Delivery::at_least_once ? Refusal::hand_back : Refusal::end;
  drop_queue(nullptr, how);
  for (FlowInState* flow : flows_) {
    flow->refusal = how;
    flow->receiver = nullptr;
  }
  flows_.clear();
  port_.retire_receiver(endpoint_, how);
  port_.flush_wakes();
  port_.notify_waiters();
  return Status::success();
}

// ------------------------------------------------------------------ ends
Status ReceiverCore::ack(MessageCore& message, bool may_park) {
  if (message.ended) return Status::success();
  Operation operation(port_, may_park);
  if (!operation.ok()) return operation.status();
  if (message.ended) return Status::success();
  port_.end_message(message, End::delivered, Reason::none);
  if (message.flow->row != nullptr) grant(*message.flow, false);
  return Status::success();
}

Status ReceiverCore::nack(MessageCore& message, Reason reason) {
  if (reason == Reason::none || reason >= Reason::count) {
    return Status::fail(Code::invalid, "a refusal needs a reason");
  }
  Operation operation(port_);
  if (!operation.ok()) return operation.status();
  if (message.ended) return Status::fail(Code::invalid, "the message has ended already");
  const bool is_drop = reason == Reason::expired || reason == Reason::transform_drop;
  port_.end_message(message, is_drop ? End::dropped : End::failed, reason);
  if (message.flow->row != nullptr) grant(*message.flow, false);
  return Status::success();
}

Status ReceiverCore::release(MessageCore& message, bool may_park) {
  if (!message.slots_held) return Status::success();
  Operation operation(port_, may_park);
  if (!operation.ok()) return operation.status();
  port_.release_slots(message);
  return Status::success();
}

// A view that was neither acknowledged nor refused stays `handed`: its consumer's death, or the
// loss of the flow, decides what becomes of it.
void ReceiverCore::collect(MessageCore* message) {
  port_.collect(message);
}

// ------------------------------------------------------------------ reading
Status ReceiverCore::piece(MessageCore& message, u32 index, const u8*& data) {
  const SegmentEntry& entry = message.segments[index];
  std::shared_ptr<Segment>& mapped = message.mapped[index == 0 ? 0 : 1];
  if (port_.closed() || port_.forked()) return Status::fail(Code::closed, "the port is closed");
  if (mapped == nullptr) mapped = port_.find_reader(entry.segment);
  if (mapped == nullptr) return Status::need_segment(0, entry.segment);
  if (!message.slots_held) return Status::fail(Code::stale, "the message was released");
  if (entry.memory_kind > static_cast<u8>(MemoryKind::pinned)) {
    return Status::fail(Code::invalid, "the tensor lies in device memory");
  }
  return mapped->resolve(entry, data);
}

Status ReceiverCore::meta(MessageCore& message, const u8*& data, u64& bytes) {
  const u8* head = message.inline_data;
  u64 size = message.inline_size;
  if ((message.header.flags & kFlagMetaInSegment) != 0) {
    if (message.segments.empty()) return Status::fail(Code::protocol, "meta is said to be in a segment, none came");
    Status status = piece(message, 0, head);
    if (!status.ok()) return status;
    size = message.segments[0].length;
  }
  InlineLayout layout;
  if (const char* why = read_inline(message.header.flags, head, size, layout)) return Status::fail(Code::protocol, why);
  data = head + layout.meta_offset;
  bytes = layout.meta_bytes;
  return Status::success();
}

Status ReceiverCore::tensor(MessageCore& message, u32 index, const u8*& data, u64& bytes) {
  const bool meta_away = (message.header.flags & kFlagMetaInSegment) != 0;
  const u8* head = message.inline_data;
  u64 size = message.inline_size;
  Status status;
  if (meta_away) {
    if (message.segments.empty()) return Status::fail(Code::protocol, "meta is said to be in a segment, none came");
    status = piece(message, 0, head);
    if (!status.ok()) return status;
    size = message.segments[0].length;
  }
  InlineLayout layout;
  if (const char* why = read_inline(message.header.flags, head, size, layout)) return Status::fail(Code::protocol, why);
  if (index >= layout.tensor_count) {
    return Status::fail(Code::invalid, "message has " + text(layout.tensor_count) + " tensors, asked for number " + text(index));
  }
  u64 offset = 0;
  for (u32 i = 0; i < index; ++i) {
    const u64 before = inline_tensor_size(head, i);
    if (before > message.header.payload_bytes) return Status::fail(Code::protocol, "tensor exceeds the payload");
    offset = align_up(offset + before, u64{64});
  }
  bytes = inline_tensor_size(head, index);
  const bool away = message.segments.size() > (meta_away ? 1u : 0u);
  u64 room = 0;
  const u8* area = nullptr;
  if (away) {
    const u32 last = static_cast<u32>(message.segments.size()) - 1;
    status = piece(message, last, area);
    if (!status.ok()) return status;
    room = message.segments[last].length;
  } else if (layout.tensors_offset <= message.inline_size) {
    area = message.inline_data + layout.tensors_offset;
    room = message.inline_size - layout.tensors_offset;
  }
  if (bytes != 0 && (offset > room || bytes > room - offset)) {
    return Status::fail(Code::protocol, "tensor " + text(index) + " exceeds its segment");
  }
  data = bytes == 0 ? message.inline_data : area + offset;
  return Status::success();
}

bool ReceiverCore::holds(const MessageCore& message) const {
  for (u32 i = 0; i < message.segments.size(); ++i) {
    const auto& mapped = message.mapped[i == 0 ? 0 : 1];
    if (mapped != nullptr && !mapped->holds(message.segments[i])) return false;
  }
  return true;
}

}  // namespace fabric
