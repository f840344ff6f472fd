// RouteKernel: the built-in policies on values, for the conformance suite and for whoever wants to try one.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <unordered_map>

#include "bind/endpoints.hpp"
#include "core/route_kernel.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace fabric {
namespace {

/// endpoint, outstanding, load, service_ns, weight, rank, distance
using Row = std::tuple<u64, u64, u64, u64, double, u32, u32>;

struct PyRouteKernel {
  RouteKernel kernel;
  std::unordered_map<u64, double> turns;  ///< a sender's flows keep them from one choice to the next

  std::size_t choose(const std::vector<Row>& rows, nb::bytes key) {
    if (rows.empty()) throw nb::value_error("no target");
    std::vector<RouteTarget> targets(rows.size());
    std::vector<RouteTarget*> pointers;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const auto& [endpoint, outstanding, load, service_ns, weight, rank, distance] = rows[i];
      targets[i] = {endpoint, outstanding, {weight, rank, distance, load}, service_ns, turns[endpoint]};
      pointers.push_back(&targets[i]);
    }
    const u64 hash = hash_key({reinterpret_cast<const u8*>(key.c_str()), key.size()});
    const std::size_t found = kernel.choose(pointers, key.size() == 0 ? 0 : hash);
    for (const RouteTarget& target : targets) turns[target.target_endpoint] = target.turn;
    return found;
  }
};

void make(PyRouteKernel* self, const std::string& policy, double load_factor, u64 spill, u64 seed) {
  const RouteKind kind = route_kind(policy);
  if (kind == RouteKind::none) throw nb::value_error("no built-in policy of this name");
  new (self) PyRouteKernel{RouteKernel(kind, {load_factor, spill, seed}), {}};
}

}  // namespace

void bind_route(nb::module_& module) {
  nb::class_<PyRouteKernel>(module, "RouteKernel", "A built-in routing policy on values, as senders run it. Not thread-safe.")
      .def("__init__", make, "policy"_a, nb::kw_only(), "load_factor"_a = 1.25, "spill"_a = 0, "seed"_a = 1)
      .def("choose", &PyRouteKernel::choose, "targets"_a, "key"_a,
           nb::sig("def choose(self, targets: collections.abc.Sequence[tuple[int, int, int, int, float, int, int]], key: bytes) -> int"),
           "Index of the chosen one of `targets`: (endpoint, outstanding, load, service_ns, weight, rank, distance).");
}

}  // namespace fabric
