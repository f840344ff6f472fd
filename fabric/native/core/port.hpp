// A process's attachment to its node: lanes, arenas, flows, progress and waiting.
//
// Thread-safe: one mutex guards everything private and every write to this port's shared memory.
// An Operation holds it and keeps the audit out (busy / freeze, Dekker); waits happen outside of both.
// One thread at a time (the leader) sleeps on the doorbell, others on a private word. Senders,
// receivers and messages keep the port alive; after close() or in a forked child they answer `closed`.
#pragma once

#include <pthread.h>

#include <deque>
#include <mutex>
#include <string>
#include <unordered_map>

#include "core/arena.hpp"
#include "core/doorbell.hpp"
#include "core/faults.hpp"
#include "core/flow.hpp"
#include "core/held.hpp"
#include "core/message.hpp"

namespace fabric {

class Port;
class SenderCore;
class ReceiverCore;

inline constexpr u64 kHeartbeatNs = 250'000'000;
inline constexpr u64 kServiceNs = 50'000'000;        ///< progress when no user thread made any
inline constexpr u64 kFreezeParkNsMax = 2'000'000'000;  ///< a living auditor thaws within 1.5 s
inline constexpr u32 kWakesOwedMax = 64;
inline constexpr u64 kBacklogMax = 65536;            ///< returns of one lane that wait for room: more is a liar's doing
/// How a thread waits for news. adaptive: spins briefly where that paid lately; poll: spins until the deadline, and lets
/// others run that need the CPU; sleep: never spins.
enum class WaitPolicy : u8 { adaptive = 0, poll = 1, sleep = 2 };
inline constexpr u64 kPollYieldNs = 50'000;          ///< a thread that polls gives way this often
inline constexpr u64 kPollSignalNs = 50'000'000;     ///< and looks for signals this often
inline constexpr u64 kSpinNs = 40'000;               ///< about what a sleep and a wake across CPUs cost
inline constexpr u64 kSpinLargeNs = 250'000;         ///< beside a large message: about what copying one of 1 MiB takes, twice
inline constexpr u64 kLargeBytes = 256 * 1024;
inline constexpr u32 kSpinMissesMax = 10;            ///< back-off: 2^misses waits are not spun

/// Inside: the mutex is held and busy is 1. Everything on a port happens in one of these.
class Operation {
 public:
  /// @param may_park wait (bounded) while an audit freezes the port; else status() is `frozen`
  explicit Operation(Port& port, bool may_park = true);
  ~Operation() { leave(); }
  Operation(const Operation&) = delete;
  const Status& status() const { return status_; }
  bool ok() const { return status_.ok(); }
  void leave();                       ///< publishes returns, busy = 0, unlocks
  bool enter();                       ///< after leave(); false with status() set
  void interrupt();                   ///< leaves with status() `interrupted`
  Port& port() const { return port_; }

 private:
  Port& port_;
  std::unique_lock<std::mutex> lock_;
  Status status_;
  bool may_park_, inside_ = false;
};

/// A message that was handed over and not released.
struct HeldView { u64 flow, flow_seq, since_ns, bytes; u32 channel; };

struct BrokenLane { u32 lane; const char* why; };

struct PortStats {
  u64 lanes = 0, flows_in = 0, flows_out = 0, receivers = 0, held = 0, slots_taken = 0, segments = 0, readers = 0;
  u64 records_in = 0, records_out = 0, repeats = 0, strays = 0, lying = 0, returns_in = 0, expired = 0, overflowed = 0,
      redelivered = 0, wakes = 0, freeze_overruns = 0;
};

class Port : public std::enable_shared_from_this<Port> {
 public:
  ~Port();
  /// fds are duplicated or mapped; the caller keeps its own.
  static Status open(u64 port, u64 incarnation, int state_fd, int doorbell_fd, int event_fd, bool adopt,
                     bool service_thread, std::shared_ptr<Port>& out);
  void close();

