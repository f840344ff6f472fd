// The sending endpoint: chooses a flow, waits for room, commits, keeps what may have to go again.
//
// Thread-safe through its port. Commit order (docs/ARCHITECTURE.md): entry pending → record → lane
// head → entry accepted → ledger accepted → doorbell; a kill between any two can be settled.
#pragma once

#include <deque>
#include <map>

#include "core/ledger.hpp"
#include "core/port.hpp"

namespace fabric {

struct Piece { const u8* data; u64 bytes; };

struct SendRequest {
  std::span<const u8> meta;
  std::span<const Piece> tensors;
  std::span<const u8> key;
  bool has_key = false;
  u64 flow = 0;                       ///< 0 = the endpoint's policy
  bool asks = false;                  ///< goes where `pin` said, or not at all: `undecided`
  u64 correlation = 0, reply_flow = 0;
  u16 flags = 0;
  u64 expires_ns = 0;
  SlotRef loan;                       ///< tensors lie here already
};

/// Why a message cannot go now.
enum class Full : u8 { none, consumer, credit, lane, table, drain, redelivery, suspect, span, flow_gone, broken, too_large,
                        undecided };

struct FlowInfo { u64 flow, target_endpoint, outstanding, credit_messages, credit_bytes; u32 generation; bool closed; };

class SenderCore {
 public:
  SenderCore(Port& port, u64 endpoint, u32 channel, u32 type, Pattern pattern,
             Delivery delivery, u8 klass, Overflow overflow, SenderLedger* row);

  /// Copies once and commits; waits until `deadline_ns` if `may_wait`, else answers would_block or
  /// frozen. A loan is consumed on success only. Without room the overflow policy decides: wait, `rejected`,
  /// or success of a message that ends as dropped(overflow_newest). A broadcast goes to every open flow.
  Status send(const SendRequest& request, u64 deadline_ns, bool may_wait, u64& number);
  /// As many as have room before the deadline, in order; ok when all went. One doorbell a lane.
  Status send_many(std::span<const SendRequest> requests, u64 deadline_ns, bool may_wait, u64& accepted,
                   u64* last_number = nullptr);
  Status loan(std::span<const u64> sizes, SlotRef& slot, u8*& address, std::vector<u64>& offsets);
  void discard(const SlotRef& slot);
  Status cancel(u64 number, bool& cancelled);
  Status flows(std::vector<FlowInfo>& out);
  Status ended_upto(u64& out);
  Status counts(EndCounts& out);
  Status delivered_bytes(u64& out);
  Status flush(u64 deadline_ns, bool may_wait, bool& flushed);
  Status close();

  // ---- who gets a message (sender_choice.cpp)
  /// The policy from the next message on; what was pinned is forgotten. `none`: the pattern chooses.
  Status set_route(RouteKind kind, const RouteOptions& options);
  /// What the daemon says of a target, now or once there is a flow to it.
  Status set_target(u64 endpoint, const RouteRow& row);
  /// A policy that was asked has chosen `flow` for a key; it holds until `until_ns`, and while the flow is open.
  Status pin(std::span<const u8> key, bool has_key, u64 flow, u64 until_ns);
  /// Nobody answers: until then this built-in policy decides instead of what was asked.
  Status fall_back(RouteKind kind, u64 until_ns);
  /// Messages that went where `pin` had said.
  u64 pin_hits() const { return pin_hits_.load(std::memory_order_relaxed); }
  /// The flow that the policy gives a key now; 0: none has room. Nothing is sent.
  Status decide(std::span<const u8> key, bool has_key, u64& flow);

  u64 endpoint() const { return endpoint_; }
  Port& port() const { return port_; }

  // ---- inside an Operation, called by the port
  void add_flow(FlowOut* flow);
  void lose_flow(FlowOut* flow, u64 handed_upto, Reason reason);
  void end_entry(FlowOut& flow, u64 flow_seq, End end, Reason reason);
  void remove_flow(FlowOut* flow);
  /// Sends what waits: in order per key of a stream (a key without room holds up no other), else in order.
  void redeliver();
  void retire();                      ///< gives its ledger row back; the counts stay
  void expire_waiting(u64 now_ns);
  void fold_some() { fold(32); }
  bool idle() const { return final_ != nullptr || ledger_.ended_upto() == ledger_.accepted(); }
  bool is_closed() const { return closed_; }
  bool is_stuck() const { return !waiting_.empty(); }
  bool told = false;                  ///< the port's: it is in Port::told_
  SenderLedger* row() const { return ledger_.row(); }
  const std::vector<FlowOut*>& open_flows() const { return flows_; }

 private:
  struct Retained {                   // private companion of an outstanding entry
    SlotRef slots[2];
    u64 number = 0, payload_bytes = 0, expires_ns = 0, key_hash = 0;
    bool has_key = false, handed = false;
    std::vector<u8> record;           // at_least_once: to send again
  };
  struct Batch { LaneLink* lane = nullptr; u64 first = 0, last = 0; };
  struct Prepared {                   // a request with its layout decided
    u32 inline_size = 0;
    u64 payload = 0;
    bool tensors_inline = true, meta_inline = true;
    SlotRef slots[2];
    SegmentEntry table[2];
    u32 segments = 0;
    u64 key_hash = 0;
    bool progressed = false;          // returns were read meanwhile: what is full now is full
  };
  struct Room { u8* at = nullptr; Arena::Absent absent; };  // in a slot: pages first, outside the lock
  struct Pin { u64 flow; u64 used; };
  struct Decided { u64 flow = 0, until_ns = 0; };

