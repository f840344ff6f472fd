// What a message waits for, what happens when a flow is lost, and how messages end.
#include <algorithm>
#include <cstring>

#include "core/clock.hpp"
#include "core/sender.hpp"
#include "core/steps.hpp"

namespace fabric {
namespace {

std::string text(u64 value) { return std::to_string(value); }

}  // namespace

// Older messages wait for redelivery: does this one have to wait for one of them?
bool SenderCore::is_behind(const SendRequest& request, u64 key_hash, const FlowOut& flow) const {
  if (request.flow == 0) return flow.stuck_pass == pass_;  // its key's, if any waits: a key has one flow
  return std::any_of(waiting_.begin(), waiting_.end(), [&](u64 entry) {
    const Retained& kept = retained(entry);
    return kept.has_key == request.has_key && (!kept.has_key || kept.key_hash == key_hash);
  });
}

// ------------------------------------------------------------------ waiting for room
Status SenderCore::explain(Full full, const FlowOut* blocked, Code code) const {
  const std::string channel = "channel " + text(channel_) + ": ";
  switch (full) {
    case Full::consumer: return Status::fail(code, channel + "no consumer");
    case Full::credit:
      return Status::fail(code, channel + "credit of flow " + text(blocked->id) + ": " + text(blocked->outstanding) +
                                    " messages out, " + text(blocked->credit.messages_left()) + " messages and " +
                                    text(blocked->credit.bytes_left()) + " bytes left");
    case Full::lane: return Status::fail(code, channel + "lane full");
    case Full::table:
      return Status::fail(code, channel + "outstanding table full: it holds " + text(kOutstandingPerEndpoint - 1) +
                                    " messages that have not ended");
    case Full::span:
      return Status::fail(code, channel + "flow " + text(blocked->id) + ": its oldest message has not ended while " +
                                    text(kFlowSpanMax) + " younger ones went by");
    case Full::suspect:
      return Status::fail(code, channel + "the consumer at endpoint " + text(blocked->target_endpoint) + " of port " +
                                    text(blocked->lane->peer_port) + " (flow " + text(blocked->id) +
                                    ") is suspect: it gives no sign of life and gets no new work");
    case Full::drain:
      return Status::fail(code, channel + "flow " + text(blocked->id) +
                                    (blocked->closed ? ": the key waits until older flows have drained"
                                                     : " waits until older flows have drained"));
    case Full::redelivery:
      return Status::fail(code, channel + text(waiting_.size()) + " messages wait for redelivery");
    default: return Status::fail(code, channel + "no room");
  }
}

Status SenderCore::wait_or_fail(Operation& operation, Full full, FlowOut* blocked, u64 deadline_ns, bool may_wait) {
  if (full == Full::flow_gone) {
    return Status::fail(Code::peer_lost, "channel " + text(channel_) + ": the flow that was asked for is gone");
  }
  if (full == Full::broken) {
    return Status::fail(Code::protocol, "channel " + text(channel_) + ": the peer of flow " + text(blocked->id) +
                                            " broke the rules of its lane: " + blocked->lane->fault);
  }
  if (full == Full::undecided) return Status::fail(Code::undecided, {});
  if (full == Full::too_large) {
    return Status::fail(Code::capacity, "key, meta and tables exceed " + text(kRecordBytesMax) + " bytes");
  }
  if (deadline_ns == 0) return explain(full, blocked, Code::would_block);
  if (!may_wait) return Status::fail(Code::would_block, {});
  if (monotonic_ns() >= deadline_ns) return explain(full, blocked, Code::deadline);
  port_.wait_for_news(operation, deadline_ns, Port::News::all);
  if (!operation.ok()) return operation.status();
  return closed_ ? Status::fail(Code::closed, "sender of channel " + text(channel_) + " was closed") : Status::success();
}

// ------------------------------------------------------------------ ends
void SenderCore::finish_entry(u64 entry, End end, Reason reason) {
  if (!ledger_.end(entry, end, reason)) return;
  Retained& kept = retained(entry);
  if (end == End::delivered) delivered_bytes_ += kept.payload_bytes;
  if (delivery_ == Delivery::at_least_once) {
    for (const SlotRef& slot : kept.slots) {
      if (slot) port_.arena().drop_message(slot);
    }
  }
  ++ended_unfolded_;
}

void SenderCore::end_entry(FlowOut& flow, u64 flow_seq, End end, Reason reason) {
  const u64 entry = flow.sequences.take(flow_seq);
  if (entry == 0) return;  // it ended before
  if (flow.outstanding != 0) --flow.outstanding;
  if (route_.measures()) flow.service_ns = flow.service.end(monotonic_ns());
  finish_entry(entry, end, reason);
}

void SenderCore::fold(u32 at_least) {
  if (ended_unfolded_ < at_least || final_ != nullptr) return;
  const bool any = ended_unfolded_ != 0;
  const u32 folded = ledger_.fold(any && Faults::take(port_.faults().miscount_fold) ? 1 : 0);
  ended_unfolded_ -= std::min<u64>(folded, ended_unfolded_);
}

void SenderCore::wait_again(u64 entry, bool handed) {
  if (!ledger_.live(entry)) return;
  Retained& kept = retained(entry);
  kept.handed = kept.handed || handed;
  ledger_.wait(entry);
  const auto at = std::upper_bound(waiting_.begin(), waiting_.end(), kept.number,
                                   [this](u64 number, u64 other) { return number < retained(other).number; });
  if (waiting_.empty()) port_.watch_stuck(this);
  waiting_.insert(at, entry);
}

void SenderCore::remove_flow(FlowOut* flow) { std::erase(flows_, flow); }

void SenderCore::lose_flow(FlowOut* flow, u64 handed_upto, Reason reason) {
  remove_flow(flow);
  const u64 low = flow->sequences.low();
  for (u64 seq = low; low != 0 && seq <= flow->last_seq; ++seq) {
    const u64 entry = flow->sequences.take(seq);
    if (entry == 0) continue;
    const bool handed = seq <= handed_upto;
    const bool is_reply = pattern_ == Pattern::reply;  // only its requester waits for it
    if (delivery_ == Delivery::at_least_once && !closed_ && !is_reply) wait_again(entry, handed);
    else if (delivery_ == Delivery::at_least_once && handed) finish_entry(entry, End::failed, Reason::outcome_unknown);
    else if (delivery_ == Delivery::at_least_once) finish_entry(entry, End::failed, is_reply ? reason : Reason::closed);
    else if (handed) finish_entry(entry, End::delivered, Reason::none);
    else finish_entry(entry, End::failed, reason);
  }
  flow->outstanding = 0;
  redeliver();
}

// ------------------------------------------------------------------ redelivery
// In order and before anything new. What finds its flow full waits on, and with it all that goes there; the rest of a
// stream goes by. A queue knows no such rest: what the first finds no room for would only delay it further.
void SenderCore::redeliver() {
  if (waiting_.empty()) return;
  expire_waiting(monotonic_ns());
  ++pass_;
  std::size_t open = 0, stuck = 0;
  const auto mark = [&](FlowOut* flow) {
    if (flow == nullptr || flow->stuck_pass == pass_) return;
    flow->stuck_pass = pass_;
    stuck += !flow->closed;
  };
  for (FlowOut* flow : flows_) {
    open += !flow->closed;
    if (room(*flow, 0) != Full::none) mark(flow);
  }
  std::size_t kept = 0, next = 0;
  for (; next < waiting_.size() && stuck < open; ++next) {
    FlowOut* blocked = nullptr;
    if (resend(waiting_[next], blocked) == Full::none) continue;
    waiting_[kept++] = waiting_[next];
    if (pattern_ != Pattern::stream) stuck = open;
    else mark(blocked);
  }
  waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(kept), waiting_.begin() + static_cast<std::ptrdiff_t>(next));
}

