// Receiver.
#include <nanobind/nanobind.h>

#include "bind/endpoints.hpp"
#include "bind/message.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace fabric {
namespace {

nb::object wrap(nb::handle self, ReceiverCore& receiver, MessageCore* core) {
  nb::object message = nb::steal(make_message(self.ptr(), receiver, core));
  if (!message.is_valid()) throw nb::python_error();
  return message;
}

nb::object receive(nb::handle self, u64 deadline_ns) {
  auto& receiver = nb::cast<PyReceiver&>(self);
  MessageCore* core = nullptr;
  Status status = receiver.core->receive_one(deadline_ns, false, core);
  if (status.code == Code::would_block || status.code == Code::frozen) {
    status = released([&] { return receiver.core->receive_one(deadline_ns, true, core); });
  }
  check(status);
  return core == nullptr ? nb::none() : wrap(self, *receiver.core, core);
}

nb::list receive_many(nb::handle self, u64 count, u64 deadline_ns) {
  auto& receiver = nb::cast<PyReceiver&>(self);
  std::vector<MessageCore*> cores;
  Status status = receiver.core->receive(count, deadline_ns, false, cores);
  if (status.code == Code::would_block || status.code == Code::frozen) {
    status = released([&] { return receiver.core->receive(count, deadline_ns, true, cores); });
  }
  check(status);
  nb::list out;
  for (std::size_t at = 0; at < cores.size(); ++at) {
    try {
      out.append(wrap(self, *receiver.core, cores[at]));
    } catch (...) {  // the one that failed was given back
      while (++at < cores.size()) receiver.core->collect(cores[at]);
      throw;
    }
  }
  return out;
}

}  // namespace

PyReceiver::PyReceiver(std::shared_ptr<Port> port, std::shared_ptr<ReceiverCore> receiver) {
  using Both = std::pair<std::shared_ptr<Port>, std::shared_ptr<ReceiverCore>>;  // the core goes first
  ReceiverCore* address = receiver.get();
  core = std::shared_ptr<ReceiverCore>(std::make_shared<Both>(std::move(port), std::move(receiver)), address);
}

void bind_receiver(nb::module_& module) {
  nb::class_<PyReceiver>(module, "Receiver", "The receiving endpoint of a channel. Thread-safe.")
      .def("receive", receive, "deadline_ns"_a, nb::sig("def receive(self, deadline_ns: int) -> Message | None"),
           "The next message; None at the deadline (absolute CLOCK_MONOTONIC; 0 = do not wait).\n\n"
           "Raises ClosedError, PeerProtocolError once a lane of this endpoint carried what cannot be true.")
      .def("receive_many", receive_many, "count"_a, "deadline_ns"_a,
           nb::sig("def receive_many(self, count: int, deadline_ns: int) -> list[Message]"),
           "Up to `count` messages, waiting for the first only.")
      .def("pending", [](PyReceiver& receiver) {
        u64 out = 0;
        check(released([&] { return receiver.core->pending(out); }));
        return out;
      }, "Messages drained and not handed over.")
      .def("close", [](PyReceiver& receiver, bool hand_back) {
        Status status = released([&] { return receiver.core->close(hand_back); });
        if (status.code != Code::closed) check(status);
      }, "hand_back"_a = false,
           "Waiters get ClosedError; what is queued ends as failed(closed). With `hand_back`, at_least_once: what is\n"
           "queued or still comes is neither handed nor ended here, its slots are given back; its senders have it\n"
           "until they are told that the flow is lost. What was handed may still be acknowledged. Idempotent.");
}

}  // namespace fabric
