// Foreign segments that this port has mapped: a mapping keeps the memory alive, so an unused one is given up.
#include <set>

#include "core/port.hpp"

namespace fabric {

// Two looks without a read between them, and no message here that lies in it. A view that has read keeps its own
// reference; who needs the segment again fetches it again.
Status Port::drop_unused_readers(u32& dropped) {
  Operation operation(*this);
  if (!operation.ok()) return operation.status();
  std::set<u32> named;
  bool names_more = false;  // an entry of the table names only the first segment of its message
  held_.each_live([&](const HeldEntry& entry) {
    named.insert(entry.segment);
    names_more = names_more || entry.word.load(std::memory_order_relaxed) >> 8 > 1;
  });
  if (names_more) return Status::success();
  const std::size_t before = readers_.size();
  std::erase_if(readers_, [&named](const auto& reader) {
    return !reader.second->touched.exchange(false, std::memory_order_relaxed) && named.count(reader.first) == 0;
  });
  dropped = static_cast<u32>(before - readers_.size());
  return Status::success();
}

}  // namespace fabric
