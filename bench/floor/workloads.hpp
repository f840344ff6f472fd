// The two halves of each workload, over whatever an end can do: the counterparts of bench/loops.py.
//
// An end has prepare(order), meeting() and cpu_ns(), and of these what it can:
//   send(message), receive() → message          one small message; the span holds until the next call
//   send_many(message, count), receive_many(most, last) → count
//   send_array(data), receive_array() → data, release_array()
//   loan(size) → memory, send_loan()
// or fan_out(role, order). Both halves meet between what is prepared and what is measured.
#pragma once

#include <stdexcept>

#include "checksum.hpp"
#include "meeting.hpp"
#include "sources.hpp"

namespace floors {

template <class End>
concept HasMessages = requires(End end, std::span<const u8> data) { end.send(data); end.receive(); };
template <class End>
concept HasBatches = requires(End end, std::span<const u8> data) { end.send_many(data, 1); end.receive_many(1, data); };
template <class End>
concept HasArrays = requires(End end, std::span<const u8> data) { end.send_array(data); end.receive_array(); };
template <class End>
concept HasLoans = requires(End end) { end.loan(1); end.send_loan(); };
template <class End>
concept HasFanOut = requires(End end, const Order& order, const Sources& sources, Answer& answer) {
  end.fan_out(Role::near, order, sources, answer);
};

template <class End>
std::vector<std::string> abilities() {
  std::vector<std::string> can;
  if constexpr (HasMessages<End>) can.insert(can.end(), {"send"});
  if constexpr (HasBatches<End>) can.push_back("send_many");
  if constexpr (HasArrays<End>) can.push_back("send_array");
  if constexpr (HasLoans<End>) can.push_back("loan");
  if constexpr (HasFanOut<End>) can.push_back("fan_out");
  return can;
}

/// One order over one end.
template <class End>
class Work {
 public:
  Work(End& end, Sources& sources, Role role, const Order& order)
      : end_(end), sources_(sources), order_(order), run_(order.text("run")), role_(role), count_(order.count("count", 1)) {}

  Answer run() {
    end_.prepare(order_);
    if (role_ == Role::near) prepare_sources();
    end_.meeting().together();
    const u64 before = end_.cpu_ns();
    if (!dispatch()) throw std::runtime_error("this floor has no workload \"" + run_ + "\"");
    answer_.add("cpu_ns", end_.cpu_ns() - before);
    return std::move(answer_);
  }

 private:
  bool is_near() const { return role_ == Role::near; }
  std::span<const u8> payload() const { return sources_[0]; }
  std::vector<u8> confirmation() const { return std::vector<u8>(order_.message_bytes()); }

  void prepare_sources() {
    const bool is_many = run_ == "bulk" || run_ == "fan_out";
    if (is_many || run_ == "round_trips" || run_ == "one_way") {
      sources_.prepare(order_.count("size"), is_many ? std::min(kSources, count_) : 1);
    }
  }

  bool dispatch() {
    if constexpr (HasFanOut<End>) {
      if (run_ == "fan_out") return end_.fan_out(role_, order_, sources_, answer_), true;
    }
    if constexpr (HasMessages<End>) {
      if (run_ == "round_trips") return is_near() ? round_trips_near() : round_trips_far(), true;
      if (run_ == "idle") return is_near() ? idle_near() : void(end_.receive()), true;
      if (run_ == "verify" && !order_.flag("as_array")) return is_near() ? verify_near() : verify_far(), true;
      if (run_ == "one_way" && order_.count("batch", 1) == 1) return is_near() ? one_way_near() : one_way_far(), true;
    }
    if constexpr (HasBatches<End>) {
      if (run_ == "one_way" && order_.count("batch", 1) > 1) return is_near() ? batches_near() : batches_far(), true;
    }
    if constexpr (HasArrays<End>) {
      if (run_ == "bulk") return is_near() ? bulk_near() : arrays_far(), true;
      if (run_ == "verify" && order_.flag("as_array")) return is_near() ? verify_near() : verify_far(), true;
    }
    if constexpr (HasLoans<End>) {
      if (run_ == "loaned") return is_near() ? loaned_near() : arrays_far(), true;
      if (run_ == "hand_over") return is_near() ? hand_over_near() : hand_over_far(), true;
    }
    return false;
  }

  // ---------------------------------------------------------------- small messages
  void round_trips_near() {
    std::vector<u64> times(count_);
    for (u64& time : times) {
      const u64 start = now_ns();
      end_.send(payload());
      end_.receive();
      time = now_ns() - start;
    }
    answer_.add("ns", times);
  }
  void round_trips_far() {
    for (u64 i = 0; i < count_; ++i) end_.send(end_.receive());
  }

