#include "engine/bulk_queue.hpp"

#include <algorithm>

#include "engine/outgoing.hpp"

namespace fabric {

void BulkQueue::note_deadline(Channel& channel, const Flow& flow, bool is_there) {
  if (flow.transfers.empty() || flow.transfers.front()->deadline_ns == 0) return;
  const std::pair<u64, u64> first{flow.transfers.front()->deadline_ns, flow.transfers.front()->flow};
  if (is_there) channel.deadlines.insert(first);
  else channel.deadlines.erase(first);
}

void BulkQueue::put(const std::shared_ptr<OutTransfer>& transfer) {
  const Share& share = transfer->share;
  Channel& channel = tenants_.add(share.tenant).channels.add(share.channel);
  channel.weighs = std::clamp<u32>(share.weight, 1, kChannelWeightMax);
  Flow& flow = channel.flows.add(transfer->flow);
  note_deadline(channel, flow, false);
  auto at = flow.transfers.end();
  while (at != flow.transfers.begin() && (*std::prev(at))->flow_seq > transfer->flow_seq) --at;
  flow.transfers.insert(at, transfer);
  note_deadline(channel, flow, true);
  transfer->queued = true;
  transfer->queued_bytes = transfer->left;
  bytes_ += transfer->left;
}

std::shared_ptr<OutTransfer> BulkQueue::next(u64 now) {
  if (tenants_.is_empty()) return nullptr;
  TurnRing<u32, Channel>& channels = tenants_.at(tenants_.next()).channels;
  Channel& channel = channels.at(channels.next());
  const bool is_near = !channel.deadlines.empty() && channel.deadlines.begin()->first < now + kNearDeadlineNs;
  const u64 flow = is_near ? channel.deadlines.begin()->second : channel.flows.next();
  return channel.flows.at(flow).transfers.front();
}

void BulkQueue::pay(OutTransfer& transfer, u64 bytes) {
  if (!transfer.queued) return;
  bytes_ += transfer.left - transfer.queued_bytes;
  transfer.queued_bytes = transfer.left;
  Tenant& tenant = tenants_.at(transfer.share.tenant);
  tenant.channels.at(transfer.share.channel).flows.pay(transfer.flow, bytes);
  tenant.channels.pay(transfer.share.channel, bytes);
  tenants_.pay(transfer.share.tenant, bytes);
}

void BulkQueue::drop(OutTransfer& transfer) {
  if (!transfer.queued) return;
  transfer.queued = false;
  bytes_ -= transfer.queued_bytes;
  Tenant& tenant = tenants_.at(transfer.share.tenant);
  Channel& channel = tenant.channels.at(transfer.share.channel);
  Flow& flow = channel.flows.at(transfer.flow);
  note_deadline(channel, flow, false);
  std::erase_if(flow.transfers, [&](const auto& held) { return held.get() == &transfer; });
  note_deadline(channel, flow, true);
  channel.flows.drop(transfer.flow);
  tenant.channels.drop(transfer.share.channel);
  tenants_.drop(transfer.share.tenant);
}

void BulkQueue::clear() {
  tenants_.each([](Tenant& tenant) {
    tenant.channels.each([](Channel& channel) {
      channel.flows.each([](Flow& flow) {
        for (const auto& transfer : flow.transfers) transfer->queued = false;
      });
    });
  });
  tenants_.clear();
  bytes_ = 0;
}

}  // namespace fabric
