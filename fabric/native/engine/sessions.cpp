// Links of a session: frames in and out, acknowledgements, reports, loss and return of a connection.
#include <sys/epoll.h>

#include <cstring>

#include "core/clock.hpp"
#include "core/crc32c.hpp"
#include "engine/engine.hpp"
#include "links/inproc_link.hpp"
#include "links/tcp_link.hpp"

namespace fabric {

/// Hands a link's callbacks to the engine, for one connection and one progress call.
class SessionSink final : public Sink {
 public:
  SessionSink(Engine& engine, Session& session, u32 group)
      : engine_(engine), session_(session), group_(group), now_(monotonic_ns()) {}
  u8* place(const wire::FrameHeader& header) override {
    heard();
    return engine_.place_chunk(session_, header);
  }
  bool deliver(const wire::FrameHeader& header, const u8* body) override {
    heard();
    return engine_.on_frame(session_, group_, header, body);
  }
  void sent(u64) override {}
  void broken(const std::string& reason) override {
    session_.connection[group_].down = true;
    session_.connection[group_].reason = reason;
  }

 private:
  void heard() {
    session_.connection[group_].heard_ns = now_;
    session_.connection[group_].ping_ns = 0;
  }
  Engine& engine_;
  Session& session_;
  u32 group_;
  u64 now_;
};

Session* Engine::find_session(u64 id) {
  const auto found = sessions_.find(id);
  return found == sessions_.end() ? nullptr : found->second.get();
}

Status Engine::attach_link(u64 session_id, std::unique_ptr<Link> link, u32 group, u32 features) {
  Session* session = find_session(session_id);
  if (session == nullptr || group >= kGroups) return Status::fail(Code::invalid, "no such session or group");
  Connection& connection = session->connection[group];
  if (connection.link != nullptr) {
    connection.reason = "replaced";
    tear_down(*session, group);
  }
  link = wrapped(std::move(link));
  connection.tag = next_tag_++;
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = connection.tag;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, link->fd(), &event) != 0) return system_failure("epoll_ctl");
  connection.link = std::move(link);
  connection.features = features;
  connection.down = connection.write_armed = false;
  connection.more = true;
  connection.reason.clear();
  session->live |= 1u << group;
  tags_[connection.tag] = {session_id, group};
  connection_up(*session, group, monotonic_ns());
  return Status::success();
}

void Engine::connection_up(Session& session, u32 group, u64 now) {
  Connection& connection = session.connection[group];
  connection.heard_ns = connection.alive_ns = connection.acked_ns = now;
  connection.acked = connection.asked_ns = 0;
  connection.greetings = kind_of(group) == 0 ? paths::kIdleTripsMin - 1 : 0;
  rail_connected(session, group, now);
  ask_peer(session, group, now);
  watch_ns_ = now;  // the thread finds out when it is due
}

/// Over the connection that leads now: everything that is not acknowledged; the peer discards what it has (WIRE.md §6).
void Engine::repeat_unacknowledged(Session& session, u32 kind, u64 now) {
  for (auto& [id, flow] : flows_out_) {
    if (flow.session != session.id) continue;
    const auto announced = [](const Outgoing* entry) { return entry->transfer != nullptr; };
    const bool affected = kind == 0 || flow.kind == 1 ||
                          std::any_of(flow.unacked.begin(), flow.unacked.end(), announced);
    if (!affected) continue;
    if (flow.next > 0) flow.window = kWindowAfterLoss;
    flow.next = 0;
    flow.refused = flow.blocked = false;
  }
  for (std::deque<u64>& blocked : session.blocked) {
    for (u64 id : blocked)
      if (const auto flow = flows_out_.find(id); flow != flows_out_.end()) flow->second.blocked = false;
    blocked.clear();
  }
  for (BulkQueue& bulk : session.bulk) bulk.clear();
  if (kind == 0) {
    session.reports_sent = 0;
    answer_again(session);
  }
  session.acks_prompt_ns = now + kAcksPromptNs;
  for (auto& [id, flow] : flows_out_)
    if (flow.session == session.id) pumps_due_.push_back(id);
}

