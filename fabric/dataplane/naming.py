"""Errors of native calls speak of channel numbers; who reads them knows names. Pure."""

from __future__ import annotations

import re

from fabric.errors import FabricError

_NUMBER = re.compile(r"\bchannel \d+\b")
_FLOW = re.compile(r"\b(of |the peer of )?flow \d+\b")


class Named:
    """``with named:`` lets what a native call raises name the channel; one per endpoint, reentrant, any thread."""

    __slots__ = ("channel",)

    def __init__(self, channel: str) -> None:
        self.channel = channel

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, FabricError):
            name_channel(error, self.channel)


def name_channel(error: FabricError, channel: str) -> None:
    """Let `error` name the channel instead of its number, and no flow by its number; in place."""
    text = _NUMBER.sub(lambda _: f"channel {channel!r}", str(error))
    text = _FLOW.sub(lambda found: f"{found[1] or ''}one of its receivers", text)
    if text != str(error):
        error.args = (text, *error.args[1:])
        error.message = text
        error.context.setdefault("channel", channel)
