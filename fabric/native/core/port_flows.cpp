// The flows of a port, outgoing and incoming: how they come, change and go.
#include <algorithm>

#include "core/port.hpp"
#include "core/receiver.hpp"
#include "core/sender.hpp"

namespace fabric {
namespace {

std::string text(u64 value) { return std::to_string(value); }

}  // namespace

// ------------------------------------------------------------------ outgoing
Status Port::add_flow_out(u64 endpoint, u64 flow, u32 lane, u64 target_endpoint, u64 messages, u64 bytes,
                          u32 generation, bool after_drain) {
  Operation operation(*this);
  if (!operation.ok()) return operation.status();
  if (flows_out_.count(flow) != 0) return Status::success();
  LaneLink* link = find_lane(lane);
  if (link == nullptr) return Status::fail(Code::invalid, "flow " + text(flow) + ": no lane " + text(lane));
  auto sender = senders_.find(endpoint);
  if (sender == senders_.end()) {
    if (std::find(forgotten_.begin(), forgotten_.end(), endpoint) != forgotten_.end()) return Status::success();
    if (early_out_.size() >= kFlowsInPerPortMax) {
      return Status::fail(Code::capacity, "too many flows for endpoints that are not open");
    }
    early_out_.push_back({endpoint, flow, lane, target_endpoint, messages, bytes, generation, after_drain, false});
    return Status::success();
  }
  auto added = std::make_unique<FlowOut>();
  added->id = flow;
  added->target_endpoint = target_endpoint;
  added->lane = link;
  added->sender = sender->second.get();
  added->generation = generation;
  added->credit = CreditOut(messages, bytes);
  if (after_drain) {
    for (const FlowOut* older : added->sender->open_flows()) added->after.push_back(older->id);
  }
  FlowOut* raw = added.get();
  flows_out_.emplace(flow, std::move(added));
  raw->sender->add_flow(raw);
  notify_waiters();
  return Status::success();
}

Status Port::close_flow_out(u64 flow) {
  Operation operation(*this);
  if (!operation.ok()) return operation.status();
  std::erase_if(early_out_, [flow](const EarlyOut& early) { return early.flow == flow; });
  auto it = flows_out_.find(flow);
  if (it == flows_out_.end()) return Status::success();
  it->second->closed = true;
  progress_locked();
  if (auto still = flows_out_.find(flow); still != flows_out_.end() && still->second->outstanding == 0) {
    remove_flow_out(flow);
  }
  notify_waiters();
  return Status::success();
}

void Port::remove_flow_out(u64 flow) {
  auto it = flows_out_.find(flow);
  if (it == flows_out_.end()) return;
  it->second->sender->remove_flow(it->second.get());
  note_late_views(*it->second);
  flows_out_.erase(it);
}

// Only the lane that a flow was on may release what its reader still views.
void Port::note_late_views(const FlowOut& flow) {
  if (arena_.has_readers(flow.id)) late_views_[flow.id] = flow.lane->number;
}

Status Port::lose_flow_out(u64 flow, u64 handed_upto, Reason reason, bool reader_lives) {
  Operation operation(*this);
  if (!operation.ok()) return operation.status();
  std::erase_if(early_out_, [flow](const EarlyOut& early) { return early.flow == flow; });
  progress_locked(true);  // ends that are still on their way count first
  auto it = flows_out_.find(flow);
  if (!reader_lives && reason != Reason::closed) {
    arena_.drop_readers_of(flow);
    late_views_.erase(flow);
  }
  if (it == flows_out_.end()) return Status::success();
  std::unique_ptr<FlowOut> lost = std::move(it->second);
  flows_out_.erase(it);
  lost->sender->lose_flow(lost.get(), handed_upto, reason);
  note_late_views(*lost);
  notify_waiters();
  return Status::success();
}

Status Port::suspect_flow(u64 flow, bool suspect) {
  Operation operation(*this);
  if (!operation.ok()) return operation.status();
  for (EarlyOut& early : early_out_) {
    if (early.flow == flow) early.suspect = suspect;
  }
  auto it = flows_out_.find(flow);
  if (it == flows_out_.end()) return Status::success();
  it->second->suspect = suspect;
  if (!suspect) it->second->sender->redeliver();
  notify_waiters();
  return Status::success();
}

// ------------------------------------------------------------------ incoming
FlowIn* Port::free_flow_row() {
  for (FlowIn& row : state_->flows) {
    if (row.flow.load(std::memory_order_relaxed) == 0) return &row;
  }
  return nullptr;
}

Status Port::add_flow_in(u64 endpoint, u64 flow, u32 lane, u64 producer_port, u64 messages, u64 bytes) {
  Operation operation(*this);
  if (!operation.ok()) return operation.status();
  if (flow == 0 || flows_in_.count(flow) != 0) return Status::success();
  LaneLink* link = find_lane(lane);
  if (link == nullptr) return Status::fail(Code::invalid, "flow " + text(flow) + ": no lane " + text(lane));
  FlowIn* row = free_flow_row();
  if (row == nullptr) {
    return Status::fail(Code::capacity, "a port has at most " + text(kFlowsInPerPortMax) + " incoming flows");
  }
  const FlowRef added(new FlowInState);
  added->id = flow;
  added->producer_port = producer_port;
  added->row = row;
  added->lane = link;
  added->credit = CreditIn(messages, bytes);
  row->endpoint = endpoint;
  row->channel = 0;
  row->lane = lane;
  row->drained = row->handed = row->ended_upto = row->returned = 0;
  for (auto& count : row->reported) count = 0;
  row->payload_bytes = 0;
  row->flow.store(flow, std::memory_order_release);
  flows_in_.emplace(flow, added);
  auto receiver = receivers_.find(endpoint);
  const auto closed = std::find_if(closed_ends_.begin(), closed_ends_.end(),
                                   [endpoint](const ClosedEnd& end) { return end.endpoint == endpoint; });
  if (closed != closed_ends_.end()) {
    added->refusal = closed->refusal;
  } else if (receiver == receivers_.end()) {
    early_in_[endpoint].push_back(added);
  } else {
    added->receiver = receiver->second.get();
    row->channel = added->receiver->channel_;
    added->receiver->add_flow(added.get());
  }
  return Status::success();
}

Status Port::close_flow_in(u64 flow, bool drain) {
  Operation operation(*this);
  if (!operation.ok()) return operation.status();
  auto it = flows_in_.find(flow);
  if (it == flows_in_.end()) return Status::success();
  FlowRef state = it->second;
  if (state->lane != nullptr) progress_lane(*state->lane);
  if (!drain && state->receiver != nullptr) state->receiver->drop_queue(state.get(), Refusal::end);
  if (!drain && state->receiver == nullptr) drop_early_messages(*state);
  state->closing = true;
  closing_.push_back(flow);
  settle_closing_flows();
  notify_waiters();
  return Status::success();
}

void Port::settle_closing_flows() {
  std::erase_if(closing_, [this](u64 flow) {
    auto it = flows_in_.find(flow);
    if (it == flows_in_.end()) return true;
    FlowInState& state = *it->second;
    LaneLink* lane = state.lane;
    const bool more = lane != nullptr && !lane->broken && lane->end.records_in.read_cursor() != lane->end.records_in.head();
    if (state.live != state.abandoned.size() || more) return false;
    for (const u32 held : state.abandoned) held_.free(held);
    forget_flow_in(state);
    return true;
  });
}

void Port::forget_flow_in(FlowInState& flow) {
  if (flow.receiver != nullptr) flow.receiver->remove_flow(&flow);
  if (auto early = early_in_.find(flow.row->endpoint); early != early_in_.end()) {
    std::erase_if(early->second, [&](const auto& waiting) { return waiting.get() == &flow; });
    if (early->second.empty()) early_in_.erase(early);
  }
  flow.gone = true;
  if (flow.lane != nullptr && flow.lane->last_in != nullptr && flow.lane->last_in->get() == &flow) {
    flow.lane->last_in = nullptr;
  }
  flow.row->flow.store(0, std::memory_order_release);
  flow.row = nullptr;
  flows_in_.erase(flow.id);
}

}  // namespace fabric
