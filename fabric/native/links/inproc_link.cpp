#include "links/inproc_link.hpp"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cstring>
#include <map>

namespace fabric {

struct InprocLink::Wire {
  struct Queue {
    std::deque<Bytes> frames;
    u64 bytes = 0;
    bool starved = false;  // the writer found it full and waits for its eventfd
  };
  std::mutex lock;
  Queue queue[2];          // queue[s]: towards side s
  Fd event[2];             // event[s]: something for side s
  bool closed[2] = {false, false};

  void notify(int side) {
    const u64 one = 1;
    [[maybe_unused]] ssize_t done = ::write(event[side].get(), &one, sizeof one);
  }
};

std::shared_ptr<InprocLink::Wire> InprocLink::make_wire() {
  auto wire = std::make_shared<Wire>();
  for (Fd& event : wire->event) event = Fd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  return wire;
}

InprocLink::InprocLink(std::shared_ptr<Wire> wire, int side, u64 session)
    : wire_(std::move(wire)), side_(side), session_(session) {}

int InprocLink::fd() const { return wire_->event[side_].get(); }

LinkCapabilities InprocLink::capabilities() const {
  return {"inproc", true, false, 1u << u32(MemoryKind::host), wire::kChunkBytesMax};
}

void InprocLink::close() {
  if (closed_) return;
  closed_ = true;
  out_.clear();
  backlog_ = 0;
  std::lock_guard guard(wire_->lock);
  wire_->closed[side_] = true;
  wire_->notify(1 - side_);
}

void InprocLink::post(OutFrame frame) {
  if (broken_ || closed_) return;
  const u8* body = frame.owned.empty() ? frame.body : frame.owned.data();
  const u32 body_len = frame.owned.empty() ? frame.body_len : static_cast<u32>(frame.owned.size());
  frame.header.session = session_;
  if (frame.header.sequence == 0) frame.header.sequence = ++seq_out_;
  frame.header.body_len = body_len;
  wire::seal_header(frame.header);
  Bytes bytes(wire::kFrameHeaderBytes + body_len);
  std::memcpy(bytes.data(), &frame.header, wire::kFrameHeaderBytes);
  if (body_len > 0) std::memcpy(bytes.data() + wire::kFrameHeaderBytes, body, body_len);
  const bool is_cut = frame.cut_after < bytes.size();
  if (is_cut) bytes.resize(frame.cut_after);
  backlog_ += bytes.size();
  ++counters_.frames_out;
  out_.push_back({std::move(bytes), frame.cookie, is_cut});
}

bool InprocLink::fail(Sink& sink, std::string reason) {
  if (!broken_) {
    broken_ = true;
    sink.broken(reason);
  }
  return false;
}

bool InprocLink::move_out(Sink& sink) {
  std::vector<u64> sent;
  bool is_cut = false;
  {
    std::lock_guard guard(wire_->lock);
    if (wire_->closed[1 - side_]) return fail(sink, "closed by peer");
    Wire::Queue& queue = wire_->queue[1 - side_];
    bool moved = false;
    while (!out_.empty() && queue.bytes < kInprocQueueBytes && !is_cut) {
      auto& [bytes, cookie, cut] = out_.front();
      is_cut = cut;
      backlog_ -= bytes.size();
      counters_.bytes_out += bytes.size();
      queue.bytes += bytes.size();
      queue.frames.push_back(std::move(bytes));
      if (cookie != 0) sent.push_back(cookie);
      out_.pop_front();
      moved = true;
    }
    queue.starved = !out_.empty();
    if (moved) wire_->notify(1 - side_);
  }
  counters_.acked = counters_.bytes_out;
  for (u64 cookie : sent) sink.sent(cookie);
  return is_cut ? fail(sink, "fault injected: cut") : true;
}

bool InprocLink::progress(Sink& sink, u64 budget) {
  if (broken_ || closed_) return false;
  // The queue may still hold frames of a peer that closed: those count as received.
  const bool reading = budget > 0;
  u64 drained;
  // Only who reads on may take the signal: a call that just writes would lose it.
  if (reading && ::read(fd(), &drained, sizeof drained) < 0) drained = 0;
  while (budget > 0) {
    Bytes frame;
    {
      std::lock_guard guard(wire_->lock);
      Wire::Queue& queue = wire_->queue[side_];
      if (queue.frames.empty()) break;
      frame = std::move(queue.frames.front());
      queue.frames.pop_front();
      queue.bytes -= frame.size();
      if (queue.starved && queue.bytes < kInprocQueueBytes / 2) {
        queue.starved = false;
        wire_->notify(1 - side_);
      }
    }
    budget -= std::min<u64>(budget, frame.size());
    if (!take_in(sink, frame)) return false;
  }
  if (!move_out(sink)) return false;
  return reading && budget == 0;
}

bool InprocLink::take_in(Sink& sink, Bytes& frame) {
  wire::FrameHeader header;
  u32 header_bytes = 0;
  const wire::Parse parse = wire::parse_header(frame, header, header_bytes);
  if (parse != wire::Parse::ok) return fail(sink, std::string("peer protocol: ") + wire::name(parse));
  if (frame.size() != header_bytes + header.body_len) return fail(sink, "peer protocol: frame cut short");
  if (header.session != session_) return fail(sink, "peer protocol: frame of another session");
  if (header.sequence != seq_in_ + 1) return fail(sink, "peer protocol: gap in frame sequence");
  ++seq_in_;
  ++counters_.frames_in;
  counters_.bytes_in += frame.size();
  const u8* body = frame.data() + header_bytes;
  if (header.type == u8(wire::FrameType::chunk)) {
    u8* target = sink.place(header);
    if (target != nullptr && header.body_len > 0) std::memcpy(target, body, header.body_len);
    body = target;
  }
  if (!sink.deliver(header, body)) return fail(sink, "peer protocol: frame refused");
  return true;
}

namespace {
std::mutex registry_lock;
std::map<u64, std::pair<std::shared_ptr<InprocLink::Wire>, int>> registry;
u64 registry_next = 1;
}  // namespace

std::pair<u64, u64> inproc_make_pair() {
  auto wire = InprocLink::make_wire();
  std::lock_guard guard(registry_lock);
  const u64 first = registry_next;
  registry_next += 2;
  registry[first] = {wire, 0};
  registry[first + 1] = {wire, 1};
  return {first, first + 1};
}

std::unique_ptr<Link> inproc_take(u64 id, u64 session) {
  std::lock_guard guard(registry_lock);
  const auto found = registry.find(id);
  if (found == registry.end()) return nullptr;
  auto link = std::make_unique<InprocLink>(found->second.first, found->second.second, session);
  registry.erase(found);
  return link;
}

}  // namespace fabric
