// unix_socket, tcp_socket: blocking calls on a connected stream. tcp_bulk: chunks with a head each, as the fabric's.
#pragma once

#include "meeting.hpp"

namespace floors {

class StreamEnd {
 public:
  StreamEnd(Role role, const std::string& folder, bool is_tcp);
  void prepare(const Order& order);
  Meeting& meeting() { return meeting_; }
  u64 cpu_ns() const { return cpu_ns_of(0); }

  void send(std::span<const u8> message) { send_all(fd_.get(), message.data(), message.size()); }
  std::span<const u8> receive() {
    receive_all(fd_.get(), message_.data(), message_.size());
    return message_;
  }
  void send_many(std::span<const u8> message, u64 count);
  u64 receive_many(u64 most, std::span<const u8>& last);
  void send_array(std::span<const u8> data) { send(data); }
  std::span<const u8> receive_array();
  void release_array() {}

 private:
  Meeting meeting_;
  Fd fd_;
  std::vector<u8> message_, batch_;
  Memory memory_;             ///< where arrays land
  u64 array_bytes_ = 0;
};

/// Options: "crc": true checks every chunk on both ends; "congestion" names a congestion control, otherwise it is what the
/// fabric chooses within a machine (fabric/links/congestion.py); "send_buffer" and "receive_buffer" fix the socket's
/// (bytes), which are otherwise the system's, as the fabric leaves them.
class BulkEnd {
 public:
  BulkEnd(Role role, const std::string& folder, const Order& options);
  void prepare(const Order& order);
  Meeting& meeting() { return meeting_; }
  u64 cpu_ns() const { return cpu_ns_of(0); }

  void send(std::span<const u8> message) { send_all(fd_.get(), message.data(), message.size()); }
  std::span<const u8> receive() {
    receive_all(fd_.get(), message_.data(), message_.size());
    return message_;
  }
  void send_array(std::span<const u8> data);
  std::span<u8> loan(u64 size) { return memory_.part(turn_ % loans_ * array_bytes_, size); }
  void send_loan() {
    send_array(loan(array_bytes_));
    ++turn_;
  }
  std::span<const u8> receive_array();
  void release_array() {}

 private:

  Meeting meeting_;
  Fd fd_;
  bool checks_;
  std::vector<u8> message_;
  Memory memory_;             ///< near: as many loans as may be unconfirmed; far: the one array under way
  u64 array_bytes_ = 0, loans_ = 1, turn_ = 0;
};

}  // namespace floors
