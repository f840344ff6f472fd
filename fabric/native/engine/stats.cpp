// What the engine counted, taken at one moment.
#include "engine/access.hpp"

namespace fabric {

void SessionCounters::add(const SessionCounters& other) {
  static_assert(sizeof(SessionCounters) % sizeof(u64) == 0, "nothing but counters");
  u64* mine = reinterpret_cast<u64*>(this);
  const u64* theirs = reinterpret_cast<const u64*>(&other);
  for (std::size_t i = 0; i < sizeof(SessionCounters) / sizeof(u64); ++i) mine[i] += theirs[i];
}

namespace {

GroupStats of_group(u32 group, Connection& connection) {
  GroupStats stats{group, connection.link != nullptr, connection.past, 0, connection.features};
  if (connection.link == nullptr) return stats;
  const LinkSample now = connection.link->sample();
  stats.sample.bytes_in += now.bytes_in;
  stats.sample.bytes_out += now.bytes_out;
  stats.sample.frames_in += now.frames_in;
  stats.sample.frames_out += now.frames_out;
  stats.sample.retransmits += now.retransmits;
  stats.sample.rtt_ns = now.rtt_ns;
  stats.backlog = connection.link->backlog();
  return stats;
}

}  // namespace

EngineStats Engine::stats() {
  Access access(*this);
  EngineStats out = totals_;
  out.closed = closed_;
  for (auto& [id, session] : sessions_) {
    std::vector<GroupStats> groups;
    for (u32 group = 0; group < kGroups; ++group)
      if (group < kKinds || session->connection[group].tag != 0) groups.push_back(of_group(group, session->connection[group]));
    out.sessions.push_back({id, session->peer_node, std::move(groups), session->count, session->out_transfers.size(),
                            session->in_transfers.size(), session->reports.size(), session->report_blocked.size()});
  }
  out.wakeups = wakeups();
  out.flows_out = flows_out_.size();
  out.flows_in = flows_in_.size();
  for (const auto& [number, lane] : lanes_) out.flows_seen += lane->flows_seen.size();
  out.unknown_flows = unknown_in_.size();
  for (const auto& [flow, held] : orphan_returns_) out.orphan_returns += held.size();
  for (const auto& [segment, waiters] : segment_waiters_) out.segment_waits += waiters.size();
  out.slot_waits = slot_waiters_.size();
  out.slots_taken = arena_.taken_slots();
  return out;
}

}  // namespace fabric
