// Sampling for telemetry.
#include "core/sample.hpp"

#include <nanobind/nanobind.h>

#include "bind/endpoints.hpp"
#include "bind/ends.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace fabric {
namespace {

nb::dict ledger_row(const SampledLedger& ledger) {
  nb::dict row;
  row["endpoint"] = ledger.endpoint;
  row["channel"] = ledger.channel;
  row["pattern"] = ledger.pattern;
  row["delivery"] = ledger.delivery;
  row["klass"] = ledger.klass;
  row["accepted"] = ledger.accepted;
  row["delivered_bytes"] = ledger.delivered_bytes;
  row["outstanding"] = ledger.outstanding;
  row["outstanding_bytes"] = ledger.outstanding_bytes;
  row["waiting"] = ledger.waiting;
  row["counts"] = bind::ends_dict(ledger.counts);
  return row;
}

nb::dict flow_row(const SampledFlow& flow) {
  nb::dict row;
  row["flow"] = flow.flow;
  row["endpoint"] = flow.endpoint;
  row["channel"] = flow.channel;
  row["lane"] = flow.lane;
  row["drained"] = flow.drained;
  row["handed"] = flow.handed;
  row["ended_upto"] = flow.ended_upto;
  row["returned"] = flow.returned;
  row["payload_bytes"] = flow.payload_bytes;
  return row;
}

nb::dict held_row(const SampledHeld& held) {
  nb::dict row;
  row["channel"] = held.channel;
  row["queued"] = held.queued;
  row["queued_bytes"] = held.queued_bytes;
  row["views"] = held.views;
  row["view_bytes"] = held.view_bytes;
  row["oldest_view_ns"] = held.oldest_view_ns;
  return row;
}

nb::dict state_dict(const StateSampler& sampler) {
  SampledState seen{};
  sampler.sample(seen);
  nb::dict out;
  nb::list ledgers, flows, held;
  for (const auto& row : seen.ledgers) ledgers.append(ledger_row(row));
  for (const auto& row : seen.flows) flows.append(flow_row(row));
  for (const auto& row : seen.held) held.append(held_row(row));
  out["heartbeat_ns"] = seen.heartbeat_ns;
  out["ledgers"] = ledgers;
  out["flows"] = flows;
  out["held"] = held;
  return out;
}

nb::dict lane_dict(const LaneSampler& sampler, int direction) {
  const SampledLane seen = sampler.sample(direction);
  nb::dict out;
  out["record_bytes"] = seen.record_bytes;
  out["record_bytes_total"] = seen.record_bytes_total;
  out["returns"] = seen.returns;
  out["returns_total"] = seen.returns_total;
  return out;
}

nb::dict segment_dict(int fd) {
  SampledSegment seen{};
  check(released([&] { return sample_segment(fd, seen); }));
  nb::dict out;
  out["slot_bytes"] = seen.slot_bytes;
  out["slot_count"] = seen.slot_count;
  out["taken"] = seen.taken;
  return out;
}

template <class Sampler> void construct(Sampler* self, int fd) {
  auto* sampler = new (self) Sampler;
  Status status = sampler->open(fd);
  if (!status.ok()) {
    sampler->~Sampler();
    raise(status);
  }
}

}  // namespace

void bind_sample(nb::module_& module) {
  nb::class_<StateSampler>(module, "StateSampler", "Looks at a living port from outside; the fd stays the caller's.")
      .def("__init__", construct<StateSampler>, "fd"_a)
      .def("sample", state_dict, nb::sig("def sample(self) -> dict[str, typing.Any]"),
           "heartbeat_ns; ledgers, counts by (end, reason), asides included; flows; held, one row a channel.\n\n"
           "Never raises for a race; sums may be of slightly different moments.");
  nb::class_<LaneSampler>(module, "LaneSampler", "Looks at a lane pair from outside; the fd stays the caller's.")
      .def("__init__", construct<LaneSampler>, "fd"_a)
      .def("sample", lane_dict, "direction"_a, nb::sig("def sample(self, direction: int) -> dict[str, int]"),
           "record_bytes and returns in the rings of a direction now, and what went through since creation.");
  module.def("sample_segment", segment_dict, "fd"_a, nb::sig("def sample_segment(fd: int) -> dict[str, int]"),
             "slot_bytes, slot_count and taken slots of an arena segment.");
}

}  // namespace fabric
