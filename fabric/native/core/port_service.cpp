// The service thread (heartbeat; progress when no user thread made any) and what fork does to ports.
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <climits>

#include "core/clock.hpp"
#include "core/futex.hpp"
#include "core/port.hpp"
#include "core/receiver.hpp"
#include "core/sender.hpp"

namespace fabric {
namespace {

// Leaked on purpose: ports may be destroyed after static destructors ran.
struct Registry {
  std::mutex mutex;
  std::vector<Port*> ports;
};
Registry& registry() {
  static Registry* instance = new Registry;
  return *instance;
}

void before_fork() { registry().mutex.lock(); }
void after_fork_in_parent() { registry().mutex.unlock(); }
void after_fork_in_child() {
  for (Port* port : registry().ports) port->on_fork_in_child();
  registry().mutex.unlock();
}

}  // namespace

void register_port(Port* port) {
  static const int hooked = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
  (void)hooked;
  std::lock_guard lock(registry().mutex);
  registry().ports.push_back(port);
}

void unregister_port(Port* port) {
  std::lock_guard lock(registry().mutex);
  std::erase(registry().ports, port);
}

void Port::on_fork_in_child() {
  forked_.store(true, std::memory_order_relaxed);
  has_service_ = false;  // threads do not survive a fork
}

void Port::start_service() {
  sigset_t all, former;
  sigfillset(&all);  // Signals belong to the interpreter's threads.
  pthread_sigmask(SIG_SETMASK, &all, &former);
  has_service_ = pthread_create(&service_, nullptr, [](void* port) -> void* {
    pthread_setname_np(pthread_self(), "fabric-port");
    static_cast<Port*>(port)->service_loop();
    return nullptr;
  }, this) == 0;
  pthread_sigmask(SIG_SETMASK, &former, nullptr);
}

void Port::stop_service() {
  if (!has_service_) return;
  has_service_ = false;
  service_stop_.store(1, std::memory_order_release);
  kick_service();
  doorbell_.wake_sleepers();
  pthread_join(service_, nullptr);
}

void Port::kick_service() {
  service_word_.fetch_add(1, std::memory_order_release);
  futex_wake(&service_word_, INT_MAX, false);
}

void Port::service_loop() {
  u64 beat = 0, tick = 0;
  while (service_stop_.load(std::memory_order_acquire) == 0) {
    const u64 now = monotonic_ns();
    if (now - beat >= kHeartbeatNs) {
      state_->head.heartbeat_ns.store(now, std::memory_order_release);
      beat = now;
    }
    if (now - tick >= kServiceNs) {
      service_tick(now);
      tick = now;
    }
    service_sleep(tick + kServiceNs);
  }
}

// Until the next tick, or until kicked. A receiver that drops its oldest must be drained although nobody reads: for
// such a port this thread leads at the doorbell while no user thread does.
void Port::service_sleep(u64 until_ns) {
  const u32 seen = service_word_.load(std::memory_order_acquire);
  if (service_stop_.load(std::memory_order_acquire) != 0) return;
  Operation operation(*this, false);
  if (!operation.ok() || prompt_ == 0 || leader_) {
    operation.leave();
    futex_wait(&service_word_, seen, until_ns, false);
    return;
  }
  leader_ = service_leads_ = true;
  doorbell_.prepare(Wake::futex);
  const bool idle = !doorbell_.any_ready();
  operation.leave();
  if (idle) doorbell_.sleep_until(Wake::futex, until_ns);
  {
    std::lock_guard lock(mutex_);     // not an operation: an audit that froze the port meanwhile is no reason to lead on
    if (!service_leads_) return;      // a user thread took over
    leader_ = service_leads_ = false;
    if (!closed()) hand_bell_over();
  }
  if (!operation.enter()) return;
  progress_locked();
  flush_wakes();
}

// Bits may be missing after a peer died between head and mark: now and then every lane is looked at.
void Port::service_tick(u64 now) {
  Operation operation(*this, false);
  if (!operation.ok()) return;
  const bool users_did = user_progress_ != service_seen_;
  const bool full_look = now - last_full_look_ >= kHeartbeatNs;
  if (full_look) last_full_look_ = now;
  const u64 handled = !users_did || full_look ? progress_locked(full_look) : 0;
  if (handled != 0 && leader_asleep_) doorbell_.wake_sleepers();  // a peer may have said `awake` in its name
  service_seen_ = user_progress_;
  for (auto& [endpoint, sender] : senders_) sender->expire_waiting(now);
  // Credit below the usual step, of a consumer that acknowledges but asks for nothing more: a sender may wait for it.
  for (auto& [endpoint, receiver] : receivers_) receiver->grant_all();
  flush_wakes();
}

}  // namespace fabric