/// Grants, acknowledgements and resumes that found no control connection were dropped, and what they
/// answer may have come over the other group, which did not break: every answer that can matter goes again.
void Engine::answer_again(Session& session) {
  for (auto& acks : session.chunk_acks) acks.clear();  // the ranges in the grants say the same
  session.report_ack_due = true;
  for (auto& [id, flow] : flows_in_) {
    if (flow.session != session.id) continue;
    if (!flow.ack_due && flow.published != 0) session.ack_due.push_back(id);
    flow.ack_due = flow.published != 0;
    if (flow.gap_told) ask_resume(session, flow);
    for (Incoming& entry : flow.pending)
      if (entry.transfer != nullptr && entry.transfer->slot && !entry.ready) grant(session, *entry.transfer);
  }
}

void Engine::ask_resume(Session& session, Deliver& flow) {
  ++session.count.gaps;
  flow.gap_told = true;  // until the next record in order
  wire::FrameHeader resume{};
  resume.type = u8(wire::FrameType::resume);
  resume.a = flow.id;
  resume.b = flow.last;
  post_control(session, resume, {});
}

void Engine::tear_down(Session& session, u32 group) {
  Connection& connection = session.connection[group];
  if (connection.link == nullptr) return;
  const LinkSample last = connection.link->sample();
  connection.past.bytes_in += last.bytes_in;
  connection.past.bytes_out += last.bytes_out;
  connection.past.frames_in += last.frames_in;
  connection.past.frames_out += last.frames_out;
  connection.past.retransmits += last.retransmits;
  ++session.count.breaks;
  if (connection.reason.starts_with("peer protocol")) ++session.count.protocol_breaks;
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, connection.link->fd(), nullptr);
  connection.link->close();
  connection.link.reset();
  tags_.erase(connection.tag);
  connection.down = connection.more = connection.write_armed = false;
  session.live &= ~(1u << group);
  emit(EngineEvent::Kind::link_down, session.id, group, connection.reason);
  events_.back().carried = last.bytes_in + (kind_of(group) == 1 ? session.rails.carried(rail_of(group)) : 0);
  rail_disconnected(session, group, last.bytes_in, monotonic_ns());
}

void Engine::progress_link(Session& session, u32 group, u64 budget) {
  Connection& connection = session.connection[group];
  if (connection.link == nullptr) return;
  if (!connection.down) {
    SessionSink sink(*this, session, group);
    const bool more = connection.link->progress(sink, budget);
    if (budget > 0) connection.more = more;
  }
  if (connection.down) tear_down(session, group);
  else arm(connection);
}

void Engine::break_link(Session& session, u32 group, std::string reason) {
  if (session.connection[group].link == nullptr) return;
  session.connection[group].reason = std::move(reason);
  tear_down(session, group);
}

/// A peer went beyond what an honest one can: the frame is refused, which breaks the connection.
bool Engine::exceeded(Session& session, const char* limit) {
  ++totals_.limits_hit;
  emit(EngineEvent::Kind::limit, session.id, 0, limit);
  return false;
}

void Engine::arm(Connection& connection) {
  const bool wanted = connection.link->wants_write();
  if (wanted == connection.write_armed) return;
  epoll_event event{};
  event.events = EPOLLIN | (wanted ? u32(EPOLLOUT) : 0u);
  event.data.u64 = connection.tag;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, connection.link->fd(), &event) == 0) connection.write_armed = wanted;
}

void Engine::post_frame(Session& session, u32 group, OutFrame frame) {
  Connection& connection = session.connection[group];
  if (connection.link == nullptr || connection.down) return;  // sent again when it is back
  connection.link->post(std::move(frame));
}

void Engine::post_control(Session& session, wire::FrameHeader header, std::vector<u8> body) {
  OutFrame frame;
  frame.header = header;
  if (!body.empty()) frame.header.body_crc = crc32c(body.data(), body.size(), 0);
  frame.owned = std::move(body);
  post_frame(session, session.lead[0], std::move(frame));
}

