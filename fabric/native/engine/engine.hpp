// The node's gateway: one thread between local lanes and the links to other nodes.
//
// Public calls come from the control plane's thread and take the engine's lock, which the engine
// holds while it works and never while it waits. It sleeps in epoll on its doorbell, its links and
// a kick fd: no timer runs while nothing is parked. What it owes to others is only in the rings.
#pragma once

#include <atomic>
#include <functional>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#include "engine/events.hpp"
#include "engine/session.hpp"
#include "engine/spin.hpp"
#include "links/fault_link.hpp"

namespace fabric {

inline constexpr std::size_t kRemovedFlowsMax = 65536;  // late records of these are dropped silently

struct EngineOptions { u64 port = 0, incarnation = 0; int state_fd = -1, doorbell_fd = -1, event_fd = -1; };
struct LaneOptions {
  u32 number = 0;
  int pair_fd = -1, side = 0;
  u32 klass = 0;
  u64 peer_port = 0, peer_incarnation = 0;
  int peer_doorbell_fd = -1, peer_event_fd = -1;
  u32 tenant = 0;                       ///< whose port it leads to
};
struct GroupStats { u32 group; bool up; LinkSample sample; u64 backlog; u32 features; };
struct RailStats { u32 rail; paths::RailTerms terms; bool is_primary; };
struct SessionStats {
  u64 session; u32 peer_node; std::vector<GroupStats> groups; SessionCounters count;
  u64 transfers_out, transfers_in, reports_unacked, reports_blocked;
};
struct EngineStats {
  std::vector<SessionStats> sessions;
  SessionCounters closed;               ///< sums over sessions that were closed
  u64 ends[4][int(Reason::count)] = {}; ///< messages that ended in this engine, by End and Reason
  u64 wakeups = 0, flows_out = 0, flows_in = 0, flows_seen = 0, unknown_flows = 0, orphan_returns = 0, slots_taken = 0;
  u64 releases_refused = 0, limits_hit = 0, segment_waits = 0, slot_waits = 0;
};

class Engine {
 public:
  Engine() = default;
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  Status open(const EngineOptions& options);
  Status start();
  void stop(u64 drain_ns);              ///< idempotent
  int event_fd() const { return events_fd_.get(); }
  std::vector<EngineEvent> take_events();

  Status add_lane(const LaneOptions& options);
  void remove_lane(u32 number);
  Status add_segment(u32 segment, int fd, bool writable);
  std::vector<u32> idle_segments();     ///< own ones with every slot free
  Status drop_segment(u32 segment);     ///< transfers that wait for a foreign one end as failed(corrupted)
  void ask_again();                     ///< what could not be served (grow) is asked for again
  struct Holder { u32 slot, generation; u64 flow; u32 lane; };
  /// After a restart: frees the slots of an own segment that neither `holders` (read from held tables *after* all lanes
  /// were added) nor a record in one of our lanes names; the others belong to those readers.
  u32 reclaim(u32 segment, const std::vector<Holder>& holders);
  Status open_session(u64 session, u32 peer_node, u64 peer_incarnation);
  Status add_connection(u64 session, int fd, u32 group, u32 features = 0);   ///< takes the fd, also on failure
  Status add_inproc(u64 session, u64 link, u32 group);
  Status add_link(u64 session, std::unique_ptr<Link> link, u32 group, u32 features);  ///< made elsewhere
  void close_session(u64 session);
  Status add_forward(u64 flow, u32 lane, u64 session);
  Status weigh(u32 channel, u32 weight);  ///< of what several channels send to one peer; 1 … kChannelWeightMax
  Status add_deliver(u64 flow, u32 lane, u64 session, u64 published);
  void remove_flow(u64 flow);           ///< takes effect at the thread's next step
  bool drained(u32 lane);
  EngineStats stats();
  std::vector<RailStats> rails(u64 session, u64 bytes);        ///< finish times are those of `bytes`
  std::vector<paths::Decision> decisions(u64 session);
  Status pin(u64 session, u32 mask);    ///< bit per rail; 0: all
  Status lose_rail(u64 session, u32 rail, const std::string& reason);  ///< its connections are given up now
  u64 wakeups() const { return wakeups_.load(std::memory_order_relaxed); }
  Status inject(const std::string& fault, u64 argument);

