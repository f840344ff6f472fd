// One peer engine incarnation: two connections a rail, and what is numbered between the two engines.
#pragma once

#include <deque>
#include <set>
#include <string>
#include <unordered_map>

#include "engine/incoming.hpp"
#include "engine/outgoing.hpp"
#include "links/link.hpp"
#include "paths/rail_scheduler.hpp"

namespace fabric {

inline constexpr u64 kRecordBacklogBytes = 256 * 1024;  // records wait in the lane beyond this
inline constexpr u64 kBulkBacklogBytes = 512 * 1024;    // chunks wait with their sender beyond this
inline constexpr u64 kReadBudgetBytes = 2 * 1024 * 1024;  // one connection, one step
inline constexpr std::size_t kWindowAfterLoss = 2;      // so that a connection which breaks often still gets the first one through
inline constexpr u64 kLargeTransferBytes = 1024 * 1024;
inline constexpr u32 kTransfersOfFlow = 2;              // announced and not acknowledged; fewer never wait
inline constexpr u64 kTransferBytesOfFlow = 32 * 1024 * 1024;  // nor do fewer bytes
inline constexpr u64 kAcksWaitNs = 1'000'000;           // acknowledgements alone wait so long for a frame to go with
inline constexpr u64 kAcksPromptNs = 1'000'000'000;     // after a connection came up
inline constexpr u64 kAcksWaitBytes = 16 * 1024;        // of records: a lane holds 16 times that
inline constexpr u64 kAcksWaitReports = 64;
inline constexpr u32 kLowerClassEvery = 8;              // chunks of a higher class between two of a lower one
inline constexpr u64 kRailPingNs = 10'000'000;          // while payload is under way over more than one rail
inline constexpr u64 kRailPingLostNs = 50'000'000;      // an answer that is not there by then is not waited for
inline constexpr u32 kKinds = 2;                        // connections of a rail: control and token, embedding and bulk
inline constexpr u32 kGroups = kKinds * paths::kRailsMax;

/// The number of a connection within its session, on the wire too: rail × 2 + kind.
inline constexpr u32 group_of(u32 rail, u32 kind) { return rail * kKinds + kind; }
inline constexpr u32 rail_of(u32 group) { return group / kKinds; }
inline constexpr u32 kind_of(u32 group) { return group % kKinds; }

struct Connection {
  std::unique_ptr<Link> link;
  u64 tag = 0;
  u32 features = 0;                     // that both sides agreed on: kFeature…
  bool write_armed = false;
  bool down = false;                    // broken inside a callback; torn down after it
  bool more = false;                    // unread input is at hand
  std::string reason;
  LinkSample past{};                    // of earlier links of this group
  u64 heard_ns = 0;                     // when bytes of the peer were last taken
  u64 ping_ns = 0, ping_end = 0;        // unanswered: when it was posted, where it ends in the stream; 0: none
  u64 alive_ns = 0;                     // later than the ping: the transport still moves what is before it
  u64 acked = 0, acked_ns = 0;          // what the transport has confirmed, and since when no more
  u32 greetings = 0;                    // round trips still to be measured as soon as it is there
  u64 asked_ns = 0;                     // what the newest unanswered ping carries: the round trip is measured by it
};

/// Since the session began; the sums of closed sessions are kept by the engine. Python: Engine.stats().
struct SessionCounters {
  u64 messages_in = 0, messages_out = 0, payload_bytes_in = 0, payload_bytes_out = 0;
  u64 retransmits = 0;         // records and chunks posted again
  u64 repeats = 0;             // records that came again, discarded
  u64 crc_errors = 0;          // bodies whose checksum did not hold
  u64 chunks_late = 0;         // chunks without a place: late, repeated or never asked for
  u64 gaps = 0;                // records that were missing and asked for again
  u64 breaks = 0, silent_breaks = 0, protocol_breaks = 0;
  u64 transfers_done_in = 0, transfers_done_out = 0, transfers_aborted = 0, transfers_stalled = 0;
  u64 backlog_stalls = 0, lane_stalls = 0, slot_stalls = 0;   // link full, reader's lane full, arena full
  u64 foreign = 0;             // said of flows that are not of this connection: void

  void add(const SessionCounters& other);
};

inline constexpr u32 kNoLane = ~0u;

struct Report { u64 number; ReturnEntry entry; u32 lane; u64 reading; };

struct Session {
  u64 id = 0, peer_incarnation = 0;
  u32 peer_node = 0;
  Connection connection[kGroups];
  u32 live = 0;                         // bit per group that has a link
  u32 lead[kKinds] = {0, 1};            // the connection that carries the records of each kind
  paths::RailScheduler rails;
  u64 posted_ns = 0, taken_ns = 0;      // when a record was posted last, and when the peer last said what it had taken
  u64 rails_asked_ns = 0;               // when the rails were pinged last
  bool waits_for_room = false;          // chunks wait because a link has taken all it may hold
  // reports going out
  std::deque<Report> reports;           // not acknowledged
  std::size_t reports_sent = 0;         // of those, posted on the present connection
  u64 report_next = 1;
  // reports coming in
  u64 report_seen = 0;
  std::set<u64> report_blocked;         // taken, but not yet in a return ring
  bool report_ack_due = false;
  u64 reports_since_ns = 0;             // the oldest one that waits for company; 0: none does
  u64 report_acked = 0;                 // said to the peer
  std::vector<u64> ack_due;             // flows to acknowledge
  u64 acks_since_ns = 0, acks_bytes = 0;  // the oldest one that waits, and what lies in lanes unacknowledged
  bool acks_pressing = false;           // one of them frees a slot
  u64 acks_prompt_ns = 0;               // until then none waits: a connection is new, its peer's window small
  std::vector<wire::ChunkAck> chunk_acks[paths::kRailsMax];  // by the rail that brought the chunk
  std::unordered_map<u64, std::shared_ptr<OutTransfer>> out_transfers;
  BulkQueue bulk[4];                    // by class
  u32 bulk_turn = 0;                    // chunks posted since a lower class had its turn
  std::deque<u64> blocked[4];           // by class: flows waiting for their group's backlog to shrink
  std::unordered_map<u64, u64> in_transfers;   // transfer → flow
  u64 chunk_heard_ns = 0;
  SessionCounters count;

  Connection& leading(u32 kind) { return connection[lead[kind]]; }
  const Connection& leading(u32 kind) const { return connection[lead[kind]]; }
};

}  // namespace fabric
