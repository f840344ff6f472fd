// Creation and freezing of shared segments, clock and checksum.
#include <nanobind/nanobind.h>

#include "bind/gil.hpp"
#include "bind/endpoints.hpp"
#include "core/clock.hpp"
#include "core/crc32c.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace fabric {
namespace {

u32 checksum(nb::handle data, u32 seed) {
  Buffers buffers;
  buffers.add(data);
  const Piece piece = buffers.pieces()[0];
  bind::ReleasedGil unlocked;
  return crc32c(piece.data, piece.bytes, seed);
}

int lane_pair(u32 klass, u64 port0, u64 incarnation0, u64 port1, u64 incarnation1) {
  const u64 port[2] = {port0, port1}, incarnation[2] = {incarnation0, incarnation1};
  Fd fd;
  check(create_lane_pair(klass, port, incarnation, fd));
  return fd.release();
}

}  // namespace

void bind_segments(nb::module_& module) {
  module.def("monotonic_ns", monotonic_ns, "CLOCK_MONOTONIC, the clock of every deadline.");
  module.def("crc32c", checksum, "data"_a, "seed"_a = 0,
             nb::sig("def crc32c(data: typing.Any, seed: int = 0) -> int"), "CRC-32C of a contiguous buffer.");
  module.def("create_state", [](u64 port, u64 incarnation, u32 tenant) {
    Fd fd;
    check(create_state(port, incarnation, tenant, fd));
    return fd.release();
  }, "port"_a, "incarnation"_a, "tenant"_a, "A port's state segment; the fd is the caller's.");
  module.def("create_doorbell", [] {
    Fd fd;
    check(create_doorbell(fd));
    return fd.release();
  }, "A doorbell segment; the fd is the caller's.");
  module.def("create_lane_pair", lane_pair, "klass"_a, "port0"_a, "incarnation0"_a, "port1"_a, "incarnation1"_a,
             "The lanes between two ports; port0 must be the smaller id. The fd is the caller's.");
  module.def("create_segment", [](u32 segment, u64 port, u64 incarnation, u32 tenant, u64 slot_bytes, u32 slot_count) {
    Fd fd;
    check(create_segment(segment, port, incarnation, tenant, slot_bytes, slot_count, fd));
    return fd.release();
  }, "segment"_a, "port"_a, "incarnation"_a, "tenant"_a, "slot_bytes"_a, "slot_count"_a,
             "An arena segment of `slot_count` slots (<= 1024) of `slot_bytes` (multiple of 64).");
  module.def("seal_segment", [](int fd) { check(seal_segment(fd)); }, "fd"_a,
             "Refuse every later writable mapping; after the one writer has mapped.");
  module.def("freeze", [](int state_fd, u64 deadline_ns) {
    Status status;
    bool still = false;
    {
      bind::ReleasedGil unlocked;
      still = freeze_port(state_fd, deadline_ns, status);
    }
    check(status);
    return still;
  }, "state_fd"_a, "deadline_ns"_a, "Stop new operations; True when none is inside any more.");
  module.def("freeze_overruns", [](int state_fd) {
    u64 out = 0;
    check(freeze_overruns(state_fd, out));
    return out;
  }, "state_fd"_a, "Operations that went on in a freeze, since the port exists: a cut over which it changed is none.");
  module.def("thaw", [](int state_fd) { check(thaw_port(state_fd)); }, "state_fd"_a, "End a freeze.");
}

}  // namespace fabric