 private:
  friend class SessionSink;
  class Access;                         // a public call: asks the thread to step aside, then locks

  // engine.cpp — the thread
  void run();
  bool step(u64 now);                   // true: more to do at once
  int wait_timeout_ms(u64 now) const;
  int collect(int timeout_ms);           // what came, at most 64 of them
  void handle_tag(u64 tag);
  bool operate(u64 now);                // one step as an operation of this port; parks while frozen
  void kick();
  void blame(EngineLane& lane, const char* why);  // nothing more is read from this lane
  bool is_lying(EngineLane& lane);      // its peer moved a cursor of what we write to where it cannot be; blames it
  enum class Ring : u8 { returns, message };
  void mark_dirty(EngineLane& lane, Ring what);  // its peer's doorbell rings at the end of the step
  void ring_dirty();
  static void ring(EngineLane& lane);
  void retry_blocked(u64 now);
  void take_up(u64 now);                // what public calls left to the thread
  void fail_waiters(u32 segment, u64 now);
  void emit(EngineEvent::Kind kind, u64 a, u64 b = 0, std::string reason = {});

  // spin.cpp — waiting awake
  bool spin();
  bool has_transfers();
  bool reports_may_wait(Session& session, u64 now);

  // outgoing.cpp — lane → session
  void read_lane(EngineLane& lane, u64 now);
  bool take_record(EngineLane& lane, const RecordSpan& span, u64 now);
  Forward& flow_out(u64 flow);
  void pump_flow(Forward& flow, u64 now);
  static bool comes_too_early(const Forward& flow);
  void post_entry(Session& session, Forward& flow, Outgoing& entry, u64 now);
  void post_record(Session& session, Forward& flow, Outgoing& entry, wire::FrameType type, u64 now);
  void start_transfer(Session& session, Outgoing& entry);
  void end_here(Outgoing& entry, End end, Reason reason, u64 now);
  static void become_skip(Outgoing& entry);
  static void mark_ended(const Outgoing& entry);
  bool publish_end(Outgoing& entry);
  void acknowledge(Forward& flow, u64 upto);
  void mark_acknowledged(Forward& flow, u64 upto);
  void release_front(EngineLane& lane);
  bool release_slots(Outgoing& entry);
  void expire(u64 now);
  void watch_deadline(Outgoing& entry);
  void drop_out_transfer(Outgoing& entry);

  // chunks.cpp — payload on its way out
  void pump_bulk(Session& session, u64 now);
  bool post_chunk(Session& session, OutTransfer& transfer, paths::Pick pick, u64 now);
  static u32 cut_chunk(OutTransfer& transfer, u32 bytes);
  static void note_ticket(Session& session, CutChunk& chunk, u32 rail, u64 ticket);
  static u32 full_rails(Session& session);
  static bool other_rail(Session& session, u32 tried);
  static bool is_flying(Session& session, const CutChunk& chunk);
  void withdraw(Session& session, CutChunk& chunk);
  static void post_again(OutTransfer& transfer, u32 chunk);
  void all_posted(Outgoing& owner);
  static void skip_acknowledged(OutTransfer& transfer);
  static void count_left(OutTransfer& transfer);
  static void settle_tickets(Session& session, OutTransfer& transfer, bool taken);
  void on_grant(Session& session, const wire::FrameHeader& header, std::span<const u8> body, u64 now);
  void on_chunk_acks(Session& session, std::span<const u8> body, u64 now);
  void take_chunk_ack(Session& session, const std::shared_ptr<OutTransfer>& transfer, CutChunk& chunk,
                      const wire::ChunkAck& ack, u64 now);
  static void queue_bulk(Session& session, const std::shared_ptr<OutTransfer>& transfer);
  static BulkQueue* next_queue(Session& session);
  static paths::Pick pick_rail(Session& session, const OutTransfer& transfer, u32 full, u64 now);

