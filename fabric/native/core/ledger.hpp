// The sender's ledger of one endpoint: outstanding entries and the folded counts.
//
// A view over shared memory that one process writes (the port, or the daemon after its death), under
// that process's lock. Every entry number in (tail, accepted] is in exactly one entry; what has ended in
// order is folded into the counters, double-buffered, by one store. What ends at once is counted aside.
// Messages accepted = entries accepted - entries moved + asides; `counts` holds their ends.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "core/layout.hpp"

namespace fabric {

constexpr u32 out_word(OutState state, End end = End::none, Reason reason = Reason::none) {
  return static_cast<u32>(state) | static_cast<u32>(end) << 8 | static_cast<u32>(reason) << 16;
}
constexpr OutState out_state(u32 word) { return static_cast<OutState>(word & 0xff); }
constexpr End out_end(u32 word) { return static_cast<End>(word >> 8 & 0xff); }
constexpr Reason out_reason(u32 word) { return static_cast<Reason>(word >> 16 & 0xff); }

constexpr std::pair<End, Reason> aside_end(Aside kind) {
  switch (kind) {
    case Aside::overflow_newest: return {End::dropped, Reason::overflow_newest};
    case Aside::rejected: return {End::failed, Reason::rejected};
    default: return {End::dropped, Reason::no_target};
  }
}

using EndCounts = std::array<std::array<u64, static_cast<int>(Reason::count)>, 4>;

class Ledger {
 public:
  void attach(SenderLedger* row) { row_ = row; }
  SenderLedger* row() const { return row_; }
  OutEntry& entry(u64 sequence) const {
    return row_->outstanding[sequence & (kOutstandingPerEndpoint - 1)];
  }
  u64 accepted() const { return row_->accepted.load(std::memory_order_acquire); }
  /// Never more than the table holds: what another process wrote must not decide how long a loop lasts.
  u64 last() const { return std::min(accepted(), tail() + kOutstandingPerEndpoint); }
  u64 tail() const { return active().tail; }
  bool full(u64 next) const { return next - tail() > kOutstandingPerEndpoint; }
  /// May entries up to `last` be begun? One place is kept free, so that the oldest can move.
  bool fits(u64 last) const { return last - tail() < kOutstandingPerEndpoint; }

  void begin(u64 sequence, u64 flow, u64 flow_seq, u64 position, u64 payload_bytes);  ///< pending
  void accept(u64 first, u64 last);                                ///< pending → accepted, then the ledger
  bool live(u64 sequence) const;      ///< accepted or waiting
  bool end(u64 sequence, End end, Reason reason);                  ///< false: it was not live
  void wait(u64 sequence);            ///< its flow is gone; it waits for another
  void revoke(u64 sequence);          ///< a pending entry: its record was not published
  void aside(Aside kind, u64 messages);
  u64 asides() const;
  /// The oldest entry, which lives, goes on as the newest, and its old place can be folded. Nothing is
  /// pending and fits(accepted() + 1). @return the new number
  u64 relocate();
  bool was_moved(u64 sequence) const; ///< `sequence` is moving, and the oldest entry has let go
  u32 fold(u32 miscount = 0);         ///< counts the ended prefix; `miscount` is a test hook
  u64 ended_upto() const;
  EndCounts counts() const;           ///< folded and unfolded
  u64 outstanding() const;            ///< live entries

 private:
  const Fold& active() const { return row_->fold[row_->active.load(std::memory_order_acquire) & 1]; }
  SenderLedger* row_ = nullptr;
};

}  // namespace fabric
