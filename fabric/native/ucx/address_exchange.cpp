#include "ucx/address_exchange.hpp"

#include <sys/socket.h>

#include <cerrno>
#include <cstring>

namespace fabric::ucx {

AddressExchange::AddressExchange(std::span<const u8> address, u64 key) {
  const ExchangeHead head{kExchangeMagic, kExchangeVersion, 0, static_cast<u32>(address.size()), 0, key};
  out_.resize(sizeof head + address.size());
  std::memcpy(out_.data(), &head, sizeof head);
  std::memcpy(out_.data() + sizeof head, address.data(), address.size());
}

bool AddressExchange::fail(std::string reason) {
  reason_ = std::move(reason);
  return false;
}

AddressExchange::Step AddressExchange::progress(int fd) {
  if (!write(fd)) return Step::broken;
  const bool had_head = head_read_ == sizeof head_;
  if (!read(fd, reinterpret_cast<u8*>(&head_), sizeof head_, head_read_)) return Step::broken;
  if (head_read_ < sizeof head_) return Step::waiting;
  if (!had_head) {
    const bool is_known = head_.magic == kExchangeMagic && head_.version == kExchangeVersion;
    if (!is_known || head_.address_len == 0 || head_.address_len > kAddressBytesMax) {
      fail("peer protocol: not the address of a ucx worker");
      return Step::broken;
    }
    in_.resize(head_.address_len);
  }
  if (!read(fd, in_.data(), in_.size(), read_)) return Step::broken;
  return read_ == in_.size() && !wants_write() ? Step::done : Step::waiting;
}

bool AddressExchange::write(int fd) {
  while (wants_write()) {
    const ssize_t count = ::send(fd, out_.data() + written_, out_.size() - written_, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count >= 0) written_ += static_cast<std::size_t>(count);
    else if (errno == EAGAIN || errno == EWOULDBLOCK) return true;
    else if (errno != EINTR) return fail(std::string("send: ") + std::strerror(errno));
  }
  return true;
}

bool AddressExchange::read(int fd, u8* to, std::size_t bytes, std::size_t& have) {
  while (have < bytes) {
    const ssize_t count = ::recv(fd, to + have, bytes - have, MSG_DONTWAIT);
    if (count > 0) have += static_cast<std::size_t>(count);
    else if (count == 0) return fail("closed by peer");
    else if (errno == EAGAIN || errno == EWOULDBLOCK) return true;
    else if (errno != EINTR) return fail(std::string("recv: ") + std::strerror(errno));
  }
  return true;
}

}  // namespace fabric::ucx
