// Session → lane: records in flow order, destination-first transfers, return rings read for peers.
#include <algorithm>
#include <cstring>

#include "core/clock.hpp"
#include "core/crc32c.hpp"
#include "engine/engine.hpp"

namespace fabric {

bool InTransfer::covers(u64 offset, u64 length) const {
  auto range = ranges.upper_bound(offset);
  if (range == ranges.begin()) return false;
  --range;
  return range->first + range->second >= offset + length;
}

/// What touches becomes one: a transfer in small chunks keeps few entries, and a grant can name them all.
void InTransfer::take(u64 offset, u64 length) {
  auto at = ranges.emplace(offset, length).first;
  if (at != ranges.begin()) {
    const auto before = std::prev(at);
    if (before->first + before->second == offset) {
      before->second += length;
      ranges.erase(at);
      at = before;
    }
  }
  const auto after = std::next(at);
  if (after == ranges.end() || at->first + at->second != after->first) return;
  at->second += after->second;
  ranges.erase(after);
}

bool InTransfer::overlaps(u64 offset, u64 length) const {
  auto after = ranges.lower_bound(offset);
  if (after != ranges.end() && after->first < offset + length) return true;
  return after != ranges.begin() && (--after)->first + after->second > offset;
}

namespace {

/// Extent of the destination slot: every piece at the next multiple of 64 (WIRE.md §4.3).
u64 extent_of(const wire::RecordView& view) {
  u64 at = 0;
  for (u32 i = 0; i < view.head.segment_count; ++i) at = wire::align64(at) + wire::segment_at(view, i).length;
  return at;
}

bool lies_in_a_piece(const wire::RecordView& view, u64 offset, u64 length) {
  u64 at = 0;
  for (u32 i = 0; i < view.head.segment_count; ++i) {
    at = wire::align64(at);
    const u64 piece = wire::segment_at(view, i).length;
    if (offset >= at && offset + length <= at + piece) return true;
    at += piece;
  }
  return false;
}

}  // namespace

bool Engine::on_record(Session& session, const wire::FrameHeader& header, std::span<const u8> body, u64 now) {
  wire::RecordView view;
  if (!wire::view_record(body, view)) return false;
  const u64 seq = view.head.flow_seq;
  const auto found = flows_in_.find(view.head.flow);
  if (found == flows_in_.end() || found->second.session != session.id) {
    if (found != flows_in_.end()) ++session.count.foreign;
    if (unknown_in_.size() >= kUnknownFlowsMax && unknown_in_.count(view.head.flow) == 0)
      return exceeded(session, "UNKNOWN_FLOWS_MAX");
    unknown_in_[view.head.flow] = session.id;
    emit(EngineEvent::Kind::flow_unknown, view.head.flow, 0, "frame");
    wire::FrameHeader refuse{};
    refuse.type = u8(wire::FrameType::refuse);
    refuse.flags = u8(wire::RefuseReason::unknown_flow);
    refuse.a = view.head.flow;
    refuse.b = seq;
    post_control(session, refuse, {});
    return true;
  }
  Deliver& flow = found->second;
  if (!flow.known) {
    flow.known = true;
    flow.last = flow.published = seq - 1;
  }
  if (seq > flow.last + 1) {  // what was between was lost with a connection: ask once
    if (!flow.gap_told) ask_resume(session, flow);
    return true;
  }
  std::vector<u8> record(body.begin(), body.end());
  if (view.head.deadline_ns != 0) {
    const u64 trip = session.leading(0).link != nullptr ? session.leading(0).link->sample().rtt_ns / 2 : 0;
    const u64 left = view.head.deadline_ns > trip ? view.head.deadline_ns - trip : 1;
    RecordHeader head = view.head;
    head.deadline_ns = now + left;
    std::memcpy(record.data(), &head, sizeof head);
  }
  const bool announce = header.type == u8(wire::FrameType::announce);
  if (seq <= flow.last) {
    ++session.count.repeats;
    if (seq <= flow.published) {
      if (!flow.ack_due) session.ack_due.push_back(flow.id);
      flow.ack_due = session.acks_pressing = true;
      return true;
    }
    Incoming& pending = flow.pending[seq - flow.pending.front().flow_seq];
    if (pending.transfer == nullptr) return true;
    if (announce) return begin_transfer(session, pending, flow, header);
    if (view.head.kind == u8(RecordKind::skip)) make_skip(flow, pending, record);
    publish_flow(flow);
    return true;
  }
  if (announce != (view.head.segment_count > 0)) return false;
  if (flow.pending_bytes + record.size() > kFlowPendingMax) return exceeded(session, "FLOW_PENDING_MAX");
  if (EngineFaults::fires(faults_.lose_record)) {  // acknowledged, never published
    flow.last = flow.published = seq;
    if (!flow.ack_due) session.ack_due.push_back(flow.id);
    flow.ack_due = true;
    return true;
  }
  flow.gap_told = false;
  flow.last = seq;
  Incoming& entry = flow.pending.emplace_back();
  entry.flow_seq = seq;
  entry.record = std::move(record);
  flow.pending_bytes += entry.record.size();
  if (announce) return begin_transfer(session, entry, flow, header);
  entry.ready = true;
  publish_flow(flow);
  return true;
}

bool Engine::begin_transfer(Session& session, Incoming& entry, Deliver& flow,
                            const wire::FrameHeader& header) {
  if (entry.transfer == nullptr) {
    wire::RecordView view;
    wire::view_record(entry.record, view);
    entry.transfer = std::make_unique<InTransfer>();
    entry.transfer->total = extent_of(view);
    entry.transfer->expected = view.segment_bytes;
  }
  InTransfer& transfer = *entry.transfer;
  if (header.b != transfer.total) return false;
  session.in_transfers.erase(transfer.id);  // a successor of the sender may have renumbered it
  transfer.id = header.a;
  transfer.session = session.id;
  session.in_transfers[transfer.id] = flow.id;
  if (transfer.slot) {
    grant(session, transfer);
    return true;
  }
  if (!try_allocate(flow.id, entry.flow_seq)) {
    const std::pair<u64, u64> waiter{flow.id, entry.flow_seq};
    if (std::find(slot_waiters_.begin(), slot_waiters_.end(), waiter) == slot_waiters_.end())
      slot_waiters_.push_back(waiter);
    ++session.count.slot_stalls;
  }
  return true;
}

void Engine::grant(Session& session, InTransfer& transfer) {
  wire::FrameHeader header{};
  header.type = u8(wire::FrameType::grant);
  transfer.moved_ns = monotonic_ns();
  header.a = transfer.id;
  std::vector<u8> body;
  for (const auto& [offset, length] : transfer.ranges) {
    if (body.size() + sizeof(wire::Range) > wire::kControlBodyBytesMax) break;  // the rest is sent again
    const wire::Range range{offset, length};
    const u8* from = reinterpret_cast<const u8*>(&range);
    body.insert(body.end(), from, from + sizeof range);
  }
  post_control(session, header, std::move(body));
}

/// @return false while no slot fits: the transfer waits and the control plane is asked to grow.
bool Engine::try_allocate(u64 flow_id, u64 flow_seq) {
  const auto found = flows_in_.find(flow_id);
  if (found == flows_in_.end() || found->second.pending.empty()) return true;
  Deliver& flow = found->second;
  const u64 first = flow.pending.front().flow_seq;
  if (flow_seq < first || flow_seq - first >= flow.pending.size()) return true;
  Incoming& entry = flow.pending[flow_seq - first];
  if (entry.transfer == nullptr || entry.transfer->slot) return true;
  InTransfer& transfer = *entry.transfer;
  const u64 bytes = std::max<u64>(transfer.total, 1);
  if (!arena_.allocate(bytes, transfer.slot).ok()) {
    if (grow_asked_.insert(bytes).second) emit(EngineEvent::Kind::grow, bytes);
    return false;
  }
  grow_asked_.erase(bytes);
  transfer.base = arena_.address(transfer.slot);
  if (transfer.expected == 0) entry.ready = true;
  if (Session* session = find_session(transfer.session)) grant(*session, transfer);
  if (entry.ready) publish_flow(flow);
  return true;
}

void Engine::retry_slots() {
  // One pass in order; what still does not fit keeps its place, and others may pass it.
  std::deque<std::pair<u64, u64>> waiting;
  waiting.swap(slot_waiters_);
  for (const auto& [flow, seq] : waiting)
    if (!try_allocate(flow, seq)) slot_waiters_.emplace_back(flow, seq);
}

InTransfer* Engine::find_transfer(Session& session, u64 id, Incoming** entry, Deliver** flow) {
  const auto known = session.in_transfers.find(id);
  if (known == session.in_transfers.end()) return nullptr;
  const auto found = flows_in_.find(known->second);
  if (found == flows_in_.end()) return nullptr;
  for (Incoming& pending : found->second.pending) {
    if (pending.transfer == nullptr || pending.transfer->id != id || pending.transfer->session != session.id)
      continue;
    *entry = &pending;
    *flow = &found->second;
    return pending.transfer.get();
  }
  return nullptr;
}

u8* Engine::place_chunk(Session& session, const wire::FrameHeader& header) {
  Incoming* entry;
  Deliver* flow;
  InTransfer* transfer = find_transfer(session, header.a, &entry, &flow);
  if (transfer == nullptr || entry->ready || transfer->base == nullptr || !arena_.valid(transfer->slot))
    return nullptr;
  wire::RecordView view;
  if (header.b > transfer->total || header.body_len > transfer->total - header.b) return nullptr;
  // Verified bytes are never written again, and padding between pieces is nobody's.
  if (transfer->overlaps(header.b, header.body_len)) return nullptr;
  if (!wire::view_record(entry->record, view) || !lies_in_a_piece(view, header.b, header.body_len)) return nullptr;
  const Arena::Absent absent = arena_.take_absent(transfer->slot, header.b, header.b + header.body_len);
  populate(absent.at, absent.bytes);  // of one chunk: nobody waits long
  return transfer->base + header.b;
}

void Engine::on_chunk(Session& session, u32 rail, const wire::FrameHeader& header, const u8* body) {
  Incoming* entry;
  Deliver* flow;
  InTransfer* transfer = find_transfer(session, header.a, &entry, &flow);
  session.chunk_heard_ns = monotonic_ns();
  if (transfer == nullptr || entry->ready) {
    ++session.count.chunks_late;
    return;
  }
  wire::ChunkAck ack{header.a, header.b, header.body_len, rail << 8};
  if (!transfer->covers(header.b, header.body_len)) {
    if (body == nullptr) {  // had no place: neither taken nor asked for again
      ++session.count.chunks_late;
      return;
    }
    if (EngineFaults::fires(faults_.corrupt_chunk) && header.body_len > 0)
      transfer->base[header.b + header.body_len / 2] ^= 0x40;
    const bool plain = (header.features & wire::kFeaturePlainChunks) != 0;
    if (!plain && crc32c(body, header.body_len, 0) != header.body_crc) {
      ++session.count.crc_errors;
      ack.status |= 1;
    } else {
      transfer->take(header.b, header.body_len);
      transfer->received += header.body_len;
      transfer->moved_ns = session.chunk_heard_ns;
    }
  } else {
    ++session.count.chunks_late;  // verified before: a repeat
  }
  session.chunk_acks[rail].push_back(ack);
  if (transfer->received < transfer->expected) return;
  entry->ready = true;
  publish_flow(*flow);
}

void Engine::forget_transfer(Incoming& entry) {
  if (entry.transfer == nullptr) return;
  if (Session* session = find_session(entry.transfer->session)) {
    session->in_transfers.erase(entry.transfer->id);
    ++session->count.transfers_aborted;
  }
  if (entry.transfer->slot) arena_.free(entry.transfer->slot);
  entry.transfer.reset();
}

void Engine::make_skip(Deliver& flow, Incoming& entry, std::span<const u8> record) {
  if (entry.ready) return;  // complete before the sender gave up: it stays a message
  forget_transfer(entry);
  flow.pending_bytes -= entry.record.size();
  entry.record.assign(record.begin(), record.end());
  flow.pending_bytes += entry.record.size();
  entry.ready = true;
}

/// Drops what arrived behind the first unfinished transfer: the sender will send it all again.
void Engine::truncate_incoming(Deliver& flow) {
  std::size_t keep = 0;
  while (keep < flow.pending.size() && flow.pending[keep].ready) ++keep;
  while (flow.pending.size() > keep) {
    forget_transfer(flow.pending.back());
    flow.pending_bytes -= flow.pending.back().record.size();
    flow.pending.pop_back();
  }
  flow.last = flow.published + flow.pending.size();
}

void Engine::publish_flow(Deliver& flow) {
  if (flow.lane == nullptr) return;
  bool any = false, pressing = false;
  u64 bytes = 0;
  while (!flow.pending.empty() && flow.pending.front().ready) {
    Incoming& entry = flow.pending.front();
    const bool has_slot = entry.transfer != nullptr;
    if (!publish_entry(flow, entry)) {
      if (!flow.lane_blocked) {
        flow.lane->blocked_flows.push_back(flow.id);
        if (Session* session = find_session(flow.session)) ++session->count.lane_stalls;
      }
      flow.lane_blocked = true;
      blocked_retry_ = true;
      break;
    }
    flow.published = entry.flow_seq;
    flow.pending_bytes -= entry.record.size();
    bytes += entry.record.size();
    pressing |= has_slot;
    any = true;
    flow.pending.pop_front();
  }
  if (!any) return;
  mark_dirty(*flow.lane, Ring::message);
  Session* session = find_session(flow.session);
  if (session == nullptr) return;
  if (!flow.ack_due) session->ack_due.push_back(flow.id);
  flow.ack_due = true;
  session->acks_bytes += bytes;
  session->acks_pressing |= pressing;
}

bool Engine::publish_entry(Deliver& flow, Incoming& entry) {
  EngineLane& lane = *flow.lane;
  const bool twice = faults_.repeat_record == 1;
  u8* room = lane.end.records_out.reserve(static_cast<u32>(entry.record.size()));
  if (room == nullptr) return false;
  if (Session* session = find_session(flow.session)) {
    RecordHeader head;
    std::memcpy(&head, entry.record.data(), sizeof head);
    if (head.kind == u8(RecordKind::message)) ++session->count.messages_in;
    if (head.kind == u8(RecordKind::message)) session->count.payload_bytes_in += head.payload_bytes;
    if (entry.transfer != nullptr) ++session->count.transfers_done_in;
  }
  if (entry.transfer != nullptr) finish_payload(entry, lane, flow.id);
  std::memcpy(room, entry.record.data(), entry.record.size());
  lane.end.records_out.commit();
  lane.end.records_out.publish();
  ++moved_.published;
  EngineFaults::fires(faults_.repeat_record);
  if (twice && (room = lane.end.records_out.reserve(static_cast<u32>(entry.record.size()))) != nullptr) {
    std::memcpy(room, entry.record.data(), entry.record.size());
    lane.end.records_out.commit();
    lane.end.records_out.publish();
  }
  return true;
}

/// The record's table now names our slot; the slot belongs to the reader until it is released.
void Engine::finish_payload(Incoming& entry, EngineLane&, u64 flow) {
  InTransfer& transfer = *entry.transfer;
  if (EngineFaults::fires(faults_.flip_after_checksum) && transfer.total > 3)  // a high exponent bit, were it float32
    transfer.base[std::min<u64>((transfer.total / 2) | 3, transfer.total - 1)] ^= 0x40;
  if (EngineFaults::fires(faults_.zero_after_checksum)) std::memset(transfer.base, 0, transfer.total);
  wire::RecordView view;
  wire::view_record(entry.record, view);
  u8* table = entry.record.data() + (view.table.data() - entry.record.data());
  u64 at = 0;
  for (u32 i = 0; i < view.head.segment_count; ++i) {
    const u64 length = wire::segment_at(view, i).length;
    at = wire::align64(at);
    const SegmentEntry mine = arena_.entry(transfer.slot, at, length);
    std::memcpy(table + i * sizeof mine, &mine, sizeof mine);
    at += length;
  }
  arena_.hold_reader(transfer.slot, flow);
  arena_.drop_message(transfer.slot);  // the writer's hold, taken by allocate
  if (Session* session = find_session(transfer.session)) session->in_transfers.erase(transfer.id);
  entry.transfer.reset();
}

// ------------------------------------------------------------------ what the local receiver returns
void Engine::read_returns(EngineLane& lane) {
  ReturnEntry entry;
  // One ring's worth: what is taken makes room at once, and a port that goes on writing must not keep the thread.
  for (u32 taken = 0; taken < kReturnEntries; ++taken) {
    const Peek peek = lane.end.returns_in.next(entry);
    if (peek == Peek::empty) break;
    if (peek == Peek::corrupt) {
      blame(lane, "return ring cursor cannot be true");
      return;
    }
    lane.readings.push_back({lane.end.returns_in.read_cursor(), false, entry});
    take_return(lane, lane.readings_base + lane.readings.size() - 1);
  }
}

void Engine::take_return(EngineLane& lane, u64 reading) {
  const ReturnEntry entry = lane.readings[reading - lane.readings_base].entry;
  if (entry.kind == u8(ReturnKind::release)) {
    free_slot(lane, entry);
    finish_reading(lane.number, reading);
    return;
  }
  const auto flow = flows_in_.find(entry.flow);
  if (flow == flows_in_.end()) {
    // A flow not known yet keeps its entry in the ring: an end is never thrown away.
    if (removed_flows_.count(entry.flow) != 0) finish_reading(lane.number, reading);
    else emit(EngineEvent::Kind::flow_unknown, entry.flow, 0, "return entry");
    return;
  }
  if (flow->second.lane != &lane) {  // not its reader: the entry goes nowhere
    blame(lane, "a return entry names a flow of another lane");
    finish_reading(lane.number, reading);
    return;
  }
  Session* session = find_session(flow->second.session);
  if (session == nullptr) return;  // taken up again by add_deliver
  session->reports.push_back({session->report_next++, entry, lane.number, reading});
}

void Engine::finish_reading(u32 lane_number, u64 reading) {
  const auto found = lanes_.find(lane_number);
  if (found == lanes_.end()) return;
  EngineLane& lane = *found->second;
  if (reading < lane.readings_base || reading - lane.readings_base >= lane.readings.size()) return;
  lane.readings[reading - lane.readings_base].done = true;
  pop_readings(lane);
}

void Engine::pop_readings(EngineLane& lane) {
  u64 upto = 0;
  while (!lane.readings.empty() && lane.readings.front().done) {
    upto = lane.readings.front().cursor_end;
    lane.readings.pop_front();
    ++lane.readings_base;
  }
  if (upto != 0) lane.end.returns_in.release(upto);
}

/// A flow that is gone may give back what it still reads, and is remembered no longer than that.
void Engine::forget_reader(EngineLane& lane, u64 flow) {
  if (!arena_.has_readers(flow)) lane.flows_seen.erase(flow);
}

/// Only the reader of a slot gives it back: the flow must be one that this lane's port reads. A repeat changes nothing.
void Engine::free_slot(EngineLane& lane, const ReturnEntry& entry) {
  const u32 segment = u32(entry.a >> 32), slot = u32(entry.a), generation = u32(entry.b);
  if (!arena_.valid({segment, slot, generation})) return;
  if (lane.flows_seen.count(entry.flow) == 0 || !arena_.drop_reader(segment, slot, generation, entry.flow)) {
    ++totals_.releases_refused;
    return;
  }
  if (flows_in_.count(entry.flow) == 0) forget_reader(lane, entry.flow);
  if (!slot_waiters_.empty()) retry_slots();
}

}  // namespace fabric
