#include "fan_out.hpp"

#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <stdexcept>

namespace floors {
namespace {

constexpr u64 kReceiversMax = 64;

struct Bell {
  alignas(64) std::atomic<u32> number;  ///< of the newest message
  std::atomic<u32> asleep;
};
struct Control {
  alignas(64) std::atomic<u64> taken;  ///< messages × receivers
  alignas(64) std::atomic<u32> sender_asleep;
  Bell bells[kReceiversMax];
  std::atomic<u64> moments[];          ///< [receiver][message]
};

Control* control_of(const Memory& memory) { return reinterpret_cast<Control*>(memory.data()); }

/// One receiver, for all messages; @return the exit status.
int receive(Control* control, const Memory& slot, u64 receiver, u64 receivers, u64 count) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  Bell& bell = control->bells[receiver];
  const u64* first = reinterpret_cast<const u64*>(slot.data());
  for (u64 number = 1; number <= count; ++number) {
    sleep_until([&] { return bell.number.load(std::memory_order_acquire) >= number; }, bell.asleep);
    control->moments[receiver * count + number - 1].store(now_ns(), std::memory_order_relaxed);
    if (*first != number) return 1;
    if (control->taken.fetch_add(1) + 1 == number * receivers) wake(control->sender_asleep);
  }
  return 0;
}

}  // namespace

void FanOutEnd::prepare(const Order& order) {
  receivers_ = order.count("receivers");
  count_ = order.count("count");
  if (receivers_ == 0 || receivers_ > kReceiversMax) throw std::runtime_error("receivers: 1 to 64");
  control_ = Memory();
  control_ = meeting_.share(sizeof(Control) + receivers_ * count_ * sizeof(u64));
  slot_ = Memory();
  slot_ = meeting_.share(std::max<u64>(order.count("size"), sizeof(u64)));
  if (meeting_.role() == Role::far) start_receivers();
}

void FanOutEnd::start_receivers() {
  children_.clear();
  for (u64 receiver = 0; receiver < receivers_; ++receiver) {
    const pid_t child = ::fork();
    check(child >= 0, "fork");
    if (child == 0) {
      const Memory slot = std::move(slot_);
      volatile u8 seen = 0;  // pages are mapped in before it counts
      for (std::size_t at = 0; at < slot.size(); at += 4096) seen = slot.data()[at];
      static_cast<void>(seen);
      ::_exit(receive(control_of(control_), slot, receiver, receivers_, count_));
    }
    children_.push_back(child);
  }
}

u64 FanOutEnd::cpu_ns() const {
  rusage ended{};
  ::getrusage(RUSAGE_CHILDREN, &ended);
  const u64 us = static_cast<u64>(ended.ru_utime.tv_sec + ended.ru_stime.tv_sec) * 1'000'000 +
                 static_cast<u64>(ended.ru_utime.tv_usec + ended.ru_stime.tv_usec);
  return cpu_ns_of(0) + us * 1000;
}

std::vector<u64> FanOutEnd::send(const Order& order, const Sources& sources) {
  Control* control = control_of(control_);
  std::vector<u64> moments;
  for (u64 number = 1; number <= count_; ++number) {
    moments.push_back(now_ns());
    if (!order.flag("loaned")) std::memcpy(slot_.data(), sources[number].data(), slot_.size());
    std::memcpy(slot_.data(), &number, sizeof number);
    for (u64 receiver = 0; receiver < receivers_; ++receiver) {
      Bell& bell = control->bells[receiver];
      bell.number.store(static_cast<u32>(number), std::memory_order_release);
      wake(bell.asleep);
    }
    sleep_until([&] { return control->taken.load() == number * receivers_; }, control->sender_asleep);
  }
  return moments;
}

std::vector<u64> FanOutEnd::wait_for_receivers() {
  for (pid_t child : children_) {
    int status = 0;
    ::waitpid(child, &status, 0);
    if (status != 0) throw std::runtime_error("a receiver saw another message than was sent");
  }
  std::vector<u64> last(count_, 0);
  for (u64 i = 0; i < receivers_ * count_; ++i) {
    last[i % count_] = std::max(last[i % count_], control_of(control_)->moments[i].load());
  }
  return last;
}

void FanOutEnd::fan_out(Role role, const Order& order, const Sources& sources, Answer& answer) {
  answer.add("at", role == Role::near ? send(order, sources) : wait_for_receivers());
}

}  // namespace floors
