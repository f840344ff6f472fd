// Lane → session: reading records, posting them, transfers, acknowledgements, deadlines.
#include <algorithm>

#include "core/clock.hpp"
#include "core/crc32c.hpp"
#include "engine/engine.hpp"
#include "engine/lane_record.hpp"

namespace fabric {
namespace {

u32 kind_of_class(u32 klass) { return klass <= u32(Class::token) ? 0 : 1; }

RecordHeader header_of(const Outgoing& entry) {
  RecordHeader header;
  std::memcpy(&header, entry.record.data(), sizeof header);
  return header;
}

/// Lays the pieces out (WIRE.md §4.3).
void lay_out(OutTransfer& transfer) {
  u64 at = 0;
  for (u32 i = 0; i < transfer.pieces.size(); ++i) {
    at = wire::align64(at);
    const u64 length = transfer.pieces[i].length;
    if (length > 0) transfer.uncut.push_back({i, length, transfer.pieces[i].offset, at});
    at += length;
    transfer.left += length;
  }
  transfer.total = at;
}

}  // namespace

void Engine::read_lane(EngineLane& lane, u64 now) {
  if (lane.broken) return;
  RecordSpan span;
  const u64 before = lane.end.records_in.read_cursor();  // one ring's worth: see read_returns
  while (lane.end.records_in.read_cursor() - before < kLaneBytes) {
    const Peek peek = lane.end.records_in.peek(span);
    if (peek == Peek::empty) break;
    if (peek == Peek::corrupt) {
      blame(lane, lane.end.records_in.fault());
      return;
    }
    if (!take_record(lane, span, now)) return;
    lane.end.records_in.advance(span);
  }
}

bool Engine::take_record(EngineLane& lane, const RecordSpan& span, u64 now) {
  ++moved_.read;
  Outgoing& entry = lane.outgoing.emplace_back();
  entry.lane = &lane;
  entry.cursor_begin = span.begin;
  entry.cursor_end = span.end;
  const bool is_named = copy_record(span, {lane.peer_port, lane.peer_incarnation}, entry.record);
  entry.flow_id = span.header.flow;
  entry.flow_seq = span.header.flow_seq;
  entry.deadline_ns = span.header.deadline_ns;
  Forward& flow = flow_out(entry.flow_id);
  if (flow.lane != nullptr && flow.lane != &lane) {  // only the port that sends on a flow may name it
    lane.outgoing.pop_back();
    blame(lane, "a record names a flow of another lane");
    return false;
  }
  entry.flow = &flow;
  flow.kind = kind_of_class(lane.klass);
  if (flow.lane == nullptr) flow.lane = &lane;
  wire::RecordView view;
  const bool known = is_named && wire::view_record(entry.record, view);
  if (known) {
    for (u32 i = 0; i < view.head.segment_count; ++i) {
      const SegmentEntry piece = wire::segment_at(view, i);
      entry.slots.push_back({piece.segment, piece.slot, piece.generation});
    }
  }
  if (removed_flows_.count(entry.flow_id) != 0) {
    entry.acked = true;
    flows_out_.erase(entry.flow_id);
    entry.flow = nullptr;
    release_front(lane);
    return true;
  }
  flow.unacked.push_back(&entry);
  if ((span.header.flags & kFlagEnded) != 0) {  // by an engine that is gone: its end was reported
    entry.end = End::dropped;
    entry.end_published = true;
    become_skip(entry);
  }
  if (!known) end_here(entry, End::failed, Reason::corrupted, now);
  if (flow.session == 0) emit(EngineEvent::Kind::flow_unknown, entry.flow_id, 0, "lane record");
  pump_flow(flow, now);
  if (!entry.acked && !entry.sent) watch_deadline(entry);
  return true;
}

Forward& Engine::flow_out(u64 flow) {
  Forward& out = flows_out_[flow];
  out.id = flow;
  return out;
}

void Engine::watch_deadline(Outgoing& entry) {
  if (entry.deadline_ns == 0 || entry.timed || entry.end != End::none) return;
  entry.timed = true;
  timers_.insert({entry.deadline_ns, &entry});
}

void Engine::pump_flow(Forward& flow, u64 now) {
  Session* session = flow.session != 0 ? find_session(flow.session) : nullptr;
  if (session == nullptr || flow.refused) return;
  Connection& connection = session->leading(flow.kind);
  while (flow.next < std::min(flow.unacked.size(), flow.window)) {
    if (connection.link == nullptr || connection.down) return;
    if (connection.link->backlog() > kRecordBacklogBytes) {
      if (!flow.blocked) {
        session->blocked[flow.lane != nullptr ? flow.lane->klass : u32(Class::bulk)].push_back(flow.id);
        ++session->count.backlog_stalls;
      }
      flow.blocked = true;
      return;
    }
    if (comes_too_early(flow)) return;  // the acknowledgement of one before it goes on
    Outgoing& entry = *flow.unacked[flow.next++];
    post_entry(*session, flow, entry, now);
  }
}

/// A few large transfers keep a link busy. The peer takes memory for each that is announced, and memory that is used in turn
/// stays in the cache.
bool Engine::comes_too_early(const Forward& flow) {
  const Outgoing& entry = *flow.unacked[flow.next];
  if (entry.end != End::none || header_of(entry).payload_bytes < kLargeTransferBytes) return false;
  u64 under_way = 0;
  u32 transfers = 0;
  for (std::size_t i = 0; i < flow.next; ++i) {
    const OutTransfer* transfer = flow.unacked[i]->transfer.get();
    if (transfer == nullptr) continue;
    under_way += transfer->total;
    if (++transfers >= kTransfersOfFlow && under_way >= kTransferBytesOfFlow) return true;
  }
  return false;
}

void Engine::post_entry(Session& session, Forward& flow, Outgoing& entry, u64 now) {
  if (entry.deadline_ns != 0) now = monotonic_ns();  // this turn may have begun before the message was sent
  if (entry.end == End::none && !entry.sent && entry.deadline_ns != 0 && now >= entry.deadline_ns)
    end_here(entry, End::dropped, Reason::expired, now);
  if (entry.sent) ++session.count.retransmits;
  if (entry.end != End::none || entry.slots.empty()) {
    post_record(session, flow, entry, wire::FrameType::eager, now);
    entry.sent = true;
    return;
  }
  if (entry.transfer == nullptr) start_transfer(session, entry);
  session.out_transfers[entry.transfer->id] = entry.transfer;
  entry.transfer->granted = false;
  post_record(session, flow, entry, wire::FrameType::announce, now);
}

void Engine::post_record(Session& session, Forward& flow, Outgoing& entry, wire::FrameType type, u64 now) {
  OutFrame frame;
  frame.header.type = u8(type);
  frame.owned = entry.record;
  RecordHeader header = header_of(entry);
  // On the wire a deadline is what remains of it; 1 ns says "passed", 0 "none".
  if (entry.deadline_ns != 0) header.deadline_ns = entry.deadline_ns > now ? entry.deadline_ns - now : 1;
  std::memcpy(frame.owned.data(), &header, sizeof header);
  if (entry.transfer != nullptr) {
    frame.header.a = entry.transfer->id;
    frame.header.b = entry.transfer->total;
  }
  frame.header.body_crc = crc32c(frame.owned.data(), frame.owned.size(), 0);
  session.posted_ns = now;
  post_frame(session, session.lead[flow.kind], std::move(frame));
}

void Engine::start_transfer(Session&, Outgoing& entry) {
  wire::RecordView view;
  wire::view_record(entry.record, view);
  auto transfer = std::make_shared<OutTransfer>();
  transfer->id = next_transfer_++;
  transfer->owner = &entry;
  transfer->flow = entry.flow_id;
  transfer->flow_seq = entry.flow_seq;
  transfer->klass = view.head.klass;
  transfer->deadline_ns = entry.deadline_ns;
  const auto weight = weights_.find(view.head.channel);
  transfer->share = {entry.lane->tenant, view.head.channel, weight == weights_.end() ? 1 : weight->second};
  for (u32 i = 0; i < view.head.segment_count; ++i) transfer->pieces.push_back(wire::segment_at(view, i));
  lay_out(*transfer);
  entry.transfer = std::move(transfer);
  watch_deadline(entry);
}

void Engine::end_here(Outgoing& entry, End end, Reason reason, u64 now) {
  if (entry.end != End::none || entry.acked) return;
  entry.end = end;
  entry.reason = reason;
  ++totals_.ends[u32(end)][u32(reason)];
  become_skip(entry);
  if (!publish_end(entry)) {
    entry.lane->ends_due.push_back(&entry);
    blocked_retry_ = true;  // a reader that makes room does not ring
  }
  Session* session = find_session(entry.flow->session);
  const bool announced = entry.transfer != nullptr;
  if (announced && session != nullptr) {
    if (session->leading(entry.flow->kind).link != nullptr)
      post_record(*session, *entry.flow, entry, wire::FrameType::cancel, now);
    drop_out_transfer(entry);
    ++session->count.transfers_aborted;
  }
}

/// What travels on is a skip record: the flow stays without gaps, credit stays exact.
void Engine::become_skip(Outgoing& entry) {
  RecordHeader header = header_of(entry);
  header.kind = u8(RecordKind::skip);
  header.segment_count = 0;
  header.flags &= static_cast<u16>(~(kFlagMetaInSegment | kFlagEnded));
  const u32 fixed = u32{header.header_len8} * 8;
  if (fixed < kRecordHeaderBytes || fixed > entry.record.size()) header.header_len8 = kRecordHeaderBytes / 8;
  header.total_len = u32{header.header_len8} * 8;
  entry.record.resize(header.total_len);
  std::memcpy(entry.record.data(), &header, sizeof header);
}

/// Says in the lane that the message has ended: the record stays until the other node has taken what stands for it,
/// and neither an audit nor the next engine may take it for a message. After its end was published, never before.
void Engine::mark_ended(const Outgoing& entry) {
  LaneEnd& end = entry.lane->end;
  u8* at = end.layout()->records[1 - entry.lane->side] + (entry.cursor_begin & (kLaneBytes - 1)) + offsetof(RecordHeader, flags);
  u16 flags;
  std::memcpy(&flags, at, sizeof flags);
  flags |= kFlagEnded;
  std::memcpy(at, &flags, sizeof flags);
}

bool Engine::publish_end(Outgoing& entry) {
  if (entry.end_published) return true;
  ReturnEntry end{};
  end.flow = entry.flow_id;
  end.a = end.b = entry.flow_seq;
  end.kind = u8(ReturnKind::end);
  end.end = u8(entry.end);
  end.reason = u8(entry.reason);
  if (!entry.lane->return_backlog.empty() || !entry.lane->end.returns_out.push(end)) return false;
  entry.lane->end.returns_out.publish();
  mark_dirty(*entry.lane, Ring::returns);
  entry.end_published = true;
  mark_ended(entry);
  return true;
}

void Engine::drop_out_transfer(Outgoing& entry) {
  if (entry.transfer == nullptr) return;
  if (Session* session = find_session(entry.flow != nullptr ? entry.flow->session : 0)) {
    settle_tickets(*session, *entry.transfer, entry.acked);
    session->out_transfers.erase(entry.transfer->id);
  }
  entry.transfer->owner = nullptr;  // a queued reference is skipped by pump_bulk
  entry.transfer.reset();
}

void Engine::acknowledge(Forward& flow, u64 upto) {
  EngineLane* lane = flow.lane;
  mark_acknowledged(flow, upto);
  if (lane != nullptr) release_front(*lane);
}

void Engine::mark_acknowledged(Forward& flow, u64 upto) {
  Session* session = flow.session != 0 && upto != ~u64{0} ? find_session(flow.session) : nullptr;
  while (!flow.unacked.empty() && flow.unacked.front()->flow_seq <= upto) {
    Outgoing& entry = *flow.unacked.front();
    entry.acked = true;
    if (entry.timed) timers_.erase({entry.deadline_ns, &entry});
    entry.timed = false;
    if (session != nullptr && entry.end == End::none) {
      ++session->count.messages_out;
      session->count.payload_bytes_out += header_of(entry).payload_bytes;
      if (entry.transfer != nullptr) ++session->count.transfers_done_out;
    }
    drop_out_transfer(entry);
    entry.flow = nullptr;
    flow.unacked.pop_front();
    if (flow.next > 0) --flow.next;
    if (session != nullptr && flow.window < kOutstandingPerEndpoint) flow.window *= 2;
    else flow.window = ~std::size_t{0};
  }
}

bool Engine::release_slots(Outgoing& entry) {
  while (entry.released < entry.slots.size()) {
    const SlotRef& slot = entry.slots[entry.released];
    ReturnEntry give{};
    give.flow = entry.flow_id;
    give.a = u64{slot.segment} << 32 | slot.slot;
    give.b = slot.generation;
    give.kind = u8(ReturnKind::release);
    if (!entry.lane->end.returns_out.push(give)) return false;
    ++entry.released;
  }
  return true;
}

void Engine::release_front(EngineLane& lane) {
  u64 upto = 0;
  bool gave = false;
  while (!lane.outgoing.empty() && lane.outgoing.front().acked) {
    Outgoing& entry = lane.outgoing.front();
    // Release and end first, tail after: a successor that reads the record again repeats both.
    if (entry.end != End::none && !entry.end_published) break;
    gave |= !entry.slots.empty();
    if (!release_slots(entry)) {
      blocked_retry_ = true;
      break;
    }
    upto = entry.cursor_end;
    lane.outgoing.pop_front();
  }
  if (gave) lane.end.returns_out.publish();
  if (upto == 0) return;
  const bool was_tight = lane.end.records_in.head() - lane.end.records_in.tail() > kLaneBytes / 2;
  lane.end.records_in.release(upto);
  if (gave || was_tight) mark_dirty(lane, Ring::returns);
}

void Engine::expire(u64 now) {
  while (!timers_.empty() && timers_.begin()->first <= now) {
    Outgoing& entry = *timers_.begin()->second;
    timers_.erase(timers_.begin());
    entry.timed = false;
    if (!entry.sent && !entry.acked) end_here(entry, End::dropped, Reason::expired, now);
  }
}

}  // namespace fabric
