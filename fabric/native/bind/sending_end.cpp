// SendingEnd: the native base of senders, whose calls come straight here.
//
// What is unusual (a routing policy, a missing segment, an odd argument) goes on in Python: `_send` and `_send_many` of
// the class. An attempt is made with the interpreter's lock first, without it only to wait or to copy much.
#include "bind/bytes_message.hpp"
#include "bind/ends_common.hpp"
#include "bind/plain_encoder.hpp"

namespace nb = nanobind;

namespace fabric {
namespace {

using namespace ends;

constexpr u64 kCopyWithoutGilBytes = 32 * 1024;
constexpr u64 kMessageBytesMax = u64{1} << 30;  // fabric/limits.py MESSAGE_BYTES_MAX

struct SendingEnd {
  PyObject_HEAD
  struct Held {
    std::shared_ptr<Port> port;
    std::shared_ptr<SenderCore> core;
    nb::object encode;                ///< message → (meta, buffers); none: messages are plain bytes
    PlainEncoder plain;               ///< does the same for most messages
    Limits limits{};
    bool is_direct = false;           ///< no deadline of the channel; a routing policy, if any, is built in or `asks`
    bool asks = false;                ///< a policy in Python decides: here goes what it decided before
  } held;
};

std::span<const u8> bytes_in(PyObject* bytes) {
  return {reinterpret_cast<const u8*>(PyBytes_AS_STRING(bytes)), static_cast<std::size_t>(PyBytes_GET_SIZE(bytes))};
}

// False: Python says what is wrong with it.
bool set_key(SendRequest& request, PyObject* key) {
  if (key == nullptr) return true;
  if (PyBytes_CheckExact(key)) {
    request.key = bytes_in(key);
  } else {
    Py_ssize_t size = 0;
    const char* text = PyUnicode_CheckExact(key) ? PyUnicode_AsUTF8AndSize(key, &size) : nullptr;
    PyErr_Clear();
    if (text == nullptr) return false;
    request.key = {reinterpret_cast<const u8*>(text), static_cast<std::size_t>(size)};
  }
  if (request.key.size() > kKeyBytesMax) return false;
  request.has_key = true;
  return true;
}

u64 payload_of(const SendRequest& request) {
  u64 bytes = 0;
  for (const Piece& piece : request.tensors) bytes += piece.bytes;
  return bytes;
}

/// A message as a request, for the length of a call.
class Content {
 public:
  Content() = default;
  Content(const Content&) = delete;
  ~Content() {
    if (viewed_) PyBuffer_Release(&view_);
  }
  /// Plain bytes. False: too long, or no contiguous bytes, which Python says.
  bool take_bytes(PyObject* object, SendRequest& request) {
    std::span<const u8> data;
    if (PyBytes_CheckExact(object)) {
      data = bytes_in(object);
    } else {
      if (!PyObject_CheckBuffer(object)) return false;
      if (PyObject_GetBuffer(object, &view_, PyBUF_SIMPLE) != 0) {
        PyErr_Clear();
        return false;
      }
      viewed_ = true;
      data = {static_cast<const u8*>(view_.buf), static_cast<std::size_t>(view_.len)};
    }
    if (!data.empty() && data.size() <= kPlainBytesMax) {
      request.meta = data;
      return true;
    }
    if (data.size() > kMessageBytesMax) return false;
    piece_ = {data.data(), data.size()};
    request.meta = {&kBytesTag, 1};
    request.tensors = {&piece_, 1};
    return true;
  }
  /// What `end.encode` makes of a message; throws what it raises.
  void take_message(SendingEnd::Held& end, PyObject* message, SendRequest& request) {
    if (!take_plain(end, message, request)) take_encoded(end.encode.ptr(), message, request);
  }
  /// False: only Python can encode it.
  bool take_plain(SendingEnd::Held& end, PyObject* message, SendRequest& request) {
    const std::size_t size = end.plain.encode(message, meta_, buffers_);
    if (size == 0) return false;
    request.meta = {meta_, size};
    request.tensors = buffers_.pieces();
    if (payload_of(request) <= kMessageBytesMax) return true;
    buffers_.clear();                 // too large together
    request.tensors = {};
    return false;
  }

