// BytesMessage: buffer protocol, length, acknowledgement.
#include "bind/bytes_message.hpp"

#include <cstring>

#include "bind/endpoints.hpp"
#include "bind/message.hpp"

namespace nb = nanobind;

namespace fabric {
namespace {

struct BytesMessage {
  PyObject_HEAD
  PyObject* owner;                    ///< keeps `receiver`; a native Message where that owns the core
  ReceiverCore* receiver;
  MessageCore* core;
  const u8* data;
  u64 bytes;
  bool owns;                          ///< the core is collected with this object
};

PyTypeObject* type = nullptr;

BytesMessage* self_of(PyObject* self) { return reinterpret_cast<BytesMessage*>(self); }

void finalize(PyObject* object) {
  BytesMessage* self = self_of(object);
  if (self->owns) self->receiver->collect(self->core);
  PyObject* owner = self->owner;
  PyTypeObject* own_type = Py_TYPE(object);
  PyObject_Free(object);
  Py_XDECREF(owner);
  Py_DECREF(own_type);
}

int get_buffer(PyObject* object, Py_buffer* view, int flags) {
  BytesMessage* self = self_of(object);
  const bool readable = self->core->segments.empty() || self->core->slots_held;
  if (!readable) {
    guarded([&]() -> PyObject* { raise(Status::fail(Code::stale, "the message was released")); });
    return -1;
  }
  return PyBuffer_FillInfo(view, object, const_cast<u8*>(self->data), static_cast<Py_ssize_t>(self->bytes), 1, flags);
}

Py_ssize_t length(PyObject* self) { return static_cast<Py_ssize_t>(self_of(self)->bytes); }

PyObject* ack(PyObject* self, PyObject*) {
  return guarded([&]() -> PyObject* {
    BytesMessage* m = self_of(self);
    now_or_wait([&](bool may_wait) { return m->receiver->ack(*m->core, may_wait); });
    Py_RETURN_NONE;
  });
}

// Like the nack of any message: no effect on one that has ended.
PyObject* nack(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  return guarded([&]() -> PyObject* {
    const Py_ssize_t named = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
    if (count + named > 1 || (named == 1 && PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "reason") != 0)) {
      throw nb::type_error("nack(reason=5) takes one reason");
    }
    long reason = static_cast<long>(Reason::consumer_error);
    if (count + named == 1) reason = PyLong_CheckExact(args[0]) ? PyLong_AsLong(args[0]) : 0;
    if (reason <= 0 || reason >= static_cast<long>(Reason::count)) {
      PyErr_Clear();
      const std::string text = "nack for a reason that is none: reasons are 1 to " + std::to_string(static_cast<int>(Reason::count) - 1);
      nb::object error = nb::module_::import_("fabric.errors").attr("ConfigError")(text.c_str());
      PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
      throw nb::python_error();
    }
    BytesMessage* m = self_of(self);
    const Status status = released([&] { return m->receiver->nack(*m->core, static_cast<Reason>(reason)); });
    if (status.code != Code::invalid) check(status);
    Py_RETURN_NONE;
  });
}

PyObject* release(PyObject* self, PyObject*) {
  return guarded([&]() -> PyObject* {
    BytesMessage* m = self_of(self);
    Status status = m->receiver->release(*m->core, false);
    if (status.code == Code::frozen) status = released([&] { return m->receiver->release(*m->core, true); });
    if (status.code != Code::closed) check(status);
    Py_RETURN_NONE;
  });
}

PyObject* enter(PyObject* self, PyObject*) { return Py_NewRef(self); }
PyObject* leave(PyObject* self, PyObject* const*, Py_ssize_t) { return release(self, nullptr); }

PyObject* key(PyObject* self, void*) {
  const RecordFields& fields = self_of(self)->core->fields;
  if (!fields.has_key) Py_RETURN_NONE;
  return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(fields.key.data()),
                                   static_cast<Py_ssize_t>(fields.key.size()));
}

PyObject* header(PyObject* object, void*) {
  return guarded([&]() -> PyObject* {
    const RecordHeader& h = self_of(object)->core->header;
    const RecordFields& fields = self_of(object)->core->fields;
    nb::object key_bytes = nb::steal(key(object, nullptr));
    if (!key_bytes.is_valid()) throw nb::python_error();
    return nb::module_::import_("fabric.messages.view").attr("MessageHeader")(
        key_bytes, h.sequence, fields.producer.port, fields.producer.incarnation, (h.flags & kFlagRedelivered) != 0,
        h.deadline_ns, h.payload_bytes, fields.correlation.id).release().ptr();
  });
}

PyObject* to_bytes(PyObject* self, PyObject*) { return PyBytes_FromObject(self); }

PyObject* compare(PyObject* self, PyObject* other, int operation) {
  if ((operation != Py_EQ && operation != Py_NE) || !PyObject_CheckBuffer(other)) Py_RETURN_NOTIMPLEMENTED;
  PyObject* ours = PyMemoryView_FromObject(self);
  PyObject* theirs = ours != nullptr ? PyMemoryView_FromObject(other) : nullptr;
  PyObject* answer = theirs != nullptr ? PyObject_RichCompare(ours, theirs, operation) : nullptr;
  Py_XDECREF(ours);
  Py_XDECREF(theirs);
  return answer;
}

PyObject* show(PyObject* self) {
  return PyUnicode_FromFormat("<fabric message of %zd bytes>", length(self));
}

PyObject* number(u64 value) { return PyLong_FromUnsignedLongLong(value); }

// What native endpoints know of a message: itself, or the Message that holds it.
PyObject* native(PyObject* self, void*) { return Py_NewRef(self_of(self)->owns ? self : self_of(self)->owner); }

template <class Read>
PyObject* read_core(PyObject* self, Read read) { return number(read(*self_of(self)->core)); }

