// The sender's ledger of one endpoint: outstanding entries and the folded counts.
//
// A view over shared memory that one process writes (the port, or the daemon after its death), under
// that process's lock. Every sequence in (tail, accepted] is in exactly one entry; what has ended in
// order is folded into the counters, double-buffered, by one store.
#pragma once

#include <array>

#include "core/layout.hpp"

namespace fabric {

constexpr u32 out_word(OutState state, End end = End::none, Reason reason = Reason::none) {
  return static_cast<u32>(state) | static_cast<u32>(end) << 8 | static_cast<u32>(reason) << 16;
}
constexpr OutState out_state(u32 word) { return static_cast<OutState>(word & 0xff); }
constexpr End out_end(u32 word) { return static_cast<End>(word >> 8 & 0xff); }
constexpr Reason out_reason(u32 word) { return static_cast<Reason>(word >> 16 & 0xff); }

using EndCounts = std::array<std::array<u64, static_cast<int>(Reason::count)>, 4>;

class Ledger {
 public:
  void attach(SenderLedger* row) { row_ = row; }
  SenderLedger* row() const { return row_; }
  OutEntry& entry(u64 sequence) const {
    return row_->outstanding[sequence & (kOutstandingPerEndpoint - 1)];
  }
  u64 accepted() const { return row_->accepted.load(std::memory_order_acquire); }
  u64 tail() const { return active().tail; }
  bool full(u64 next) const { return next - tail() > kOutstandingPerEndpoint; }

  void begin(u64 sequence, u64 flow, u64 flow_seq, u64 position, u64 payload_bytes);  ///< pending
  void accept(u64 first, u64 last);                                ///< pending → accepted, then the ledger
  bool live(u64 sequence) const;      ///< accepted or waiting
  bool end(u64 sequence, End end, Reason reason);                  ///< false: it was not live
  void wait(u64 sequence);            ///< its flow is gone; it waits for another
  u32 fold(u32 miscount = 0);         ///< counts the ended prefix; `miscount` is a test hook
  u64 ended_upto() const;
  EndCounts counts() const;           ///< folded and unfolded
  u64 outstanding() const;            ///< live entries

 private:
  const Fold& active() const { return row_->fold[row_->active.load(std::memory_order_acquire) & 1]; }
  SenderLedger* row_ = nullptr;
};

}  // namespace fabric