  Status add_lane(u32 lane, int pair_fd, int side, u32 klass, u64 peer_port, u64 peer_incarnation,
                  int peer_doorbell_fd, int peer_event_fd);
  Status remove_lane(u32 lane);
  Status add_segment(u32 segment, int fd, bool writable, u32 group = 0);
  Status drop_segment(u32 segment);
  Status idle_segments(std::vector<u32>& out);
  Status drop_unused_readers(u32& dropped);     ///< foreign mappings that nobody used since the last call
  Status add_flow_out(u64 endpoint, u64 flow, u32 lane, u64 target_endpoint, u64 messages, u64 bytes,
                      u32 generation, bool after_drain);
  Status close_flow_out(u64 flow);
  /// reader_lives: what it still views keeps its slots until it is released (always so with Reason::closed).
  Status lose_flow_out(u64 flow, u64 handed_upto, Reason reason, bool reader_lives = false);
  Status suspect_flow(u64 flow, bool suspect);  ///< its consumer is silent: no new work for it
  Status add_flow_in(u64 endpoint, u64 flow, u32 lane, u64 producer_port, u64 messages, u64 bytes);
  Status close_flow_in(u64 flow, bool drain);
  Status progress(u64& handled);
  Status arm(bool& armed);
  Status disarm();
  Status set_wait(WaitPolicy policy);
  int event_fd() const { return doorbell_.event_fd(); }
  Status stats(PortStats& out);
  Status views(std::vector<HeldView>& out);  ///< costs a look at every held entry ever used
  Status broken_lanes(std::vector<BrokenLane>& out);
  Status inject(const std::string& fault, u64 count);
  Status open_sender(u64 endpoint, u32 channel, u32 type, Pattern pattern, Delivery delivery, u8 klass,
                     Overflow overflow, std::shared_ptr<SenderCore>& out);
  Status forget_sender(u64 endpoint);  ///< frees its ledger row: the daemon has archived the counts
  Status open_receiver(u64 endpoint, u32 channel, u32 type, Pattern pattern, Delivery delivery, Overflow overflow,
                       std::shared_ptr<ReceiverCore>& out);

  // ---- inside an Operation
  /// Drains ready lanes and return rings; `all` looks at every lane.
  u64 progress_locked(bool all = false);
  /// What a thread waits for: a message, or also what its own messages came to (room, ends, slots).
  enum class News : u8 { messages, all };
  /// Sleeps until something arrives or the deadline; leaves and enters `operation`.
  void wait_for_news(Operation& operation, u64 deadline_ns, News awaited);
  void notify_waiters();
  /// What follows a large message is another, or its answer: waiting awake for as long as copying takes costs less than
  /// a sleep and a wake in every one.
  void saw_message(u64 payload_bytes) {
    if (payload_bytes >= kLargeBytes) spin_ns_ = kSpinLargeNs;
  }
  void push_end(LaneLink& lane, u64 flow, u64 seq, End end, Reason reason, u32 held, bool free_held);
  void push_return(LaneLink& lane, const ReturnEntry& entry, u32 held, bool free_held);
  void wake_owed(LaneLink& lane, bool now);
  void flush_wakes();
  void end_message(MessageCore& message, End end, Reason reason);
  void release_slots(MessageCore& message);
  /// Takes a queued message that nobody will be handed: ended as failed(closed), or handed back.
  void refuse_message(MessageCore* message, Refusal how);
  /// Forgets a receiver that has closed; what still comes for it is refused as `how` says.
  void retire_receiver(u64 endpoint, Refusal how);
  void forget_flow_in(FlowInState& flow);
  void fail_lane(LaneLink& lane, const char* why);
  bool is_lying(LaneLink& lane);      ///< its peer moved a cursor to where it cannot be; fails the lane
  void drop_message(MessageCore* message) { pool_.put(message); }
  /// Every drain looks at it again until nothing of it waits for another flow.
  void watch_stuck(SenderCore* sender);
  /// Takes a view's reference: any thread, no Operation, also after close.
  void collect(MessageCore* message);
  void remove_flow_out(u64 flow);
  void heard_of(LaneLink* lane) { last_lane_ = lane; }
  bool closed() const { return closed_.load(std::memory_order_relaxed); }
  bool forked() const { return forked_.load(std::memory_order_relaxed); }
  void on_fork_in_child();

  u64 number() const { return number_; }
  u64 incarnation() const { return incarnation_; }
  Arena& arena() { return arena_; }
  /// A mapped foreign segment, or nullptr. Takes the mutex, no Operation: it changes nothing shared.
  std::shared_ptr<Segment> find_reader(u32 segment);
  HeldTable& held() { return held_; }
  PortStats& counters() { return counters_; }
  Faults& faults() { return faults_; }

 private:
  friend class Operation;
  void tell(FlowOut& flow);
  Port() = default;
  Status attach(int state_fd, int doorbell_fd, int event_fd);
  LaneLink* find_lane(u32 lane);
  u64 progress_lane(LaneLink& lane);
  void overrun_freeze();
  u64 drain_records(LaneLink& lane);
  bool take_record(LaneLink& lane, const RecordSpan& span, bool& stop);
  FlowRef* find_flow_in(LaneLink& lane, u64 id);
  bool blame_producer(LaneLink& lane, FlowInState& flow, MessageCore* message, const char* why);
  void skip_record(FlowInState& flow, const RecordHeader& header);
  void queue_record(FlowInState& flow, MessageCore* message);
  void refuse_record(LaneLink& lane, MessageCore* message, bool report_end);
  u64 drain_returns(LaneLink& lane);
  bool apply_return(LaneLink& lane, const ReturnEntry& entry);
  bool apply_end(LaneLink& lane, const ReturnEntry& entry);
  bool apply_release(LaneLink& lane, const ReturnEntry& entry);
  void note_late_views(const FlowOut& flow);
  void retry_later(const LaneLink& lane) {
    const u32 bit = lane.number % kLanesPerPortMax;
    retry_[bit / 64] |= u64{1} << (bit % 64);
  }
  void publish_returns();
  void wake_for_returns(LaneLink& lane);
  void flush_backlog(LaneLink& lane);
  FlowIn* free_flow_row();
  void drop_early_messages(const FlowInState& flow);
  void settle_closing_flows();
  void collect_late();
  void let_go(MessageCore* message);
  void start_service();
  void stop_service();
  void service_loop();
  void service_tick(u64 now);
  void service_sleep(u64 until_ns);
  void kick_service();
  void hand_bell_over();
  Wake sleeping_mode() const;
  void follow(Operation& operation, u64 deadline_ns, bool& stop);
  void lead(Operation& operation, u64 deadline_ns, bool& stop);
  enum class Spun : u8 { nothing, news, stop };
  bool worth_spinning();
  bool look_for_news(u64 seen) const;
  Spun poll_until(u64 deadline_ns, u64 seen, bool shares);
  Spun spin_for_news(Operation& operation, u64 deadline_ns);

