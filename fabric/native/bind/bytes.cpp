// The ends of a channel of bytes: bases of the Python classes, whose calls come straight here.
//
// What is unusual (a routing policy, a long payload, an odd argument) goes on in Python: `_send`, `_send_many`,
// `_receive` of the class. An attempt is made with the interpreter's lock first, without it only to wait.
#include "bind/bytes.hpp"

#include <cstring>

#include "bind/bytes_message.hpp"
#include "bind/endpoints.hpp"
#include "core/clock.hpp"

namespace nb = nanobind;

namespace fabric {
namespace {

constexpr u64 kLater = ~u64{0};       ///< a deadline for attempts that do not wait

struct Limits { u64 default_ns; double seconds_max; };

struct SendingEnd {
  PyObject_HEAD
  std::shared_ptr<Port> port;
  std::shared_ptr<SenderCore> core;
  Limits limits;
  bool is_direct;                     ///< no routing policy, no deadline of the channel
};

struct ReceivingEnd {
  PyObject_HEAD
  std::shared_ptr<ReceiverCore> core;
  Limits limits;
};

/// Positional and named arguments in one order.
struct Arguments {
  PyObject* value[3] = {nullptr, nullptr, nullptr};
  /// False: not for these names; Python says what is wrong.
  bool take(PyObject* const* args, Py_ssize_t count, PyObject* names, const char* const (&known)[3]) {
    if (count > 3) return false;
    for (Py_ssize_t i = 0; i < count; ++i) value[i] = args[i];
    for (Py_ssize_t i = 0; names != nullptr && i < PyTuple_GET_SIZE(names); ++i) {
      int at = 0;
      while (at < 3 && (known[at] == nullptr || PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, i), known[at]) != 0)) ++at;
      if (at == 3 || value[at] != nullptr) return false;
      value[at] = args[count + i];
    }
    for (PyObject*& each : value) {
      if (each == Py_None) each = nullptr;
    }
    return true;
  }
};

// A timeout in seconds as an absolute deadline; false: Python says what is wrong with it.
bool deadline_of(PyObject* seconds, const Limits& limits, u64& out) {
  if (seconds == nullptr) {
    out = monotonic_ns() + limits.default_ns;
    return true;
  }
  double value = -1;
  if (PyFloat_Check(seconds)) value = PyFloat_AS_DOUBLE(seconds);
  else if (PyLong_Check(seconds) && !PyBool_Check(seconds)) value = PyLong_AsDouble(seconds);
  if (!(value >= 0 && value <= limits.seconds_max)) {
    PyErr_Clear();
    return false;
  }
  out = value == 0 ? 0 : monotonic_ns() + static_cast<u64>(value * 1e9);
  return true;
}

PyObject* python_call(PyObject* self, const char* name, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  PyObject* method = PyObject_GetAttrString(self, name);
  if (method == nullptr) return nullptr;
  PyObject* answer = PyObject_Vectorcall(method, args, static_cast<std::size_t>(count), names);
  Py_DECREF(method);
  return answer;
}

// Raises what `status` says; the channel is named by its name.
[[noreturn]] void raise_named(PyObject* self, const Status& status) {
  try {
    raise(status);
  } catch (nb::python_error& error) {
    if (status.code != Code::interrupted) nb::handle(self).attr("name_error")(error.value());
    throw;
  }
}

/// The bytes of one argument for the length of a call.
class Payload {
 public:
  Payload() = default;
  Payload(const Payload&) = delete;
  ~Payload() {
    if (held_) PyBuffer_Release(&view_);
  }
  /// False: not contiguous bytes, empty, or too long to go as meta.
  bool take(PyObject* object) {
    if (PyBytes_CheckExact(object)) {
      bytes_ = {reinterpret_cast<const u8*>(PyBytes_AS_STRING(object)), static_cast<std::size_t>(PyBytes_GET_SIZE(object))};
    } else {
      if (!PyObject_CheckBuffer(object)) return false;
      if (PyObject_GetBuffer(object, &view_, PyBUF_SIMPLE) != 0) {
        PyErr_Clear();
        return false;
      }
      held_ = true;
      bytes_ = {static_cast<const u8*>(view_.buf), static_cast<std::size_t>(view_.len)};
    }
    return !bytes_.empty() && bytes_.size() <= kPlainBytesMax;
  }
  std::span<const u8> bytes() const { return bytes_; }

 private:
  std::span<const u8> bytes_;
  Py_buffer view_;
  bool held_ = false;
};

