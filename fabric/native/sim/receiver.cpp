#include "sim/receiver.hpp"

namespace fabric::sim {

bool Receiver::announce(u32 transfer, u64 bytes) {
  if (transfers_.size() <= transfer) transfers_.resize(transfer + 1);
  transfers_[transfer].bytes = bytes;
  for (u32 i = 0; i < slots_.size() && waiting_.empty(); ++i) {
    if (slots_[i].transfer != kNone) continue;
    grant(transfer, i);
    return true;
  }
  waiting_.push_back(transfer);
  return false;
}

void Receiver::grant(u32 transfer, u32 slot) {
  slots_[slot].transfer = transfer;
  transfers_[transfer].slot = slot;
  transfers_[transfer].generation = slots_[slot].generation;
}

u32 Receiver::free_slot(u32 slot) {
  ++slots_[slot].generation;
  slots_[slot].transfer = kNone;
  if (waiting_.empty()) return kNone;
  const u32 next = waiting_.front();
  waiting_.pop_front();
  grant(next, slot);
  return next;
}

Receiver::Verdict Receiver::piece(u32 rail, u64 post, const ChunkOnWire& chunk, u32 bytes, bool is_first, bool is_last) {
  OnRail& on = rails_[rail];
  if (is_first) {
    const Transfer& transfer = transfers_[chunk.transfer];
    const bool wanted = !transfer.complete && !is_verified(chunk.chunk);
    on = {post, transfer.generation, wanted ? transfer.slot : kNone, 0, wanted};
  } else if (on.post != post) {
    violation_ = "a stream delivered a piece of another chunk";
  }
  on.bytes += bytes;
  const bool stands = on.slot != kNone && slots_[on.slot].generation == on.generation && !is_verified(chunk.chunk);
  if (on.slot != kNone && (stands || !rules_.checks_each_piece)) {
    write(on.slot, chunk, bytes);
  } else {
    scratch_bytes_ += bytes;
    on.whole = false;
  }
  return is_last ? finish(on, chunk) : Verdict::more;
}

/// The audit: it knows the slot's present owner and what was verified, and trusts no check above.
void Receiver::write(u32 slot, const ChunkOnWire& chunk, u32 bytes) {
  placed_bytes_ += bytes;
  if (slots_[slot].transfer != chunk.transfer) violation_ = "a late piece was written into another message's memory";
  else if (transfers_[chunk.transfer].complete) violation_ = "a late piece was written into a message that was handed over";
  else if (is_verified(chunk.chunk)) violation_ = "verified bytes were written again";
}

Receiver::Verdict Receiver::finish(const OnRail& on, const ChunkOnWire& chunk) {
  Transfer& transfer = transfers_[chunk.transfer];
  if (is_verified(chunk.chunk)) return Verdict::good;  // a repeat: acknowledged, nothing more
  if (!on.whole || chunk.is_corrupt) {
    ++corrupt_chunks_;
    return Verdict::bad;
  }
  if (verified_.size() <= chunk.chunk) verified_.resize(std::size_t{chunk.chunk} + 1);
  verified_[chunk.chunk] = 1;
  transfer.verified += on.bytes;
  verified_bytes_ += on.bytes;
  if (transfer.verified > transfer.bytes) violation_ = "more bytes were delivered than sent";
  transfer.complete = transfer.verified == transfer.bytes;
  return Verdict::good;
}

}  // namespace fabric::sim
