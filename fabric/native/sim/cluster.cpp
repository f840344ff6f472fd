#include "sim/cluster.hpp"

#include <algorithm>

namespace fabric::sim {
namespace {

u64 time_of(u64 bytes, double rate) { return static_cast<u64>(static_cast<double>(bytes) * 1e9 / rate); }

}  // namespace

Cluster::Cluster(const ClusterPlan& plan) : plan_(plan), rails_(static_cast<u32>(plan.rates.size())) {
  ports_.resize(u64{plan.nodes} * rails_ * 2);
  for (u32 node = 0; node < plan.nodes; ++node)
    for (u32 rail = 0; rail < rails_; ++rail)
      port(true, node, rail).rate = port(false, node, rail).rate = plan.rates[rail];
  for (const SlowRail& slow : plan.slow)
    for (const bool sending : {true, false}) port(sending, slow.node, slow.rail).rate = plan.rates[slow.rail] * slow.factor;
  transfers_.resize(plan.transfers.size());
  result_.took_ns.resize(plan.transfers.size());
  for (u64 i = 0; i < plan.transfers.size(); ++i) events_.at(plan.transfers[i].at_ns, Kind::offered, 0, i);
}

bool Cluster::run(u64 events) {
  Event event;
  for (u64 i = 0; i < events; ++i) {
    if (!events_.next(event)) return false;
    switch (event.kind) {
      case Kind::offered: offer(static_cast<u32>(event.a)); break;
      case Kind::arrived: arrive(event); break;
      case Kind::acked: acknowledge(event); break;
      case Kind::tick: {
        Pair& pair = pair_of(event.a);
        if (pair.tick_ns == event.at) tick(event.a, pair);
        break;
      }
      default: break;
    }
  }
  if (events_.handled() <= kClusterEventsMax) return true;
  result_.violation = "no end after " + std::to_string(kClusterEventsMax) + " events";
  return false;
}

ClusterResult Cluster::take() {
  for (const Transfer& transfer : transfers_)
    if (transfer.unacked != 0 && result_.violation.empty()) result_.violation = "a transfer was not delivered";
  result_.end_ns = events_.now();
  return std::move(result_);
}

void Cluster::offer(u32 number) {
  const ClusterTransfer& wanted = plan_.transfers[number];
  Transfer& transfer = transfers_[number];
  transfer.left = transfer.unacked = wanted.bytes;
  result_.bytes += wanted.bytes;
  if (plan_.policy == Policy::adaptive) {
    const u64 key = key_of(wanted);
    Pair& pair = pair_of(key);
    if (pair.under_way < kEngineTransfers) begin(pair, number);
    else pair.waiting.push_back(number);
    return pump(key, pair);
  }
  transfer.lots.resize(rails_);
  Random hash(plan_.seed ^ (u64{number} << 20));
  const u32 parts = plan_.policy == Policy::striped ? rails_ : plan_.flows;
  for (u32 i = 0; i < parts; ++i) {
    const u64 rail = plan_.policy == Policy::striped ? i : hash.below(rails_);
    transfer.lots[rail].left += wanted.bytes / parts + (i < wanted.bytes % parts ? 1 : 0);
  }
  for (u32 rail = 0; rail < rails_; ++rail) post_fixed(number, rail);
}

// ------------------------------------------------------------------ fixed policies
void Cluster::post_fixed(u32 number, u32 rail) {
  Lot& lot = transfers_[number].lots[rail];
  while (lot.left > 0 && lot.out < kFixedWindow) {
    const u32 bytes = static_cast<u32>(std::min<u64>(lot.left, kFixedChunkBytes));
    lot.left -= bytes;
    ++lot.out;
    send(take_chunk(number, bytes), rail, 0);
  }
}

// ------------------------------------------------------------------ the scheduler's
Cluster::Pair& Cluster::pair_of(u64 key) {
  std::unique_ptr<Pair>& pair = pairs_[key];
  if (pair != nullptr) return *pair;
  pair = std::make_unique<Pair>();
  for (u32 rail = 0; rail < rails_; ++rail) {
    pair->scheduler.rail_up(rail, events_.now());
    for (u32 i = 0; i < paths::kIdleTripsMin; ++i) pair->scheduler.round_trip(rail, 2 * plan_.delay_ns, events_.now());
  }
  pair->scheduler.take_changes();
  return *pair;
}

void Cluster::begin(Pair& pair, u32 number) {
  ++pair.under_way;
  pair.transfers.push_back(number);
  pair.pending += transfers_[number].left;
}

void Cluster::pump(u64 key, Pair& pair) {
  while (post_again(pair)) {}
  while (!pair.transfers.empty()) {
    const u32 number = pair.transfers.front();
    Transfer& transfer = transfers_[number];
    const paths::Pick pick = pair.scheduler.pick(transfer.left, pair.pending, events_.now());
    if (pick.rail == paths::kNoRail) break;
    pair.transfers.pop_front();
    transfer.left -= pick.bytes;
    pair.pending -= pick.bytes;
    if (transfer.left > 0) pair.transfers.push_back(number);
    const u64 chunk = take_chunk(number, pick.bytes);
    send(chunk, pick.rail, pair.scheduler.posted(pick.rail, pick.bytes, chunk, events_.now()));
  }
  const u64 due = pair.scheduler.next_ns();
  if (due == ~u64{0} || due >= pair.tick_ns) return;
  pair.tick_ns = std::max(due, events_.now());
  events_.at(pair.tick_ns, Kind::tick, 0, key);
}

/// A second copy of a chunk, on another rail; the first to arrive counts.
bool Cluster::post_again(Pair& pair) {
  if (pair.again.empty()) return false;
  const u64 number = pair.again.front();
  Chunk& chunk = chunks_[number];
  if (chunk.acked) {
    pair.again.pop_front();
    chunk.queued = false;
    give_back(number);
    return true;
  }
  u32 usable = 0;
  for (u32 rail = 0; rail < rails_; ++rail) usable |= pair.scheduler.carries(rail) ? 1u << rail : 0;
  const u32 avoid = (usable & ~chunk.tried) != 0 ? chunk.tried : 0;
  const paths::Pick pick = pair.scheduler.pick(chunk.bytes, pair.pending + chunk.bytes, events_.now(), avoid);
  if (pick.rail == paths::kNoRail) return false;
  pair.again.pop_front();
  chunk.queued = false;
  result_.resent_bytes += chunk.bytes;
  send(number, pick.rail, pair.scheduler.posted(pick.rail, chunk.bytes, number, events_.now()));
  return true;
}

void Cluster::tick(u64 key, Pair& pair) {
  pair.tick_ns = ~u64{0};
  back_.clear();
  reset_.clear();
  pair.scheduler.tick(events_.now(), back_, reset_);
  pair.scheduler.take_changes();
  for (const u64 tag : back_) {
    if (chunks_[tag].acked || chunks_[tag].queued) continue;
    chunks_[tag].queued = true;
    pair.again.push_back(tag);
  }
  pump(key, pair);
}

// ------------------------------------------------------------------ ports
u64 Cluster::take_chunk(u32 transfer, u32 bytes) {
  ++result_.chunks;
  if (spare_.empty()) {
    spare_.push_back(chunks_.size());
    chunks_.emplace_back();
  }
  const u64 number = spare_.back();
  spare_.pop_back();
  chunks_[number] = {transfer, bytes, 0, 0, false, false};
  return number;
}

void Cluster::give_back(u64 number) {
  const Chunk& chunk = chunks_[number];
  if (chunk.acked && chunk.copies == 0 && !chunk.queued) spare_.push_back(number);
}

void Cluster::send(u64 number, u32 rail, u64 ticket) {
  Chunk& chunk = chunks_[number];
  chunk.tried |= 1u << rail;
  ++chunk.copies;
  Port& from = port(true, plan_.transfers[chunk.transfer].source, rail);
  from.free_ns = std::max(from.free_ns, events_.now()) + time_of(chunk.bytes, from.rate);
  events_.at(from.free_ns + plan_.delay_ns, Kind::arrived, rail, number, ticket);
  result_.log = (result_.log ^ (from.free_ns << 3 ^ rail)) * 1099511628211ULL;
}

void Cluster::arrive(const Event& event) {
  const Chunk& chunk = chunks_[event.a];
  Port& into = port(false, plan_.transfers[chunk.transfer].target, event.who);
  into.free_ns = std::max(into.free_ns, events_.now()) + time_of(chunk.bytes, into.rate);
  events_.at(into.free_ns + plan_.delay_ns, Kind::acked, event.who, event.a, event.b);
}

void Cluster::acknowledge(const Event& event) {
  Chunk& chunk = chunks_[event.a];
  const u32 number = chunk.transfer, bytes = chunk.bytes;
  const u64 key = key_of(plan_.transfers[number]);
  const bool is_first = !chunk.acked;
  chunk.acked = true;
  --chunk.copies;
  give_back(event.a);
  if (is_first) transfers_[number].unacked -= bytes;
  const bool is_done = is_first && transfers_[number].unacked == 0;
  if (is_done) result_.took_ns[number] = events_.now() - plan_.transfers[number].at_ns;
  if (plan_.policy != Policy::adaptive) {
    --transfers_[number].lots[event.who].out;
    return post_fixed(number, event.who);
  }
  Pair& pair = pair_of(key);
  pair.scheduler.delivered(event.b, events_.now());
  if (is_done) {
    --pair.under_way;
    if (!pair.waiting.empty()) {
      begin(pair, pair.waiting.front());
      pair.waiting.pop_front();
    }
  }
  pump(key, pair);
}

}  // namespace fabric::sim
