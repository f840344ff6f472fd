// What a sender does when a receiver has no room, and how a broadcast fans out.
//
// A broadcast is one entry and one record per receiver; the copies share their slots, and their records the number of
// the message. Copies are written lane by lane, and lanes are published in the order of the entries: after a kill,
// what is in the lanes is a prefix of the entries.
#include <algorithm>

#include "core/sender.hpp"
#include "core/steps.hpp"

namespace fabric {

// ------------------------------------------------------------------ overflow
bool SenderCore::overflows(Full full) const {
  if (overflow_ != Overflow::drop_newest && overflow_ != Overflow::reject) return false;
  switch (full) {
    case Full::credit:
    case Full::lane:
    case Full::table:
    case Full::span:
    case Full::suspect: return true;
    case Full::redelivery:              // what waits for room is in the way; without a consumer there is no receiver
      return std::any_of(flows_.begin(), flows_.end(), [](const FlowOut* flow) { return !flow->closed; });
    default: return false;
  }
}

// Before a slot is taken: would the policy end this message at once? A receiver that does not read must not fill the
// arena with messages that it will never get.
Full SenderCore::look(const SendRequest& request, const Prepared& prepared, FlowOut*& blocked) {
  if (overflow_ != Overflow::drop_newest && overflow_ != Overflow::reject) return Full::none;
  Prepared measured = prepared;
  measure(request, measured);
  for (int i = 0;; ++i) {
    Full full = Full::none;
    u64 left_out = 0;
    if (pattern_ == Pattern::broadcast && request.flow == 0) full = choose_all(measured, left_out, blocked);
    else full = choose({request.flow, request.asks, request.has_key, measured.key_hash, measured.payload}, blocked);
    if (full == Full::none && targets_.empty() && left_out != 0) full = Full::credit;
    targets_.clear();
    if (!overflows(full)) return Full::none;
    if (i == 1) return full;
    port_.progress_locked();
  }
}

// The message ends here. @param is_counted a rejection that the caller will be told
Status SenderCore::overflow(const SendRequest& request, Prepared& prepared, Full full, const FlowOut* blocked,
                            bool is_counted) {
  if (overflow_ == Overflow::reject) {
    Status status = explain(full, blocked, Code::rejected);
    give_up(request, prepared);
    if (is_counted) {
      ledger_.aside(Aside::rejected, 1);
      ++number_;
    }
    return status;
  }
  if (request.loan) prepared.slots[1] = request.loan;
  u64 copies = 1;
  if (pattern_ == Pattern::broadcast && request.flow == 0) {
    copies = static_cast<u64>(std::count_if(flows_.begin(), flows_.end(), [this](const FlowOut* flow) {
      return !flow->closed && !opens_later(*flow);
    }));
  }
  end_aside(prepared, Aside::overflow_newest, copies);
  return Status::success();
}

// A message that ends in its own call, with no entry; its slots go back, a loan's, too.
void SenderCore::end_aside(Prepared& prepared, Aside kind, u64 copies) {
  for (SlotRef& slot : prepared.slots) {
    if (slot) port_.arena().free(slot);
    slot = {};
  }
  ledger_.aside(kind, copies);
  ++number_;
}

// ------------------------------------------------------------------ broadcast
// A flow of the next generation is no target while the older ones still take messages: each receiver gets one copy.
bool SenderCore::opens_later(const FlowOut& flow) const {
  return std::any_of(flow.after.begin(), flow.after.end(), [this](u64 id) {
    const FlowOut* older = find(id);
    return older != nullptr && !older->closed;
  });
}

// Fills targets_ with the receivers that get a copy; `left_out` counts those that drop_newest passes over.
Full SenderCore::choose_all(const Prepared& prepared, u64& left_out, FlowOut*& blocked) {
  targets_.clear();
  left_out = 0;
  for (FlowOut* flow : flows_) {
    if (flow->closed || (!flow->after.empty() && opens_later(*flow))) continue;
    const Full full = room(*flow, prepared.payload);
    if (full == Full::none) {
      targets_.push_back(flow);
    } else if (overflow_ == Overflow::drop_newest && (overflows(full) || full == Full::broken)) {
      ++left_out;
      blocked = flow;
    } else {
      blocked = flow;
      return full;
    }
  }
  return Full::none;
}

Full SenderCore::fan_out(const SendRequest& request, Prepared& prepared, Batch& batch, FlowOut*& blocked) {
  seal(batch);
  batch = {};
  u64 left_out = 0;
  Full full = choose_all(prepared, left_out, blocked);
  if (full != Full::none) return full;
  if (left_out != 0 && !prepared.progressed) return Full::credit;
  if (targets_.empty()) {
    end_aside(prepared, left_out != 0 ? Aside::overflow_newest : Aside::no_target, std::max<u64>(left_out, 1));
    return Full::none;
  }
  if (!table_room(batch, targets_.size())) return Full::table;
  const u64 first = ledger_.accepted() + 1;
  full = put_copies(request, prepared, first, left_out, blocked);
  if (full != Full::none) return full;
  u64 entry = first - 1;
  for (FlowOut* flow : targets_) take_on(request, prepared, *flow, ++entry, nullptr, 0);
  for (SlotRef& slot : prepared.slots) {
    if (slot) port_.arena().drop_message(slot);  // only its readers need it now
  }
  ++number_;
  publish_copies(first);
  if (left_out != 0) ledger_.aside(Aside::overflow_newest, left_out);
  return Full::none;
}

// Writes a record for each target, unpublished. Without room in a lane drop_newest leaves its receivers out; else
// nothing has happened.
Full SenderCore::put_copies(const SendRequest& request, const Prepared& prepared, u64 first, u64& left_out,
                            FlowOut*& blocked) {
  u64 entry = first;
  Full full = Full::none;
  std::erase_if(targets_, [&](FlowOut* flow) {
    if (full != Full::none) return false;
    u32 total = 0;
    if (put_record(request, prepared, *flow, entry, total) != nullptr) {
      ++entry;
      return false;
    }
    blocked = flow;
    if (total > kRecordBytesMax) full = Full::too_large;
    else if (overflow_ != Overflow::drop_newest || !prepared.progressed) full = Full::lane;
    else ++left_out;
    return full == Full::none;
  });
  if (full == Full::none && targets_.empty()) full = Full::lane;
  if (full == Full::none) return full;
  for (u64 revoked = first; revoked < entry; ++revoked) ledger_.revoke(revoked);
  for (FlowOut* flow : targets_) flow->lane->end.records_out.abandon();
  return full;
}

void SenderCore::publish_copies(u64 first) {
  LaneLink* lane = nullptr;
  for (const FlowOut* flow : targets_) {
    if (flow->lane == lane) continue;
    lane = flow->lane;
    lane->end.records_out.publish();
    step("send.published");
  }
  ledger_.accept(first, first + targets_.size() - 1);
  step("send.accepted");
  port_.counters().records_out += targets_.size();
  port_.heard_of(lane);
  lane = nullptr;
  for (const FlowOut* flow : targets_) {
    if (flow->lane != lane) flow->lane->peer.ring(flow->lane->number);
    lane = flow->lane;
  }
}

}  // namespace fabric
