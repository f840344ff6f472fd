#include "sim/transport.hpp"

#include <algorithm>

namespace fabric::sim {
namespace {

constexpr double kLineRate = 12.5e9;                   // a burst passes this fast
constexpr double kWindowFirst = 10 * kSegmentBytes, kWindowLeast = 2 * kSegmentBytes;

}  // namespace

Transport::Transport(const Plan& plan, Events& events, Random& random, Arrivals& arrivals)
    : plan_(plan), events_(events), random_(random), arrivals_(arrivals), wires_(plan.rails.size()), rails_(plan.rails.size()) {
  for (u32 i = 0; i < rails_.size(); ++i) {
    const RailPlan& rail = plan.rails[i];
    rails_[i].wire = static_cast<u32>(plan.wire_of(i));
    wires_[i].rate = static_cast<double>(rail.rate);
    wires_[i].limit = std::max<u64>(rail.queue, 2 * kSegmentBytes);
    wires_[i].burst = wires_[i].tokens = static_cast<double>(rail.burst);
    for (const RateStep& step : rail.rates) events_.at(step.at_us * 1000, Kind::rate, i, step.rate);
    if (rail.split_us != 0) events_.at(rail.split_us * 1000, Kind::split, i);
    for (const Outage& outage : rail.outages) {
      events_.at(outage.from_us * 1000, Kind::outage, i, 1, outage.told);
      events_.at(outage.to_us * 1000, Kind::outage, i, 0, outage.told);
    }
  }
}

void Transport::open(u32 number) {
  Rail& rail = rails_[number];
  const u32 epoch = rail.epoch + 1, wire = rail.wire, outages = rail.outages;
  rail = Rail{};
  rail.epoch = epoch;
  rail.wire = wire;
  rail.outages = outages;
  rail.open = true;
  rail.window = kWindowFirst;
  rail.threshold = 1e18;
}

void Transport::close(u32 number) {
  Rail& rail = rails_[number];
  rail.open = false;
  ++rail.epoch;                                        // what is on its way belongs to nobody
  rail.segments.clear();
  rail.answers.clear();
  rail.lost.clear();
  rail.backlog = rail.out = 0;
}

u64 Transport::round_trip_ns(u32 number) const {
  const Wire& wire = wires_[rails_[number].wire];
  if (wire.rate <= 0) return kNeverNs;
  return 2 * delay_ns(number) + static_cast<u64>(static_cast<double>(wire.queued) * 1e9 / wire.rate);
}

// ------------------------------------------------------------------ sender
void Transport::write(u32 number, u64 post, u32 bytes) {
  Rail& rail = rails_[number];
  for (u32 at = 0; at < bytes; at += kSegmentBytes) {
    const u32 part = std::min(kSegmentBytes, bytes - at);
    rail.segments.push_back({post, at, part, 0, at + part == bytes, false, false, false});
  }
  rail.backlog += bytes;
  pump(number);
}

void Transport::pump(u32 number) {
  Rail& rail = rails_[number];
  while (rail.open) {
    while (!rail.lost.empty() && (rail.lost.front() < rail.first || rail.segments[rail.lost.front() - rail.first].acked))
      rail.lost.pop_front();
    const bool again = !rail.lost.empty();
    const u64 index = again ? rail.lost.front() : rail.next;
    if (index >= rail.first + rail.segments.size()) return;
    const u32 bytes = rail.segments[index - rail.first].bytes;
    if (rail.out > 0 && static_cast<double>(rail.out + bytes) > rail.window) return;
    if (again) rail.lost.pop_front();
    else ++rail.next;
    transmit(number, index);
  }
}

void Transport::transmit(u32 number, u64 index) {
  Rail& rail = rails_[number];
  Segment& segment = rail.segments[index - rail.first];
  segment.sent = ++rail.transmissions;
  segment.flying = true;
  if (rail.out == 0) rail.due_ns = events_.now() + rail.timeout_ns;
  rail.out += segment.bytes;
  if (!rail.timer) {
    rail.timer = true;
    events_.at(rail.due_ns, Kind::timeout, number, 0, 0, 0, rail.epoch);
  }
  Wire& wire = wires_[rail.wire];
  if (!passes(number) || wire.queued + segment.bytes > wire.limit || random_.happens(plan_.rails[number].loss)) return;
  wire.queue.push_back({number, rail.epoch, index, segment.sent, segment.bytes});
  wire.queued += segment.bytes;
  if (!wire.busy) serve(rail.wire);
}

// ------------------------------------------------------------------ wire
/// Begins with the head of the queue: what its tokens do not pay takes time at the present rate.
void Transport::serve(u32 number) {
  Wire& wire = wires_[number];
  wire.busy = !wire.queue.empty();
  if (!wire.busy) return;
  const u64 now = events_.now();
  wire.tokens = std::min(wire.burst, wire.tokens + wire.rate * static_cast<double>(now - wire.tokens_ns) / 1e9);
  wire.tokens_ns = wire.since_ns = now;
  const double bytes = wire.queue.front().bytes;
  const u32 rail = wire.queue.front().rail;
  const double turn_us = wire.last != rail ? static_cast<double>(plan_.rails[rail].switch_us) : 0;
  wire.last = rail;
  wire.need = std::max(0.0, bytes - wire.tokens) + turn_us * wire.rate / 1e6;
  wire.tokens = std::max(0.0, wire.tokens - bytes);
  ++wire.service;
  if (wire.rate <= 0 && wire.need > 0) return;         // a change of its rate goes on with it
  const double took_ns = std::max(wire.rate > 0 ? wire.need * 1e9 / wire.rate : 0.0, bytes * 1e9 / kLineRate);
  events_.at(now + static_cast<u64>(took_ns), Kind::served, number, wire.service);
}

void Transport::set_rate(u32 number, u64 rate) {
  Wire& wire = wires_[number];
  const u64 now = events_.now();
  const double past = static_cast<double>(now - wire.since_ns) / 1e9;
  if (wire.busy) wire.need = std::max(0.0, wire.need - wire.rate * past);
  else wire.tokens = std::min(wire.burst, wire.tokens + wire.rate * static_cast<double>(now - wire.tokens_ns) / 1e9);
  wire.rate = static_cast<double>(rate);
  wire.since_ns = wire.tokens_ns = now;
  if (!wire.busy) return;
  ++wire.service;
  if (rate > 0 || wire.need <= 0)
    events_.at(now + static_cast<u64>(rate > 0 ? wire.need * 1e9 / wire.rate : 0.0), Kind::served, number, wire.service);
}

void Transport::served(u32 number, u64 service) {
  Wire& wire = wires_[number];
  if (!wire.busy || service != wire.service) return;
  const Packet packet = wire.queue.front();
  wire.queue.pop_front();
  wire.queued -= packet.bytes;
  wire.tokens_ns = events_.now();
  if (passes(packet.rail))
    events_.at(events_.now() + delay_ns(packet.rail), Kind::arrived, packet.rail, packet.segment, packet.transmission, 0, packet.epoch);
  serve(number);
}

// ------------------------------------------------------------------ receiver
void Transport::arrived(const Event& event) {
  Rail& rail = rails_[event.who];
  if (!rail.open || event.epoch != rail.epoch || !passes(event.who)) return;
  if (event.a >= rail.first) rail.segments[event.a - rail.first].arrived = true;
  while (rail.open && rail.epoch == event.epoch && rail.expected < rail.first + rail.segments.size()) {
    const Segment segment = rail.segments[rail.expected - rail.first];
    if (!segment.arrived) break;
    ++rail.expected;
    arrivals_.piece(event.who, segment.post, segment.offset, segment.bytes, segment.last);
  }
  events_.at(events_.now() + delay_ns(event.who), Kind::heard, event.who, event.a, event.b, rail.expected, event.epoch);
}

void Transport::answer(u32 number, u64 post, bool is_bad) {
  Rail& rail = rails_[number];
  const RailPlan& plan = plan_.rails[number];
  const int copies = random_.happens(plan.repeated_acks) ? 2 : 1;
  for (int i = 0; i < copies; ++i) rail.answers.push_back({post, is_bad});
  if (rail.answers.size() > static_cast<std::size_t>(copies)) return;  // they leave together
  u64 leave = events_.now() + (plan.acks_us == 0 ? 0 : random_.below(plan.acks_us * 1000));
  if (random_.happens(plan.late_acks)) leave += random_.below(50'000'000);
  events_.at(leave, Kind::acks, number, 0, 0, 0, rail.epoch);
}

/// A byte stream too: what finds the rail down goes again after a time-out that doubles, in order.
void Transport::send_answers(u32 number, u32 epoch) {
  Rail& rail = rails_[number];
  if (!rail.open || epoch != rail.epoch) return;
  const u64 now = events_.now();
  if (!passes(number)) {
    events_.at(now + rail.answers_timeout_ns, Kind::acks, number, 0, 0, 0, epoch);
    rail.answers_timeout_ns = std::min(kTimeoutMaxNs, 2 * rail.answers_timeout_ns);
    return;
  }
  rail.answers_timeout_ns = kTimeoutMinNs;
  for (const Answer& answer : rail.answers)
    events_.at(now + delay_ns(number), Kind::acked, number, answer.post, answer.is_bad, 0, epoch);
  rail.answers.clear();
}

// ------------------------------------------------------------------ acknowledgements of the transport
void Transport::acknowledge(Rail& rail, Segment& segment) {
  if (segment.acked) return;
  segment.acked = true;
  rail.backlog -= segment.bytes;
  if (segment.flying) rail.out -= segment.bytes;
  segment.flying = false;
  if (rail.window < rail.threshold) rail.window += segment.bytes;
  else rail.window += double{kSegmentBytes} * segment.bytes / rail.window;
}

void Transport::heard(const Event& event) {
  Rail& rail = rails_[event.who];
  if (!rail.open || event.epoch != rail.epoch || !passes(event.who)) return;
  if (event.a >= rail.first) acknowledge(rail, rail.segments[event.a - rail.first]);
  for (u64 i = rail.first; i < event.c; ++i) acknowledge(rail, rail.segments[i - rail.first]);
  while (!rail.segments.empty() && rail.segments.front().acked) {
    rail.segments.pop_front();
    ++rail.first;
  }
  rail.timeout_ns = std::max(kTimeoutMinNs, 4 * delay_ns(event.who));
  rail.due_ns = events_.now() + rail.timeout_ns;
  find_lost(event.who, event.b);
  pump(event.who);
}

/// What left before something that arrived, and did not: the queue is in order.
void Transport::find_lost(u32 number, u64 transmission) {
  Rail& rail = rails_[number];
  for (u64 i = rail.first; i < rail.next; ++i) {
    Segment& segment = rail.segments[i - rail.first];
    if (segment.acked || !segment.flying || segment.sent >= transmission) continue;
    segment.flying = false;
    rail.out -= segment.bytes;
    rail.lost.push_back(i);
    if (segment.sent <= rail.cut_after) continue;      // once a round trip
    rail.threshold = rail.window = std::max(kWindowLeast, rail.window * 0.7);
    rail.cut_after = rail.transmissions;
  }
}

void Transport::timed_out(u32 number) {
  Rail& rail = rails_[number];
  rail.timer = false;
  if (rail.segments.empty()) return;
  if (events_.now() >= rail.due_ns) {
    rail.lost.clear();
    for (u64 i = rail.first; i < rail.next; ++i) {
      Segment& segment = rail.segments[i - rail.first];
      if (segment.acked) continue;
      if (segment.flying) rail.out -= segment.bytes;
      segment.flying = false;
      rail.lost.push_back(i);
    }
    rail.threshold = std::max(kWindowLeast, rail.window / 2);
    rail.window = kWindowLeast;
    rail.timeout_ns = std::min(kTimeoutMaxNs, 2 * rail.timeout_ns);
    rail.due_ns = events_.now() + rail.timeout_ns;
    rail.timer = true;
    events_.at(rail.due_ns, Kind::timeout, number, 0, 0, 0, rail.epoch);
    pump(number);
    return;
  }
  rail.timer = true;
  events_.at(rail.due_ns, Kind::timeout, number, 0, 0, 0, rail.epoch);
}

void Transport::handle(const Event& event) {
  switch (event.kind) {
    case Kind::served: return served(event.who, event.a);
    case Kind::arrived: return arrived(event);
    case Kind::heard: return heard(event);
    case Kind::rate: return set_rate(event.who, event.a);
    case Kind::acks: return send_answers(event.who, event.epoch);
    case Kind::timeout:
      if (rails_[event.who].open && event.epoch == rails_[event.who].epoch) timed_out(event.who);
      return;
    case Kind::split:
      rails_[event.who].wire = event.who;
      return;
    case Kind::outage:
      rails_[event.who].outages += event.a != 0 ? 1 : -1;
      return;
    case Kind::acked:
      if (!rails_[event.who].open || event.epoch != rails_[event.who].epoch) return;
      if (passes(event.who)) return arrivals_.answered(event.who, event.a, event.b != 0);
      rails_[event.who].answers.push_back({event.a, event.b != 0});  // lost on its way: it goes again
      if (rails_[event.who].answers.size() == 1) events_.at(events_.now() + kTimeoutMinNs, Kind::acks, event.who, 0, 0, 0, event.epoch);
      return;
    default: return;
  }
}

}  // namespace fabric::sim
