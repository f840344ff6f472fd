"""What a port does about a lane whose other side broke the rules."""

from types import SimpleNamespace

import fabric


def test_broken_lane_is_reported_to_the_daemon_once(node):
    with fabric.attach("p", node.path) as port:
        asked = []
        native, port.native = port.native, SimpleNamespace(broken_lanes=lambda: [(3, "why")])
        post, port.connection.post = port.connection.post, lambda *request: asked.append(request)
        try:
            port._report_broken_lanes()
            port._report_broken_lanes()
        finally:
            port.native, port.connection.post = native, post
        assert asked == [("lane_broken", {"lane": 3, "reason": "why"})]
