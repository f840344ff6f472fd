"""`fabricctl channel send|echo`: json lines into a channel, and what a channel carries as json lines."""

from __future__ import annotations

from fabric.cli.listing import kind_app

channel_app = kind_app("channel")
