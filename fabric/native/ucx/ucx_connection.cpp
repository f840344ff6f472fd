#include "ucx/ucx_connection.hpp"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "core/clock.hpp"

namespace fabric::ucx {
namespace {

constexpr u64 kSecondNs = 1'000'000'000;
constexpr u64 kFlushNs = 2'000'000;                     // what a close waits for what was posted
constexpr u64 kBackoffMinNs = 20'000, kBackoffMaxNs = 1'000'000;
constexpr u32 kArmAttempts = 3;
enum Watched : u64 { kSocket = 1, kWorker = 2, kTimer = 3 };

void watch(int epoll, int operation, int fd, u32 events, u64 what) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = what;
  ::epoll_ctl(epoll, operation, fd, &event);
}

u64 random_key() {
  u64 key = 0;
  if (::getrandom(&key, sizeof key, 0) != sizeof key) key = monotonic_ns();
  return key;
}

}  // namespace

UcxConnection::UcxConnection(int fd, u64 session, const Options& options, std::string& why)
    : socket_(fd), epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      timer_(::timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)), session_(session), key_(random_key()) {
  why = endpoint_.open(options);
  if (!why.empty()) return;
  if (endpoint_.address().size() > kAddressBytesMax) {
    why = "ucx: the worker's address has " + std::to_string(endpoint_.address().size()) + " bytes; name fewer devices";
    return;
  }
  exchange_ = AddressExchange(endpoint_.address(), key_);
  ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
  watch(epoll_.get(), EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLOUT, kSocket);
  watch(epoll_.get(), EPOLL_CTL_ADD, timer_.get(), EPOLLIN, kTimer);
  watch(epoll_.get(), EPOLL_CTL_ADD, endpoint_.event_fd(), 0, kWorker);
  watches_writing_ = true;
}

/// What was posted has a moment to leave. The socket goes last: its end is what the peer sees.
UcxConnection::~UcxConnection() {
  closing_ = true;  // callbacks only count from here on
  const u64 until = monotonic_ns() + kFlushNs;
  while (connected_ && failure_.empty() && !sending_.empty() && monotonic_ns() < until) endpoint_.progress();
  for (auto& [sequence, held] : held_)
    if (held.ticket != nullptr) endpoint_.discard(held.ticket);
  endpoint_.close();
}

void UcxConnection::fail(std::string reason) {
  if (failure_.empty()) failure_ = std::move(reason);
}

// ------------------------------------------------------------------ out
void UcxConnection::post(OutFrame frame) {
  if (broken_) return;
  if (!frame.owned.empty()) frame.body_len = static_cast<u32>(frame.owned.size());
  frame.header.session = session_;
  if (frame.header.sequence == 0) frame.header.sequence = ++seq_out_;
  frame.header.body_len = frame.body_len;
  wire::seal_header(frame.header);
  backlog_ += wire::kFrameHeaderBytes + frame.body_len;
  ++counters_.frames_out;
  out_.push_back(std::move(frame));
}

bool UcxConnection::may_send() const {
  if (!connected_ || !failure_.empty() || out_.empty()) return false;
  if (sending_.empty()) return true;
  return posted_ - sending_.front().posted_before < kAheadBytesMax && sending_.size() < kAheadFramesMax;
}

void UcxConnection::send_waiting() {
  while (may_send()) {
    if (out_.front().cut_after != ~u64{0}) return fail("fault injected: cut");
    Sending& sending = sending_.emplace_back();
    sending.frame = std::move(out_.front());
    out_.pop_front();
    const OutFrame& frame = sending.frame;
    sending.size = wire::kFrameHeaderBytes + frame.body_len;
    sending.posted_before = posted_;
    posted_ += sending.size;
    backlog_ -= sending.size;
    counters_.bytes_out += sending.size;
    const MessageHead head{exchange_.peer_key(), frame.header};
    const u8* body = frame.owned.empty() ? frame.body : frame.owned.data();
    const std::span<const u8> header{reinterpret_cast<const u8*>(&head), sizeof head};
    if (endpoint_.send(header, {body, frame.body_len}, sending) == Done::now) sent(sending, nullptr);
  }
}

void UcxConnection::sent(Operation& send, const char* error) {
  Sending& sending = static_cast<Sending&>(send);
  const u64 cookie = sending.frame.cookie;
  sending.frame = {};  // its memory is not needed any more
  sending.done = true;
  if (error != nullptr) fail(std::string("ucx: send: ") + error);
  else if (cookie != 0 && sink_ != nullptr) sink_->sent(cookie);
  count_sent();
}

void UcxConnection::count_sent() {
  for (; !sending_.empty() && sending_.front().done; sending_.pop_front()) counters_.acked += sending_.front().size;
}

// ------------------------------------------------------------------ in
void UcxConnection::failed(const char* error) { fail(std::string("ucx: ") + error); }