  u64 number_ = 0, incarnation_ = 0;
  Mapping state_mapping_;
  StateLayout* state_ = nullptr;
  Doorbell doorbell_;
  std::mutex mutex_;
  std::atomic<bool> closed_{false}, forked_{false};
  bool auditor_gone_ = false;         ///< this freeze lasted too long: it is ignored until it ends

  std::unordered_map<u32, std::unique_ptr<LaneLink>> lanes_;
  LaneLink* lanes_by_bit_[kLanesPerPortMax] = {};
  u64 retry_[Doorbell::kWords] = {};  ///< lanes that could not be drained for want of held entries
  std::vector<LaneLink*> dirty_, owing_;
  Arena arena_;
  SegmentMap readers_;
  HeldTable held_;
  MessagePool pool_;
  std::unordered_map<u64, std::unique_ptr<FlowOut>> flows_out_;
  std::unordered_map<u64, u32> late_views_;  ///< flows that are gone, and whose slots are still read: their lane
  std::unordered_map<u64, FlowRef> flows_in_;
  u64 drained_ns_ = 0;                // when the last look at a lane began (to some milliseconds)
  std::vector<u64> closing_;          ///< incoming flows that go when drained
  std::unordered_map<u64, std::shared_ptr<SenderCore>> senders_;
  std::unordered_map<u64, std::shared_ptr<ReceiverCore>> receivers_;
  std::vector<SenderCore*> told_;     ///< senders that the return entries of this drain were about, each once
  std::vector<SenderCore*> stuck_;    ///< senders with messages that wait for another flow (or waited lately)
  std::vector<MessageCore*> collected_;  ///< views that went while an audit froze the port
  struct EarlyOut { u64 endpoint, flow; u32 lane; u64 target; u64 messages, bytes; u32 generation; bool after_drain; bool suspect; };
  std::vector<EarlyOut> early_out_;   ///< flows that came before their sender was opened
  std::deque<u64> forgotten_;         ///< the last senders that went: a flow for one may be on its way
  std::unordered_map<u64, std::vector<FlowRef>> early_in_;
  std::vector<MessageCore*> early_messages_;  ///< drained before their receiver was opened
  struct ClosedEnd { u64 endpoint; Refusal refusal; };
  std::deque<ClosedEnd> closed_ends_; ///< the last that closed: a flow for one may be on its way
  PortStats counters_;
  Faults faults_;

  // waiting
  bool leader_ = false, leader_asleep_ = false, armed_ = false, news_ = false;
  bool service_leads_ = false;        ///< the leader is the service thread, which gives way to any other
  u32 followers_ = 0;
  u32 await_returns_ = 0;             ///< waiting threads that want more than messages
  Wake asleep_as_ = Wake::futex;      ///< with leader_asleep_
  std::atomic<u64> news_count_{0};    ///< written under the lock
  WaitPolicy wait_ = WaitPolicy::adaptive;
  LaneLink* last_lane_ = nullptr;     ///< whose peer was heard of or written to last
  u32 spin_misses_ = 0, spin_skips_ = 0;
  u64 spin_ns_ = kSpinNs;             // of the next wait
  std::atomic<u32> follow_word_{0};

  // service thread
  pthread_t service_{};
  bool has_service_ = false;
  std::atomic<u32> service_stop_{0}, service_word_{0};
  u32 prompt_ = 0;                    ///< receivers that want their records drained at once, whoever reads
  u64 user_progress_ = 0, service_seen_ = 0, last_full_look_ = 0;
};

/// Asked, with no lock held, when a signal ended a sleep; true ends the wait as `interrupted`.
inline bool (*interrupt_hook)() = nullptr;

// Ports that a forked child must find dead.
void register_port(Port* port);
void unregister_port(Port* port);

}  // namespace fabric
