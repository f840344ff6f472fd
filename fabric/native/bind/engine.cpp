// Python face of the engine: conversion and forwarding only. Every call releases the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <unistd.h>

#include "bind/errors.hpp"
#include "engine/engine.hpp"
#include "links/inproc_link.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace fabric {
namespace {

using Released = nb::call_guard<nb::gil_scoped_release>;

const char* event_name(EngineEvent::Kind kind) {
  switch (kind) {
    case EngineEvent::Kind::need_segment: return "need_segment";
    case EngineEvent::Kind::grow: return "grow";
    case EngineEvent::Kind::link_down: return "link_down";
    case EngineEvent::Kind::flow_unknown: return "flow_unknown";
    case EngineEvent::Kind::stale: return "stale";
    case EngineEvent::Kind::corrupt: return "corrupt";
    case EngineEvent::Kind::lane_corrupt: return "lane_corrupt";
  }
  return "?";
}

nb::dict event_dict(const EngineEvent& event) {
  nb::dict out;
  out["event"] = event_name(event.kind);
  switch (event.kind) {
    case EngineEvent::Kind::need_segment: out["segment"] = event.a; return out;
    case EngineEvent::Kind::grow: out["slot_bytes"] = event.a; return out;
    case EngineEvent::Kind::link_down:
      out["session"] = event.a;
      out["group"] = event.b;
      break;
    case EngineEvent::Kind::lane_corrupt: out["lane"] = event.a; break;
    case EngineEvent::Kind::flow_unknown: out["flow"] = event.a; break;
    case EngineEvent::Kind::stale:
    case EngineEvent::Kind::corrupt:
      out["flow"] = event.a;
      out["flow_seq"] = event.b;
      break;
  }
  out["reason"] = event.reason;
  return out;
}

nb::dict stats_dict(Engine& engine) {
  std::vector<GroupStats> stats;
  {
    nb::gil_scoped_release released;
    stats = engine.stats();
  }
  nb::list groups;
  for (const GroupStats& s : stats) {
    nb::dict g;
    g["session"] = s.session;
    g["group"] = s.group;
    g["up"] = s.up;
    g["bytes_in"] = s.sample.bytes_in;
    g["bytes_out"] = s.sample.bytes_out;
    g["frames_in"] = s.sample.frames_in;
    g["frames_out"] = s.sample.frames_out;
    g["rtt_ns"] = s.sample.rtt_ns;
    g["retransmits"] = s.retransmits;
    g["crc_errors"] = s.crc_errors;
    g["repeats"] = s.repeats;
    g["backlog_bytes"] = s.backlog;
    g["transfers_out"] = s.transfers_out;
    g["transfers_in"] = s.transfers_in;
    g["reports_unacked"] = s.reports_unacked;
    groups.append(g);
  }
  nb::dict out;
  out["groups"] = groups;
  out["wakeups"] = engine.wakeups();
  return out;
}

nb::list event_list(Engine& engine) {
  std::vector<EngineEvent> events;
  {
    nb::gil_scoped_release released;
    events = engine.take_events();
  }
  nb::list out;
  for (const EngineEvent& event : events) out.append(event_dict(event));
  return out;
}

/// Runs `call` without the GIL, then raises what it returned.
template <class Call>
void checked(Call&& call) {
  Status status;
  {
    nb::gil_scoped_release released;
    status = call();
  }
  check(status);
}

void bind_sessions(nb::class_<Engine>& engine) {
  engine
      .def("open_session", [](Engine& e, u64 session, u32 peer_node, u64 peer_incarnation) {
        checked([&] { return e.open_session(session, peer_node, peer_incarnation); });
      }, "session"_a, "peer_node"_a, "peer_incarnation"_a)
      .def("add_connection", [](Engine& e, u64 session, int fd, u32 group) {
        checked([&] { return e.add_connection(session, fd, group); });
      }, "session"_a, "fd"_a, "group"_a,
      "Takes a handshaken socket (also on failure). Group 0: control and token, 1: embedding and bulk.")
      .def("add_inproc", [](Engine& e, u64 session, u64 link, u32 group) {
        checked([&] { return e.add_inproc(session, link, group); });
      }, "session"_a, "link"_a, "group"_a)
      .def("close_session", &Engine::close_session, "session"_a, Released())
      .def("add_forward", [](Engine& e, u64 flow, u32 lane, u64 session) {
        checked([&] { return e.add_forward(flow, lane, session); });
      }, "flow"_a, "lane"_a, "session"_a)
      .def("add_deliver", [](Engine& e, u64 flow, u32 lane, u64 session, u64 published) {
        checked([&] { return e.add_deliver(flow, lane, session, published); });
      }, "flow"_a, "lane"_a, "session"_a, "published"_a = 0,
      "`published`: last flow_seq known to have reached the receiver (its `drained`), 0 for a new flow.")
      .def("remove_flow", &Engine::remove_flow, "flow"_a, Released());
}

void bind_memory(nb::class_<Engine>& engine) {
  engine
      .def("add_lane", [](Engine& e, u32 lane, int pair_fd, int side, u32 klass, u64 peer_port, u64 peer_incarnation,
                          int peer_doorbell_fd, int peer_event_fd) {
        checked([&] {
          return e.add_lane({lane, pair_fd, side, klass, peer_port, peer_incarnation, peer_doorbell_fd, peer_event_fd});
        });
      }, "lane"_a, "pair_fd"_a, "side"_a, "klass"_a, "peer_port"_a, "peer_incarnation"_a, "peer_doorbell_fd"_a,
         "peer_event_fd"_a)
      .def("remove_lane", &Engine::remove_lane, "lane"_a, Released())
      .def("add_segment", [](Engine& e, u32 segment, int fd, bool writable) {
        checked([&] { return e.add_segment(segment, fd, writable); });
      }, "segment"_a, "fd"_a, "writable"_a)
      .def("drop_segment", [](Engine& e, u32 segment) { checked([&] { return e.drop_segment(segment); }); }, "segment"_a)
      .def("reclaim", &Engine::reclaim, "segment"_a, "keep"_a, Released(),
           "After a restart: frees the slots of an own segment not listed in `keep`; returns how many.")
      .def("drained", &Engine::drained, "lane"_a, Released());
}

}  // namespace