  // rails.cpp — which connections lead, what goes again
  static bool is_up(const Session& session, u32 group);
  static bool fit_to_lead(const Session& session, u32 group);
  void rail_connected(Session& session, u32 group, u64 now);
  void rail_disconnected(Session& session, u32 group, u64 received, u64 now);
  void choose_leads(Session& session, u64 now);
  void lead_with(Session& session, u32 group, u64 now);
  static bool has_choice(const Session& session);
  static bool rails_matter(const Session& session);
  static u64 rails_due(const Session& session);
  void watch_rails(Session& session, u64 now);
  void ask_rails(Session& session, u64 now);
  void send_lost(Session& session);
  void send_again(Session& session, u64 tag);
  void rails_changed(Session& session);

  // incoming.cpp — session → lane
  bool on_record(Session& session, const wire::FrameHeader& header, std::span<const u8> body, u64 now);
  bool begin_transfer(Session& session, Incoming& entry, Deliver& flow, const wire::FrameHeader& header);
  void grant(Session& session, InTransfer& transfer);
  bool try_allocate(u64 flow, u64 flow_seq);
  void retry_slots();
  void slots_changed() { slots_due_ = true; }
  u8* place_chunk(Session& session, const wire::FrameHeader& header);
  void on_chunk(Session& session, u32 rail, const wire::FrameHeader& header, const u8* body);
  InTransfer* find_transfer(Session& session, u64 id, Incoming** entry, Deliver** flow);
  void make_skip(Deliver& flow, Incoming& entry, std::span<const u8> record);
  void publish_flow(Deliver& flow);
  bool publish_entry(Deliver& flow, Incoming& entry);
  void finish_payload(Incoming& entry, EngineLane& lane, u64 flow);
  void forget_transfer(Incoming& entry);
  void truncate_incoming(Deliver& flow);
  void read_returns(EngineLane& lane);
  void take_return(EngineLane& lane, u64 reading);
  void finish_reading(u32 lane, u64 reading);
  void pop_readings(EngineLane& lane);  // moves the return ring's tail over what is done
  void free_slot(EngineLane& lane, const ReturnEntry& entry);
  void apply_removals();
  void forget_flow(u64 flow);
  void forget_readings(EngineLane& lane, u64 flow);
  void forget_reader(EngineLane& lane, u64 flow);
  bool reported(u32 lane, u64 reading) const;
  u64 last_in_lane(EngineLane& lane, u64 flow) const;
  void find_former(EngineLane& lane);

  // sessions.cpp — links, acknowledgements, reports
  Session* find_session(u64 id);
  Status attach_link(u64 session, std::unique_ptr<Link> link, u32 group, u32 features = 0);
  void connection_up(Session& session, u32 group, u64 now);
  void repeat_unacknowledged(Session& session, u32 kind, u64 now);
  void break_link(Session& session, u32 group, std::string reason);
  bool exceeded(Session& session, const char* limit);
  void answer_again(Session& session);
  void ask_resume(Session& session, Deliver& flow);
  void tear_down(Session& session, u32 group);
  void progress_link(Session& session, u32 group, u64 budget);
  void arm(Connection& connection);
  void post_control(Session& session, wire::FrameHeader header, std::vector<u8> body);
  void post_frame(Session& session, u32 group, OutFrame frame);
  bool on_frame(Session& session, u32 group, const wire::FrameHeader& header, const u8* body);
  void on_hop_ack(Session& session, const wire::FrameHeader& header, std::span<const u8> body, u64 now);
  bool on_report(Session& session, const wire::FrameHeader& header, std::span<const u8> body);
  void deliver_report(Session& session, u64 number, const ReturnEntry& entry);
  void flush_backlog(EngineLane& lane);
  void acknowledge_report(u64 session, u64 number);
  void send_acks(Session& session, u64 now);
  void send_chunk_acks(Session& session, u32 rail);
  bool acks_may_wait(Session& session, u64 now);
  void send_reports(Session& session, u64 now);
  void on_refuse(Session& session, const wire::FrameHeader& header);
  void on_resume(Session& session, const wire::FrameHeader& header, u64 now);
  void pump_session(Session& session, u64 now);
  static bool has_room_unused(const Session& session);

