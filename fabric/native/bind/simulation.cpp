// The simulator of rails: one schedule, many drawn from seeds, a trace over many nodes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bind/gil.hpp"
#include "sim/cluster.hpp"
#include "sim/simulation.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace fabric {
namespace {

constexpr u64 kEventsBetweenSignals = 2'000'000;

sim::Plan plan_of(const std::string& text) {
  sim::Plan plan;
  const std::string wrong = sim::parse(text, plan);
  if (!wrong.empty()) throw nb::value_error(wrong.c_str());
  return plan;
}

nb::dict rail_row(const paths::RailTerms& terms) {
  nb::dict row;
  row["state"] = paths::name(terms.state);
  row["rate"] = terms.rate;
  row["base_ns"] = terms.base_ns;
  row["delivered"] = terms.delivered;
  row["resent"] = terms.resent_from;
  row["failures"] = terms.failures;
  row["left_out"] = terms.left_out;
  return row;
}

nb::dict simulate_plan(const std::string& text, u64 bucket_ns) {
  const sim::Plan plan = plan_of(text);
  if (bucket_ns == 0) throw nb::value_error("bucket_ns is at least 1");
  sim::Options options;
  options.bucket_ns = bucket_ns;
  sim::Result result;
  {
    bind::ReleasedGil unlocked;
    result = sim::Simulation(plan, options).run();
  }
  nb::dict out;
  out["violation"] = result.violation;
  out["at_ns"] = result.at_ns;
  out["events"] = result.events;
  out["delivered"] = result.delivered;
  out["posted"] = result.posted;
  out["resent"] = result.resent;
  out["scratch"] = result.scratch;
  out["corrupt"] = result.corrupt;
  out["gap_ns"] = result.gap_ns;
  out["log"] = result.log;
  out["buckets"] = result.buckets;
  out["took_ns"] = result.took_ns;
  nb::list rails;
  for (const paths::RailTerms& terms : result.rails) rails.append(rail_row(terms));
  out["rails"] = rails;
  return out;
}

std::vector<std::tuple<u64, u64, std::string>> simulate_seeds(u64 first, u64 count) {
  bind::ReleasedGil unlocked;
  std::vector<std::tuple<u64, u64, std::string>> failed;
  for (u64 seed = first; seed < first + count; ++seed) {
    const sim::Result result = sim::Simulation(sim::random_plan(seed), {}).run();
    if (!result.violation.empty()) failed.emplace_back(seed, result.at_ns, result.violation);
  }
  return failed;
}

sim::Policy policy_of(const std::string& name) {
  if (name == "adaptive") return sim::Policy::adaptive;
  if (name == "hashed") return sim::Policy::hashed;
  if (name == "striped") return sim::Policy::striped;
  throw nb::value_error("policy is adaptive, hashed or striped");
}

using TransferRow = std::tuple<u64, u64, u32, u32>;
using SlowRow = std::tuple<u32, u32, double>;

sim::ClusterPlan cluster_plan(const std::string& policy, u32 nodes, const std::vector<double>& rates, u64 delay_ns,
                              const std::vector<TransferRow>& transfers, const std::vector<SlowRow>& slow, u32 flows, u64 seed) {
  if (nodes < 2 || nodes > sim::kNodesMax) throw nb::value_error("nodes is out of bounds");
  if (rates.empty() || rates.size() > paths::kRailsMax) throw nb::value_error("1 to 8 rates, one a rail");
  if (flows == 0 || flows > 1024) throw nb::value_error("flows is 1 to 1024");
  if (transfers.size() > sim::kTransfersMax) throw nb::value_error("too many transfers");
  sim::ClusterPlan plan;
  plan.policy = policy_of(policy);
  plan.nodes = nodes;
  plan.rates = rates;
  plan.delay_ns = delay_ns;
  plan.flows = flows;
  plan.seed = seed;
  for (const double rate : rates)
    if (!(rate >= 1)) throw nb::value_error("a rate is at least 1 byte/s");
  for (const auto& [at, bytes, source, target] : transfers) {
    if (source >= nodes || target >= nodes || source == target) throw nb::value_error("a transfer joins two different nodes");
    if (bytes == 0 || bytes > sim::kTransferBytesMax) throw nb::value_error("a transfer has 1 to 2^40 bytes");
    plan.transfers.push_back({at, bytes, source, target});
  }
  for (const auto& [node, rail, factor] : slow) {
    if (node >= nodes || rail >= rates.size() || !(factor > 0)) throw nb::value_error("there is no such slow rail");
    plan.slow.push_back({node, rail, factor});
  }
  return plan;
}

nb::dict simulate_cluster(const std::string& policy, u32 nodes, const std::vector<double>& rates, u64 delay_ns,
                          const std::vector<TransferRow>& transfers, const std::vector<SlowRow>& slow, u32 flows, u64 seed) {
  const sim::ClusterPlan plan = cluster_plan(policy, nodes, rates, delay_ns, transfers, slow, flows, seed);
  sim::Cluster cluster(plan);
  for (bool more = true; more;) {
    {
      bind::ReleasedGil unlocked;
      more = cluster.run(kEventsBetweenSignals);
    }
    if (PyErr_CheckSignals() != 0) throw nb::python_error();
  }
  const sim::ClusterResult result = cluster.take();
  nb::dict out;
  out["violation"] = result.violation;
  out["took_ns"] = result.took_ns;
  out["chunks"] = result.chunks;
  out["bytes"] = result.bytes;
  out["resent"] = result.resent_bytes;
  out["end_ns"] = result.end_ns;
  out["log"] = result.log;
  return out;
}

}  // namespace

void bind_simulation(nb::module_& module) {
  module.def("simulate_plan", simulate_plan, "text"_a, "bucket_ns"_a = 50'000'000,
             nb::sig("def simulate_plan(text: str, bucket_ns: int = 50000000) -> dict[str, typing.Any]"),
             "Run one schedule (docs/guides/simulation.md); ``violation`` is empty when everything held. ValueError names a line.");
  module.def("random_plan", [](u64 seed) { return sim::to_text(sim::random_plan(seed)); }, "seed"_a,
             "The schedule that a seed draws, as text.");
  module.def("simulate_seeds", simulate_seeds, "first"_a, "count"_a,
             "Run the schedules of `count` seeds; returns (seed, at_ns, violation) of those in which something did not hold.");
  module.def("simulate_cluster", simulate_cluster, "policy"_a, "nodes"_a, "rates"_a, "delay_ns"_a, "transfers"_a, "slow"_a,
             "flows"_a, "seed"_a,
             nb::sig("def simulate_cluster(policy: str, nodes: int, rates: Sequence[float], delay_ns: int, "
                     "transfers: Sequence[tuple[int, int, int, int]], slow: Sequence[tuple[int, int, float]], flows: int, "
                     "seed: int) -> dict[str, typing.Any]"),
             "Replay transfers (at_ns, bytes, source, target) over nodes with rails of `rates` (bytes/s); `slow` holds (node, "
             "rail, factor). policy: adaptive, hashed, striped. ``took_ns`` by transfer.");
}

}  // namespace fabric
