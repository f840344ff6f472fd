// The engine's public calls: configuration from the control plane's thread, under the engine's lock.
#include <unistd.h>

#include <cstring>

#include "core/clock.hpp"
#include "engine/access.hpp"
#include "links/inproc_link.hpp"
#include "links/tcp_link.hpp"

namespace fabric {

std::vector<EngineEvent> Engine::take_events() {
  Access access(*this);
  u64 value;
  [[maybe_unused]] auto got = ::read(events_fd_.get(), &value, sizeof value);
  std::vector<EngineEvent> out;
  out.swap(events_);
  return out;
}

Status Engine::add_lane(const LaneOptions& options) {
  auto lane = std::make_unique<EngineLane>();
  lane->number = options.number;
  lane->klass = options.klass;
  lane->side = options.side;
  lane->peer_port = options.peer_port;
  lane->peer_incarnation = options.peer_incarnation;
  lane->tenant = options.tenant;
  if (options.klass > u32(Class::bulk)) return Status::fail(Code::invalid, "lane class out of range");
  Status status = lane->end.attach(options.pair_fd, options.side);
  if (status.ok()) status = lane->ringer.attach(options.peer_doorbell_fd, options.peer_event_fd);
  if (!status.ok()) return status;
  Access access(*this, true);
  if (lanes_.count(options.number) != 0) return Status::fail(Code::invalid, "lane number is in use");
  if (!thread_.joinable()) find_former(*lane);
  lanes_by_bit_[options.number % kLanesPerPortMax].push_back(lane.get());
  lanes_[options.number] = std::move(lane);
  return Status::success();
}

void Engine::remove_lane(u32 number) {
  Access access(*this, true);
  const auto found = lanes_.find(number);
  if (found == lanes_.end()) return;
  EngineLane& lane = *found->second;
  for (auto it = flows_out_.begin(); it != flows_out_.end();) {
    if (it->second.lane != &lane) { ++it; continue; }
    for (Outgoing* entry : it->second.unacked) {
      if (entry->timed) timers_.erase({entry->deadline_ns, entry});
      drop_out_transfer(*entry);
    }
    it = flows_out_.erase(it);
  }
  for (auto it = flows_in_.begin(); it != flows_in_.end();) {
    if (it->second.lane != &lane) { ++it; continue; }
    for (Incoming& entry : it->second.pending) forget_transfer(entry);
    it = flows_in_.erase(it);
  }
  // The reader is gone with its lane: every slot it held is free again.
  for (u64 flow : lane.flows_seen) arena_.drop_readers_of(flow);
  for (const HeldReturn& held : lane.return_backlog) acknowledge_report(held.session, held.number);
  for (auto& [id, session] : sessions_)
    for (Report& report : session->reports)
      if (report.lane == number) report.lane = kNoLane;  // the number may come again
  std::erase(lanes_by_bit_[number % kLanesPerPortMax], &lane);
  lanes_.erase(found);
  slots_changed();
}

Status Engine::add_segment(u32 segment, int fd, bool writable) {
  Access access(*this, true);
  if (writable) {
    const Status status = arena_.add(segment, fd);
    if (!status.ok()) return status;
    grow_asked_.clear();
    slots_changed();
    return status;
  }
  std::shared_ptr<Segment> mapped;
  const Status status = Segment::open(segment, fd, false, mapped);
  if (!status.ok()) return status;
  segments_[segment] = std::move(mapped);
  const auto waiters = segment_waiters_.find(segment);
  if (waiters == segment_waiters_.end()) return status;
  for (const auto& [session_id, transfer] : waiters->second) {
    Session* session = find_session(session_id);
    if (session == nullptr) continue;
    const auto found = session->out_transfers.find(transfer);
    if (found != session->out_transfers.end()) queue_bulk(*session, found->second);
  }
  segment_waiters_.erase(waiters);
  return status;
}

std::vector<u32> Engine::idle_segments() {
  Access access(*this, true);
  return arena_.idle();
}

Status Engine::drop_segment(u32 segment) {
  Access access(*this, true);
  segments_.erase(segment);  // chunks on their way keep their mapping
  gone_due_.push_back(segment);
  return arena_.owns(segment) ? arena_.drop(segment) : Status::success();
}

void Engine::ask_again() {
  Access access(*this, true);
  grow_asked_.clear();
  slots_changed();
}

u32 Engine::reclaim(u32 segment, const std::vector<Holder>& holders) {
  Access access(*this, true);
  const std::shared_ptr<Segment> own = arena_.find(segment);
  if (own == nullptr) return 0;
  std::set<u32> used;
  const auto keep = [&](const Holder& holder) {
    if (!arena_.valid({segment, holder.slot, holder.generation})) return;
    if (used.insert(holder.slot).second) arena_.hold_reader({segment, holder.slot, holder.generation}, holder.flow);
    if (const auto lane = lanes_.find(holder.lane); lane != lanes_.end()) lane->second->flows_seen.insert(holder.flow);
  };
  for (const Holder& holder : holders) keep(holder);
  for (const auto& [number, holder] : former_)
    if (number == segment) keep(holder);
  for (const auto& [id, flow] : flows_in_)
    for (const Incoming& entry : flow.pending)
      if (entry.transfer != nullptr && entry.transfer->slot.segment == segment) used.insert(entry.transfer->slot.slot);
  u32 freed = 0;
  for (u32 slot = 0; slot < own->slot_count(); ++slot) {
    const u32 generation = own->generation(slot);
    if (generation % 2 == 0 || used.count(slot) != 0) continue;
    arena_.free({segment, slot, generation});
    ++freed;
  }
  return freed;
}

Status Engine::open_session(u64 session, u32 peer_node, u64 peer_incarnation) {
  Access access(*this, true);
  if (session == 0 || sessions_.count(session) != 0) return Status::fail(Code::invalid, "session exists or is 0");
  auto opened = std::make_unique<Session>();
  opened->id = session;
  opened->peer_node = peer_node;
  opened->peer_incarnation = peer_incarnation;
  sessions_[session] = std::move(opened);
  return Status::success();
}

Status Engine::add_connection(u64 session, int fd, u32 group, u32 features) {
  std::unique_ptr<Link> link = std::make_unique<TcpLink>(
      fd, session, kind_of(group) == 1 ? kTcpNotSentLowatBulkBytes : kTcpNotSentLowatBytes);
  Access access(*this, true);
  return attach_link(session, std::move(link), group, features & wire::kFeaturesKnown);
}

Status Engine::add_inproc(u64 session, u64 link_id, u32 group) {
  std::unique_ptr<Link> link = inproc_take(link_id, session);
  if (link == nullptr) return Status::fail(Code::invalid, "no such inproc link");
  Access access(*this, true);
  return attach_link(session, std::move(link), group);
}

Status Engine::add_link(u64 session, std::unique_ptr<Link> link, u32 group, u32 features) {
  Access access(*this, true);
  return attach_link(session, std::move(link), group, features & wire::kFeaturesKnown);
}

void Engine::close_session(u64 id) {
  Access access(*this, true);
  Session* session = find_session(id);
  if (session == nullptr) return;
  for (u32 group = 0; group < kGroups; ++group) {
    Connection& connection = session->connection[group];
    if (connection.link == nullptr) continue;
    OutFrame goodbye;
    goodbye.header.type = u8(wire::FrameType::goodbye);
    post_frame(*session, group, std::move(goodbye));
    connection.reason = "session closed here";
    progress_link(*session, group, 0);
    tear_down(*session, group);
  }
  for (auto& [flow_id, flow] : flows_out_) {
    if (flow.session != id) continue;
    flow.next = 0;
    flow.blocked = flow.refused = false;
    for (Outgoing* entry : flow.unacked) {
      drop_out_transfer(*entry);
      if (!entry->sent) watch_deadline(*entry);
    }
  }
  for (auto& [flow_id, flow] : flows_in_)
    if (flow.session == id) truncate_incoming(flow);
  for (auto& [segment, waiters] : segment_waiters_)
    std::erase_if(waiters, [id](const auto& waiter) { return waiter.first == id; });
  std::erase_if(segment_waiters_, [](const auto& entry) { return entry.second.empty(); });
  std::erase_if(unknown_in_, [id](const auto& entry) { return entry.second == id; });
  for (auto& [flow_id, held] : orphan_returns_)
    std::erase_if(held, [id](const HeldReturn& entry) { return entry.session == id; });
  std::erase_if(orphan_returns_, [](const auto& entry) { return entry.second.empty(); });
  closed_.add(session->count);
  sessions_.erase(id);
}

Status Engine::add_forward(u64 flow_id, u32 lane, u64 session) {
  Access access(*this, true);
  const auto found = lanes_.find(lane);
  if (found == lanes_.end()) return Status::fail(Code::invalid, "no such lane");
  removed_flows_.erase(flow_id);
  Forward& flow = flow_out(flow_id);
  if (flow.lane != nullptr && flow.lane != found->second.get()) {  // what came over another lane is not this flow's
    blame(*flow.lane, "a record names a flow of another lane");
    mark_acknowledged(flow, ~u64{0});
    blocked_retry_ = true;  // the thread releases what is acknowledged
  }
  flow.lane = found->second.get();
  flow.kind = flow.lane->klass <= u32(Class::token) ? 0 : 1;
  if (flow.session != session) {  // a new peer: nothing of this flow was taken over by it
    flow.session = session;
    flow.next = 0;
    flow.blocked = flow.refused = false;
  }
  const auto orphans = orphan_returns_.find(flow_id);
  if (orphans != orphan_returns_.end()) {
    for (const HeldReturn& held : orphans->second) {
      if (held.session == session) flow.lane->return_backlog.push_back(held);
      else acknowledge_report(held.session, held.number);  // of a node that has no part in this flow
    }
    orphan_returns_.erase(orphans);
    blocked_retry_ = true;
  }
  pumps_due_.push_back(flow_id);
  return Status::success();
}

/// Of transfers that begin from now on.
Status Engine::weigh(u32 channel, u32 weight) {
  if (weight == 0 || weight > kChannelWeightMax)
    return Status::fail(Code::invalid, "a weight is 1 to " + std::to_string(kChannelWeightMax));
  Access access(*this);
  if (weight == 1) weights_.erase(channel);
  else weights_[channel] = weight;
  return Status::success();
}

Status Engine::add_deliver(u64 flow_id, u32 lane_number, u64 session_id, u64 published) {
  Access access(*this, true);
  const auto found = lanes_.find(lane_number);
  if (found == lanes_.end()) return Status::fail(Code::invalid, "no such lane");
  EngineLane& lane = *found->second;
  removed_flows_.erase(flow_id);
  Deliver& flow = flows_in_[flow_id];
  const bool rebound = flow.session != session_id;
  if (flow.id == 0) {  // what a killed engine left in the lane was taken over
    flow.last = flow.published = std::max(published, last_in_lane(lane, flow_id));
    flow.known = flow.published != 0;
  }
  flow.id = flow_id;
  flow.lane = &lane;
  flow.session = session_id;
  lane.flows_seen.insert(flow_id);
  if (rebound) rereads_due_.emplace_back(lane_number, flow_id);
  Session* session = find_session(session_id);
  if (unknown_in_.erase(flow_id) != 0 && session != nullptr) ask_resume(*session, flow);
  return Status::success();
}

void Engine::remove_flow(u64 flow_id) {
  Access access(*this, true);
  removals_.push_back(flow_id);
}

void Engine::apply_removals() {
  std::vector<u64> flows;
  flows.swap(removals_);
  for (u64 flow : flows) forget_flow(flow);
}

void Engine::forget_flow(u64 flow_id) {
  removed_flows_.insert(flow_id);
  removed_order_.push_back(flow_id);
  if (removed_order_.size() > kRemovedFlowsMax) {
    removed_flows_.erase(removed_order_.front());
    removed_order_.pop_front();
  }
  if (const auto out = flows_out_.find(flow_id); out != flows_out_.end()) {
    acknowledge(out->second, ~u64{0});
    flows_out_.erase(flow_id);
  }
  if (const auto orphans = orphan_returns_.find(flow_id); orphans != orphan_returns_.end()) {
    for (const HeldReturn& held : orphans->second) acknowledge_report(held.session, held.number);
    orphan_returns_.erase(orphans);
  }
  const auto in = flows_in_.find(flow_id);
  if (in == flows_in_.end()) {  // an earlier engine's, perhaps: what was read of it must not hold up what came behind
    for (auto& [number, lane] : lanes_) forget_readings(*lane, flow_id);
    return;
  }
  EngineLane* lane = in->second.lane;
  for (Incoming& entry : in->second.pending) forget_transfer(entry);
  flows_in_.erase(in);
  if (lane != nullptr) forget_reader(*lane, flow_id);
  if (lane != nullptr) forget_readings(*lane, flow_id);
  retry_slots();
}

/// Ends that a session still carries are acknowledged there; the rest goes nowhere any more.
void Engine::forget_readings(EngineLane& lane, u64 flow_id) {
  for (u64 i = 0; i < lane.readings.size(); ++i)
    if (lane.readings[i].entry.flow == flow_id && !reported(lane.number, lane.readings_base + i))
      lane.readings[i].done = true;
  pop_readings(lane);
}

bool Engine::reported(u32 lane, u64 reading) const {
  for (const auto& [id, session] : sessions_)
    for (const Report& report : session->reports)
      if (report.lane == lane && report.reading == reading) return true;
  return false;
}

u64 Engine::last_in_lane(EngineLane& lane, u64 flow) const {
  // Our own records between the reader's tail and our head.
  LaneDirection& direction = lane.end.layout()->direction[lane.side];
  RecordReader reader;
  reader.attach(&direction.records, lane.end.layout()->records[lane.side]);
  RecordSpan span;
  u64 last = 0;
  while (reader.peek(span) == Peek::item) {
    if (span.header.flow == flow) last = span.header.flow_seq;
    reader.advance(span);
  }
  return last;
}

/// Slots that records of a killed engine name: their reader has not taken them yet, or takes them just now.
void Engine::find_former(EngineLane& lane) {
  LaneDirection& direction = lane.end.layout()->direction[lane.side];
  RecordReader reader;
  reader.attach(&direction.records, lane.end.layout()->records[lane.side]);
  RecordSpan span;
  for (; reader.peek(span) == Peek::item; reader.advance(span)) {
    wire::RecordView view;
    if (!wire::view_record({span.bytes, span.header.total_len}, view)) continue;
    for (u32 i = 0; i < view.head.segment_count; ++i) {
      const SegmentEntry entry = wire::segment_at(view, i);
      former_.push_back({entry.segment, {entry.slot, entry.generation, view.head.flow, lane.number}});
    }
  }
}

bool Engine::drained(u32 number) {
  Access access(*this);
  const auto found = lanes_.find(number);
  if (found == lanes_.end()) return true;
  EngineLane& lane = *found->second;
  const RecordReader& records = lane.end.records_in;
  const ReturnReader& returns = lane.end.returns_in;
  return lane.outgoing.empty() && records.read_cursor() == records.head() && lane.return_backlog.empty() &&
         lane.readings.empty() && returns.tail() == returns.head();
}

void Engine::stop(u64 drain_ns) {
  if (!thread_.joinable()) return;
  const u64 deadline = monotonic_ns() + drain_ns;
  const auto quiet = [this] {
    std::lock_guard guard(lock_);
    for (auto& [id, session] : sessions_) {
      if (session->reports_sent < session->reports.size() || !session->ack_due.empty()) return false;
      for (const Connection& connection : session->connection)
        if (connection.link != nullptr && connection.link->backlog() > 0) return false;
    }
    return true;
  };
  while (monotonic_ns() < deadline && !quiet()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  stopping_.store(true, std::memory_order_release);
  kick();
  thread_.join();
}

}  // namespace fabric
