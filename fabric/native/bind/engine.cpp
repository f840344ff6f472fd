// Python face of the engine: conversion and forwarding only. Every call releases the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <unistd.h>

#include "bind/gil.hpp"
#include "bind/errors.hpp"
#include "engine/engine.hpp"
#include "links/inproc_link.hpp"
#include "links/link_capsule.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace fabric {
namespace {

using Released = nb::call_guard<bind::ReleasedGil>;

const char* event_name(EngineEvent::Kind kind) {
  switch (kind) {
    case EngineEvent::Kind::need_segment: return "need_segment";
    case EngineEvent::Kind::grow: return "grow";
    case EngineEvent::Kind::link_down: return "link_down";
    case EngineEvent::Kind::flow_unknown: return "flow_unknown";
    case EngineEvent::Kind::stale: return "stale";
    case EngineEvent::Kind::corrupt: return "corrupt";
    case EngineEvent::Kind::lane_corrupt: return "lane_corrupt";
    case EngineEvent::Kind::link_silent: return "link_silent";
    case EngineEvent::Kind::transfer_stalled: return "transfer_stalled";
    case EngineEvent::Kind::limit: return "limit_reached";
    case EngineEvent::Kind::rail: return "rail";
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
    case EngineEvent::Kind::link_silent:
      out["session"] = event.a;
      out["group"] = event.b;
      out["carried"] = event.carried;
      break;
    case EngineEvent::Kind::lane_corrupt: out["lane"] = event.a; break;
    case EngineEvent::Kind::flow_unknown: out["flow"] = event.a; break;
    case EngineEvent::Kind::limit: out["session"] = event.a; break;
    case EngineEvent::Kind::rail: {
      const auto arrow = event.reason.find('>'), colon = event.reason.find(": ");
      out["session"] = event.a;
      out["rail"] = event.b;
      out["from"] = event.reason.substr(0, arrow);
      out["to"] = event.reason.substr(arrow + 1, colon - arrow - 1);
      out["reason"] = event.reason.substr(colon + 2);
      return out;
    }
    case EngineEvent::Kind::stale:
    case EngineEvent::Kind::transfer_stalled:
    case EngineEvent::Kind::corrupt:
      out["flow"] = event.a;
      out["flow_seq"] = event.b;
      break;
  }
  out["reason"] = event.reason;
  return out;
}

/// Names of SessionCounters, kept stable: telemetry exports them.
void add_counters(nb::dict& out, const SessionCounters& c) {
  out["messages_in"] = c.messages_in;
  out["messages_out"] = c.messages_out;
  out["payload_bytes_in"] = c.payload_bytes_in;
  out["payload_bytes_out"] = c.payload_bytes_out;
  out["retransmits"] = c.retransmits;
  out["repeats"] = c.repeats;
  out["crc_errors"] = c.crc_errors;
  out["chunks_late"] = c.chunks_late;
  out["gaps"] = c.gaps;
  out["breaks"] = c.breaks;
  out["silent_breaks"] = c.silent_breaks;
  out["protocol_breaks"] = c.protocol_breaks;
  out["transfers_done_in"] = c.transfers_done_in;
  out["transfers_done_out"] = c.transfers_done_out;
  out["transfers_aborted"] = c.transfers_aborted;
  out["transfers_stalled"] = c.transfers_stalled;
  out["backlog_stalls"] = c.backlog_stalls;
  out["lane_stalls"] = c.lane_stalls;
  out["slot_stalls"] = c.slot_stalls;
  out["foreign"] = c.foreign;
}

nb::dict group_dict(const SessionStats& s, const GroupStats& g) {
  nb::dict out;
  out["session"] = s.session;
  out["group"] = g.group;
  out["up"] = g.up;
  out["bytes_in"] = g.sample.bytes_in;
  out["bytes_out"] = g.sample.bytes_out;
  out["frames_in"] = g.sample.frames_in;
  out["frames_out"] = g.sample.frames_out;
  out["rtt_ns"] = g.sample.rtt_ns;
  out["link_retransmits"] = g.sample.retransmits;
  out["backlog_bytes"] = g.backlog;
  out["features"] = g.features;
  return out;
}

nb::dict session_dict(const SessionStats& s) {
  nb::dict out;
  out["session"] = s.session;
  out["node"] = s.peer_node;
  add_counters(out, s.count);
  out["transfers_out"] = s.transfers_out;
  out["transfers_in"] = s.transfers_in;
  out["reports_unacked"] = s.reports_unacked;
  out["reports_blocked"] = s.reports_blocked;
  return out;
}

nb::dict stats_dict(Engine& engine) {
  EngineStats stats;
  {
    bind::ReleasedGil released;
    stats = engine.stats();
  }
  nb::list groups, sessions, ends;
  for (const SessionStats& s : stats.sessions) {
    for (const GroupStats& group : s.groups) groups.append(group_dict(s, group));
    sessions.append(session_dict(s));
  }
  for (u32 end = 0; end < 4; ++end)
    for (u32 reason = 0; reason < u32(Reason::count); ++reason)
      if (stats.ends[end][reason] != 0) ends.append(nb::make_tuple(end, reason, stats.ends[end][reason]));
  nb::dict out, closed;
  add_counters(closed, stats.closed);
  out["groups"] = groups;
  out["sessions"] = sessions;
  out["closed_sessions"] = closed;
  out["ends"] = ends;
  out["wakeups"] = stats.wakeups;
  out["flows_out"] = stats.flows_out;
  out["flows_in"] = stats.flows_in;
  out["unknown_flows"] = stats.unknown_flows;
  out["orphan_returns"] = stats.orphan_returns;
  out["slots_taken"] = stats.slots_taken;
  out["slot_waits"] = stats.slot_waits;
  out["segment_waits"] = stats.segment_waits;
  out["releases_refused"] = stats.releases_refused;
  out["limits_hit"] = stats.limits_hit;
  return out;
}

nb::list rails_list(Engine& engine, u64 session, u64 size) {
  std::vector<RailStats> rails;
  {
    bind::ReleasedGil released;
    rails = engine.rails(session, size);
  }
  nb::list out;
  for (const RailStats& r : rails) {
    nb::dict rail;
    rail["rail"] = r.rail;
    rail["state"] = paths::name(r.terms.state);
    rail["rate"] = r.terms.rate;
    rail["rate_now"] = r.terms.rate_now;
    rail["base_ns"] = r.terms.base_ns;
    rail["inflight"] = r.terms.inflight;
    rail["window"] = r.terms.window;
    rail["finish_ns"] = r.terms.finish_ns;
    rail["silent_ns"] = r.terms.silent_ns;
    rail["delivered"] = r.terms.delivered;
    rail["resent"] = r.terms.resent_from;
    rail["failures"] = r.terms.failures;
    rail["penalty"] = r.terms.penalty;
    rail["held_until_ns"] = r.terms.held_until;
    rail["left_out"] = r.terms.left_out;
    rail["is_primary"] = r.is_primary;
    out.append(rail);
  }
  return out;
}

nb::list decisions_list(Engine& engine, u64 session) {
  std::vector<paths::Decision> decisions;
  {
    bind::ReleasedGil released;
    decisions = engine.decisions(session);
  }
  nb::list out;
  for (const paths::Decision& d : decisions) {
    nb::dict decision;
    nb::list finish;
    for (u64 at : d.finish_ns) finish.append(at);
    decision["at_ns"] = d.at_ns;
    decision["pending"] = d.pending;
    decision["bytes"] = d.bytes;
    decision["rail"] = d.rail;
    decision["why"] = paths::name(d.why);
    decision["finish_ns"] = finish;
    out.append(decision);
  }
  return out;
}

constexpr const char* kStatsDoc =
    "Counters and gauges at one moment. `groups`: one dict per session and connection group (session, group, up, bytes_in,\n"
    "bytes_out, frames_in, frames_out, rtt_ns, link_retransmits, backlog_bytes, features). `sessions`: per session, counters\n"
    "since it began (messages_in/out, payload_bytes_in/out: hop-acknowledged; retransmits, repeats, crc_errors, chunks_late, gaps,\n"
    "breaks, silent_breaks, protocol_breaks, transfers_done_in/out, transfers_aborted, transfers_stalled, backlog_stalls,\n"
    "lane_stalls, slot_stalls, foreign) and gauges (transfers_in/out, reports_unacked, reports_blocked). `closed_sessions`:\n"
    "the same counters summed over sessions that ended. `ends`: (end, reason, count) of messages that ended in the engine.\n"
    "Engine-wide gauges: flows_out, flows_in, unknown_flows, orphan_returns, slots_taken, slot_waits, segment_waits; counters:\n"
    "wakeups, releases_refused, limits_hit.";

constexpr const char* kInjectDoc =
    "Test faults, refused unless FABRIC_FAULTS=1. Links, all present and future ones (0 = off): link_delay_us, link_rate_bytes\n"
    "(a second), link_lose, link_repeat, link_reorder, link_corrupt (the n-th frame, then one in n), link_stall (ms), link_cut_at (once,\n"
    "after so many posted bytes), link_none (all off). Behind the link, the n-th once: corrupt_chunk, lose_record, repeat_record,\n"
    "flip_after_checksum, zero_after_checksum; stall (ms), drop_connection (group).";

nb::list event_list(Engine& engine) {
  std::vector<EngineEvent> events;
  {
    bind::ReleasedGil released;
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
    bind::ReleasedGil released;
    status = call();
  }
  check(status);
}

/// Takes a link out of its capsule, which must be of this build and not taken before.
std::unique_ptr<Link> take_link(nb::handle capsule) {
  const char* name = link_capsule_name().c_str();
  if (!PyCapsule_IsValid(capsule.ptr(), name)) {
    const char* found = PyCapsule_CheckExact(capsule.ptr()) ? PyCapsule_GetName(capsule.ptr()) : nullptr;
    const std::string what = found != nullptr ? "'" + std::string(found) + "'" : "no link";
    throw nb::value_error(("expected a link as this build makes them ('" + link_capsule_name() + "'), found " + what).c_str());
  }
  std::unique_ptr<Link> link(static_cast<Link*>(PyCapsule_GetPointer(capsule.ptr(), name)));
  PyCapsule_SetDestructor(capsule.ptr(), nullptr);
  PyCapsule_SetName(capsule.ptr(), kLinkTaken);
  return link;
}

void bind_sessions(nb::class_<Engine>& engine) {
  engine
      .def("open_session", [](Engine& e, u64 session, u32 peer_node, u64 peer_incarnation) {
        checked([&] { return e.open_session(session, peer_node, peer_incarnation); });
      }, "session"_a, "peer_node"_a, "peer_incarnation"_a)
      .def("add_connection", [](Engine& e, u64 session, int fd, u32 group, u32 features) {
        checked([&] { return e.add_connection(session, fd, group, features); });
      }, "session"_a, "fd"_a, "group"_a, "features"_a = 0,
      "Takes a handshaken socket (also on failure). Group: rail × 2 + kind; kind 0 is control and token, 1 embedding and\n"
      "bulk. `features`: what the handshake agreed on; 1: chunks without checksums.")
      .def("rails", &rails_list, "session"_a, "size"_a = u64{1} << 20,
           nb::sig("def rails(self, session: int, size: int = 1048576) -> list[dict[str, typing.Any]]"),
           "The terms of each rail's score now: rail, state, rate and rate_now (bytes/s), base_ns, inflight and window (bytes),\n"
           "finish_ns (predicted, for `size` bytes), silent_ns, delivered and resent (bytes), failures, penalty, held_until_ns,\n"
           "is_primary (records go over it), left_out (why it gets no chunks although it is up; empty: it does).")
      .def("decisions", &decisions_list, "session"_a,
           nb::sig("def decisions(self, session: int) -> list[dict[str, typing.Any]]"),
           "The last choices of a rail for a chunk, with every usable rail's predicted finish (0: not usable).")
      .def("pin", [](Engine& e, u64 session, u32 mask) { checked([&] { return e.pin(session, mask); }); }, "session"_a, "mask"_a,
           "Use only these rails, a bit each; 0: all.")
      .def("lose_rail", [](Engine& e, u64 session, u32 rail, const std::string& reason) {
        checked([&] { return e.lose_rail(session, rail, reason); });
      }, "session"_a, "rail"_a, "reason"_a, "Give up both connections of a rail now: its interface is gone.")
      .def("add_inproc", [](Engine& e, u64 session, u64 link, u32 group) {
        checked([&] { return e.add_inproc(session, link, group); });
      }, "session"_a, "link"_a, "group"_a)
      .def("add_link", [](Engine& e, u64 session, nb::handle capsule, u32 group, u32 features) {
        std::unique_ptr<Link> link = take_link(capsule);
        checked([&] { return e.add_link(session, std::move(link), group, features); });
      }, "session"_a, "link"_a, "group"_a, "features"_a = 0,
      "As add_connection, with a link that another extension module made (fabric.links.ucx); once taken it is the engine's.")
      .def("close_session", &Engine::close_session, "session"_a, Released())
      .def("add_forward", [](Engine& e, u64 flow, u32 lane, u64 session) {
        checked([&] { return e.add_forward(flow, lane, session); });
      }, "flow"_a, "lane"_a, "session"_a)
      .def("weigh", [](Engine& e, u32 channel, u32 weight) { checked([&] { return e.weigh(channel, weight); }); },
           "channel"_a, "weight"_a, "A channel's part of what a tenant's channels send to one peer in large messages; 1 unless said.")
      .def("add_deliver", [](Engine& e, u64 flow, u32 lane, u64 session, u64 published) {
        checked([&] { return e.add_deliver(flow, lane, session, published); });
      }, "flow"_a, "lane"_a, "session"_a, "published"_a = 0,
      "`published`: last flow_seq known to have reached the receiver (its `drained`), 0 for a new flow.")
      .def("remove_flow", &Engine::remove_flow, "flow"_a, Released());
}

void bind_memory(nb::class_<Engine>& engine) {
  engine
      .def("add_lane", [](Engine& e, u32 lane, int pair_fd, int side, u32 klass, u64 peer_port, u64 peer_incarnation,
                          int peer_doorbell_fd, int peer_event_fd, u32 tenant) {
        checked([&] {
          return e.add_lane({lane, pair_fd, side, klass, peer_port, peer_incarnation, peer_doorbell_fd, peer_event_fd, tenant});
        });
      }, "lane"_a, "pair_fd"_a, "side"_a, "klass"_a, "peer_port"_a, "peer_incarnation"_a, "peer_doorbell_fd"_a,
         "peer_event_fd"_a, "tenant"_a = 0, "`tenant`: whose port it leads to; tenants share a peer equally.")
      .def("remove_lane", &Engine::remove_lane, "lane"_a, Released())
      .def("add_segment", [](Engine& e, u32 segment, int fd, bool writable) {
        checked([&] { return e.add_segment(segment, fd, writable); });
      }, "segment"_a, "fd"_a, "writable"_a)
      .def("idle_segments", &Engine::idle_segments, Released(), "Own segments with every slot free.")
      .def("drop_segment", [](Engine& e, u32 segment) { checked([&] { return e.drop_segment(segment); }); }, "segment"_a,
           "Unmap it; messages that wait for a foreign one that will not come end as failed(corrupted). CapacityError while a\n"
           "slot of an own one is taken.")
      .def("ask_again", &Engine::ask_again, Released(), "Ask again for what could not be served: tells `grow` anew for what still waits.")
      .def("reclaim", [](Engine& e, u32 segment, const std::vector<std::tuple<u32, u32, u64, u32>>& holders) {
        std::vector<Engine::Holder> held;
        for (const auto& [slot, generation, flow, lane] : holders) held.push_back({slot, generation, flow, lane});
        bind::ReleasedGil released;
        return e.reclaim(segment, held);
      }, "segment"_a, "holders"_a,
      "After a restart: frees the slots of an own segment; returns how many. Kept are those that `holders` (slot, generation,\n"
      "flow, lane) read, taken from the held tables after every lane was added, and those named by records still in a lane.")
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
      .def("stats", &stats_dict, nb::sig("def stats(self) -> dict[str, typing.Any]"), kStatsDoc)
      .def("inject", [](Engine& e, const std::string& fault, u64 argument) {
        checked([&] { return e.inject(fault, argument); });
      }, "fault"_a, "argument"_a, kInjectDoc);
  bind_memory(engine);
  bind_sessions(engine);
}

}  // namespace fabric