bool Engine::on_frame(Session& session, u32 group, const wire::FrameHeader& header, const u8* body) {
  const auto type = static_cast<wire::FrameType>(header.type);
  if ((header.features & ~session.connection[group].features) != 0) return false;  // was not agreed
  if (type == wire::FrameType::chunk) {
    on_chunk(session, rail_of(group), header, body);
    return true;
  }
  const std::span<const u8> bytes{body, header.body_len};
  if (header.body_len > 0 && crc32c(body, header.body_len, 0) != header.body_crc) {
    ++session.count.crc_errors;
    return false;
  }
  const u64 now = monotonic_ns();
  switch (type) {
    case wire::FrameType::eager:
    case wire::FrameType::announce:
    case wire::FrameType::cancel: return on_record(session, header, bytes, now);
    case wire::FrameType::grant: on_grant(session, header, bytes, now); return true;
    case wire::FrameType::chunk_ack: on_chunk_acks(session, bytes, now); return true;
    case wire::FrameType::refuse: on_refuse(session, header); return true;
    case wire::FrameType::resume: on_resume(session, header, now); return true;
    case wire::FrameType::report: return on_report(session, header, bytes);
    case wire::FrameType::hop_ack: on_hop_ack(session, header, bytes, now); return true;
    case wire::FrameType::ping: {
      OutFrame pong;  // over the connection that was asked
      pong.header.type = u8(wire::FrameType::pong);
      pong.header.a = header.a;
      post_frame(session, group, std::move(pong));
      return true;
    }
    case wire::FrameType::pong: on_pong(session, group, header, now); return true;
    case wire::FrameType::chunk: return true;
    case wire::FrameType::goodbye: return true;  // the close that follows is the event
  }
  return false;
}

// A session answers for its own flows only; what an older one still says of a flow is void.
void Engine::on_refuse(Session& session, const wire::FrameHeader& header) {
  const auto flow = flows_out_.find(header.a);
  if (flow == flows_out_.end()) return;
  if (flow->second.session == session.id) flow->second.refused = true;
  else ++session.count.foreign;
}

void Engine::on_resume(Session& session, const wire::FrameHeader& header, u64 now) {
  const auto found = flows_out_.find(header.a);
  if (found == flows_out_.end()) return;
  Forward& flow = found->second;
  if (flow.session != session.id) {
    ++session.count.foreign;
    return;
  }
  acknowledge(flow, header.b);
  flow.next = 0;
  flow.refused = false;
  pump_flow(flow, now);
}

// ------------------------------------------------------------------ acknowledgements and reports
void Engine::on_hop_ack(Session& session, const wire::FrameHeader& header, std::span<const u8> body, u64 now) {
  session.taken_ns = now;
  for (std::size_t at = 0; at + sizeof(wire::FlowAck) <= body.size(); at += sizeof(wire::FlowAck)) {
    wire::FlowAck ack;
    std::memcpy(&ack, body.data() + at, sizeof ack);
    const auto flow = flows_out_.find(ack.flow);
    if (flow == flows_out_.end()) continue;
    if (flow->second.session != session.id) {
      ++session.count.foreign;
      continue;
    }
    acknowledge(flow->second, ack.flow_seq);
    if (flow->second.next < flow->second.unacked.size()) pumps_due_.push_back(ack.flow);  // what waited for room may go
  }
  while (!session.reports.empty() && session.reports.front().number <= header.a) {
    finish_reading(session.reports.front().lane, session.reports.front().reading);
    session.reports.pop_front();
    if (session.reports_sent > 0) --session.reports_sent;
  }
}

bool Engine::on_report(Session& session, const wire::FrameHeader& header, std::span<const u8> body) {
  const std::size_t count = body.size() / sizeof(ReturnEntry);
  session.report_ack_due = true;
  for (std::size_t i = 0; i < count; ++i) {
    const u64 number = header.a + i;
    if (number <= session.report_seen) continue;  // a repeat after a reconnect
    if (number != session.report_seen + 1) return true;  // not acknowledged: comes again
    if (session.report_blocked.size() >= kReportsUnackedMax) return exceeded(session, "REPORTS_UNACKED_MAX");
    ReturnEntry entry;
    std::memcpy(&entry, body.data() + i * sizeof entry, sizeof entry);
    session.report_seen = number;
    deliver_report(session, number, entry);
  }
  return true;
}

