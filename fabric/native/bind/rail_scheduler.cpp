// The chunk scheduler for Python: dry runs and tests ask the object that decides for live traffic.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "paths/rail_scheduler.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace fabric {
namespace {

using paths::kNoRail;
using paths::RailScheduler;

u32 checked(u32 rail) {
  if (rail >= paths::kRailsMax) throw nb::index_error("a rail has a number below RAILS_PER_PEER_MAX");
  return rail;
}

nb::object pick(RailScheduler& self, u64 left, u64 pending, u64 now, u32 avoid) {
  const paths::Pick found = self.pick(left, pending, now, avoid);
  if (found.rail == kNoRail) return nb::none();
  return nb::make_tuple(found.rail, found.bytes);
}

nb::object fastest(const RailScheduler& self) {
  const u32 rail = self.fastest();
  return rail == kNoRail ? nb::object(nb::none()) : nb::object(nb::int_(rail));
}

nb::tuple tick(RailScheduler& self, u64 now) {
  std::vector<u64> again;
  std::vector<u32> reset;
  self.tick(now, again, reset);
  return nb::make_tuple(again, reset);
}

nb::dict terms(const RailScheduler& self, u32 rail, u64 bytes, u64 now) {
  const paths::RailTerms found = self.terms(checked(rail), bytes, now);
  nb::dict out;
  out["state"] = paths::name(found.state);
  out["rate"] = found.rate;
  out["rate_now"] = found.rate_now;
  out["base_ns"] = found.base_ns;
  out["inflight"] = found.inflight;
  out["window"] = found.window;
  out["finish_ns"] = found.finish_ns;
  out["left_out"] = found.left_out;
  return out;
}

}  // namespace

void bind_rail_scheduler(nb::module_& module) {
  nb::class_<RailScheduler>(module, "RailScheduler",
                            "Which rail carries the next chunk: the engine's own object, driven by `now` in ns.")
      .def(nb::init<>())
      .def("rail_up", [](RailScheduler& self, u32 rail, u64 now) { self.rail_up(checked(rail), now); }, "rail"_a, "now"_a)
      .def("round_trip", [](RailScheduler& self, u32 rail, u64 ns, u64 now) { self.round_trip(checked(rail), ns, now); },
           "rail"_a, "ns"_a, "now"_a)
      .def("pin", &RailScheduler::pin, "mask"_a, "A bit per rail; 0: all.")
      .def("pick", pick, "left"_a, "pending"_a, "now"_a, "avoid"_a = 0,
           nb::sig("def pick(self, left: int, pending: int, now: int, avoid: int = 0) -> tuple[int, int] | None"),
           "Rail for the next chunk and its bytes; None: wait for a delivery.")
      .def("posted", [](RailScheduler& self, u32 rail, u32 bytes, u64 tag, u64 now) {
             return self.posted(checked(rail), bytes, tag, now);
           }, "rail"_a, "bytes"_a, "tag"_a, "now"_a, "Returns the ticket to deliver.")
      .def("delivered", &RailScheduler::delivered, "ticket"_a, "now"_a)
      .def("fastest", fastest, nb::sig("def fastest(self) -> int | None"),
           "The rail for what goes whole; None: no healthy one.")
      .def("tick", tick, "now"_a, nb::sig("def tick(self, now: int) -> tuple[list[int], list[int]]"),
           "Judges the rails: tags to post again, rails whose connections to give up.")
      .def("terms", terms, "rail"_a, "bytes"_a, "now"_a,
           nb::sig("def terms(self, rail: int, bytes: int, now: int) -> dict[str, typing.Any]"),
           "state, rate, rate_now, base_ns, inflight, window, finish_ns, left_out of a rail, for `bytes` more.");
}

}  // namespace fabric
