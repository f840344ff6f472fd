// What Python holds: each wrapper keeps the port alive, the port keeps its endpoints.
#pragma once

#include <nanobind/nanobind.h>

#include "bind/gil.hpp"
#include "bind/buffers.hpp"
#include "bind/errors.hpp"
#include "core/receiver.hpp"
#include "core/sender.hpp"

namespace fabric {

struct PySender {
  std::shared_ptr<Port> port;
  std::shared_ptr<SenderCore> core;
};

/// `core` keeps the port alive, too: one reference to count for each message instead of two.
struct PyReceiver {
  PyReceiver(std::shared_ptr<Port> port, std::shared_ptr<ReceiverCore> receiver);
  std::shared_ptr<ReceiverCore> core;
};

struct PyLoan {
  PyLoan() = default;
  PyLoan(const PyLoan&) = delete;
  ~PyLoan();
  std::shared_ptr<Port> port;
  std::shared_ptr<SenderCore> sender;
  SlotRef slot;
  u8* address = nullptr;
  std::vector<u64> sizes, offsets;
};

struct PyMessage {
  PyMessage(std::shared_ptr<ReceiverCore> receiver, MessageCore* core) : receiver(std::move(receiver)), core(core) {}
  PyMessage(PyMessage&& other) noexcept : receiver(std::move(other.receiver)), core(other.core) {
    other.core = nullptr;
  }
  ~PyMessage() {
    if (core != nullptr) receiver->collect(core);
  }
  std::shared_ptr<ReceiverCore> receiver;
  MessageCore* core;
  Piece exported{nullptr, 0};         ///< what the buffer protocol gives: the tensor that is being made
};

/// Runs `call` without the interpreter's lock.
template <class Call>
Status released(Call&& call) {
  bind::ReleasedGil unlocked;
  return call();
}

void bind_sender(nanobind::module_& module);
void bind_receiver(nanobind::module_& module);
void bind_port(nanobind::module_& module);
void bind_segments(nanobind::module_& module);

}  // namespace fabric
