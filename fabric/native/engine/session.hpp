// One peer engine incarnation: two connections and what is numbered between the two.
#pragma once

#include <deque>
#include <set>
#include <unordered_map>

#include "engine/incoming.hpp"
#include "engine/outgoing.hpp"
#include "links/link.hpp"

namespace fabric {

inline constexpr u64 kRecordBacklogBytes = 256 * 1024;  // records wait in the lane beyond this
inline constexpr u64 kBulkBacklogBytes = 512 * 1024;    // chunks wait with their sender beyond this
inline constexpr u64 kReportsUnackedMax = 16384;
inline constexpr u32 kChunksBadMax = 16;

struct Connection {
  std::unique_ptr<Link> link;
  u64 tag = 0;
  bool write_armed = false;
  bool down = false;                    // broken inside a callback; torn down after it
  bool more = false;                    // unread input is at hand
  std::string reason;
  LinkSample past{};                    // of earlier links of this group
};

inline constexpr u32 kNoLane = ~0u;

struct Report { u64 number; ReturnEntry entry; u32 lane; u64 reading; };

struct Session {
  u64 id = 0, peer_incarnation = 0;
  u32 peer_node = 0;
  Connection connection[2];
  // reports going out
  std::deque<Report> reports;           // not acknowledged
  std::size_t reports_sent = 0;         // of those, posted on the present connection
  u64 report_next = 1;
  // reports coming in
  u64 report_seen = 0;
  std::set<u64> report_blocked;         // taken, but not yet in a return ring
  bool report_ack_due = false;
  std::vector<u64> ack_due;             // flows to acknowledge
  std::vector<wire::ChunkAck> chunk_acks;
  std::unordered_map<u64, std::shared_ptr<OutTransfer>> out_transfers;
  std::deque<std::shared_ptr<OutTransfer>> bulk;
  std::deque<u64> blocked[2];           // flows waiting for a group's backlog to shrink
  std::unordered_map<u64, u64> in_transfers;   // transfer → flow
  u64 retransmits = 0, crc_errors = 0, repeats = 0;
};

}  // namespace fabric