bool set_key(SendRequest& request, PyObject* key) {
  if (key == nullptr) return true;
  if (!PyBytes_CheckExact(key) || PyBytes_GET_SIZE(key) > static_cast<Py_ssize_t>(kKeyBytesMax)) return false;
  request.key = {reinterpret_cast<const u8*>(PyBytes_AS_STRING(key)), static_cast<std::size_t>(PyBytes_GET_SIZE(key))};
  request.has_key = true;
  return true;
}

PyObject* send(PyObject* object, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  return guarded([&]() -> PyObject* {
    auto* self = reinterpret_cast<SendingEnd*>(object);
    Arguments given;
    Payload payload;
    SendRequest request;
    u64 deadline_ns = kLater, number = 0;
    const bool direct = self->is_direct && given.take(args, count, names, {"message", "key", "deadline"}) &&
                        given.value[0] != nullptr && payload.take(given.value[0]) && set_key(request, given.value[1]) &&
                        (given.value[2] == nullptr || deadline_of(given.value[2], self->limits, deadline_ns));
    if (!direct) return python_call(object, "_send", args, count, names);
    if (given.value[2] != nullptr) request.expires_ns = deadline_ns;
    request.meta = payload.bytes();
    Status status = self->core->send(request, deadline_ns, false, number);
    if (status.code == Code::frozen || (status.code == Code::would_block && deadline_ns != 0)) {
      if (deadline_ns == kLater) deadline_of(nullptr, self->limits, deadline_ns);
      status = released([&] { return self->core->send(request, deadline_ns, true, number); });
    }
    if (!status.ok()) raise_named(object, status);
    return PyLong_FromUnsignedLongLong(number);
  });
}

/// Messages of a batch; kept for reuse by one thread.
struct Requests {
  std::vector<SendRequest> list;
  Buffers buffers;
};

// False: Python sends them, one of them is none that could go here.
bool gather(PyObject* messages, Requests& out) {
  const Py_ssize_t count = PyTuple_GET_SIZE(messages);
  out.list.resize(static_cast<std::size_t>(count));
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* each = PyTuple_GET_ITEM(messages, i);
    SendRequest& request = out.list[static_cast<std::size_t>(i)];
    if (PyBytes_CheckExact(each)) {
      request.meta = {reinterpret_cast<const u8*>(PyBytes_AS_STRING(each)), static_cast<std::size_t>(PyBytes_GET_SIZE(each))};
    } else {
      if (!PyObject_CheckBuffer(each)) return false;
      try {
        out.buffers.add(each);
      } catch (nb::python_error&) {
        return false;
      }
      const Piece& piece = out.buffers.pieces().back();
      request.meta = {piece.data, piece.bytes};
    }
    if (request.meta.empty() || request.meta.size() > kPlainBytesMax) return false;
  }
  return true;
}

// As many as are accepted before the deadline; an error is raised only when nothing was, or a signal came.
u64 send_all(PyObject* object, SenderCore& core, std::span<const SendRequest> requests, u64 deadline_ns) {
  u64 done = 0;
  for (bool may_wait = false; done < requests.size();) {
    u64 accepted = 0;
    const auto rest = requests.subspan(done);
    const Status status = may_wait ? released([&] { return core.send_many(rest, deadline_ns, true, accepted); })
                                   : core.send_many(rest, deadline_ns, false, accepted);
    done += accepted;
    if (status.ok()) continue;
    const bool waits = !may_wait && (status.code == Code::frozen || (status.code == Code::would_block && deadline_ns != 0));
    if (waits) {
      may_wait = true;
      continue;
    }
    if (status.code == Code::interrupted) raise(status);
    if (accepted != 0 && monotonic_ns() < deadline_ns) continue;
    const bool full = status.code == Code::deadline || status.code == Code::would_block || status.code == Code::rejected;
    if (done == 0 || (accepted == 0 && !full)) raise_named(object, status);
    break;
  }
  return done;
}

PyObject* send_many(PyObject* object, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  return guarded([&]() -> PyObject* {
    auto* self = reinterpret_cast<SendingEnd*>(object);
    Arguments given;
    Requests requests;
    u64 deadline_ns = 0;
    const bool direct = self->is_direct && given.take(args, count, names, {"messages", "keys", "deadline"}) &&
                        given.value[0] != nullptr && (PyList_CheckExact(given.value[0]) || PyTuple_CheckExact(given.value[0])) &&
                        given.value[1] == nullptr && deadline_of(given.value[2], self->limits, deadline_ns);
    nb::object messages;              // a list may change while the lock is away
    if (direct) messages = nb::steal(PySequence_Tuple(given.value[0]));
    if (direct && !messages.is_valid()) throw nb::python_error();
    if (!direct || !gather(messages.ptr(), requests)) return python_call(object, "_send_many", args, count, names);
    if (given.value[2] != nullptr) {
      for (SendRequest& request : requests.list) request.expires_ns = deadline_ns;
    }
    return PyLong_FromUnsignedLongLong(send_all(object, *self->core, requests.list, deadline_ns));
  });
}

