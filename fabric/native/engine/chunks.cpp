// Payload on its way out: granted transfers, cut into chunks to the measure of the rail that takes each.
//
// Engine thread (its lock) only. Which rail, and what goes again, is the RailScheduler's to say; a chunk that was cut
// keeps its bounds, so that the receiver knows a repeat.
#include <algorithm>

#include "core/clock.hpp"
#include "core/crc32c.hpp"
#include "engine/engine.hpp"

namespace fabric {
namespace {

/// What the scheduler is told of a chunk, and gives back where it is to be posted again.
u64 tag_of(const OutTransfer& transfer, u32 chunk) { return transfer.id << kTagChunkBits | chunk; }

/// Takes what the peer has (offset → length, verified) out of what was never cut.
void subtract(std::deque<Chunk>& uncut, const std::map<u64, u64>& have) {
  std::deque<Chunk> rest;
  for (const Chunk& whole : uncut) {
    u64 at = whole.target_offset;
    const u64 end = at + whole.length;
    const auto keep = [&](u64 upto) {
      if (upto > at) rest.push_back({whole.piece, upto - at, whole.source_offset + (at - whole.target_offset), at});
    };
    auto range = have.upper_bound(at);
    if (range != have.begin()) --range;
    for (; range != have.end() && range->first < end; ++range) {
      if (range->first + range->second <= at) continue;
      keep(std::min(range->first, end));
      at = std::max(at, range->first + range->second);
    }
    keep(end);
  }
  uncut.swap(rest);
}

bool contains(const std::map<u64, u64>& have, const Chunk& chunk) {
  auto range = have.upper_bound(chunk.target_offset);
  if (range == have.begin()) return false;
  --range;
  return range->first + range->second >= chunk.target_offset + chunk.length;
}

}  // namespace

// ------------------------------------------------------------------ queues
void Engine::queue_bulk(Session& session, const std::shared_ptr<OutTransfer>& transfer) {
  if (transfer->queued || !transfer->granted || transfer->left == 0) return;
  session.bulk[transfer->klass].put(transfer);
}

/// A higher class goes first; a lower one has every `kLowerClassEvery`-th turn, so that it is late and never stuck.
BulkQueue* Engine::next_queue(Session& session) {
  BulkQueue *high = nullptr, *low = nullptr;
  for (BulkQueue& waiting : session.bulk) {
    if (waiting.is_empty()) continue;
    if (high == nullptr) high = &waiting;
    low = &waiting;
  }
  const bool lower = high != low && ++session.bulk_turn % kLowerClassEvery == 0;
  return lower ? low : high;
}

// ------------------------------------------------------------------ grants
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
  if (transfer->chunks.empty()) subtract(transfer->uncut, have);
  const u64 before = transfer->again.size();
  for (u32 i = 0; i < transfer->chunks.size(); ++i) {
    CutChunk& chunk = transfer->chunks[i];
    if (!chunk.acked && contains(have, chunk.what)) {  // its acknowledgement was lost: how long it took is not known
      chunk.acked = true;
      withdraw(session, chunk);
    }
    if (!chunk.acked && !is_flying(session, chunk)) post_again(*transfer, i);
  }
  count_left(*transfer);
  if (transfer->owner->sent) session.count.retransmits += transfer->again.size() - before;
  if (transfer->left == 0) transfer->owner->sent = true;
  queue_bulk(session, transfer);
  pump_bulk(session, now);
}

/// No rail waits for it any more.
void Engine::withdraw(Session& session, CutChunk& chunk) {
  for (u64& ticket : chunk.tickets) {
    if (ticket != kNoTicket) session.rails.withdrawn(ticket);
    ticket = kNoTicket;
  }
}

bool Engine::is_flying(Session& session, const CutChunk& chunk) {
  return std::any_of(std::begin(chunk.tickets), std::end(chunk.tickets), [&](u64 ticket) {
    return ticket != kNoTicket && session.rails.is_outstanding(ticket);
  });
}

void Engine::post_again(OutTransfer& transfer, u32 chunk) {
  CutChunk& cut = transfer.chunks[chunk];
  if (cut.acked || cut.queued) return;
  cut.queued = true;
  transfer.again.push_back(chunk);
  transfer.left += cut.what.length;
}

/// What was acknowledged while it waited to go again.
void Engine::skip_acknowledged(OutTransfer& transfer) {
  while (!transfer.again.empty() && transfer.chunks[transfer.again.front()].acked) {
    CutChunk& chunk = transfer.chunks[transfer.again.front()];
    chunk.queued = false;
    transfer.left -= chunk.what.length;
    transfer.again.pop_front();
  }
}

void Engine::count_left(OutTransfer& transfer) {
  std::erase_if(transfer.again, [&](u32 i) {
    if (transfer.chunks[i].acked) transfer.chunks[i].queued = false;
    return transfer.chunks[i].acked;
  });
  transfer.left = 0;
  for (const Chunk& part : transfer.uncut) transfer.left += part.length;
  for (u32 i : transfer.again) transfer.left += transfer.chunks[i].what.length;
}

