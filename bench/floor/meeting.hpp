// How two halves find each other: a unix socket in the folder, over which memory and port numbers are handed.
#pragma once

#include "system.hpp"

namespace floors {

class Meeting {
 public:
  /// Near listens at FOLDER/meeting, far connects. Throws when nobody comes within 30 s.
  Meeting(Role role, const std::string& folder);
  Role role() const { return role_; }

  void give(int fd);          ///< near → far
  Fd take();
  /// Near makes memory of `bytes`, far maps the same. Every page is touched on both sides.
  Memory share(std::size_t bytes);
  /// Returns when both halves are here.
  void together();

  /// The stream itself, for a floor whose messages go over a unix socket: connected at FOLDER/stream.
  Fd connect_unix(const std::string& folder);
  Fd connect_tcp();           ///< over loopback, at a free port

 private:
  Role role_;
  Fd socket_;
};

void send_all(int fd, const void* data, std::size_t bytes);
void receive_all(int fd, void* data, std::size_t bytes);  ///< throws where the other half has gone

}  // namespace floors
