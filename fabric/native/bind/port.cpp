// Port.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bind/gil.hpp"
#include "bind/endpoints.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace fabric {
namespace {

struct PyPort {
  PyPort(u64 port, u64 incarnation, int state_fd, int doorbell_fd, int event_fd, bool adopt, bool service_thread) {
    check(Port::open(port, incarnation, state_fd, doorbell_fd, event_fd, adopt, service_thread, core));
  }
  std::shared_ptr<Port> core;
};

nb::dict stats(PyPort& port) {
  PortStats s;
  check(released([&] { return port.core->stats(s); }));
  nb::dict out;
  const std::pair<const char*, u64> rows[] = {
      {"lanes", s.lanes}, {"flows_in", s.flows_in}, {"flows_out", s.flows_out}, {"receivers", s.receivers}, {"held", s.held},
      {"slots_taken", s.slots_taken}, {"segments", s.segments}, {"readers", s.readers},
      {"records_in", s.records_in}, {"records_out", s.records_out}, {"returns_in", s.returns_in},
      {"repeats", s.repeats}, {"strays", s.strays}, {"lying", s.lying}, {"expired", s.expired}, {"overflowed", s.overflowed},
      {"redelivered", s.redelivered}, {"freeze_overruns", s.freeze_overruns}};
  for (const auto& [name, value] : rows) out[name] = value;
  return out;
}

nb::list views(PyPort& port) {
  std::vector<HeldView> found;
  check(released([&] { return port.core->views(found); }));
  nb::list out;
  for (const HeldView& view : found) {
    nb::dict row;
    row["channel"] = view.channel;
    row["flow"] = view.flow;
    row["flow_seq"] = view.flow_seq;
    row["since_ns"] = view.since_ns;
    row["bytes"] = view.bytes;
    out.append(row);
  }
  return out;
}

nb::list broken_lanes(PyPort& port) {
  std::vector<BrokenLane> found;
  check(released([&] { return port.core->broken_lanes(found); }));
  nb::list out;
  for (const BrokenLane& lane : found) out.append(nb::make_tuple(lane.lane, lane.why));
  return out;
}

Delivery delivery_of(u32 value) {
  if (value > 1) throw nb::value_error("delivery is 0 (at_most_once) or 1 (at_least_once)");
  return static_cast<Delivery>(value);
}

Pattern pattern_of(u32 value) {
  if (value > static_cast<u32>(Pattern::reply)) throw nb::value_error("pattern is 0 .. 4");
  return static_cast<Pattern>(value);
}

Overflow overflow_of(u32 value) {
  if (value > static_cast<u32>(Overflow::reject)) throw nb::value_error("overflow is 0 .. 3");
  return static_cast<Overflow>(value);
}

PySender open_sender(PyPort& port, u64 endpoint, u32 channel, u32 type, u32 pattern, u32 delivery, u32 klass,
                     u32 overflow) {
  PySender sender{port.core, nullptr};
  const Pattern p = pattern_of(pattern);
  const Delivery d = delivery_of(delivery);
  const Overflow o = overflow_of(overflow);
  if (klass > static_cast<u32>(Class::bulk)) throw nb::value_error("class is 0 .. 3");
  check(released([&] {
    return port.core->open_sender(endpoint, channel, type, p, d, static_cast<u8>(klass), o, sender.core);
  }));
  return sender;
}

PyReceiver open_receiver(PyPort& port, u64 endpoint, u32 channel, u32 type, u32 pattern, u32 delivery, u32 overflow) {
  std::shared_ptr<ReceiverCore> receiver;
  const Pattern p = pattern_of(pattern);
  const Delivery d = delivery_of(delivery);
  const Overflow o = overflow_of(overflow);
  check(released([&] { return port.core->open_receiver(endpoint, channel, type, p, d, o, receiver); }));
  return PyReceiver(port.core, std::move(receiver));
}

void bind_flows(nb::class_<PyPort>& port) {
  port.def("add_lane", [](PyPort& p, u32 lane, int pair_fd, int side, u32 klass, u64 peer_port, u64 peer_incarnation,
                          int doorbell, int event) {
        check(released([&] { return p.core->add_lane(lane, pair_fd, side, klass, peer_port, peer_incarnation, doorbell, event); }));
      }, "lane"_a, "pair_fd"_a, "side"_a, "klass"_a, "peer_port"_a, "peer_incarnation"_a, "peer_doorbell_fd"_a,
           "peer_event_fd"_a, "Map a lane pair and its peer's doorbell. Idempotent per lane number.")
      .def("remove_lane", [](PyPort& p, u32 lane) {
        check(released([&] { return p.core->remove_lane(lane); }));
      }, "lane"_a, "Drop a lane that carries no outgoing flow any more.")
      .def("add_segment", [](PyPort& p, u32 segment, int fd, bool writable, u32 group) {
        check(released([&] { return p.core->add_segment(segment, fd, writable, group); }));
      }, "segment"_a, "fd"_a, "writable"_a, "group"_a = 0,
           "Map an own (writable) or a foreign arena segment. An own one serves only its group: 0 = classes control\n"
           "and token, 1 = embedding and bulk.")
      .def("drop_segment", [](PyPort& p, u32 segment) {
        check(released([&] { return p.core->drop_segment(segment); }));
      }, "segment"_a, "Forget a segment; views keep their mapping. CapacityError while an own slot is taken.")
      .def("idle_segments", [](PyPort& p) {
        std::vector<u32> out;
        check(released([&] { return p.core->idle_segments(out); }));
        return out;
      }, "Own segments with every slot free.")
      .def("drop_unused_readers", [](PyPort& p) {
        u32 dropped = 0;
        check(released([&] { return p.core->drop_unused_readers(dropped); }));
        return dropped;
      }, "Unmap foreign segments that nobody read since the last call and that no message here lies in; how many.")
      .def("add_flow_out", [](PyPort& p, u64 endpoint, u64 flow, u32 lane, u64 target, u64 messages, u64 bytes,
                              u32 generation, bool after_drain) {
        check(released([&] { return p.core->add_flow_out(endpoint, flow, lane, target, messages, bytes, generation, after_drain); }));
      }, "endpoint"_a, "flow"_a, "lane"_a, "target_endpoint"_a, "messages"_a, "bytes"_a, "generation"_a, "after_drain"_a,
           "A way to one receiver with its first credit. `after_drain`: unused until the endpoint's older flows have\n"
           "nothing outstanding. May come before the sender is opened.")
      .def("close_flow_out", [](PyPort& p, u64 flow) {
        check(released([&] { return p.core->close_flow_out(flow); }));
      }, "flow"_a, "No new sends; what is out still ends normally.")
      .def("lose_flow_out", [](PyPort& p, u64 flow, u64 handed_upto, u32 reason, bool reader_lives) {
        if (reason == 0 || reason >= static_cast<u32>(Reason::count)) throw nb::value_error("no such reason");
        check(released([&] { return p.core->lose_flow_out(flow, handed_upto, static_cast<Reason>(reason), reader_lives); }));
      }, "flow"_a, "handed_upto"_a, "reason"_a, "reader_lives"_a = false,
           "The consumer or the path is dead: at_least_once goes to another flow, in order; at_most_once ends as\n"
           "delivered up to `handed_upto` and as failed(reason) behind it. `reader_lives`, or reason closed: the process of the\n"
           "consumer lives, and its views keep their slots until they are released (or the flow is lost again without).")
      .def("suspect_flow", [](PyPort& p, u64 flow, bool suspect) {
        check(released([&] { return p.core->suspect_flow(flow, suspect); }));
      }, "flow"_a, "suspect"_a,
           "The consumer is silent (or was heard of again): a queue gives it nothing new, new stream keys avoid it, keys\n"
           "on it wait, and for a broadcast it counts as full. An unknown flow is ignored.")
      .def("add_flow_in", [](PyPort& p, u64 endpoint, u64 flow, u32 lane, u64 producer, u64 messages, u64 bytes) {
        check(released([&] { return p.core->add_flow_in(endpoint, flow, lane, producer, messages, bytes); }));
      }, "endpoint"_a, "flow"_a, "lane"_a, "producer_port"_a, "messages"_a, "bytes"_a,
           "The receiving half with its credit window. May come before the receiver is opened.")
      .def("close_flow_in", [](PyPort& p, u64 flow, bool drain) {
        check(released([&] { return p.core->close_flow_in(flow, drain); }));
      }, "flow"_a, "drain"_a, "No more will come. Without `drain`, what is queued ends as failed(closed).");
}

}  // namespace