/// @return false: not to be taken, because it is nobody's or because the link is broken now.
bool UcxConnection::accept(std::span<const u8> header, u64 body_bytes, wire::FrameHeader& frame) {
  if (closing_ || !failure_.empty()) return false;
  u64 key = 0;
  if (header.size() >= sizeof key) std::memcpy(&key, header.data(), sizeof key);
  if (key != key_) return false;         // whoever found this worker: the peer knows the key
  const std::span<const u8> bytes = header.subspan(sizeof key);
  u32 header_bytes = 0;
  const wire::Parse parse = wire::parse_header(bytes, frame, header_bytes);
  if (parse != wire::Parse::ok) fail(std::string("peer protocol: ") + wire::name(parse));
  else if (header_bytes != bytes.size() || frame.body_len != body_bytes) fail("peer protocol: frame length");
  else if (frame.session != session_) fail("peer protocol: frame of another session");
  else if (frame.sequence < next_in_ || frame.sequence - next_in_ > 2 * kAheadFramesMax || held_.count(frame.sequence) != 0)
    fail("peer protocol: gap in frame sequence");
  return failure_.empty();
}

void UcxConnection::arrived(std::span<const u8> header, std::span<const u8> body) {
  wire::FrameHeader frame;
  if (!accept(header, body.size(), frame)) return;
  if (frame.sequence == next_in_) return deliver(frame, body.data());
  if (Held* held = hold(frame)) {
    held->body.assign(body.begin(), body.end());
    held->is_ready = true;
  }
}

bool UcxConnection::announced(std::span<const u8> header, u64 body_bytes, void* ticket) {
  wire::FrameHeader frame;
  Held* held = accept(header, body_bytes, frame) ? hold(frame) : nullptr;
  if (held == nullptr) return false;
  held->ticket = ticket;
  ++to_fetch_;
  return true;
}

UcxConnection::Held* UcxConnection::hold(const wire::FrameHeader& frame) {
  if (held_bytes_ + frame.body_len > kHeldBytesMax) {
    fail("peer protocol: too much sent ahead of what is missing");
    return nullptr;
  }
  held_bytes_ += frame.body_len;
  Held& held = held_[frame.sequence];
  held.header = frame;
  return &held;
}

/// The next frame has a buffer always, others while there are some: what is fetched ahead never stands in its way.
bool UcxConnection::fetch_held() {
  bool began = false;
  for (auto at = held_.begin(); to_fetch_ > 0 && at != held_.end() && failure_.empty(); ++at) {
    auto& [sequence, held] = *at;
    if (fetches_ >= kFetchesMax && sequence != next_in_) break;
    if (held.ticket == nullptr) continue;
    if (!buffers_.empty()) {
      held.body = std::move(buffers_.back());
      buffers_.pop_back();
    }
    if (held.body.size() < held.header.body_len) held.body.resize(held.header.body_len);
    ++fetches_;
    --to_fetch_;
    held.is_fetched = true;
    void* ticket = std::exchange(held.ticket, nullptr);
    if (endpoint_.fetch(ticket, held.body.data(), held.header.body_len, held) == Done::now) held.is_ready = true;
    began = true;
  }
  return began;
}

void UcxConnection::fetched(Operation& fetch, const char* error) {
  if (error != nullptr) return fail(std::string("ucx: fetch: ") + error);
  static_cast<Held&>(fetch).is_ready = true;
}

bool UcxConnection::deliver_held() {
  bool any = false;
  while (budget_ > 0 && failure_.empty() && !held_.empty()) {
    const auto front = held_.begin();
    Held& held = front->second;
    if (front->first != next_in_ || !held.is_ready) break;
    deliver(held.header, held.body.data());
    held_bytes_ -= held.header.body_len;
    if (held.is_fetched) {
      --fetches_;
      if (buffers_.size() < kFetchesMax) buffers_.push_back(std::move(held.body));
    }
    held_.erase(front);
    any = true;
  }
  return any;
}

void UcxConnection::deliver(const wire::FrameHeader& frame, const u8* body) {
  ++next_in_;
  ++counters_.frames_in;
  const u64 size = wire::kFrameHeaderBytes + frame.body_len;
  counters_.bytes_in += size;
  budget_ -= std::min(budget_, size);
  if (frame.type == u8(wire::FrameType::chunk)) {
    u8* target = sink_->place(frame);
    if (target != nullptr && frame.body_len > 0) std::memcpy(target, body, frame.body_len);
    body = target;
  }
  if (!sink_->deliver(frame, body)) fail("peer protocol: frame refused");
}

// ------------------------------------------------------------------ progress
bool UcxConnection::progress(Sink& sink, u64 budget) {
  if (broken_) return false;
  sink_ = &sink;
  budget_ = budget;
  const bool more = budget > 0 ? work() : write();
  sink_ = nullptr;
  if (failure_.empty()) return more;
  broken_ = true;
  sink.broken(failure_);
  return false;
}

