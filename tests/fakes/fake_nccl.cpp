// A stand-in for libnccl.so.2 with a fake driver of its own in it: two ranks over a socket, and as strict as NCCL is about
// what must not be done with a communicator that does not block.
//
// A send or receive is work of the stream, and, as a kernel of NCCL, does not end when the peer is gone: the communicator's
// state tells, and an abort ends it. A call while another is not decided is an error here. One GPU is no two ranks.
#include "fake_cuda.cpp"

#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <vector>

namespace {

enum NcclResult : int { kNcclSuccess = 0, kNcclSystem = 2, kNcclArgument = 4, kNcclUsage = 5, kNcclRemote = 6, kNcclInProgress = 7 };
struct UniqueId { char name[120]; std::int32_t listener, pid; };
static_assert(sizeof(UniqueId) == 128);
struct Config { std::size_t size; unsigned magic, version; int blocking; };

std::atomic<bool> joins_never{false};
std::atomic<std::int64_t> decide_us{200};

struct Comm {
  std::atomic<int> socket{-1}, error{kNcclInProgress};
  std::atomic<bool> is_aborted{false};
  std::atomic<std::int64_t> decided_at_us{0};
  std::atomic<int> users{0};
  int device = 0, rank = 0;
};

std::int64_t now_us() {
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

socklen_t address_of(const UniqueId& id, sockaddr_un& address) {
  address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, id.name, sizeof id.name - 20);
  return sizeof address.sun_family + 1 + static_cast<socklen_t>(std::strlen(id.name));
}

/// All of it, or false once the communicator is aborted; a peer that is gone is a state, and then this waits for the abort.
bool transfer(Comm& comm, std::uint8_t* bytes, std::size_t size, bool is_send) {
  for (std::size_t done = 0; done < size;) {
    if (comm.is_aborted) return false;
    pollfd polled{comm.error == kNcclRemote ? -1 : comm.socket.load(), short(is_send ? POLLOUT : POLLIN), 0};
    if (::poll(&polled, 1, 2) <= 0 || polled.fd < 0) continue;
    const ssize_t count = is_send ? ::send(polled.fd, bytes + done, size - done, MSG_NOSIGNAL | MSG_DONTWAIT)
                                  : ::recv(polled.fd, bytes + done, size - done, MSG_DONTWAIT);
    if (count > 0) done += static_cast<std::size_t>(count);
    else if (count == 0 || (errno != EAGAIN && errno != EINTR)) comm.error = kNcclRemote;
  }
  return true;
}

void join(Comm* comm, UniqueId id) {
  sockaddr_un address;
  const socklen_t size = address_of(id, address);
  int fd = -1;
  while (!comm->is_aborted && fd < 0) {
    if (!joins_never && comm->rank == 0) {
      pollfd polled{id.listener, POLLIN, 0};
      if (::poll(&polled, 1, 2) > 0) fd = ::accept4(id.listener, nullptr, nullptr, SOCK_CLOEXEC);
    } else if (!joins_never) {
      fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
      if (::connect(fd, reinterpret_cast<sockaddr*>(&address), size) != 0) {
        ::close(fd);
        fd = -1;
      }
    }
    if (fd < 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (comm->rank == 0) ::close(id.listener);
  comm->socket = fd;
  int theirs = -1;
  const bool is_met = fd >= 0 && transfer(*comm, reinterpret_cast<std::uint8_t*>(&comm->device), sizeof comm->device, true) &&
                      transfer(*comm, reinterpret_cast<std::uint8_t*>(&theirs), sizeof theirs, false);
  if (is_met) comm->error = theirs == comm->device ? kNcclUsage : kNcclSuccess;
  --comm->users;
}

int post(void* memory, std::size_t bytes, Comm* comm, Stream* stream, bool is_send) {
  if (guard(true) != kSuccess) return kNcclUsage;
  if (comm->error != kNcclSuccess || now_us() < comm->decided_at_us) return kNcclUsage;
  comm->decided_at_us = now_us() + decide_us;
  ++comm->users;
  stream->give([=](Stream& own) {
    std::vector<std::uint8_t> copy(bytes);
    const auto here = reinterpret_cast<Pointer>(memory), there = reinterpret_cast<Pointer>(copy.data());
    if (is_send) own.copy(there, here, bytes);
    const bool is_whole = !own.is_failed() && transfer(*comm, copy.data(), bytes, is_send);
    if (is_whole && !is_send) own.copy(here, there, bytes);
    --comm->users;
  });
  return kNcclInProgress;
}

}  // namespace

extern "C" {

void fake_nccl_join_never(int is_never) { joins_never = is_never != 0; }
void fake_nccl_decide_us(std::int64_t us) { decide_us = us; }

int ncclGetVersion(int* version) { *version = 22903; return kNcclSuccess; }
const char* ncclGetErrorString(int result) {
  switch (result) {
    case kNcclSystem: return "unhandled system error";
    case kNcclArgument: return "invalid argument";
    case kNcclUsage: return "invalid usage";
    case kNcclRemote: return "remote process exited or there was a network error";
    default: return "no error";
  }
}
int ncclGetUniqueId(UniqueId* id) {
  std::uint64_t chance = 0;
  [[maybe_unused]] auto got = ::getrandom(&chance, sizeof chance, 0);
  *id = {};
  std::snprintf(id->name, sizeof id->name - 20, "fake-nccl-%d-%llx", ::getpid(), static_cast<unsigned long long>(chance));
  id->pid = ::getpid();
  id->listener = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address;
  const socklen_t size = address_of(*id, address);
  const bool is_open = ::bind(id->listener, reinterpret_cast<sockaddr*>(&address), size) == 0 && ::listen(id->listener, 1) == 0;
  return is_open ? kNcclSuccess : kNcclSystem;
}
int ncclCommInitRankConfig(Comm** comm, int ranks, UniqueId id, int rank, Config* config) {
  const bool is_sound = config->magic == 0xcafebeef && config->blocking == 0 && config->size >= sizeof *config && ranks == 2;
  if (!is_sound || current_context == nullptr) return kNcclArgument;
  *comm = new Comm;
  (*comm)->device = current_device();
  (*comm)->rank = rank;
  ++(*comm)->users;
  std::thread(join, *comm, id).detach();
  return kNcclInProgress;
}
int ncclCommGetAsyncError(Comm* comm, int* state) {
  const int error = comm->error;
  *state = error == kNcclSuccess && now_us() < comm->decided_at_us ? kNcclInProgress : error;
  return kNcclSuccess;
}
int ncclCommAbort(Comm* comm) {
  comm->is_aborted = true;
  while (comm->users > 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
  if (comm->socket >= 0) ::close(comm->socket);
  delete comm;
  return kNcclSuccess;
}
int ncclSend(const void* from, std::size_t count, int, int, Comm* comm, Stream* stream) {
  return post(const_cast<void*>(from), count, comm, stream, true);
}
int ncclRecv(void* to, std::size_t count, int, int, Comm* comm, Stream* stream) { return post(to, count, comm, stream, false); }

}  // extern "C"
