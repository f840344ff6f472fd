"""`fabricctl metrics`: a node's metrics as Prometheus would read them."""

from __future__ import annotations

import sys

from fabric.cli.failure import failing
from fabric.cli.options import Socket, connect


def metrics(socket: Socket = None) -> None:
    """Print the node's metrics in Prometheus' text format; `fabricctl status` says where they are served."""
    with failing("cannot show the metrics"), connect(socket) as client:
        sys.stdout.write(client.metrics())
