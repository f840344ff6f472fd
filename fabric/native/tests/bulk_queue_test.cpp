// Whose chunk goes next: by weight between channels, equally between tenants, in order within a flow, near deadlines first.
#include "engine/bulk_queue.hpp"

#include <cstdio>
#include <cstdlib>
#include <map>

#include "engine/outgoing.hpp"
#include "tests/check.hpp"

namespace fabric {
namespace {

constexpr u64 kMiB = 1 << 20, kChunk = 96 * 1024;     // no multiple of a turn
constexpr u64 kNow = 1'000'000'000;

struct Sending {
  BulkQueue queue;
  std::map<u64, u64> sent;                             // by flow
  std::map<u64, u64> seqs;
  u64 next_id = 1;

  std::shared_ptr<OutTransfer> offer(u64 flow, Share share, u64 bytes, u64 deadline = 0) {
    auto transfer = std::make_shared<OutTransfer>();
    transfer->id = next_id++;
    transfer->flow = flow;
    transfer->flow_seq = ++seqs[flow];
    transfer->share = share;
    transfer->left = transfer->total = bytes;
    transfer->deadline_ns = deadline;
    queue.put(transfer);
    return transfer;
  }
  /// Posts a chunk of whose turn it is. @return its transfer
  std::shared_ptr<OutTransfer> post(u64 chunk = kChunk) {
    const std::shared_ptr<OutTransfer> transfer = queue.next(kNow);
    if (transfer == nullptr) return nullptr;
    const u64 bytes = std::min(chunk, transfer->left);
    transfer->left -= bytes;
    sent[transfer->flow] += bytes;
    queue.pay(*transfer, bytes);
    if (transfer->left == 0) queue.drop(*transfer);
    return transfer;
  }
  void post_bytes(u64 bytes, u64 chunk = kChunk) {
    for (u64 posted = 0; posted < bytes; posted += chunk) post(chunk);
  }
  double part(u64 flow) const {
    u64 sum = 0;
    for (const auto& [id, bytes] : sent) sum += bytes;
    return static_cast<double>(sent.at(flow)) / static_cast<double>(sum);
  }
};

bool is_near(double value, double expected) { return value > expected - 0.02 && value < expected + 0.02; }

void channels_share_by_their_weights() {
  for (const u64 chunk : {32 * 1024ULL, 96 * 1024ULL, 1024 * 1024ULL}) {
    Sending sending;
    sending.offer(1, {0, 10, 1}, 400 * kMiB);
    sending.offer(2, {0, 20, 3}, 400 * kMiB);
    sending.post_bytes(100 * kMiB, chunk);
    CHECK(is_near(sending.part(1), 0.25) && is_near(sending.part(2), 0.75));
  }
}

void flows_of_a_channel_share_its_part() {
  Sending sending;
  sending.offer(1, {0, 10, 1}, 400 * kMiB);
  for (u64 flow = 2; flow < 6; ++flow) sending.offer(flow, {0, 20, 1}, 400 * kMiB);
  sending.post_bytes(100 * kMiB);
  CHECK(is_near(sending.part(1), 0.5));
  for (u64 flow = 2; flow < 6; ++flow) CHECK(is_near(sending.part(flow), 0.125));
}

void tenants_share_equally_whatever_their_channels_weigh() {
  Sending sending;
  sending.offer(1, {1000, 10, 1}, 400 * kMiB);
  sending.offer(2, {1001, 20, 100}, 400 * kMiB);
  sending.offer(3, {1001, 30, 50}, 400 * kMiB);
  sending.post_bytes(200 * kMiB);
  CHECK(is_near(sending.part(1), 0.5) && is_near(sending.part(2), 0.333));
}

void one_that_begins_has_its_share_at_once() {
  Sending sending;
  sending.offer(1, {0, 10, 1}, 400 * kMiB);
  sending.offer(2, {0, 20, 3}, 400 * kMiB);
  sending.post_bytes(50 * kMiB);
  sending.sent.clear();
  sending.offer(3, {0, 30, 4}, 400 * kMiB);
  sending.post_bytes(4 * kMiB);
  CHECK(is_near(sending.part(3), 0.5));
}

/// The one sends a message at a time, the other keeps many waiting.
void who_comes_and_goes_gets_no_more_than_its_share() {
  Sending sending;
  sending.offer(1, {0, 10, 1}, 400 * kMiB);
  for (u64 posted = 0; posted < 100 * kMiB; posted += kMiB) {
    if (sending.seqs[2] == 0 || sending.sent[2] == sending.seqs[2] * kMiB) sending.offer(2, {0, 20, 1}, kMiB);
    sending.post(kMiB);
  }
  CHECK(sending.part(2) < 0.52 && sending.part(2) > 0.4);
}

void what_was_not_used_is_not_saved_up() {
  Sending sending;
  sending.offer(1, {0, 10, 1}, 400 * kMiB);
  sending.offer(2, {0, 20, 100}, 64);
  sending.post_bytes(50 * kMiB);
  sending.sent.clear();
  sending.offer(2, {0, 20, 1}, 400 * kMiB);
  sending.post_bytes(10 * kMiB);
  CHECK(is_near(sending.part(2), 0.5));
}

void messages_of_a_flow_go_in_order() {
  Sending sending;
  const auto first = sending.offer(1, {0, 10, 1}, kMiB), second = sending.offer(1, {0, 10, 1}, kMiB);
  CHECK(sending.post() == first);
  sending.queue.drop(*first);
  CHECK(sending.post() == second);
  sending.queue.put(first);                            // something of it goes again
  CHECK(sending.post() == first);
}

void a_near_deadline_goes_first_and_costs_its_own_channel_only() {
  Sending sending;
  sending.offer(1, {0, 10, 1}, 400 * kMiB);
  sending.offer(2, {0, 10, 1}, 400 * kMiB);
  sending.offer(3, {0, 20, 1}, 400 * kMiB);
  sending.post_bytes(10 * kMiB);
  sending.sent.clear();
  sending.offer(4, {0, 10, 1}, 4 * kMiB, kNow + kNearDeadlineNs / 2);
  sending.offer(5, {0, 10, 1}, 4 * kMiB, kNow + 10 * kNearDeadlineNs);
  sending.post_bytes(8 * kMiB);
  CHECK(sending.sent[4] == 4 * kMiB);
  CHECK(sending.sent[1] + sending.sent[2] + sending.sent[5] <= kMiB / 4);
  CHECK(is_near(sending.part(3), 0.5));
}

void what_waits_is_counted() {
  Sending sending;
  const auto one = sending.offer(1, {0, 10, 1}, 4 * kMiB), two = sending.offer(2, {0, 20, 1}, 2 * kMiB);
  CHECK(sending.queue.bytes() == 6 * kMiB);
  sending.post(kMiB);
  CHECK(sending.queue.bytes() == 5 * kMiB);
  one->left += kMiB;                                   // something of it goes again
  sending.queue.pay(*one, 0);
  CHECK(sending.queue.bytes() == 6 * kMiB);
  sending.queue.drop(*one);
  sending.queue.drop(*one);
  CHECK(sending.queue.bytes() == two->left && !one->queued);
  sending.queue.clear();
  CHECK(sending.queue.is_empty() && sending.queue.bytes() == 0 && !two->queued && sending.queue.next(kNow) == nullptr);
}

void a_thousand_flows_that_came_and_went_leave_nothing() {
  Sending sending;
  const auto stays = sending.offer(1, {0, 10, 1}, 4000 * kMiB);
  for (u64 flow = 2; flow < 1002; ++flow) {
    sending.offer(flow, {0, static_cast<u32>(flow), 1}, 100);
    sending.post_bytes(kMiB);
  }
  for (u64 flow = 2; flow < 1002; ++flow) CHECK(sending.sent[flow] == 100);
}

}  // namespace
}  // namespace fabric

int main() {
  using namespace fabric;
  channels_share_by_their_weights();
  flows_of_a_channel_share_its_part();
  tenants_share_equally_whatever_their_channels_weigh();
  one_that_begins_has_its_share_at_once();
  who_comes_and_goes_gets_no_more_than_its_share();
  what_was_not_used_is_not_saved_up();
  messages_of_a_flow_go_in_order();
  a_near_deadline_goes_first_and_costs_its_own_channel_only();
  what_waits_is_counted();
  a_thousand_flows_that_came_and_went_leave_nothing();
  std::puts("bulk queue: ok");
}