  // silence.cpp — peers that say nothing, transfers that do not move
  void watch_links(u64 now);
  void watch_connection(Session& session, u32 group, u64 now);
  void watch_transfers(Session& session, u64 now);
  static bool carried_all(Session& session);
  void resend_stalled(Session& session, OutTransfer& transfer, u64 now);
  void ask_peer(Session& session, u32 group, u64 now);
  void post_ping(Session& session, u32 group, u64 now);
  void on_pong(Session& session, u32 group, const wire::FrameHeader& header, u64 now);

  // faults.cpp
  std::unique_ptr<Link> wrapped(std::unique_ptr<Link> link);
  bool inject_link(const std::string& fault, u64 argument);

  std::mutex lock_;
  std::atomic<int> callers_{0};
  std::atomic<bool> stopping_{false};
  std::atomic<u64> wakeups_{0};
  std::thread thread_;
  u64 port_ = 0, incarnation_ = 0;
  Mapping state_;
  Doorbell doorbell_;
  Fd epoll_, kick_fd_, events_fd_;
  std::vector<EngineEvent> events_;
  std::unordered_map<u32, std::unique_ptr<EngineLane>> lanes_;
  std::vector<EngineLane*> lanes_by_bit_[kLanesPerPortMax];   // ready bit = lane number modulo the bitmap
  std::vector<u32> dirty_;
  SegmentMap segments_;                 // local senders', for reading
  Arena arena_;                         // own, for what arrives
  std::unordered_map<u64, std::unique_ptr<Session>> sessions_;
  std::unordered_map<u64, std::pair<u64, u32>> tags_;   // epoll tag → session, group
  u64 next_tag_ = 16, next_transfer_ = 1;
  std::unordered_map<u64, Forward> flows_out_;
  std::unordered_map<u64, Deliver> flows_in_;
  std::unordered_map<u32, u32> weights_;               // by channel, where it is not 1
  std::unordered_map<u64, std::vector<HeldReturn>> orphan_returns_;  // flow unknown yet
  std::unordered_set<u64> removed_flows_;
  std::deque<u64> removed_order_;
  std::vector<u64> removals_;
  std::unordered_map<u64, u64> unknown_in_;  // flows a peer sent on before add_deliver → its session
  std::set<std::pair<u64, Outgoing*>> timers_;
  std::unordered_map<u32, std::set<std::pair<u64, u64>>> segment_waiters_;     // session, transfer
  std::deque<std::pair<u64, u64>> slot_waiters_;        // flow, flow_seq
  std::set<u64> grow_asked_;
  EngineFaults faults_;
  bool blocked_retry_ = false;          // lanes or rings found full: look again soon
  bool recheck_ = true;                 // configuration changed: look at every lane
  // Public calls may come while an audit reads: what moves cursors waits for the thread.
  bool slots_due_ = false;
  std::vector<u64> pumps_due_;                        // flows
  std::vector<u32> gone_due_;                         // foreign segments that will not come
  std::vector<std::pair<u32, u64>> rereads_due_;      // lane, flow: its return entries have a session now
  std::vector<std::pair<u32, Holder>> former_;        // segment, slot named by a record of a former life
  u64 acks_due_ns_ = ~u64{0};           // when the acknowledgements that wait for company go alone
  SpinPolicy spin_policy_;
  SpinPolicy::Moved moved_;             // since the last wait
  bool hold_nothing_ = false;           // in the next step: a wait follows that is not spun
  u64 watch_ns_ = 0;                    // when watch_links is due; 0: no connection
  u64 rails_due_ns_ = ~u64{0};          // when watch_rails is, of any session
  std::shared_ptr<LinkFaults> link_faults_ = std::make_shared<LinkFaults>();
  SessionCounters closed_;
  EngineStats totals_;                  // only what is counted over all sessions
  std::vector<u64> ready_tags_;         // thread only: what epoll reported
};

}  // namespace fabric
