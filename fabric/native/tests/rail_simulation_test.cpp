// Any schedule of rates, losses, failures and returns: every byte is handed over exactly once while one rail works.
//
// FABRIC_SEEDS=first:count replaces the seeds; a failing one is printed with what to do with it.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "sim/cluster.hpp"
#include "sim/simulation.hpp"
#include "tests/check.hpp"

namespace fabric::sim {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr u64 kSeeds = 100;
#else
constexpr u64 kSeeds = 1000;
#endif

Plan plan_of(const char* text) {
  Plan plan;
  const std::string wrong = parse(text, plan);
  if (!wrong.empty()) std::fprintf(stderr, "%s\n", wrong.c_str());
  CHECK(wrong.empty());
  return plan;
}

Result must_hold(const Plan& plan) {
  const Result result = Simulation(plan, {}).run();
  if (result.violation.empty()) return result;
  std::fprintf(stderr, "seed %llu at %.6f s: %s\nkeep it: save what follows as tests/simulation/plans/NAME.plan\n%s",
               static_cast<unsigned long long>(plan.seed), static_cast<double>(result.at_ns) / 1e9, result.violation.c_str(), to_text(plan).c_str());
  std::exit(1);
}

void every_schedule_delivers_every_chunk_once() {
  unsigned long long first = 1, count = kSeeds;
  if (const char* seeds = std::getenv("FABRIC_SEEDS")) CHECK(std::sscanf(seeds, "%llu:%llu", &first, &count) == 2);
  for (u64 seed = first; seed < first + count; ++seed) must_hold(random_plan(seed));
}

void a_run_can_be_repeated() {
  for (u64 seed = 1; seed <= 20; ++seed) {
    const Result one = must_hold(random_plan(seed)), two = must_hold(random_plan(seed));
    CHECK(one.log == two.log && one.events == two.events && one.at_ns == two.at_ns);
  }
}

void a_plan_survives_its_text() {
  for (u64 seed = 1; seed <= 200; ++seed) {
    const Plan plan = random_plan(seed);
    CHECK(to_text(plan_of(to_text(plan).c_str())) == to_text(plan));
  }
  const Plan plan = random_plan(7);
  CHECK(must_hold(plan).log == must_hold(plan_of(to_text(plan).c_str())).log);
}

void a_plan_that_cannot_be_read_names_its_line() {
  Plan plan;
  CHECK(parse("rail rate=1000\ntransfer bytes=5\nrail speed=5\n", plan) == "line 3: unknown key speed");
  CHECK(parse("rail rate=fast\n", plan) == "line 1: rate is no number: fast");
  CHECK(parse("rail\noutage rail=1 from_us=5 to_us=6\n", plan) == "line 2: there is no rail 1 above this line");
  CHECK(parse("rail\ntransfer bytes=0\n", plan).find("line 2: ") == 0);
  CHECK(parse("rail\ntransfer bytes=1 count=999999999\n", plan) == "more transfers than 1000000");
  CHECK(parse("", plan) == "no rail");
}

/// A rail stalls in the middle of a chunk, the chunk goes again elsewhere, its message is handed over, given back and its
/// memory used again; then the rail goes on.
constexpr const char* kStallAndRevive =
    "run seed=3 slots=1 hold_us=0\n"
    "rail rate=125000000 delay_us=50 queue=4000000\n"
    "rail rate=125000000 delay_us=50 queue=4000000\n"
    "rate rail=1 at_us=20100 rate=0\n"
    "rate rail=1 at_us=180000 rate=125000000\n"
    "transfer bytes=4194304 count=40\n";

void a_piece_that_comes_late_never_touches_the_new_message() {
  const Result result = must_hold(plan_of(kStallAndRevive));
  CHECK(result.scratch > 0);             // pieces did come late
}

void the_audit_notices_a_receiver_that_does_not_look_before_each_piece() {
  Options options;
  options.rules.checks_each_piece = false;
  CHECK(!Simulation(plan_of(kStallAndRevive), options).run().violation.empty());
}

void a_schedule_in_which_nothing_works_for_good_is_no_livelock() {
  const Result result = must_hold(plan_of(
      "run seed=5 slots=2\nrail rate=125000000\n"
      "outage rail=0 from_us=10000 to_us=3010000\ntransfer bytes=16777216 count=4\n"));
  CHECK(result.at_ns < 4'000'000'000);
}

void silence_while_no_rail_works_is_nobodys_fault() {
  const Result result = Simulation(plan_of("run seed=5\nrail rate=125000000 queue=1\nrail rate=2000000 loss=20000\n"
                                           "rate rail=0 at_us=1 rate=0\nrate rail=1 at_us=1000 rate=0\n"
                                           "rate rail=0 at_us=60000000 rate=125000000\ntransfer bytes=16777216\n"), {}).run();
  CHECK(result.violation.empty());
}

ClusterResult replay(Policy policy) {
  ClusterPlan plan;
  plan.policy = policy;
  plan.nodes = 20;
  plan.rates.assign(8, 5e9);
  for (u32 i = 0; i < 8; ++i) plan.slow.push_back({i, i, 0.1});
  Random random(3);
  for (u64 i = 0; i < 60; ++i)
    plan.transfers.push_back({i * 1'000'000, random.between(1, 64 << 20), static_cast<u32>(random.below(10)), static_cast<u32>(random.between(10, 19))});
  Cluster cluster(plan);
  while (cluster.run(1000)) {}
  return cluster.take();
}

void every_policy_delivers_a_trace_and_can_be_repeated() {
  for (const Policy policy : {Policy::adaptive, Policy::hashed, Policy::striped}) {
    const ClusterResult one = replay(policy), two = replay(policy);
    CHECK(one.violation.empty() && one.took_ns.size() == 60);
    for (const u64 took : one.took_ns) CHECK(took > 0);
    CHECK(one.took_ns == two.took_ns && one.log == two.log);
  }
}

}  // namespace
}  // namespace fabric::sim

int main() {
  using namespace fabric::sim;
  a_plan_survives_its_text();
  a_plan_that_cannot_be_read_names_its_line();
  a_piece_that_comes_late_never_touches_the_new_message();
  the_audit_notices_a_receiver_that_does_not_look_before_each_piece();
  a_schedule_in_which_nothing_works_for_good_is_no_livelock();
  silence_while_no_rail_works_is_nobodys_fault();
  a_run_can_be_repeated();
  every_policy_delivers_a_trace_and_can_be_repeated();
  every_schedule_delivers_every_chunk_once();
  std::puts("rail simulation: ok");
}
