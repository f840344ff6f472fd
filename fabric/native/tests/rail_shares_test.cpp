// What channels get of a rail that they fill together: by their weights, at once, and none of it from a higher class.
#include <cmath>
#include <map>

#include "tests/rail_relay.hpp"

using namespace fabric;
using namespace fabric::test;

namespace {

constexpr u64 kMiB = 1 << 20, kMs = 1'000'000, kSecond = 1'000'000'000;
constexpr u64 kRate = 30 * kMiB / kSlower;               // what the test itself can keep full, also under a sanitizer
constexpr u64 kSize = 64 * 1024, kDeep = 48;

constexpr u32 kOther = 1 + kLanesPerPortMax;            // rings like lane 1

/// One rail; each channel has a flow of its own that keeps `kDeep` messages under way. The sending node has a second port,
/// of another tenant.
struct Channels : Railed {
  struct Flow {
    u64 id;
    u32 channel, klass, lane;
    u64 size, deep, sent = 0, got = 0, bytes = 0;
    std::vector<u8> body;
    std::vector<u64> left_ns, took_ns;
  };
  std::map<u64, Flow> flows;
  PortFds second{u64{1} << 32 | 3, 103};
  Fd pair;
  LaneEnd end;                         // of the second port

  Channels() : Railed(1) {
    relay[0]->rate = kRate;
    const u64 ports[2] = {a.gateway.port, second.port}, lives[2] = {a.gateway.incarnation, second.incarnation};
    must(create_lane_pair(3, ports, lives, pair));
    must(end.attach(pair.get(), 1));
    must(a.engine.add_lane({kOther, pair.get(), 0, 3, second.port, second.incarnation, second.bell.get(), second.event.get(), 1001}));
  }
  Flow& open(u32 channel, u32 weight, u32 klass = 3, u64 size = kSize, u64 deep = kDeep, u32 lane = 1) {
    const u64 id = (u64{1} << 48) | (100 + channel);
    must(a.engine.weigh(channel, weight));
    must(a.engine.add_forward(id, lane, kSession));
    must(b.engine.add_deliver(id, 1, kSession, 0));
    return flows.insert({id, {id, channel, klass, lane, size, deep, 0, 0, 0, pattern(size, channel), {}, {}}}).first->second;
  }
  /// As the second port.
  void as_other(const std::function<void()>& act) {
    std::swap(a.end, end);
    act();
    std::swap(a.end, end);
  }
  void feed(Flow& flow) {
    while (flow.sent - flow.got < flow.deep) {
      a.channel = flow.channel;
      a.klass = flow.klass;
      if (!a.send(flow.id, flow.sent + 1, flow.body, true)) return;
      ++flow.sent;
      flow.left_ns.push_back(monotonic_ns());
    }
  }
  void take() {
    Got message;
    while (b.receive(message)) {
      Flow& flow = flows.at(message.flow);
      CHECK(message.seq == ++flow.got && message.payload == flow.body);
      flow.bytes += flow.size;
      flow.took_ns.push_back(monotonic_ns() - flow.left_ns[flow.got - 1]);
      b.finish(message);
    }
    a.returns();
  }
  void run(u64 ns) {
    for (const u64 until = monotonic_ns() + ns; monotonic_ns() < until;) {
      serve();
      for (auto& [id, flow] : flows) {
        if (flow.lane == kOther) as_other([&] { feed(flow); });
        else feed(flow);
      }
      take();
      as_other([&] { a.returns(); });
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  }
  /// What each had of all that came within `ns` from now on.
  std::map<u32, double> parts(u64 ns) {
    std::map<u32, double> found;
    for (auto& [id, flow] : flows) flow.bytes = 0;
    run(ns);
    double sum = 0;
    for (auto& [id, flow] : flows) sum += static_cast<double>(flow.bytes);
    CHECK(sum > 0.5 * static_cast<double>(kRate) * static_cast<double>(ns) / 1e9 / kSlower);  // the rail is full
    for (auto& [id, flow] : flows) found[flow.channel] = static_cast<double>(flow.bytes) / sum;
    return found;
  }
};

/// Under a sanitizer the test does not keep every queue full all the time.
bool is_near(double value, double expected) { return std::abs(value - expected) < 0.03 * kSlower; }

void channels_share_a_rail_by_their_weights() {
  Channels pair;
  pair.open(1, 1);
  pair.open(2, 3);
  pair.run(500 * kMs);
  auto found = pair.parts(2 * kSecond);
  CHECK(is_near(found[1], 0.25) && is_near(found[2], 0.75));
}

void a_channel_that_begins_has_its_share_within_two_hundred_milliseconds() {
  Channels pair;
  pair.open(1, 1);
  pair.open(2, 3);
  pair.run(kSecond);
  pair.open(3, 4);
  pair.run(200 * kMs);
  auto found = pair.parts(2 * kSecond);
  CHECK(is_near(found[1], 0.125) && is_near(found[2], 0.375) && is_near(found[3], 0.5));
}

void tenants_share_a_rail_equally_whatever_their_channels_weigh() {
  Channels pair;
  pair.open(1, 1, 3, kSize, kDeep, kOther);
  pair.open(2, 100);
  pair.open(3, 50);
  pair.run(500 * kMs);
  auto found = pair.parts(2 * kSecond);
  CHECK(is_near(found[1], 0.5) && is_near(found[2], 0.333) && is_near(found[3], 0.167));
}

void a_flood_of_bulk_does_not_delay_a_token() {
  Channels pair;
  pair.open(1, 1, u32(Class::bulk), 4 * kMiB, 8);       // half a second of the rail waits at any time
  pair.open(2, 100, u32(Class::bulk), 4 * kMiB, 8);
  pair.run(kSecond);
  Channels::Flow& token = pair.open(3, 1, u32(Class::token), 16 * 1024, 1);
  pair.run(2 * kSecond);
  std::sort(token.took_ns.begin(), token.took_ns.end());
  CHECK(!token.took_ns.empty());
  if (kSlower > 1) return;                              // a sanitizer's engines are what takes the time
  CHECK(token.took_ns.size() > 50);
  CHECK(token.took_ns[token.took_ns.size() / 2] < 60 * kMs);
}

void a_weight_out_of_bounds_is_refused() {
  Channels pair;
  CHECK(!pair.a.engine.weigh(1, 0).ok() && !pair.a.engine.weigh(1, kChannelWeightMax + 1).ok());
}

}  // namespace

int main() {
  channels_share_a_rail_by_their_weights();
  a_channel_that_begins_has_its_share_within_two_hundred_milliseconds();
  tenants_share_a_rail_equally_whatever_their_channels_weigh();
  a_flood_of_bulk_does_not_delay_a_token();
  a_weight_out_of_bounds_is_refused();
  std::puts("rail_shares_test: ok");
  return 0;
}
