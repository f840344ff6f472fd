// A record of a local lane as peers get it.
#pragma once

#include <vector>

#include "core/ring.hpp"

namespace fabric {

/// Copies the record at `span`, and names in it the port at the lane's other end as its producer, whatever it says there.
/// @return false when there is no room to name it; `out` is then the record as it is.
bool copy_record(const RecordSpan& span, const ProducerExtension& producer, std::vector<u8>& out);

}  // namespace fabric
