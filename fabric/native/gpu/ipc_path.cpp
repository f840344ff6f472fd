#include "gpu/ipc_path.hpp"

#include <cstring>

namespace fabric::gpu {
namespace {

constexpr u64 kMagic = 0x3143'5049'4255'4146;  // says which way, and its version

}  // namespace

std::vector<u8> IpcPath::introduction() {
  Introduction mine{kMagic, process_nonce(), key_, out_at(0), kSlotBytes, kSlots, device().uuid(), {}};
  CurrentDevice current(device());
  std::vector<u8> bytes;
  if (!out_memory_.handle(mine.handle).empty()) return bytes;  // `meet` of the peer says so
  bytes.resize(sizeof mine);
  std::memcpy(bytes.data(), &mine, sizeof mine);
  return bytes;
}

std::string IpcPath::meet(std::span<const u8> introduction) {
  Introduction peer;
  if (introduction.empty()) return "cuda_ipc: the peer's GPU does not give its memory to other processes";
  if (introduction.size() != sizeof peer) return "cuda_ipc: peer protocol: introduction";
  std::memcpy(&peer, introduction.data(), sizeof peer);
  if (peer.magic != kMagic || peer.slot_bytes != kSlotBytes || peer.slots != kSlots)
    return "cuda_ipc: peer protocol: introduction of another version";
  peer_key_ = peer.key;
  if (peer.process != process_nonce()) return open_peer(peer);
  peer_ = peer.base;
  return {};
}

std::string IpcPath::open_peer(const Introduction& peer) {
  CurrentDevice current(device());
  const CudaDriver& cuda = device().cuda();
  const std::string why = cuda.failed("cuIpcOpenMemHandle", cuda.ipc_open(&peer_, peer.handle, kCuIpcLazyPeerAccess));
  if (!why.empty())
    return "cuda_ipc: the peer's memory cannot be opened (" + why + "): both need to run on one machine, see each other's GPU, " +
           "and share an IPC namespace; a rail of tcp or ucx needs none of that";
  is_opened_ = true;
  return {};
}

std::string IpcPath::ready(bool& is_ready) {
  is_ready = peer_ != 0;
  return {};
}

std::string IpcPath::fetch(u32 slot, u64, u32 length) { return land(slot, peer_ + slot * kSlotBytes, length); }

void IpcPath::close_peer() {
  if (!is_opened_) return;
  is_opened_ = false;
  CurrentDevice current(device());
  device().cuda().ipc_close(peer_);
}

bool IpcPath::retire() {
  if (!StagedPath::retire()) return false;
  close_peer();
  return true;
}

}  // namespace fabric::gpu
