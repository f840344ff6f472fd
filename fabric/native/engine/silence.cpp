// Peers that say nothing and transfers that do not move: asked, then broken, so that nothing waits for ever.
//
// Engine thread only. An idle connection costs one question a second. A deadline that passed while this process
// itself was stopped is judged after what had come meanwhile was read.
#include "core/clock.hpp"
#include "engine/engine.hpp"

namespace fabric {
namespace {

constexpr u64 kMs = 1'000'000;
constexpr u64 kPingNs = u64{kLinkPingMs} * kMs;
constexpr u64 kAnswerNs = u64{kLinkSilentMs - kLinkPingMs} * kMs;
constexpr u64 kTickNs = 500 * kMs;  // while transfers are open or bytes wait
constexpr u64 kTogetherNs = 100 * kMs;  // what is due that soon is asked with the rest

}  // namespace

void Engine::post_ping(Session& session, u32 group, u64 now) {
  OutFrame ping;
  ping.header.type = u8(wire::FrameType::ping);
  ping.header.a = now;
  session.connection[group].asked_ns = now;
  if (kind_of(group) == 0 && has_choice(session)) session.rails.asked(rail_of(group), now);
  post_frame(session, group, std::move(ping));
}

/// The bulk connection's answer waited behind chunks: it tells nothing of the rail's latency.
void Engine::on_pong(Session& session, u32 group, const wire::FrameHeader& header, u64 now) {
  Connection& connection = session.connection[group];
  if (connection.asked_ns == 0 || header.a != connection.asked_ns) return;
  if (kind_of(group) == 0) session.rails.round_trip(rail_of(group), now - connection.asked_ns, now);
  connection.asked_ns = 0;
  if (connection.greetings > 0) {
    --connection.greetings;
    post_ping(session, group, now);
  }
}

void Engine::ask_peer(Session& session, u32 group, u64 now) {
  Connection& connection = session.connection[group];
  post_ping(session, group, now);
  connection.ping_ns = connection.alive_ns = now;
  connection.ping_end = connection.link->sample().bytes_out + connection.link->backlog();
}

void Engine::watch_links(u64 now) {
  u64 next = 0;
  const auto due = [&](u64 at) { next = next == 0 ? at : std::min(next, at); };
  for (auto& [id, session] : sessions_) {
    for (u32 live = session->live; live != 0; live &= live - 1) {
      const u32 group = static_cast<u32>(__builtin_ctz(live));
      Connection& connection = session->connection[group];
      if (connection.link != nullptr) watch_connection(*session, group, now);
      if (connection.link == nullptr) continue;
      due(connection.ping_ns != 0 ? connection.alive_ns + kAnswerNs : connection.heard_ns + kPingNs);
      if (connection.link->backlog() > 0) due(now + kTickNs);
    }
    watch_transfers(*session, now);
    if (!session->in_transfers.empty() || !session->out_transfers.empty()) due(now + kTickNs);
  }
  watch_ns_ = next;
}

void Engine::watch_connection(Session& session, u32 group, u64 now) {
  Connection& connection = session.connection[group];
  const u64 acked = connection.link->sample().acked;
  if (acked != connection.acked || connection.link->backlog() == 0) connection.acked_ns = now;
  // What lies before the ping still moves: slow is not silent.
  if (acked != connection.acked && acked < connection.ping_end) connection.alive_ns = now;
  connection.acked = acked;
  const bool is_stuck = now >= connection.acked_ns + u64{kLinkSilentMs} * kMs;
  const bool is_silent = connection.ping_ns != 0 && now >= connection.alive_ns + kAnswerNs;
  if (is_stuck || is_silent) {
    progress_link(session, group, kReadBudgetBytes);
    if (connection.link == nullptr) return;
    if (!is_stuck && connection.ping_ns == 0) return;
    const char* why = is_stuck ? "link silent: the peer takes nothing" : "link silent: the peer does not answer";
    ++session.count.silent_breaks;
    emit(EngineEvent::Kind::link_silent, session.id, group, why);
    break_link(session, group, why);
    return;
  }
  if (connection.ping_ns == 0 && now + kTogetherNs >= connection.heard_ns + kPingNs) ask_peer(session, group, now);
}

/// Every byte of every chunk has reached the peer's kernel, on the rails that live.
bool Engine::carried_all(Session& session) {
  for (u32 rail = 0; rail < paths::kRailsMax; ++rail) {
    const Connection& bulk = session.connection[group_of(rail, 1)];
    if (bulk.link == nullptr || !session.rails.usable(rail)) continue;
    const LinkSample sample = bulk.link->sample();
    if (bulk.link->backlog() != 0 || sample.acked < sample.bytes_out) return false;
  }
  return true;
}

void Engine::watch_transfers(Session& session, u64 now) {
  const bool both_up = session.leading(0).link != nullptr && session.leading(1).link != nullptr;
  if (!both_up) return;
  if (carried_all(session)) {
    for (auto& [id, transfer] : session.out_transfers) {
      const bool waits = transfer->granted && transfer->left == 0 && transfer->owner != nullptr;
      if (waits && now >= transfer->moved_ns + u64{kTransferStallMs} * kMs) resend_stalled(session, *transfer, now);
      if (session.leading(1).link == nullptr) return;
    }
  }
  const u64 silent = u64{kTransferSilentMs} * kMs;
  if (session.in_transfers.empty() || now < session.chunk_heard_ns + silent) return;
  for (const auto& [id, flow] : session.in_transfers) {
    Incoming* entry;
    Deliver* owner;
    const InTransfer* transfer = find_transfer(session, id, &entry, &owner);
    if (transfer == nullptr || entry->ready || transfer->base == nullptr || now < transfer->moved_ns + silent) continue;
    ++session.count.transfers_stalled;
    emit(EngineEvent::Kind::transfer_stalled, flow, entry->flow_seq, "granted, and no chunk comes");
    session.chunk_heard_ns = now;  // once for all of them
    for (u32 rail = 0; rail < paths::kRailsMax; ++rail) break_link(session, group_of(rail, 1), "transfer stalled: no chunk comes");
    return;
  }
}

void Engine::resend_stalled(Session& session, OutTransfer& transfer, u64 now) {
  ++session.count.transfers_stalled;
  transfer.moved_ns = now;
  if (++transfer.stalls > kTransferStallsMax) {
    transfer.stalls = 0;
    emit(EngineEvent::Kind::transfer_stalled, transfer.owner->flow_id, transfer.owner->flow_seq, "sent again in vain");
    for (u32 group = 0; group < kGroups; ++group) break_link(session, group, "transfer stalled: chunks are not acknowledged");
    return;
  }
  settle_tickets(session, transfer, false);
  for (u32 i = 0; i < transfer.chunks.size(); ++i) post_again(transfer, i);
  session.count.retransmits += transfer.again.size();
  if (const auto shared = session.out_transfers.find(transfer.id); shared != session.out_transfers.end())
    queue_bulk(session, shared->second);
}

}  // namespace fabric
