// Attachment: opening, lanes, segments, endpoints, closing.
#include "core/port.hpp"

#include <fcntl.h>

#include <algorithm>

#include "core/clock.hpp"
#include "core/receiver.hpp"
#include "core/sender.hpp"

namespace fabric {
namespace {

std::string text(u64 value) { return std::to_string(value); }

}  // namespace

// ------------------------------------------------------------------ operation
Operation::Operation(Port& port, bool may_park)
    : port_(port), lock_(port.mutex_, std::defer_lock), may_park_(may_park) {
  enter();
}

bool Operation::enter() {
  if (port_.forked()) {
    status_ = Status::fail(Code::closed, "the port was opened by another process: attach anew");
    return false;
  }
  lock_.lock();
  const u64 give_up = port_.state_ != nullptr && is_frozen(port_.state_->head) ? monotonic_ns() + kFreezeParkNsMax : 0;
  for (;;) {
    if (port_.closed()) {
      status_ = Status::fail(Code::closed, "port " + text(port_.number_) + " is closed");
      lock_.unlock();
      return false;
    }
    auto& busy = port_.state_->head.busy;
    busy.store(1, std::memory_order_seq_cst);  // Dekker: busy, fence, look at freeze
    if (!is_frozen(port_.state_->head)) {
      port_.auditor_gone_ = false;
      break;
    }
    if (port_.auditor_gone_) {
      port_.overrun_freeze();
      break;
    }
    busy.store(0, std::memory_order_release);
    if (!may_park_) {
      status_ = Status::fail(Code::frozen, {});
      lock_.unlock();
      return false;
    }
    const u64 until = give_up != 0 ? give_up : monotonic_ns() + kFreezeParkNsMax;
    lock_.unlock();
    park_while_frozen(port_.state_->head, until);
    lock_.lock();
    port_.auditor_gone_ = port_.auditor_gone_ || monotonic_ns() >= until;  // its cut is not worth a hang
  }
  if (!status_.ok()) status_ = {};
  inside_ = true;
  return true;
}

// An auditor that is slow and not gone sees the count change, and that its cut is none.
void Port::overrun_freeze() {
  ++counters_.freeze_overruns;
  state_->head.overruns.fetch_add(1, std::memory_order_seq_cst);
}

void Operation::leave() {
  if (!inside_) return;
  inside_ = false;
  port_.publish_returns();
  port_.state_->head.busy.store(0, std::memory_order_release);
  lock_.unlock();
}

void Operation::interrupt() {
  leave();
  status_ = Status::fail(Code::interrupted, {});
}

// ------------------------------------------------------------------ opening and closing
Status Port::attach(int state_fd, int doorbell_fd, int event_fd) {
  Status status = Mapping::map(state_fd, sizeof(StateLayout), true, state_mapping_);
  if (!status.ok()) return status;
  state_mapping_.keep_from_children();
  state_ = state_mapping_.as<StateLayout>();
  if (state_->head.magic != kStateMagic || state_->head.version != 1 || state_->head.port != number_ ||
      state_->head.incarnation != incarnation_) {
    return Status::fail(Code::protocol, "state segment belongs to another port");
  }
  status = doorbell_.attach(doorbell_fd, event_fd);
  if (!status.ok()) return status;
  const int flags = ::fcntl(doorbell_.event_fd(), F_GETFL);
  ::fcntl(doorbell_.event_fd(), F_SETFL, flags | O_NONBLOCK);
  doorbell_.cancel();
  held_.attach(state_);
  state_->head.heartbeat_ns.store(monotonic_ns(), std::memory_order_release);
  return status;
}

Status Port::open(u64 port, u64 incarnation, int state_fd, int doorbell_fd, int event_fd, bool adopt,
                  bool service_thread, std::shared_ptr<Port>& out) {
  if (adopt) return Status::fail(Code::invalid, "a port cannot adopt another's state: use Adopter");
  std::shared_ptr<Port> opened(new Port);
  opened->number_ = port;
  opened->incarnation_ = incarnation;
  Status status = opened->attach(state_fd, doorbell_fd, event_fd);
  if (!status.ok()) {
    opened->closed_ = true;
    return status;
  }
  register_port(opened.get());
  if (service_thread) opened->start_service();
  out = std::move(opened);
  return status;
}

Port::~Port() {
  close();
  for (MessageCore* message : early_messages_) MessagePool::destroy(message);
  for (MessageCore* message : collected_) MessagePool::destroy(message);
  unregister_port(this);
  if (!forked()) return;
  state_mapping_.forget();  // MADV_DONTFORK: these addresses are not ours in the child
  doorbell_.forget();
  for (auto& [number, lane] : lanes_) {
    lane->end.mapping().forget();
    lane->peer.forget();
  }
}

void Port::close() {
  if (forked()) return;
  if (!closed()) {
    Operation operation(*this);
    if (operation.ok()) {
      progress_locked();
      flush_wakes();
      closed_.store(true, std::memory_order_relaxed);
      notify_waiters();
      if (!leader_asleep_) doorbell_.cancel();
    }
  }
  stop_service();
}

// ------------------------------------------------------------------ lanes and segments
LaneLink* Port::find_lane(u32 lane) {
  auto it = lanes_.find(lane);
  return it == lanes_.end() ? nullptr : it->second.get();
}

Status Port::add_lane(u32 lane, int pair_fd, int side, u32 klass, u64 peer_port, u64 peer_incarnation,
                      int peer_doorbell_fd, int peer_event_fd) {
  auto link = std::make_unique<LaneLink>();
  link->number = lane;
  link->klass = klass;
  link->peer_port = peer_port;
  link->peer_incarnation = peer_incarnation;
  Status status = link->end.attach(pair_fd, side);
  if (status.ok()) status = link->peer.attach(peer_doorbell_fd, peer_event_fd);
  if (!status.ok()) return status;
  link->end.mapping().keep_from_children();
  const LaneHead& head = link->end.head();
  if (head.port[side] != number_ || head.port[1 - side] != peer_port ||
      head.incarnation[side] != incarnation_ || head.incarnation[1 - side] != peer_incarnation) {
    return Status::fail(Code::protocol, "lane " + text(lane) + " joins other ports or incarnations");
  }
  Operation operation(*this);
  if (!operation.ok()) return operation.status();
  if (find_lane(lane) != nullptr) return Status::success();
  if (lanes_.size() >= kLanesPerPortMax) {
    return Status::fail(Code::capacity, "a port has at most " + text(kLanesPerPortMax) + " lanes");
  }
  LaneLink*& first = lanes_by_bit_[lane % kLanesPerPortMax];
  link->next_same_bit = first;
  first = link.get();
  lanes_.emplace(lane, std::move(link));
  return Status::success();
}

Status Port::remove_lane(u32 lane) {
  Operation operation(*this);
  if (!operation.ok()) return operation.status();
  LaneLink* link = find_lane(lane);
  if (link == nullptr) return Status::success();
  progress_lane(*link);
  publish_returns();
  for (auto& [id, flow] : flows_out_) {
    if (flow->lane == link) {
      return Status::fail(Code::invalid, "lane " + text(lane) + " still carries flow " + text(id));
    }
  }
  for (auto& [id, flow] : flows_in_) {
    if (flow->lane == link) flow->lane = nullptr;
  }
  std::erase_if(late_views_, [&](const auto& late) {
    if (late.second == lane) arena_.drop_readers_of(late.first);
    return late.second == lane;
  });
  for (auto& owed : link->backlog) {
    if (owed.held != kNotHeld && owed.free_held) held_.free(owed.held);
  }
  std::erase(owing_, link);
  LaneLink** at = &lanes_by_bit_[lane % kLanesPerPortMax];
  while (*at != link) at = &(*at)->next_same_bit;
  *at = link->next_same_bit;
  if (last_lane_ != nullptr && last_lane_->number == lane) last_lane_ = nullptr;
  lanes_.erase(lane);
  settle_closing_flows();
  return Status::success();
}

Status Port::add_segment(u32 segment, int fd, bool writable, u32 group) {
  Operation operation(*this);
  if (!operation.ok()) return operation.status();
  Status status;
  if (writable) {
    status = arena_.add(segment, fd, group);
  } else {
    std::shared_ptr<Segment> opened;
    status = Segment::open(segment, fd, false, opened);
    if (status.ok()) readers_[segment] = std::move(opened);
  }
  notify_waiters();
  return status;
}

std::shared_ptr<Segment> Port::find_reader(u32 segment) {
  std::lock_guard lock(mutex_);
  auto it = readers_.find(segment);
  if (it == readers_.end()) return nullptr;
  it->second->touched.store(true, std::memory_order_relaxed);
  return it->second;
}

Status Port::drop_segment(u32 segment) {
  Operation operation(*this);
  if (!operation.ok()) return operation.status();
  readers_.erase(segment);
  return arena_.drop(segment);
}

Status Port::idle_segments(std::vector<u32>& out) {
  Operation operation(*this);
  if (!operation.ok()) return operation.status();
  progress_locked();
  out = arena_.idle();
  return Status::success();
}

// ------------------------------------------------------------------ endpoints
Status Port::open_sender(u64 endpoint, u32 channel, u32 type, Pattern pattern, Delivery delivery, u8 klass,
                         Overflow overflow, std::shared_ptr<SenderCore>& out) {
  std::vector<EarlyOut> early;
  {
    Operation operation(*this);
    if (!operation.ok()) return operation.status();
    if (endpoint == 0 || senders_.count(endpoint) != 0) {
      return Status::fail(Code::invalid, "endpoint " + text(endpoint) + " is open already");
    }
    const bool drops = overflow == Overflow::drop_oldest || overflow == Overflow::drop_newest;
    if (delivery == Delivery::at_least_once && (pattern == Pattern::broadcast || drops)) {
      return Status::fail(Code::invalid, "broadcast and drop_* go with at_most_once only");
    }
    SenderLedger* row = nullptr;
    for (SenderLedger& candidate : state_->ledger) {
      if (candidate.endpoint == 0) {
        row = &candidate;
        break;
      }
    }
    if (row == nullptr) {
      return Status::fail(Code::capacity, "a port has at most " + text(kEndpointsPerPortMax) + " senders");
    }
    out = std::make_shared<SenderCore>(*this, endpoint, channel, type, pattern, delivery, klass, overflow, row);
    senders_.emplace(endpoint, out);
    std::erase_if(early_out_, [&](const EarlyOut& flow) {
      if (flow.endpoint == endpoint) early.push_back(flow);
      return flow.endpoint == endpoint;
    });
  }
  for (const EarlyOut& flow : early) {
    Status status = add_flow_out(flow.endpoint, flow.flow, flow.lane, flow.target, flow.messages, flow.bytes,
                                 flow.generation, flow.after_drain);
    if (status.ok() && flow.suspect) status = suspect_flow(flow.flow, true);
    if (!status.ok()) return status;
  }
  return Status::success();
}

Status Port::forget_sender(u64 endpoint) {
  Operation operation(*this);
  if (!operation.ok()) return operation.status();
  auto it = senders_.find(endpoint);
  if (it == senders_.end()) return Status::success();
  progress_locked();
  if (!it->second->is_closed() || !it->second->idle()) {
    return Status::fail(Code::invalid, "endpoint " + text(endpoint) + " is open or has messages outstanding");
  }
  const std::vector<FlowOut*> flows = it->second->open_flows();
  for (const FlowOut* flow : flows) remove_flow_out(flow->id);
  std::erase(stuck_, it->second.get());
  it->second->retire();               // a Python sender may still hold it
  senders_.erase(it);
  forgotten_.push_back(endpoint);
  if (forgotten_.size() > kFlowsInPerPortMax) forgotten_.pop_front();
  return Status::success();
}

Status Port::open_receiver(u64 endpoint, u32 channel, u32 type, Pattern pattern, Delivery delivery, Overflow overflow,
                           std::shared_ptr<ReceiverCore>& out) {
  Operation operation(*this);
  if (!operation.ok()) return operation.status();
  if (endpoint == 0 || receivers_.count(endpoint) != 0) {
    return Status::fail(Code::invalid, "endpoint " + text(endpoint) + " is open already");
  }
  out = std::make_shared<ReceiverCore>(*this, endpoint, channel, type, pattern, delivery, overflow);
  receivers_.emplace(endpoint, out);
  if (out->drops_oldest() && ++prompt_ == 1) kick_service();
  if (auto early = early_in_.find(endpoint); early != early_in_.end()) {
    for (const auto& flow : early->second) {
      flow->receiver = out.get();
      flow->row->channel = channel;
      out->add_flow(flow.get());
    }
    std::erase_if(early_messages_, [&](MessageCore* message) {
      if (message->flow->receiver != out.get()) return false;
      out->push(message);
      return true;
    });
    early_in_.erase(early);
  }
  return Status::success();
}

void Port::retire_receiver(u64 endpoint, Refusal how) {
  auto it = receivers_.find(endpoint);
  if (it != receivers_.end() && it->second->drops_oldest()) --prompt_;
  receivers_.erase(endpoint);
  closed_ends_.push_back({endpoint, how});
  if (closed_ends_.size() > kFlowsInPerPortMax) closed_ends_.pop_front();
}

void Port::drop_early_messages(const FlowInState& flow) {
  std::erase_if(early_messages_, [&](MessageCore* message) {
    if (message->flow.get() != &flow) return false;
    refuse_message(message, Refusal::end);
    return true;
  });
}

Status Port::stats(PortStats& out) {
  Operation operation(*this);
  if (!operation.ok()) return operation.status();
  out = counters_;
  out.lanes = lanes_.size();
  out.flows_in = flows_in_.size();
  out.flows_out = flows_out_.size();
  out.receivers = receivers_.size();
  out.held = held_.used();
  out.slots_taken = arena_.taken_slots();
  out.segments = arena_.segment_count();
  out.readers = readers_.size();
  return Status::success();
}

Status Port::views(std::vector<HeldView>& out) {
  Operation operation(*this);
  if (!operation.ok()) return operation.status();
  held_.each_view([&out](const HeldEntry& entry) {
    out.push_back({entry.flow, entry.flow_seq, entry.since_ns, entry.payload_bytes, entry.channel});
  });
  return Status::success();
}

Status Port::broken_lanes(std::vector<BrokenLane>& out) {
  Operation operation(*this);
  if (!operation.ok()) return operation.status();
  for (const auto& [number, lane] : lanes_) {
    if (lane->broken) out.push_back({number, lane->fault});
  }
  return Status::success();
}

Status Port::inject(const std::string& fault, u64 count) {
  Operation operation(*this);
  return operation.ok() ? faults_.inject(fault, count) : operation.status();
}

}  // namespace fabric
