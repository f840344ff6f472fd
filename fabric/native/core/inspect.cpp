#include "core/inspect.hpp"

#include <algorithm>

#include "core/ring.hpp"

namespace fabric {
namespace {

std::string text(u64 value) { return std::to_string(value); }
u8* bytes_of(StateLayout* state) { return reinterpret_cast<u8*>(state); }
Status impossible(std::string what) { return Status::fail(Code::internal, "corrupt: " + std::move(what)); }

Status map_state(int fd, Mapping& out) {
  Status status = Mapping::map(fd, sizeof(StateLayout), false, out);
  if (!status.ok()) return status;
  const StateHead& head = out.as<StateLayout>()->head;
  return head.magic == kStateMagic && head.version == 1 ? status : impossible("not a state segment");
}

Status read_flows(StateLayout* state, Written& written, InspectedState& out) {
  Status status = Status::success();
  visit_written<FlowIn>(written, bytes_of(state), offsetof(StateLayout, flows), kFlowsInPerPortMax, [&](const FlowIn& row) {
    const u64 flow = row.flow.load(std::memory_order_acquire);
    if (flow == 0) return true;
    InspectedFlow seen{flow, row.endpoint, row.drained.load(), row.handed.load(), row.ended_upto.load(),
                       {row.reported[0].load(), row.reported[1].load(), row.reported[2].load(), row.reported[3].load()},
                       row.returned.load(), row.payload_bytes.load(), row.channel, row.lane};
    if (seen.handed > seen.drained || seen.ended_upto > seen.drained) {
      status = impossible("flow " + text(flow) + " handed " + text(seen.handed) + " and ended up to " +
                          text(seen.ended_upto) + " of " + text(seen.drained) + " drained");
    }
    out.flows.push_back(seen);
    return status.ok();
  });
  return status;
}

Status read_held(StateLayout* state, InspectedState& out) {
  const u32 high = state->head.held_high.load(std::memory_order_acquire);
  if (high > kHeldPerPort) return impossible("held table claims " + text(high) + " entries");
  for (u32 i = 0; i < high; ++i) {
    const HeldEntry& entry = state->held[i];
    const u32 word = entry.word.load(std::memory_order_acquire);
    const auto held = static_cast<HeldState>(word & 0xff);
    if (held == HeldState::free) continue;
    if (held > HeldState::releasing) return impossible("held entry " + text(i) + " is in state " + text(word & 0xff));
    out.held.push_back({entry.flow, entry.flow_seq, entry.since_ns, entry.payload_bytes, entry.channel, word >> 8,
                        entry.segment, entry.slot, entry.generation, held});
  }
  return Status::success();
}

Status read_outstanding(StateLayout* state, Written& written, const Ledger& ledger, InspectedLedger& out) {
  static const OutEntry nobody_wrote{};
  const std::string name = "ledger of endpoint " + text(out.endpoint);
  if (out.accepted < out.tail || out.accepted - out.tail > kOutstandingPerEndpoint) {
    return impossible(name + ": accepted " + text(out.accepted) + ", tail " + text(out.tail));
  }
  // One more than accepted: a dead sender may have left pending entries behind.
  const u64 last = out.tail + kOutstandingPerEndpoint;
  for (u64 sequence = out.tail + 1; sequence <= last; ++sequence) {
    const OutEntry& place = ledger.entry(sequence);
    const auto at = static_cast<u64>(reinterpret_cast<const u8*>(&place) - bytes_of(state));
    const bool is_written = written.at(at) && written.at(at + sizeof place - 1);
    if (!is_written && sequence > out.accepted) {  // nor the others of this page: 2,048 looks a ledger are many
      const u64 ring_end = at + (kOutstandingPerEndpoint - (sequence & (kOutstandingPerEndpoint - 1))) * sizeof place;
      const u64 skipped = (written.next(at + sizeof place - 1, ring_end) - at) / sizeof place;
      sequence += std::max<u64>(skipped, 1) - 1;
      continue;
    }
    const OutEntry& entry = is_written ? place : nobody_wrote;
    const u32 word = entry.word.load(std::memory_order_acquire);
    const u64 found = entry.sequence.load(std::memory_order_acquire);
    const OutState state = out_state(word);
    if (state > OutState::moving || out_end(word) > End::failed || out_reason(word) >= Reason::count) {
      return impossible(name + ": entry " + text(sequence) + " has word " + text(word));
    }
    if (sequence > out.accepted) {
      if (found == sequence && state != OutState::empty && state != OutState::moving) {
        out.outstanding.push_back({sequence, entry.flow, entry.flow_seq, entry.payload_bytes, state, out_end(word), out_reason(word)});
      }
      continue;
    }
    if (found != sequence || state == OutState::empty) {
      return impossible(name + ": accepted " + text(sequence) + " is in no entry");
    }
    out.outstanding.push_back({sequence, entry.flow, entry.flow_seq, entry.payload_bytes, state, out_end(word), out_reason(word)});
  }
  return Status::success();
}

// From entries to messages: one that moved behind younger ones is counted once, and what ended aside of the table, too.
void count_messages(const Ledger& ledger, InspectedLedger& out) {
  u64& moved = out.counts[static_cast<int>(End::none)][static_cast<int>(Reason::none)];
  const u64 aside = ledger.asides();
  for (int kind = 0; kind < static_cast<int>(Aside::count); ++kind) {
    const auto [end, reason] = aside_end(static_cast<Aside>(kind));
    out.counts[static_cast<int>(end)][static_cast<int>(reason)] += ledger.row()->aside[kind].load(std::memory_order_acquire);
  }
  const u64 entries = out.accepted;
  out.accepted += aside - moved;
  out.tail += aside - moved;
  moved = 0;
  std::erase_if(out.outstanding, [&](const InspectedOut& row) {
    const bool took_over = row.state == OutState::ended && row.end == End::none;
    if (took_over && row.sequence <= entries) --out.accepted;
    return took_over;
  });
  u64 sequence = out.tail;
  for (InspectedOut& row : out.outstanding) row.sequence = ++sequence;
}

Status read_ledger(StateLayout* state, Written& written, SenderLedger& row, InspectedLedger& seen) {
  const u32 active = row.active.load(std::memory_order_acquire);
  if (active > 1) return impossible("ledger of endpoint " + text(row.endpoint) + ": fold " + text(active));
  Ledger ledger;
  ledger.attach(&row);
  seen.endpoint = row.endpoint;
  seen.channel = row.channel;
  seen.pattern = row.pattern;
  seen.delivery = row.delivery;
  seen.klass = row.klass;
  seen.accepted = ledger.accepted();
  seen.tail = row.fold[active].tail;
  seen.delivered_bytes = row.fold[active].delivered_bytes;
  for (int end = 0; end < 4; ++end) {
    std::copy_n(row.fold[active].count[end], static_cast<int>(Reason::count), seen.counts[end]);
  }
  Status status = read_outstanding(state, written, ledger, seen);
  if (status.ok()) count_messages(ledger, seen);
  return status;
}

template <class Wanted>
Status read_ledgers(StateLayout* state, Written& written, std::vector<InspectedLedger>& out, Wanted&& is_wanted) {
  Status status = Status::success();
  const auto read = [&](SenderLedger& row) {
    if (row.endpoint == 0 || !is_wanted(row.endpoint)) return true;
    InspectedLedger seen{};
    status = read_ledger(state, written, row, seen);
    if (status.ok()) out.push_back(std::move(seen));
    return status.ok();
  };
  visit_written<SenderLedger>(written, bytes_of(state), offsetof(StateLayout, ledger), kEndpointsPerPortMax, read);
  return status;
}

}  // namespace

Status inspect_state(int fd, InspectedState& out) {
  Mapping mapping;
  Status status = map_state(fd, mapping);
  if (!status.ok()) return status;
  auto* state = mapping.as<StateLayout>();
  out.port = state->head.port;
  out.incarnation = state->head.incarnation;
  out.heartbeat_ns = state->head.heartbeat_ns.load();
  out.busy = state->head.busy.load();
  out.tenant = state->head.tenant;
  Written written(fd);
  status = read_flows(state, written, out);
  if (status.ok()) status = read_held(state, out);
  if (status.ok()) status = read_ledgers(state, written, out.ledgers, [](u64) { return true; });
  return status;
}

Status inspect_ledgers(int fd, std::span<const u64> endpoints, std::vector<InspectedLedger>& out) {
  Mapping mapping;
  const Status status = map_state(fd, mapping);
  if (!status.ok()) return status;
  Written written(fd);
  return read_ledgers(mapping.as<StateLayout>(), written, out, [&](u64 endpoint) {
    return std::find(endpoints.begin(), endpoints.end(), endpoint) != endpoints.end();
  });
}

Status inspect_lane(int fd, int direction, InspectedLane& out) {
  if (direction != 0 && direction != 1) return Status::fail(Code::invalid, "a lane has directions 0 and 1");
  Mapping mapping;
  Status status = Mapping::map(fd, sizeof(LanePairLayout), false, mapping);
  if (!status.ok()) return status;
  auto* lane = mapping.as<LanePairLayout>();
  if (lane->head.magic != kLaneMagic || lane->head.version != 1) return impossible("not a lane pair");
  LaneDirection& cursors = lane->direction[direction];
  out.tail = cursors.records.tail.value.load(std::memory_order_acquire);
  out.head = cursors.records.head.value.load(std::memory_order_acquire);
  out.return_tail = cursors.returns.tail.value.load(std::memory_order_acquire);
  out.return_head = cursors.returns.head.value.load(std::memory_order_acquire);
  if (const char* why = check_cursors(out.head, out.tail, kLaneBytes, 8)) return impossible(std::string("lane ") + why);
  if (const char* why = check_cursors(out.return_head, out.return_tail, kReturnEntries, 1)) {
    return impossible(std::string("return ring ") + why);
  }
  RecordReader reader;
  reader.attach(&cursors.records, lane->records[direction]);
  RecordSpan span;
  for (Peek peek = reader.peek(span); peek != Peek::empty; peek = reader.peek(span)) {
    if (peek == Peek::corrupt) return impossible(reader.fault());
    const bool ended = (span.header.flags & kFlagEnded) != 0;
    const u8 kind = ended ? static_cast<u8>(RecordKind::skip) : span.header.kind;
    out.records.push_back({span.header.flow, span.header.flow_seq, span.header.sequence, span.header.channel, kind});
    reader.advance(span);
  }
  ReturnReader returns;
  returns.attach(&cursors.returns, lane->returns[direction]);
  ReturnEntry entry;
  for (Peek peek = returns.next(entry); peek != Peek::empty; peek = returns.next(entry)) {
    if (peek == Peek::corrupt || entry.kind < 1 || entry.kind > 3) return impossible("a return entry cannot be true");
    out.returns.push_back(entry);
  }
  return status;
}

}  // namespace fabric
