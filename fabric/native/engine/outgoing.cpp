// Lane → session: reading records, posting them, transfers, acknowledgements, deadlines.
#include <algorithm>

#include "core/clock.hpp"
#include "core/crc32c.hpp"
#include "engine/engine.hpp"
#include "engine/lane_record.hpp"

namespace fabric {
namespace {

u32 group_of(u32 klass) { return klass <= u32(Class::token) ? 0 : 1; }

RecordHeader header_of(const Outgoing& entry) {
  RecordHeader header;
  std::memcpy(&header, entry.record.data(), sizeof header);
  return header;
}

/// Cuts every piece into chunks and lays the pieces out (WIRE.md §4.3).
void lay_out(OutTransfer& transfer) {
  u64 sum = 0, at = 0;
  for (const SegmentEntry& piece : transfer.pieces) sum += piece.length;
  const u32 step = sum <= 4 * 1024 * 1024 ? wire::kChunkBytesSmall : wire::kChunkBytesMax;
  for (u32 i = 0; i < transfer.pieces.size(); ++i) {
    at = wire::align64(at);
    const u64 length = transfer.pieces[i].length;
    for (u64 done = 0; done < length; done += step) {
      const u32 part = static_cast<u32>(std::min<u64>(step, length - done));
      transfer.chunks.push_back({i, part, transfer.pieces[i].offset + done, at + done});
    }
    at += length;
  }
  transfer.total = at;
  transfer.acked.assign(transfer.chunks.size(), false);
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
  flow.group = group_of(lane.klass);
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
  Connection& connection = session->connection[flow.group];
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
  entry.transfer->pending.clear();
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
  post_frame(session, flow.group, std::move(frame));
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
    if (session->connection[entry.flow->group].link != nullptr)
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
  if (Session* session = find_session(entry.flow != nullptr ? entry.flow->session : 0))
    session->out_transfers.erase(entry.transfer->id);
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

void BulkQueue::put(const std::shared_ptr<OutTransfer>& transfer) {
  auto& waiting = flows[transfer->flow];
  if (waiting.empty()) turns.push_back(transfer->flow);
  auto at = waiting.end();
  while (at != waiting.begin() && (*std::prev(at))->flow_seq > transfer->flow_seq) --at;
  waiting.insert(at, transfer);
  transfer->queued = true;
}

std::shared_ptr<OutTransfer> BulkQueue::take() {
  const auto found = flows.find(turns.front());
  turns.pop_front();
  std::shared_ptr<OutTransfer> transfer = std::move(found->second.front());
  found->second.pop_front();
  transfer->queued = false;
  if (found->second.empty()) flows.erase(found);
  else turns.push_back(found->first);
  return transfer;
}

void BulkQueue::clear() {
  for (auto& [flow, waiting] : flows)
    for (const auto& transfer : waiting) transfer->queued = false;
  flows.clear();
  turns.clear();
}

void Engine::queue_bulk(Session& session, const std::shared_ptr<OutTransfer>& transfer) {
  if (transfer->queued || transfer->pending.empty()) return;
  session.bulk[transfer->klass].put(transfer);
}

void Engine::on_grant(Session& session, const wire::FrameHeader& header, std::span<const u8> body, u64 now) {
  const auto found = session.out_transfers.find(header.a);
  if (found == session.out_transfers.end() || found->second->owner == nullptr) return;
  const std::shared_ptr<OutTransfer> transfer = found->second;
  std::map<u64, u64> have;
  for (std::size_t at = 0; at + sizeof(wire::Range) <= body.size(); at += sizeof(wire::Range)) {
    wire::Range range;
    std::memcpy(&range, body.data() + at, sizeof range);
    have[range.offset] = range.length;
  }
  transfer->granted = true;
  transfer->moved_ns = now;
  transfer->pending.clear();
  for (u32 i = 0; i < transfer->chunks.size(); ++i) {
    const auto range = have.find(transfer->chunks[i].target_offset);
    transfer->acked[i] = range != have.end() && range->second == transfer->chunks[i].length;
    if (!transfer->acked[i]) transfer->pending.push_back(i);
  }
  if (transfer->owner->sent) session.count.retransmits += transfer->pending.size();
  if (transfer->pending.empty()) transfer->owner->sent = true;
  queue_bulk(session, transfer);
  pump_bulk(session, now);
}

/// Round robin over the flows of a class, one chunk each: a large transfer delays one of another flow by one chunk. A
/// higher class goes first; a lower one has every `kLowerClassEvery`-th turn, so that it is late and never stuck.
std::shared_ptr<OutTransfer> Engine::next_bulk(Session& session) {
  BulkQueue *high = nullptr, *low = nullptr;
  for (BulkQueue& waiting : session.bulk) {
    if (waiting.turns.empty()) continue;
    if (high == nullptr) high = &waiting;
    low = &waiting;
  }
  if (high == nullptr) return nullptr;
  const bool lower = high != low && ++session.bulk_turn % kLowerClassEvery == 0;
  return (lower ? low : high)->take();
}

void Engine::pump_bulk(Session& session, u64 now) {
  Connection& connection = session.connection[1];
  // While records wait for this connection, chunks leave them room.
  const bool records_wait = !session.blocked[u32(Class::embedding)].empty() || !session.blocked[u32(Class::bulk)].empty();
  const u64 room = records_wait ? kRecordBacklogBytes : kBulkBacklogBytes;
  while (connection.link != nullptr && !connection.down && connection.link->backlog() < room) {
    const std::shared_ptr<OutTransfer> transfer = next_bulk(session);
    if (transfer == nullptr) break;
    if (transfer->owner == nullptr || transfer->pending.empty()) continue;
    if (!post_chunk(session, *transfer, now)) continue;
    if (transfer->pending.empty()) {
      if (transfer->owner->timed) timers_.erase({transfer->owner->deadline_ns, transfer->owner});
      transfer->owner->timed = false;
      transfer->owner->sent = true;
    }
    queue_bulk(session, transfer);
  }
}

bool Engine::post_chunk(Session& session, OutTransfer& transfer, u64 now) {
  Outgoing& owner = *transfer.owner;
  if (!owner.sent && owner.deadline_ns != 0 && now >= owner.deadline_ns) {
    end_here(owner, End::dropped, Reason::expired, now);
    return false;
  }
  const Chunk& chunk = transfer.chunks[transfer.pending.front()];
  const SegmentEntry& piece = transfer.pieces[chunk.piece];
  const auto mapped = segments_.find(piece.segment);
  if (mapped == segments_.end()) {
    std::set<std::pair<u64, u64>>& waiters = segment_waiters_[piece.segment];
    if (waiters.empty()) emit(EngineEvent::Kind::need_segment, piece.segment);
    waiters.emplace(session.id, transfer.id);
    return false;
  }
  const u8* base = nullptr;
  const Status status = mapped->second->resolve(piece, base);
  const u8* from = base + (chunk.source_offset - piece.offset);
  OutFrame frame;
  const bool plain = (session.connection[1].features & wire::kFeaturePlainChunks) != 0;
  if (plain) frame.header.features = wire::kFeaturePlainChunks;
  else if (status.ok()) frame.header.body_crc = crc32c(from, chunk.length, 0);
  // Both checks hold: the checksum is of the right bytes, and the receiver refuses any others.
  if (!status.ok() || !mapped->second->holds(piece)) {
    emit(EngineEvent::Kind::stale, owner.flow_id, owner.flow_seq, status.message);
    end_here(owner, End::failed, Reason::corrupted, now);
    return false;
  }
  frame.header.type = u8(wire::FrameType::chunk);
  frame.header.a = transfer.id;
  frame.header.b = chunk.target_offset;
  frame.body = from;
  frame.body_len = chunk.length;
  frame.keep = mapped->second;
  transfer.pending.pop_front();
  transfer.moved_ns = now;
  post_frame(session, 1, std::move(frame));
  return true;
}

void Engine::on_chunk_acks(Session& session, std::span<const u8> body, u64 now) {
  for (std::size_t at = 0; at + sizeof(wire::ChunkAck) <= body.size(); at += sizeof(wire::ChunkAck)) {
    wire::ChunkAck ack;
    std::memcpy(&ack, body.data() + at, sizeof ack);
    const auto found = session.out_transfers.find(ack.transfer);
    if (found == session.out_transfers.end() || found->second->owner == nullptr) continue;
    const std::shared_ptr<OutTransfer> transfer = found->second;
    for (u32 i = 0; i < transfer->chunks.size(); ++i) {
      if (transfer->chunks[i].target_offset != ack.offset || transfer->chunks[i].length != ack.length) continue;
      if (ack.status == 0) {
        transfer->acked[i] = true;
        transfer->moved_ns = now;
        transfer->stalls = 0;
      }
      if (ack.status == 0 || transfer->acked[i]) break;
      ++session.count.retransmits;
      if (++transfer->bad > kChunksBadMax) {
        emit(EngineEvent::Kind::corrupt, transfer->owner->flow_id, transfer->owner->flow_seq,
             "receiver refused too many chunks");
        end_here(*transfer->owner, End::failed, Reason::corrupted, now);
        break;
      }
      transfer->pending.push_back(i);
      queue_bulk(session, transfer);
      break;
    }
  }
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