Full SenderCore::resend(u64 entry_number, FlowOut*& blocked) {
  Retained& kept = retained(entry_number);
  FlowOut* flow = nullptr;
  Full full = choose({0, false, kept.has_key, kept.key_hash, kept.payload_bytes}, flow);
  blocked = flow;
  if (full != Full::none) return full;
  if (pattern_ == Pattern::stream && flow->stuck_pass == pass_) return Full::redelivery;
  const u32 total = static_cast<u32>(kept.record.size());
  RecordWriter& writer = flow->lane->end.records_out;
  u8* at = writer.reserve(total);
  if (at == nullptr) return port_.is_lying(*flow->lane) ? Full::broken : Full::lane;
  RecordHeader header;
  std::memcpy(&header, kept.record.data(), sizeof header);
  header.flags |= kFlagRedelivered;
  header.flow = flow->id;
  header.flow_seq = flow->last_seq + 1;
  header.generation = flow->generation;
  std::memcpy(kept.record.data(), &header, sizeof header);
  std::memcpy(at, kept.record.data(), total);
  for (const SlotRef& slot : kept.slots) {
    if (slot) port_.arena().hold_reader(slot, flow->id);
  }
  // The entry stays `waiting` until the record is visible: it was accepted long ago.
  OutEntry& entry = ledger_.entry(entry_number);
  entry.position = static_cast<u32>(writer.reserved_at());
  entry.flow_seq = header.flow_seq;
  entry.flow = flow->id;
  step("resend.assigned");
  writer.commit();
  writer.publish();
  step("resend.published");
  entry.word.store(out_word(OutState::accepted), std::memory_order_release);
  flow->last_seq = header.flow_seq;
  flow->sequences.put(header.flow_seq, entry_number);
  ++flow->outstanding;
  flow->credit.send(kept.payload_bytes);
  ++port_.counters().redelivered;
  flow->lane->peer.ring(flow->lane->number);
  return Full::none;
}