// ------------------------------------------------------------------ posting
void Engine::pump_bulk(Session& session, u64 now) {
  session.waits_for_room = false;
  while (BulkQueue* queue = next_queue(session)) {
    const u32 full = full_rails(session);
    const std::shared_ptr<OutTransfer> transfer = queue->next(now);
    if (transfer->owner == nullptr || !transfer->granted) {
      queue->drop(*transfer);
      continue;
    }
    skip_acknowledged(*transfer);
    if (transfer->left == 0) {
      queue->drop(*transfer);
      all_posted(*transfer->owner);
      continue;
    }
    const paths::Pick pick = pick_rail(session, *transfer, full, now);
    if (pick.rail == paths::kNoRail) {  // its turn stays its own
      session.waits_for_room = full != 0;
      return;
    }
    const u64 before = transfer->left;
    const bool was_posted = post_chunk(session, *transfer, pick, now);
    queue->pay(*transfer, before - transfer->left);
    if (was_posted && transfer->left == 0) all_posted(*transfer->owner);
    if (!was_posted || transfer->left == 0) queue->drop(*transfer);
  }
}

/// For what goes next of a transfer; what goes again takes another rail than before where there is one.
paths::Pick Engine::pick_rail(Session& session, const OutTransfer& transfer, u32 full, u64 now) {
  u64 pending = transfer.left - transfer.queued_bytes;
  for (const BulkQueue& queue : session.bulk) pending += queue.bytes();
  const bool is_again = !transfer.again.empty();
  const u32 tried = is_again ? transfer.chunks[transfer.again.front()].tried : 0;
  const u64 left = is_again ? transfer.chunks[transfer.again.front()].what.length : transfer.uncut.front().length;
  const paths::Pick pick = session.rails.pick(left, pending, now, full | tried);
  if (pick.rail != paths::kNoRail || tried == 0 || other_rail(session, tried)) return pick;
  return session.rails.pick(left, pending, now, full);
}

/// From here on it cannot expire.
void Engine::all_posted(Outgoing& owner) {
  if (owner.timed) timers_.erase({owner.deadline_ns, &owner});
  owner.timed = false;
  owner.sent = true;
}

/// Rails whose link holds all it may. While records wait for it, chunks leave them room.
u32 Engine::full_rails(Session& session) {
  const bool records_wait = !session.blocked[u32(Class::embedding)].empty() || !session.blocked[u32(Class::bulk)].empty();
  u32 full = 0;
  for (u32 rail = 0; rail < paths::kRailsMax; ++rail) {
    const u32 group = group_of(rail, 1);
    const Connection& connection = session.connection[group];
    const u64 room = records_wait && group == session.lead[1] ? kRecordBacklogBytes : kBulkBacklogBytes;
    if (connection.link != nullptr && connection.link->backlog() >= room) full |= 1u << rail;
  }
  return full;
}

bool Engine::other_rail(Session& session, u32 tried) {
  for (u32 rail = 0; rail < paths::kRailsMax; ++rail)
    if (session.rails.carries(rail) && (tried >> rail & 1) == 0) return true;
  return false;
}

/// The part that goes next, cut to `bytes` where it is not bound yet. @return its index
u32 Engine::cut_chunk(OutTransfer& transfer, u32 bytes) {
  if (!transfer.again.empty()) {
    const u32 index = transfer.again.front();
    transfer.again.pop_front();
    transfer.chunks[index].queued = false;
    transfer.left -= transfer.chunks[index].what.length;
    return index;
  }
  Chunk& front = transfer.uncut.front();
  Chunk part = front;
  part.length = std::min<u64>(front.length, std::min(bytes, wire::kChunkBytesMax));
  front.source_offset += part.length;
  front.target_offset += part.length;
  front.length -= part.length;
  if (front.length == 0) transfer.uncut.pop_front();
  transfer.left -= part.length;
  transfer.chunks.push_back({part, {kNoTicket, kNoTicket}, 0, false, false});
  return static_cast<u32>(transfer.chunks.size() - 1);
}