/// Posts only: what comes meanwhile still finds the worker armed, unless UCX has to be called again for what was posted.
bool UcxConnection::write() {
  const std::size_t before = sending_.size();
  send_waiting();
  if (armed_ && sending_.size() > before && endpoint_.arm() == Armed::busy) {
    armed_ = false;
    wake_in(1);
  }
  return false;
}

bool UcxConnection::work() {
  look_at_descriptors();
  if (!connected_ || !failure_.empty()) return false;
  armed_ = false;
  bool any = false;
  while (budget_ > 0 && step()) any = true;
  if (!failure_.empty()) return false;
  if (budget_ == 0) return true;
  if (ended_) {  // and all that had come before it was taken
    fail("closed by peer");
    return false;
  }
  return wait_for_more(any);
}

/// @return true when anything moved.
bool UcxConnection::step() {
  bool moved = fetch_held();
  moved |= deliver_held();
  send_waiting();
  if (!failure_.empty()) return false;
  moved |= endpoint_.progress();
  return moved && failure_.empty();
}

/// Where UCX cannot sleep (a peer's queue is full, which has no event), it is asked again after a while.
bool UcxConnection::wait_for_more(bool moved) {
  u64 wake_ns = watch_gap();
  for (u32 attempt = 0; attempt < kArmAttempts && failure_.empty(); ++attempt) {
    const Armed armed = endpoint_.arm();
    if (armed == Armed::failed) return false;
    if (armed == Armed::yes) {
      armed_ = true;
      backoff_ns_ = 0;
      watch_worker(true);
      if (wake_ns != 0) wake_in(wake_ns);
      return false;
    }
    if (moved || step()) return true;
  }
  backoff_ns_ = std::clamp(2 * backoff_ns_, kBackoffMinNs, kBackoffMaxNs);
  watch_worker(false);
  wake_in(wake_ns == 0 ? backoff_ns_ : std::min(wake_ns, backoff_ns_));
  return false;
}

/// @return when to look again at a frame that others overtook; 0: none is missing.
u64 UcxConnection::watch_gap() {
  if (held_.empty() || held_.begin()->first == next_in_) {
    gap_since_ns_ = 0;
    return 0;
  }
  const u64 now = monotonic_ns();
  if (gap_since_ns_ == 0 || gap_at_ != next_in_) {
    gap_since_ns_ = now;
    gap_at_ = next_in_;
  }
  const u64 due = gap_since_ns_ + kGapNs;
  if (now < due) return due - now;
  fail("peer protocol: gap in frame sequence");
  return 0;
}

// ------------------------------------------------------------------ descriptors
void UcxConnection::look_at_descriptors() {
  epoll_event ready[4];
  const int count = ::epoll_wait(epoll_.get(), ready, 4, 0);
  for (int i = 0; i < count; ++i) {
    u64 fired;
    if (ready[i].data.u64 == kTimer) [[maybe_unused]] auto got = ::read(timer_.get(), &fired, sizeof fired);
    if (ready[i].data.u64 == kSocket) look_at_socket();
  }
}

void UcxConnection::look_at_socket() {
  if (!connected_) return exchange_addresses();
  u8 byte;
  const ssize_t count = ::recv(socket_.get(), &byte, 1, MSG_DONTWAIT);
  if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return;
  if (count > 0) return fail("peer protocol: bytes beside the messages of a ucx connection");
  ended_ = true;
  watch(epoll_.get(), EPOLL_CTL_DEL, socket_.get(), 0, kSocket);
}

void UcxConnection::exchange_addresses() {
  const AddressExchange::Step step = exchange_.progress(socket_.get());
  if (step == AddressExchange::Step::broken) return fail(exchange_.reason());
  if (watches_writing_ && !exchange_.wants_write()) {
    watches_writing_ = false;
    watch(epoll_.get(), EPOLL_CTL_MOD, socket_.get(), EPOLLIN, kSocket);
  }
  if (step != AddressExchange::Step::done) return;
  const std::string why = endpoint_.connect(exchange_.peer_address());
  if (!why.empty()) return fail(why);
  connected_ = true;
}

void UcxConnection::watch_worker(bool wanted) {
  if (wanted == watches_worker_) return;
  watches_worker_ = wanted;
  watch(epoll_.get(), EPOLL_CTL_MOD, endpoint_.event_fd(), wanted ? u32(EPOLLIN) : 0u, kWorker);
}

void UcxConnection::wake_in(u64 ns) {
  itimerspec at{};
  at.it_value.tv_sec = static_cast<time_t>(ns / kSecondNs);
  at.it_value.tv_nsec = static_cast<long>(ns % kSecondNs);
  ::timerfd_settime(timer_.get(), 0, &at, nullptr);
}

}  // namespace fabric::ucx
