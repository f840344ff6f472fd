"""Errors of native calls speak of channel numbers; who reads them knows names. Pure."""

from __future__ import annotations

import re

from fabric.errors import FabricError

_NUMBER = re.compile(r"\bchannel \d+\b")
_FLOW = re.compile(r"\b(of |the peer of )?flow \d+\b")


def name_channel(error: FabricError, channel: str) -> None:
    """Let `error` name the channel instead of its number, and no flow by its number; in place."""
    text = _NUMBER.sub(lambda _: f"channel {channel!r}", str(error))
    text = _FLOW.sub(lambda found: f"{found[1] or ''}one of its receivers", text)
    if text != str(error):
        error.args = (text, *error.args[1:])
        error.message = text
        error.context.setdefault("channel", channel)