  void one_way_near() {
    const u64 start = now_ns();
    for (u64 i = 0; i < count_; ++i) end_.send(payload());
    end_.receive();
    answer_.add("ns", now_ns() - start);
  }
  void one_way_far() {
    u64 bytes = 0;
    for (u64 i = 0; i < count_; ++i) bytes += end_.receive().size();
    confirm_all(bytes, count_);
  }

  void batches_near() {
    const u64 batch = order_.count("batch"), start = now_ns();
    for (u64 i = 0; i < count_ / batch; ++i) end_.send_many(payload(), batch);
    end_.receive();
    answer_.add("ns", now_ns() - start);
  }
  void batches_far() {
    const u64 batch = order_.count("batch"), all = count_ / batch * batch;
    std::span<const u8> last;
    for (u64 left = all; left != 0;) left -= end_.receive_many(std::min(left, batch), last);
    confirm_all(last.size(), 1);
  }

  void confirm_all(u64 bytes, u64 messages) {
    if (bytes != messages * order_.message_bytes()) throw std::runtime_error("messages came with another length");
    end_.send(confirmation());
  }

  void idle_near() {
    ::usleep(static_cast<useconds_t>(order_.number("seconds", 1) * 1e6));
    end_.send(confirmation());
  }

  // ---------------------------------------------------------------- arrays
  template <class SendOne>
  void windowed(SendOne send_one) {
    const u64 window = std::min(order_.count("window", 1), count_), start = now_ns();
    for (u64 number = 0; number < count_; ++number) {
      if (number >= window) end_.receive();
      send_one(number);
    }
    for (u64 i = 0; i < window; ++i) end_.receive();
    answer_.add("ns", now_ns() - start);
  }
  void bulk_near() {
    windowed([&](u64 number) { end_.send_array(sources_[number]); });
  }
  void loaned_near() {
    const u64 size = order_.count("size");
    windowed([&](u64 number) {
      std::memset(end_.loan(size).data(), static_cast<int>(number % 251), 64);
      end_.send_loan();
    });
  }
  void arrays_far() {
    const std::vector<u8> confirmation = this->confirmation();
    const bool reads = order_.flag("read");
    u64 sum = 0, bytes = 0;
    for (u64 i = 0; i < count_; ++i) {
      const std::span<const u8> data = end_.receive_array();
      if (reads) sum += sum_of_words(data);
      bytes += data.size();
      end_.release_array();
      end_.send(confirmation);
    }
    if (bytes != count_ * order_.count("size")) throw std::runtime_error("arrays came with another length");
    answer_.add("sum", sum);
  }

  void hand_over_near() {
    std::vector<u64> moments;
    const u64 size = order_.count("size");
    for (u64 number = 0; number < count_; ++number) {
      std::memset(end_.loan(size).data(), static_cast<int>(number % 251), size);
      moments.push_back(now_ns());
      end_.send_loan();
      end_.receive();
    }
    answer_.add("at", moments);
  }
  void hand_over_far() {
    const std::vector<u8> confirmation = this->confirmation();
    std::vector<u64> moments;
    for (u64 i = 0; i < count_; ++i) {
      end_.receive_array();
      moments.push_back(now_ns());
      end_.release_array();
      end_.send(confirmation);
    }
    answer_.add("at", moments);
  }

  // ---------------------------------------------------------------- contents
  void verify_near() {
    std::vector<u64> found;
    std::vector<u8> data(order_.count("size"));
    for (u64 number = 0; number < count_; ++number) {
      fill_random(data, order_.count("seed", 1) * 1000 + number);
      found.push_back(crc32c(data));
      send_verified(data);
      end_.receive();
    }
    answer_.add("crc", found);
  }
  void send_verified(std::span<const u8> data) {
    if constexpr (HasLoans<End>) {
      if (order_.flag("as_array") && order_.flag("loaned")) {
        std::memcpy(end_.loan(data.size()).data(), data.data(), data.size());
        return end_.send_loan();
      }
    }
    if constexpr (HasArrays<End>) {
      if (order_.flag("as_array")) return end_.send_array(data);
    }
    end_.send(data);
  }
  void verify_far() {
    const std::vector<u8> confirmation = this->confirmation();
    std::vector<u64> found;
    for (u64 i = 0; i < count_; ++i) {
      if constexpr (HasArrays<End>) {
        if (order_.flag("as_array")) {
          found.push_back(crc32c(end_.receive_array()));
          end_.release_array();
        }
      }
      if (!order_.flag("as_array")) found.push_back(crc32c(end_.receive()));
      end_.send(confirmation);
    }
    answer_.add("crc", found);
  }

  End& end_;
  Sources& sources_;
  const Order& order_;
  std::string run_;
  Role role_;
  u64 count_;
  Answer answer_;
};

}  // namespace floors
