// Rails as a byte stream sees them: a queue that drains at a rate, propagation, loss that costs a retransmission, silence.
//
// One connection a rail, in order like TCP: a hole holds up what is behind it; what is lost is sent again when a later
// segment was acknowledged, or after a time-out that doubles. A rail that is down swallows what is on its way.
#pragma once

#include <deque>
#include <vector>

#include "sim/events.hpp"
#include "sim/plan.hpp"
#include "sim/random.hpp"

namespace fabric::sim {

inline constexpr u32 kSegmentBytes = 16 * 1024;
inline constexpr u64 kTimeoutMinNs = 200'000'000;    // Linux: TCP_RTO_MIN
inline constexpr u64 kTimeoutMaxNs = 60'000'000'000;
inline constexpr u64 kNeverNs = ~u64{0};

/// Told what arrives, in order and as it arrives.
class Arrivals {
 public:
  virtual ~Arrivals() = default;
  virtual void piece(u32 rail, u64 post, u32 offset, u32 bytes, bool is_last) = 0;
  virtual void answered(u32 rail, u64 post, bool is_bad) = 0;
};

class Transport {
 public:
  Transport(const Plan& plan, Events& events, Random& random, Arrivals& arrivals);
  void open(u32 rail);
  void close(u32 rail);
  void write(u32 rail, u64 post, u32 bytes);
  void answer(u32 rail, u64 post, bool is_bad);        ///< from the receiver, on the same rail
  void handle(const Event& event);
  bool is_open(u32 rail) const { return rails_[rail].open; }
  bool passes(u32 rail) const { return rails_[rail].outages == 0; }
  u32 wire(u32 rail) const { return rails_[rail].wire; }  ///< whose rate and queue it uses now
  u32 epoch(u32 rail) const { return rails_[rail].epoch; }
  u64 backlog(u32 rail) const { return rails_[rail].backlog; }  ///< bytes not acknowledged by the transport
  u64 unsent(u32 rail) const { return rails_[rail].backlog - rails_[rail].out; }
  u64 round_trip_ns(u32 rail) const;                   ///< of next to no bytes, now

 private:
  struct Packet { u32 rail, epoch; u64 segment, transmission; u32 bytes; };
  struct Wire {
    std::deque<Packet> queue;
    u64 queued = 0, limit = 0, service = 0, tokens_ns = 0, since_ns = 0;
    u32 last = ~u32{0};                                // the rail that was served
    double rate = 0, burst = 0, tokens = 0, need = 0;  // bytes
    bool busy = false;
  };
  struct Segment { u64 post; u32 offset, bytes; u64 sent; bool last, flying, arrived, acked; };
  struct Answer { u64 post; bool is_bad; };
  struct Rail {
    u32 epoch = 0, wire = 0, outages = 0;
    bool open = false, timer = false;
    std::deque<Segment> segments;
    std::deque<u64> lost;
    std::deque<Answer> answers;                        // of the receiver, not sent
    u64 first = 0, next = 0, expected = 0, transmissions = 0, cut_after = 0, out = 0, backlog = 0;
    double window = 0, threshold = 0;
    u64 timeout_ns = kTimeoutMinNs, due_ns = 0, answers_timeout_ns = kTimeoutMinNs;
  };

  void pump(u32 number);
  void transmit(u32 number, u64 index);
  void serve(u32 number);
  void served(u32 number, u64 service);
  void set_rate(u32 number, u64 rate);
  void arrived(const Event& event);
  void heard(const Event& event);
  void find_lost(u32 number, u64 transmission);
  void timed_out(u32 number);
  void send_answers(u32 number, u32 epoch);
  void acknowledge(Rail& rail, Segment& segment);
  u64 delay_ns(u32 rail) const { return plan_.rails[rail].delay_us * 1000; }

  const Plan& plan_;
  Events& events_;
  Random& random_;
  Arrivals& arrivals_;
  std::vector<Wire> wires_;
  std::vector<Rail> rails_;
};

}  // namespace fabric::sim
