// The seam between the engine and one transport. Eight methods; one conformance suite runs over all.
//
// Thread: every call comes from the engine's thread, and a link calls back (Sink) only inside
// `progress`. Ownership: a posted frame's bytes stay alive through `keep` until `Sink::sent`.
// A link delivers frames in order and at most once; a link that cannot go on says so once through
// `Sink::broken`, after which only `close` may be called.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "links/frame.hpp"

namespace fabric {

struct OutFrame {
  wire::FrameHeader header{};          ///< type, flags, a, b, body_crc; sequence 0: the link adds it, and the rest
  std::vector<u8> owned;               ///< the body, when small
  const u8* body = nullptr;            ///< or memory kept alive by `keep`
  u32 body_len = 0;
  std::shared_ptr<const void> keep;
  u64 cookie = 0;                      ///< ≠ 0: Sink::sent(cookie) when the transport has every byte
  u64 cut_after = ~u64{0};             ///< tests: the connection ends after so many bytes of this frame
};

struct LinkCapabilities {
  const char* name;
  bool reliable;          ///< delivers or breaks
  bool places_directly;   ///< receives payload into the destination without a copy of its own
  u32 memory_kinds;       ///< bit per MemoryKind
  u32 chunk_bytes_max;
};

struct LinkSample {       ///< counters since creation; rtt 0 = unknown
  u64 bytes_in, bytes_out, frames_in, frames_out, rtt_ns, retransmits;
  u64 acked;              ///< of bytes_out, what the peer's transport has confirmed; a link that cannot know says bytes_out
};

class Sink {
 public:
  /// Where the next bytes of this frame's body go: `body_len` bytes, asked again before every
  /// slice, so that a destination can be withdrawn in between. nullptr: scratch.
  virtual u8* place(const wire::FrameHeader& header) = 0;
  /// A whole frame. `body` is null when any slice went to scratch. false breaks the link.
  virtual bool deliver(const wire::FrameHeader& header, const u8* body) = 0;
  virtual void sent(u64 cookie) = 0;
  virtual void broken(const std::string& reason) = 0;

 protected:
  ~Sink() = default;
};

class Link {
 public:
  virtual ~Link() = default;
  /// Queue a frame. Never blocks and never fails: the caller watches `backlog`.
  virtual void post(OutFrame frame) = 0;
  /// Write and read what the transport takes and has, at most about `budget` bytes in.
  /// @return true when more is at hand and it should be called again without waiting.
  virtual bool progress(Sink& sink, u64 budget) = 0;
  virtual int fd() const = 0;              ///< readable (or writable, if `wants_write`): call progress
  virtual bool wants_write() const = 0;
  virtual u64 backlog() const = 0;         ///< bytes posted that the transport has not taken
  virtual LinkCapabilities capabilities() const = 0;
  virtual LinkSample sample() = 0;
  virtual void close() = 0;                ///< idempotent; what is queued is dropped
};

}  // namespace fabric