void Engine::deliver_report(Session& session, u64 number, const ReturnEntry& entry) {
  if (entry.kind != u8(ReturnKind::end) && entry.kind != u8(ReturnKind::credit)) return;
  const auto flow = flows_out_.find(entry.flow);
  const u64 owner = flow == flows_out_.end() ? 0 : flow->second.session;
  if (owner != 0 && owner != session.id && find_session(owner) != nullptr) {  // no word of a flow of another node
    ++session.count.foreign;
    return;
  }
  if (owner != session.id || flow->second.lane == nullptr) {
    if (removed_flows_.count(entry.flow) != 0) return;
    emit(EngineEvent::Kind::flow_unknown, entry.flow, 0, "report");
    orphan_returns_[entry.flow].push_back({entry, session.id, number});
    session.report_blocked.insert(number);
    return;
  }
  EngineLane& lane = *flow->second.lane;
  if (is_lying(lane)) return;            // taken: what nobody can be told must not fill the session
  if (!lane.return_backlog.empty() || !lane.end.returns_out.push(entry)) {
    lane.return_backlog.push_back({entry, session.id, number});
    session.report_blocked.insert(number);
    blocked_retry_ = true;
    return;
  }
  lane.end.returns_out.publish();
  mark_dirty(lane, Ring::returns);
}

void Engine::flush_backlog(EngineLane& lane) {
  bool any = false;
  while (!lane.return_backlog.empty() && lane.end.returns_out.push(lane.return_backlog.front().entry)) {
    acknowledge_report(lane.return_backlog.front().session, lane.return_backlog.front().number);
    lane.return_backlog.pop_front();
    any = true;
  }
  if (!any) return;
  lane.end.returns_out.publish();
  mark_dirty(lane, Ring::returns);
}

void Engine::acknowledge_report(u64 session_id, u64 number) {
  Session* session = find_session(session_id);
  if (session == nullptr) return;
  session->report_blocked.erase(number);
  session->report_ack_due = true;
}

/// An acknowledgement frees room in a ring of which little is used, and wakes a peer for nothing else: it waits for a frame
/// that goes there anyway, the answer most often. What frees a slot, and much of anything, does not wait.
bool Engine::acks_may_wait(Session& session, u64 now) {
  const Connection& connection = session.leading(0);
  if (session.acks_pressing || now < session.acks_prompt_ns || connection.link == nullptr) return false;
  if (session.acks_bytes > kAcksWaitBytes) return false;
  if (session.report_seen - session.report_acked > kAcksWaitReports || connection.link->backlog() > 0) return false;
  if (session.acks_since_ns == 0) session.acks_since_ns = now;
  const u64 due = session.acks_since_ns + kAcksWaitNs;
  if (now >= due) return false;
  acks_due_ns_ = std::min(acks_due_ns_, due);
  return true;
}

/// What a rail brought is acknowledged on it: its silence is its own, and not that of another.
void Engine::send_chunk_acks(Session& session, u32 rail) {
  std::vector<wire::ChunkAck>& acks = session.chunk_acks[rail];
  if (acks.empty()) return;
  const u32 own = group_of(rail, 0), group = is_up(session, own) ? own : session.lead[0];
  constexpr std::size_t kBatch = wire::kControlBodyBytesMax / sizeof(wire::ChunkAck);
  for (std::size_t done = 0; done < acks.size(); done += kBatch) {
    const u8* from = reinterpret_cast<const u8*>(acks.data() + done);
    const std::size_t count = std::min(kBatch, acks.size() - done);
    OutFrame frame;
    frame.header.type = u8(wire::FrameType::chunk_ack);
    frame.owned.assign(from, from + count * sizeof(wire::ChunkAck));
    frame.header.body_crc = crc32c(frame.owned.data(), frame.owned.size(), 0);
    post_frame(session, group, std::move(frame));
  }
  acks.clear();
}

