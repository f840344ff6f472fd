// Sender and Loan.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "bind/gil.hpp"
#include "bind/endpoints.hpp"
#include "bind/ends.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace fabric {
namespace {

constexpr u64 kCopyWithoutGilBytes = 32 * 1024;

std::span<const u8> bytes_of(nb::handle object) {
  return {reinterpret_cast<const u8*>(PyBytes_AS_STRING(object.ptr())),
          static_cast<std::size_t>(PyBytes_GET_SIZE(object.ptr()))};
}

void set_key(SendRequest& request, nb::handle key) {
  if (key.is_none()) return;
  if (!PyBytes_Check(key.ptr())) throw nb::type_error("key must be bytes or None");
  request.key = bytes_of(key);
  request.has_key = true;
}

// First without waiting and with the interpreter's lock: most messages have room.
u64 send_now_or_wait(PySender& sender, const SendRequest& request, u64 deadline_ns, u64 payload) {
  u64 sequence = 0;
  Status status;
  if (payload <= kCopyWithoutGilBytes) {
    status = sender.core->send(request, deadline_ns, false, sequence);
    const bool again = status.code == Code::frozen || (status.code == Code::would_block && deadline_ns != 0);
    if (!again) {
      check(status);
      return sequence;
    }
  }
  {
    bind::ReleasedGil unlocked;
    status = sender.core->send(request, deadline_ns, true, sequence);
  }
  check(status);
  return sequence;
}

u64 send(PySender& sender, nb::bytes meta, nb::handle tensors, nb::handle key, u64 deadline_ns, u64 flow,
         u64 correlation, u64 reply_flow, u16 flags, u64 expires_ns) {
  Buffers buffers;
  buffers.add_all(tensors);
  SendRequest request;
  request.meta = bytes_of(meta);
  request.tensors = buffers.pieces();
  set_key(request, key);
  request.flow = flow;
  request.correlation = correlation;
  request.reply_flow = reply_flow;
  request.flags = flags;
  request.expires_ns = expires_ns;
  u64 payload = 0;
  for (const Piece& piece : request.tensors) payload += piece.bytes;
  return send_now_or_wait(sender, request, deadline_ns, payload);
}

u64 send_many(PySender& sender, nb::handle metas, nb::handle tensors, nb::handle keys, u64 deadline_ns, u64 expires_ns) {
  nb::object meta_list = nb::steal(PySequence_Fast(metas.ptr(), "metas must be a sequence"));
  nb::object tensor_list = nb::steal(PySequence_Fast(tensors.ptr(), "tensors must be a sequence"));
  nb::object key_list = nb::steal(PySequence_Fast(keys.ptr(), "keys must be a sequence"));
  if (!meta_list.is_valid() || !tensor_list.is_valid() || !key_list.is_valid()) throw nb::python_error();
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(meta_list.ptr());
  if (PySequence_Fast_GET_SIZE(tensor_list.ptr()) != count || PySequence_Fast_GET_SIZE(key_list.ptr()) != count) {
    throw nb::value_error("metas, tensors and keys must be of equal length");
  }
  std::vector<SendRequest> requests(static_cast<std::size_t>(count));
  std::vector<std::size_t> first;
  Buffers buffers;
  for (Py_ssize_t i = 0; i < count; ++i) {
    nb::handle meta = PySequence_Fast_GET_ITEM(meta_list.ptr(), i);
    if (!PyBytes_Check(meta.ptr())) throw nb::type_error("metas must be bytes");
    requests[i].meta = bytes_of(meta);
    requests[i].expires_ns = expires_ns;
    set_key(requests[i], PySequence_Fast_GET_ITEM(key_list.ptr(), i));
    first.push_back(buffers.size());
    buffers.add_all(PySequence_Fast_GET_ITEM(tensor_list.ptr(), i));
  }
  first.push_back(buffers.size());
  for (Py_ssize_t i = 0; i < count; ++i) {
    requests[i].tensors = buffers.pieces(first[i]).first(first[i + 1] - first[i]);
  }
  u64 accepted = 0;
  Status status;
  {
    bind::ReleasedGil unlocked;
    status = sender.core->send_many(requests, deadline_ns, true, accepted);
  }
  // What was accepted must be known to the caller; an error is raised only when nothing was.
  if (!status.ok() && (accepted == 0 || status.code == Code::interrupted)) raise(status);
  return accepted;
}

PyLoan* make_loan(PySender& sender, const std::vector<u64>& sizes) {
  auto loan = std::make_unique<PyLoan>();
  loan->port = sender.port;
  loan->sender = sender.core;
  loan->sizes = sizes;
  Status status;
  {
    bind::ReleasedGil unlocked;
    status = sender.core->loan(sizes, loan->slot, loan->address, loan->offsets);
  }
  check(status);
  return loan.release();
}

u64 send_loan(PySender& sender, PyLoan& loan, nb::bytes meta, nb::handle key, u64 deadline_ns, u64 flow,
              u64 correlation, u64 reply_flow, u16 flags, u64 expires_ns) {
  if (!loan.slot) check(Status::fail(Code::stale, "the loan was sent or discarded"));
  if (loan.sender != sender.core) throw nb::value_error("the loan belongs to another sender");
  std::vector<Piece> pieces;
  for (std::size_t i = 0; i < loan.sizes.size(); ++i) pieces.push_back({nullptr, loan.sizes[i]});
  SendRequest request;
  request.meta = bytes_of(meta);
  request.tensors = pieces;
  set_key(request, key);
  request.flow = flow;
  request.correlation = correlation;
  request.reply_flow = reply_flow;
  request.flags = flags;
  request.expires_ns = expires_ns;
  request.loan = loan.slot;
  const u64 sequence = send_now_or_wait(sender, request, deadline_ns, 0);
  loan.slot = {};
  return sequence;
}

nb::object loan_tensor(nb::handle self, u32 index) {
  auto& loan = nb::cast<PyLoan&>(self);
  if (!loan.slot) check(Status::fail(Code::stale, "the loan was sent or discarded"));
  if (index >= loan.sizes.size()) throw nb::index_error("no such tensor in the loan");
  return memory_view(self, loan.address + loan.offsets[index], loan.sizes[index], true);
}

nb::list flows(PySender& sender) {
  std::vector<FlowInfo> infos;
  check(released([&] { return sender.core->flows(infos); }));
  nb::list out;
  for (const FlowInfo& info : infos) {
    nb::dict row;
    row["flow"] = info.flow;
    row["target_endpoint"] = info.target_endpoint;
    row["outstanding"] = info.outstanding;
    row["credit_messages"] = info.credit_messages;
    row["credit_bytes"] = info.credit_bytes;
    row["generation"] = info.generation;
    row["closed"] = static_cast<int>(info.closed);
    out.append(row);
  }
  return out;
}

std::span<const u8> key_of(nb::handle key) {
  SendRequest request;
  set_key(request, key);
  return request.key;
}

void set_route(PySender& sender, const std::string& policy, double load_factor, u64 spill, u64 seed) {
  const RouteKind kind = route_kind(policy);
  if (kind == RouteKind::none && !policy.empty()) throw nb::value_error("no built-in policy of this name");
  check(released([&] { return sender.core->set_route(kind, {load_factor, spill, seed}); }));
}

void set_target(PySender& sender, u64 endpoint, double weight, u32 rank, u32 distance, u64 load) {
  check(released([&] { return sender.core->set_target(endpoint, {weight, rank, distance, load}); }));
}

void pin(PySender& sender, nb::handle key, u64 flow, u64 until_ns) {
  const auto data = key_of(key);
  check(released([&] { return sender.core->pin(data, !key.is_none(), flow, until_ns); }));
}

void fall_back(PySender& sender, const std::string& policy, u64 until_ns) {
  const RouteKind kind = route_kind(policy);
  if (kind == RouteKind::none && !policy.empty()) throw nb::value_error("no built-in policy of this name");
  check(released([&] { return sender.core->fall_back(kind, until_ns); }));
}

u64 decide(PySender& sender, nb::handle key) {
  const auto data = key_of(key);
  u64 flow = 0;
  check(released([&] { return sender.core->decide(data, !key.is_none(), flow); }));
  return flow;
}

nb::dict counts(PySender& sender) {
  EndCounts ends;
  check(released([&] { return sender.core->counts(ends); }));
  return bind::ends_dict(ends);
}

}  // namespace