 private:
  void take_encoded(PyObject* encode, PyObject* message, SendRequest& request) {
    encoded_ = nb::steal(PyObject_CallOneArg(encode, message));
    if (!encoded_.is_valid()) throw nb::python_error();
    PyObject* pair = encoded_.ptr();
    const bool possible = PyTuple_CheckExact(pair) && PyTuple_GET_SIZE(pair) == 2 &&
                          PyBytes_CheckExact(PyTuple_GET_ITEM(pair, 0)) && PyList_CheckExact(PyTuple_GET_ITEM(pair, 1));
    if (!possible) throw nb::type_error("encode gave something else than (bytes, list)");
    request.meta = bytes_in(PyTuple_GET_ITEM(pair, 0));
    PyObject* list = PyTuple_GET_ITEM(pair, 1);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i) buffers_.add(PyList_GET_ITEM(list, i));
    request.tensors = buffers_.pieces();
  }

  u8 meta_[PlainEncoder::kMetaBytesMax];
  nb::object encoded_;
  Buffers buffers_;
  Piece piece_{};
  Py_buffer view_;
  bool viewed_ = false;
};

// `deadline_ns` is kLater as long as nobody had to look at the clock for it.
Status send_now_or_wait(SendingEnd::Held& end, const SendRequest& request, u64 deadline_ns, u64& number) {
  if (payload_of(request) <= kCopyWithoutGilBytes) {
    const Status status = end.core->send(request, deadline_ns, false, number);
    const bool waits = status.code == Code::frozen || (status.code == Code::would_block && deadline_ns != 0);
    if (!waits) return status;
  }
  if (deadline_ns == kLater) deadline_of(nullptr, end.limits, deadline_ns);
  return released([&] { return end.core->send(request, deadline_ns, true, number); });
}

PyObject* send(PyObject* object, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  return guarded([&]() -> PyObject* {
    auto& end = reinterpret_cast<SendingEnd*>(object)->held;
    Arguments given;
    Content content;
    SendRequest request;
    u64 deadline_ns = kLater, number = 0;
    const bool direct = end.is_direct && given.take(args, count, names, {"message", "key", "deadline"}) &&
                        given.value[0] != nullptr && set_key(request, given.value[1]) &&
                        (given.value[2] == nullptr || deadline_of(given.value[2], end.limits, deadline_ns)) &&
                        (end.encode.is_valid() || content.take_bytes(given.value[0], request));
    if (!direct) return python_call(object, "_send", args, count, names);
    if (end.encode.is_valid()) content.take_message(end, given.value[0], request);
    if (given.value[2] != nullptr) request.expires_ns = deadline_ns;
    request.asks = end.asks;
    const Status status = send_now_or_wait(end, request, deadline_ns, number);
    if (status.code == Code::need_segment || status.code == Code::undecided) return python_call(object, "_send", args, count, names);
    if (!status.ok()) raise_named(object, status);
    return PyLong_FromUnsignedLongLong(number);
  });
}

// Whether the message may go after some waiting, or with more memory: nothing was done.
bool may_go_later(Code code) {
  return code == Code::would_block || code == Code::frozen || code == Code::need_segment || code == Code::undecided;
}

PyObject* send_at_once(PyObject* object, PyObject* const* args, Py_ssize_t count) {
  return guarded([&]() -> PyObject* {
    auto& end = reinterpret_cast<SendingEnd*>(object)->held;
    Content content;
    SendRequest request;
    u64 number = 0;
    const bool possible =
        end.is_direct && count == 2 && set_key(request, args[1] == Py_None ? nullptr : args[1]) &&
        (end.encode.is_valid() ? content.take_plain(end, args[0], request) : content.take_bytes(args[0], request)) &&
        payload_of(request) <= kCopyWithoutGilBytes;
    if (!possible) Py_RETURN_NONE;
    request.asks = end.asks;
    const Status status = end.core->send(request, 0, false, number);
    if (may_go_later(status.code)) Py_RETURN_NONE;
    if (!status.ok()) raise_named(object, status);
    return PyLong_FromUnsignedLongLong(number);
  });
}

/// The messages of a batch.
struct Requests {
  std::vector<SendRequest> list;
  Buffers buffers;
  std::vector<u8> metas;              ///< of encoded messages, one after another
  u64 payload = 0;                    ///< of tensors
};

// Messages of a declared type. False: Python encodes and sends them, and says what is wrong with one.
bool encode_all(SendingEnd::Held& end, PyObject* messages, Requests& out) {
  const Py_ssize_t count = PyTuple_GET_SIZE(messages);
  struct Ends { std::size_t meta, pieces; };
  std::vector<Ends> ends(static_cast<std::size_t>(count));
  u8 meta[PlainEncoder::kMetaBytesMax];
  for (Py_ssize_t i = 0; i < count; ++i) {
    const std::size_t from = out.buffers.size();
    const std::size_t size = end.plain.encode(PyTuple_GET_ITEM(messages, i), meta, out.buffers);
    if (size == 0) return false;
    u64 payload = 0;
    for (const Piece& piece : out.buffers.pieces(from)) payload += piece.bytes;
    if (payload > kMessageBytesMax) return false;
    out.payload += payload;
    out.metas.insert(out.metas.end(), meta, meta + size);
    ends[static_cast<std::size_t>(i)] = {out.metas.size(), out.buffers.size()};
  }
  out.list.resize(ends.size());       // nothing moves any more
  Ends before{0, 0};
  for (std::size_t i = 0; i < ends.size(); ++i) {
    out.list[i].meta = std::span<const u8>(out.metas).subspan(before.meta, ends[i].meta - before.meta);
    out.list[i].tensors = out.buffers.pieces(before.pieces).first(ends[i].pieces - before.pieces);
    before = ends[i];
  }
  return true;
}

// Short plain bytes. False: Python sends them, one of them is none that could go here.
bool gather(PyObject* messages, Requests& out) {
  const Py_ssize_t count = PyTuple_GET_SIZE(messages);
  out.list.resize(static_cast<std::size_t>(count));
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* each = PyTuple_GET_ITEM(messages, i);
    SendRequest& request = out.list[static_cast<std::size_t>(i)];
    if (PyBytes_CheckExact(each)) {
      request.meta = bytes_in(each);
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

// Lets Python get the memory that `status` (need_segment) asks for.
void provide(PyObject* object, const Status& status, u64 deadline_ns) {
  try {
    raise(status);
  } catch (nb::python_error& need) {
    nb::handle(object).attr("provide")(need.value(), deadline_ns);
  }
}

// As many as are accepted before the deadline; an error is raised only when nothing was, a signal came, or there is no
// memory to be had.
u64 send_all(PyObject* object, SenderCore& core, const Requests& all, u64 deadline_ns) {
  const std::span<const SendRequest> requests(all.list);
  u64 done = 0;
  for (bool may_wait = all.payload > kCopyWithoutGilBytes; done < requests.size();) {
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
    if (status.code == Code::need_segment) {
      provide(object, status, deadline_ns);
      continue;
    }
    if (accepted != 0 && monotonic_ns() < deadline_ns) continue;
    const bool full = status.code == Code::deadline || status.code == Code::would_block || status.code == Code::rejected;
    if (done == 0 || (accepted == 0 && !full)) raise_named(object, status);
    break;
  }
  return done;
}

PyObject* send_many(PyObject* object, PyObject* const* args, Py_ssize_t count, PyObject* names) {
  return guarded([&]() -> PyObject* {
    auto& end = reinterpret_cast<SendingEnd*>(object)->held;
    Arguments given;
    Requests requests;
    u64 deadline_ns = 0;
    const bool direct = end.is_direct && !end.asks && given.take(args, count, names, {"messages", "keys", "deadline"}) &&
                        given.value[0] != nullptr && given.value[1] == nullptr &&
                        (PyList_CheckExact(given.value[0]) || PyTuple_CheckExact(given.value[0])) &&
                        deadline_of(given.value[2], end.limits, deadline_ns);
    nb::object messages;              // a list may change while the lock is away
    if (direct) messages = nb::steal(PySequence_Tuple(given.value[0]));
    if (direct && !messages.is_valid()) throw nb::python_error();
    const bool is_typed = end.encode.is_valid();
    if (!direct || !(is_typed ? encode_all(end, messages.ptr(), requests) : gather(messages.ptr(), requests))) {
      return python_call(object, "_send_many", args, count, names);
    }
    if (given.value[2] != nullptr) {
      for (SendRequest& request : requests.list) request.expires_ns = deadline_ns;
    }
    return PyLong_FromUnsignedLongLong(send_all(object, *end.core, requests, deadline_ns));
  });
}

PyObject* send_many_at_once(PyObject* object, PyObject* messages) {
  return guarded([&]() -> PyObject* {
    auto& end = reinterpret_cast<SendingEnd*>(object)->held;
    Requests requests;
    const bool is_list = PyList_CheckExact(messages) || PyTuple_CheckExact(messages);
    nb::object kept = is_list ? nb::steal(PySequence_Tuple(messages)) : nb::object();
    if (is_list && !kept.is_valid()) throw nb::python_error();
    const bool possible = end.is_direct && !end.asks && is_list &&
                          (end.encode.is_valid() ? encode_all(end, kept.ptr(), requests) : gather(kept.ptr(), requests));
    if (!possible) return PyLong_FromLong(0);
    u64 accepted = 0;
    const Status status = requests.payload <= kCopyWithoutGilBytes
                              ? end.core->send_many(requests.list, 0, false, accepted)
                              : released([&] { return end.core->send_many(requests.list, 0, true, accepted); });
    if (!status.ok() && accepted == 0 && !may_go_later(status.code)) raise_named(object, status);
    return PyLong_FromUnsignedLongLong(accepted);
  });
}

// Before anything else, by the class that is made of this base: the native sender, `encode` and its plan or None, times.
PyObject* bind(PyObject* object, PyObject* args) {
  auto& end = reinterpret_cast<SendingEnd*>(object)->held;
  PyObject *native = nullptr, *encode = nullptr, *plan = nullptr;
  unsigned long long default_ns = 0;
  double seconds_max = 0;
  if (!PyArg_ParseTuple(args, "OOOKd", &native, &encode, &plan, &default_ns, &seconds_max)) return nullptr;
  return guarded([&]() -> PyObject* {
    const auto& sender = nb::cast<PySender&>(nb::handle(native));
    end.port = sender.port;
    end.core = sender.core;
    if (encode != Py_None) end.encode = nb::borrow(encode);
    end.plain.attach(plan);
    end.limits = {default_ns, seconds_max};
    Py_RETURN_NONE;
  });
}

PyObject* set_direct(PyObject* object, PyObject* value) {
  reinterpret_cast<SendingEnd*>(object)->held.is_direct = PyObject_IsTrue(value) == 1;
  Py_RETURN_NONE;
}

PyObject* set_asks(PyObject* object, PyObject* value) {
  reinterpret_cast<SendingEnd*>(object)->held.asks = PyObject_IsTrue(value) == 1;
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"send", fast(send), kFastCall, "send($self, message, key=None, deadline=None)\n--\n\nSee fabric.Sender.send."},
    {"send_many", fast(send_many), kFastCall,
     "send_many($self, messages, keys=None, deadline=None)\n--\n\nSee fabric.Sender.send_many."},
    {"send_at_once", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(send_at_once)), METH_FASTCALL,
     "send_at_once($self, message, key, /)\n--\n\nAs `send`, where neither waiting nor Python is needed; None: nothing was done."},
    {"send_many_at_once", send_many_at_once, METH_O,
     "send_many_at_once($self, messages, /)\n--\n\nHow many of `messages` went so; it may be none."},
    {"_bind", bind, METH_VARARGS, nullptr},
    {"_set_direct", set_direct, METH_O, nullptr},
    {"_set_asks", set_asks, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot slots[] = {{Py_tp_doc, const_cast<char*>("Native base of a sender. Thread-safe.")},
                       {Py_tp_new, reinterpret_cast<void*>(make<SendingEnd>)},
                       {Py_tp_dealloc, reinterpret_cast<void*>(unmake<SendingEnd>)},
                       {Py_tp_methods, methods},
                       {0, nullptr}};
PyType_Spec spec{"fabric._native.SendingEnd", sizeof(SendingEnd), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, slots};

}  // namespace

void bind_sending_end(nb::module_& module) { add_type(module, "SendingEnd", spec); }

}  // namespace fabric
