// Progress: lanes into queues, return rings into ledgers and credit.
#include <algorithm>

#include "core/clock.hpp"
#include "core/port.hpp"
#include "core/receiver.hpp"
#include "core/sender.hpp"
#include "core/steps.hpp"

namespace fabric {

Status Port::progress(u64& handled) {
  Operation operation(*this);
  if (!operation.ok()) return operation.status();
  handled = progress_locked();
  flush_wakes();
  return Status::success();
}

u64 Port::progress_locked(bool all) {
  ++user_progress_;
  u64 handled = 0;
  if (all) {
    for (auto& [number, lane] : lanes_) handled += progress_lane(*lane);
  } else {
    for (u32 word = 0; word < Doorbell::kWords; ++word) {
      u64 bits = doorbell_.take_ready(word) | retry_[word];
      retry_[word] = 0;
      for (; bits != 0; bits &= bits - 1) {
        const u32 bit = word * 64 + static_cast<u32>(__builtin_ctzll(bits));
        for (LaneLink* lane = lanes_by_bit_[bit]; lane != nullptr; lane = lane->next_same_bit) {
          handled += progress_lane(*lane);
        }
      }
    }
  }
  if (!collected_.empty()) collect_late();
  if (!closing_.empty()) settle_closing_flows();
  if (handled != 0) notify_waiters();
  return handled;
}

u64 Port::progress_lane(LaneLink& lane) {
  if (lane.broken) return 0;
  if (!lane.backlog.empty()) flush_backlog(lane);
  const u64 taken = drain_returns(lane) + drain_records(lane);
  if (taken != 0) heard_of(&lane);
  is_lying(lane);
  return taken;
}

bool Port::is_lying(LaneLink& lane) {
  const char* of_records = lane.end.records_out.fault();
  const char* why = of_records != nullptr ? of_records : lane.end.returns_out.fault();
  if (why != nullptr && !lane.broken) [[unlikely]] fail_lane(lane, why);
  return lane.broken;
}

void Port::fail_lane(LaneLink& lane, const char* why) {
  lane.broken = true;
  lane.fault = why;
  ++counters_.lying;
  for (auto& [id, flow] : flows_in_) {
    if (flow->lane == &lane && flow->receiver != nullptr) flow->receiver->fail(why);
  }
  notify_waiters();
}

// ------------------------------------------------------------------ records
u64 Port::drain_records(LaneLink& lane) {
  RecordReader& reader = lane.end.records_in;
  const u64 before = reader.read_cursor();
  u64 taken = 0;
  RecordSpan span;
  drained_ns_ = monotonic_coarse_ns();
  for (bool stop = false; !stop;) {
    const Peek peek = reader.peek(span);
    if (peek == Peek::empty) break;
    if (peek == Peek::corrupt) {
      fail_lane(lane, reader.fault());
      break;
    }
    if (take_record(lane, span, stop)) {
      reader.advance(span);
      ++taken;
    }
  }
  if (reader.read_cursor() != before) {
    reader.release();
    if (Faults::take(faults_.corrupt_cursor)) reader.release(reader.head() + 8);
  }
  counters_.records_in += taken;
  return taken;
}

// Most records are of the flow of the one before.
FlowRef* Port::find_flow_in(LaneLink& lane, u64 id) {
  if (lane.last_in != nullptr && (*lane.last_in)->id == id) return lane.last_in;
  const auto it = flows_in_.find(id);
  if (it == flows_in_.end()) return nullptr;
  if (it->second->lane == &lane) lane.last_in = &it->second;
  return &it->second;
}

// False: the record stays in the lane (held table full, or it lies); `stop` ends the drain.
bool Port::take_record(LaneLink& lane, const RecordSpan& span, bool& stop) {
  const RecordHeader& header = span.header;
  if (held_.full()) {
    retry_later(lane);
    stop = true;
    return false;
  }
  const char* why = nullptr;
  MessageCore* message = pool_.copy(span, why);
  if (message == nullptr) {
    fail_lane(lane, why);
    stop = true;
    return false;
  }
  FlowRef* known = find_flow_in(lane, header.flow);
  if (known == nullptr) {
    ++counters_.strays;
    refuse_record(lane, message, true);
    return true;
  }
  FlowInState& flow = **known;
  if (flow.lane != &lane) [[unlikely]] {
    pool_.put(message);
    fail_lane(lane, "a record names a flow of another lane");
    stop = true;
    return false;
  }
  const u64 drained = flow.row->drained.load(std::memory_order_relaxed);
  if (header.flow_seq <= drained) {
    ++counters_.repeats;
    refuse_record(lane, message, false);
    return true;
  }
  if (header.flow_seq != drained + 1 || !flow.credit.accept()) {
    const char* lie = header.flow_seq != drained + 1 ? "a flow sequence is missing" : "a sender exceeded its credit";
    stop = !blame_producer(lane, flow, message, lie);
    return !stop;
  }
  if (header.kind == static_cast<u8>(RecordKind::skip)) {
    skip_record(flow, header);
    pool_.put(message);
    return true;
  }
  message->flow = *known;
  // Who it is from: on a lane of its own that is the peer, whatever the record says; behind a gateway it is said.
  if (flow.producer_port == lane.peer_port || message->fields.producer.port == 0) {
    message->fields.producer = {lane.peer_port, lane.peer_incarnation};
  }
  queue_record(flow, message);
  return true;
}

// Behind a gateway a producer is one of many: what it sends against the rules ends there, and the lane is the others', too.
// False: the producer is the lane's own peer, and the lane is broken.
bool Port::blame_producer(LaneLink& lane, FlowInState& flow, MessageCore* message, const char* why) {
  if (flow.producer_port == lane.peer_port) {
    pool_.put(message);
    fail_lane(lane, why);
    return false;
  }
  if (!flow.lying) {
    flow.lying = true;
    ++counters_.lying;
    if (flow.receiver != nullptr) flow.receiver->fail(why);
    notify_waiters();
  }
  refuse_record(lane, message, true);
  return true;
}

// The message ended at an earlier hop, which reported it: only sequence and credit move on.
void Port::skip_record(FlowInState& flow, const RecordHeader& header) {
  flow.row->drained.store(header.flow_seq, std::memory_order_release);
  auto& skipped = flow.row->reported[static_cast<int>(End::none)];
  skipped.store(skipped.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  flow.row->ended_upto.store(flow.ended.mark(header.flow_seq), std::memory_order_release);
  flow.credit.consume(header.payload_bytes);
}

void Port::queue_record(FlowInState& flow, MessageCore* message) {
  const RecordHeader& header = message->header;
  if (Faults::take(faults_.lose_drained)) {
    pool_.put(message);
    flow.row->drained.store(header.flow_seq, std::memory_order_release);
    return;
  }
  const SegmentEntry* first = message->segments.empty() ? nullptr : message->segments.data();
  message->held = held_.take(header, first, drained_ns_);
  step("drain.held");
  if (Faults::take(faults_.repeat_drained)) held_.take(header, first, drained_ns_);
  message->slots_held = first != nullptr;
  auto& bytes = flow.row->payload_bytes;
  bytes.store(bytes.load(std::memory_order_relaxed) + header.payload_bytes, std::memory_order_relaxed);
  flow.row->drained.store(header.flow_seq, std::memory_order_release);  // after the held entry
  step("drain.drained");
  saw_message(header.payload_bytes);
  ++flow.live;
  if (flow.receiver != nullptr) {
    flow.receiver->push(message);
  } else if (flow.refusal != Refusal::none) {
    refuse_message(message, flow.refusal);
    wake_owed(*flow.lane, true);
  } else {
    early_messages_.push_back(message);
  }
}

// A record nobody waits for: its slots go back, and its end is reported where nobody else did.
void Port::refuse_record(LaneLink& lane, MessageCore* message, bool report_end) {
  const u64 flow = message->header.flow;
  for (const SegmentEntry& entry : message->segments) {
    push_return(lane, {flow, u64{entry.segment} << 32 | entry.slot, entry.generation,
                       static_cast<u8>(ReturnKind::release), 0, 0, 0, 0}, kNotHeld, false);
  }
  if (report_end) {
    const u64 seq = message->header.flow_seq;
    push_end(lane, flow, seq, End::failed, Reason::closed, kNotHeld, false);
  }
  wake_owed(lane, true);
  pool_.put(message);
}

// ------------------------------------------------------------------ returns, outgoing
// Most ends follow the one before: then its entry says so, too.
void Port::push_end(LaneLink& lane, u64 flow, u64 seq, End end, Reason reason, u32 held, bool free_held) {
  ReturnEntry* last = lane.backlog.empty() ? lane.end.returns_out.unpublished() : nullptr;
  const bool extends = last != nullptr && last->kind == static_cast<u8>(ReturnKind::end) && last->flow == flow &&
                       last->end == static_cast<u8>(end) && last->reason == static_cast<u8>(reason) && last->b + 1 == seq;
  if (extends) {
    last->b = seq;
    if (held != kNotHeld && free_held) held_.free(held);
    return;                           // its lane is dirty since the entry was pushed
  }
  push_return(lane, {flow, seq, seq, static_cast<u8>(ReturnKind::end), static_cast<u8>(end), static_cast<u8>(reason), 0, 0},
              held, free_held);
}

void Port::push_return(LaneLink& lane, const ReturnEntry& entry, u32 held, bool free_held) {
  if (!lane.backlog.empty() || !lane.end.returns_out.push(entry)) {
    if (lane.backlog.size() < kBacklogMax) {
      lane.backlog.push_back({entry, held, free_held});
      if (held != kNotHeld && free_held) held_.set(held, HeldState::ended, 0);  // reported, not yet in the ring
      retry_later(lane);
      return;
    }
    if (!lane.broken) fail_lane(lane, "it makes more reports necessary than it reads");
  }
  if (held != kNotHeld && free_held) held_.free(held);
  if (!lane.dirty) {
    lane.dirty = true;
    dirty_.push_back(&lane);
  }
}

void Port::flush_backlog(LaneLink& lane) {
  while (!lane.backlog.empty() && lane.end.returns_out.push(lane.backlog.front().entry)) {
    const LaneLink::Owed owed = lane.backlog.front();
    lane.backlog.pop_front();
    if (owed.held != kNotHeld && owed.free_held) held_.free(owed.held);
    if (!lane.dirty) {
      lane.dirty = true;
      dirty_.push_back(&lane);
    }
  }
  if (!lane.backlog.empty()) retry_later(lane);
}

void Port::publish_returns() {
  for (LaneLink* lane : dirty_) {
    lane->dirty = false;
    lane->end.returns_out.publish();
    lane->peer.mark(lane->number);
    if (lane->wake_now || lane->wakes_owed >= kWakesOwedMax) wake_for_returns(*lane);
  }
  dirty_.clear();
}

// A peer that sleeps for messages only learns of ends when one comes, or at its next service tick; not so where many
// have gathered.
void Port::wake_for_returns(LaneLink& lane) {
  lane.wake_now = false;
  if (lane.wakes_owed >= kWakesOwedMax) {
    lane.peer.wake();
  } else if (!lane.peer.wake_for_returns()) {
    return;                           // still owed
  }
  lane.wakes_owed = 0;
}

// A sender that sleeps for credit need not wake for every end: only when it can go on, when this
// side runs empty, or at the next service tick.
void Port::wake_owed(LaneLink& lane, bool now) {
  if (now) lane.wake_now = true;
  ++lane.wakes_owed;
  if (!lane.owing) {
    lane.owing = true;
    owing_.push_back(&lane);
  }
}

void Port::flush_wakes() {
  publish_returns();
  for (LaneLink* lane : owing_) {
    lane->owing = false;
    if (lane->wakes_owed != 0) wake_for_returns(*lane);
  }
  owing_.clear();
}

// ------------------------------------------------------------------ returns, incoming
u64 Port::drain_returns(LaneLink& lane) {
  ReturnReader& reader = lane.end.returns_in;
  u64 taken = 0;
  ReturnEntry entry;
  for (Peek peek = reader.next(entry); peek != Peek::empty; peek = reader.next(entry)) {
    if (peek != Peek::item || !apply_return(lane, entry)) {
      fail_lane(lane, "a return entry cannot be true");
      break;
    }
    ++taken;
  }
  if (taken == 0) return 0;
  reader.release();
  counters_.returns_in += taken;
  for (SenderCore* sender : told_) {
    sender->told = false;
    sender->fold_some();
  }
  told_.clear();
  std::erase_if(stuck_, [](SenderCore* sender) {  // few: a consumer of theirs has gone
    sender->redeliver();
    return !sender->is_stuck();
  });
  return taken;
}

void Port::tell(FlowOut& flow) {
  if (flow.sender->told) return;
  flow.sender->told = true;
  told_.push_back(flow.sender);
}

void Port::watch_stuck(SenderCore* sender) {
  if (std::find(stuck_.begin(), stuck_.end(), sender) == stuck_.end()) stuck_.push_back(sender);
}

// False when it cannot be true. A lane has a say in its own flows only; what it says of one that is gone is late.
bool Port::apply_return(LaneLink& lane, const ReturnEntry& entry) {
  switch (static_cast<ReturnKind>(entry.kind)) {
    case ReturnKind::end: return apply_end(lane, entry);
    case ReturnKind::release: return apply_release(lane, entry);
    case ReturnKind::credit: break;
    default: return false;
  }
  auto it = flows_out_.find(entry.flow);
  if (it == flows_out_.end()) return true;
  return it->second->lane == &lane && it->second->credit.grant(entry.a, entry.b, entry.epoch);
}

bool Port::apply_release(LaneLink& lane, const ReturnEntry& entry) {
  auto it = flows_out_.find(entry.flow);
  auto late = late_views_.end();
  if (it != flows_out_.end()) {
    if (it->second->lane != &lane) return false;
  } else {
    late = late_views_.find(entry.flow);
    if (late == late_views_.end()) return true;
    if (late->second != lane.number) return false;
  }
  const bool was_held = arena_.drop_reader(static_cast<u32>(entry.a >> 32), static_cast<u32>(entry.a),
                                           static_cast<u32>(entry.b), entry.flow);
  if (!was_held) ++counters_.strays;
  if (late != late_views_.end() && !arena_.has_readers(entry.flow)) late_views_.erase(late);
  return true;
}

bool Port::apply_end(LaneLink& lane, const ReturnEntry& entry) {
  const bool possible = entry.end >= static_cast<u8>(End::delivered) && entry.end <= static_cast<u8>(End::failed) &&
                        entry.reason < static_cast<u8>(Reason::count) && entry.a != 0 && entry.a <= entry.b;
  if (!possible) return false;
  auto it = flows_out_.find(entry.flow);
  if (it == flows_out_.end()) {
    ++counters_.strays;
    return true;
  }
  FlowOut& flow = *it->second;
  if (flow.lane != &lane || entry.b > flow.last_seq) return false;
  tell(flow);
  for (u64 seq = std::max(entry.a, flow.sequences.low()); seq <= entry.b; ++seq) {
    flow.sender->end_entry(flow, seq, static_cast<End>(entry.end), static_cast<Reason>(entry.reason));
  }
  flow.sequences.lower_to(flow.last_seq);
  if (flow.closed && flow.outstanding == 0) remove_flow_out(entry.flow);
  return true;
}

}  // namespace fabric
