// Many nodes, the rails of each joined by a fabric of their own (rail-optimised): what a way to spread transfers makes of a trace.
//
// Chunks are simulated one by one: they queue at the sending port, then at the receiving port, each of its own rate. The
// adaptive policy asks one RailScheduler per pair of nodes, the object that the engine drives; the other two are fixed.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "paths/rail_scheduler.hpp"
#include "sim/events.hpp"
#include "sim/random.hpp"

namespace fabric::sim {

inline constexpr u32 kNodesMax = 4096;
inline constexpr u32 kFixedChunkBytes = 1 << 20, kFixedWindow = 8;  // of the fixed policies: chunk, and how many on a rail at once
inline constexpr u64 kEngineTransfers = 4;             // of a pair of nodes under way at once
inline constexpr u64 kClusterEventsMax = 4'000'000'000;

enum class Policy : u8 { adaptive, hashed, striped };

struct ClusterTransfer { u64 at_ns = 0, bytes = 0; u32 source = 0, target = 0; };
struct SlowRail { u32 node = 0, rail = 0; double factor = 1; };

struct ClusterPlan {
  u64 seed = 1;
  u32 nodes = 2, flows = 8;                            // flows: that a hashed transfer is cut into
  u64 delay_ns = 5'000;                                // one way
  std::vector<double> rates;                           // bytes/s, by rail of a node
  std::vector<SlowRail> slow;
  std::vector<ClusterTransfer> transfers;
  Policy policy = Policy::adaptive;
};

struct ClusterResult {
  std::string violation;
  std::vector<u64> took_ns;                            // by transfer, from its offer until its last acknowledgement
  u64 chunks = 0, resent_bytes = 0, bytes = 0, end_ns = 0, log = 0;
};

class Cluster {
 public:
  explicit Cluster(const ClusterPlan& plan);
  /// Handles so many events. @return whether there are more.
  bool run(u64 events);
  ClusterResult take();                                ///< once, when there are no more

 private:
  struct Port { double rate = 0; u64 free_ns = 0; };
  struct Chunk { u32 transfer, bytes, tried, copies; bool acked, queued; };  ///< copies: on their way
  struct Lot { u64 left = 0; u32 out = 0; };           // of a transfer on a rail: not posted, chunks under way
  struct Transfer { u64 left = 0, unacked = 0; std::vector<Lot> lots; };
  struct Pair {
    paths::RailScheduler scheduler;
    std::deque<u32> transfers;                         // with bytes to cut, in turn
    std::deque<u32> waiting;                           // behind those under way
    std::deque<u64> again;                             // chunks
    u64 pending = 0, under_way = 0, tick_ns = ~u64{0};
  };

  void offer(u32 number);
  void begin(Pair& pair, u32 number);
  void pump(u64 key, Pair& pair);
  bool post_again(Pair& pair);
  void tick(u64 key, Pair& pair);
  void post_fixed(u32 number, u32 rail);
  void send(u64 chunk, u32 rail, u64 ticket);
  void arrive(const Event& event);
  void acknowledge(const Event& event);
  Pair& pair_of(u64 key);
  u64 take_chunk(u32 transfer, u32 bytes);
  void give_back(u64 chunk);
  Port& port(bool sending, u32 node, u32 rail) { return ports_[(u64{node} * rails_ + rail) * 2 + (sending ? 0 : 1)]; }
  u64 key_of(const ClusterTransfer& transfer) const { return u64{transfer.source} * plan_.nodes + transfer.target; }

  const ClusterPlan& plan_;
  const u32 rails_;
  Events events_;
  std::vector<Port> ports_;
  std::vector<Transfer> transfers_;
  std::vector<Chunk> chunks_;                          // numbers are used again
  std::vector<u64> spare_;
  std::map<u64, std::unique_ptr<Pair>> pairs_;
  std::vector<u64> back_;
  std::vector<u32> reset_;
  ClusterResult result_;
};

}  // namespace fabric::sim