PyLoan::~PyLoan() {
  if (slot) sender->discard(slot);
}

void bind_sender(nb::module_& module) {
  nb::class_<PyLoan>(module, "Loan", "The right to write a slot before it is sent. Not thread-safe.")
      .def("tensor", loan_tensor, "index"_a, nb::sig("def tensor(self, index: int) -> memoryview"),
           "Writable bytes of tensor `index`, 64-byte aligned. Do not write after the loan was sent.")
      .def("discard", [](PyLoan& loan) {
        if (loan.slot) loan.sender->discard(loan.slot);
        loan.slot = {};
      }, nb::call_guard<bind::ReleasedGil>(), "Give the slot back unsent. Idempotent.");

  nb::class_<PySender>(module, "Sender", "The sending endpoint of a channel. Thread-safe.")
      .def("send", send, "meta"_a, "tensors"_a, "key"_a.none(), "deadline_ns"_a, nb::kw_only(), "flow"_a = 0,
           "correlation"_a = 0, "reply_flow"_a = 0, "flags"_a = 0, "expires_ns"_a = 0,
           nb::sig("def send(self, meta: bytes, tensors: collections.abc.Sequence[typing.Any], key: bytes | None, deadline_ns: int, *, "
                   "flow: int = 0, correlation: int = 0, reply_flow: int = 0, flags: int = 0, expires_ns: int = 0) -> int"),
           "Copy once and send; returns the message's number, which its records carry as `sequence`.\n\n"
           "Waits for credit, lane space and a consumer until `deadline_ns` (absolute CLOCK_MONOTONIC; 0 = do not\n"
           "wait: WouldBlock). `tensors` are C-contiguous buffers. `flow` 0 lets the pattern choose: a stream key\n"
           "stays on its flow, a queue takes the least outstanding, a broadcast goes to every open flow (none: it ends as\n"
           "dropped(no_target)). `expires_ns` (absolute) travels in the record. Without room in a receiver `drop_newest`\n"
           "returns the number of a message that has ended as dropped(overflow_newest), and `reject` raises RejectedError.\n"
           "Raises DeadlineExceeded naming what was full, ClosedError, PeerLostError, NeedSegment, CapacityError.")
      .def("send_many", send_many, "metas"_a, "tensors"_a, "keys"_a, "deadline_ns"_a, nb::kw_only(), "expires_ns"_a = 0,
           nb::sig("def send_many(self, metas: collections.abc.Sequence[bytes], tensors: collections.abc.Sequence[collections.abc.Sequence[typing.Any]], "
                   "keys: collections.abc.Sequence[bytes | None], deadline_ns: int, *, expires_ns: int = 0) -> int"),
           "Send in order with one doorbell a lane; returns how many were accepted. Raises only when none was: a rejection\n"
           "is counted when it is raised.")
      .def("loan", make_loan, "sizes"_a, nb::rv_policy::take_ownership, "One slot for tensors of `sizes` bytes. Raises NeedSegment.")
      .def("send_loan", send_loan, "loan"_a, "meta"_a, "key"_a.none(), "deadline_ns"_a, nb::kw_only(), "flow"_a = 0,
           "correlation"_a = 0, "reply_flow"_a = 0, "flags"_a = 0, "expires_ns"_a = 0,
           nb::sig("def send_loan(self, loan: Loan, meta: bytes, key: bytes | None, deadline_ns: int, *, flow: int = 0, "
                   "correlation: int = 0, reply_flow: int = 0, flags: int = 0, expires_ns: int = 0) -> int"),
           "Send what was written into `loan`; on an error the loan is still the caller's.")
      .def("cancel", [](PySender& sender, u64 sequence) {
        bool cancelled = false;
        check(released([&] { return sender.core->cancel(sequence, cancelled); }));
        return cancelled;
      }, "sequence"_a, "True if the message waited for a consumer and now ends as dropped(cancelled).")
      .def("set_route", set_route, "policy"_a, nb::kw_only(), "load_factor"_a = 1.25, "spill"_a = 0, "seed"_a = 1,
           "Let a built-in policy choose from the next message on; empty: the pattern does. Forgets what was pinned.")
      .def("set_target", set_target, "endpoint"_a, nb::kw_only(), "weight"_a = 1.0, "rank"_a = 0, "distance"_a = 0, "load"_a = 0,
           "What policies are to know of a target, now or once there is a flow to it.")
      .def("pin", pin, "key"_a.none(), "flow"_a, "until_ns"_a,
           nb::sig("def pin(self, key: bytes | None, flow: int, until_ns: int) -> None"),
           "Messages of `key` that ask go on `flow` until then (absolute CLOCK_MONOTONIC), and while it is open.")
      .def("fall_back", fall_back, "policy"_a, "until_ns"_a,
           "Let a built-in policy (empty: the pattern) decide for messages that ask, until then.")
      .def("pin_hits", [](PySender& sender) { return sender.core->pin_hits(); }, "Messages that went where `pin` had said.")
      .def("decide", decide, "key"_a.none(), nb::sig("def decide(self, key: bytes | None) -> int"),
           "The flow that the built-in policy gives `key` now; 0: none has room. Nothing is sent.")
      .def("flows", flows, nb::sig("def flows(self) -> list[dict[str, int]]"),
           "flow, target_endpoint, outstanding, credit_messages, credit_bytes, generation, closed of every flow.")
      .def("ended_upto", [](PySender& sender) {
        u64 out = 0;
        check(released([&] { return sender.core->ended_upto(out); }));
        return out;
      }, "Makes progress, then: every sequence <= this has ended.")
      .def("counts", counts, nb::sig("def counts(self) -> dict[tuple[int, int], int]"), "(end, reason) -> messages.")
      .def("delivered_bytes", [](PySender& sender) {
        u64 out = 0;
        check(released([&] { return sender.core->delivered_bytes(out); }));
        return out;
      }, "Payload bytes of the messages that ended as delivered.")
      .def("flush", [](PySender& sender, u64 deadline_ns) {
        bool flushed = false;
        check(released([&] { return sender.core->flush(deadline_ns, true, flushed); }));
        return flushed;
      }, "deadline_ns"_a, "Wait until nothing is outstanding; False at the deadline.")
      .def("close", [](PySender& sender) {
        Status status = released([&] { return sender.core->close(); });
        if (status.code != Code::closed) check(status);
      }, "No new sends; messages that wait for a consumer end as failed(closed). Idempotent.");
}

}  // namespace fabric