// ------------------------------------------------------------------ receiving
// A native message as its view; one that is no message of this type ends as failed(corrupted).
PyObject* view_of(PyObject* object, ReceiverCore& receiver, MessageCore* core) {
  const u8* data = nullptr;
  u64 bytes = 0;
  Status status;
  try {
    for (;;) {
      status = find_bytes(receiver, *core, data, bytes);
      if (status.code != Code::need_segment) break;
      nb::object provide = nb::handle(object).attr("provide");
      provide_segment(provide.ptr(), status);
    }
    if (status.code == Code::protocol) {
      (void)released([&] { return receiver.nack(*core, Reason::corrupted); });
    }
    if (!status.ok()) raise_named(object, status);
  } catch (...) {
    receiver.collect(core);
    throw;
  }
  return make_bytes_message(object, receiver, core, data, bytes);
}

// Waits with the lock given away when nothing is there. False: the timeout is none.
template <class Attempt>
bool attempt(PyObject* object, PyObject* timeout, const Limits& limits, Attempt&& receive) {
  u64 deadline_ns = kLater;
  if (timeout != nullptr && !deadline_of(timeout, limits, deadline_ns)) return false;
  Status status = receive(deadline_ns, false);
  if (status.code == Code::would_block || status.code == Code::frozen) {
    if (deadline_ns == kLater) deadline_of(nullptr, limits, deadline_ns);
    status = released([&] { return receive(deadline_ns, true); });
  }
  if (!status.ok()) raise_named(object, status);
  return true;
}

PyObject* receive(PyObject* object, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  return guarded([&]() -> PyObject* {
    auto* self = reinterpret_cast<ReceivingEnd*>(object);
    Arguments given;
    MessageCore* core = nullptr;
    const bool direct = given.take(args, count, names, {"timeout", nullptr, nullptr}) && count <= 1 &&
                        attempt(object, given.value[0], self->limits, [&](u64 deadline_ns, bool may_wait) {
                          return self->core->receive_one(deadline_ns, may_wait, core);
                        });
    if (!direct) return python_call(object, "_receive", args, count, names);
    if (core == nullptr) Py_RETURN_NONE;
    return view_of(object, *self->core, core);
  });
}

PyObject* bytes_of(PyObject* object, ReceivingEnd* self, MessageCore* core) {
  nb::object view = nb::steal(view_of(object, *self->core, core));
  if (!view.is_valid()) throw nb::python_error();
  nb::object copy = nb::steal(PyBytes_FromObject(view.ptr()));
  if (!copy.is_valid()) throw nb::python_error();
  Status status = self->core->ack(*core, false);
  if (status.code == Code::frozen) status = released([&] { return self->core->ack(*core, true); });
  if (!status.ok()) raise_named(object, status);
  return copy.release().ptr();
}

/// Room for copies, taken from the thread and given back, so that a call allocates nothing; nested calls have their own.
class CopyRoom {
 public:
  CopyRoom() : plain(std::move(kept())) {}
  ~CopyRoom() {
    if (plain.bytes.capacity() <= kKeptBytesMax) kept() = std::move(plain);
  }
  CopyRoom(const CopyRoom&) = delete;
  PlainCopies plain;

 private:
  static constexpr std::size_t kKeptBytesMax = 1 << 20;
  static PlainCopies& kept() {
    thread_local PlainCopies room;
    return room;
  }
};

PyObject* receive_bytes(PyObject* object, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  return guarded([&]() -> PyObject* {
    auto* self = reinterpret_cast<ReceivingEnd*>(object);
    Arguments given;
    CopyRoom room;
    const bool direct = given.take(args, count, names, {"timeout", nullptr, nullptr}) && count <= 1 &&
                        attempt(object, given.value[0], self->limits, [&](u64 deadline_ns, bool may_wait) {
                          return self->core->receive_plain(1, deadline_ns, may_wait, room.plain);
                        });
    if (!direct) return python_call(object, "_receive", args, count, names);
    if (room.plain.other != nullptr) return bytes_of(object, self, room.plain.other);
    if (room.plain.sizes.empty()) Py_RETURN_NONE;
    return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(room.plain.bytes.data()), room.plain.sizes[0]);
  });
}

