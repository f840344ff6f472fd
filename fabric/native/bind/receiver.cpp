// Receiver and Message.
#include <nanobind/nanobind.h>

#include <cstring>

#include "bind/gil.hpp"
#include "bind/endpoints.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace fabric {
namespace {

constexpr u64 kCopyWithoutGilBytes = 32 * 1024;

nb::object wrap(PyReceiver& receiver, MessageCore* core) { return nb::cast(PyMessage(receiver.core, core)); }

nb::object receive(PyReceiver& receiver, u64 deadline_ns) {
  MessageCore* core = nullptr;
  Status status = receiver.core->receive_one(deadline_ns, false, core);
  if (status.code == Code::would_block || status.code == Code::frozen) {
    status = released([&] { return receiver.core->receive_one(deadline_ns, true, core); });
  }
  check(status);
  return core == nullptr ? nb::none() : wrap(receiver, core);
}

nb::list receive_many(PyReceiver& receiver, u64 count, u64 deadline_ns) {
  std::vector<MessageCore*> cores;
  Status status = receiver.core->receive(count, deadline_ns, false, cores);
  if (status.code == Code::would_block || status.code == Code::frozen) {
    status = released([&] { return receiver.core->receive(count, deadline_ns, true, cores); });
  }
  check(status);
  nb::list out;
  for (MessageCore* core : cores) out.append(wrap(receiver, core));
  return out;
}

nb::bytes meta(PyMessage& message) {
  const u8* data = nullptr;
  u64 bytes = 0;
  check(message.receiver->meta(*message.core, data, bytes));
  return nb::bytes(data, bytes);
}

nb::object key(PyMessage& message) {
  const RecordFields& fields = message.core->fields;
  return fields.has_key ? nb::object(nb::bytes(fields.key.data(), fields.key.size())) : nb::none();
}

nb::object tensor(nb::handle self, u32 index, nb::str dtype, nb::handle shape) {
  auto& message = nb::cast<PyMessage&>(self);
  const u8* data = nullptr;
  u64 bytes = 0;
  check(message.receiver->tensor(*message.core, index, data, bytes));
  // numpy asks for the buffer inside this call, keeps the address, and holds the message as the array's base.
  return array_over(self, message.exported, {data, bytes}, dtype, shape);
}

int message_buffer(PyObject* self, Py_buffer* view, int flags) {
  const Piece& piece = nb::inst_ptr<PyMessage>(nb::handle(self))->exported;
  return PyBuffer_FillInfo(view, self, const_cast<u8*>(piece.data), static_cast<Py_ssize_t>(piece.bytes), 1, flags);
}

PyType_Slot message_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(message_buffer)}, {0, nullptr}};

u64 copy_into(PyMessage& message, u32 index, nb::handle target) {
  const u8* data = nullptr;
  u64 bytes = 0;
  check(message.receiver->tensor(*message.core, index, data, bytes));
  Py_buffer view;
  if (PyObject_GetBuffer(target.ptr(), &view, PyBUF_WRITABLE | PyBUF_SIMPLE) != 0) throw nb::python_error();
  const bool fits = static_cast<u64>(view.len) >= bytes;
  if (fits && bytes > kCopyWithoutGilBytes) {
    bind::ReleasedGil unlocked;
    std::memcpy(view.buf, data, bytes);
  } else if (fits && bytes != 0) {
    std::memcpy(view.buf, data, bytes);
  }
  const u64 room = static_cast<u64>(view.len);
  PyBuffer_Release(&view);
  if (!fits) {
    check(Status::fail(Code::invalid, "tensor has " + std::to_string(bytes) + " bytes, the target " + std::to_string(room)));
  }
  if (!message.receiver->holds(*message.core)) {
    check(Status::fail(Code::stale, "the slot was given to another message while it was copied"));
  }
  return bytes;
}

template <class Call>
void end_now_or_wait(Call&& call) {
  Status status = call(false);
  if (status.code == Code::frozen) status = released([&] { return call(true); });
  check(status);
}

