// The receiving endpoint: a queue of drained messages, handed over one by one.
//
// Thread-safe through its port. at_most_once ends when handed over, at_least_once when acknowledged.
#pragma once

#include "core/port.hpp"

namespace fabric {

/// Messages that were copied whole: one after another. Or one that could not be, as it came.
struct PlainCopies {
  std::vector<u8> bytes;
  std::vector<u32> sizes;
  MessageCore* other = nullptr;       ///< the caller's; `sizes` is empty then
  void clear() {
    bytes.clear();
    sizes.clear();
    other = nullptr;
  }
};

class ReceiverCore {
 public:
  ReceiverCore(Port& port, u64 endpoint, u32 channel, u32 type, Pattern pattern, Delivery delivery, Overflow overflow)
      : port_(port), endpoint_(endpoint), channel_(channel), type_(type), pattern_(pattern),
        delivery_(delivery), overflow_(overflow) {}
  ~ReceiverCore() {
    while (MessageCore* message = pop()) MessagePool::destroy(message);
  }

  /// Up to `count` messages; waits for the first until `deadline_ns` if `may_wait`. None at the
  /// deadline is success; would_block or frozen only without `may_wait`. The caller owns the messages.
  Status receive(u64 count, u64 deadline_ns, bool may_wait, std::vector<MessageCore*>& out);
  /// The one-message case without a vector; `out` is nullptr at the deadline.
  Status receive_one(u64 deadline_ns, bool may_wait, MessageCore*& out);
  /// As receive(), for messages whose meta lies in the record and is all that they have: copied, ended as delivered and
  /// gone. Stops before any other, and hands over such a one only as the first.
  Status receive_plain(u64 count, u64 deadline_ns, bool may_wait, PlainCopies& out);
  Status pending(u64& out);
  /// What is queued ends as failed(closed), or, with `hand_back` and at_least_once, goes back to its senders unended.
  /// What was handed can still be acknowledged, refused and released.
  Status close(bool hand_back);
  Status ack(MessageCore& message, bool may_park);
  Status nack(MessageCore& message, Reason reason);
  Status release(MessageCore& message, bool may_park);
  /// Takes the view's reference; never fails, runs on any thread, also after close.
  void collect(MessageCore* message);
  /// Bytes of the whole tensor area's piece `index`; NeedSegment, stale, closed.
  Status tensor(MessageCore& message, u32 index, const u8*& data, u64& bytes);
  Status meta(MessageCore& message, const u8*& data, u64& bytes);
  bool holds(const MessageCore& message) const;  ///< no segment was given to anybody else meanwhile

  Port& port() const { return port_; }
  u64 endpoint() const { return endpoint_; }
  Delivery delivery() const { return delivery_; }

  // ---- inside an Operation
  void push(MessageCore* message) {
    (last_ == nullptr ? first_ : last_->next) = message;
    message->prev = last_;
    last_ = message;
    ++queued_;
    if (overflow_ == Overflow::drop_oldest) [[unlikely]] keep_newest(message);
  }
  void drop_queue(const FlowInState* only, Refusal how);
  void fail(const char* why) { fault_ = why; }
  void add_flow(FlowInState* flow) { flows_.push_back(flow); }
  void remove_flow(FlowInState* flow);
  u64 queued() const { return queued_; }
  bool drops_oldest() const { return overflow_ == Overflow::drop_oldest; }

 private:
  Status next(Operation& operation, u64 deadline_ns, bool may_wait, MessageCore*& out);
  Status take_fault();
  MessageCore* pop();
  void unlink(MessageCore* message);
  void keep_newest(MessageCore* message);
  MessageCore* hand_next(bool only_plain = false);
  bool take_plain(MessageCore* message, PlainCopies& out);
  void grant(FlowInState& flow, bool even_small);
  void grant_all();
  Status piece(MessageCore& message, u32 segment, const u8*& data);
  friend class Port;

  Port& port_;                        // the port owns its receivers
  const u64 endpoint_;
  const u32 channel_, type_;
  const Pattern pattern_;
  const Delivery delivery_;
  const Overflow overflow_;
  bool closed_ = false;
  const char* fault_ = nullptr;
  MessageCore *first_ = nullptr, *last_ = nullptr;
  u64 queued_ = 0;
  std::vector<FlowInState*> flows_;
};

}  // namespace fabric