// How many a call may ask for; 0: Python says what is wrong.
u64 count_of(PyObject* given) {
  if (given == nullptr || !PyLong_CheckExact(given)) return 0;
  const long count = PyLong_AsLong(given);
  PyErr_Clear();
  return count >= 1 && count <= static_cast<long>(kHeldPerPort) ? static_cast<u64>(count) : 0;
}

PyObject* receive_many(PyObject* object, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  return guarded([&]() -> PyObject* {
    auto* self = reinterpret_cast<ReceivingEnd*>(object);
    Arguments given;
    std::vector<MessageCore*> cores;
    u64 wanted = 0;
    const bool direct = given.take(args, count, names, {"count", "timeout", nullptr}) && count <= 2 &&
                        (wanted = count_of(given.value[0])) != 0 &&
                        attempt(object, given.value[1], self->limits, [&](u64 deadline_ns, bool may_wait) {
                          return self->core->receive(wanted, deadline_ns, may_wait, cores);
                        });
    if (!direct) return python_call(object, "_receive_many", args, count, names);
    nb::list out;
    std::size_t at = 0;
    try {
      for (; at < cores.size(); ++at) {
        nb::object view = nb::steal(view_of(object, *self->core, cores[at]));
        if (!view.is_valid()) throw nb::python_error();
        out.append(view);
      }
    } catch (...) {  // the one that failed was given back
      while (++at < cores.size()) self->core->collect(cores[at]);
      throw;
    }
    return out.release().ptr();
  });
}

PyObject* receive_many_bytes(PyObject* object, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  return guarded([&]() -> PyObject* {
    auto* self = reinterpret_cast<ReceivingEnd*>(object);
    Arguments given;
    CopyRoom room;
    u64 wanted = 0;
    const bool direct = given.take(args, count, names, {"count", "timeout", nullptr}) && count <= 2 &&
                        (wanted = count_of(given.value[0])) != 0 &&
                        attempt(object, given.value[1], self->limits, [&](u64 deadline_ns, bool may_wait) {
                          return self->core->receive_plain(wanted, deadline_ns, may_wait, room.plain);
                        });
    if (!direct) return python_call(object, "_receive_many", args, count, names);
    const PlainCopies& plain = room.plain;
    const bool is_other = plain.other != nullptr;
    nb::object out = nb::steal(PyList_New(static_cast<Py_ssize_t>(is_other ? 1 : plain.sizes.size())));
    if (!out.is_valid()) throw nb::python_error();
    const char* from = reinterpret_cast<const char*>(plain.bytes.data());
    for (std::size_t i = 0; !is_other && i < plain.sizes.size(); ++i) {
      PyObject* item = PyBytes_FromStringAndSize(from, plain.sizes[i]);
      if (item == nullptr) throw nb::python_error();
      PyList_SET_ITEM(out.ptr(), static_cast<Py_ssize_t>(i), item);
      from += plain.sizes[i];
    }
    if (is_other) PyList_SET_ITEM(out.ptr(), 0, bytes_of(object, self, plain.other));
    return out.release().ptr();
  });
}

// ------------------------------------------------------------------ the types
// bind(native, default_ns, seconds_max): before anything else; called once, by the class that is made of this base.
PyObject* bind_sending(PyObject* object, PyObject* args) {
  auto* self = reinterpret_cast<SendingEnd*>(object);
  PyObject* native = nullptr;
  unsigned long long default_ns = 0;
  double seconds_max = 0;
  if (!PyArg_ParseTuple(args, "OKd", &native, &default_ns, &seconds_max)) return nullptr;
  return guarded([&]() -> PyObject* {
    const auto& sender = nb::cast<PySender&>(nb::handle(native));
    self->port = sender.port;
    self->core = sender.core;
    self->limits = {default_ns, seconds_max};
    Py_RETURN_NONE;
  });
}

PyObject* bind_receiving(PyObject* object, PyObject* args) {
  auto* self = reinterpret_cast<ReceivingEnd*>(object);
  PyObject* native = nullptr;
  unsigned long long default_ns = 0;
  double seconds_max = 0;
  if (!PyArg_ParseTuple(args, "OKd", &native, &default_ns, &seconds_max)) return nullptr;
  return guarded([&]() -> PyObject* {
    self->core = nb::cast<PyReceiver&>(nb::handle(native)).core;
    self->limits = {default_ns, seconds_max};
    Py_RETURN_NONE;
  });
}

