// The sending host: transfers cut into chunks by the scheduler's picks, acknowledged, sent again, connections re-made.
//
// It does what the engine and its control plane do around a RailScheduler: round robin over the transfers of a class,
// chunks that come back go first, a rail that is told to be reset is dialled anew, each attempt given up after 200 ms.
#pragma once

#include <array>
#include <deque>
#include <string>
#include <vector>

#include "paths/rail_scheduler.hpp"
#include "sim/transport.hpp"

namespace fabric::sim {

inline constexpr u64 kDialGivenUpNs = 200'000'000;
inline constexpr u64 kSilentNs = 2'500'000'000;      // kLinkSilentMs
inline constexpr u64 kBacklogFull = 512 * 1024;         // the engine's kBulkBacklogBytes: a link that holds this much gets no more
inline constexpr u64 kAskEveryNs = 10'000'000;       // the engine's kRailPingNs
inline constexpr u64 kLowerClassEvery = 8;

struct SentTransfer {
  u64 bytes = 0, cut = 0, acked = 0, at_ns = 0, granted_ns = 0, done_ns = 0;  // done: all acknowledged
  u32 klass = 3;
};
struct SentChunk { u32 transfer = 0, bytes = 0, tried = 0; bool acked = false, queued = false; };
struct Post { u64 ticket; u32 chunk, rail, bytes; bool counted; };  ///< counted: in the rail's ledger of bytes in flight

class Sender {
 public:
  Sender(const Plan& plan, Events& events, Transport& transport);
  u32 offer(u64 bytes, u32 klass);                     ///< @return the transfer
  void granted(u32 transfer);
  void answered(u32 rail, u64 post, bool is_bad);
  void tick();
  void outage(u32 rail, bool begins);                  ///< the interface says so
  void dial(u32 rail);
  void dialled(u32 rail, u64 attempt);
  void watch();                                        ///< asks rails that nothing was heard of, gives up those that stay silent
  void pong(u32 rail, u64 left_ns, u32 epoch, u64 tries);
  /// Compares the scheduler with ledgers kept apart from it. @return empty, or what does not hold.
  std::string audit(bool is_last) const;

  const paths::RailScheduler& scheduler() const { return scheduler_; }
  const std::vector<SentTransfer>& transfers() const { return transfers_; }
  const SentChunk& chunk(u32 number) const { return chunks_[number]; }
  const Post& post(u64 number) const { return posts_[number]; }
  u64 pending() const { return pending_; }
  u64 unacked() const { return unacked_; }
  u64 posted_bytes() const { return posted_bytes_; }
  u64 tick_ns() const { return tick_ns_; }
  u64 log() const { return log_; }                     ///< changes with every decision: two runs are the same or not

 private:
  void pump();
  bool post_again();
  bool post_next();
  void post(u32 rail, u32 chunk);
  void come_back(u32 chunk);
  void look_at_changes();
  void plan_tick();
  void ask(u32 rail);
  void break_rail(u32 rail, const char* reason);
  u32 usable(u32 besides) const;
  u32 full() const;
  SentTransfer* next_transfer(u32& number);

  const Plan& plan_;
  Events& events_;
  Transport& transport_;
  paths::RailScheduler scheduler_;
  std::vector<SentTransfer> transfers_;
  std::vector<SentChunk> chunks_;
  std::vector<Post> posts_;
  std::deque<u32> again_;
  std::array<std::deque<u32>, 4> queues_;              // by class: transfers that have bytes to cut
  struct OnRail { u64 ledger = 0, heard_ns = 0, asked_ns = 0, attempt = 0; bool dialling = false, cable = true; };
  std::vector<OnRail> rails_;
  std::vector<u64> back_;
  std::vector<u32> reset_;
  u64 pending_ = 0, unacked_ = 0, posted_bytes_ = 0, turn_ = 0, tick_ns_ = ~u64{0}, log_ = 14695981039346656037ULL;
  std::string broken_;
};

}  // namespace fabric::sim
