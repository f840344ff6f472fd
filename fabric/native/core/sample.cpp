#include "core/sample.hpp"

#include <unistd.h>

#include <algorithm>

#include "core/ledger.hpp"

namespace fabric {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;
constexpr int kTries = 8;
constexpr int kReasons = static_cast<int>(Reason::count);

/// The writer folds into the buffer that is not active and then flips: what is read is of one moment when neither the
/// active buffer nor its tail has changed meanwhile.
bool is_still(const SenderLedger& row, u32 active, u64 tail) {
  std::atomic_thread_fence(std::memory_order_acquire);
  return row.active.load(kRelaxed) == active && row.fold[active & 1].tail == tail;
}

/// Folded counts. @return false when the writer was faster every time
bool read_folded(const SenderLedger& row, SampledLedger& out, u32& active, u64& tail, u64& moved) {
  for (int attempt = 0; attempt < kTries; ++attempt) {
    active = row.active.load(std::memory_order_acquire);
    const Fold& fold = row.fold[active & 1];
    tail = fold.tail;
    moved = fold.count[0][0];
    out.delivered_bytes = fold.delivered_bytes;
    for (int end = 1; end < 4; ++end) std::copy_n(fold.count[end], kReasons, out.counts[end]);
    if (is_still(row, active, tail)) return true;
  }
  return false;
}

/// Adds what is behind the tail: ends that cannot be folded yet, and what has not ended.
void count_unfolded(const Ledger& ledger, u64 tail, u64 accepted, SampledLedger& out, u64& moved) {
  const u64 last = std::min<u64>(accepted, tail + kOutstandingPerEndpoint);
  for (u64 sequence = tail + 1; sequence <= last; ++sequence) {
    const OutEntry& entry = ledger.entry(sequence);
    const u32 word = entry.word.load(std::memory_order_acquire);
    const OutState state = out_state(word);
    if (state == OutState::ended) {
      const int end = static_cast<int>(out_end(word)), reason = static_cast<int>(out_reason(word));
      if (end == 0) ++moved;
      else if (end < 4 && reason < kReasons) ++out.counts[end][reason];
      if (out_end(word) == End::delivered) out.delivered_bytes += entry.payload_bytes;
    } else if (state == OutState::accepted || state == OutState::waiting) {
      ++out.outstanding;
      out.outstanding_bytes += entry.payload_bytes;
      out.waiting += state == OutState::waiting;
    }
  }
}

/// Everything of one moment; under a writer that never pauses, only what is folded, which is never too much.
bool read_counts(SenderLedger& row, SampledLedger& out) {
  Ledger ledger;
  ledger.attach(&row);
  u32 active = 0;
  u64 tail = 0, moved = 0;
  for (int attempt = 0; attempt < kTries; ++attempt) {
    out.outstanding = out.outstanding_bytes = out.waiting = 0;
    if (!read_folded(row, out, active, tail, moved)) return false;
    const u64 accepted = ledger.accepted();
    count_unfolded(ledger, tail, accepted, out, moved);
    out.accepted = accepted - std::min(accepted, moved);
    if (is_still(row, active, tail)) return true;
  }
  if (!read_folded(row, out, active, tail, moved)) return false;
  out.accepted = tail - std::min(tail, moved);
  return true;
}

bool sample_ledger(SenderLedger& row, SampledLedger& out) {
  out.endpoint = row.endpoint;
  out.channel = row.channel;
  out.pattern = row.pattern;
  out.delivery = row.delivery;
  out.klass = row.klass;
  if (!read_counts(row, out)) return false;
  for (int kind = 0; kind < static_cast<int>(Aside::count); ++kind) {
    const auto [end, reason] = aside_end(static_cast<Aside>(kind));
    const u64 messages = row.aside[kind].load(kRelaxed);
    out.counts[static_cast<int>(end)][static_cast<int>(reason)] += messages;
    out.accepted += messages;
  }
  return true;
}

SampledHeld& of_channel(std::vector<SampledHeld>& rows, u32 channel) {
  for (SampledHeld& row : rows) {
    if (row.channel == channel) return row;
  }
  return rows.emplace_back(SampledHeld{0, 0, 0, 0, 0, channel});
}

void sample_held(const StateLayout& state, std::vector<SampledHeld>& rows) {
  const u32 high = std::min<u32>(state.head.held_high.load(std::memory_order_acquire), kHeldPerPort);
  for (u32 i = 0; i < high; ++i) {
    const HeldEntry& entry = state.held[i];
    const u32 word = entry.word.load(std::memory_order_acquire);
    const auto held = static_cast<HeldState>(word & 0xff);
    if (held == HeldState::free || held == HeldState::releasing) continue;
    if (held == HeldState::ended && word >> 8 == 0) continue;  // inline: nobody can look at it any more
    SampledHeld& row = of_channel(rows, entry.channel);
    if (held == HeldState::queued) {
      ++row.queued;
      row.queued_bytes += entry.payload_bytes;
      continue;
    }
    ++row.views;
    row.view_bytes += entry.payload_bytes;
    const u64 since = entry.since_ns;
    if (since != 0 && (row.oldest_view_ns == 0 || since < row.oldest_view_ns)) row.oldest_view_ns = since;
  }
}

}  // namespace