void bind_port(nb::module_& module) {
  nb::class_<PyPort> port(module, "Port",
                          "A process's attachment. Thread-safe; calls that may wait release the interpreter's lock.\n"
                          "After close(), and in a forked child, every call raises ClosedError.");
  port.def(nb::init<u64, u64, int, int, int, bool, bool>(), "port"_a, "incarnation"_a, "state_fd"_a, "doorbell_fd"_a,
           "event_fd"_a, nb::kw_only(), "adopt"_a = false, "service_thread"_a = true);
  bind_flows(port);
  port.def("progress", [](PyPort& p) {
        u64 handled = 0;
        check(released([&] { return p.core->progress(handled); }));
        return handled;
      }, "Drain lanes and return rings; entries handled.")
      .def("event_fd", [](PyPort& p) { return p.core->event_fd(); }, "Readable after arm() once something is ready.")
      .def("arm", [](PyPort& p) {
        bool armed = false;
        check(released([&] { return p.core->arm(armed); }));
        return armed;
      }, "Wake the eventfd at the next arrival; False = something arrived already: look again, then arm again.")
      .def("disarm", [](PyPort& p) {
        Status status = released([&] { return p.core->disarm(); });
        if (status.code != Code::closed) check(status);
      }, "Leave eventfd mode and read the eventfd down.")
      .def("set_wait", [](PyPort& p, u32 policy) {
        if (policy > static_cast<u32>(WaitPolicy::sleep)) throw nb::value_error("a wait policy is 0 .. 2");
        check(released([&] { return p.core->set_wait(static_cast<WaitPolicy>(policy)); }));
      }, "policy"_a, "How threads wait from now on: 0 adaptive, 1 poll, 2 sleep.")
      .def("stats", stats, nb::sig("def stats(self) -> dict[str, int]"), "Sizes of tables and counters since open.")
      .def("views", views, nb::sig("def views(self) -> list[dict[str, int]]"),
           "Messages handed over and not released, also those collected without an end: channel, flow, flow_seq,\n"
           "since_ns (CLOCK_MONOTONIC, to some milliseconds), bytes.")
      .def("broken_lanes", broken_lanes, nb::sig("def broken_lanes(self) -> list[tuple[int, str]]"),
           "Lanes that are used no more because their peer broke the rules, and what it did.")
      .def("inject", [](PyPort& p, const std::string& fault, u64 count) {
        check(released([&] { return p.core->inject(fault, count); }));
      }, "fault"_a, "count"_a,
           "Test hook, refused unless FABRIC_FAULTS=1: lose_drained, repeat_drained, miscount_fold, corrupt_cursor.")
      .def("close", [](PyPort& p) {
        bind::ReleasedGil unlocked;
        p.core->close();
      }, "Wake every waiter with ClosedError and stop. Idempotent; what is outstanding is the daemon's to settle.")
      .def("open_sender", open_sender, "endpoint"_a, "channel"_a, "type"_a, "pattern"_a, "delivery"_a, "klass"_a,
           nb::kw_only(), "overflow"_a = 0,
           "`overflow`: 0 block, 1 drop_oldest, 2 drop_newest, 3 reject; `drop_*` with at_most_once only.")
      .def("forget_sender", [](PyPort& p, u64 endpoint) {
        check(released([&] { return p.core->forget_sender(endpoint); }));
      }, "endpoint"_a, "Free the ledger row of a closed sender with nothing outstanding, once its counts are archived.")
      .def("open_receiver", open_receiver, "endpoint"_a, "channel"_a, "type"_a, "pattern"_a, "delivery"_a,
           nb::kw_only(), "overflow"_a = 0, "`overflow`: 0 block, 1 drop_oldest, 2 drop_newest, 3 reject.");
}

}  // namespace fabric
