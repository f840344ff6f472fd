// Inspection of segments and adoption of dead ports.
#include "core/inspect.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include "bind/endpoints.hpp"
#include "bind/ends.hpp"
#include "core/adopter.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace fabric {
namespace {

const char* name_of(OutState state) {
  static const char* const names[] = {"empty", "pending", "accepted", "ended", "waiting"};
  return names[static_cast<int>(state)];
}
const char* name_of(HeldState state) {
  static const char* const names[] = {"free", "queued", "handed", "ended", "releasing"};
  return names[static_cast<int>(state)];
}

nb::dict flow_row(const InspectedFlow& flow) {
  nb::dict row;
  row["flow"] = flow.flow;
  row["endpoint"] = flow.endpoint;
  row["channel"] = flow.channel;
  row["lane"] = flow.lane;
  row["drained"] = flow.drained;
  row["handed"] = flow.handed;
  row["ended_upto"] = flow.ended_upto;
  nb::list reported;
  for (u64 count : flow.reported) reported.append(count);
  row["reported"] = reported;
  row["returned"] = flow.returned;
  row["payload_bytes"] = flow.payload_bytes;
  return row;
}

nb::dict held_row(const InspectedHeld& held) {
  nb::dict row;
  row["flow"] = held.flow;
  row["flow_seq"] = held.flow_seq;
  row["state"] = name_of(held.state);
  row["segment"] = held.segment;
  row["slot"] = held.slot;
  row["generation"] = held.generation;
  row["since_ns"] = held.since_ns;
  row["payload_bytes"] = held.payload_bytes;
  row["segments"] = held.segments;
  row["channel"] = held.channel;
  return row;
}

nb::dict ledger_row(const InspectedLedger& ledger) {
  nb::dict row;
  row["endpoint"] = ledger.endpoint;
  row["channel"] = ledger.channel;
  row["pattern"] = ledger.pattern;
  row["delivery"] = ledger.delivery;
  row["klass"] = ledger.klass;
  row["accepted"] = ledger.accepted;
  row["tail"] = ledger.tail;
  row["delivered_bytes"] = ledger.delivered_bytes;
  row["counts"] = bind::ends_dict(ledger.counts);
  nb::list outstanding;
  for (const InspectedOut& out : ledger.outstanding) {
    nb::dict entry;
    entry["sequence"] = out.sequence;
    entry["flow"] = out.flow;
    entry["flow_seq"] = out.flow_seq;
    entry["payload_bytes"] = out.payload_bytes;
    entry["state"] = name_of(out.state);
    entry["end"] = static_cast<int>(out.end);
    entry["reason"] = static_cast<int>(out.reason);
    outstanding.append(entry);
  }
  row["outstanding"] = outstanding;
  return row;
}

nb::dict state_dict(int fd) {
  InspectedState seen{};
  check(released([&] { return inspect_state(fd, seen); }));
  nb::dict out;
  out["port"] = seen.port;
  out["incarnation"] = seen.incarnation;
  out["tenant"] = seen.tenant;
  out["heartbeat_ns"] = seen.heartbeat_ns;
  out["busy"] = seen.busy;
  nb::list flows, held, ledgers;
  for (const auto& flow : seen.flows) flows.append(flow_row(flow));
  for (const auto& entry : seen.held) held.append(held_row(entry));
  for (const auto& ledger : seen.ledgers) ledgers.append(ledger_row(ledger));
  out["flows"] = flows;
  out["held"] = held;
  out["ledgers"] = ledgers;
  return out;
}

nb::list ledger_list(int fd, const std::vector<u64>& endpoints) {
  std::vector<InspectedLedger> seen;
  check(released([&] { return inspect_ledgers(fd, endpoints, seen); }));
  nb::list out;
  for (const auto& ledger : seen) out.append(ledger_row(ledger));
  return out;
}

nb::dict lane_dict(int fd, int direction) {
  InspectedLane seen{};
  check(released([&] { return inspect_lane(fd, direction, seen); }));
  nb::dict out;
  nb::list records, returns;
  for (const auto& record : seen.records) {
    if (record.kind != static_cast<u8>(RecordKind::message)) continue;  // its message ended elsewhere
    records.append(nb::make_tuple(record.flow, record.flow_seq, record.sequence, record.channel));
  }
  for (const ReturnEntry& entry : seen.returns) {
    returns.append(nb::make_tuple(entry.kind, entry.flow, entry.a, entry.b, entry.end, entry.reason));
  }
  out["records"] = records;
  out["returns"] = returns;
  out["head"] = seen.head;
  out["tail"] = seen.tail;
  out["return_head"] = seen.return_head;
  out["return_tail"] = seen.return_tail;
  return out;
}

Reason reason_of(u32 value) {
  if (value == 0 || value >= static_cast<u32>(Reason::count)) throw nb::value_error("no such reason");
  return static_cast<Reason>(value);
}

}  // namespace

void bind_inspect(nb::module_& module) {
  module.def("inspect_state", state_dict, "fd"_a, nb::sig("def inspect_state(fd: int) -> dict[str, typing.Any]"),
             "What a state segment says: port, incarnation, tenant, heartbeat_ns, busy, flows, held, ledgers.\n\n"
             "Ledger `counts` are the folded ones; `outstanding` lists every entry behind the tail, states as words\n"
             "(pending, accepted, ended, waiting). Raises InternalError for what cannot be true.");
  module.def("inspect_ledgers", ledger_list, "fd"_a, "endpoints"_a,
             nb::sig("def inspect_ledgers(fd: int, endpoints: collections.abc.Sequence[int]) -> list[dict[str, typing.Any]]"),
             "The ledgers of some endpoints, as `inspect_state` gives them; those that there are.");
  module.def("inspect_lane", lane_dict, "fd"_a, "direction"_a,
             nb::sig("def inspect_lane(fd: int, direction: int) -> dict[str, typing.Any]"),
             "records [(flow, flow_seq, sequence, channel)], returns [(kind, flow, a, b, end, reason)] and cursors of\n"
             "one direction (d: written by side d). Raises InternalError for a cursor or record that cannot be true.");
  nb::class_<Adopter>(module, "Adopter", "Acts for a dead port: settles its ledgers. Not thread-safe.")
      .def("__init__", [](Adopter* self, int state_fd) {
        auto* adopter = new (self) Adopter;
        Status status = adopter->open(state_fd);
        if (!status.ok()) {
          adopter->~Adopter();
          raise(status);
        }
      }, "state_fd"_a)
      .def("add_lane", [](Adopter& a, int fd, int side, u32 lane) { check(a.add_lane(fd, side, lane)); }, "pair_fd"_a,
           "side"_a, "lane"_a = 0, "A lane of the dead port; `side` is the dead port's. All of them before the first step().")
      .def("place_flow", &Adopter::place_flow, "flow"_a, "lane"_a, "No other lane has a say in how its messages ended.")
      .def("lose_flow", [](Adopter& a, u64 flow, u64 handed_upto, u32 reason) {
        a.lose_flow(flow, handed_upto, reason_of(reason));
      }, "flow"_a, "handed_upto"_a, "reason"_a, "The flow's receiver is dead, too: settle what is left of it.")
      .def("step", &Adopter::step, "Apply what was returned; outstanding messages left.")
      .def("finish", [](Adopter& a, u32 reason) { a.finish(reason_of(reason)); }, "reason"_a,
           "Everything left fails with `reason`.");
}

}  // namespace fabric
