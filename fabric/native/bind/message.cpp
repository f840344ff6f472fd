// Message: envelope, tensors, acknowledgement.
#include "bind/message.hpp"

#include <algorithm>
#include <cstring>

#include "bind/arrays.hpp"
#include "bind/bytes_message.hpp"
#include "bind/ends_common.hpp"

namespace nb = nanobind;

namespace fabric {
namespace {

using namespace ends;

constexpr u64 kCopyWithoutGilBytes = 32 * 1024;

PyTypeObject* type = nullptr;

Message& self_of(PyObject* object) { return *reinterpret_cast<Message*>(object); }

void finalize(PyObject* object) {
  Message& self = self_of(object);
  self.receiver->collect(self.core);
  PyObject* owner = self.owner;
  PyTypeObject* own_type = Py_TYPE(object);
  PyObject_Free(object);
  Py_DECREF(owner);
  Py_DECREF(own_type);
}

// ------------------------------------------------------------------ tensors
u32 small_number(PyObject* given) {
  if (given == nullptr || !PyLong_Check(given)) throw nb::type_error("give a number");
  const unsigned long number = PyLong_AsUnsignedLong(given);
  if (PyErr_Occurred() != nullptr) throw nb::python_error();
  return static_cast<u32>(std::min<unsigned long>(number, ~u32{0}));
}

PyObject* tensor(PyObject* object, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  return guarded([&]() -> PyObject* {
    Arguments given;
    if (!given.take(args, count, names, {"index", "dtype", "shape"}) || given.value[1] == nullptr || given.value[2] == nullptr) {
      throw nb::type_error("tensor(index, dtype, shape) takes just these");
    }
    const Message& self = self_of(object);
    Piece piece{};
    check(self.receiver->tensor(*self.core, small_number(given.value[0]), piece.data, piece.bytes));
    return array_over(object, piece, given.value[1], given.value[2]).release().ptr();
  });
}

PyObject* copy_into(PyObject* object, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  return guarded([&]() -> PyObject* {
    Arguments given;
    if (!given.take(args, count, names, {"index", "target", nullptr}) || given.value[1] == nullptr) {
      throw nb::type_error("copy_into(index, target) takes just these");
    }
    const Message& self = self_of(object);
    Piece piece{};
    check(self.receiver->tensor(*self.core, small_number(given.value[0]), piece.data, piece.bytes));
    Py_buffer view;
    if (PyObject_GetBuffer(given.value[1], &view, PyBUF_WRITABLE | PyBUF_SIMPLE) != 0) throw nb::python_error();
    const u64 room = static_cast<u64>(view.len);
    const bool fits = room >= piece.bytes;
    if (fits && piece.bytes > kCopyWithoutGilBytes) {
      bind::ReleasedGil unlocked;
      std::memcpy(view.buf, piece.data, piece.bytes);
    } else if (fits && piece.bytes != 0) {
      std::memcpy(view.buf, piece.data, piece.bytes);
    }
    PyBuffer_Release(&view);
    if (!fits) {
      check(Status::fail(Code::invalid, "tensor has " + std::to_string(piece.bytes) + " bytes, the target " + std::to_string(room)));
    }
    if (!self.receiver->holds(*self.core)) {
      check(Status::fail(Code::stale, "the slot was given to another message while it was copied"));
    }
    return PyLong_FromUnsignedLongLong(piece.bytes);
  });
}

// ------------------------------------------------------------------ ends
PyObject* ack(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    const Message& self = self_of(object);
    now_or_wait([&](bool may_wait) { return self.receiver->ack(*self.core, may_wait); });
    Py_RETURN_NONE;
  });
}

PyObject* nack(PyObject* object, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  return guarded([&]() -> PyObject* {
    Arguments given;
    if (!given.take(args, count, names, {"reason", nullptr, nullptr}) || given.value[0] == nullptr) {
      throw nb::type_error("nack(reason) takes one reason");
    }
    const u32 reason = std::min<u32>(small_number(given.value[0]), static_cast<u32>(Reason::count));
    const Message& self = self_of(object);
    check(released([&] { return self.receiver->nack(*self.core, static_cast<Reason>(reason)); }));
    Py_RETURN_NONE;
  });
}

PyObject* release(PyObject* object, PyObject*) {
  return guarded([&]() -> PyObject* {
    const Message& self = self_of(object);
    Status status = self.receiver->release(*self.core, false);
    if (status.code == Code::frozen) status = released([&] { return self.receiver->release(*self.core, true); });
    if (status.code != Code::closed) check(status);
    Py_RETURN_NONE;
  });
}

