// Which flow a message takes: the built-in policies, the pattern's own way, and what a policy in Python has decided.
#include <algorithm>

#include "core/clock.hpp"
#include "core/sender.hpp"

namespace fabric {

// ------------------------------------------------------------------ choosing
// Flows of one lane stand side by side: a broadcast writes and publishes lane by lane.
void SenderCore::add_flow(FlowOut* flow) {
  auto at = std::find_if(flows_.rbegin(), flows_.rend(), [flow](const FlowOut* other) { return other->lane == flow->lane; });
  if (const auto row = table_.find(flow->target_endpoint); row != table_.end()) flow->row = row->second;
  flows_.insert(pattern_ == Pattern::broadcast && at != flows_.rend() ? at.base() : flows_.end(), flow);
  redeliver();
}

FlowOut* SenderCore::find(u64 flow) const {
  for (FlowOut* candidate : flows_) {
    if (candidate->id == flow) return candidate;
  }
  return nullptr;
}

Full SenderCore::room(FlowOut& flow, u64 bytes) const {
  if (flow.lane->broken) return Full::broken;
  if (flow.suspect && pattern_ != Pattern::reply) return Full::suspect;  // a reply's room was reserved by its request
  if (!flow.after.empty()) {
    // One that is not closed (yet) holds nothing back: its keys are still its own, and one that came together with this
    // flow stays open beside it, always busy perhaps.
    bool drains = false;
    std::erase_if(flow.after, [&](u64 id) {
      const FlowOut* older = find(id);
      if (older != nullptr && older->closed) drains = drains || older->outstanding != 0;
      return older == nullptr || (older->closed && older->outstanding == 0);
    });
    if (drains) return Full::drain;
  }
  if (flow.sequences.span(flow.last_seq) >= kFlowSpanMax) return Full::span;
  return flow.credit.allows(bytes, flow.outstanding) ? Full::none : Full::credit;
}

Full SenderCore::choose(const Asked& asked, FlowOut*& out) {
  if (asked.flow != 0) {
    out = find(asked.flow);
    if (out == nullptr || out->closed) return Full::flow_gone;
  } else if (asked.asks && (fallback_until_ns_ == 0 || monotonic_ns() >= fallback_until_ns_)) {
    const Full full = decided(asked.has_key, asked.key_hash, out);
    if (full != Full::none) return full;
  } else if (pattern_ == Pattern::stream) {
    const Full full = choose_stream(asked.has_key, asked.key_hash, out);
    if (full != Full::none) return full;
  } else if (route_.kind() != RouteKind::none) {
    return choose_routed(asked.has_key ? asked.key_hash : 0, asked.bytes, out);
  } else {
    return choose_queue(asked.bytes, out);
  }
  return room(*out, asked.bytes);
}

// A key stays on its flow while the flow lives, and until what it carries has ended: while targets change, a flow
// beside the closed one may be open already. Messages without a key all go to one flow.
Full SenderCore::choose_stream(bool has_key, u64 key_hash, FlowOut*& out) {
  u64* pinned = &keyless_flow_;
  if (has_key) {
    if (pins_.size() >= kPinsPerSenderMax && pins_.find(key_hash) == pins_.end()) trim_pins();
    Pin& pin = pins_[key_hash];
    pin.used = ++uses_;
    pinned = &pin.flow;
  }
  if (*pinned != 0) {
    out = find(*pinned);
    if (out != nullptr && !out->closed) return Full::none;
    if (out != nullptr && out->outstanding != 0) return Full::drain;
  }
  if (const Full full = choose_new(has_key, key_hash, out); full != Full::none) return full;
  *pinned = out->id;
  return Full::none;
}

// The flow of a key that has none: what the policy says, else by hash. Those that are suspect get no new key.
Full SenderCore::choose_new(bool has_key, u64 key_hash, FlowOut*& out) {
  candidates_.clear();
  u64 now = 0;                        // looked up where it matters
  bool any = false;
  for (FlowOut* flow : flows_) {
    if (flow->closed) continue;
    if (!any) out = flow;
    any = true;
    if (flow->suspect) continue;
    look_again(*flow, now);
    candidates_.push_back(flow);
  }
  if (candidates_.empty()) return any ? Full::suspect : Full::consumer;
  if (route_.kind() != RouteKind::none) out = pick(has_key ? key_hash : 0);
  else out = static_cast<FlowOut*>(candidates_[has_key ? key_hash % candidates_.size() : 0]);
  return Full::none;
}

FlowOut* SenderCore::pick(u64 key_hash) {
  return static_cast<FlowOut*>(candidates_[route_.choose(candidates_, key_hash)]);
}

// A built-in policy, for every message of a queue: among the targets with room, or the one that it insists on.
Full SenderCore::choose_routed(u64 key_hash, u64 bytes, FlowOut*& out) {
  candidates_.clear();
  u64 now = 0;                        // looked up where it matters
  Full why = Full::consumer;
  for (FlowOut* flow : flows_) {
    if (flow->closed) continue;
    const Full full = room(*flow, bytes);
    if (full != Full::none) {
      why = full;
      out = flow;
      if (!route_.is_strict() || full == Full::broken || full == Full::suspect) continue;
    }
    look_again(*flow, now);
    candidates_.push_back(flow);
  }
  if (candidates_.empty()) return why;
  out = pick(key_hash);
  return route_.is_strict() ? room(*out, bytes) : Full::none;
}

// An estimate that nothing confirmed for a while gives way to a new one.
void SenderCore::look_again(FlowOut& flow, u64& now_ns) {
  if (!route_.measures() || flow.outstanding != 0) return;
  if (now_ns == 0) now_ns = monotonic_ns();
  flow.service.begin(now_ns);
  if (!flow.service.is_stale(now_ns)) return;
  flow.service.forget();
  flow.service_ns = 0;
}

// Where a policy that was asked before sends this key; `undecided`: it has to be asked.
Full SenderCore::decided(bool has_key, u64 key_hash, FlowOut*& out) {
  const Decided* known = &keyless_decided_;
  if (has_key) {
    const auto found = decided_.find(key_hash);
    if (found == decided_.end()) return Full::undecided;
    known = &found->second;
  }
  if (known->flow == 0 || known->until_ns <= monotonic_ns()) return Full::undecided;
  out = find(known->flow);
  if (out == nullptr || out->closed || out->suspect) return Full::undecided;
  pin_hits_.store(pin_hits() + 1, std::memory_order_relaxed);
  return Full::none;
}

// ------------------------------------------------------------------ the policy
Status SenderCore::set_route(RouteKind kind, const RouteOptions& options) {
  Operation operation(port_);
  if (!operation.ok()) return operation.status();
  route_ = RouteKernel(kind, options);
  decided_.clear();
  keyless_decided_ = {};
  fallback_until_ns_ = 0;
  for (FlowOut* flow : flows_) flow->turn = 0.0;
  return Status::success();
}

Status SenderCore::fall_back(RouteKind kind, u64 until_ns) {
  Operation operation(port_);
  if (!operation.ok()) return operation.status();
  if (route_.kind() != kind) route_ = RouteKernel(kind, {});
  fallback_until_ns_ = until_ns;
  return Status::success();
}

Status SenderCore::set_target(u64 endpoint, const RouteRow& row) {
  Operation operation(port_);
  if (!operation.ok()) return operation.status();
  if (table_.size() >= kFlowsInPerPortMax && table_.find(endpoint) == table_.end()) {
    std::erase_if(table_, [this](const auto& item) {
      return std::none_of(flows_.begin(), flows_.end(), [&](const FlowOut* flow) { return flow->target_endpoint == item.first; });
    });
  }
  table_[endpoint] = row;
  for (FlowOut* flow : flows_) {
    if (flow->target_endpoint == endpoint) flow->row = row;
  }
  return Status::success();
}

Status SenderCore::pin(std::span<const u8> key, bool has_key, u64 flow, u64 until_ns) {
  Operation operation(port_);
  if (!operation.ok()) return operation.status();
  if (!has_key) {
    keyless_decided_ = {flow, until_ns};
    return Status::success();
  }
  if (decided_.size() >= kPinsPerSenderMax) {
    const u64 now = monotonic_ns();
    std::erase_if(decided_, [now](const auto& item) { return item.second.until_ns <= now; });
    if (decided_.size() >= kPinsPerSenderMax) decided_.clear();  // what is forgotten is asked again
  }
  decided_[hash_key(key)] = {flow, until_ns};
  return Status::success();
}

Status SenderCore::decide(std::span<const u8> key, bool has_key, u64& flow) {
  Operation operation(port_);
  if (!operation.ok()) return operation.status();
  port_.progress_locked();
  FlowOut* out = nullptr;
  flow = choose_routed(has_key ? hash_key(key) : 0, 0, out) == Full::none ? out->id : 0;
  return Status::success();
}

// ------------------------------------------------------------------ without one
// Least outstanding among those with room; round robin on ties.
Full SenderCore::choose_queue(u64 bytes, FlowOut*& out) {
  FlowOut* best = nullptr;
  Full why = Full::consumer;
  for (std::size_t i = 0; i < flows_.size(); ++i) {
    FlowOut* flow = flows_[(next_flow_ + i) % flows_.size()];
    if (flow->closed) continue;
    const Full full = room(*flow, bytes);
    if (full != Full::none) {
      why = full;
      out = flow;
    } else if (best == nullptr || flow->outstanding < best->outstanding) {
      best = flow;
    }
  }
  if (best == nullptr) return why;
  out = best;
  next_flow_ = (static_cast<std::size_t>(std::find(flows_.begin(), flows_.end(), best) - flows_.begin()) + 1) % flows_.size();
  return Full::none;
}

// Keeps the younger half: a key forgotten while its flow lives may move to another.
void SenderCore::trim_pins() {
  const u64 keep_after = uses_ > kPinsPerSenderMax / 2 ? uses_ - kPinsPerSenderMax / 2 : 0;
  std::erase_if(pins_, [keep_after](const auto& item) { return item.second.used <= keep_after; });
}

}  // namespace fabric
