// The rails of a session: which of them lead, what time says of them, what of them goes again.
//
// Engine thread (its lock) only. Records go whole over one rail, its lead; when another leads, what is not acknowledged
// is repeated there and the peer discards what it has (WIRE.md §6).
#include <algorithm>

#include "core/clock.hpp"
#include "engine/access.hpp"

namespace fabric {

bool Engine::is_up(const Session& session, u32 group) {
  const Connection& connection = session.connection[group];
  return connection.link != nullptr && !connection.down;
}

/// A rail carries chunks as soon as its bulk connection is there; without its control connection another's brings the answers.
void Engine::rail_connected(Session& session, u32 group, u64 now) {
  if (kind_of(group) == 1) session.rails.rail_up(rail_of(group), now);
  send_lost(session);
  const u32 leading = session.lead[kind_of(group)];
  if (leading == group || !fit_to_lead(session, leading)) lead_with(session, group, now);
  choose_leads(session, now);
  rails_changed(session);
}

void Engine::rail_disconnected(Session& session, u32 group, u64 received, u64 now) {
  if (kind_of(group) == 1) session.rails.rail_down(rail_of(group), now, "its connection is gone", received);
  send_lost(session);
  choose_leads(session, now);
  rails_changed(session);
}

/// A control connection may lead while its rail's bulk connection is being made.
bool Engine::fit_to_lead(const Session& session, u32 group) {
  if (!is_up(session, group)) return false;
  const u32 rail = rail_of(group);
  const paths::RailState state = session.rails.state(rail);
  if (kind_of(group) == 1) return state == paths::RailState::up;
  return state == paths::RailState::up || state == paths::RailState::absent || state == paths::RailState::down;
}

/// Another rail leads only where the present one is not fit to, or a pin leaves it out and a pinned one is fit: every
/// change repeats what is not acknowledged. Where no pinned rail is fit, records and answers go on over another.
void Engine::choose_leads(Session& session, u64 now) {
  const u32 fastest = session.rails.fastest(), pinned = session.rails.pinned();
  const auto is_pinned = [&](u32 group) { return pinned == 0 || (pinned >> rail_of(group) & 1) != 0; };
  for (u32 kind = 0; kind < kKinds; ++kind) {
    u32 best = session.lead[kind];
    bool is_fit = fit_to_lead(session, best);
    if (is_fit && is_pinned(best)) continue;
    for (u32 rail = 0; rail < paths::kRailsMax; ++rail) {
      const u32 group = group_of(rail, kind);
      if (!fit_to_lead(session, group) || (is_fit && !is_pinned(group))) continue;
      best = group;
      is_fit = true;
      if (rail == fastest) break;
    }
    if (best != session.lead[kind]) lead_with(session, best, now);
  }
}

void Engine::lead_with(Session& session, u32 group, u64 now) {
  session.lead[kind_of(group)] = group;
  repeat_unacknowledged(session, kind_of(group), now);
}

// ------------------------------------------------------------------ time
/// More than one rail is connected.
bool Engine::has_choice(const Session& session) { return __builtin_popcount(session.live) > static_cast<int>(kKinds); }

/// Something is under way that a dead rail would hold up, and another could carry.
bool Engine::rails_matter(const Session& session) {
  if (!has_choice(session)) return false;
  return !session.out_transfers.empty() || !session.in_transfers.empty() || !session.reports.empty() ||
         session.posted_ns > session.taken_ns;
}

u64 Engine::rails_due(const Session& session) {
  return std::min(session.rails.next_ns(), session.rails_asked_ns == 0 ? ~u64{0} : session.rails_asked_ns + kRailPingNs);
}

void Engine::watch_rails(Session& session, u64 now) {
  if (now >= session.rails.next_ns()) {
    std::vector<u64> again;
    std::vector<u32> reset;
    session.rails.tick(now, again, reset);
    for (u64 tag : again) send_again(session, tag);
    for (u32 rail : reset)
      for (u32 kind = 0; kind < kKinds; ++kind) break_link(session, group_of(rail, kind), "the rail is silent");
    choose_leads(session, now);
    rails_changed(session);
  }
  if (session.rails_asked_ns == 0 || now >= session.rails_asked_ns + kRailPingNs) ask_rails(session, now);
}

void Engine::ask_rails(Session& session, u64 now) {
  if (!rails_matter(session)) {
    session.rails_asked_ns = 0;
    return;
  }
  session.rails_asked_ns = now;
  for (u32 rail = 0; rail < paths::kRailsMax; ++rail) {
    const u32 group = group_of(rail, 0);
    Connection& connection = session.connection[group];
    if (!is_up(session, group) || (connection.asked_ns != 0 && now < connection.asked_ns + kRailPingLostNs)) continue;
    if (connection.link->backlog() == 0) post_ping(session, group, now);
  }
}

/// What a connection carried when it went is posted again at once, before anything is said of it by time.
void Engine::send_lost(Session& session) {
  std::vector<u64> lost;
  session.rails.take_lost(lost);
  for (u64 tag : lost) send_again(session, tag);
}

void Engine::send_again(Session& session, u64 tag) {
  const auto found = session.out_transfers.find(tag >> kTagChunkBits);
  const u32 index = static_cast<u32>(tag & ((u64{1} << kTagChunkBits) - 1));
  if (found == session.out_transfers.end() || found->second->owner == nullptr || index >= found->second->chunks.size()) return;
  const std::shared_ptr<OutTransfer> transfer = found->second;
  if (transfer->chunks[index].acked) return;
  ++session.count.retransmits;
  post_again(*transfer, index);
  queue_bulk(session, transfer);
}

void Engine::rails_changed(Session& session) {
  for (const paths::Change& change : session.rails.take_changes()) {
    const std::string words = std::string(paths::name(change.from)) + ">" + paths::name(change.to) + ": " + change.reason;
    emit(EngineEvent::Kind::rail, session.id, change.rail, words);
  }
}

// ------------------------------------------------------------------ public calls
std::vector<RailStats> Engine::rails(u64 session_id, u64 bytes) {
  Access access(*this);
  std::vector<RailStats> out;
  const Session* session = find_session(session_id);
  if (session == nullptr) return out;
  const u64 now = monotonic_ns();
  for (u32 rail = 0; rail < paths::kRailsMax; ++rail) {
    if (session->rails.state(rail) == paths::RailState::absent && !is_up(*session, group_of(rail, 0))) continue;
    out.push_back({rail, session->rails.terms(rail, bytes, now), rail_of(session->lead[0]) == rail});
  }
  return out;
}

std::vector<paths::Decision> Engine::decisions(u64 session_id) {
  Access access(*this);
  const Session* session = find_session(session_id);
  if (session == nullptr) return {};
  return {session->rails.decisions().begin(), session->rails.decisions().end()};
}

Status Engine::pin(u64 session_id, u32 mask) {
  Access access(*this, true);
  Session* session = find_session(session_id);
  if (session == nullptr) return Status::fail(Code::invalid, "no such session");
  if (mask >= 1u << paths::kRailsMax) return Status::fail(Code::invalid, "no such rail: there are " + std::to_string(paths::kRailsMax));
  session->rails.pin(mask);
  choose_leads(*session, monotonic_ns());
  return Status::success();
}

Status Engine::lose_rail(u64 session_id, u32 rail, const std::string& reason) {
  Access access(*this, true);
  Session* session = find_session(session_id);
  if (session == nullptr || rail >= paths::kRailsMax) return Status::fail(Code::invalid, "no such session or rail");
  for (u32 kind = kKinds; kind-- > 0;) break_link(*session, group_of(rail, kind), reason);
  return Status::success();
}

}  // namespace fabric