PyObject* set_direct(PyObject* object, PyObject* value) {
  reinterpret_cast<SendingEnd*>(object)->is_direct = PyObject_IsTrue(value) == 1;
  Py_RETURN_NONE;
}

template <class End>
PyObject* make(PyTypeObject* type, PyObject*, PyObject*) {
  PyObject* object = type->tp_alloc(type, 0);
  if (object == nullptr) return nullptr;
  auto* end = reinterpret_cast<End*>(object);
  new (&end->core) decltype(end->core)();
  if constexpr (requires { end->port; }) new (&end->port) decltype(end->port)();
  return object;
}

template <class Pointer>
void destroy(Pointer& pointer) { pointer.~Pointer(); }

template <class End>
void unmake(PyObject* object) {
  auto* end = reinterpret_cast<End*>(object);
  destroy(end->core);                 // before its port
  if constexpr (requires { end->port; }) destroy(end->port);
  PyTypeObject* type = Py_TYPE(object);
  type->tp_free(object);
  Py_DECREF(type);
}

using Fast = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t, PyObject*);
PyCFunction fast(Fast call) { return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(call)); }
constexpr int kFastCall = METH_FASTCALL | METH_KEYWORDS;

PyMethodDef sending_methods[] = {
    {"send", fast(send), kFastCall,
     "send($self, message, key=None, deadline=None)\n--\n\nSend a copy of a bytes-like object; returns its sequence. See fabric.Sender.send."},
    {"send_many", fast(send_many), kFastCall,
     "send_many($self, messages, keys=None, deadline=None)\n--\n\nSend several in order with one doorbell; how many were accepted. See fabric.Sender.send_many."},
    {"_bind", bind_sending, METH_VARARGS, nullptr},
    {"_set_direct", set_direct, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr}};

PyMethodDef receiving_methods[] = {
    {"receive", fast(receive), kFastCall,
     "receive($self, timeout=None)\n--\n\nThe next message as a view (BytesMessage), or None at the timeout. See fabric.Receiver.receive."},
    {"receive_many", fast(receive_many), kFastCall,
     "receive_many($self, count, timeout=None)\n--\n\nUp to `count` messages, waiting for the first only. See fabric.Receiver.receive_many."},
    {"receive_bytes", fast(receive_bytes), kFastCall,
     "receive_bytes($self, timeout=None)\n--\n\nThe next message as bytes, acknowledged; None at the timeout."},
    {"receive_many_bytes", fast(receive_many_bytes), kFastCall,
     "receive_many_bytes($self, count, timeout=None)\n--\n\nUp to `count` messages as bytes, acknowledged; waits for the first only. One that lies in a slot comes alone."},
    {"_bind", bind_receiving, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot sending_slots[] = {{Py_tp_doc, const_cast<char*>("Base of the sending end of a channel of bytes. Thread-safe.")},
                               {Py_tp_new, reinterpret_cast<void*>(make<SendingEnd>)},
                               {Py_tp_dealloc, reinterpret_cast<void*>(unmake<SendingEnd>)},
                               {Py_tp_methods, sending_methods},
                               {0, nullptr}};
PyType_Slot receiving_slots[] = {{Py_tp_doc, const_cast<char*>("Base of the receiving end of a channel of bytes. Thread-safe.")},
                                 {Py_tp_new, reinterpret_cast<void*>(make<ReceivingEnd>)},
                                 {Py_tp_dealloc, reinterpret_cast<void*>(unmake<ReceivingEnd>)},
                                 {Py_tp_methods, receiving_methods},
                                 {0, nullptr}};
PyType_Spec sending_spec{"fabric._native.SendingEnd", sizeof(SendingEnd), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, sending_slots};
PyType_Spec receiving_spec{"fabric._native.ReceivingEnd", sizeof(ReceivingEnd), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, receiving_slots};

void add_type(nb::module_& module, const char* name, PyType_Spec& spec) {
  PyObject* type = PyType_FromSpec(&spec);
  if (type == nullptr) throw nb::python_error();
  module.attr(name) = nb::steal(type);
}

}  // namespace

void bind_bytes(nb::module_& module) {
  bind_bytes_message(module);
  add_type(module, "SendingEnd", sending_spec);
  add_type(module, "ReceivingEnd", receiving_spec);
}

}  // namespace fabric
