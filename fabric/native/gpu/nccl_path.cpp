#include "gpu/nccl_path.hpp"

#include <cstring>
#include <utility>

#include "core/clock.hpp"

namespace fabric::gpu {
namespace {

constexpr u64 kMagic = 0x314c'4343'4e42'4146;
constexpr u64 kAskNs = 1'000'000;

}  // namespace

NcclPath::~NcclPath() {
  abort();
  if (!device_) return;
  CurrentDevice current(device_);
  in_memory_.reset();
}

std::string NcclPath::open(const PathOptions& options, int event_fd) {
  std::string why;
  int number = 0;
  nccl_ = NcclApi::load(options.nccl, number, why);
  if (nccl_ == nullptr) return why;
  why = StagedPath::open(options, event_fd);
  if (!why.empty()) return why;
  CurrentDevice current(device_);
  return in_memory_.allocate(device_, kSlots * kSlotBytes);
}

std::vector<u8> NcclPath::introduction() {
  std::vector<u8> bytes;
  CurrentDevice current(device_);
  if (nccl_->unique_id(&id_) != kNcclSuccess) return bytes;
  const Introduction mine{kMagic, key_, id_, device().uuid()};
  bytes.resize(sizeof mine);
  std::memcpy(bytes.data(), &mine, sizeof mine);
  return bytes;
}

std::string NcclPath::meet(std::span<const u8> introduction) {
  Introduction peer;
  if (introduction.empty()) return "nccl: the peer's NCCL gives no id: see its log with NCCL_DEBUG=WARN";
  if (introduction.size() != sizeof peer) return "nccl: peer protocol: introduction";
  std::memcpy(&peer, introduction.data(), sizeof peer);
  if (peer.magic != kMagic) return "nccl: peer protocol: introduction of another version";
  if (std::memcmp(&peer.device, &device().uuid(), sizeof peer.device) == 0)
    return "nccl: both ends use the same GPU, and one GPU is no two ranks: give them two, or use cuda_ipc";
  peer_key_ = peer.key;
  is_joining_ = true;
  std::string why = join(to_, id_, 0);
  return why.empty() ? join(from_, peer.id, 1) : why;
}

std::string NcclPath::join(Way& way, const NcclUniqueId& id, int rank) {
  CurrentDevice current(device_);
  NcclConfig config;
  return nccl_->failed("ncclCommInitRankConfig", nccl_->join(&way.comm, 2, id, rank, &config));
}

std::string NcclPath::ready(bool& is_ready) {
  bool is_out = false, is_in = false;
  std::string why = decided(to_, is_out);
  if (why.empty()) why = decided(from_, is_in);
  is_ready = why.empty() && is_out && is_in;
  is_joining_ = !is_ready;
  return why;
}

std::string NcclPath::decided(Way& way, bool& is_decided) {
  NcclResult state = kNcclSuccess;
  std::string why = nccl_->failed("ncclCommGetAsyncError", nccl_->state(way.comm, &state));
  if (why.empty()) why = nccl_->failed("communicator", state);
  is_decided = state == kNcclSuccess;
  return why;
}

std::string NcclPath::stage(u32 slot, u64 generation, const u8* body, u32 length) {
  lengths_[slot] = length;
  return StagedPath::stage(slot, generation, body, length);
}

std::string NcclPath::told(u32 slot) {
  to_.calls.push_back({slot, lengths_[slot], monotonic_ns()});
  return post_sends();
}

std::string NcclPath::fetch(u32 slot, u64, u32 length) {
  from_.calls.push_back({slot, length, monotonic_ns()});
  return post_receives();
}

/// One call at a time: the next is allowed once NCCL has decided the one before.
std::string NcclPath::post_sends() {
  CurrentDevice current(device_);
  while (!to_.calls.empty()) {
    if (to_.is_posted) {
      bool is_decided = false;
      if (std::string why = decided(to_, is_decided); !why.empty() || !is_decided) return why;
      to_.is_posted = false;
      to_.calls.pop_front();
      continue;
    }
    const Call& call = to_.calls.front();
    const void* from = reinterpret_cast<const void*>(out_at(call.slot));
    const NcclResult result = nccl_->send(from, kSlotHeadBytes + call.length, kNcclUint8, 1, to_.comm, out_.raw());
    if (std::string why = nccl_->failed("ncclSend", result); !why.empty()) return why;
    to_.is_posted = true;
  }
  return {};
}

/// The copy to the host goes behind a receive on its stream once that is there, which is when NCCL has decided.
std::string NcclPath::post_receives() {
  CurrentDevice current(device_);
  while (!from_.calls.empty()) {
    const Call call = from_.calls.front();
    const CuPointer at = in_memory_.at(call.slot * kSlotBytes);
    if (from_.is_posted) {
      bool is_decided = false;
      if (std::string why = decided(from_, is_decided); !why.empty() || !is_decided) return why;
      from_.is_posted = false;
      from_.calls.pop_front();
      if (std::string why = land(call.slot, at, call.length); !why.empty()) return why;
      continue;
    }
    void* to = reinterpret_cast<void*>(at);
    const NcclResult result = nccl_->receive(to, kSlotHeadBytes + call.length, kNcclUint8, 0, from_.comm, in_.raw());
    if (std::string why = nccl_->failed("ncclRecv", result); !why.empty()) return why;
    from_.is_posted = true;
  }
  return {};
}

std::string NcclPath::fetched(u32 slot, bool& is_done) {
  std::string why = post_receives();
  return why.empty() ? StagedPath::fetched(slot, is_done) : why;
}

std::string NcclPath::watch(u64 now, u64 deadline_ns) {
  if (to_.comm == nullptr || from_.comm == nullptr || is_joining_) return StagedPath::watch(now, deadline_ns);
  std::string why = post_sends();
  if (why.empty()) why = post_receives();
  for (Way* way : {&to_, &from_}) {
    bool is_decided = false;
    if (why.empty()) why = decided(*way, is_decided);
    if (why.empty() && way->is_posted && now > way->calls.front().since_ns + deadline_ns)
      why = "nccl: a call is not decided after " + std::to_string(deadline_ns / 1'000'000) + " ms";
  }
  return why.empty() ? StagedPath::watch(now, deadline_ns) : why;
}

u64 NcclPath::ask_again_ns() const { return is_joining_ || to_.is_posted || from_.is_posted ? kAskNs : 0; }

void NcclPath::abort() {
  for (Way* way : {&to_, &from_})
    if (NcclComm comm = std::exchange(way->comm, nullptr); comm != nullptr) nccl_->abort(comm);
}

bool NcclPath::retire() {
  abort();  // ends kernels that wait for the peer
  return StagedPath::retire();
}

}  // namespace fabric::gpu