bool Engine::post_chunk(Session& session, OutTransfer& transfer, paths::Pick pick, u64 now) {
  Outgoing& owner = *transfer.owner;
  if (!owner.sent && owner.deadline_ns != 0 && now >= owner.deadline_ns) {
    end_here(owner, End::dropped, Reason::expired, now);
    return false;
  }
  const u32 next = transfer.again.empty() ? transfer.uncut.front().piece : transfer.chunks[transfer.again.front()].what.piece;
  const SegmentEntry& piece = transfer.pieces[next];
  const auto mapped = segments_.find(piece.segment);
  if (mapped == segments_.end()) {
    std::set<std::pair<u64, u64>>& waiters = segment_waiters_[piece.segment];
    if (waiters.empty()) emit(EngineEvent::Kind::need_segment, piece.segment);
    waiters.emplace(session.id, transfer.id);
    return false;
  }
  const u32 index = cut_chunk(transfer, pick.bytes);
  CutChunk& cut = transfer.chunks[index];
  const u32 length = static_cast<u32>(cut.what.length);
  const u8* base = nullptr;
  const Status status = mapped->second->resolve(piece, base);
  const u8* from = base + (cut.what.source_offset - piece.offset);
  OutFrame frame;
  const u32 group = group_of(pick.rail, 1);
  const bool plain = (session.connection[group].features & wire::kFeaturePlainChunks) != 0;
  if (plain) frame.header.features = wire::kFeaturePlainChunks;
  else if (status.ok()) frame.header.body_crc = crc32c(from, length, 0);
  // Both checks hold: the checksum is of the right bytes, and the receiver refuses any others.
  if (!status.ok() || !mapped->second->holds(piece)) {
    emit(EngineEvent::Kind::stale, owner.flow_id, owner.flow_seq, status.message);
    end_here(owner, End::failed, Reason::corrupted, now);
    return false;
  }
  frame.header.type = u8(wire::FrameType::chunk);
  frame.header.a = transfer.id;
  frame.header.b = cut.what.target_offset;
  frame.body = from;
  frame.body_len = length;
  frame.keep = mapped->second;
  transfer.moved_ns = now;
  note_ticket(session, cut, pick.rail, session.rails.posted(pick.rail, length, tag_of(transfer, index), now));
  post_frame(session, group, std::move(frame));
  return true;
}

void Engine::note_ticket(Session& session, CutChunk& chunk, u32 rail, u64 ticket) {
  chunk.tried |= 1u << rail;
  const bool first = chunk.tickets[0] != kNoTicket && session.rails.is_outstanding(chunk.tickets[0]);
  u64& slot = chunk.tickets[first ? 1 : 0];
  if (slot != kNoTicket) session.rails.withdrawn(slot);  // a third rail carries it: the second is not waited for
  slot = ticket;
}

// ------------------------------------------------------------------ acknowledgements
void Engine::on_chunk_acks(Session& session, std::span<const u8> body, u64 now) {
  for (std::size_t at = 0; at + sizeof(wire::ChunkAck) <= body.size(); at += sizeof(wire::ChunkAck)) {
    wire::ChunkAck ack;
    std::memcpy(&ack, body.data() + at, sizeof ack);
    const auto found = session.out_transfers.find(ack.transfer);
    if (found == session.out_transfers.end() || found->second->owner == nullptr) continue;
    const std::shared_ptr<OutTransfer> transfer = found->second;
    const auto chunk = std::lower_bound(
        transfer->chunks.begin(), transfer->chunks.end(), ack.offset,
        [](const CutChunk& cut, u64 offset) { return cut.what.target_offset < offset; });
    if (chunk == transfer->chunks.end() || chunk->what.target_offset != ack.offset || chunk->what.length != ack.length) continue;
    take_chunk_ack(session, transfer, *chunk, ack, now);
  }
}

void Engine::take_chunk_ack(Session& session, const std::shared_ptr<OutTransfer>& transfer, CutChunk& chunk,
                            const wire::ChunkAck& ack, u64 now) {
  const bool taken = wire::ack_status(ack) == 0;
  for (u64& ticket : chunk.tickets) {
    if (ticket == kNoTicket || paths::rail_of_ticket(ticket) != wire::ack_rail(ack)) continue;
    if (taken) session.rails.delivered(ticket, now);
    else session.rails.withdrawn(ticket);
    ticket = kNoTicket;
  }
  if (taken) {
    chunk.acked = true;
    transfer->moved_ns = now;
    transfer->stalls = 0;
  }
  if (chunk.acked) return;
  ++session.count.retransmits;
  if (++transfer->bad > kChunksBadMax) {
    emit(EngineEvent::Kind::corrupt, transfer->owner->flow_id, transfer->owner->flow_seq, "receiver refused too many chunks");
    end_here(*transfer->owner, End::failed, Reason::corrupted, now);
    return;
  }
  chunk.tried = 0;                     // no rail's fault that another would not have
  post_again(*transfer, static_cast<u32>(&chunk - transfer->chunks.data()));
  queue_bulk(session, transfer);
}

/// The transfer is over: nothing of it is waited for. What the peer has taken counts for the rail that alone carried it.
void Engine::settle_tickets(Session& session, OutTransfer& transfer, bool taken) {
  const u64 now = monotonic_ns();
  for (CutChunk& chunk : transfer.chunks) {
    const bool alone = chunk.tickets[0] == kNoTicket || chunk.tickets[1] == kNoTicket;
    for (u64& ticket : chunk.tickets) {
      if (ticket == kNoTicket) continue;
      if (taken && alone) session.rails.delivered(ticket, now);
      else session.rails.withdrawn(ticket);
      ticket = kNoTicket;
    }
  }
}

}  // namespace fabric