void Engine::send_acks(Session& session, u64 now) {
  for (u32 rail = 0; rail < paths::kRailsMax; ++rail) send_chunk_acks(session, rail);
  if ((session.ack_due.empty() && !session.report_ack_due) || acks_may_wait(session, now)) return;
  session.acks_since_ns = session.acks_bytes = 0;
  session.acks_pressing = false;
  session.report_acked = session.report_seen;
  wire::FrameHeader header{};
  header.type = u8(wire::FrameType::hop_ack);
  header.a = session.report_blocked.empty() ? session.report_seen : *session.report_blocked.begin() - 1;
  std::vector<u8> body;
  for (u64 id : session.ack_due) {
    const auto flow = flows_in_.find(id);
    if (flow == flows_in_.end()) continue;
    flow->second.ack_due = false;
    const wire::FlowAck ack{id, flow->second.published};
    const u8* from = reinterpret_cast<const u8*>(&ack);
    body.insert(body.end(), from, from + sizeof ack);
    if (body.size() + sizeof ack <= wire::kControlBodyBytesMax) continue;
    post_control(session, header, std::move(body));
    body.clear();
  }
  post_control(session, header, std::move(body));
  session.ack_due.clear();
  session.report_ack_due = false;
}

void Engine::send_reports(Session& session, u64 now) {
  if (reports_may_wait(session, now)) return;
  session.reports_since_ns = 0;
  constexpr std::size_t kBatch = wire::kControlBodyBytesMax / sizeof(ReturnEntry);
  Connection& connection = session.leading(0);
  while (connection.link != nullptr && !connection.down && session.reports_sent < session.reports.size() &&
         session.reports_sent < kReportsUnackedMax && connection.link->backlog() <= kRecordBacklogBytes) {
    wire::FrameHeader header{};
    header.type = u8(wire::FrameType::report);
    header.a = session.reports[session.reports_sent].number;
    std::vector<u8> body;
    for (std::size_t i = 0; i < kBatch && session.reports_sent < session.reports.size(); ++i) {
      const u8* from = reinterpret_cast<const u8*>(&session.reports[session.reports_sent++].entry);
      body.insert(body.end(), from, from + sizeof(ReturnEntry));
    }
    post_control(session, header, std::move(body));
  }
}

/// Something waits for a connection that took all it was given: no event will tell that it could go on.
bool Engine::has_room_unused(const Session& session) {
  for (u32 klass = 0; klass < 4; ++klass) {
    if (session.blocked[klass].empty()) continue;
    const Connection& connection = session.leading(klass <= u32(Class::token) ? 0 : 1);
    if (connection.link != nullptr && !connection.down && connection.link->backlog() == 0) return true;
  }
  if (!session.waits_for_room) return false;
  for (u32 rail = 0; rail < paths::kRailsMax; ++rail) {
    const Connection& connection = session.connection[group_of(rail, 1)];
    if (session.rails.usable(rail) && connection.link != nullptr && connection.link->backlog() == 0) return true;
  }
  return false;
}

void Engine::pump_session(Session& session, u64 now) {
  for (u32 klass = 0; klass < 4; ++klass) {
    Connection& connection = session.leading(klass <= u32(Class::token) ? 0 : 1);
    std::deque<u64>& blocked = session.blocked[klass];
    while (!blocked.empty() && connection.link != nullptr && !connection.down &&
           connection.link->backlog() <= kRecordBacklogBytes) {
      const auto flow = flows_out_.find(blocked.front());
      blocked.pop_front();
      if (flow == flows_out_.end()) continue;
      flow->second.blocked = false;
      pump_flow(flow->second, now);
    }
  }
  if (now >= rails_due(session) || (session.rails_asked_ns == 0 && rails_matter(session))) watch_rails(session, now);
  pump_bulk(session, now);
  send_reports(session, now);
  send_acks(session, now);  // last: they may go with the rest
  // Control first; a connection that waits for room is written when epoll says so.
  for (u32 live = session.live; live != 0; live &= live - 1) {
    const u32 group = static_cast<u32>(__builtin_ctz(live));
    Connection& connection = session.connection[group];
    if (connection.link != nullptr && connection.link->backlog() > 0 && !connection.write_armed)
      progress_link(session, group, 0);
  }
  rails_due_ns_ = std::min(rails_due_ns_, rails_due(session));
}

}  // namespace fabric