// ------------------------------------------------------------------ the envelope
PyObject* meta(PyObject* object, void*) {
  return guarded([&]() -> PyObject* {
    const Message& self = self_of(object);
    const u8* data = nullptr;
    u64 bytes = 0;
    check(self.receiver->meta(*self.core, data, bytes));
    return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(data), static_cast<Py_ssize_t>(bytes));
  });
}

PyObject* key(PyObject* object, void*) {
  const RecordFields& fields = self_of(object).core->fields;
  if (!fields.has_key) Py_RETURN_NONE;
  return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(fields.key.data()),
                                   static_cast<Py_ssize_t>(fields.key.size()));
}

PyObject* redelivered(PyObject* object, void*) {
  return PyBool_FromLong((self_of(object).core->header.flags & kFlagRedelivered) != 0);
}

template <auto Read>
PyObject* number(PyObject* object, void*) {
  return PyLong_FromUnsignedLongLong(Read(*self_of(object).core));
}

using Core = const MessageCore;
PyGetSetDef properties[] = {
    {"meta", meta, nullptr, "The packed scalar fields.", nullptr},
    {"key", key, nullptr, nullptr, nullptr},
    {"sequence", number<[](Core& c) { return c.header.sequence; }>, nullptr, "The producer's own number.", nullptr},
    {"producer", number<[](Core& c) { return c.fields.producer.port; }>, nullptr, nullptr, nullptr},
    {"producer_incarnation", number<[](Core& c) { return c.fields.producer.incarnation; }>, nullptr, nullptr, nullptr},
    {"flow", number<[](Core& c) { return c.header.flow; }>, nullptr, nullptr, nullptr},
    {"flow_seq", number<[](Core& c) { return c.header.flow_seq; }>, nullptr, nullptr, nullptr},
    {"correlation", number<[](Core& c) { return c.fields.correlation.id; }>, nullptr, nullptr, nullptr},
    {"reply_flow", number<[](Core& c) { return c.fields.correlation.reply_flow; }>, nullptr, nullptr, nullptr},
    {"flags", number<[](Core& c) { return c.header.flags & ~kFlagBare; }>, nullptr, nullptr, nullptr},
    {"redelivered", redelivered, nullptr, nullptr, nullptr},
    {"expires_ns", number<[](Core& c) { return c.header.deadline_ns; }>, nullptr, "Absolute; 0 = never.", nullptr},
    {"type", number<[](Core& c) { return c.header.type; }>, nullptr, nullptr, nullptr},
    {"generation", number<[](Core& c) { return c.header.generation; }>, nullptr, nullptr, nullptr},
    {"payload_bytes", number<[](Core& c) { return c.header.payload_bytes; }>, nullptr, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyMethodDef methods[] = {
    {"tensor", fast(tensor), kFastCall,
     "Read-only array over the slot that keeps this message alive; `dtype` is numpy's name (bf16 as uint16).\n\n"
     "Raises NeedSegment, StaleHandleError when the generation does not hold or the message was released,\n"
     "PeerProtocolError when size and shape disagree, ClosedError after the port closed."},
    {"copy_into", fast(copy_into), kFastCall,
     "Copy tensor `index` into a writable buffer, checking the generation before and after; returns bytes."},
    {"ack", ack, METH_NOARGS, "at_least_once: the message is delivered. Idempotent."},
    {"nack", fast(nack), kFastCall, "at_least_once: the message failed with `reason`."},
    {"release", release, METH_NOARGS,
     "Give the slot back: arrays over it are invalid from here. Idempotent; acknowledges nothing."},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot slots[] = {
    {Py_tp_doc, const_cast<char*>("A view of one message. Holds its slot until released, collected, or the port closes.")},
    {Py_tp_dealloc, reinterpret_cast<void*>(finalize)},
    {Py_tp_methods, methods},
    {Py_tp_getset, properties},
    {0, nullptr}};

PyType_Spec spec{"fabric._native.Message", sizeof(Message), 0,
                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};

}  // namespace

PyObject* make_message(PyObject* owner, ReceiverCore& receiver, MessageCore* core) {
  auto* self = PyObject_New(Message, type);
  if (self == nullptr) {
    receiver.collect(core);
    return nullptr;
  }
  self->owner = Py_NewRef(owner);
  self->receiver = &receiver;
  self->core = core;
  return reinterpret_cast<PyObject*>(self);
}

Message* as_message(PyObject* object) {
  return Py_IS_TYPE(object, type) ? reinterpret_cast<Message*>(object) : nullptr;
}

void bind_message(nb::module_& module) {
  type = reinterpret_cast<PyTypeObject*>(add_type(module, "Message", spec).release().ptr());
}

}  // namespace fabric
