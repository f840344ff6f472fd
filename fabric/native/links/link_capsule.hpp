// How a link that another extension module made gets into the engine: in a capsule, under a name that only the same
// headers, compiled by the same compiler, give.
//
// Pure functions, no Python. Whoever takes the link owns it; a capsule that nobody takes deletes it.
#pragma once

#include <string>

#include "links/link.hpp"

namespace fabric {

inline constexpr int kLinkSeamVersion = 1;              // of what a method of Link or Sink means
inline constexpr const char* kLinkTaken = "fabric.Link, taken";

/// The capsule's name. Virtual tables and these types cross between the modules, so their sizes are part of it.
inline const std::string& link_capsule_name() {
  static const std::string name =
      "fabric.Link " + std::to_string(kLinkSeamVersion) + ": " + std::to_string(sizeof(OutFrame)) + " " +
      std::to_string(sizeof(LinkCapabilities)) + " " + std::to_string(sizeof(LinkSample)) + " " +
      std::to_string(sizeof(wire::FrameHeader)) + " " + std::to_string(sizeof(std::string)) + ", " __VERSION__;
  return name;
}

}  // namespace fabric
