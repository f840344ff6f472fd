// Which rail carries the next chunk, when it is sent again elsewhere, and which rails are fit for use.
//
// Sans-IO and single-threaded: the engine drives one per peer with monotonic `now`, the simulator drives the same
// object. A chunk goes to the rail that is predicted to finish it first, `base + (in flight + size) / rate`; in flight
// is held near the bandwidth-delay product, so that a throttled rail is felt at once and control stays fast.
#pragma once

#include <array>
#include <deque>
#include <string>
#include <vector>

#include "paths/marginal_gain.hpp"
#include "paths/rail_estimate.hpp"

namespace fabric::paths {

inline constexpr u32 kNoRail = ~0u;
inline constexpr u32 kTicketRailBits = 8;
inline constexpr u32 rail_of_ticket(u64 ticket) { return static_cast<u32>(ticket >> (64 - kTicketRailBits)); }
inline constexpr double kWindowGain = 1.25;          // a window that is just full shows no more rate than it had
inline constexpr double kGapShare = 1.5;             // of the time between acknowledgements: late hosts empty no rail
inline constexpr u64 kGapMaxNs = 40'000'000;
inline constexpr u64 kOwnGapMaxNs = 10'000'000;      // of that, what other busy rails do not show too
inline constexpr u64 kForgetNs = 10'000'000'000;     // a rail that was away this long is learnt anew
inline constexpr u64 kQueueTargetNs = 1'500'000;     // what may wait on a rail beyond its base latency
inline constexpr u64 kWindowMin = 64 * 1024, kWindowUnknown = 256 * 1024, kWindowMax = 64ULL << 20;
inline constexpr u32 kChunkMin = 32 * 1024, kChunkMax = 1024 * 1024;
inline constexpr u64 kChunkNs = 500'000;             // a chunk keeps its rail busy about this long
inline constexpr u64 kStallNs = 25'000'000;          // nothing acknowledged this long, while others move: suspect
inline constexpr u64 kStallUnknownNs = 100'000'000;  // the same for a rail of which nothing is known: it may be a slow one
inline constexpr u64 kAskedNs = 40'000'000;          // a ping, which may wait behind chunks, unanswered this long: the same
inline constexpr u64 kSlowTauNs = 1'000'000'000;     // the slowest acknowledgement seen is forgotten in about this
inline constexpr double kSlowShare = 2.0;            // where acknowledgements are late as a rule, that much later is silence
inline constexpr u64 kSlowMaxNs = 250'000'000;
inline constexpr u64 kResetNs = 250'000'000;         // suspect this long: its connections are given up and made anew
inline constexpr u64 kOverdueNs = 10'000'000;        // later than predicted by this: the chunk goes again elsewhere
inline constexpr u64 kTickNs = 5'000'000;            // while anything is in flight
inline constexpr u64 kOwnPauseNs = 15'000'000;       // a tick this late: this process stood still, no rail is to blame
inline constexpr u64 kPenaltyHalfNs = 4'000'000'000; // failures of a rail are half forgotten after this
inline constexpr u64 kHoldMaxNs = 2'000'000'000;     // a rail that flaps waits at most this before it is used again
inline constexpr u64 kBriefNs = 100'000'000;         // away no longer, and it carried: not held, whatever happened before
inline constexpr u64 kCarriedBytes = 1 << 20;
inline constexpr double kResentShareMax = 0.02;      // of what was delivered, for overdue chunks of rails that live
inline constexpr u64 kResentFreeBytes = 1 << 20;
inline constexpr std::size_t kDecisionsKept = 64;
inline constexpr u32 kDecisionEvery = 16;            // picks that chose what was expected are noted this rarely
inline constexpr double kCalmPenalty = 0.5;          // no trial of what rails are worth soon after one of them failed

enum class RailState : u8 { absent, up, suspect, held, down, left_out };  ///< left_out: in changes only; it is up, and adds nothing
enum class Why : u8 { earliest, only, pinned, no_room, no_rail, resent };
const char* name(RailState state);
const char* name(Why why);

struct Pick { u32 rail = kNoRail; u32 bytes = 0; };

/// The terms of one rail's score, for `bytes` now.
struct RailTerms {
  RailState state;
  double rate, rate_now;                              ///< bytes/s
  u64 base_ns, inflight, window, finish_ns, silent_ns;
  u64 delivered, resent_from, failures;               ///< bytes, bytes, count
  double penalty;
  u64 held_until;
  std::string left_out;                               ///< why it gets no chunks although it is up; empty: it does
};

struct Decision {
  u64 at_ns = 0, pending = 0;
  u32 bytes = 0, rail = kNoRail;
  Why why = Why::earliest;
  std::array<u64, kRailsMax> finish_ns{};             ///< 0: not usable
};

struct Change { u64 at_ns; u32 rail; RailState from, to; std::string reason; };

class RailScheduler {
 public:
  // -------------------------------------------------------------- rails
  void rail_up(u32 rail, u64 now);
  /// Its connection is gone. What it carried is returned by the next `tick`. @param received bytes that had come over it
  void rail_down(u32 rail, u64 now, const char* reason, u64 received = 0);
  void remove(u32 rail);
  void pin(u32 mask) { pinned_ = mask; }              ///< bit per rail; 0: all
  u32 pinned() const { return pinned_; }
  void asked(u32 rail, u64 now);                      ///< a ping left; its silence counts like that of a chunk
  void round_trip(u32 rail, u64 ns, u64 now);         ///< a ping came back: the rail lives
  /// Tags of what went with a connection, to be posted again; else the next `tick` gives them.
  void take_lost(std::vector<u64>& again);
  /// All rails busy for so long before one is left out for a moment, to see what it adds.
  void first_trial_after(u64 ns) { gain_.first_trial_after(ns); }

