// memcpy: one copy into shared slots that are reused as the fabric's arena reuses them (the one freed last is taken
// first), a descriptor over a ring. Options: "nt": true copies past the cache; "spin_us" as for the rings, 40 unless
// given, which is what the fabric's default wait spins.
#pragma once

#include <deque>

#include "meeting.hpp"
#include "ring.hpp"

namespace floors {

void copy_past_cache(u8* to, const u8* from, std::size_t bytes);

class CopyEnd {
 public:
  CopyEnd(Role role, const std::string& folder, const Order& options)
      : meeting_(role, folder), rings_(meeting_.share(sizeof(DuplexMemory))), past_cache_(options.flag("nt")),
        duplex_(reinterpret_cast<DuplexMemory*>(rings_.data()), role == Role::far, options.count("spin_us", 40) * 1000) {}

  void prepare(const Order& order) {
    check_length(order);
    if (!order.has_arrays()) return;
    const u64 size = order.count("size"), slots = order.count("window", 1);
    if (size != slot_bytes_ || slots != slots_) {
      memory_ = Memory();
      stride_ = (size + kSlotAlign - 1) / kSlotAlign * kSlotAlign;
      memory_ = meeting_.share(slots * stride_);
      slot_bytes_ = size;
      slots_ = slots;
    }
    free_.clear();
    taken_.clear();
    for (u64 slot = slots; slot-- > 0;) free_.push_back(slot);
  }
  Meeting& meeting() { return meeting_; }
  u64 cpu_ns() const { return cpu_ns_of(0); }

  void send(std::span<const u8> message) { duplex_.send(message); }
  std::span<const u8> receive() {
    const std::span<const u8> message = duplex_.receive();
    if (!taken_.empty()) {  // it confirms the oldest array
      free_.push_back(taken_.front());
      taken_.pop_front();
    }
    return message;
  }

  void send_array(std::span<const u8> data) {
    const std::span<u8> slot = loan(data.size());
    if (past_cache_) copy_past_cache(slot.data(), data.data(), data.size());
    else std::memcpy(slot.data(), data.data(), data.size());
    send_loan();
  }
  std::span<u8> loan(u64 size) { return memory_.part(free_.back() * stride_, size); }
  void send_loan() {
    const u64 slot = free_.back();
    free_.pop_back();
    taken_.push_back(slot);
    duplex_.send({reinterpret_cast<const u8*>(&slot), sizeof slot});
  }
  std::span<const u8> receive_array() {
    u64 slot;
    std::memcpy(&slot, duplex_.receive().data(), sizeof slot);
    return memory_.part(slot * stride_, slot_bytes_);
  }
  void release_array() {}  // the confirmation says it

 private:
  static constexpr u64 kSlotAlign = 4096;

  Meeting meeting_;
  Memory rings_, memory_;
  bool past_cache_;
  u64 slot_bytes_ = 0, stride_ = 0, slots_ = 0;
  std::vector<u64> free_;
  std::deque<u64> taken_;
  Duplex<true> duplex_;
};

}  // namespace floors
