#include "sim/plan.hpp"

#include <algorithm>
#include <map>
#include <sstream>

#include "paths/rail_scheduler.hpp"

namespace fabric::sim {
namespace {

using Fields = std::map<std::string, u64>;

constexpr u64 kCalmRate = 12'500'000, kCalmQueue = 1 << 20;  // a slower rail drops of the first window, or is late with it

/// Reads `key=value` words. @return empty, or what is wrong.
std::string fields_of(std::istringstream& words, Fields& fields) {
  for (std::string word; words >> word;) {
    const auto equals = word.find('=');
    if (equals == std::string::npos || equals == 0) return "expected key=value, found " + word;
    const std::string digits = word.substr(equals + 1);
    if (digits.empty() || digits.size() > 18 || digits.find_first_not_of("0123456789") != std::string::npos)
      return word.substr(0, equals) + " is no number: " + digits;
    if (!fields.emplace(word.substr(0, equals), std::stoull(digits)).second) return word.substr(0, equals) + " comes twice";
  }
  return {};
}

/// Moves the named fields to where they belong. @return empty, or the name of one that is unknown here.
std::string assign(Fields fields, std::initializer_list<std::pair<const char*, u64*>> places) {
  for (const auto& [name, place] : places) {
    const auto found = fields.find(name);
    if (found == fields.end()) continue;
    *place = found->second;
    fields.erase(found);
  }
  return fields.empty() ? std::string{} : "unknown key " + fields.begin()->first;
}

std::string take_rail(const Fields& fields, Plan& plan) {
  if (plan.rails.size() >= paths::kRailsMax) return "more rails than " + std::to_string(paths::kRailsMax);
  RailPlan rail;
  rail.wire = plan.rails.size();
  const std::string wrong = assign(fields, {{"rate", &rail.rate}, {"delay_us", &rail.delay_us}, {"queue", &rail.queue},
      {"burst", &rail.burst}, {"wire", &rail.wire}, {"switch_us", &rail.switch_us}, {"split_us", &rail.split_us}, {"loss", &rail.loss}, {"corrupt", &rail.corrupt},
      {"repeated_acks", &rail.repeated_acks}, {"late_acks", &rail.late_acks}, {"acks_us", &rail.acks_us}});
  if (rail.wire > plan.rails.size()) return "wire names a rail that comes later";
  plan.rails.push_back(rail);
  return wrong;
}

std::string take_change(const std::string& word, const Fields& fields, Plan& plan) {
  u64 rail = 0, told = 0;
  RateStep step;
  Outage outage;
  std::string wrong = word == "rate" ? assign(fields, {{"rail", &rail}, {"at_us", &step.at_us}, {"rate", &step.rate}})
      : assign(fields, {{"rail", &rail}, {"from_us", &outage.from_us}, {"to_us", &outage.to_us}, {"told", &told}});
  if (!wrong.empty()) return wrong;
  if (rail >= plan.rails.size()) return "there is no rail " + std::to_string(rail) + " above this line";
  outage.told = told != 0;
  if (word == "rate") plan.rails[rail].rates.push_back(step);
  else if (outage.to_us <= outage.from_us) return "it ends before it begins";
  else plan.rails[rail].outages.push_back(outage);
  return {};
}

std::string take_line(const std::string& word, const Fields& fields, Plan& plan) {
  if (word == "rail") return take_rail(fields, plan);
  if (word == "rate" || word == "outage") return take_change(word, fields, plan);
  if (word == "run") return assign(fields, {{"seed", &plan.seed}, {"slots", &plan.slots}, {"hold_us", &plan.hold_us}, {"stop_us", &plan.stop_us},
      {"trial_us", &plan.trial_us}});
  if (word == "transfer") {
    Load load;
    const std::string wrong = assign(fields, {{"at_us", &load.at_us}, {"bytes", &load.bytes}, {"class", &load.klass}, {"count", &load.count}});
    if (load.klass > 3) return "class is 0 … 3";
    if (load.bytes == 0 || load.bytes > kTransferBytesMax) return "bytes is 1 … 2^40";
    plan.loads.push_back(load);
    return wrong;
  }
  if (word == "pause") {
    Pause pause;
    const std::string wrong = assign(fields, {{"from_us", &pause.from_us}, {"to_us", &pause.to_us}});
    if (pause.to_us <= pause.from_us) return "it ends before it begins";
    plan.pauses.push_back(pause);
    return wrong;
  }
  return "unknown word " + word;
}

std::string check(const Plan& plan) {
  if (plan.rails.empty()) return "no rail";
  if (plan.slots == 0) return "slots is at least 1";
  u64 transfers = 0;
  for (const Load& load : plan.loads) transfers += std::min(load.count, kTransfersMax + 1);
  if (transfers == 0) return "no transfer";
  if (transfers > kTransfersMax) return "more transfers than " + std::to_string(kTransfersMax);
  return {};
}

}  // namespace

std::string parse(const std::string& text, Plan& plan) {
  plan = Plan{};
  std::istringstream lines(text);
  u64 number = 0;
  for (std::string line; std::getline(lines, line);) {
    if (++number > kLinesMax) return "more lines than " + std::to_string(kLinesMax);
    std::istringstream words(line.substr(0, line.find('#')));
    std::string word;
    if (!(words >> word)) continue;
    Fields fields;
    std::string wrong = fields_of(words, fields);
    if (wrong.empty()) wrong = take_line(word, fields, plan);
    if (!wrong.empty()) return "line " + std::to_string(number) + ": " + wrong;
  }
  return check(plan);
}

std::string to_text(const Plan& plan) {
  std::ostringstream out;
  out << "run seed=" << plan.seed << " slots=" << plan.slots << " hold_us=" << plan.hold_us << " stop_us=" << plan.stop_us
      << " trial_us=" << plan.trial_us << "\n";
  for (const RailPlan& rail : plan.rails)
    out << "rail rate=" << rail.rate << " delay_us=" << rail.delay_us << " queue=" << rail.queue << " burst=" << rail.burst
        << " wire=" << rail.wire << " switch_us=" << rail.switch_us << " split_us=" << rail.split_us << " loss=" << rail.loss << " corrupt=" << rail.corrupt << " repeated_acks=" << rail.repeated_acks
        << " late_acks=" << rail.late_acks << " acks_us=" << rail.acks_us << "\n";
  for (std::size_t i = 0; i < plan.rails.size(); ++i) {
    for (const RateStep& step : plan.rails[i].rates)
      out << "rate rail=" << i << " at_us=" << step.at_us << " rate=" << step.rate << "\n";
    for (const Outage& outage : plan.rails[i].outages)
      out << "outage rail=" << i << " from_us=" << outage.from_us << " to_us=" << outage.to_us << " told=" << (outage.told ? 1 : 0) << "\n";
  }
  for (const Load& load : plan.loads)
    out << "transfer at_us=" << load.at_us << " bytes=" << load.bytes << " class=" << load.klass << " count=" << load.count << "\n";
  for (const Pause& pause : plan.pauses) out << "pause from_us=" << pause.from_us << " to_us=" << pause.to_us << "\n";
  return out.str();
}

bool Plan::is_calm() const {
  return pauses.empty() && std::all_of(rails.begin(), rails.end(), [](const RailPlan& rail) {
    return rail.loss == 0 && rail.corrupt == 0 && rail.late_acks == 0 && rail.rates.empty() && rail.outages.empty() &&
           rail.rate >= kCalmRate && rail.queue >= kCalmQueue && rail.switch_us == 0 && rail.split_us == 0;
  });
}

u64 Plan::bytes() const {
  u64 sum = 0;
  for (const Load& load : loads) sum += load.bytes * load.count;
  return sum;
}

u64 Plan::wire_of(u64 rail) const {
  while (rails[rail].wire != rail) rail = rails[rail].wire;  // of an earlier rail, or its own
  return rail;
}

u64 Plan::last_change_us() const {
  u64 last = 0;
  for (const Load& load : loads) last = std::max(last, load.at_us);
  for (const Pause& pause : pauses) last = std::max(last, pause.to_us);
  for (const RailPlan& rail : rails) {
    for (const RateStep& step : rail.rates) last = std::max(last, step.at_us);
    for (const Outage& outage : rail.outages) last = std::max(last, outage.to_us);
    last = std::max(last, rail.split_us);
  }
  return last;
}

}  // namespace fabric::sim