  // -------------------------------------------------------------- chunks
  /// Rail for the next chunk and how much of it; kNoRail: wait for an acknowledgement or a tick.
  /// @param left bytes of this transfer not posted; @param pending of all transfers to this peer, `left` included.
  /// @param avoid bit per rail that carried this chunk before.
  Pick pick(u64 left, u64 pending, u64 now, u32 avoid = 0);
  u64 posted(u32 rail, u32 bytes, u64 tag, u64 now);  ///< @return ticket
  void delivered(u64 ticket, u64 now);                ///< acknowledged by the receiver; a second time: ignored
  bool is_outstanding(u64 ticket) { return find(ticket) != nullptr; }  ///< posted on a connection that is still there, and not acknowledged
  void withdrawn(u64 ticket);                         ///< refused, cancelled or not wanted any more

  // -------------------------------------------------------------- time
  /// Judges the rails. @param again tags of chunks to post again, @param reset rails whose connections to give up.
  void tick(u64 now, std::vector<u64>& again, std::vector<u32>& reset);
  u64 next_ns() const { return next_ns_; }            ///< when to tick; ~0: never

  // -------------------------------------------------------------- asked by people
  u32 fastest() const;                                ///< for what goes whole: healthy, lowest latency; kNoRail
  RailState state(u32 rail) const { return rail < kRailsMax ? rails_[rail].state : RailState::absent; }
  bool usable(u32 rail) const { return rail < kRailsMax && rails_[rail].state == RailState::up; }
  bool carries(u32 rail) const { return rail < kRailsMax && (carrying() >> rail & 1) != 0; }  ///< chunks may go there
  RailTerms terms(u32 rail, u64 bytes, u64 now) const;
  const std::deque<Decision>& decisions() const { return decisions_; }
  std::vector<Change> take_changes();
  u64 delivered_bytes() const { return delivered_; }
  u64 carried(u32 rail) const { return rails_[rail].delivered - rails_[rail].delivered_before; }  ///< since it was connected
  u64 resent_bytes() const { return resent_; }

 private:
  struct Posted { u64 tag, at_ns, due_ns, ahead; u32 bytes; bool done, again; };
  struct Rail {
    RailState state = RailState::absent;
    RailEstimate estimate;
    std::deque<Posted> posted;
    u64 first = 0;                                    // ticket number of posted.front()
    u64 alive_ns = 0, asked_ns = 0, down_ns = 0, suspect_ns = 0, held_until = 0, penalty_ns = 0;
    double penalty = 0, slow_ns = 0;                  // slow: the slowest acknowledgement of late
    u64 slow_at_ns = 0, silent_ns = 0;                // silent: since when, as it was found suspect
    u64 delivered = 0, resent = 0, failures = 0;
    u64 idle_ns = 0, empty_ns = 0;                    // with nothing in flight: so far, and since when
    u64 delivered_before = 0;                         // when it was connected last
    bool reset_told = false, broke_off = false;       // broke off: in the middle of its work, its connection was well
    bool asked_idle = false;                          // nothing was in flight as the ping left
  };

  u32 carrying() const;
  void weigh(u64 now);
  u64 lateness() const;                               // of the hosts; ~0: not known
  u64 window(const Rail& rail, u64 now, u64 late_ns) const;
  static u32 chunk_bytes(const Rail& rail, u64 left);
  static u64 first_bytes(const Rail& rail);
  u64 finish(const Rail& rail, u64 bytes, u64 now) const;
  void move(u32 rail, RailState to, const char* reason, u64 now);
  void fail(u32 rail, RailState to, const char* reason, u64 now);
  void give_back(Rail& rail, std::vector<u64>& again);
  void judge(u32 number, u64 now, u64 newest, std::vector<u64>& again, std::vector<u32>& reset);
  void look_for_overdue(u32 number, u64 now, std::vector<u64>& again);
  u64 evidence_of_others(u32 number) const;
  bool is_last(u32 number) const;                     // no other rail is up
  bool is_silent(const Rail& rail, u64 now, u64 newest) const;
  static void note_slow(Rail& rail, u64 took_ns, u64 now);
  Posted* find(u64 ticket);                           // posted on a connection that is still there, and not done
  static void drop_done(Rail& rail);
  double decayed(const Rail& rail, u64 now) const;

  std::array<Rail, kRailsMax> rails_;
  MarginalGain gain_;
  std::deque<Decision> decisions_;
  std::vector<Change> changes_;
  std::vector<u64> lost_;                             // tags of rails that went down
  u64 next_ns_ = ~u64{0}, ticked_ns_ = 0, delivered_ = 0, resent_ = 0;
  u32 pinned_ = 0, picks_ = 0;
};

}  // namespace fabric::paths
