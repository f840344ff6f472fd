#include "meeting.hpp"

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <stdexcept>

namespace floors {
namespace {

constexpr u64 kMeetNs = 30'000'000'000;

Fd new_socket(int family) {
  Fd fd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  check(fd.get() >= 0, "socket");
  return fd;
}

Fd accept_one(const Fd& listener) {
  pollfd waiting{listener.get(), POLLIN, 0};
  if (::poll(&waiting, 1, static_cast<int>(kMeetNs / 1'000'000)) <= 0) {
    throw std::runtime_error("the other half did not come within 30 s");
  }
  Fd fd(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  check(fd.get() >= 0, "accept");
  return fd;
}

sockaddr_un unix_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) throw std::runtime_error("path too long for a unix socket: " + path);
  std::memcpy(address.sun_path, path.c_str(), path.size());
  return address;
}

Fd meet(Role role, const std::string& path) {
  const sockaddr_un address = unix_address(path);
  const auto* where = reinterpret_cast<const sockaddr*>(&address);
  if (role == Role::near) {
    const Fd listener = new_socket(AF_UNIX);
    check(::bind(listener.get(), where, sizeof address) == 0, "bind");
    check(::listen(listener.get(), 1) == 0, "listen");
    return accept_one(listener);
  }
  for (const u64 until = now_ns() + kMeetNs; now_ns() < until; ::usleep(10'000)) {
    Fd fd = new_socket(AF_UNIX);
    if (::connect(fd.get(), where, sizeof address) == 0) return fd;
  }
  throw std::runtime_error("nobody listens at " + path);
}

struct Parcel {
  char byte = 0;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  iovec part{&byte, 1};
  msghdr message{};
  Parcel() {
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
  }
  Parcel(const Parcel&) = delete;
};

}  // namespace

Meeting::Meeting(Role role, const std::string& folder) : role_(role), socket_(meet(role, folder + "/meeting")) {}

void Meeting::give(int fd) {
  Parcel parcel;
  cmsghdr* head = CMSG_FIRSTHDR(&parcel.message);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(head), &fd, sizeof fd);
  check(::sendmsg(socket_.get(), &parcel.message, MSG_NOSIGNAL) == 1, "sendmsg");
}

Fd Meeting::take() {
  Parcel parcel;
  check(::recvmsg(socket_.get(), &parcel.message, MSG_CMSG_CLOEXEC) == 1, "recvmsg");
  const cmsghdr* head = CMSG_FIRSTHDR(&parcel.message);
  if (head == nullptr || head->cmsg_type != SCM_RIGHTS) throw std::runtime_error("no descriptor came");
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(head), sizeof fd);
  return Fd(fd);
}

Memory Meeting::share(std::size_t bytes) {
  if (role_ == Role::far) return Memory(bytes, take().get());
  const Fd fd = make_memfd(bytes);
  Memory memory(bytes, fd.get());
  give(fd.get());
  return memory;
}

void Meeting::together() {
  char byte = 0;
  send_all(socket_.get(), &byte, 1);
  receive_all(socket_.get(), &byte, 1);
}

Fd Meeting::connect_unix(const std::string& folder) { return meet(role_, folder + "/stream"); }

Fd Meeting::connect_tcp() {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  auto* where = reinterpret_cast<sockaddr*>(&address);
  socklen_t size = sizeof address;
  Fd fd = new_socket(AF_INET);
  if (role_ == Role::near) {
    check(::bind(fd.get(), where, size) == 0, "bind");
    check(::listen(fd.get(), 1) == 0, "listen");
    check(::getsockname(fd.get(), where, &size) == 0, "getsockname");
    send_all(socket_.get(), &address.sin_port, sizeof address.sin_port);
    return accept_one(fd);
  }
  receive_all(socket_.get(), &address.sin_port, sizeof address.sin_port);
  check(::connect(fd.get(), where, size) == 0, "connect");
  return fd;
}

void send_all(int fd, const void* data, std::size_t bytes) {
  const char* at = static_cast<const char*>(data);
  while (bytes != 0) {
    const ssize_t done = ::send(fd, at, bytes, MSG_NOSIGNAL);
    if (done < 0 && errno == EINTR) continue;
    check(done >= 0, "send");
    at += done;
    bytes -= static_cast<std::size_t>(done);
  }
}

void receive_all(int fd, void* data, std::size_t bytes) {
  char* at = static_cast<char*>(data);
  while (bytes != 0) {
    const ssize_t done = ::recv(fd, at, bytes, MSG_WAITALL);
    if (done < 0 && errno == EINTR) continue;
    check(done >= 0, "recv");
    if (done == 0) throw std::runtime_error("the other half has gone");
    at += done;
    bytes -= static_cast<std::size_t>(done);
  }
}

}  // namespace floors
