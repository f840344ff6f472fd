// One UCX context, worker and endpoint, as active messages between two processes. The only file that knows UCX's calls.
//
// One thread at a time. Everything is told through `Events`, inside `progress` and `close` alone. UCX keeps a thread of
// its own where a transport accepts connections; it installs no signal handler and prints nothing (fabric/links/ucx.py).
#pragma once

#include <span>
#include <string>

#include "core/memory.hpp"

extern "C" {
struct ucp_context;
struct ucp_worker;
struct ucp_ep;
struct ucp_address;
}

namespace fabric::ucx {

struct Options {
  std::string transports;               ///< as UCX_TLS; empty: all
  std::string devices;                  ///< as UCX_NET_DEVICES; empty: all
};

class Endpoint;

/// A send or a fetch under way; stays where it is until it has ended.
struct Operation { Endpoint* endpoint = nullptr; };

class Events {
 public:
  /// A whole message; `header` and `body` hold for the call only.
  virtual void arrived(std::span<const u8> header, std::span<const u8> body) = 0;
  /// A message whose body waits at its sender until `fetch`. @return false: not wanted
  virtual bool announced(std::span<const u8> header, u64 body_bytes, void* ticket) = 0;
  virtual void fetched(Operation& fetch, const char* error) = 0;  ///< null: all of it is there
  virtual void sent(Operation& send, const char* error) = 0;      ///< null: the bytes are not needed any more
  virtual void failed(const char* error) = 0;                     ///< the endpoint is gone

 protected:
  ~Events() = default;
};

enum class Done : u8 { now, later, failed };
enum class Armed : u8 { yes, busy, failed };

class Endpoint {
 public:
  explicit Endpoint(Events& events) : events_(events) {}
  ~Endpoint() { close(); }
  Endpoint(const Endpoint&) = delete;
  Endpoint& operator=(const Endpoint&) = delete;

  /// Makes context and worker. @return empty, or why not in words
  std::string open(const Options& options);
  std::string connect(std::span<const u8> address);
  int event_fd() const { return event_fd_; }     ///< readable after `arm` said yes: call `progress`
  bool reads_peer() const;                       ///< bodies are read from the peer's memory, by `fetch` and `progress`
  std::span<const u8> address() const;           ///< what the peer connects to; holds until `close`

  /// `later`: `Events` tells the end of it; the header is copied, the body stays.
  Done send(std::span<const u8> header, std::span<const u8> body, Operation& what);
  Done fetch(void* ticket, u8* to, u64 bytes, Operation& what);
  void discard(void* ticket);                    ///< of what was announced, and is not fetched
  bool progress();                               ///< @return true when anything moved
  Armed arm();
  void close();                                  ///< idempotent, bounded; afterwards no byte is read or written

 private:
  struct Calls;                                  // UCX's callbacks
  std::string start(const Options& options);
  std::string start_worker();

  Events& events_;
  ucp_context* context_ = nullptr;
  ucp_worker* worker_ = nullptr;
  ucp_ep* endpoint_ = nullptr;
  ucp_address* address_ = nullptr;
  std::size_t address_len_ = 0;
  int event_fd_ = -1, err_mode_ = 0;
};

/// UCX's version, such as "1.22.0".
std::string version();

}  // namespace fabric::ucx
