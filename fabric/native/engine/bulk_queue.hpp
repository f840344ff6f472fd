// Transfers of a class that have chunks to post, and whose turn it is.
//
// Engine thread (its lock) only. Tenants share a peer equally, channels of a tenant by their weights, flows of a channel
// equally. Transfers of one flow go in its order: they are published in it, and what is under way at once at the peer takes
// memory there. A message whose deadline is near goes before others of its channel, at the cost of that channel alone.
#pragma once

#include <memory>
#include <set>

#include "engine/turn_ring.hpp"

namespace fabric {

struct OutTransfer;

inline constexpr u64 kNearDeadlineNs = 50'000'000;
inline constexpr u32 kChannelWeightMax = 100;

/// Whose bytes they are.
struct Share { u32 tenant = 0, channel = 0, weight = 1; };

class BulkQueue {
 public:
  void put(const std::shared_ptr<OutTransfer>& transfer);
  /// Whose turn it is; null: nothing waits. It stays until it is dropped.
  std::shared_ptr<OutTransfer> next(u64 now);
  /// So many bytes of it were posted; what is left of it counts anew.
  void pay(OutTransfer& transfer, u64 bytes);
  void drop(OutTransfer& transfer);
  void clear();
  bool is_empty() const { return tenants_.is_empty(); }
  u64 bytes() const { return bytes_; } ///< to be posted, of all that is here

 private:
  struct Flow : Turn {
    std::deque<std::shared_ptr<OutTransfer>> transfers;
    static u32 weight() { return 1; }
  };
  struct Channel : Turn {
    u32 weighs = 1;
    TurnRing<u64, Flow> flows;
    std::set<std::pair<u64, u64>> deadlines;           // of the first transfer of each flow that has one
    u32 weight() const { return weighs; }
  };
  struct Tenant : Turn {
    TurnRing<u32, Channel> channels;
    static u32 weight() { return 1; }
  };

  static void note_deadline(Channel& channel, const Flow& flow, bool is_there);

  TurnRing<u32, Tenant> tenants_;
  u64 bytes_ = 0;
};

}  // namespace fabric
