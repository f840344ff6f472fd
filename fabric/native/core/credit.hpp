// Credit of one flow: cumulative messages and bytes; decisions only, no IO.
//
// The receiver grants what has ended plus the window; the sender may not send beyond the grant.
// Totals only grow, so a repeated or late grant changes nothing.
#pragma once

#include "core/layout.hpp"

namespace fabric {

struct Grant { u64 messages; u64 bytes; };

class CreditOut {
 public:
  CreditOut() = default;
  CreditOut(u64 messages, u64 bytes) : granted_{messages, bytes}, window_{messages, bytes} {}
  /// May a message of `bytes` go? With nothing outstanding one larger than the window may, too.
  bool allows(u64 bytes, u64 outstanding) const {
    return sent_.messages < granted_.messages &&
           (outstanding == 0 || sent_.bytes + bytes <= granted_.bytes);
  }
  void send(u64 bytes) { ++sent_.messages; sent_.bytes += bytes; }
  /// False when it cannot be true: the receiver grants what it consumed, at most all that was sent, plus the window.
  bool grant(u64 messages, u64 bytes, u32 epoch) {
    if (epoch < epoch_) return true;
    if (messages > sent_.messages + window_.messages || bytes > sent_.bytes + window_.bytes) return false;
    epoch_ = epoch;
    if (messages > granted_.messages) granted_.messages = messages;
    if (bytes > granted_.bytes) granted_.bytes = bytes;
    return true;
  }
  u64 messages_left() const { return granted_.messages - sent_.messages; }
  u64 bytes_left() const { return granted_.bytes > sent_.bytes ? granted_.bytes - sent_.bytes : 0; }
  Grant sent() const { return sent_; }

 private:
  Grant sent_{0, 0}, granted_{0, 0}, window_{0, 0};
  u32 epoch_ = 0;
};

class CreditIn {
 public:
  CreditIn() = default;
  CreditIn(u64 messages, u64 bytes) : window_{messages, bytes}, granted_{messages, bytes} {}
  /// A message came in; false when the sender had no credit for it.
  bool accept() { return ++received_ <= granted_.messages; }
  void consume(u64 bytes) { ++consumed_.messages; consumed_.bytes += bytes; }
  /// One of `parts` of the window was consumed since the last grant.
  bool due(u64 parts) const {
    return parts * unsent_messages() >= window_.messages || parts * unsent_bytes() >= window_.bytes;
  }
  /// More than three quarters of the window are queued, or another message of `next` bytes would find no room.
  bool crowded(u64 messages, u64 bytes, u64 next) const {
    return 4 * messages > 3 * window_.messages || bytes > window_.bytes / 4 * 3 || bytes + next > window_.bytes;
  }
  bool any() const { return unsent_messages() != 0; }
  Grant next() const { return {consumed_.messages + window_.messages, consumed_.bytes + window_.bytes}; }
  void granted() { granted_ = next(); }

 private:
  u64 unsent_messages() const { return consumed_.messages + window_.messages - granted_.messages; }
  u64 unsent_bytes() const { return consumed_.bytes + window_.bytes - granted_.bytes; }
  Grant window_{0, 0}, granted_{0, 0}, consumed_{0, 0};
  u64 received_ = 0;
};

}  // namespace fabric