PyGetSetDef properties[] = {
    {"header", header, nullptr, "Key, sequence, producer and the rest of the envelope.", nullptr},
    {"key", key, nullptr, "Of the message, or None.", nullptr},
    {"sequence", [](PyObject* s, void*) { return read_core(s, [](auto& c) { return c.header.sequence; }); }, nullptr, "The producer's own number.", nullptr},
    {"producer", [](PyObject* s, void*) { return read_core(s, [](auto& c) { return c.fields.producer.port; }); }, nullptr, nullptr, nullptr},
    {"producer_incarnation", [](PyObject* s, void*) { return read_core(s, [](auto& c) { return c.fields.producer.incarnation; }); }, nullptr, nullptr, nullptr},
    {"redelivered", [](PyObject* s, void*) { return PyBool_FromLong((self_of(s)->core->header.flags & kFlagRedelivered) != 0); }, nullptr, nullptr, nullptr},
    {"expires_ns", [](PyObject* s, void*) { return read_core(s, [](auto& c) { return c.header.deadline_ns; }); }, nullptr, "Absolute; 0 = never.", nullptr},
    {"payload_bytes", [](PyObject* s, void*) { return read_core(s, [](auto& c) { return c.header.payload_bytes; }); }, nullptr, nullptr, nullptr},
    {"correlation", [](PyObject* s, void*) { return read_core(s, [](auto& c) { return c.fields.correlation.id; }); }, nullptr, nullptr, nullptr},
    {"_native", native, nullptr, nullptr, nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};

PyMethodDef methods[] = {
    {"ack", ack, METH_NOARGS, "at_least_once: the message is delivered. Idempotent."},
    {"nack", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(nack)), METH_FASTCALL | METH_KEYWORDS,
     "at_least_once: the message failed with `reason`, by default consumer_error. No effect on one that has ended."},
    {"release", release, METH_NOARGS, "Give the slot back, if it has one: buffers over it are invalid from here. Idempotent."},
    {"tobytes", to_bytes, METH_NOARGS, "A copy."},
    {"__enter__", enter, METH_NOARGS, nullptr},
    {"__exit__", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(leave)), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};

// BytesMessage(message, provide): over a native Message, which stays its owner; calls provide(need) for what is not mapped.
PyObject* construct(PyTypeObject*, PyObject* args, PyObject*) {
  PyObject *message = nullptr, *provide = nullptr;
  if (!PyArg_ParseTuple(args, "OO", &message, &provide)) return nullptr;
  return guarded([&]() -> PyObject* {
    const Message* native = as_message(message);
    if (native == nullptr) throw nb::type_error("BytesMessage(message, provide) is made over a Message");
    const u8* data = nullptr;
    u64 bytes = 0;
    for (;;) {
      Status status = find_bytes(*native->receiver, *native->core, data, bytes);
      if (status.ok()) break;
      if (status.code != Code::need_segment) raise(status);
      provide_segment(provide, status);
    }
    PyObject* made = make_bytes_message(message, *native->receiver, native->core, data, bytes);
    if (made != nullptr) self_of(made)->owns = false;
    return made;
  });
}

PyType_Slot slots[] = {
    {Py_tp_doc, const_cast<char*>("A received message that is its bytes: buffer protocol, len(), bytes(), == bytes.\n\n"
                                  "Holds its slot, if it has one, until released or collected.")},
    {Py_tp_new, reinterpret_cast<void*>(construct)},
    {Py_tp_dealloc, reinterpret_cast<void*>(finalize)},
    {Py_tp_methods, methods},
    {Py_tp_getset, properties},
    {Py_tp_richcompare, reinterpret_cast<void*>(compare)},
    {Py_tp_hash, reinterpret_cast<void*>(PyObject_HashNotImplemented)},
    {Py_tp_repr, reinterpret_cast<void*>(show)},
    {Py_sq_length, reinterpret_cast<void*>(length)},
    {Py_bf_getbuffer, reinterpret_cast<void*>(get_buffer)},
    {0, nullptr}};

PyType_Spec spec{"fabric._native.BytesMessage", sizeof(BytesMessage), 0, Py_TPFLAGS_DEFAULT, slots};

}  // namespace

Status find_bytes(ReceiverCore& receiver, MessageCore& message, const u8*& data, u64& bytes) {
  if (const auto plain = plain_meta(message)) {
    data = plain->data();
    bytes = plain->size();
    return Status::success();
  }
  const u8* meta = nullptr;
  u64 meta_bytes = 0;
  Status status = receiver.meta(message, meta, meta_bytes);
  if (!status.ok()) return status;
  if (meta_bytes != 1 || *meta != kBytesTag) return Status::fail(Code::protocol, "it is no message of bytes");
  return receiver.tensor(message, 0, data, bytes);
}

PyObject* make_bytes_message(PyObject* owner, ReceiverCore& receiver, MessageCore* core, const u8* data, u64 bytes) {
  auto* self = PyObject_New(BytesMessage, type);
  if (self == nullptr) {
    receiver.collect(core);
    return nullptr;
  }
  self->owner = Py_NewRef(owner);
  self->receiver = &receiver;
  self->core = core;
  self->data = data;
  self->bytes = bytes;
  self->owns = true;
  return reinterpret_cast<PyObject*>(self);
}

void provide_segment(PyObject* provide, const Status& status) {
  try {
    raise(status);
  } catch (nb::python_error& need) {
    const nb::handle call(provide);
    call(need.value());
  }
}

void bind_bytes_message(nb::module_& module) {
  type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  if (type == nullptr) throw nb::python_error();
  module.attr("BytesMessage") = nb::handle(reinterpret_cast<PyObject*>(type));
}

}  // namespace fabric
