// Ends of received messages: reported once, slots given back, blocks to the pool or to whoever outlives the port.
#include "core/port.hpp"
#include "core/receiver.hpp"
#include "core/steps.hpp"

namespace fabric {

void Port::end_message(MessageCore& message, End end, Reason reason) {
  if (message.ended) return;
  message.ended = true;
  FlowInState& flow = *message.flow;
  const u64 seq = message.header.flow_seq;
  if (!message.credited) flow.credit.consume(message.header.payload_bytes);
  const bool free_held = !message.slots_held;
  if (free_held) --flow.live;
  if (!free_held) held_.set(message.held, HeldState::ended, message.header.segment_count);
  const u32 held = free_held ? message.held : kNotHeld;
  if (free_held) message.held = kNotHeld;
  auto& reported = flow.row->reported[static_cast<int>(end)];
  reported.store(reported.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  step("end.counted");
  if (flow.lane == nullptr) {
    if (held != kNotHeld) held_.free(held);
    return;
  }
  push_end(*flow.lane, flow.id, seq, end, reason, held, free_held);
  wake_owed(*flow.lane, false);
  flow.row->ended_upto.store(flow.ended.mark(seq), std::memory_order_release);
}

void Port::release_slots(MessageCore& message) {
  if (!message.slots_held) return;
  message.slots_held = false;
  FlowInState& flow = *message.flow;
  if (message.ended) {
    held_.set(message.held, HeldState::releasing, message.header.segment_count);
  }
  if (flow.lane != nullptr) {
    for (const SegmentEntry& entry : message.segments) {
      push_return(*flow.lane, {flow.id, u64{entry.segment} << 32 | entry.slot, entry.generation,
                               static_cast<u8>(ReturnKind::release), 0, 0, 0, 0}, kNotHeld, false);
    }
    wake_owed(*flow.lane, false);
  }
  if (message.ended) {
    held_.free(message.held);
    message.held = kNotHeld;
    --flow.live;
  }
}

// Handed back: its sender sends it to another consumer once it learns that this flow is lost. Counted before the
// held entry goes, so that an audit finds the message in one of the two places.
void Port::refuse_message(MessageCore* message, Refusal how) {
  if (how == Refusal::hand_back) {
    FlowInState& flow = *message->flow;
    auto& returned = flow.row->returned;
    returned.store(returned.load(std::memory_order_relaxed) + 1, std::memory_order_release);
    message->ended = true;            // here nothing more is to be said about it
    if (!message->slots_held) {
      held_.free(message->held);
      --flow.live;
    }
  } else {
    end_message(*message, End::failed, Reason::closed);
  }
  release_slots(*message);
  pool_.put(message);
}

// A destructor may run on any thread and with the interpreter's lock held: it never parks.
void Port::collect(MessageCore* message) {
  if (forked()) {
    MessagePool::destroy(message);
    return;
  }
  if (message->ended && !message->slots_held) [[likely]] {  // nothing of it is told to anybody
    std::lock_guard lock(mutex_);
    if (closed()) MessagePool::destroy(message);  // who ends without the lock from now on counts as this does
    else pool_.put(message);
    return;
  }
  Operation operation(*this, false);
  if (operation.ok()) {
    let_go(message);
    if (!closing_.empty()) settle_closing_flows();
  } else if (operation.status().code == Code::frozen) {
    std::lock_guard lock(mutex_);
    collected_.push_back(message);
  } else {
    MessagePool::destroy(message);
  }
}

void Port::collect_late() {
  for (MessageCore* message : collected_) let_go(message);
  collected_.clear();
}

// Unacknowledged: it stays handed as long as its flow is there. Who closes the flow has decided what became of it.
void Port::let_go(MessageCore* message) {
  release_slots(*message);
  if (!message->ended && message->held != kNotHeld) message->flow->abandoned.push_back(message->held);
  pool_.put(message);
}

}  // namespace fabric