void bind_message(nb::module_& module) {
  nb::class_<PyMessage>(module, "Message", nb::type_slots(message_slots),
                        "A view of one message. Holds its slot until released, collected, or the port closes.")
      .def_prop_ro("meta", meta, "The packed scalar fields.")
      .def_prop_ro("key", key, nb::sig("def key(self) -> bytes | None"))
      .def_prop_ro("sequence", [](PyMessage& m) { return m.core->header.sequence; }, "The producer's own number.")
      .def_prop_ro("producer", [](PyMessage& m) { return m.core->fields.producer.port; })
      .def_prop_ro("producer_incarnation", [](PyMessage& m) { return m.core->fields.producer.incarnation; })
      .def_prop_ro("flow", [](PyMessage& m) { return m.core->header.flow; })
      .def_prop_ro("flow_seq", [](PyMessage& m) { return m.core->header.flow_seq; })
      .def_prop_ro("correlation", [](PyMessage& m) { return m.core->fields.correlation.id; })
      .def_prop_ro("reply_flow", [](PyMessage& m) { return m.core->fields.correlation.reply_flow; })
      .def_prop_ro("flags", [](PyMessage& m) { return m.core->header.flags & ~kFlagBare; })
      .def_prop_ro("redelivered", [](PyMessage& m) { return (m.core->header.flags & kFlagRedelivered) != 0; })
      .def_prop_ro("expires_ns", [](PyMessage& m) { return m.core->header.deadline_ns; }, "Absolute; 0 = never.")
      .def_prop_ro("type", [](PyMessage& m) { return m.core->header.type; })
      .def_prop_ro("generation", [](PyMessage& m) { return m.core->header.generation; })
      .def_prop_ro("payload_bytes", [](PyMessage& m) { return m.core->header.payload_bytes; })
      .def("tensor", tensor, "index"_a, "dtype"_a, "shape"_a,
           nb::sig("def tensor(self, index: int, dtype: str, shape: collections.abc.Sequence[int]) -> numpy.ndarray"),
           "Read-only array over the slot that keeps this message alive; `dtype` is numpy's name (bf16 as uint16).\n\n"
           "Raises NeedSegment, StaleHandleError when the generation does not hold or the message was released,\n"
           "PeerProtocolError when size and shape disagree, ClosedError after the port closed.")
      .def("copy_into", copy_into, "index"_a, "target"_a,
           nb::sig("def copy_into(self, index: int, target: typing.Any) -> int"),
           "Copy tensor `index` into a writable buffer, checking the generation before and after; returns bytes.")
      .def("ack", [](PyMessage& m) {
        end_now_or_wait([&](bool wait) { return m.receiver->ack(*m.core, wait); });
      }, "at_least_once: the message is delivered. Idempotent.")
      .def("nack", [](PyMessage& m, u32 reason) {
        check(released([&] { return m.receiver->nack(*m.core, static_cast<Reason>(reason)); }));
      }, "reason"_a, "at_least_once: the message failed with `reason`.")
      .def("release", [](PyMessage& m) {
        Status status = m.receiver->release(*m.core, false);
        if (status.code == Code::frozen) status = released([&] { return m.receiver->release(*m.core, true); });
        if (status.code != Code::closed) check(status);
      }, "Give the slot back: arrays over it are invalid from here. Idempotent; acknowledges nothing.");
}

}  // namespace

PyReceiver::PyReceiver(std::shared_ptr<Port> port, std::shared_ptr<ReceiverCore> receiver) {
  using Both = std::pair<std::shared_ptr<Port>, std::shared_ptr<ReceiverCore>>;  // the core goes first
  ReceiverCore* address = receiver.get();
  core = std::shared_ptr<ReceiverCore>(std::make_shared<Both>(std::move(port), std::move(receiver)), address);
}

void bind_receiver(nb::module_& module) {
  bind_message(module);
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