void bind_engine(nb::module_& module) {
  module.def("inproc_pair", [] {
    const auto [first, second] = inproc_make_pair();
    return nb::make_tuple(first, second);
  }, nb::sig("def inproc_pair() -> tuple[int, int]"), "Ids of both ends of a fresh in-process link, for Engine.add_inproc.");
  nb::class_<Engine> engine(module, "Engine", "The node's gateway: one native thread between lanes and links.");
  engine
      .def("__init__", [](Engine* self, u64 port, u64 incarnation, int state_fd, int doorbell_fd, int event_fd) {
        new (self) Engine();
        const Status status = self->open({port, incarnation, state_fd, doorbell_fd, event_fd});
        if (status.ok()) return;
        self->~Engine();
        check(status);
      }, "port"_a, "incarnation"_a, "state_fd"_a, "doorbell_fd"_a, "event_fd"_a)
      .def("start", [](Engine& e) { checked([&] { return e.start(); }); })
      .def("stop", [](Engine& e, u64 drain_ms) { e.stop(drain_ms * 1'000'000); }, "drain_ms"_a, Released())
      .def("event_fd", &Engine::event_fd, "Readable when events() has something.")
      .def("events", &event_list, nb::sig("def events(self) -> list[dict[str, typing.Any]]"))
      .def("stats", &stats_dict, nb::sig("def stats(self) -> dict[str, typing.Any]"))
      .def("inject", [](Engine& e, const std::string& fault, u64 argument) {
        checked([&] { return e.inject(fault, argument); });
      }, "fault"_a, "argument"_a);
  bind_memory(engine);
  bind_sessions(engine);
}

}  // namespace fabric
