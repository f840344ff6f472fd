"""The calls of `fabricctl path` and `bench path`, for `ControlClient`: blocking, plain dicts, `FabricError`s."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import Message

from fabric import limits
from fabric.controlplane.api.v1 import control_pb2 as pb


class PathClient(abc.ABC):
    """A part of `ControlClient`. A call about paths says what the node that is asked (or `source`) sends."""

    @abc.abstractmethod
    def _call(self, method: str, request: Message, at_least_s: float = 0.0) -> dict[str, Any]: ...

    def path_ls(self, source: str = "") -> list[dict[str, Any]]:
        """Return a row for every rail to every node: terms of its score, counts, addresses, state."""
        rows: list[dict[str, Any]] = self._call("PathList", pb.PathListRequest(source=source))[
            "rows"
        ]
        return rows

    def path_show(
        self, peer: str, *, rail: int | None = None, size_bytes: int = 1 << 20, source: str = ""
    ) -> dict[str, Any]:
        """Return the rails to a node with their scores, last changes, and the scheduler's last decisions.

        Raises
        ------
        ConfigError
            There is no such node or rail.
        """
        request = pb.PathShowRequest(peer=peer, rail=rail, size_bytes=size_bytes, source=source)
        return self._call("PathShow", request)

    def path_why(
        self, source: str, target: str, *, size_bytes: int, klass: str = "bulk"
    ) -> dict[str, Any]:
        """Return where a message of this size and class would go now, and why; nothing is sent.

        Raises
        ------
        ConfigError
            There is no such node or class, or no message has that size.
        """
        request = pb.PathWhyRequest(
            source=source, target=target, size_bytes=size_bytes, klass=klass
        )
        return self._call("PathWhy", request)

    def codec_why(self, channel: str) -> list[dict[str, Any]]:
        """Return a row for each sender of a channel with a codec: counts, paths, what was decided of late and why.

        Raises
        ------
        ConfigError
            There is no such channel.
        """
        return list(self._call("Codec", pb.CodecRequest(channel=channel))["rows"])

    def codec_bench(
        self, channel: str, codecs: Sequence[str] = (), seconds: float = 5.0
    ) -> list[dict[str, Any]]:
        """Measure codecs on copies of what a channel's senders send; a row a sender and codec.

        Raises
        ------
        ConfigError
            There is no such channel.
        DeadlineExceeded
            Nothing with a tensor was sent within `seconds`.
        """
        request = pb.CodecRequest(
            channel=channel, is_measured=True, codecs=list(codecs), seconds=seconds
        )
        deadline_s = seconds + limits.CODEC_BENCH_S + limits.CONTROL_CALL_S
        return list(self._call("Codec", request, deadline_s)["rows"])

    def path_probe(
        self,
        peer: str,
        *,
        rail: int | None = None,
        trips: int = 20,
        size_bytes: int = 0,
        seconds: float = 1.0,
        source: str = "",
    ) -> dict[str, Any]:
        """Measure rails by themselves: round trips, and payload within bytes and seconds a rail.

        Returns
        -------
        dict
            ``rails``: a row each, with figures or ``failed``; ``seconds``, ``bytes`` spent.

        Raises
        ------
        ConfigError
            There is no such node or rail, or the budget is outside its bounds.
        """
        request = pb.PathProbeRequest(
            peer=peer,
            rail=rail,
            trips=trips,
            size_bytes=size_bytes,
            seconds=seconds,
            source=source,
        )
        each_s = seconds + 2 * limits.PATH_PROBE_WAIT_S
        return self._call("PathProbe", request, limits.RAILS_PER_PEER_MAX * each_s)

    def path_pin(self, peer: str, rails: Sequence[int]) -> dict[str, Any]:
        """Bind what the node sends to `peer` to some rails until the pin is taken away; no rails: take it away.

        Raises
        ------
        ConfigError
            There is no such node or rail.
        """
        return self._call("PathPin", pb.PathPinRequest(peer=peer, rails=rails))

    def bench_path(
        self, peer: str, *, seconds: float, size_bytes: int, memory_bytes: int
    ) -> dict[str, Any]:
        """Measure the live rails to a node: each alone, all at once, and the fabric over them. As `bench_edge`."""
        request = pb.BenchPathRequest(
            peer=peer, seconds=seconds, size_bytes=size_bytes, memory_bytes=memory_bytes
        )
        at_least_s = 2 * seconds + 2 * limits.BENCH_START_S + limits.CONTROL_S
        return self._call("BenchPath", request, at_least_s)