  void measure(const SendRequest& request, Prepared& out) const;
  Status prepare(Operation& operation, const SendRequest& request, bool may_wait, Prepared& out);
  Status place(u64 bytes, SlotRef& out, Room& room);
  void give_up(const SendRequest& request, Prepared& prepared);
  bool commit_bare(const SendRequest& request, Batch& batch);
  Status send_one(Operation& operation, const SendRequest& request, Batch& batch, u64 deadline_ns, bool may_wait,
                  bool is_first);
  Full try_commit(const SendRequest& request, Prepared& prepared, Batch& batch, FlowOut*& blocked);
  Full write_record(const SendRequest& request, Prepared& prepared, FlowOut& flow, Batch& batch, u64 entry);
  u8* put_record(const SendRequest& request, const Prepared& prepared, FlowOut& flow, u64 entry, u32& total);
  void take_on(const SendRequest& request, const Prepared& prepared, FlowOut& flow, u64 entry, const u8* record,
               u32 total);
  Full resend(u64 entry, FlowOut*& blocked);
  void seal(Batch& batch);
  bool table_room(Batch& batch, u64 entries);
  void relocate_oldest();
  Status wait_or_fail(Operation& operation, Full full, FlowOut* blocked, u64 deadline_ns, bool may_wait);
  Status explain(Full full, const FlowOut* blocked, Code code) const;
  struct Asked { u64 flow; bool asks, has_key; u64 key_hash, bytes; };
  Full choose(const Asked& asked, FlowOut*& out);
  Full choose_stream(bool has_key, u64 key_hash, FlowOut*& out);
  Full choose_new(bool has_key, u64 key_hash, FlowOut*& out);
  Full choose_queue(u64 bytes, FlowOut*& out);
  Full choose_routed(u64 key_hash, u64 bytes, FlowOut*& out);
  FlowOut* pick(u64 key_hash);
  Full decided(bool has_key, u64 key_hash, FlowOut*& out);
  void look_again(FlowOut& flow, u64& now_ns);
  Full room(FlowOut& flow, u64 bytes) const;
  bool is_behind(const SendRequest& request, u64 key_hash, const FlowOut& flow) const;
  FlowOut* find(u64 flow) const;
  void trim_pins();
  void finish_entry(u64 entry, End end, Reason reason);
  void wait_again(u64 entry, bool handed);
  void fold(u32 at_least);
  Retained& retained(u64 entry) { return retained_[entry & retained_mask_]; }
  const Retained& retained(u64 entry) const { return retained_[entry & retained_mask_]; }
  void retain_upto(u64 entry);

  // ---- overflow and broadcast (sender_overflow.cpp)
  bool overflows(Full full) const;    ///< does the overflow policy answer to `full`?
  Full look(const SendRequest& request, const Prepared& prepared, FlowOut*& blocked);
  Status overflow(const SendRequest& request, Prepared& prepared, Full full, const FlowOut* blocked, bool is_counted);
  void end_aside(Prepared& prepared, Aside kind, u64 copies);
  bool opens_later(const FlowOut& flow) const;
  Full choose_all(const Prepared& prepared, u64& left_out, FlowOut*& blocked);
  Full fan_out(const SendRequest& request, Prepared& prepared, Batch& batch, FlowOut*& blocked);
  Full put_copies(const SendRequest& request, const Prepared& prepared, u64 first, u64& left_out, FlowOut*& blocked);
  void publish_copies(u64 first);

  Port& port_;                        // the port owns its senders
  const u64 endpoint_;
  const u32 channel_, type_;
  const Pattern pattern_;
  const Delivery delivery_;
  const u8 klass_;
  const Overflow overflow_;
  bool closed_ = false;
  Ledger ledger_;
  std::vector<Retained> retained_;    // a power of two; grows with what is outstanding, an idle channel has few
  u64 retained_mask_ = 0;
  std::vector<FlowOut*> flows_;
  std::deque<u64> waiting_;           // entries without a flow, by the numbers of their messages
  u64 pass_ = 0;                      // of redeliver(): flows marked with it have no room for what waits
  u64 number_ = 0;                    // of the last message: what records carry and callers are told
  std::vector<FlowOut*> targets_;     // of the broadcast that is being sent
  std::unique_ptr<EndCounts> final_;  // after retire()
  std::unordered_map<u64, Pin> pins_;
  u64 keyless_flow_ = 0, uses_ = 0, ended_unfolded_ = 0, delivered_bytes_ = 0;
  std::size_t next_flow_ = 0;
  RouteKernel route_;
  std::vector<RouteTarget*> candidates_;             // of one choice
  std::unordered_map<u64, RouteRow> table_;          // by target endpoint
  std::unordered_map<u64, Decided> decided_;         // by hash of the key
  Decided keyless_decided_;
  u64 fallback_until_ns_ = 0;
  std::atomic<u64> pin_hits_{0};      // written under the port's lock
};

u64 hash_key(std::span<const u8> key);  ///< FNV-1a with a final mix

}  // namespace fabric