Status StateSampler::open(int fd) {
  Status status = Mapping::map(fd, sizeof(StateLayout), false, mapping_);
  if (!status.ok()) return status;
  const auto* state = mapping_.as<StateLayout>();
  if (state->head.magic != kStateMagic || state->head.version != 1) return Status::fail(Code::internal, "not a state segment");
  fd_ = Fd::duplicate(fd);
  return fd_.get() < 0 ? system_failure("duplicating a descriptor") : status;
}

void StateSampler::sample(SampledState& out) const {
  auto* state = mapping_.as<StateLayout>();
  out.heartbeat_ns = state->head.heartbeat_ns.load(kRelaxed);
  Written written(fd_.get());
  u8* base = mapping_.base();
  visit_written<FlowIn>(written, base, offsetof(StateLayout, flows), kFlowsInPerPortMax, [&](const FlowIn& row) {
    const u64 flow = row.flow.load(std::memory_order_acquire);
    if (flow != 0)
      out.flows.push_back({flow, row.endpoint, row.drained.load(kRelaxed), row.handed.load(kRelaxed),
                           row.ended_upto.load(kRelaxed), row.returned.load(kRelaxed), row.payload_bytes.load(kRelaxed),
                           row.channel, row.lane});
    return true;
  });
  visit_written<SenderLedger>(written, base, offsetof(StateLayout, ledger), kEndpointsPerPortMax, [&](SenderLedger& row) {
    SampledLedger seen{};
    if (row.endpoint != 0 && sample_ledger(row, seen)) out.ledgers.push_back(seen);
    return true;
  });
  sample_held(*state, out.held);
}

Status LaneSampler::open(int fd) {
  Status status = Mapping::map(fd, sizeof(LanePairLayout), false, mapping_);
  if (!status.ok()) return status;
  const auto* lane = mapping_.as<LanePairLayout>();
  if (lane->head.magic != kLaneMagic || lane->head.version != 1) return Status::fail(Code::internal, "not a lane pair");
  return status;
}

SampledLane LaneSampler::sample(int direction) const {
  const LaneDirection& cursors = mapping_.as<LanePairLayout>()->direction[direction & 1];
  // The tail first: a head read later is never below it.
  const u64 tail = cursors.records.tail.value.load(std::memory_order_acquire);
  const u64 head = cursors.records.head.value.load(std::memory_order_acquire);
  const u64 returns_tail = cursors.returns.tail.value.load(std::memory_order_acquire);
  const u64 returns_head = cursors.returns.head.value.load(std::memory_order_acquire);
  return {std::min<u64>(head - tail, kLaneBytes), head, std::min<u64>(returns_head - returns_tail, kReturnEntries), returns_head};
}

Status sample_segment(int fd, SampledSegment& out) {
  SegmentLayout head;
  constexpr std::size_t fixed = offsetof(SegmentLayout, slots);
  if (::pread(fd, &head, fixed, 0) != static_cast<ssize_t>(fixed) || head.magic != kSegmentMagic) {
    return Status::fail(Code::internal, "not an arena segment");
  }
  SlotMeta slots[kSlotsPerSegmentMax];
  const u32 count = std::min<u32>(head.slot_count, kSlotsPerSegmentMax);
  const auto bytes = static_cast<ssize_t>(count * sizeof(SlotMeta));
  if (::pread(fd, slots, static_cast<std::size_t>(bytes), fixed) != bytes) return Status::fail(Code::internal, "short arena segment");
  out = {head.slot_bytes, count, 0};
  for (u32 i = 0; i < count; ++i) out.taken += slots[i].generation.load(kRelaxed) & 1;
  return Status::success();
}

}  // namespace fabric