void SenderCore::expire_waiting(u64 now_ns) {
  std::erase_if(waiting_, [&](u64 entry) {
    const Retained& kept = retained(entry);
    if (kept.expires_ns == 0 || now_ns < kept.expires_ns) return false;
    if (kept.handed) finish_entry(entry, End::failed, Reason::outcome_unknown);
    else finish_entry(entry, End::dropped, Reason::expired);
    return true;
  });
}

// ------------------------------------------------------------------ questions
Status SenderCore::cancel(u64 number, bool& cancelled) {
  cancelled = false;
  Operation operation(port_);
  if (!operation.ok()) return operation.status();
  const auto it = std::find_if(waiting_.begin(), waiting_.end(), [&](u64 entry) { return retained(entry).number == number; });
  if (it == waiting_.end() || retained(*it).handed) return Status::success();
  const u64 entry = *it;
  waiting_.erase(it);
  finish_entry(entry, End::dropped, Reason::cancelled);
  cancelled = true;
  return Status::success();
}

Status SenderCore::flows(std::vector<FlowInfo>& out) {
  Operation operation(port_);
  if (!operation.ok()) return operation.status();
  port_.progress_locked();
  for (const FlowOut* flow : flows_) {
    out.push_back({flow->id, flow->target_endpoint, flow->outstanding, flow->credit.messages_left(),
                   flow->credit.bytes_left(), flow->generation, flow->closed});
  }
  return Status::success();
}

Status SenderCore::ended_upto(u64& out) {
  Operation operation(port_);
  if (!operation.ok()) return operation.status();
  port_.progress_locked();
  fold(1);
  out = number_;
  if (final_ != nullptr) return Status::success();
  for (u64 entry = ledger_.ended_upto() + 1; entry <= ledger_.accepted(); ++entry) {
    if (ledger_.live(entry)) out = std::min(out, retained(entry).number - 1);
  }
  return Status::success();
}

Status SenderCore::counts(EndCounts& out) {
  Operation operation(port_);
  if (!operation.ok()) return operation.status();
  port_.progress_locked();
  fold(1);
  out = final_ != nullptr ? *final_ : ledger_.counts();
  return Status::success();
}

Status SenderCore::delivered_bytes(u64& out) {
  Operation operation(port_);
  if (!operation.ok()) return operation.status();
  port_.progress_locked();
  out = delivered_bytes_;
  return Status::success();
}

Status SenderCore::flush(u64 deadline_ns, bool may_wait, bool& flushed) {
  Operation operation(port_, may_wait);
  if (!operation.ok()) return operation.status();
  for (;;) {
    port_.progress_locked();
    fold(1);
    flushed = idle();
    if (flushed || monotonic_ns() >= deadline_ns) return Status::success();
    if (!may_wait) return Status::fail(Code::would_block, {});
    port_.wait_for_news(operation, deadline_ns, Port::News::all);
    if (!operation.ok()) return operation.status();
  }
}

Status SenderCore::close() {
  Operation operation(port_);
  if (!operation.ok()) return operation.status();
  if (closed_) return Status::success();
  port_.progress_locked();
  closed_ = true;
  for (u64 entry : waiting_) {
    const bool handed = retained(entry).handed;
    finish_entry(entry, End::failed, handed ? Reason::outcome_unknown : Reason::closed);
  }
  waiting_.clear();
  fold(1);
  port_.notify_waiters();
  return Status::success();
}

// The row may be another sender's soon; who still holds this one is told the last counts.
void SenderCore::retire() {
  final_ = std::make_unique<EndCounts>(ledger_.counts());
  ledger_.row()->endpoint = 0;
  ledger_ = {};
  flows_.clear();
  retained_ = std::vector<Retained>(1);
  retained_mask_ = 0;
  pins_ = {};
}

}  // namespace fabric
