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

/// `core` keeps the port alive, too.
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

/// Runs `call` without the interpreter's lock.
template <class Call>
Status released(Call&& call) {
  bind::ReleasedGil unlocked;
  return call();
}

/// `call(may_wait)`: at once, or without the interpreter's lock while an audit freezes the port; raises what it fails with.
template <class Call>
void now_or_wait(Call&& call) {
  Status status = call(false);
  if (status.code == Code::frozen) status = released([&] { return call(true); });
  check(status);
}

void bind_sender(nanobind::module_& module);
void bind_route(nanobind::module_& module);
void bind_receiver(nanobind::module_& module);
void bind_port(nanobind::module_& module);
void bind_segments(nanobind::module_& module);

}  // namespace fabric
