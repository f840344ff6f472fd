// The receiving host: slots that are used again, chunks placed piece by piece, each verified once.
//
// It does what the engine does: before every piece it asks whether transfer, slot generation and chunk are still those
// that it began with. An audit of its own looks at each write: one that touches another message is a violation.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "core/layout.hpp"

namespace fabric::sim {

inline constexpr u32 kNone = ~u32{0};

struct ChunkOnWire { u32 transfer; u32 chunk; bool is_corrupt; };

class Receiver {
 public:
  struct Rules { bool checks_each_piece = true; };     ///< false: what the test of the audit itself leaves out
  enum class Verdict : u8 { more, good, bad };

  Receiver(u64 slots, u32 rails, Rules rules) : rules_(rules), slots_(slots), rails_(rails) {}

  /// A transfer wants a slot. @return whether it has one now; otherwise `granted` comes later, from `free_slot`.
  bool announce(u32 transfer, u64 bytes);
  /// A piece of a chunk, in order, on a rail.
  Verdict piece(u32 rail, u64 post, const ChunkOnWire& chunk, u32 bytes, bool is_first, bool is_last);
  void forget_rail(u32 rail) { rails_[rail] = {}; }
  bool is_complete(u32 transfer) const { return transfer < transfers_.size() && transfers_[transfer].complete; }
  u32 slot_of(u32 transfer) const { return transfers_[transfer].slot; }
  /// The application gave the message back. @return the transfer that has its slot now; kNone.
  u32 free_slot(u32 slot);

  const std::string& violation() const { return violation_; }
  u64 verified_bytes() const { return verified_bytes_; }
  u64 placed_bytes() const { return placed_bytes_; }
  u64 scratch_bytes() const { return scratch_bytes_; }
  u64 corrupt_chunks() const { return corrupt_chunks_; }

 private:
  struct Slot { u64 generation = 0; u32 transfer = kNone; };
  struct Transfer { u64 bytes = 0, verified = 0, generation = 0; u32 slot = kNone; bool complete = false; };
  struct OnRail { u64 post = ~u64{0}, generation = 0; u32 slot = kNone, bytes = 0; bool whole = false; };

  void grant(u32 transfer, u32 slot);
  bool is_verified(u32 chunk) const { return chunk < verified_.size() && verified_[chunk] != 0; }
  void write(u32 slot, const ChunkOnWire& chunk, u32 bytes);
  Verdict finish(const OnRail& on, const ChunkOnWire& chunk);

  Rules rules_;
  std::vector<Slot> slots_;
  std::vector<OnRail> rails_;
  std::vector<Transfer> transfers_;
  std::vector<u8> verified_;                           // by chunk
  std::deque<u32> waiting_;
  std::string violation_;
  u64 verified_bytes_ = 0, placed_bytes_ = 0, scratch_bytes_ = 0, corrupt_chunks_ = 0;
};

}  // namespace fabric::sim
