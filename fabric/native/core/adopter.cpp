#include "core/adopter.hpp"

#include <algorithm>
#include <cstring>

namespace fabric {

Status Adopter::open(int state_fd) {
  Status status = Mapping::map(state_fd, sizeof(StateLayout), true, mapping_);
  if (!status.ok()) return status;
  state_ = mapping_.as<StateLayout>();
  if (state_->head.magic != kStateMagic || state_->head.version != 1) {
    return Status::fail(Code::protocol, "not a state segment");
  }
  for (SenderLedger& row : state_->ledger) {
    if (row.endpoint == 0) continue;
    ledgers_.emplace_back().attach(&row);
  }
  return status;
}

Status Adopter::add_lane(int pair_fd, int side, u32 number) {
  auto lane = std::make_unique<LaneEnd>();
  Status status = lane->attach(pair_fd, side);
  if (!status.ok()) return status;
  lanes_.push_back(std::move(lane));
  sides_.push_back(side);
  numbers_.push_back(number);
  return status;
}

// A record is in a lane if it lies below the head at the place the entry names. Consumed records
// count: nobody has overwritten them, for the only producer is dead.
bool Adopter::in_a_lane(const OutEntry& entry) const {
  for (std::size_t i = 0; i < lanes_.size(); ++i) {
    const LanePairLayout* layout = lanes_[i]->layout();
    const u64 head = layout->direction[sides_[i]].records.head.value.load(std::memory_order_acquire);
    const u32 below = static_cast<u32>(head) - entry.position;
    const u32 offset = entry.position & (kLaneBytes - 1);
    if (below == 0 || below > kLaneBytes || below > head || kLaneBytes - offset < kRecordHeaderBytes) continue;
    RecordHeader header;
    std::memcpy(&header, layout->records[sides_[i]] + offset, sizeof header);
    if (header.flow == entry.flow && header.flow_seq == entry.flow_seq && check_header(header) == nullptr) return true;
  }
  return false;
}

void Adopter::settle_pending(Ledger& ledger) {
  u64 accepted = ledger.last();
  for (u64 sequence = accepted + 1; !ledger.full(sequence); ++sequence) {
    OutEntry& entry = ledger.entry(sequence);
    const OutState state = out_state(entry.word.load(std::memory_order_acquire));
    if (entry.sequence.load(std::memory_order_relaxed) != sequence || state == OutState::empty) break;
    if (state == OutState::moving && ledger.was_moved(sequence)) {
      entry.word.store(out_word(entry.flow == 0 ? OutState::waiting : OutState::accepted), std::memory_order_release);
    } else if (state == OutState::moving || (state == OutState::pending && !in_a_lane(entry))) {
      entry.word.store(out_word(OutState::empty), std::memory_order_release);
      break;                          // records become visible in order: what follows is void, too
    }
    if (state == OutState::pending) entry.word.store(out_word(OutState::accepted), std::memory_order_release);
    ledger.row()->accepted.store(accepted = sequence, std::memory_order_release);
  }
  for (u64 sequence = accepted + 1; !ledger.full(sequence); ++sequence) {
    OutEntry& entry = ledger.entry(sequence);
    if (entry.sequence.load(std::memory_order_relaxed) == sequence) {
      entry.word.store(out_word(OutState::empty), std::memory_order_release);
    }
  }
  // A redelivery that was cut off: its record decides. The copy it would be sent from is lost.
  for (u64 sequence = ledger.tail() + 1; sequence <= accepted; ++sequence) {
    OutEntry& entry = ledger.entry(sequence);
    if (out_state(entry.word.load(std::memory_order_acquire)) != OutState::waiting) continue;
    if (entry.flow != 0 && in_a_lane(entry)) {
      entry.word.store(out_word(OutState::accepted), std::memory_order_release);
    } else {
      ledger.end(sequence, End::failed, Reason::sender_lost);
    }
  }
}

void Adopter::index(Ledger& ledger) {
  for (u64 sequence = ledger.tail() + 1; sequence <= ledger.last(); ++sequence) {
    const OutEntry& entry = ledger.entry(sequence);
    if (ledger.live(sequence)) places_[entry.flow][entry.flow_seq] = {&ledger, sequence};
  }
}

void Adopter::end(u64 flow, u64 first, u64 last, End end, Reason reason) {
  auto it = places_.find(flow);
  if (it == places_.end()) return;
  std::erase_if(it->second, [&](const auto& item) {
    if (item.first < first || item.first > last) return false;
    item.second.ledger->end(item.second.sequence, end, reason);
    return true;
  });
}

u64 Adopter::step() {
  if (!settled_) {
    settled_ = true;
    for (Ledger& ledger : ledgers_) {
      settle_pending(ledger);
      index(ledger);
    }
  }
  for (std::size_t i = 0; i < lanes_.size(); ++i) {
    LaneEnd* lane = lanes_[i].get();
    ReturnEntry entry;
    while (lane->returns_in.next(entry) == Peek::item) {
      const auto known = lane_of_.find(entry.flow);
      const bool is_end = entry.kind == static_cast<u8>(ReturnKind::end) && entry.end >= 1 && entry.end <= 3 &&
                          entry.reason < static_cast<u8>(Reason::count);
      const bool may_tell = known == lane_of_.end() || known->second == numbers_[i];
      if (is_end && may_tell) end(entry.flow, entry.a, entry.b, static_cast<End>(entry.end), static_cast<Reason>(entry.reason));
    }
    // Ends first, then the cursor: a killed adopter reads them again, which changes nothing.
    lane->returns_in.release();
  }
  u64 left = 0;
  for (Ledger& ledger : ledgers_) {
    ledger.fold();
    left += ledger.outstanding();
  }
  return left;
}

void Adopter::lose_flow(u64 flow, u64 handed_upto, Reason reason) {
  step();
  auto it = places_.find(flow);
  if (it == places_.end()) return;
  for (auto& [flow_seq, place] : it->second) {
    const bool again = place.ledger->row()->delivery == static_cast<u8>(Delivery::at_least_once);
    if (flow_seq > handed_upto) place.ledger->end(place.sequence, End::failed, reason);
    else if (again) place.ledger->end(place.sequence, End::failed, Reason::outcome_unknown);
    else place.ledger->end(place.sequence, End::delivered, Reason::none);
  }
  places_.erase(it);
  for (Ledger& ledger : ledgers_) ledger.fold();
}

void Adopter::finish(Reason reason) {
  step();
  for (Ledger& ledger : ledgers_) {
    for (u64 sequence = ledger.tail() + 1; sequence <= ledger.last(); ++sequence) {
      ledger.end(sequence, End::failed, reason);
    }
    ledger.fold();
  }
  places_.clear();
}

}  // namespace fabric
