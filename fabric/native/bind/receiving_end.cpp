// ReceivingEnd and BytesReceivingEnd: the native bases of receivers, whose calls come straight here.
//
// An attempt is made with the interpreter's lock first, without it only to wait. What is unusual goes on in Python:
// `_receive`, `_receive_many`, `decode` and `provide` of the class.
#include "bind/bytes_message.hpp"
#include "bind/ends_common.hpp"
#include "bind/message.hpp"
#include "bind/plain_decoder.hpp"

namespace nb = nanobind;

namespace fabric {
namespace {

using namespace ends;

struct ReceivingEnd {
  PyObject_HEAD
  struct Held {
    std::shared_ptr<ReceiverCore> core;
    nb::object native;                ///< keeps `core` for messages that outlive this end
    nb::object unpack;                ///< meta → view; none: messages are plain bytes
    PlainDecoder plain;               ///< does the same for most messages
    unsigned type = 0;                ///< of the messages that those two read
    Limits limits{};
  } held;
};

PyObject *native_name = nullptr, *source_name = nullptr;

// A typed message as its view. What cannot be read here goes to `decode`, which maps segments, knows the type's other
// versions and says what is wrong.
PyObject* typed_view(PyObject* object, ReceivingEnd::Held& end, MessageCore* core) {
  nb::object native = nb::steal(make_message(end.native.ptr(), *end.core, core));
  if (!native.is_valid()) throw nb::python_error();
  const u8* data = nullptr;
  u64 bytes = 0;
  if (core->header.type == end.type && end.core->meta(*core, data, bytes).ok()) {
    const bool is_private = (core->header.flags & kFlagMetaInSegment) == 0;  // the sender may write in its segment
    PyObject* plain = is_private ? end.plain.decode({data, bytes}, native.ptr(), object) : nullptr;
    if (plain != nullptr) return plain;
    nb::object meta = nb::steal(PyBytes_FromStringAndSize(reinterpret_cast<const char*>(data), static_cast<Py_ssize_t>(bytes)));
    if (!meta.is_valid()) throw nb::python_error();
    nb::object view = nb::steal(PyObject_CallOneArg(end.unpack.ptr(), meta.ptr()));
    if (view.is_valid() && PyObject_SetAttr(view.ptr(), native_name, native.ptr()) == 0 &&
        PyObject_SetAttr(view.ptr(), source_name, object) == 0) {
      return view.release().ptr();
    }
    PyErr_Clear();
  }
  return nb::handle(object).attr("decode")(native).release().ptr();
}

// A native message as its view; one that is no message of this type ends as failed(corrupted).
PyObject* bytes_view(PyObject* object, ReceiverCore& receiver, MessageCore* core) {
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

PyObject* view_of(PyObject* object, ReceivingEnd::Held& end, MessageCore* core) {
  return end.unpack.is_valid() ? typed_view(object, end, core) : bytes_view(object, *end.core, core);
}

// Waits with the lock given away when nothing is there, and looks at the clock only then. False: the timeout is none.
template <class Attempt>
bool attempt(PyObject* object, PyObject* timeout, const Limits& limits, Attempt&& receive) {
  u64 wait_ns = 0;
  if (!timeout_of(timeout, limits, wait_ns)) return false;
  Status status = receive(wait_ns == 0 ? 0 : kLater, false);
  if (status.code == Code::would_block || status.code == Code::frozen) {
    const u64 deadline_ns = wait_ns == 0 ? 0 : monotonic_ns() + wait_ns;
    status = released([&] { return receive(deadline_ns, true); });
  }
  if (!status.ok()) raise_named(object, status);
  return true;
}

PyObject* receive(PyObject* object, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  return guarded([&]() -> PyObject* {
    auto& end = reinterpret_cast<ReceivingEnd*>(object)->held;
    Arguments given;
    MessageCore* core = nullptr;
    const bool direct = given.take(args, count, names, {"timeout", nullptr, nullptr}) && count <= 1 &&
                        attempt(object, given.value[0], end.limits, [&](u64 deadline_ns, bool may_wait) {
                          return end.core->receive_one(deadline_ns, may_wait, core);
                        });
    if (!direct) return python_call(object, "_receive", args, count, names);
    if (core == nullptr) Py_RETURN_NONE;
    return view_of(object, end, core);
  });
}

PyObject* bytes_of(PyObject* object, ReceivingEnd::Held& end, MessageCore* core) {
  nb::object view = nb::steal(bytes_view(object, *end.core, core));
  if (!view.is_valid()) throw nb::python_error();
  nb::object copy = nb::steal(PyBytes_FromObject(view.ptr()));
  if (!copy.is_valid()) throw nb::python_error();
  Status status = end.core->ack(*core, false);
  if (status.code == Code::frozen) status = released([&] { return end.core->ack(*core, true); });
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
    auto& end = reinterpret_cast<ReceivingEnd*>(object)->held;
    Arguments given;
    CopyRoom room;
    const bool direct = given.take(args, count, names, {"timeout", nullptr, nullptr}) && count <= 1 &&
                        attempt(object, given.value[0], end.limits, [&](u64 deadline_ns, bool may_wait) {
                          return end.core->receive_plain(1, deadline_ns, may_wait, room.plain);
                        });
    if (!direct) return python_call(object, "_receive", args, count, names);
    if (room.plain.other != nullptr) return bytes_of(object, end, room.plain.other);
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
    auto& end = reinterpret_cast<ReceivingEnd*>(object)->held;
    Arguments given;
    std::vector<MessageCore*> cores;
    u64 wanted = 0;
    const bool direct = given.take(args, count, names, {"count", "timeout", nullptr}) && count <= 2 &&
                        (wanted = count_of(given.value[0])) != 0 &&
                        attempt(object, given.value[1], end.limits, [&](u64 deadline_ns, bool may_wait) {
                          return end.core->receive(wanted, deadline_ns, may_wait, cores);
                        });
    if (!direct) return python_call(object, "_receive_many", args, count, names);
    nb::list out;
    std::size_t at = 0;
    try {
      for (; at < cores.size(); ++at) {
        nb::object view = nb::steal(view_of(object, end, cores[at]));
        if (!view.is_valid()) throw nb::python_error();
        out.append(view);
      }
    } catch (...) {  // the one that failed was given back
      while (++at < cores.size()) end.core->collect(cores[at]);
      throw;
    }
    return out.release().ptr();
  });
}

PyObject* receive_many_bytes(PyObject* object, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  return guarded([&]() -> PyObject* {
    auto& end = reinterpret_cast<ReceivingEnd*>(object)->held;
    Arguments given;
    CopyRoom room;
    u64 wanted = 0;
    const bool direct = given.take(args, count, names, {"count", "timeout", nullptr}) && count <= 2 &&
                        (wanted = count_of(given.value[0])) != 0 &&
                        attempt(object, given.value[1], end.limits, [&](u64 deadline_ns, bool may_wait) {
                          return end.core->receive_plain(wanted, deadline_ns, may_wait, room.plain);
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
    if (is_other) PyList_SET_ITEM(out.ptr(), 0, bytes_of(object, end, plain.other));
    return out.release().ptr();
  });
}

// Before anything else, by the class that is made of this base: the native receiver, `unpack` and its plan or None,
// times, and the type of the messages that `unpack` reads.
PyObject* bind(PyObject* object, PyObject* args) {
  auto& end = reinterpret_cast<ReceivingEnd*>(object)->held;
  PyObject *native = nullptr, *unpack = nullptr, *plan = nullptr;
  unsigned long long default_ns = 0;
  double seconds_max = 0;
  unsigned int type = 0;
  if (!PyArg_ParseTuple(args, "OOOKd|I", &native, &unpack, &plan, &default_ns, &seconds_max, &type)) return nullptr;
  return guarded([&]() -> PyObject* {
    end.core = nb::cast<PyReceiver&>(nb::handle(native)).core;
    end.native = nb::borrow(native);
    if (unpack != Py_None) end.unpack = nb::borrow(unpack);
    end.plain.attach(plan);
    end.limits = {default_ns, seconds_max};
    end.type = type;
    Py_RETURN_NONE;
  });
}

PyMethodDef methods[] = {
    {"receive", fast(receive), kFastCall, "receive($self, timeout=None)\n--\n\nSee fabric.Receiver.receive."},
    {"receive_many", fast(receive_many), kFastCall,
     "receive_many($self, count, timeout=None)\n--\n\nSee fabric.Receiver.receive_many."},
    {"_bind", bind, METH_VARARGS, nullptr},
    {nullptr, nullptr, 0, nullptr}};

PyMethodDef bytes_methods[] = {
    {"receive_bytes", fast(receive_bytes), kFastCall,
     "receive_bytes($self, timeout=None)\n--\n\nThe next message as bytes, acknowledged; None at the timeout."},
    {"receive_many_bytes", fast(receive_many_bytes), kFastCall,
     "receive_many_bytes($self, count, timeout=None)\n--\n\nUp to `count` messages as bytes, acknowledged; waits for the "
     "first only. One that lies in a slot comes alone."},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot slots[] = {{Py_tp_doc, const_cast<char*>("Native base of a receiver. Thread-safe.")},
                       {Py_tp_new, reinterpret_cast<void*>(make<ReceivingEnd>)},
                       {Py_tp_dealloc, reinterpret_cast<void*>(unmake<ReceivingEnd>)},
                       {Py_tp_methods, methods},
                       {0, nullptr}};
PyType_Slot bytes_slots[] = {{Py_tp_doc, const_cast<char*>("Native base of a receiver of plain bytes. Thread-safe.")},
                             {Py_tp_dealloc, reinterpret_cast<void*>(unmake<ReceivingEnd>)},
                             {Py_tp_methods, bytes_methods},
                             {0, nullptr}};
constexpr unsigned kFlags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE;
PyType_Spec spec{"fabric._native.ReceivingEnd", sizeof(ReceivingEnd), 0, kFlags, slots};
PyType_Spec bytes_spec{"fabric._native.BytesReceivingEnd", sizeof(ReceivingEnd), 0, kFlags, bytes_slots};

}  // namespace

void bind_receiving_end(nb::module_& module) {
  native_name = PyUnicode_InternFromString("_native");
  source_name = PyUnicode_InternFromString("_source");
  if (native_name == nullptr || source_name == nullptr) throw nb::python_error();
  nb::object base = add_type(module, "ReceivingEnd", spec);
  add_type(module, "BytesReceivingEnd", bytes_spec, base.ptr());
}

}  // namespace fabric
