// What both sides of a ucx connection say to each other first, over their handshaken socket: a key and an address.
//
// Engine thread only; never blocks. The socket stays its owner's. Little-endian: magic u32, version u16, 0 u16, address
// bytes u32, 0 u32, key u64, address. Nothing follows: whoever writes more breaks the rules.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "core/layout.hpp"

namespace fabric::ucx {

inline constexpr u32 kExchangeMagic = 0x55424146;  // "FABU"
inline constexpr u16 kExchangeVersion = 1;
inline constexpr u32 kAddressBytesMax = 16 * 1024;

struct ExchangeHead { u32 magic; u16 version, reserved; u32 address_len, reserved2; u64 key; };
static_assert(sizeof(ExchangeHead) == 24);

class AddressExchange {
 public:
  enum class Step : u8 { waiting, done, broken };

  AddressExchange() = default;
  AddressExchange(std::span<const u8> address, u64 key);
  Step progress(int fd);                  ///< done: once, when both were said
  bool wants_write() const { return written_ < out_.size(); }
  u64 peer_key() const { return head_.key; }
  std::span<const u8> peer_address() const { return in_; }
  const std::string& reason() const { return reason_; }  ///< after `broken`

 private:
  bool write(int fd);
  bool read(int fd, u8* to, std::size_t bytes, std::size_t& have);
  bool fail(std::string reason);

  std::vector<u8> out_, in_;
  std::size_t written_ = 0, head_read_ = 0, read_ = 0;
  ExchangeHead head_{};
  std::string reason_;
};

}  // namespace fabric::ucx
